"""How many of a thing are free, from now on: GPUs of a pool, or slots under a limit."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence


class Timeline:
    """A number that is free at each time, in seconds from now; it can only be taken from."""

    def __init__(self, capacity: int, taken: Sequence[tuple[float, int]] = ()) -> None:
        """`taken` are numbers in use from now on, each with the seconds until it is free."""
        self.times = [0.0]
        self.free = [capacity - sum(count for _, count in taken)]
        self.known: dict[tuple[int, float], float] = {}
        for end, count in sorted(taken):
            if end == self.times[-1]:
                self.free[-1] += count
            else:
                self.times.append(end)
                self.free.append(self.free[-1] + count)

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
        times, free, last = self.times, self.free, len(self.times)
        index, until = bisect_right(times, start) - 1, start + seconds
        while True:
            enough = free[index] >= count
            index += 1
            if enough:
                if index == last or times[index] >= until:
                    break
            elif index == last:
                start = math.inf
                break
            else:
                start = times[index]
                until = start + seconds
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
