"""Waiting for what is to come: a wait ends with the event, and its limit is a net that no slow machine meets."""

import asyncio
import time
from collections.abc import Callable

from sandbox.patience import PATIENCE

__all__ = ["PATIENCE", "until", "wait_for"]


def wait_for(what: Callable[[], object], why: str = "the condition to hold", every: float = 0.05) -> None:
    """Wait until something is true; fails with `why` where it never is."""
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, f"waited {PATIENCE:g} s in vain for {why}"
        time.sleep(every)


async def until(what: Callable[[], object], why: str = "the condition to hold", every: float = 0.05) -> None:
    """The same for coroutines, which go on meanwhile."""
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, f"waited {PATIENCE:g} s in vain for {why}"
        await asyncio.sleep(every)
