"""What the pictures share: size, fonts, colours, axes, and text cut to what fits.

The colours are Okabe and Ito's, which colour-blind readers tell apart. Only the renderer's process imports this module,
and with it matplotlib.
"""

import bisect
import functools
import io

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from projects import text

BLUE, SKY, VERMILION, GREEN, GREY, BLACK = "#0072B2", "#56B4E9", "#D55E00", "#009E73", "#5A6068", "#1C1E21"
ORANGE, PURPLE = "#E69F00", "#CC79A7"
WIDTH, DPI = 1000, 200
SMALL, NORMAL, LARGE = 10.5, 12, 13
FONT = FontProperties(family="DejaVu Sans")
_TOKENS = EngFormatter(sep="")


def blank(height: int) -> Figure:
    """A white figure, 1000 × `height` pixels, whose text is still legible on a phone 390 pixels wide."""
    figure = Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure) -> bytes:
    """Encode a figure as PNG."""
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def style(axes: Axes, *, ticks: int = 6) -> None:
    """Give a panel the frame, grid and number formats of all panels, with about `ticks` values on its y axis."""
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: _TOKENS(tokens).replace("G", "B")))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 5, 10]))
    axes.tick_params(labelsize=NORMAL)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E4E7EB", linewidth=0.8)
    axes.set_axisbelow(True)


def fitted(value: str, size: float, most: float, *, bold: bool = False) -> str:
    """`value` as one line, at most `most` pixels wide at `size` points; “…” marks a cut, and unknown glyphs go."""
    font = FONT.copy()
    font.set_weight("bold" if bold else "normal")
    known = _glyphs(findfont(font))
    line = " ".join("".join(c if ord(c) in known else " " for c in text.cleaned(value[:1000])).split())
    shown = Text(0, 0, "", fontproperties=font, fontsize=size, parse_math=False)
    shown.set_figure(blank(100))

    def cut(length: int) -> str:
        return line if length >= len(line) else line[:length].rstrip(" ·") + "…"

    def too_wide(length: int) -> bool:
        shown.set_text(cut(length))
        return bool(shown.get_window_extent().width > most)

    longest = min(len(line), 200)
    return cut(longest if not too_wide(longest) else bisect.bisect_left(range(longest), 1, key=too_wide) - 1)


@functools.cache
def _glyphs(path: str) -> frozenset[int]:
    return frozenset(get_font(path).get_charmap())
