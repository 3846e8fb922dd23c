"""Draws one run: its loss, and below it another series, such as the gradient norm, and what evaluations measured."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from matplotlib.transforms import Transform

from broker.plots import canvas, points
from broker.plots.canvas import DARK, Theme
from broker.plots.curve import Curve, Evaluated
from broker.plots.points import Array

MOST_TICKS = 20
"""Checkpoints that are marked."""
MOST_SPIKES = 12
MOST_DOTS = 25
"""Evaluated checkpoints whose dots are large."""
UNDER_LEGEND = 0.15
"""How much of the picture's height, from its top, a label above a line would share with the legend."""
NOISE = 0.15
"""How far above the picture a loss may be without a mark, as a share of its height."""
LASTING = 0.01
"""The share of the axis for which a loss must stay up for a rise rather than a spike."""


def draw(curve: Curve, theme: Theme = DARK) -> bytes:
    """Draw a run as a PNG of 1000 × 625 pixels, taller by 175 with the second panel and by 150 for each evaluation."""
    return canvas.png(figure(curve, theme))


def figure(curve: Curve, theme: Theme = DARK) -> Figure:
    """The picture of the loss curve as a matplotlib figure."""
    second = len(points.columns(curve.below)[0]) > 1
    few = len(curve.evaluations)
    drawn = canvas.blank((800 if second else 625) + 150 * few, theme)
    heights = (3.6, *([1] * (few + second)))
    axes, *others = drawn.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    _Panel(axes, curve, theme).draw()
    if second:
        _below(others[0], curve, theme)
    for axes_of_task, evaluated in zip(others[second:], curve.evaluations, strict=True):
        evaluation(axes_of_task, evaluated, theme, log=curve.log)
    lowest = others[-1] if others else axes
    lowest.set_xlabel("tokens, log scale" if curve.log else "tokens", fontsize=canvas.NORMAL, color=theme.ink)
    return drawn


class _Panel:
    """The panel of the loss. `at` and `smooth` begin with the points before the fork; `own` is the first one after it.

    `x` is where points lie on the axis: tokens, or their logarithm.
    """

    def __init__(self, axes: Axes, curve: Curve, theme: Theme) -> None:
        self.axes, self.curve, self.theme = axes, curve, theme
        before, own = points.columns(curve.before), points.columns(curve.loss)
        self.at, self.values = (np.concatenate(both) for both in zip(before, own, strict=True))
        self.own = len(before[0])
        self.held_at, self.held = points.columns(curve.held_out)
        if curve.log:
            self.own = int(np.count_nonzero(before[0] > 0))
            self.at, self.values = self.at[self.at > 0], self.values[self.at > 0]
            self.held_at, self.held = self.held_at[self.held_at > 0], self.held[self.held_at > 0]
        self.x = self._along(self.at)
        self.smooth = points.smoothed(self.x, self.values)

    def draw(self) -> None:
        """Draw all that the curve has."""
        canvas.style(self.axes, self.theme, log=self.curve.log)
        said = "loss, nats per token"
        if len(self.at):
            said += self._scale()
            self._training()
        else:
            self.axes.set(xlim=(1, self.held_at.max(initial=1000)), ylim=(0, 1 + self.held.max(initial=0)))
        self.axes.set_ylabel(said, fontsize=canvas.NORMAL, color=self.theme.ink)
        if len(self.held):
            self.axes.plot(
                self.held_at,
                self.held,
                "D",
                color=self.theme.held_out,
                markersize=6 if len(self.held) <= 25 else 4,
                markeredgecolor=self.theme.background,
                markeredgewidth=0.6,
                label="held-out",
                zorder=4,
            )
        low, high = self.axes.get_ylim()
        if self.curve.unigram_entropy is not None and low < self.curve.unigram_entropy < high:
            self._unigram(self.curve.unigram_entropy)
        self._checkpoints()
        self._label()

    def _along(self, tokens: Array) -> Array:
        """Where tokens lie along the axis."""
        return np.log10(tokens) if self.curve.log else tokens

    def _scale(self) -> str:
        """Show the heights of the last 90% of the tokens, or all over log tokens; what the axis adds to its name."""
        first, last = self.at[0], max(self.at[-1], self.held_at.max(initial=0))
        since = self.x[0] if self.curve.log else points.start(self.at)
        low, high = points.heights(self.x, self.values, since)
        held = self.held[self._along(self.held_at) >= since]
        low, high = min(low, held.min(initial=low)), max(high, held[held < 2 * high].max(initial=high))
        room = 0.08 * (high - low) or 0.5
        self.axes.set_ylim(low - 1.6 * room, high + room)
        if self.curve.log:
            self.axes.set_xlim(first, last * 1.05 + 1)
            if last < 100 * first:
                self.axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        else:
            left = 0.0 if first <= 0.5 * last else first
            self.axes.set_xlim(left, max(last + 0.02 * (last - left), left + 1))
        arrived = int(np.argmax(self.smooth <= high))
        if arrived == 0 or self.values[:arrived].max() <= high + room:
            self._rises(0)
            return ""
        self._rises(arrived)
        return f"\n(first steps from {self.values[0]:.3g})"

    def _training(self) -> None:
        own, colour = slice(self.own, None), self.theme.cycle[0]
        if self.own:
            before = points.broken(self.at[: self.own], self.smooth[: self.own])
            self.axes.plot(*before, color=colour, linewidth=1.8, alpha=0.45, label="before the fork")
        if not len(self.at[own]):
            return
        dots = "o-" if len(self.at[own]) <= 12 else "-"
        raw = points.broken(self.at[own], self.values[own])
        self.axes.plot(*raw, dots, color=self.theme.raw, linewidth=0.9, markersize=4, alpha=0.4)
        line = points.broken(self.at[own], self.smooth[own])
        self.axes.plot(*line, color=colour, linewidth=2.2, label="training, median + EMA")

    def _rises(self, arrived: int) -> None:
        """Mark at the upper edge what leaves the picture after the point `arrived`: spikes, and a rise that lasts."""
        low, top = self.axes.get_ylim()
        x, at, values, smooth = (each[arrived:] for each in (self.x, self.at, self.values, self.smooth))
        out = np.flatnonzero(values > top + NOISE * (top - low))
        if not len(out):
            return
        span = self.x[-1] - self.x[0]
        groups = np.split(out, np.flatnonzero(np.diff(x[out]) > span / 40) + 1)
        peaks = [int(group[values[group].argmax()]) for group in groups]
        peaks = sorted(peaks, key=lambda peak: -float(values[peak]))[:MOST_SPIKES]
        across = self.axes.get_xaxis_transform()
        heights = np.full(len(peaks), 0.975)
        self.axes.plot(at[peaks], heights, "^", color=self.theme.muted, markersize=6, transform=across)
        lasting = np.count_nonzero(smooth > top) > 1 and np.ptp(x[smooth > top]) > LASTING * span
        left = x[peaks[0]] > x.mean()
        said = f"{'rises' if lasting else 'spike'} to {values.max():,.3g}"
        aside = (-6, 0) if left else (6, 0)
        self._note(said, (at[peaks[0]], 0.975), across, aside, ha="right" if left else "left", va="center")

    def _unigram(self, entropy: float) -> None:
        """Draw the unigram entropy, the loss of knowing only token frequencies, with its label off the curve."""
        self.axes.axhline(entropy, color=self.theme.muted, linestyle=(0, (4, 3)), linewidth=1.4)
        above = self.x[self.values > entropy]
        late = len(above) > 0 and np.median(above) > self.x[0] + 0.3 * (self.x[-1] - self.x[0])
        said, place = f"unigram entropy {entropy:.2f}", (0.01 if late else 1, entropy)
        low, high = self.axes.get_ylim()
        below = high - entropy < UNDER_LEGEND * (high - low)
        aside, va = ((0, -4), "top") if below else ((0, 3), "bottom")
        self._note(said, place, self.axes.get_yaxis_transform(), aside, ha="left" if late else "right", va=va)

    def _note(
        self, said: str, place: tuple[float, float], within: Transform, aside: tuple[float, float], *, ha: str, va: str
    ) -> None:
        """Write a remark `aside` points from a place, legible on top of lines."""
        self.axes.annotate(
            said,
            place,
            xycoords=within,
            xytext=aside,
            textcoords="offset points",
            ha=ha,
            va=va,
            fontsize=canvas.SMALL,
            color=self.theme.muted,
            path_effects=self.theme.halo,
        )

    def _checkpoints(self) -> None:
        left, right = self.axes.get_xlim()
        within = sorted(tokens for tokens in self.curve.checkpoints if left <= tokens <= right)
        if not within:
            return
        shown = _spread(within, self._along(np.array([left + (left == 0), right])), self._along(np.array(within)))
        self.axes.plot(
            shown,
            [0.04] * len(shown),
            "|",
            color=self.theme.checkpoint,
            markersize=12,
            markeredgewidth=1.8,
            transform=self.axes.get_xaxis_transform(),
            label="checkpoint",
        )

    def _label(self) -> None:
        axes, theme = self.axes, self.theme
        handles, labels = axes.get_legend_handles_labels()
        rows = 2 if len(handles) > 3 else 1
        axes.set_title(
            canvas.fitted(self.curve.title, canvas.LARGE, 820, bold=True),
            fontsize=canvas.LARGE,
            loc="left",
            fontweight="bold",
            parse_math=False,
            pad=10 + 16 * rows,
            color=theme.ink,
        )
        if handles:
            legend = axes.legend(
                handles,
                labels,
                fontsize=canvas.SMALL,
                labelcolor=theme.ink,
                loc="lower left",
                bbox_to_anchor=(-0.01, 0.985),
                ncols=-(-len(handles) // rows),
                frameon=False,
                borderpad=0,
                handlelength=1.1,
                handletextpad=0.4,
                columnspacing=1.1,
                labelspacing=0.3,
            )
            legend.set_in_layout(False)


def _spread(ticks: Sequence[int], ends: Array, along: Array) -> Sequence[int]:
    """The ticks, the last among them, that lie far enough from each other for MOST_TICKS on the axis."""
    apart = (ends[1] - ends[0]) / (MOST_TICKS - 1)
    kept = [len(ticks) - 1]
    for number in range(len(ticks) - 2, -1, -1):
        if along[kept[-1]] - along[number] >= apart:
            kept.append(number)
    return [ticks[number] for number in reversed(kept)]


def evaluation(axes: Axes, evaluated: Evaluated, theme: Theme, *, log: bool = False) -> None:
    """The values of a task over the tokens or steps of its checkpoints, with their standard errors."""
    canvas.style(axes, theme, ticks=2, log=log)
    shown = [point for point in evaluated.points if point[0] > 0 or not log]
    at, values = points.columns([(tokens, value) for tokens, value, _ in shown])
    errors = np.array([error or 0.0 for _, _, error in shown])
    size = 5 if len(at) <= MOST_DOTS else 2.5
    axes.errorbar(at, values, errors, fmt="o-", color=theme.cycle[0], markersize=size, linewidth=1.3, capsize=size - 2)
    low, high = (values - errors).min(initial=np.inf), (values + errors).max(initial=-np.inf)
    if low > high:
        low = high = 0.0
    room = 0.15 * (high - low) or 0.5 * abs(high) or 0.5
    axes.set_ylim(low - room, high + room)
    label = canvas.fitted(evaluated.label, canvas.SMALL, 800)
    axes.set_title(label, fontsize=canvas.SMALL, loc="left", color=theme.muted, parse_math=False, pad=3)


def _below(axes: Axes, curve: Curve, theme: Theme) -> None:
    at, values = points.columns(curve.below)
    canvas.style(axes, theme, ticks=2, log=curve.log)
    low, high = points.heights(at, values, points.start(at))
    axes.plot(*points.broken(at, values), color=theme.muted, linewidth=1.3)
    # A constant series gets room as well, so that its axis has numbers.
    room = 0.15 * (high - low) or 0.5 * abs(values[0]) or 0.5
    axes.set_ylim(low - room, high + room)
    label = canvas.fitted(curve.below_label, canvas.SMALL, 800)
    axes.set_title(label, fontsize=canvas.SMALL, loc="left", color=theme.muted, parse_math=False, pad=3)
