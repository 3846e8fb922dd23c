"""Which runs start now, when the others are expected to, and what each waits for: plain values in and out.

Runs of a pool are taken in turn by fair-share. Each run gets the first time at which all its GPUs and a slot under the
limits are free for as long as the run may take, and no later run can take them: a run starts early only where that
delays no higher run (conservative backfill). GPUs that are reserved for another project are not free in that time. A
host's memory is shared out in the same way, by what its runs are predicted to take.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from operator import attrgetter
from typing import NamedTuple, TypeVar

from broker.allocations import ledger
from broker.scheduling.capacity import Capacity, Reserved
from broker.scheduling.fairshare import Groups, Turns
from broker.scheduling.timeline import Timeline

SOONEST = 1.0
"""Seconds until devices that are in use now are free at the earliest, however long overdue."""


@dataclass(frozen=True)
class Limits:
    """How many runs may be under way at once, of a project and of a person."""

    most_running_a_project: int = 100
    most_running_a_person: int = 100


class PoolRow(NamedTuple):
    """A pool. Where its runner has a `queue`, Stoa hands out places in that queue, and the queue the GPUs.

    `queue` is its name as people read it; empty where Stoa hands out the GPUs itself. A run that has had its GPUs for
    `preempt_after` seconds can be preempted; 0 for never. `drained` says that its hosts start nothing; empty where they
    do. The runs on its host may take `host_bytes` of memory, None where that is not known or not Stoa's to share out;
    the pools `on_host`, itself among them, have the same host.
    """

    id: int
    name: str
    gpus: int
    queue: str
    price_weight: float
    most_submitted: int = 4
    preempt_after: int = 0
    drained: str = ""
    host_bytes: int | None = None
    on_host: tuple[int, ...] = ()


class Waiting(NamedTuple):
    """A queued run. `seconds` is what is left of its time limit, `not_before` None where it may start at once.

    A run of a `paused` project keeps its position and does not start. `preempted_at` is when the run last made way, for
    the run `preempted_for`. It is predicted to take `memory` bytes of its host.
    """

    id: int
    project_id: int
    person_id: int
    allocation_id: int
    pool_id: int
    gpus: int
    seconds: int
    queued_at: datetime
    not_before: datetime | None
    paused: bool = False
    preempted_at: datetime | None = None
    preempted_for: int | None = None
    memory: int = 0

    @property
    def cost(self) -> int:
        """GPU-seconds that its admission reserves."""
        return self.gpus * self.seconds


class Preemptible(NamedTuple):
    """A training run that could make way: `had` seconds of its trainer so far, `ends_in` seconds until its likely end.

    `waiting` is the run as it would wait again, and go on from its checkpoint; what it has used since its last one, in
    GPU-seconds, is `unsaved`.
    """

    waiting: Waiting
    had: float
    ends_in: float
    unsaved: int = 0


class Held(NamedTuple):
    """What an attempt holds: its devices for at most `seconds` more, and a slot under the limits while it is `open`.

    An attempt that is not open was lost: its trainer may still be stopping. One that is `stopping` was asked to end,
    in order to wait again where it `makes_way_for` another run.
    """

    run_id: int
    pool_id: int
    project_id: int
    person_id: int
    devices: tuple[int, ...]
    seconds: float
    open: bool
    gpus: int = 0
    stopping: bool = False
    makes_way_for: int | None = None
    preemptible: Preemptible | None = None
    memory: int = 0


Row = TypeVar("Row", Waiting, Held, Reserved)


class Funds(NamedTuple):
    """What an allocation has left and has reserved, in GPU-seconds, and when the allocation ended, if it has."""

    left: int
    reserved: int
    ended: datetime | None


@dataclass(frozen=True)
class QueueState:
    """All that a plan depends on, at one moment. `usage` by project is decayed and weighted; `fading` is the part of it
    that decays, which is what ended attempts have used.

    `shares` has the projects whose share was set, `groups` the pools of which a sponsor has set time aside.
    """

    now: datetime
    pools: Sequence[PoolRow] = ()
    waiting: Sequence[Waiting] = ()
    held: Sequence[Held] = ()
    funds: Mapping[int, Funds] = field(default_factory=dict)
    usage: Mapping[int, float] = field(default_factory=dict)
    fading: Mapping[int, float] = field(default_factory=dict)
    shares: Mapping[int, float] = field(default_factory=dict)
    groups: Mapping[int, Groups[int]] = field(default_factory=dict)
    reserved: Sequence[Reserved] = ()
    limits: Limits = field(default_factory=Limits)


class WaitReason(StrEnum):
    """What a run waits for."""

    PAUSED = "paused"
    DRAINED = "drained"
    HOURS = "hours"
    EARLIER_ATTEMPT = "earlier attempt"
    PROJECT_LIMIT = "project limit"
    PERSON_LIMIT = "person limit"
    GPUS = "gpus"
    MEMORY = "memory"
    BEHIND = "behind"
    RESERVED = "reserved"


HAVE_NO_TIME = frozenset({WaitReason.HOURS, WaitReason.PAUSED, WaitReason.DRAINED})
"""What runs wait for that have no time in the plan, and delay nobody."""


class Decision(NamedTuple):
    """A queued run starts now, on these devices of its pool; none where the runner has a queue of its own."""

    run_id: int
    devices: tuple[int, ...]


class Placement(NamedTuple):
    """A run's position in its pool's queue, from 1. `start` is in seconds from now: 0 now, ∞ not known.

    `waits_for` is None for a run that starts now; `free` is how many GPUs it found free (for HOURS, GPU-seconds; for
    MEMORY, bytes).
    """

    run: Waiting
    position: int
    start: float
    waits_for: WaitReason | None
    free: int


@dataclass(frozen=True)
class Plan:
    """What starts now, the order of each pool's queue, and the queued runs that can never start, with the reason."""

    starts: Sequence[Decision]
    queues: Mapping[int, Sequence[Placement]]
    refusals: Mapping[int, str]

    def expected(self, placement: Placement, now: datetime) -> datetime | None:
        """When a run is expected to start, should all others take as long as they may; None where nobody knows."""
        return None if placement.start == math.inf else now + timedelta(seconds=placement.start)


def plan(state: QueueState, *, whole: bool = True) -> Plan:
    """Decide for all pools, one after the other; what starts in one counts as used in the next.

    Without `whole`, a queue ends where no other run of its pool could start now: so a round of the scheduler needs it.
    The queues of pools that preempt are whole in any case.
    """
    return _Planner(state, whole=whole).plan({})


def blocker(state: QueueState, planned: Plan, placement: Placement) -> int | None:
    """The first higher run that would start later if `placement` started now; None where none would."""
    run = placement.run
    stand_ins = tuple(range(-run.gpus, 0))
    at_once = Held(
        run.id, run.pool_id, run.project_id, run.person_id, stand_ins, float(run.seconds), True, memory=run.memory
    )
    orders = {
        pool_id: [other.run for other in queue if other.run.id != run.id] for pool_id, queue in planned.queues.items()
    }
    replanned = _Planner(state, at_once).plan(orders)
    for pool_id, queue in planned.queues.items():
        for before, after in zip(queue, replanned.queues[pool_id], strict=False):
            if before.run.id == run.id:
                return None
            if after.start > before.start:
                return before.run.id
    return None


def hopeless(state: QueueState) -> dict[int, str]:
    """Queued runs that can never start as things stand, each with the reason."""
    found: dict[int, str] = {}
    for run in state.waiting:
        funds = state.funds[run.allocation_id]
        if funds.ended:
            found[run.id] = f"its allocation ended on {funds.ended:%Y-%m-%d}"
        elif run.cost > funds.left and not funds.reserved:
            needed, left = ledger.too_much(run.cost, funds.left)
            found[run.id] = f"it may cost {needed} hours and its allocation has {left} left"
    return found


class _Planner:
    """One plan in the making."""

    def __init__(self, state: QueueState, also: Held | None = None, *, whole: bool = True) -> None:
        self.state = state
        self.usage = defaultdict(float, state.usage)
        self.left = {allocation_id: funds.left for allocation_id, funds in state.funds.items()}
        self.held = [*state.held, also] if also else state.held
        self.starts: list[Decision] = []
        self.of_pool = _by_pool(self.held)
        self.reserved = _by_pool(state.reserved)
        self.projects = self._bounded(state.limits.most_running_a_project, "project_id")
        self.people = self._bounded(state.limits.most_running_a_person, "person_id")
        self.on_host: defaultdict[int, list[Timeline]] = defaultdict(list)
        self.memory = self._memory()
        # What limits and memory leave to one pool depends on the whole queues of others.
        self.whole = whole or bool(self.projects or self.people or self.memory)

    def plan(self, orders: Mapping[int, Sequence[Waiting]]) -> Plan:
        """In the order of fair-share, or in a given order."""
        refusals = hopeless(self.state)
        waiting = _by_pool([run for run in self.state.waiting if run.id not in refusals])
        queues = {pool.id: self._pool(pool, waiting[pool.id], orders.get(pool.id)) for pool in self.state.pools}
        return Plan(self.starts, queues, refusals)

    def _pool(self, pool: PoolRow, waiting: Sequence[Waiting], order: Sequence[Waiting] | None) -> list[Placement]:
        held = self.of_pool[pool.id]
        devices = sorted(set(range(pool.gpus)).difference(*(one.devices for one in held)))
        gpus = Capacity(
            pool.most_submitted if pool.queue else pool.gpus,
            self.reserved[pool.id],
            self.state.now,
            [(one.project_id, 1 if pool.queue else len(one.devices), max(one.seconds, SOONEST)) for one in held],
        )
        if order is not None:
            return [self._place(pool, run, position, gpus, devices) for position, run in enumerate(order, 1)]
        queue: list[Placement] = []
        whole = self.whole or pool.preempt_after
        if not whole and (pool.drained or gpus.is_full):
            return queue
        by_id, before = {run.id: run for run in waiting}, len(self.starts)
        turns = Turns(_by_project(waiting), self.usage, self.state.shares, self.state.groups.get(pool.id))
        while turns:
            run = by_id[turns.take()]
            cost = run.cost
            if whole:
                queue.append(self._place(pool, run, len(queue) + 1, gpus, devices))
                counts = queue[-1].waits_for not in HAVE_NO_TIME
            elif counts := not self._has_no_time(pool, run, cost):
                start = self._earliest(pool, run, gpus)
                self._take(pool, run, cost, start, gpus, devices)
                if start == 0 and gpus.is_full:
                    break
            turns.done(cost * pool.price_weight if counts else 0.0)
        for started in self.starts[before:]:
            run = by_id[started.run_id]
            self.usage[run.project_id] += run.cost * pool.price_weight
        return queue

    def _place(self, pool: PoolRow, run: Waiting, position: int, gpus: Capacity, devices: list[int]) -> Placement:
        """Give a run its time, and say what it waits for."""
        cost = run.cost
        if why := self._has_no_time(pool, run, cost):
            left = self.left[run.allocation_id] if why == WaitReason.HOURS else 0
            return Placement(run, position, math.inf, why, left)
        start, free = self._earliest(pool, run, gpus), gpus.of(run.project_id).now
        waits_for = None if start == 0 else self._wait_reason(pool, run, gpus)
        if waits_for == WaitReason.MEMORY:
            free = self.memory[pool.id].now
        self._take(pool, run, cost, start, gpus, devices)
        return Placement(run, position, start, waits_for, free)

    def _has_no_time(self, pool: PoolRow, run: Waiting, cost: int) -> WaitReason | None:
        """What a run waits for, where that is its project, a host or hours."""
        if run.paused:
            return WaitReason.PAUSED
        if pool.drained:
            return WaitReason.DRAINED
        return WaitReason.HOURS if cost > self.left[run.allocation_id] else None

    def _earliest(self, pool: PoolRow, run: Waiting, gpus: Capacity) -> float:
        """The first time when all that a run needs is free."""
        line, count = gpus.of(run.project_id), 1 if pool.queue else run.gpus
        after = self._after(run)
        if not (self.projects or self.people or self.memory):
            return line.earliest(count, run.seconds, after)
        needed = [(line, count), *((one, 1) for one in self._places(run))]
        if run.memory and pool.id in self.memory:
            needed.append((self.memory[pool.id], run.memory))
        return _earliest(needed, run.seconds, after)

    def _after(self, run: Waiting) -> float:
        """Seconds until a run may start."""
        return max(0.0, (run.not_before - self.state.now).total_seconds()) if run.not_before else 0.0

    def _take(self, pool: PoolRow, run: Waiting, cost: int, start: float, gpus: Capacity, devices: list[int]) -> None:
        """Take what a run needs from its start on, for as long as it may take."""
        self.left[run.allocation_id] -= cost
        if start == math.inf:
            return
        end = start + run.seconds
        gpus.take(run.project_id, 1 if pool.queue else run.gpus, start, end)
        for line in self._places(run) if self.projects or self.people else ():
            line.take(1, start, end)
        if run.memory:
            self._take_memory(run, start, end)
        if start == 0:
            own = 0 if pool.queue else run.gpus
            self.starts.append(Decision(run.id, tuple(devices[:own])))
            del devices[:own]

    def _places(self, run: Waiting) -> list[Timeline]:
        """The limits of a run's project and person that could be reached."""
        return [line for line in (self.projects.get(run.project_id), self.people.get(run.person_id)) if line]

    def _wait_reason(self, pool: PoolRow, run: Waiting, gpus: Capacity) -> WaitReason:
        if self._after(run) > 0:
            return WaitReason.EARLIER_ATTEMPT
        project, person = self.projects.get(run.project_id), self.people.get(run.person_id)
        if project and project.now < 1:
            return WaitReason.PROJECT_LIMIT
        if person and person.now < 1:
            return WaitReason.PERSON_LIMIT
        memory, line, count = self.memory.get(pool.id), gpus.of(run.project_id), 1 if pool.queue else run.gpus
        if memory and memory.now < run.memory and line.now >= count:
            return WaitReason.MEMORY
        if gpus.unused and gpus.unreserved.earliest(count, run.seconds) == 0 < line.earliest(count, run.seconds):
            return WaitReason.RESERVED
        return WaitReason.GPUS if line.now < count else WaitReason.BEHIND

    def _bounded(self, most: int, whose: str) -> dict[int, Timeline]:
        """The slots under a limit, for those only who could reach the limit."""
        who = attrgetter(whose)
        counts = Counter(map(who, self.state.waiting))
        counts.update(who(one) for one in self.held if one.open)
        lines = {one: Timeline(most) for one, count in counts.items() if count > most}
        for one in self.held if lines else ():
            if one.open and who(one) in lines:
                lines[who(one)].take(1, 0.0, max(one.seconds, SOONEST))
        return lines

    def _memory(self) -> dict[int, Timeline]:
        """What runs leave of the memory of each pool's host, for the pools only where it could be too little."""
        lines: dict[int, Timeline] = {}
        if all(pool.host_bytes is None for pool in self.state.pools):
            return lines
        wanted: defaultdict[int, int] = defaultdict(int)
        for pool_id, taken in [(one.pool_id, one.memory) for rows in (self.held, self.state.waiting) for one in rows]:
            wanted[pool_id] += taken
        for pool in self.state.pools:
            if pool.host_bytes is not None and sum(wanted[other] for other in pool.on_host) > pool.host_bytes:
                lines[pool.id] = Timeline(pool.host_bytes)
                for other in pool.on_host:
                    self.on_host[other].append(lines[pool.id])
        for one in self.held:
            self._take_memory(one, 0.0, max(one.seconds, SOONEST))
        return lines

    def _take_memory(self, one: Waiting | Held, start: float, end: float) -> None:
        for line in self.on_host[one.pool_id] if one.memory else ():
            line.take(one.memory, start, end)


def _earliest(needed: Sequence[tuple[Timeline, int]], seconds: float, after: float) -> float:
    """The first time when everything that is needed is free at once."""
    while True:
        start = after
        for line, count in needed:
            start = line.earliest(count, seconds, start)
        if start in (after, math.inf):
            return start
        after = start


def _by_pool(rows: Sequence[Row]) -> defaultdict[int, list[Row]]:
    pools: defaultdict[int, list[Row]] = defaultdict(list)
    for row in rows:
        pools[row.pool_id].append(row)
    return pools


def _by_project(waiting: Sequence[Waiting]) -> dict[int, list[tuple[datetime, int]]]:
    """Each project's queue, the oldest first."""
    queues: dict[int, list[tuple[datetime, int]]] = {}
    for run in waiting:
        queues.setdefault(run.project_id, []).append((run.queued_at, run.id))
    for queue in queues.values():
        queue.sort()
    return queues
