"""Acts at the same moment, each in a thread of its own."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from threading import Barrier
from typing import TypeVar

from tests.patience import PATIENCE

T = TypeVar("T")


def at_once(acts: Iterable[Callable[[], T]], meanwhile: Callable[[], object] = lambda: None) -> list[T]:
    """What the acts return, in their order; raises the error of the first that fails.

    None begins before all are there. `meanwhile` is called again and again until the last has ended.
    """
    listed = list(acts)
    together = Barrier(len(listed))

    def begin(act: Callable[[], T]) -> T:
        together.wait(PATIENCE)
        return act()

    with ThreadPoolExecutor(len(listed)) as threads:
        begun = [threads.submit(begin, act) for act in listed]
        while wait(begun, 0.01).not_done:
            meanwhile()
        return [each.result() for each in begun]


def allowed(acts: Iterable[Callable[[], object]], *refusals: type[Exception]) -> list[bool]:
    """Which of the acts at the same moment succeed, and which are refused with one of these errors."""

    def tried(act: Callable[[], object]) -> bool:
        try:
            act()
        except refusals:
            return False
        return True

    return at_once([partial(tried, act) for act in acts])
