"""Made-up runs of a real lab's size, and the pictures of them in `var/pictures/`: `make pictures`."""

import math
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from broker.plots import canvas, comparison_curves, loss_curve, panels
from broker.plots.curve import Comparison, Curve, Evaluated, Panels
from broker.runs import series
from broker.runs.series import Measured

STEPS, TOKENS = 143_000, 2_097_152
"""Those of the Pythias."""
FORK = 64_000
HERE = Path("var/pictures")
Points = list[tuple[int, float]]
Measurements = list[tuple[int, float, float | None]]


def logged(
    steps: int = STEPS,
    *,
    floor: float = 1.85,
    first: int = 0,
    seed: int = 0,
    spikes: Mapping[int, float] | None = None,
    diverges: int | None = None,
) -> Points:
    """The loss of a run logged at every tenth step, as the database keeps it: downsampled over and over."""
    chance = random.Random(seed)
    kept: list[Measured] = []
    for step in range(first + 10, steps + 1, 10):
        value = floor + 9.1 * (1 + step / 60) ** -0.62 + chance.gauss(0, 0.035)
        for at, height in (spikes or {}).items():
            if 0 <= step - at < 300:
                value += height * math.exp(-(step - at) / 60)
        if diverges is not None and step > diverges:
            value = min(10.6, value + (step - diverges) / 250) + chance.gauss(0, 0.1)
        kept.append(Measured("loss", step, step * TOKENS, value))
        if len(kept) > series.MOST_POINTS:
            kept = series.downsample(kept)
    return [(point.tokens, point.value) for point in kept]


def norms(loss: Points) -> Points:
    """Gradient norms that go with a loss."""
    chance = random.Random(1)
    return [(tokens, 0.2 + 0.1 * value + abs(chance.gauss(0, 0.05))) for tokens, value in loss]


def held_out(steps: int = STEPS, *, floor: float = 1.95, every: int = 4000) -> Points:
    """The held-out loss at every so many steps, from step 0 on."""
    return [(step * TOKENS, floor + 9.1 * (1 + step / 60) ** -0.62) for step in range(0, steps + 1, every)]


def pythia() -> Curve:
    """A whole run with two spikes, 154 checkpoints and a divergence at its end."""
    loss = logged(spikes={30_000: 2.2, 88_000: 0.9}, diverges=140_500)
    steps = [0, *(2**n for n in range(10)), *range(1000, STEPS + 1, 1000)]
    return Curve(
        "Run 104 · pythia-1.4b-deduped",
        loss,
        held_out(),
        [step * TOKENS for step in steps],
        7.43,
        norms(loss),
        "gradient norm",
    )


def evaluated() -> Curve:
    """The same run with tasks evaluated at some of its checkpoints, of which one has no standard error."""
    steps = [0, 512, 1000, *range(11_000, STEPS + 1, 11_000), STEPS]
    risen = [1 - math.exp(-step / 50_000) for step in steps]
    lambada: Measurements = [(step * TOKENS, 0.62 * share, 0.007) for step, share in zip(steps, risen, strict=True)]
    arc: Measurements = [(step * TOKENS, 0.25 + 0.35 * share, 0.01) for step, share in zip(steps, risen, strict=True)]
    bits: Measurements = [(step * TOKENS, 3.2 - 2.3 * share, None) for step, share in zip(steps, risen, strict=True)]
    labelled = {"lambada_openai · acc": lambada, "arc_easy · acc": arc, "heldout_pile · bits_per_byte": bits}
    return replace(pythia(), evaluations=[Evaluated(label, points) for label, points in labelled.items()])


def study() -> Panels:
    """Three numbers of a study over all 154 checkpoints."""
    steps = [0, *(2**n for n in range(10)), *range(1000, STEPS + 1, 1000)]
    kl: Measurements = [(step, 4.0 * abs(math.log10(step + 1) - 2.5) / 2.5 + 0.4, None) for step in steps]
    matching: Measurements = [(step, 0.9 / (1 + math.exp(-(step - 2000) / 400)), 0.02) for step in steps]
    score: Measurements = [(step, -0.4 / (1 + math.exp(-(step - 2500) / 500)), 0.01) for step in steps]
    shown = {"ngrams · bigram_kl": kl, "induction · prefix_matching": matching, "induction · score": score}
    return Panels("Run 140 is a study of run 104", [Evaluated(label, points) for label, points in shown.items()])


def fork() -> Curve:
    """A fork at step 64,000, with its parent's curve before it and checkpoints of both."""
    loss = logged(80_000, first=FORK, floor=1.78, seed=2)
    before = [(tokens, value) for tokens, value in logged(seed=3) if tokens <= FORK * TOKENS]
    steps = [*range(0, FORK, 8000), *range(FORK, 90_000, 1000)]
    return Curve(
        "Run 131 · pythia-1.4b, fork of 104",
        loss,
        held_out(80_000)[16:],
        [step * TOKENS for step in steps],
        7.43,
        before=before,
    )


def six() -> Comparison:
    """Six runs of different lengths, one a fork, with names as long as those of sweeps."""
    lengths = (STEPS, 120_000, 143_000, 50_000, 20_000)
    curves = [
        Curve(
            f"Run {101 + n} · optimizer.learning_rate {0.0002 * (n + 1):.4g}, optimizer.weight_decay 0.{n + 1}, "
            f"seed {n + 1}",
            logged(length, floor=1.85 + 0.07 * n, seed=n + 5),
            held_out(length, floor=1.95 + 0.07 * n),
            (),
            None,
            evaluations=tasks_of(length, n) if n in (0, 1, 3) else (),
        )
        for n, length in enumerate(lengths)
    ]
    return Comparison([*curves, fork()])


def beside_models() -> Comparison:
    """Two runs beside a model of the Hub at five steps, and one at a single revision."""
    steps = [512, 4_000, 16_000, 64_000, 143_000]
    risen: Measurements = [(step * TOKENS, 0.57 * (1 - math.exp(-step / 30_000)), 0.007) for step in steps]
    models = [
        Curve("Run 140 · EleutherAI/pythia-410m@step512 @step4000", (), (), (), None, is_model=True),
        Curve("Run 141 · EleutherAI/pythia-160m@main", (), (), (), None, is_model=True),
    ]
    measured: list[Measurements] = [risen, [(0, 0.33, 0.007)]]
    drawn = [
        replace(model, evaluations=[Evaluated("lambada_openai · acc", points)])
        for model, points in zip(models, measured, strict=True)
    ]
    return Comparison([*six().curves[:2], *drawn])


def tasks_of(length: int, run: int) -> list[Evaluated]:
    """Two tasks on every 10,000th checkpoint of one of the six runs, and a third that no other has."""
    shares = {step: 1 - math.exp(-step / (40_000 + 15_000 * run)) for step in range(10_000, length + 1, 10_000)}
    lambada: Measurements = [(step * TOKENS, 0.62 * share, 0.007) for step, share in shares.items()]
    bits: Measurements = [(step * TOKENS, 3.2 - 2.3 * share, None) for step, share in shares.items()]
    alone = [Evaluated(f"own_{run} · acc", lambada)]
    return [Evaluated("lambada_openai · acc", lambada), *alone, Evaluated("heldout_pile · bits_per_byte", bits[-1:])]


def main() -> None:
    """Write the pictures."""
    HERE.mkdir(parents=True, exist_ok=True)
    whole = pythia()
    young = Curve("Run 7 · demo", logged(640), held_out(640, every=160), [320 * TOKENS], 7.43)
    log = Curve(
        whole.title, whole.loss, whole.held_out, whole.checkpoints, 7.43, whole.below, whole.below_label, log=True
    )
    shown = {"whole": whole, "log": log, "fork": fork(), "young": young, "evaluated": evaluated()}
    for name, curve in shown.items():
        (HERE / f"{name}.png").write_bytes(loss_curve.draw(curve))
    (HERE / "light.png").write_bytes(loss_curve.draw(whole, canvas.LIGHT))
    (HERE / "six.png").write_bytes(comparison_curves.draw(six()))
    (HERE / "models.png").write_bytes(comparison_curves.draw(beside_models()))
    (HERE / "study.png").write_bytes(panels.draw(study()))
    print(f"The pictures are in {HERE}/.")


if __name__ == "__main__":
    main()
