"""Waiting for what is to come: a wait ends with the event, and its limit is a net that no slow machine meets.

One looks again after a pause, which grows with the time that has passed: a look may cost as much as what it waits for.
"""

import asyncio
import time
from collections.abc import Callable

from sandbox.patience import PATIENCE

__all__ = ["PATIENCE", "until", "wait_for"]

SHARE, LONGEST = 0.1, 0.5
"""The longest pause: this share of the time waited so far, and so many seconds."""


def wait_for(what: Callable[[], object], why: str = "the condition to hold", every: float = 0.05) -> None:
    """Wait until something is true; fails with `why` where it never is."""
    began = time.monotonic()
    while not what():
        time.sleep(_pause(began, every, why))


async def until(what: Callable[[], object], why: str = "the condition to hold", every: float = 0.05) -> None:
    """The same for coroutines, which go on meanwhile."""
    began = time.monotonic()
    while not what():
        pause = _pause(began, every, why)
        await asyncio.sleep(pause)


def _pause(began: float, least: float, why: str) -> float:
    """Seconds until the next look of a wait that began then."""
    waited = time.monotonic() - began
    assert waited < PATIENCE, f"waited {PATIENCE:g} s in vain for {why}"
    return max(least, min(SHARE * waited, LONGEST))
