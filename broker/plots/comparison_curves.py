"""Draws the losses of up to six runs in one picture. Colour, line style and marker each tell the runs apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.typing import LineStyleType

from broker.plots import canvas, points
from broker.plots.canvas import DARK, Theme
from broker.plots.curve import Comparison, Curve, Evaluated, Standings
from broker.plots.points import Array

STYLES: tuple[tuple[LineStyleType, str], ...] = (
    ("-", "o"),
    ((0, (5, 1.5)), "s"),
    ((0, (5, 1.5, 1, 1.5)), "^"),
    ((0, (1.2, 1.2)), "D"),
    ((0, (9, 2)), "v"),
    ((0, (5, 1.5, 1, 1.5, 1, 1.5)), "P"),
)
ROW = 44
PANEL = 150
MOST_PANELS = 3
"""Tasks that have a panel of their own."""
BEGUN = 0.05
"""The share of the longest run's tokens below which a run has just begun, and is not compared."""
MOST_RAW = 3
"""Runs whose raw losses can be told apart."""
LONGEST_TITLE = 400
LEVEL = 0.7
"""How opaque the level of a model is."""
LABEL = 820
"""The width of a line of the legend, in pixels."""


def draw(comparison: Comparison, theme: Theme = DARK) -> bytes:
    """Draw the runs as a PNG, 1000 pixels wide and 700 high, plus 44 for each line of the legend
    and 150 for each task."""
    return canvas.png(figure(comparison, theme))


def standings(comparison: Comparison) -> Standings:
    """How runs stand at the largest token count that all of them have reached, but for those that have just begun.

    Only what was measured up to there counts, so that all losses are smoothed alike.
    """
    losses = [_with_before(curve) for curve in comparison.curves]
    longest = max((at[-1] for at, _ in losses if len(at)), default=0.0)
    tokens = min((at[-1] for at, _ in losses if len(at) and at[-1] >= BEGUN * longest), default=0.0)
    held = [points.columns(curve.held_out) for curve in comparison.curves]
    held_tokens = min((at[-1] for at, _ in held if len(at) and at[-1] >= BEGUN * longest), default=0.0)
    return Standings(
        int(tokens),
        [_smoothed_at(at, values, tokens) for at, values in losses],
        int(held_tokens),
        [points.value_at(at, values, held_tokens) if _reaches(at, held_tokens) else None for at, values in held],
    )


def _with_before(curve: Curve) -> tuple[Array, Array]:
    """A run's losses, after those of the runs that it was forked from."""
    (before_at, before), (at, values) = points.columns(curve.before), points.columns(curve.loss)
    return np.concatenate((before_at, at)), np.concatenate((before, values))


def _reaches(at: Array, tokens: float) -> bool:
    """Whether there are points before and after so many tokens, which are more than none."""
    return len(at) > 0 and tokens > 0 and at[0] <= tokens <= at[-1]


def _smoothed_at(at: Array, values: Array, tokens: float) -> float | None:
    """The smoothed loss after so many tokens, by what was measured until then."""
    if not _reaches(at, tokens):
        return None
    until = at <= tokens
    return float(points.smoothed(at[until], values[until])[-1])


@dataclass(frozen=True)
class _Line:
    """A run's loss, with that of the runs that it was forked from; `own` is the index of its first own point."""

    at: Array
    values: Array
    smooth: Array
    own: int

    @classmethod
    def of(cls, curve: Curve) -> "_Line":
        at, values = _with_before(curve)
        return cls(at, values, points.smoothed(at, values), len(points.columns(curve.before)[0]))


def figure(comparison: Comparison, theme: Theme = DARK) -> Figure:
    """The picture of the comparison as a matplotlib figure."""
    curves = comparison.curves
    lines = [_Line.of(curve) for curve in curves]
    behind = [_Line.of(curve) for curve in comparison.others]
    found = standings(comparison)
    labels = [_label(curve, loss) for curve, loss in zip(curves, found.losses, strict=True)]
    rows = sum(label.count("\n") + 1 for label in labels) + bool(behind) + bool(found.tokens)
    shared = _shared(curves)
    drawn = canvas.blank(700 + ROW * rows + PANEL * len(shared), theme)
    heights = (4.2, *([1] * len(shared)))
    axes, *panels = drawn.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    canvas.style(axes, theme)
    _scale(axes, [line for line in [*lines, *behind] if len(line.at)])
    named = _Named(axes, theme, raw=len(curves) <= MOST_RAW)
    handles = [
        named.plot(number, line, label, curve.name)
        for number, (curve, line, label) in enumerate(zip(curves, lines, labels, strict=True))
    ]
    for line in behind:
        axes.plot(*points.broken(line.at, line.smooth), color=theme.muted, linewidth=0.9, alpha=0.5, zorder=1)
    if behind:
        count = f"{len(behind)} other {'run' if len(behind) == 1 else 'runs'}"
        handles.append(Line2D([], [], color=theme.muted, linewidth=0.9, alpha=0.5, label=count))
    for panel, (task, evaluated) in zip(panels, shared.items(), strict=True):
        _evaluations(panel, task, evaluated, [curve.is_model for curve in curves], theme)
    (panels[-1] if panels else axes).set_xlabel("tokens", fontsize=canvas.NORMAL, color=theme.ink)
    axes.set_ylabel("loss, nats per token", fontsize=canvas.NORMAL, color=theme.ink)
    legend = drawn.legend(
        handles=handles,
        title=f"training loss at {canvas.short(found.tokens)} tokens (median + EMA)" if found.tokens else None,
        title_fontsize=canvas.SMALL,
        alignment="left",
        loc="outside upper left",
        fontsize=canvas.SMALL,
        labelcolor=theme.ink,
        frameon=False,
        handlelength=3,
        handletextpad=0.6,
        labelspacing=0.45,
    )
    legend.get_title().set_color(theme.muted)
    for label in legend.get_texts():
        label.set_parse_math(False)
    return drawn


def _shared(curves: Sequence[Curve]) -> Mapping[str, Mapping[int, Evaluated]]:
    """What several of the runs were evaluated on, `MOST_PANELS` at most: by run, what was measured."""
    found: dict[str, dict[int, Evaluated]] = {}
    for number, curve in enumerate(curves):
        for evaluated in curve.evaluations:
            found.setdefault(evaluated.label, {})[number] = evaluated
    shared = [(label, runs) for label, runs in found.items() if len(runs) > 1]
    return dict(shared[:MOST_PANELS])


def _evaluations(
    axes: Axes, label: str, found: Mapping[int, Evaluated], are_models: Sequence[bool], theme: Theme
) -> None:
    """What runs have measured of one task, each in the colour, line style and marker of its loss; of models of the Hub
    the last value as a level too."""
    canvas.style(axes, theme, ticks=2)
    for number, evaluated in found.items():
        dashes, marker = STYLES[number]
        at, values, errors = zip(*((at, value, error or 0.0) for at, value, error in evaluated.points), strict=True)
        colour = theme.cycle[number]
        if are_models[number]:
            axes.axhline(values[-1], color=colour, linestyle=dashes, linewidth=1.3, alpha=LEVEL)
            axes.axhspan(values[-1] - errors[-1], values[-1] + errors[-1], color=colour, alpha=0.12, linewidth=0)
        if are_models[number] and len(at) == 1:
            continue
        lines = "none" if are_models[number] else dashes
        axes.errorbar(
            at, values, errors, color=colour, linestyle=lines, marker=marker, markersize=5, linewidth=1.3, capsize=3
        )
    axes.margins(y=0.2)
    axes.set_title(
        canvas.fitted(label, canvas.SMALL, 800),
        fontsize=canvas.SMALL,
        loc="left",
        color=theme.muted,
        parse_math=False,
        pad=3,
    )


def _label(curve: Curve, loss: float | None) -> str:
    """A run's text in the legend, in as many lines as it takes."""
    if curve.is_model:
        return canvas.wrapped(f"{curve.title[:LONGEST_TITLE]}, of the Hub", canvas.SMALL, LABEL)
    said = (
        f"{loss:.3f}"
        if loss is not None
        else "just begun"
        if len(points.columns(curve.loss)[0])
        else "nothing measured yet"
    )
    return canvas.wrapped(f"{curve.title[:LONGEST_TITLE]}: {said}", canvas.SMALL, LABEL)


def _scale(axes: Axes, lines: Sequence[_Line]) -> None:
    """Show the heights that runs have after a tenth of the longest run's tokens."""
    longest = max((line.at[-1] for line in lines), default=1000.0)
    begin = points.BEGINNING * longest
    shown = [points.heights(line.at, line.values, begin) for line in lines if line.at[-1] >= 2 * begin]
    low, high = min((low for low, _ in shown), default=0.0), max((high for _, high in shown), default=1.0)
    room = 0.06 * (high - low) or 0.5
    axes.set_ylim(low - room, high + room)
    axes.set_xlim(0, 1.1 * longest or 1.0)


class _Named:
    """Draws runs with their names beside the ends of their curves, none on top of another.

    With `raw`, what was measured is drawn behind the smoothed lines.
    """

    def __init__(self, axes: Axes, theme: Theme, *, raw: bool) -> None:
        self.axes, self.theme, self.raw = axes, theme, raw
        self._taken: list[tuple[float, float]] = []

    def plot(self, number: int, line: _Line, label: str, name: str) -> Line2D:
        """Draw one run, and return its line in the legend."""
        axes, (dashes, marker), colour = self.axes, STYLES[number], self.theme.cycle[number]
        if len(line.at):
            if self.raw:
                axes.plot(*points.broken(line.at, line.values), color=colour, linewidth=0.8, alpha=0.15)
            forked = slice(0, line.own + 1 if line.own else 0)
            axes.plot(line.at[forked], line.smooth[forked], color=colour, linestyle=dashes, linewidth=1.4, alpha=0.45)
            at, smooth = line.at[line.own :], line.smooth[line.own :]
            axes.plot(*points.broken(at, smooth), color=colour, linestyle=dashes, linewidth=2)
            marks = np.unique(np.searchsorted(at, np.linspace(at[0], at[-1], 6)[1:])) if len(at) else slice(0)
            edge = self.theme.background
            axes.plot(at[marks], smooth[marks], marker, color=colour, markersize=7, markeredgecolor=edge, zorder=4)
            self._name(name, line.at[-1], line.smooth[-1], colour)
        return Line2D([], [], color=colour, linestyle=dashes, linewidth=2, marker=marker, markersize=7, label=label)

    def _name(self, name: str, at: float, value: float, colour: str) -> None:
        """Write a name to the right of a point; of one above or below the picture, at that edge."""
        low, high = self.axes.get_ylim()
        x, y = at / self.axes.get_xlim()[1], max(0.03, min((value - low) / (high - low), 0.97))
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
            path_effects=self.theme.halo,
            zorder=5,
        )
