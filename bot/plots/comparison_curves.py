"""Draws the losses of up to six runs in one picture. Colour, line style and marker each tell the runs apart."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.typing import LineStyleType

from bot.plots import canvas, points
from bot.plots.canvas import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILION
from bot.plots.curve import Comparison, Curve

STYLES: tuple[tuple[str, LineStyleType, str], ...] = (
    (BLUE, "-", "o"),
    (VERMILION, (0, (5, 1.5)), "s"),
    (GREEN, (0, (5, 1.5, 1, 1.5)), "^"),
    (ORANGE, (0, (1.2, 1.2)), "D"),
    (PURPLE, (0, (9, 2)), "v"),
    (BLACK, (0, (5, 1.5, 1, 1.5, 1, 1.5)), "P"),
)
ROW = 44
BEGINNING = 0.2
"""The share of the longest run that a late picture takes for the beginning."""


def draw(comparison: Comparison) -> bytes:
    """Draw the runs as a PNG, 1000 pixels wide and 700 high, plus 44 for each line of the legend."""
    return canvas.png(figure(comparison))


def figure(comparison: Comparison) -> Figure:
    """The same picture as a matplotlib figure."""
    curves = comparison.curves[: len(STYLES)]
    drawn = canvas.blank(700 + ROW * (len(curves) + bool(comparison.others)))
    axes = drawn.add_subplot()
    canvas.style(axes)
    behind = [points.columns(curve.loss) for curve in comparison.others]
    shown = [columns for columns in [*(points.columns(curve.loss) for curve in curves), *behind] if len(columns[0])]
    longest = max((at[-1] for at, _ in shown), default=1000.0)
    low = min((values.min() for _, values in shown), default=0.0)
    ends = [values[at >= BEGINNING * longest * comparison.late] for at, values in shown]
    high = max(map(points.ceiling, [e for e in ends if len(e) > 1] or [v for _, v in shown]), default=1.0)
    room = 0.06 * (high - low) or 0.5
    axes.set_ylim(low - room, high + room)
    axes.set_xlim(0, 1.1 * longest)
    labels = _Labels(axes)
    handles = [_line(axes, labels, curve, number) for number, curve in enumerate(curves)]
    for at, values in behind:
        axes.plot(
            *points.broken(at, points.smoothed(at, values)), color=canvas.GREY, linewidth=0.9, alpha=0.5, zorder=1
        )
    if behind:
        count = f"{len(behind)} other {'run' if len(behind) == 1 else 'runs'}"
        handles.append(Line2D([], [], color=canvas.GREY, linewidth=0.9, alpha=0.5, label=count))
    axes.set_xlabel("tokens", fontsize=canvas.NORMAL)
    axes.set_ylabel("loss, nats per token", fontsize=canvas.NORMAL)
    legend = drawn.legend(
        handles=handles,
        loc="outside upper left",
        fontsize=canvas.SMALL,
        frameon=False,
        handlelength=3,
        handletextpad=0.6,
        labelspacing=0.45,
    )
    for label in legend.get_texts():
        label.set_parse_math(False)
    return drawn


def _line(axes: Axes, labels: "_Labels", curve: Curve, number: int) -> Line2D:
    """Draw one run, and return its line in the legend."""
    colour, line, marker = STYLES[number]
    at, values = points.columns(curve.loss)
    now = ": nothing measured yet"
    if len(at):
        usual = values <= points.ceiling(values)
        axes.plot(*points.broken(at, values), color=colour, linewidth=0.8, alpha=0.18)
        at, values = at[usual], points.smoothed(at[usual], values[usual])
        axes.plot(*points.broken(at, values), color=colour, linestyle=line, linewidth=2)
        marks = np.unique(np.linspace(0, len(at) - 1, 6).round().astype(int)[1:])
        axes.plot(at[marks], values[marks], marker, color=colour, markersize=7, markeredgecolor="white", zorder=4)
        labels.add(curve.name, at[-1], values[-1], colour)
        now = f": {values[-1]:.3f}"
    label = canvas.fitted(curve.title, canvas.SMALL, 840 - 17 * len(now)) + now
    return Line2D([], [], color=colour, linestyle=line, linewidth=2, marker=marker, markersize=7, label=label)


class _Labels:
    """The names of the runs beside the ends of their curves, none on top of another."""

    def __init__(self, axes: Axes) -> None:
        self.axes = axes
        self._taken: list[tuple[float, float]] = []

    def add(self, name: str, at: float, value: float, colour: str) -> None:
        """Write a name to the right of a point."""
        low, high = self.axes.get_ylim()
        x, y = at / self.axes.get_xlim()[1], (value - low) / (high - low)
        near = [height for other, height in self._taken if abs(x - other) < 0.12]
        heights = (y + sign * step / 100 for step in range(100) for sign in (1, -1))
        y = next(free for free in heights if free >= 0.03 and all(abs(free - taken) >= 0.05 for taken in near))
        self._taken.append((x, y))
        self.axes.annotate(
            canvas.fitted(name, canvas.SMALL, 90),
            (x, y),
            xycoords="axes fraction",
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontsize=canvas.SMALL,
            fontweight="bold",
            color=colour,
            parse_math=False,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
            zorder=5,
        )
