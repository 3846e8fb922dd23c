"""The pictures: of few points and many, with spikes and gaps and odd titles; nothing is cut off, nothing warns."""

import io
import math
import random
import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from bot.renderer import Renderer
from broker.plots import canvas, comparison_curves, loss_curve, panels, points
from broker.plots.comparison_curves import STYLES
from broker.plots.curve import Comparison, Curve
from broker.runs import series
from broker.runs.series import Measured
from tests import pictures

Points = list[tuple[int, float]]
ODD = "🧪🔥 数据 $x_1$ $ _\\frac{ a title that goes on " + "and on " * 600


@pytest.fixture(autouse=True)
def nothing_warns() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ResourceWarning)  # of what others left open, and is collected meanwhile
        yield


def falling(count: int, *, every: int = 4096, first: int = 0, floor: float = 3.0) -> Points:
    chance = random.Random(count)
    return [
        (first + (n + 1) * every, floor + 7 * math.exp(-8 * n / count) + chance.gauss(0, 0.1)) for n in range(count)
    ]


def spiked(points: Points, *at: int) -> Points:
    return [(tokens, 40.0 + n if n in at else value) for n, (tokens, value) in enumerate(points)]


def with_gap(points: Points) -> Points:
    return [(tokens, math.nan if 120 < n < 180 else value) for n, (tokens, value) in enumerate(points)]


def curve(loss: Points, title: str = "Run 1 · demo", **more: object) -> Curve:
    held_out = [(tokens, value + 0.2) for tokens, value in loss[:: max(1, len(loss) // 8)]]
    checkpoints = [tokens for tokens, _ in loss[:: max(1, len(loss) // 5)]]
    return Curve(title, loss, held_out, checkpoints, 4.5, **more)  # type: ignore[arg-type]


CURVES = {
    "two": curve(falling(2)),
    "short": curve(falling(10), below=falling(10), below_label="learning rate"),
    "spikes": curve(spiked(falling(400), 90, 91, 350), below=spiked(falling(400), 90), below_label="gradient norm"),
    "gap": curve(with_gap(falling(300))),
    "long": curve(falling(2000, every=500_000), below=falling(2000, every=500_000), below_label="gradient norm"),
    "odd": curve(falling(50), title=f"Run 7 · {ODD}"),
    "fork": curve(falling(50, first=9_000_000)),
    "above": curve(falling(50, floor=8.0)),
    "alike": Curve("Run 1 · demo", [(100, 5.0), (200, 5.0)], [], [], None, [(100, 0.0), (200, 0.0)], "learning rate"),
    "nothing": Curve("Run 1 · demo", [(1, math.inf)], [(1, math.nan)], [], None),
}
SIX = Comparison(
    [curve(falling(2 + 90 * n, every=40_000 // (n + 1)), title=f"Run {n + 11} · demo {n}") for n in range(5)]
    + [curve(falling(2000, every=900), title=f"Run 104 · {ODD}")]
)


@pytest.mark.parametrize("name", CURVES)
def test_a_run_is_drawn_whole(name: str) -> None:
    shown = loss_curve.figure(CURVES[name])
    assert len(shown.axes) == (2 if CURVES[name].below else 1)
    picture(loss_curve.draw(CURVES[name]))
    assert said(shown)[0].startswith("Run ")


@pytest.mark.parametrize("log", [False, True])
def test_each_evaluated_task_has_a_panel_with_its_standard_errors(log: bool) -> None:
    run = replace(pictures.evaluated(), log=log)
    shown = loss_curve.figure(run)
    picture(loss_curve.draw(run))
    assert len(shown.axes) == 5
    for axes, task in zip(shown.axes[2:], run.evaluations, strict=True):
        assert axes.get_title(loc="left") == task.label
        [bars] = axes.containers
        assert isinstance(bars, ErrorbarContainer)
        drawn = [point for point in task.points if point[0] > 0 or not log]
        line, _, (errors,) = bars.lines
        assert np.array(line.get_xdata()).tolist() == [tokens for tokens, _, _ in drawn]
        heights = [top - bottom for (_, bottom), (_, top) in errors.get_segments()]
        assert heights == pytest.approx([2 * (error or 0) for _, _, error in drawn])


def test_a_study_has_a_panel_for_each_number_over_the_steps() -> None:
    study = pictures.study()
    shown = panels.figure(study)
    picture(panels.draw(study))
    assert [axes.get_title(loc="left") for axes in shown.axes] == [panel.label for panel in study.panels]
    assert shown.axes[-1].get_xlabel() == "step, log scale"
    left, right = shown.axes[-1].get_xlim()
    assert -1 < left < 0, "no step is negative"
    assert right > pictures.STEPS
    few = replace(study, panels=[replace(study.panels[0], points=study.panels[0].points[:6])])
    assert panels.figure(few).axes[-1].get_xlabel() == "step"


def test_no_text_is_smaller_than_a_phone_shows_legibly() -> None:
    drawn = [loss_curve.figure(each) for each in (CURVES["spikes"], pictures.evaluated())]
    for shown in (*drawn, comparison_curves.figure(SIX), panels.figure(pictures.study())):
        sizes = [
            float(text.get_fontsize()) for text in shown.findobj(Text) if isinstance(text, Text) and text.get_text()
        ]
        assert min(sizes) >= canvas.SMALL
    on_a_phone = canvas.SMALL * canvas.DPI / 72 * 337 / canvas.WIDTH  # a picture is 337 px wide on a screen of 390
    assert on_a_phone >= 9.5


def test_a_run_names_all_that_it_shows() -> None:
    shown = loss_curve.figure(CURVES["spikes"])
    legend = shown.axes[0].get_legend()
    assert legend is not None
    labels = [label.get_text() for label in legend.get_texts()]
    assert labels == ["training, median + EMA", "held-out", "checkpoint"]
    assert {"unigram entropy 4.50", "gradient norm", "spike to 390"} <= set(said(shown))


@pytest.mark.parametrize("below_the_top", [0.02, 0.1, 0.3])
def test_the_label_of_the_unigram_entropy_keeps_off_the_legend(below_the_top: float) -> None:
    low, high = loss_curve.figure(CURVES["fork"]).axes[0].get_ylim()
    shown = loss_curve.figure(replace(CURVES["fork"], unigram_entropy=high - below_the_top * (high - low)))
    shown.canvas.draw()
    axes = shown.axes[0]
    legend = axes.get_legend()
    (label,) = [each for each in axes.texts if each.get_text().startswith("unigram entropy")]
    assert legend is not None
    assert not legend.get_window_extent().overlaps(label.get_window_extent())


def test_the_loss_axis_follows_the_last_nine_tenths_of_the_tokens_and_says_so() -> None:
    axes = loss_curve.figure(pictures.pythia()).axes[0]
    low, high = axes.get_ylim()
    assert 1.5 < low < 1.85
    assert 2.2 < high < 3
    assert axes.get_ylabel() == "loss, nats per token\n(first steps from 10.2)"
    assert "unigram entropy 7.43" not in said(loss_curve.figure(pictures.pythia())), "it is above the picture"
    flat = loss_curve.figure(curve([(tokens * 1000, 3.0) for tokens in range(1, 50)])).axes[0]
    assert flat.get_ylabel() == "loss, nats per token"


def test_spikes_and_a_divergence_do_not_flatten_the_curve_and_are_told() -> None:
    shown = loss_curve.figure(pictures.pythia())
    assert "rises to 10.8" in said(shown)
    axes = shown.axes[0]
    marks = next(line for line in axes.get_lines() if line.get_marker() == "^")
    assert len(np.asarray(marks.get_xdata())) == 3, "two spikes and the divergence"
    smooth = line_of(shown, "training, median + EMA")
    spike = 30_000 * pictures.TOKENS
    near = np.abs(smooth[0] - spike) < 0.01 * spike
    assert np.ptp(smooth[1][near]) < 0.1, "a spike leaves no box in the smoothed line"


def test_a_loss_is_smoothed_alike_however_often_its_points_were_downsampled() -> None:
    whole = [(step * 100, 2 + 8 / (1 + step / 50) + random.Random(step).gauss(0, 0.1)) for step in range(1, 60_000)]
    measured = [Measured("loss", tokens // 100, tokens, value) for tokens, value in whole]
    thin = series.downsample(series.downsample(measured, 1000))
    one, other = (
        points.smoothed(*points.columns(each)) for each in (whole, [(point.tokens, point.value) for point in thin])
    )
    at = points.columns(whole)[0]
    thin_at = points.columns([(point.tokens, point.value) for point in thin])[0]
    late = np.linspace(at[-1] / 10, at[-1], 100)
    assert np.abs(np.interp(late, at, one) - np.interp(late, thin_at, other)).max() < 0.1


def test_a_long_run_over_log_tokens_shows_its_beginning() -> None:
    whole = pictures.pythia()
    log = replace(whole, log=True)
    shown = loss_curve.figure(log)
    picture(loss_curve.draw(log))
    axes = shown.axes[0]
    assert axes.get_xscale() == "log"
    assert axes.get_ylim()[1] > 10
    assert "unigram entropy 7.43" in said(shown)
    at, smooth = line_of(shown, "training, median + EMA")
    early = at < 100 * pictures.TOKENS
    assert np.count_nonzero(early) > 5, "downsampling keeps the shape of the beginning"
    assert np.ptp(smooth[early]) > 1


def test_held_out_losses_are_markers_without_a_line() -> None:
    axes = loss_curve.figure(CURVES["long"]).axes[0]
    (held,) = [line for line in axes.get_lines() if line.get_label() == "held-out"]
    assert (held.get_linestyle(), held.get_marker()) == ("None", "D")


@pytest.mark.parametrize("log", [False, True])
def test_at_most_twenty_checkpoints_are_marked_none_of_them_outside_the_axes(log: bool) -> None:
    for each in (pictures.pythia(), pictures.fork()):
        axes = loss_curve.figure(replace(each, log=log)).axes[0]
        ticks = next(np.asarray(line.get_xdata()) for line in axes.get_lines() if line.get_label() == "checkpoint")
        left, right = axes.get_xlim()
        assert (3 if log else 8) <= len(ticks) <= 20
        assert left <= ticks.min() < ticks.max() <= right


def test_a_fork_has_the_curve_of_its_parent_before_it_fainter() -> None:
    shown = loss_curve.figure(pictures.fork())
    picture(loss_curve.draw(pictures.fork()))
    lines = {str(line.get_label()): line for line in shown.axes[0].get_lines()}
    before, own = lines["before the fork"], lines["training, median + EMA"]
    fork = pictures.FORK * pictures.TOKENS
    assert np.asarray(before.get_xdata()).max() <= fork < np.asarray(own.get_xdata()).min()
    assert (before.get_alpha() or 1) < (own.get_alpha() or 1)
    assert shown.axes[0].get_xlim()[0] == 0


@pytest.mark.parametrize("theme", [canvas.DARK, canvas.LIGHT])
def test_a_picture_is_legible_on_its_own_background(theme: canvas.Theme) -> None:
    assert contrast(theme.ink, theme.background) > 7
    assert contrast(theme.muted, theme.background) > 4.5
    assert all(contrast(colour, theme.background) > 2.2 for colour in (*theme.cycle, theme.held_out, theme.checkpoint))
    shown = loss_curve.figure(pictures.pythia(), theme)
    assert to_hex(shown.get_facecolor()).upper() == theme.background
    colours = {to_hex(word.get_color()).upper() for word in shown.findobj(Text) if word.get_text()}
    assert colours == {theme.ink, theme.muted}


def test_a_gap_is_not_bridged() -> None:
    _, smooth = line_of(loss_curve.figure(CURVES["gap"]), "training, median + EMA")
    assert np.isnan(smooth).sum() == 1


def test_the_second_panel_has_room_for_its_numbers_where_nothing_changes() -> None:
    constant = [(step * 1000, 1.5) for step in range(1, 40)]
    _, below = loss_curve.figure(curve(falling(40), below=constant, below_label="learning rate")).axes
    low, high = below.get_ylim()
    assert len([tick for tick in below.get_yticks() if low <= tick <= high]) == 2


def test_six_runs_are_told_apart_by_more_than_colour() -> None:
    assert len({line for line, _ in STYLES}) == len({marker for _, marker in STYLES}) == len(STYLES) == 6
    shown = comparison_curves.figure(SIX)
    picture(comparison_curves.draw(SIX))
    (legend,) = shown.legends
    labels = [label.get_text() for label in legend.get_texts()]
    assert [label.split(" · ")[0] for label in labels] == [f"Run {n}" for n in (11, 12, 13, 14, 15, 104)]
    values = [label.rpartition(": ")[2] for label in labels]
    assert values[0] == "just begun"
    assert all(value.replace(".", "").isdigit() for value in values[1:])
    # At a phone's 390 pixels a letter is still about 11 high.
    assert all(float(label.get_fontsize()) * 200 / 72 * 390 / 1000 > 11 for label in legend.get_texts())
    assert {"11", "12", "13", "14", "15", "104"} <= set(said(shown))


def test_the_legend_of_a_comparison_is_never_cut() -> None:
    six = pictures.six()
    shown = comparison_curves.figure(six)
    picture(comparison_curves.draw(six))
    labels = [" ".join(label.get_text().split()) for label in shown.legends[0].get_texts()]
    assert [axes.get_title(loc="left") for axes in shown.axes] == [
        "",
        "lambada_openai · acc",
        "heldout_pile · bits_per_byte",
    ], "a panel for each task that several runs have"
    assert [axes.get_xlabel() for axes in shown.axes] == ["", "", "tokens"]
    standings = comparison_curves.standings(six)
    assert labels == [f"{curve.title}: {loss:.3f}" for curve, loss in zip(six.curves, standings.losses, strict=True)]


def test_models_of_the_hub_are_levels_beside_runs() -> None:
    compared = pictures.beside_models()
    shown = comparison_curves.figure(compared)
    picture(comparison_curves.draw(compared))
    labels = [" ".join(label.get_text().split()) for label in shown.legends[0].get_texts()]
    assert labels[2:] == [f"{curve.title}, of the Hub" for curve in compared.curves[2:]]
    assert comparison_curves.standings(compared).losses[2:] == [None, None]
    _, lambada, bits = shown.axes
    across = [[line for line in panel.lines if np.array_equal(line.get_xdata(), [0, 1])] for panel in (lambada, bits)]
    assert [len(levels) for levels in across] == [2, 0], "a level for each model in the panel of its task"
    [marked] = [line for line in lambada.lines if line.get_marker() == STYLES[2][1]]
    assert marked.get_linestyle() == "None"


def test_runs_are_compared_after_the_tokens_to_which_all_have_come() -> None:
    shorter = Curve("Run 1 · demo", [(n * 1000, 5 - n / 100) for n in range(1, 101)], [(50_000, 4.6)], (), None)
    longer = Curve(
        "Run 2 · demo", [(n * 1000, 5 - n / 200) for n in range(1, 301)], [(0, 9.0), (100_000, 4.0)], (), None
    )
    empty = Curve("Run 3 · demo", (), (), (), None)
    found = comparison_curves.standings(Comparison([shorter, longer, empty]))
    assert found.tokens == 100_000
    assert found.losses[0] == pytest.approx(4.0, abs=0.05)
    assert found.losses[1] == pytest.approx(4.5, abs=0.05), "though it ends lower"
    assert (found.held_out_tokens, found.held_out) == (50_000, [4.6, 6.5, None])
    assert found.losses[2] is None
    shown = comparison_curves.figure(Comparison([shorter, longer, empty])).legends[0]
    assert shown.get_title().get_text() == "training loss at 100k tokens (median + EMA)"


@pytest.mark.parametrize("steps", [200, 500, 1000])
def test_a_run_is_not_worse_for_being_longer(steps: int) -> None:
    whole = [(step * 1000, 2 + 9 * (1 + step / 60) ** -0.62) for step in range(10, 20 * steps + 1, 10)]
    longer = Curve("Run 1 · demo", whole, (), (), None)
    shorter = replace(longer, title="Run 2 · demo", loss=whole[: steps // 10])
    found = comparison_curves.standings(Comparison([longer, shorter]))
    assert found.tokens == steps * 1000
    assert found.losses[0] == found.losses[1] == pytest.approx(whole[steps // 10 - 1][1], rel=0.05)


def test_a_run_that_has_just_begun_drags_no_other_back() -> None:
    old = Curve("Run 1 · demo", falling(400), [(tokens, 3.5) for tokens, _ in falling(400)[::40]], (), None)
    new = Curve("Run 2 · demo", falling(2), [(0, 11.0)], (), None)
    found = comparison_curves.standings(Comparison([old, new]))
    assert found.tokens == falling(400)[-1][0]
    assert (found.losses[1], found.held_out) == (None, [3.5, None])
    labels = [label.get_text() for label in comparison_curves.figure(Comparison([old, new])).legends[0].get_texts()]
    assert labels[1] == "Run 2 · demo: just begun"


def test_a_run_that_ends_far_below_the_others_is_drawn() -> None:
    low = Curve("Run 2 · demo", [(n * 1000, 1.0) for n in range(1, 100)], (), (), None)
    high = Curve("Run 1 · demo", [(n * 1000, 3.0 + n % 2 / 100) for n in range(1, 1000)], (), (), None)
    picture(comparison_curves.draw(Comparison([high, low])))


@pytest.mark.parametrize("log", [False, True])
def test_one_point_and_no_number_are_drawn_as_well(log: bool) -> None:
    one = Curve("Run 1 · demo", [(4096, 9.0)], [(0, 9.5)], [0], None, [(1, math.nan), (2, math.nan)], "lr", log=log)
    picture(loss_curve.draw(one))
    assert len(loss_curve.figure(one).axes) == 1, "a series without a number has no panel"
    held_out = Curve("Run 1 · demo", [], [(0, 9.5), (8192, 9.0)], [0], None, log=log)
    picture(loss_curve.draw(held_out))


def test_a_log_axis_within_one_decade_has_numbers() -> None:
    near = curve(falling(200, every=20_000, first=2_000_000), title="Run 1 · demo", log=True)
    axes = loss_curve.figure(near).axes[0]
    left, right = axes.get_xlim()
    assert len([tick for tick in axes.get_xticks() if left <= tick <= right]) >= 1


def test_a_fork_is_compared_from_its_parents_beginning_on() -> None:
    parent = Curve("Run 1 · demo", [(n * 1000, 5.0) for n in range(1, 41)], (), (), None)
    fork = replace(parent, title="Run 2 · demo", loss=[(n * 1000, 3.0) for n in range(61, 90)], before=parent.loss)
    found = comparison_curves.standings(Comparison([parent, fork]))
    assert found.tokens == 40_000
    assert found.losses == pytest.approx([5.0, 5.0], abs=0.3)


def test_a_sweep_names_its_best_runs_and_shows_the_others_in_grey() -> None:
    best = [curve(falling(200), title=f"Run {n} · learning_rate=0.001 seed={n}") for n in range(11, 16)]
    begun = curve(falling(2), title="Run 40 · begun")
    sweep = Comparison(best, others=[curve(falling(200, floor=3.4))] * 14 + [begun])
    shown = comparison_curves.figure(sweep)
    picture(comparison_curves.draw(sweep))
    (legend,) = shown.legends
    assert [label.get_text().split(" · ")[0] for label in legend.get_texts()][-2:] == ["Run 15", "15 other runs"]
    colours = {line.get_color() for line in shown.axes[0].get_lines()}
    assert canvas.DARK.muted in colours
    assert len(colours) == 6
    assert {"11", "12", "13", "14", "15"} <= set(said(shown))


def test_a_run_without_a_measurement_has_its_line_in_the_legend() -> None:
    shown = comparison_curves.figure(Comparison([curve(falling(50)), CURVES["nothing"]]))
    assert [label.get_text() for label in shown.legends[0].get_texts()][1] == "Run 1 · demo: nothing measured yet"


async def test_the_renderer_draws_both_and_says_how_runs_stand() -> None:
    renderer = Renderer()
    try:
        picture(await renderer.draw(CURVES["short"]))
        drawn, standings = await renderer.compare(SIX)
    finally:
        renderer.close()
    picture(drawn)
    assert standings == comparison_curves.standings(SIX)
    assert SIX.digest != Comparison(SIX.curves[:2]).digest


def test_the_same_curve_gives_the_same_bytes() -> None:
    """Publishing again changes nothing on the Hub."""
    drawn = loss_curve.draw(CURVES["short"], canvas.LIGHT)
    assert drawn == loss_curve.draw(CURVES["short"], canvas.LIGHT) != loss_curve.draw(CURVES["two"], canvas.LIGHT)


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, as the WCAG 2.2 defines it: 1 to 21."""

    def luminance(colour: str) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def line_of(shown: Figure, label: str) -> tuple[points.Array, points.Array]:
    """The tokens and the values of a line of the first panel."""
    line = next(line for line in shown.axes[0].get_lines() if line.get_label() == label)
    return np.asarray(line.get_xdata(), dtype=float), np.asarray(line.get_ydata(), dtype=float)


def picture(png: bytes) -> None:
    """It is 1000 pixels wide, shows something, and nothing is cut off at its edges."""
    image = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    assert image.shape[1] == 1000
    assert 600 <= image.shape[0] <= 1600
    away = np.abs(image - image[0, 0]).sum(axis=2)
    assert (away > 150).mean() > 0.005
    assert max(away[0].max(), away[-1].max(), away[:, 0].max(), away[:, -1].max()) == 0


def said(shown: Figure) -> list[str]:
    words = [word.get_text() for word in shown.findobj(Text) if isinstance(word, Text) and word.get_text()]
    return sorted(words, key=lambda word: not word.startswith("Run "))
