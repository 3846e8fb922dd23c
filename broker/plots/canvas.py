"""What the pictures share: size, fonts, colours, axes, and text that fits.

The colours are Okabe and Ito's, which colour-blind readers tell apart, lightened where the background is dark. The
bot never imports this module, and with it matplotlib: its renderer's process does.
"""

import bisect
import functools
import io
import textwrap
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patheffects import AbstractPathEffect, withStroke
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from projects import text


@dataclass(frozen=True)
class Theme:
    """The colours of a picture. `cycle` are those of compared runs; the first is that of a single run's loss."""

    background: str
    ink: str
    muted: str
    grid: str
    raw: str
    held_out: str
    checkpoint: str
    cycle: tuple[str, str, str, str, str, str]

    @property
    def halo(self) -> list[AbstractPathEffect]:
        """Keeps a text legible on top of a line."""
        return [withStroke(linewidth=3, foreground=self.background)]


DARK = Theme(
    background="#313338",  # the background of a channel in Discord's dark theme
    ink="#F2F3F5",
    muted="#B5BAC1",
    grid="#474A52",
    raw="#56B4E9",
    held_out="#E69F00",
    checkpoint="#2DC79B",
    cycle=("#56B4E9", "#E69F00", "#2DC79B", "#F0E442", "#E48FC0", "#F2F3F5"),
)
LIGHT = Theme(
    background="#FFFFFF",
    ink="#1C1E21",
    muted="#5A6068",
    grid="#E4E7EB",
    raw="#56B4E9",
    held_out="#D55E00",
    checkpoint="#009E73",
    cycle=("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#1C1E21"),
)
WIDTH, DPI = 1000, 200
SMALL, NORMAL, LARGE = 10.5, 12, 13
FONT = FontProperties(family="DejaVu Sans")
MOST_SAID = 600
_TOKENS = EngFormatter(sep="")


def blank(height: int, theme: Theme) -> Figure:
    """An empty figure, 1000 × `height` pixels, whose text is still legible on a phone 390 pixels wide."""
    figure = Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI, facecolor=theme.background, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure) -> bytes:
    """Encode a figure as PNG; the same figure gives the same bytes."""
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def short(tokens: float) -> str:
    """A number of tokens as axes and legends have it, such as 1.2B."""
    return _TOKENS(float(f"{tokens:.3g}")).replace("G", "B")


def style(axes: Axes, theme: Theme, *, ticks: int = 6, log: bool = False) -> None:
    """Give a panel the frame, grid and number formats of all panels, with about `ticks` values on its y axis."""
    axes.set_facecolor(theme.background)
    if log:
        axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: short(tokens)))
    axes.xaxis.set_major_locator(LogLocator(numticks=5) if log else MaxNLocator(5))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 5, 10]))
    axes.tick_params(labelsize=NORMAL, colors=theme.muted, labelcolor=theme.ink)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(theme.muted)
    axes.grid(axis="y", color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)


def known(value: str, *, bold: bool = False) -> str:
    """`value` as one line without what the font has no glyph for, at most MOST_SAID characters."""
    font = FONT.copy()
    font.set_weight("bold" if bold else "normal")
    glyphs = _glyphs(findfont(font))
    return " ".join("".join(c if ord(c) in glyphs else " " for c in text.cleaned(value[:MOST_SAID])).split())


def fitted(value: str, size: float, most: float, *, bold: bool = False) -> str:
    """`value` as one line, at most `most` pixels wide at `size` points; “…” marks a cut."""
    line = known(value, bold=bold)

    def cut(length: int) -> str:
        return line if length >= len(line) else line[:length].rstrip(" ·") + "…"

    def too_wide(length: int) -> bool:
        return _width(cut(length), size, bold) > most

    longest = min(len(line), 200)
    return cut(longest if not too_wide(longest) else bisect.bisect_left(range(longest), 1, key=too_wide) - 1)


def wrapped(value: str, size: float, most: float) -> str:
    """`value` in as many lines as it takes, each at most `most` pixels wide at `size` points."""
    line = known(value)
    narrowest = len(line)
    while narrowest > 8:
        lines = textwrap.wrap(line, narrowest)
        widest = max(_width(each, size, bold=False) for each in lines)
        if widest <= most:
            return "\n".join(lines)
        narrowest = min(narrowest - 1, int(narrowest * most / widest))
    return line


def _width(line: str, size: float, bold: bool) -> float:
    """The width of a line, in pixels."""
    font = FONT.copy()
    font.set_weight("bold" if bold else "normal")
    shown = Text(0, 0, line, fontproperties=font, fontsize=size, parse_math=False)
    shown.set_figure(_RULER)
    return float(shown.get_window_extent().width)


@functools.cache
def _glyphs(path: str) -> frozenset[int]:
    return frozenset(get_font(path).get_charmap())


_RULER = blank(100, LIGHT)
