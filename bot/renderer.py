"""The renderer: one process of its own that draws the pictures, so that the bot never waits for matplotlib."""

import asyncio
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from broker.plots.curve import Comparison, Curve, Panels, Standings

S = TypeVar("S")
T = TypeVar("T")


class Renderer:
    """Starts its process at the first picture, and ends it in `close`."""

    def __init__(self) -> None:
        self._pool = _open()

    async def draw(self, curve: Curve) -> bytes:
        """Draw one run, as PNG."""
        return await self._drawn(_draw, curve)

    async def compare(self, comparison: Comparison) -> tuple[bytes, Standings]:
        """Draw several runs in one picture, as PNG, and say how they stand."""
        return await self._drawn(_compare, comparison)

    async def panels(self, shown: Panels) -> bytes:
        """Draw what a study or an evaluation has measured, as PNG."""
        return await self._drawn(_panels, shown)

    async def _drawn(self, draw: Callable[[S], T], what: S) -> T:
        """Call `draw` in the process, or in a new one where the old one was killed."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._pool, draw, what)
        except BrokenProcessPool:
            self._pool = _open()
            return await loop.run_in_executor(self._pool, draw, what)

    def close(self) -> None:
        """End the process, once it has drawn the picture that it is at."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _open() -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=context, initializer=_follow, initargs=(os.getpid(),))


def _draw(curve: Curve) -> bytes:
    from broker.plots import loss_curve  # here, so that only the renderer's process loads matplotlib

    return loss_curve.draw(curve)


def _compare(comparison: Comparison) -> tuple[bytes, Standings]:
    from broker.plots import comparison_curves

    return comparison_curves.draw(comparison), comparison_curves.standings(comparison)


def _panels(shown: Panels) -> bytes:
    from broker.plots import panels

    return panels.draw(shown)


def _follow(parent: int) -> None:
    """Prepare the process: it ignores Ctrl-C, yields the CPU to the bot, and ends when its parent has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(10)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
