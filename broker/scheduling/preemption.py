"""Which running runs make way for a waiting one, in the pools that allow it: plain values in and out.

A run is preempted for one of another project that has used clearly less per share, and that starts at once with the
GPUs that become free. Each pool has one time for this, its `preempt_after`: a run keeps its GPUs for so long, it is not
preempted a second time within it, nor where it is likely to end within it; and for so long, a preempted run preempts no
other.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple

from broker.allocations.shares import USUAL
from broker.scheduling import backfill
from broker.scheduling.backfill import Funds, Held, Placement, Plan, PoolRow, QueueState, Waiting, WaitReason

CLEARLY_LESS = 0.5
"""The most that a project may have used per share, as a part of that of each project whose run makes way for it."""
MOST_TRIED = 5
"""Waiting runs of a pool for which a plan with others out of the way is made in one round."""


class Preemption(NamedTuple):
    """The runs that make way, together, for a waiting one."""

    run_ids: tuple[int, ...]
    for_run: int


class _Room(NamedTuple):
    """GPUs, and places for jobs, that are free or about to be."""

    gpus: int
    jobs: int

    def holds(self, run: Waiting) -> bool:
        return self.gpus >= run.gpus and self.jobs >= 1

    def taken_by(self, gpus: int) -> "_Room":
        return _Room(self.gpus - gpus, self.jobs - 1)

    def with_freed(self, freed: Sequence[Held]) -> "_Room":
        return _Room(self.gpus + sum(one.gpus for one in freed), self.jobs + len(freed))


def preemptions(state: QueueState, planned: Plan) -> list[Preemption]:
    """Of each pool that preempts, the runs that make way now, for one waiting run at most."""
    found = [_of_pool(state, pool, planned.queues.get(pool.id, ())) for pool in state.pools if pool.preempt_after]
    return [one for one in found if one is not None]


def asked(state: QueueState, chosen: Sequence[Preemption]) -> QueueState:
    """The state once the runs that make way have been asked to stop."""
    stopping = {run_id for one in chosen for run_id in one.run_ids}
    held = [
        one._replace(seconds=0.0, stopping=True, preemptible=None) if one.run_id in stopping else one
        for one in state.held
    ]
    return replace(state, held=held)


def _of_pool(state: QueueState, pool: PoolRow, queue: Sequence[Placement]) -> Preemption | None:
    room, tried = _free(state, pool, queue), 0
    for placement in queue:
        run = placement.run
        if placement.waits_for not in (WaitReason.GPUS, WaitReason.BEHIND):
            continue
        if room.holds(run):  # which runs that are stopping leave to it
            room = room.taken_by(run.gpus)
            continue
        if placement.start <= pool.preempt_after or _is_recent(state, pool, run.preempted_at):
            continue
        victims = _victims(state, pool, run, room)
        if not victims:
            continue
        if _would_start(state, pool, run, victims):
            return Preemption(tuple(sorted(one.run_id for one in victims)), run.id)
        tried += 1
        if tried == MOST_TRIED:
            break
    return None


def _free(state: QueueState, pool: PoolRow, queue: Sequence[Placement]) -> _Room:
    """What is left in a pool once those that stop have ended, and those that start have started."""
    room = _Room(pool.gpus, pool.most_submitted if pool.queue else pool.gpus)
    for one in state.held:
        if one.pool_id == pool.id and not one.stopping:
            room = room.taken_by(one.gpus)
    for placement in queue:
        if placement.waits_for is None:
            room = room.taken_by(placement.run.gpus)
    # What a runner's own queue holds may wait there for GPUs that others have.
    return room._replace(gpus=max(room.gpus, 0)) if pool.queue else room


def _victims(state: QueueState, pool: PoolRow, run: Waiting, room: _Room) -> list[Held]:
    """As few runs as make enough room for `run`, those of the lowest fair-share first; none if too few may.

    Of one project, the run goes first that has had its GPUs for the least time. No project is brought so low that it
    has not clearly used more than that of `run`.
    """
    given: dict[int, float] = {}
    could = [one for one in state.held if one.pool_id == pool.id and _may_be_preempted(state, pool, one, run)]
    could.sort(
        key=lambda one: (
            [-level for level in _levels(state, pool, given, one.project_id)],
            one.preemptible.had if one.preemptible else 0.0,
        )
    )
    chosen: list[Held] = []
    for one in could:
        after = given | {one.project_id: given.get(one.project_id, 0.0) + _given_back(pool, one)}
        if _is_clear(state, pool, after, run.project_id, one.project_id):
            chosen.append(one)
            given = after
            if room.with_freed(chosen).holds(run):
                break
    else:
        return []
    for one in reversed(chosen[:-1]):
        others = [other for other in chosen if other is not one]
        if room.with_freed(others).holds(run):
            chosen = others
    return chosen


def _levels(state: QueueState, pool: PoolRow, given: Mapping[int, float], project_id: int) -> tuple[float, float]:
    """What the project's group in the pool and the project itself have used per share, without what they gave back."""
    used = (state.usage.get(project_id, 0.0) - given.get(project_id, 0.0)) / state.shares.get(project_id, USUAL)
    groups = state.groups.get(pool.id)
    if groups is None:
        return 0.0, used
    group = groups.group(project_id)
    of_group = groups.used()[group] - sum(back for other, back in given.items() if groups.group(other) == group)
    return of_group / groups.shares[group], used


def _is_clear(state: QueueState, pool: PoolRow, given: Mapping[int, float], project_id: int, other_id: int) -> bool:
    """Whether the first project has used clearly less per share: its group, where the other is in another group."""
    groups = state.groups.get(pool.id)
    level = 0 if groups is not None and groups.group(project_id) != groups.group(other_id) else 1
    less, more = (_levels(state, pool, given, one)[level] for one in (project_id, other_id))
    return more > 0 and less <= CLEARLY_LESS * more


def _may_be_preempted(state: QueueState, pool: PoolRow, one: Held, run: Waiting) -> bool:
    about = one.preemptible
    return (
        about is not None
        and one.project_id != run.project_id
        and about.had >= pool.preempt_after
        and about.ends_in > pool.preempt_after
        and not _is_recent(state, pool, about.waiting.preempted_at)
    )


def _is_recent(state: QueueState, pool: PoolRow, preempted_at: datetime | None) -> bool:
    return preempted_at is not None and (state.now - preempted_at).total_seconds() < pool.preempt_after


def _given_back(pool: PoolRow, one: Held) -> float:
    """Weighted GPU-seconds that a run gives back as it makes way: what it has not used, and what it may be refunded.

    Without the refund, the run's project could have used so little afterwards that the run takes its GPUs back.
    """
    about = one.preemptible
    return 0.0 if about is None else (about.waiting.cost + about.unsaved) * pool.price_weight


def _would_start(state: QueueState, pool: PoolRow, run: Waiting, victims: Sequence[Held]) -> bool:
    """Whether a plan starts `run` at once when the victims wait again, and whoever is stopping has ended."""
    usage, funds, waiting = defaultdict(float, state.usage), dict(state.funds), list(state.waiting)
    groups = state.groups.get(pool.id)
    used_here = defaultdict(float, {} if groups is None else groups.usage)
    for one in victims:
        if one.preemptible is None:
            continue
        again = one.preemptible.waiting._replace(preempted_at=state.now)
        waiting.append(again)
        usage[one.project_id] -= _given_back(pool, one)
        used_here[one.project_id] -= _given_back(pool, one)
        left, reserved, ended = funds.get(again.allocation_id, Funds(0, again.cost, None))
        funds[again.allocation_id] = Funds(left + again.cost, reserved - again.cost, ended)
    gone = {one.run_id for one in victims}
    held = [one for one in state.held if one.run_id not in gone and not one.stopping]
    grouped = {} if groups is None else {pool.id: replace(groups, usage=used_here)}
    after = replace(state, waiting=waiting, held=held, usage=usage, funds=funds, groups={**state.groups, **grouped})
    later = backfill.plan(after, whole=False)
    return any(start.run_id == run.id for start in later.starts)
