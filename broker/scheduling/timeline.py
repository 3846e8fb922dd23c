"""How many of a thing are free, from now on: GPUs of a pool, or slots under a limit."""

import math
from bisect import bisect_left, bisect_right


class Timeline:
    """A number that is free at each time, in seconds from now; it can only be taken from."""

    def __init__(self, capacity: int) -> None:
        self.times = [0.0]
        self.free = [capacity]
        self.known: dict[tuple[int, float], float] = {}

    @property
    def now(self) -> int:
        """What is free now."""
        return self.free[0]

    def take(self, count: int, start: float, end: float) -> None:
        """Take `count` from `start` until before `end`."""
        first, last = self._cut(start), self._cut(end)
        for index in range(first, last):
            self.free[index] -= count

    def earliest(self, count: int, seconds: float, after: float = 0.0) -> float:
        """The first time from `after` on when `count` are free for so many seconds; ∞ where they never are."""
        wanted = (count, seconds)
        start = max(after, self.known.get(wanted, 0.0))
        if start == math.inf:
            return start
        times, free = self.times, self.free
        index = bisect_right(times, start) - 1
        while True:
            if free[index] < count:
                index += 1
                if index == len(times):
                    start = math.inf
                    break
                start = times[index]
                continue
            index += 1
            if index == len(times) or times[index] >= start + seconds:
                break
        if after == 0:  # what is free only falls, so the next one alike need not look before
            self.known[wanted] = start
        return start

    def spans(self, start: float, end: float) -> list[tuple[float, float, int]]:
        """What is free from `start` until before `end`, as spans with a beginning, an end and a number."""
        first, last = self._cut(start), self._cut(end)
        ends = [*self.times[first + 1 : last], end]
        return list(zip(self.times[first:last], ends, self.free[first:last], strict=True))

    def _cut(self, at: float) -> int:
        """The index of the span that begins at `at`, cut there where none did; one past the last for ∞."""
        if at == math.inf:
            return len(self.times)
        index = bisect_left(self.times, at)
        if index == len(self.times) or self.times[index] != at:
            self.times.insert(index, at)
            self.free.insert(index, self.free[index - 1])
        return index
