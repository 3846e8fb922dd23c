"""What the pictures share: canvas, type, smoothing, and a scale that a spike does not spoil. Colours: Okabe–Ito.

Only the studio's process imports this, and matplotlib.
"""

import bisect
import functools
import io
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from projects import text

Array: TypeAlias = npt.NDArray[np.float64]
Points: TypeAlias = Sequence[tuple[int, float]]

BLUE, SKY, VERMILION, GREEN, GREY, BLACK = "#0072B2", "#56B4E9", "#D55E00", "#009E73", "#5A6068", "#1C1E21"
ORANGE, PURPLE = "#E69F00", "#CC79A7"
WIDTH, DPI = 1000, 200
SMALL, NORMAL, LARGE = 10.5, 12, 13
FONT = FontProperties(family="DejaVu Sans")
_TOKENS = EngFormatter(sep="")


def canvas(height: int) -> Figure:
    """A white figure, 1000 pixels wide, meant to be read at a phone's 390."""
    figure = Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as PNG."""
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def style(axes: Axes, *, ticks: int = 6) -> None:
    """The same quiet frame for each panel."""
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: _TOKENS(tokens).replace("G", "B")))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 5, 10]))
    axes.tick_params(labelsize=NORMAL)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E4E7EB", linewidth=0.8)
    axes.set_axisbelow(True)


def said(value: str, size: float, most: float, *, bold: bool = False) -> str:
    """One line of what the font can show, cut to `most` pixels with “…” where something is missing."""
    font = FONT.copy()
    font.set_weight("bold" if bold else "normal")
    known = _glyphs(findfont(font))
    line = " ".join("".join(c if ord(c) in known else " " for c in text.cleaned(value[:1000])).split())
    shown = Text(0, 0, "", fontproperties=font, fontsize=size, parse_math=False)
    shown.set_figure(canvas(100))

    def cut(length: int) -> str:
        return line if length >= len(line) else line[:length].rstrip(" ·") + "…"

    def too_wide(length: int) -> bool:
        shown.set_text(cut(length))
        return bool(shown.get_window_extent().width > most)

    longest = min(len(line), 200)
    return cut(longest if not too_wide(longest) else bisect.bisect_left(range(longest), 1, key=too_wide) - 1)


def columns(points: Points) -> tuple[Array, Array]:
    """Tokens and values of the points that are finite."""
    array = np.asarray(points, dtype=float).reshape(-1, 2)
    array = array[np.isfinite(array).all(axis=1)]
    return array[:, 0], array[:, 1]


def smoothed(at: Array, values: Array) -> Array:
    """A centred moving mean over a span of tokens: an eighth of the run where points are few, a fortieth where many.

    It is narrower at the beginning, where the loss falls fast. Tokens and not points are counted, as old points of a
    long run are thinned.
    """
    if len(at) < 3:
        return values
    half = (at[-1] - at[0]) * max(1 / 80, min(1 / 16, 4 / len(at)))
    reach = np.minimum(half, at - at[0])
    sums = np.concatenate(([0.0], np.cumsum(values)))
    first, last = np.searchsorted(at, at - reach, "left"), np.searchsorted(at, at + reach, "right")
    means: Array = (sums[last] - sums[first]) / (last - first)
    return means


def ceiling(values: Array) -> float:
    """The highest value that a scale must show: a few spikes far above the rest and the beginning do not count."""
    usual = float(max(np.percentile(values, 98), np.median(values[:3])))
    top = usual + 0.25 * (usual - float(values.min()))
    return min(float(values.max()), top) if len(values) > 8 else float(values.max())


def broken(at: Array, values: Array) -> tuple[Array, Array]:
    """The line with a gap where a twelfth of the run or more has no point."""
    if len(at) < 40:
        return at, values
    gaps = np.flatnonzero(np.diff(at) > (at[-1] - at[0]) / 12) + 1
    return np.insert(at, gaps, np.nan), np.insert(values, gaps, np.nan)


@functools.cache
def _glyphs(path: str) -> frozenset[int]:
    return frozenset(get_font(path).get_charmap())
