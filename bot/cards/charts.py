"""The curve of a run as a picture: its loss, and under it the gradient norm or the learning rate."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from bot.cards import plot
from bot.cards.plot import BLUE, GREEN, GREY, SKY, VERMILION, Array
from bot.cards.renderer import Curve

HALO = [withStroke(linewidth=3, foreground="white")]


def draw(curve: Curve) -> bytes:
    """A PNG of 1000 × 625 pixels, or 1000 × 800 with the second panel."""
    return plot.png(figure(curve))


def figure(curve: Curve) -> Figure:
    """The picture, still to be turned into bytes."""
    second = len(curve.below) > 1
    made = plot.canvas(800 if second else 625)
    heights = (3.6, 1) if second else (1,)
    axes, *others = made.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    _loss(axes, curve)
    if second:
        _below(others[0], curve)
    lowest = others[-1] if others else axes
    lowest.set_xlabel("tokens", fontsize=plot.NORMAL)
    return made


def _loss(axes: Axes, curve: Curve) -> None:
    at, values = plot.columns(curve.loss)
    held_at, held = plot.columns(curve.held_out)
    plot.style(axes)
    axes.margins(y=0.12)
    if len(at):
        top = max(plot.ceiling(np.concatenate((values, held))), curve.unigram_entropy or 0)
        few = len(at) <= 12
        axes.plot(*plot.broken(at, values), "o-" if few else "-", color=SKY, linewidth=1, markersize=4, alpha=0.65)
        usual = values <= top
        smooth = plot.smoothed(at[usual], values[usual])
        axes.plot(*plot.broken(at[usual], smooth), color=BLUE, linewidth=2.2, label="training")
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
    title = plot.said(curve.title, plot.LARGE, 820, bold=True)
    axes.set_title(title, fontsize=plot.LARGE, loc="left", fontweight="bold", parse_math=False, pad=26)
    axes.set_ylabel("loss, nats per token", fontsize=plot.NORMAL)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles,
            labels,
            fontsize=plot.SMALL,
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
    """Marks at the upper edge for what is above it; how high it went stands beside the highest."""
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
        fontsize=plot.SMALL,
        color=GREY,
        path_effects=HALO,
    )


def _floor(axes: Axes, entropy: float, at: Array, values: Array) -> None:
    """The unigram entropy: what knowing only how frequent each token is would reach. Its name stands off the curve."""
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
        fontsize=plot.SMALL,
        color=GREY,
        path_effects=HALO,
    )


def _below(axes: Axes, curve: Curve) -> None:
    at, values = plot.columns(curve.below)
    plot.style(axes, ticks=2)
    values = np.minimum(values, plot.ceiling(values))
    axes.plot(*plot.broken(at, values), color=GREY, linewidth=1.3)
    # Room around what never changes too, so that its scale can be read.
    room = 0.15 * (values.max() - values.min()) or 0.5 * abs(values[0]) or 0.5
    axes.set_ylim(values.min() - room, values.max() + room)
    label = plot.said(curve.below_label, plot.SMALL, 800)
    axes.set_title(label, fontsize=plot.SMALL, loc="left", color=GREY, parse_math=False, pad=3)
