"""The loss curve of a run as a picture, drawn with matplotlib in a process of its own. Colours: Okabe–Ito."""

import asyncio
import hashlib
import io
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

BLUE, SKY, VERMILION, GREEN, GREY = "#0072B2", "#56B4E9", "#D55E00", "#009E73", "#5A6068"


@dataclass(frozen=True)
class Curve:
    """What a picture shows: points of (tokens, nats per token), and the tokens at which checkpoints were written."""

    title: str
    loss: Sequence[tuple[int, float]]
    held_out: Sequence[tuple[int, float]]
    checkpoints: Sequence[int]
    unigram_entropy: float | None

    @property
    def digest(self) -> str:
        """Eight characters that change with what is shown."""
        return hashlib.sha256(pickle.dumps(self)).hexdigest()[:8]


class Studio:
    """Draws in one process of its own, started at the first picture, which ends with this one."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context("spawn"), initializer=_follow, initargs=(os.getpid(),)
        )

    async def draw(self, curve: Curve) -> bytes:
        """The picture, as PNG."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, draw, curve)

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown(wait=True, cancel_futures=True)


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


def _smoothed(values: Sequence[float]) -> npt.NDArray[np.float64]:
    """A centred moving mean over an eighth of the points at most, narrower towards the ends."""
    array = np.asarray(values, dtype=float)
    half = min(len(array) // 16, 25)
    sums = np.concatenate(([0.0], np.cumsum(array)))
    index = np.arange(len(array))
    reach = np.minimum(np.minimum(index, len(array) - 1 - index), half)
    means: npt.NDArray[np.float64] = (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)
    return means


def _follow(parent: int) -> None:
    """Leave Ctrl-C to the parent, and end when it has ended, however it did."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
