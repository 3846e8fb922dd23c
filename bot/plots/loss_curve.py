"""Draws one run: its loss, and below it the gradient norm or the learning rate."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from bot.plots import canvas, points
from bot.plots.canvas import BLUE, GREEN, GREY, SKY, VERMILION
from bot.plots.curve import Curve
from bot.plots.points import Array

HALO = [withStroke(linewidth=3, foreground="white")]


def draw(curve: Curve) -> bytes:
    """Draw a run as a PNG of 1000 × 625 pixels, or 1000 × 800 with the second panel."""
    return canvas.png(figure(curve))


def figure(curve: Curve) -> Figure:
    """The same picture as a matplotlib figure."""
    second = len(curve.below) > 1
    drawn = canvas.blank(800 if second else 625)
    heights = (3.6, 1) if second else (1,)
    axes, *others = drawn.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    _loss(axes, curve)
    if second:
        _below(others[0], curve)
    lowest = others[-1] if others else axes
    lowest.set_xlabel("tokens", fontsize=canvas.NORMAL)
    return drawn


def _loss(axes: Axes, curve: Curve) -> None:
    at, values = points.columns(curve.loss)
    held_at, held = points.columns(curve.held_out)
    canvas.style(axes)
    axes.margins(y=0.12)
    if len(at):
        top = max(points.ceiling(np.concatenate((values, held))), curve.unigram_entropy or 0)
        few = len(at) <= 12
        axes.plot(*points.broken(at, values), "o-" if few else "-", color=SKY, linewidth=1, markersize=4, alpha=0.65)
        usual = values <= top
        smooth = points.smoothed(at[usual], values[usual])
        axes.plot(*points.broken(at[usual], smooth), color=BLUE, linewidth=2.2, label="training")
        measured, tokens = np.concatenate((values, held)), np.concatenate((at, held_at))
        held_at, held = held_at[held <= top], held[held <= top]
        _spikes(axes, tokens[measured > top], measured[measured > top])
        _scale(axes, np.concatenate((values[usual], held, [curve.unigram_entropy or values[usual][-1]])))
    if len(held):
        size = 6 if len(held) <= 25 else 4
        axes.plot(held_at, held, color=VERMILION, linewidth=0.9, alpha=0.6)
        axes.plot(
            held_at,
            held,
            "D",
            color=VERMILION,
            markersize=size,
            markeredgecolor="white",
            markeredgewidth=0.6,
            clip_on=False,
            label="held-out",
            zorder=4,
        )
    if curve.unigram_entropy is not None:
        _floor(axes, curve.unigram_entropy, at, values)
    if curve.checkpoints:
        axes.plot(
            curve.checkpoints,
            [0.04] * len(curve.checkpoints),
            "|",
            color=GREEN,
            markersize=12,
            markeredgewidth=1.8,
            transform=axes.get_xaxis_transform(),
            clip_on=False,
            label="checkpoint",
        )
    first, last = (at[0], max(at[-1], held_at.max(initial=0))) if len(at) else (0.0, 1000.0)
    start = 0.0 if first <= 0.5 * last else first
    axes.set_xlim(start, last + 0.02 * (last - start) or 1.0)
    title = canvas.fitted(curve.title, canvas.LARGE, 820, bold=True)
    axes.set_title(title, fontsize=canvas.LARGE, loc="left", fontweight="bold", parse_math=False, pad=26)
    axes.set_ylabel("loss, nats per token", fontsize=canvas.NORMAL)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles,
            labels,
            fontsize=canvas.SMALL,
            loc="lower left",
            bbox_to_anchor=(-0.01, 0.985),
            ncols=len(handles),
            frameon=False,
            borderpad=0,
            handlelength=1.1,
            handletextpad=0.4,
            columnspacing=1.1,
        )


def _scale(axes: Axes, shown: Array) -> None:
    low, high = float(shown.min()), float(shown.max())
    room = 0.08 * (high - low) or 0.5
    axes.set_ylim(low - 1.6 * room, high + room)


def _spikes(axes: Axes, at: Array, values: Array) -> None:
    """Mark at the upper edge each value above it, with a number beside the highest."""
    if not len(at):
        return
    across = axes.get_xaxis_transform()
    axes.plot(at, np.full(len(at), 0.975), "^", color=GREY, markersize=6, transform=across)
    highest = at[values.argmax()]
    left = highest > 0.6 * at[-1] and highest > at.mean()
    axes.annotate(
        f"spike to {values.max():,.3g}",
        (highest, 0.975),
        xycoords=across,
        xytext=(-6 if left else 6, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        va="center",
        fontsize=canvas.SMALL,
        color=GREY,
        path_effects=HALO,
    )


def _floor(axes: Axes, entropy: float, at: Array, values: Array) -> None:
    """Draw the unigram entropy, the loss of knowing only token frequencies, with its label off the curve."""
    axes.axhline(entropy, color=GREY, linestyle=(0, (4, 3)), linewidth=1.4)
    above = at[values > entropy]
    late = len(above) > 0 and np.median(above) > 0.3 * at[-1]
    axes.annotate(
        f"unigram entropy {entropy:.2f}",
        (0.01 if late else 1, entropy),
        xycoords=axes.get_yaxis_transform(),
        xytext=(0, 3),
        textcoords="offset points",
        ha="left" if late else "right",
        va="bottom",
        fontsize=canvas.SMALL,
        color=GREY,
        path_effects=HALO,
    )


def _below(axes: Axes, curve: Curve) -> None:
    at, values = points.columns(curve.below)
    canvas.style(axes, ticks=2)
    values = np.minimum(values, points.ceiling(values))
    axes.plot(*points.broken(at, values), color=GREY, linewidth=1.3)
    # A constant series gets room as well, so that its axis has numbers.
    room = 0.15 * (values.max() - values.min()) or 0.5 * abs(values[0]) or 0.5
    axes.set_ylim(values.min() - room, values.max() + room)
    label = canvas.fitted(curve.below_label, canvas.SMALL, 800)
    axes.set_title(label, fontsize=canvas.SMALL, loc="left", color=GREY, parse_math=False, pad=3)
