"""The pictures: of few points and many, with spikes and gaps and odd titles; nothing is cut off, nothing warns."""

import io
import math
import random
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from bot.plots import canvas, comparison_curves, loss_curve
from bot.plots.comparison_curves import STYLES
from bot.plots.curve import Comparison, Curve
from bot.plots.renderer import Renderer

Points = list[tuple[int, float]]
ODD = "🧪🔥 数据 $x_1$ $ _\\frac{ a title that goes on " + "and on " * 600


@pytest.fixture(autouse=True)
def nothing_warns() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
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
    return Curve(title, loss, held_out, checkpoints, 6.5, **more)  # type: ignore[arg-type]


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


def test_a_run_names_all_that_it_shows() -> None:
    legend = loss_curve.figure(CURVES["spikes"]).axes[0].get_legend()
    assert legend is not None
    assert [label.get_text() for label in legend.get_texts()] == ["training", "held-out", "checkpoint"]
    assert {"unigram entropy 6.50", "gradient norm", "spike to 390"} <= set(said(loss_curve.figure(CURVES["spikes"])))


def test_spikes_do_not_flatten_the_curve() -> None:
    calm, spikes = loss_curve.figure(CURVES["gap"]).axes[0], loss_curve.figure(CURVES["spikes"]).axes[0]
    assert spikes.get_ylim()[1] < 1.5 * calm.get_ylim()[1]
    smooth = next(line for line in spikes.get_lines() if line.get_label() == "training")
    assert np.nanmax(np.asarray(smooth.get_ydata())) < 12


def test_a_gap_is_not_bridged() -> None:
    axes = loss_curve.figure(CURVES["gap"]).axes[0]
    smooth = next(line for line in axes.get_lines() if line.get_label() == "training")
    assert np.isnan(np.asarray(smooth.get_ydata(), dtype=float)).sum() == 1


def test_the_second_panel_has_room_for_its_numbers_where_nothing_changes() -> None:
    constant = [(step * 1000, 1.5) for step in range(1, 40)]
    _, below = loss_curve.figure(curve(falling(40), below=constant, below_label="learning rate")).axes
    low, high = below.get_ylim()
    assert len([tick for tick in below.get_yticks() if low <= tick <= high]) == 2


def test_six_runs_are_told_apart_by_more_than_colour() -> None:
    assert len({line for _, line, _ in STYLES}) == len({marker for *_, marker in STYLES}) == len(STYLES) == 6
    shown = comparison_curves.figure(SIX)
    picture(comparison_curves.draw(SIX))
    (legend,) = shown.legends
    labels = [label.get_text() for label in legend.get_texts()]
    assert [label.split(" · ")[0] for label in labels] == [f"Run {n}" for n in (11, 12, 13, 14, 15, 104)]
    assert all(label.rpartition(": ")[2].replace(".", "").isdigit() for label in labels)
    # At a phone's 390 pixels a letter is still about 11 high.
    assert all(float(label.get_fontsize()) * 200 / 72 * 390 / 1000 > 11 for label in legend.get_texts())
    assert {"11", "12", "13", "14", "15", "104"} <= set(said(shown))


def test_a_sweep_names_its_best_runs_shows_the_others_in_grey_and_leaves_out_the_beginning() -> None:
    best = [curve(falling(200), title=f"Run {n} · learning_rate=0.001 seed={n}") for n in range(11, 16)]
    begun = curve(falling(2), title="Run 40 · begun")
    sweep = Comparison(best, others=[curve(falling(200, floor=3.4))] * 14 + [begun], late=True)
    shown = comparison_curves.figure(sweep)
    picture(comparison_curves.draw(sweep))
    (legend,) = shown.legends
    assert [label.get_text().split(" · ")[0] for label in legend.get_texts()][-2:] == ["Run 15", "15 other runs"]
    colours = {line.get_color() for line in shown.axes[0].get_lines()}
    assert canvas.GREY in colours
    assert len(colours) == 6
    low, high = shown.axes[0].get_ylim()
    assert high - low < 3 < np.ptp(comparison_curves.figure(Comparison(best)).axes[0].get_ylim())
    assert {"11", "12", "13", "14", "15"} <= set(said(shown))


def test_a_run_without_a_measurement_has_its_line_in_the_legend() -> None:
    shown = comparison_curves.figure(Comparison([curve(falling(50)), CURVES["nothing"]]))
    assert [label.get_text() for label in shown.legends[0].get_texts()][1] == "Run 1 · demo: nothing measured yet"


async def test_the_renderer_draws_both() -> None:
    renderer = Renderer()
    try:
        picture(await renderer.draw(CURVES["short"]))
        picture(await renderer.compare(SIX))
    finally:
        renderer.close()
    assert SIX.digest != Comparison(SIX.curves[:2]).digest


def picture(png: bytes) -> None:
    """It is 1000 pixels wide, shows something, and nothing is cut off at its edges."""
    image = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
    assert image.shape[1] == 1000
    assert 600 <= image.shape[0] <= 1000
    assert (image < 128).mean() > 0.005
    assert min(image[0].min(), image[-1].min(), image[:, 0].min(), image[:, -1].min()) == 255


def said(shown: Figure) -> list[str]:
    words = [word.get_text() for word in shown.findobj(Text) if isinstance(word, Text) and word.get_text()]
    return sorted(words, key=lambda word: not word.startswith("Run "))
