"""Training in fp16: losses beside fp32's, dynamic loss scaling, steps that overflow, and the scale in checkpoints."""

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.trainer.conftest import run_trainer, write_config
from tests.trainer.ranks_parallel import Ranks, train, train_scaled, train_without
from tests.trainer.test_local_engine import RATE, SWITCHES, batch, configured, engine_of, plain_steps, same, tensors
from tests.trainer.test_parallel import alone, config_of
from trainer import files
from trainer.config import ConfigError, LossScaleConfig, load
from trainer.engine.base import NonFiniteError
from trainer.engine.loss_scale import LossScale

SCALE = 2.0**16
PAST_FP16 = 2.0**40
"""A loss scale at which every gradient overflows."""


@pytest.fixture(scope="module")
def two() -> Iterator[Ranks]:
    with Ranks(2) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def four() -> Iterator[Ranks]:
    with Ranks(4) as ranks:
        yield ranks


def test_the_scale_moves_as_that_of_torch() -> None:
    rng = random.Random(0)
    for _ in range(20):
        interval, initial = rng.randrange(1, 6), 2.0 ** rng.randrange(10, 30)
        theirs = torch.amp.GradScaler("cpu", init_scale=initial, growth_interval=interval)
        ours, parameter = LossScale(initial), torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([parameter])
        for _ in range(60):
            overflows = rng.random() < 0.2 and ours.scale > 1
            theirs.scale(torch.zeros(()))
            parameter.grad = torch.full((1,), math.inf if overflows else 1.0)
            theirs.step(optimizer)
            theirs.update()
            ours = ours.after(overflows, LossScaleConfig(growth_interval=interval))
            assert ours.scale == theirs.get_scale()
            assert ours.good_steps == theirs._get_growth_tracker()


@pytest.mark.parametrize("training", [{}, {"micro_batch": 2}, {"micro_batch": 4, "recompute": True}], ids=str)
@pytest.mark.parametrize("model", SWITCHES, ids=str)
def test_fp16_is_fp32_but_for_rounding(model: dict[str, Any], training: dict[str, Any]) -> None:
    config = configured(model, precision="fp16", **training)
    engine = engine_of(config)
    for step, (plain_loss, plain_norm) in enumerate(plain_steps(model)):
        loss, norm = engine.step(batch(config, step), RATE, SCALE)
        assert abs(loss - plain_loss) + abs(norm - plain_norm) > 1e-7 or step, "it trained in fp32"
        assert loss == pytest.approx(plain_loss, abs=2e-3)
        assert norm == pytest.approx(plain_norm, rel=5e-3)


@pytest.mark.parametrize("training", [{}, {"micro_batch": 2}], ids=str)
def test_a_step_that_overflows_changes_nothing_on_one_rank(training: dict[str, Any]) -> None:
    config = configured(precision="fp16", **training)
    engine, untroubled = engine_of(config), engine_of(config)
    for each in (engine, untroubled):
        each.step(batch(config, 0), RATE, SCALE)
    with pytest.raises(NonFiniteError, match="gradient norm") as caught:
        engine.step(batch(config, 1), RATE, PAST_FP16)
    assert math.isfinite(caught.value.loss)
    assert same(tensors(engine), tensors(untroubled))
    # Another power of two gives the same update to the bit.
    assert engine.step(batch(config, 2), RATE, SCALE) == untroubled.step(batch(config, 2), RATE, SCALE / 4)
    assert same(tensors(engine), tensors(untroubled))


LAYOUTS: list[tuple[str, dict[str, Any]]] = [
    ("neo", {"zero": 0}),
    ("neo", {"zero": 1}),
    ("gptj", {"zero": 2, "recompute": True}),
    ("llama", {"zero": 3}),
    ("alibi", {"tensor": 2, "micro_batch": 2}),
    ("neo", {"tensor": 2, "micro_batch": 2, "zero": 3}),
    ("neo", {"pipeline": 2, "micro_batch": 2}),
    ("t5", {"pipeline": 2, "micro_batch": 2}),
]


@pytest.mark.parametrize(
    ("model", "layout"), [("neo", {"tensor": 2, "pipeline": 2, "micro_batch": 2}), ("neo", {"zero": 3})], ids=str
)
def test_four_ranks_train_in_fp16(four: Ranks, model: str, layout: dict[str, Any]) -> None:
    check(four, model, layout)


def check(
    ranks: Ranks, model: str, layout: dict[str, Any], saves: dict[int, Path] | None = None
) -> list[tuple[float, float]]:
    """Loss and gradient norm of each of six steps, which are fp32's but for rounding; saves after some."""
    config = config_of(model, precision="fp16", batch=8, **layout)
    done, *others = ranks.call(train, config, range(6), None, saves)
    assert all(other == done for other in others)
    for (loss, norm), (wanted_loss, wanted_norm) in zip(done, alone(model, 8), strict=False):
        assert abs(loss - wanted_loss) + abs(norm - wanted_norm) > 1e-7, "it trained in fp32"
        assert loss == pytest.approx(wanted_loss, abs=3e-3)
        assert norm == pytest.approx(wanted_norm, rel=5e-3)
    return list(done)


@pytest.mark.parametrize(("model", "layout"), LAYOUTS, ids=str)
def test_two_ranks_train_in_fp16_and_skip_steps_that_overflow(
    two: Ranks, tmp_path: Path, model: str, layout: dict[str, Any]
) -> None:
    plain = check(two, model, layout, {2: tmp_path / "plain"})
    config = config_of(model, precision="fp16", batch=8, **layout)
    scales = [PAST_FP16, SCALE, PAST_FP16, PAST_FP16, SCALE]
    done, other = two.call(train_scaled, config, scales, tmp_path / "skipped")
    assert done == other
    assert [result is None for result in done] == [scale == PAST_FP16 for scale in scales]
    assert [result for result in done if result] == plain[:2]
    first, second = load_file(tmp_path / "skipped"), load_file(tmp_path / "plain")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_copies_of_a_pipeline_would_not_share_their_gradients(two: Ranks) -> None:
    config = config_of("neo", precision="fp16", batch=8, pipeline=2)
    done = two.call(train_without, "add_tied_gradients", config, range(1))[0]
    assert abs(done[0][1] / alone("neo", 8)[0][1] - 1) > 0.02


FP16: dict[str, Any] = {"precision": "fp16", "loss_scale": {"initial": 2.0**27, "growth_interval": 3}}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def trained(config: Path, out: Path, *options: str) -> Path:
    result = run_trainer("train", config, "--out", out, *options)
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps in fp16 whose first steps overflow."""
    folder = tmp_path_factory.mktemp("whole")
    return trained(write_config(folder / "fp16.yml", **FP16), folder / "out")


def kept(out: Path, step: int) -> dict[str, float]:
    state: dict[str, float] = json.loads((out / "checkpoints" / f"step{step}" / "how.json").read_text())["loss_scale"]
    return state


def test_a_run_tells_of_the_steps_that_it_skipped(whole: Path) -> None:
    metrics = lines(whole / "metrics.jsonl")
    skipped = [line["step"] for line in metrics if line["grad_norm"] is None]
    assert skipped[:1] == [1]
    assert len(skipped) < 12
    assert all(math.isfinite(line["loss"]) for line in metrics)
    # The data go on, and Adam does not.
    assert [line["tokens"] for line in metrics] == [step * 8 * 32 for step in range(1, 13)]
    assert kept(whole, 12)["skipped"] == metrics[-1]["skipped"] == len(skipped)
    scale, good = 2.0**27, 0
    for line in metrics:
        good = 0 if line["step"] in skipped else good + 1
        scale *= 0.5 if line["step"] in skipped else 2 if good % 3 == 0 else 1
        assert line["loss_scale"] == scale
    told = [event for event in lines(whole / "events.jsonl") if event["event"] == "overflow"]
    assert [event["step"] for event in told] == skipped
    assert told[0]["message"] == (
        "loss scale 1.34218e+08 → 6.71089e+07 at step 1: the gradients overflowed, and the step was skipped"
    )


@pytest.mark.parametrize("step", [1, 4, 10])
def test_a_resumed_run_is_the_same_to_the_bit(whole: Path, tmp_path: Path, step: int) -> None:
    start = whole / "checkpoints" / f"step{step}"
    again = trained(write_config(tmp_path / "a.yml", **FP16), tmp_path / "out", "--resume", str(start))
    about = ("step", "loss", "grad_norm", "loss_scale", "skipped")
    before, after = ([[line[key] for key in about] for line in lines(out / "metrics.jsonl")] for out in (whole, again))
    assert before[step:] == after
    for name in ("model.safetensors", "trainer/optimizer.safetensors"):
        first, second = (load_file(out / "checkpoints" / "step12" / name) for out in (whole, again))
        assert all(torch.equal(first[key], second[key]) for key in first | second)
    assert kept(again, 12) == kept(whole, 12)


def test_a_run_goes_on_with_its_scale_on_other_ranks(whole: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "a.yml", {"parallel": {"zero_stage": 2}}, **FP16)
    out = trained(config, tmp_path / "out", "--resume", str(whole / "checkpoints" / "step10"), "--gpus", "2")
    for line, wanted in zip(lines(out / "metrics.jsonl"), lines(whole / "metrics.jsonl")[10:], strict=True):
        assert line["loss"] == pytest.approx(wanted["loss"], rel=1e-3)
        assert (line["loss_scale"], line["skipped"]) == (wanted["loss_scale"], wanted["skipped"])


def test_another_precision_takes_over_the_count_of_adams_updates(whole: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "a.yml", precision="fp32")
    start = str(whole / "checkpoints" / "step10")
    refused = run_trainer("train", config, "--out", tmp_path / "no", "--resume", start)
    assert refused.returncode == 78
    assert "training.precision is 'fp32' here and 'fp16' in the checkpoint" in refused.stderr
    out = trained(config, tmp_path / "out", "--resume", start, "--change", "training.precision")
    assert kept(out, 12)["skipped"] == kept(whole, 10)["skipped"]
    assert "loss_scale" not in lines(out / "metrics.jsonl")[-1]


def test_gradients_that_overflow_at_any_scale_end_the_run(tmp_path: Path) -> None:
    config = write_config(tmp_path / "a.yml", {"checkpoints": {"log_until": 0}}, **FP16, steps=50)
    out = tmp_path / "out"
    short = write_config(tmp_path / "short.yml", {"checkpoints": {"log_until": 0}}, **FP16, steps=1)
    step0 = trained(short, out) / "checkpoints" / "step0"
    # Attention adds nothing, and has a gradient past fp16's largest number.
    weights = load_file(step0 / "model.safetensors")
    for name in weights:
        if name.endswith(("layers.1.input_layernorm.weight", "layers.1.input_layernorm.bias")):
            weights[name].zero_()
        if name.endswith(("layers.1.attention.query_key_value.weight", "layers.1.attention.dense.weight")):
            weights[name].fill_(60_000.0).mul_(torch.randn_like(weights[name]).sign())
    save_file(weights, step0 / "model.safetensors", metadata={"format": "pt"})
    how = json.loads((step0 / "how.json").read_text())
    how["files"] = files.checksums(
        step0, [path for path in step0.rglob("*") if path.is_file() and path.name != "how.json"]
    )
    how["loss_scale"] = {"scale": 2.0, "good_steps": 0, "at_floor": 0, "skipped": 0}
    (step0 / "how.json").write_text(json.dumps(how))
    result = run_trainer("train", config, "--out", tmp_path / "again", "--resume", step0)
    assert result.returncode == 70
    assert result.stderr.strip().endswith(
        "The gradients of 20 steps overflowed in a row up to step 21, with the loss scale at its floor of 1; the "
        "weights were not touched. fp16 has not the range: go on from the last checkpoint with training.precision bf16 "
        "or fp32, by --change training.precision."
    )


def test_the_scale_must_be_a_power_of_two(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.loss_scale\.initial \(1000\) must be a power of two, such as"):
        load(write_config(tmp_path / "a.yml", loss_scale={"initial": 1000}))
