"""The GPUs of one pool over time, as each project may use them: what is reserved for others is not free to it."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from broker.scheduling.timeline import Timeline

OTHERS = 0
"""Stands for every project without a reservation."""


class Reserved(NamedTuple):
    """GPUs of a pool that are reserved for a project over a period."""

    pool_id: int
    project_id: int
    gpus: int
    begins_at: datetime
    ends_at: datetime


class Capacity:
    """What is free of a pool for each project. What a project takes counts against its own reservation first.

    Where nothing is reserved, this is one timeline for all.
    """

    def __init__(
        self, capacity: int, reserved: Sequence[Reserved], now: datetime, held: Sequence[tuple[int, int, float]] = ()
    ) -> None:
        """`held` is in use now: project, number, and for how many seconds."""
        owners = sorted({one.project_id for one in reserved})
        self.unused = {project_id: Timeline(0) for project_id in owners}
        if not owners:
            self.unreserved = Timeline(capacity, [(seconds, count) for _, count, seconds in held])
            self.free = {OTHERS: self.unreserved}
            return
        self.free = {project_id: Timeline(capacity) for project_id in (OTHERS, *owners)}
        self.unreserved = Timeline(capacity)
        for one in reserved:
            begins, ends = (max(0.0, (at - now).total_seconds()) for at in (one.begins_at, one.ends_at))
            self.unused[one.project_id].take(-one.gpus, begins, ends)
            for project_id, line in self.free.items():
                if project_id != one.project_id:
                    line.take(one.gpus, begins, ends)
        for project_id, count, seconds in held:
            self.take(project_id, count, 0.0, seconds)

    @property
    def is_full(self) -> bool:
        """Whether nothing is free now, for anybody."""
        return self.unreserved.now < 1

    def of(self, project_id: int) -> Timeline:
        """What is free for a project; take only by `take`."""
        return self.free.get(project_id, self.free[OTHERS])

    def take(self, project_id: int, count: int, start: float, end: float) -> None:
        """Let a project take `count` from `start` until before `end`."""
        self.unreserved.take(count, start, end)
        if not self.unused:
            return
        own = project_id if project_id in self.unused else OTHERS
        self.free[own].take(count, start, end)
        spans = self.unused[own].spans(start, end) if own in self.unused else [(start, end, 0)]
        for begins, ends, unused in spans:
            of_reservation = min(count, unused)
            for other, line in self.free.items():
                if other != own and count > of_reservation:
                    line.take(count - of_reservation, begins, ends)
            if of_reservation:
                self.unused[own].take(of_reservation, begins, ends)
