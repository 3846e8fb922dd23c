"""The loss curve of a run as a picture. Colours: Okabe–Ito. Only the studio's process imports this, and matplotlib."""

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from bot.studio import Comparison, Curve

BLUE, SKY, VERMILION, GREEN, GREY = "#0072B2", "#56B4E9", "#D55E00", "#009E73", "#5A6068"

STYLES = ((BLUE, "-"), (VERMILION, "--"), (GREEN, "-."), ("#CC79A7", ":"), ("#E69F00", "-"), ("#000000", "--"))


def draw(curve: Curve) -> bytes:
    """A PNG of 1000 × 625 pixels, meant to be read at a phone's 390."""
    figure = Figure(figsize=(5, 3.125), dpi=200, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    tokens = [point[0] for point in curve.loss]
    values = [point[1] for point in curve.loss]
    if curve.loss:
        axes.plot(tokens, values, color=SKY, linewidth=1, alpha=0.55)
        axes.plot(tokens, _smoothed(values), color=BLUE, linewidth=2.2, label="training")
    if curve.held_out:
        at, held_out = zip(*curve.held_out, strict=True)
        axes.plot(
            at, held_out, "D", color=VERMILION, markersize=6, markeredgecolor="white", clip_on=False, label="held-out"
        )
    if curve.unigram_entropy is not None:
        axes.axhline(curve.unigram_entropy, color=GREY, linestyle=(0, (4, 3)), linewidth=1.4)
        axes.annotate(
            f"unigram entropy {curve.unigram_entropy:.2f}",
            (1, curve.unigram_entropy),
            xycoords=axes.get_yaxis_transform(),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            fontsize=10.5,
            color=GREY,
        )
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
    axes.set_title(curve.title, fontsize=13, loc="left", fontweight="bold")
    axes.set_xlabel("tokens", fontsize=12)
    axes.set_ylabel("loss, nats per token", fontsize=12)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.tick_params(labelsize=12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E4E7EB", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(y=0.12)
    axes.set_xlim(left=0)
    if curve.loss or curve.held_out:
        axes.legend(fontsize=10.5, loc="best", facecolor="white", edgecolor="none", framealpha=0.85)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def compare(comparison: Comparison) -> bytes:
    """A PNG of the same size with the smoothed losses of several runs over each other."""
    figure = Figure(figsize=(5, 3.125), dpi=200, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for curve, (colour, style) in zip(comparison.curves, STYLES, strict=False):
        tokens = [point[0] for point in curve.loss]
        losses = _smoothed([point[1] for point in curve.loss])
        axes.plot(tokens, losses, color=colour, linestyle=style, linewidth=2, label=curve.title)
    axes.set_xlabel("tokens", fontsize=12)
    axes.set_ylabel("loss, nats per token", fontsize=12)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(labelsize=12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E4E7EB", linewidth=0.8)
    axes.legend(fontsize=10.5, loc="best", facecolor="white", edgecolor="none", framealpha=0.85)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _smoothed(values: Sequence[float]) -> npt.NDArray[np.float64]:
    """A centred moving mean over an eighth of the points at most, narrower towards the ends."""
    array = np.asarray(values, dtype=float)
    half = min(len(array) // 16, 25)
    sums = np.concatenate(([0.0], np.cumsum(array)))
    index = np.arange(len(array))
    reach = np.minimum(np.minimum(index, len(array) - 1 - index), half)
    means: npt.NDArray[np.float64] = (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)
    return means
