"""The studio: a process of its own in which pictures are drawn, so that the bot never waits for one."""

import asyncio
import hashlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Curve:
    """What a run's picture shows: points of (tokens, nats per token), and the tokens at which checkpoints were written.

    `below` are the points of the second panel, of which `below_label` says what they are.
    """

    title: str
    loss: Sequence[tuple[int, float]]
    held_out: Sequence[tuple[int, float]]
    checkpoints: Sequence[int]
    unigram_entropy: float | None
    below: Sequence[tuple[int, float]] = ()
    below_label: str = ""

    @property
    def name(self) -> str:
        """The shortest name: “7” where the title is “Run 7 · demo”."""
        return self.title.partition(" · ")[0].removeprefix("Run ")

    @property
    def digest(self) -> str:
        """Eight characters that change with what is shown."""
        return hashlib.sha256(pickle.dumps(self)).hexdigest()[:8]


@dataclass(frozen=True)
class Comparison:
    """Up to six runs in one picture; of their curves only title and loss are shown."""

    curves: Sequence[Curve]

    @property
    def digest(self) -> str:
        """Eight characters that change with what is shown."""
        return hashlib.sha256(pickle.dumps(self)).hexdigest()[:8]


class Studio:
    """Draws in one process of its own, started at the first picture, which ends with this one."""

    def __init__(self) -> None:
        self._pool = _open()

    async def draw(self, curve: Curve) -> bytes:
        """The picture of a run, as PNG."""
        return await self._drawn(_draw, curve)

    async def compare(self, comparison: Comparison) -> bytes:
        """The picture of several runs, as PNG."""
        return await self._drawn(_compare, comparison)

    async def _drawn(self, work: Callable[[T], bytes], what: T) -> bytes:
        """What `work` draws; in a fresh process where the old one was killed."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._pool, work, what)
        except BrokenProcessPool:
            self._pool = _open()
            return await loop.run_in_executor(self._pool, work, what)

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _open() -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=context, initializer=_follow, initargs=(os.getpid(),))


def _draw(curve: Curve) -> bytes:
    from bot.cards.charts import draw  # matplotlib is slow to import, and the bot itself does without

    return draw(curve)


def _compare(comparison: Comparison) -> bytes:
    from bot.cards.comparison import draw

    return draw(comparison)


def _follow(parent: int) -> None:
    """Leave Ctrl-C and the first turn at the processor to the parent, and end when it has ended, however it did."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(10)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
