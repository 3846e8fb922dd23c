"""What the scheduler decided by: the queue's state of its decisions, kept for a month, so that `why` can be replayed.

A state is kept where it differs from what the last one kept has come to by then: whole at first, then as the changes
since the one before, and whole again where the changes have grown as large or a day has passed.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache

from pydantic import TypeAdapter
from sqlalchemy import delete, func
from sqlalchemy.orm import Session
from sqlmodel import Field, col, select

from broker.scheduling.backfill import Funds, Held, Limits, PoolRow, QueueState, Waiting
from broker.scheduling.capacity import Reserved
from broker.scheduling.fairshare import Groups, decayed
from projects.db.columns import WHOLE, Base, UtcDateTime, integer, row_id, utcnow
from projects.db.database import Database
from projects.errors import NotFoundError

MOST_BYTES = 2**30
"""The most that all kept states may take; beyond it the oldest go."""
MOST_CHANGES = 200
"""The most changes that follow a whole state."""
WHOLE_EVERY = timedelta(days=1)
A_BATCH = 100
"""Whole states that one transaction removes, with their changes."""


class KeptDecision(Base, table=True):
    """The state that a decision used: whole, or the changes since the row before of the same whole one.

    `state` is compressed JSON, `low` whether the disk was nearly full.
    """

    __tablename__ = "decisions"

    id: int = row_id()
    at: datetime = Field(sa_type=UtcDateTime, index=True)
    whole_id: int | None = Field(default=None, foreign_key="decisions.id", index=True, sa_type=WHOLE)
    low: bool
    size: int = integer()
    state: bytes


@dataclass(frozen=True)
class Rest:
    """What seldom changes of a state."""

    pools: Sequence[PoolRow]
    shares: Mapping[int, float]
    groups: Mapping[int, Groups[int]]
    limits: Limits
    reserved: Sequence[Reserved]


@dataclass(frozen=True)
class Changes:
    """What differs from an earlier state at the moment `now`; `gone` and `freed` wait and hold no more."""

    now: datetime
    waiting: Sequence[Waiting]
    gone: Sequence[int]
    held: Sequence[Held]
    freed: Sequence[tuple[int, bool]]
    funds: Mapping[int, Funds]
    usage: Mapping[int, float]
    fading: Mapping[int, float]
    rest: Rest | None

    def __bool__(self) -> bool:
        parts = (self.waiting, self.gone, self.held, self.freed, self.funds, self.usage, self.fading)
        return any(parts) or self.rest is not None


@dataclass(frozen=True)
class Replayed:
    """What the decision in force at a moment had before it, as it had become by that moment."""

    state: QueueState
    low: bool
    decided_at: datetime


class DecisionLog:
    """Writes the decisions of one scheduler into the database."""

    def __init__(self) -> None:
        self.last: QueueState | None = None
        self.low = False
        self.whole_id = 0
        self.whole_at = utcnow()
        self.room = 0
        self.changes = 0

    def keep(self, db: Database, state: QueueState, *, low: bool) -> None:
        """Keep the state of a decision, unless it is what the last kept one has become."""
        last, self.last = self.last, None  # what fails begins again with a whole one
        if last is None or self.room <= 0 or self.changes >= MOST_CHANGES or state.now - self.whole_at > WHOLE_EVERY:
            packed = _packed(_whole_adapter().dump_json(state))
            row = KeptDecision(at=state.now, low=low, size=len(packed), state=packed)
            with db.write() as session:
                session.add(row)
                session.flush()
                self.whole_id = row.id
            self.whole_at, self.room, self.changes = state.now, len(packed), 0
            self.last, self.low = state, low
            return
        before = aged(last, state.now)
        changes = _changes(before, state)
        if not changes and low == self.low:
            self.last = last
            return
        packed = _packed(_changes_adapter().dump_json(changes))
        with db.write() as session:
            session.add(KeptDecision(at=state.now, whole_id=self.whole_id, low=low, size=len(packed), state=packed))
        self.room -= len(packed)
        self.changes += 1
        self.last, self.low = _applied(before, changes), low


def replay(session: Session, at: datetime) -> Replayed:
    """The state of the last decision before a moment, as it had become by then; raises NotFoundError."""
    newest = select(KeptDecision).where(col(KeptDecision.at) <= at)
    found = session.scalars(newest.order_by(col(KeptDecision.at).desc(), col(KeptDecision.id).desc()).limit(1)).first()
    if found is None:
        oldest = session.scalar(select(func.min(col(KeptDecision.at))))
        since = "none is kept yet" if oldest is None else f"those kept begin at {oldest:%F %T} UTC"
        raise NotFoundError(f"No decision of the scheduler is kept from before {at:%F %T} UTC; {since}.")
    first = found.whole_id or found.id
    state = _whole_adapter().validate_json(zlib.decompress(session.get_one(KeptDecision, first).state))
    following = select(KeptDecision.state).where(KeptDecision.whole_id == first, col(KeptDecision.id) <= found.id)
    for packed in session.scalars(following.order_by(col(KeptDecision.id))):
        changes = _changes_adapter().validate_json(zlib.decompress(packed))
        state = _applied(aged(state, changes.now), changes)
    return Replayed(aged(state, at), found.low, found.at)


def remove_old(db: Database, days: int) -> None:
    """Remove what is older than so many days, and the oldest where all take more than `MOST_BYTES`; never the newest.

    A whole state goes with the changes after it.
    """
    cut = utcnow() - timedelta(days=days)
    first = func.coalesce(KeptDecision.whole_id, KeptDecision.id)
    with db.read() as session:
        sizes = session.execute(
            select(first, func.max(col(KeptDecision.at)), func.sum(KeptDecision.size)).group_by(first).order_by(first)
        ).all()
    kept, old = 0, []
    for index, (whole, last_at, size) in enumerate(reversed(sizes)):
        kept += int(size)
        if index and (last_at < cut or kept > MOST_BYTES):
            old.append(whole)
    for start in range(0, len(old), A_BATCH):
        batch = old[start : start + A_BATCH]
        with db.write() as session:
            session.execute(delete(KeptDecision).where(col(KeptDecision.whole_id).in_(batch)))
            session.execute(delete(KeptDecision).where(col(KeptDecision.id).in_(batch)))


def aged(state: QueueState, now: datetime) -> QueueState:
    """What a state becomes by `now` if nothing happens."""
    passed = (now - state.now).total_seconds()
    fading = {project: decayed(seconds, passed) for project, seconds in state.fading.items()}
    return replace(
        state,
        now=now,
        waiting=[
            run if run.not_before is None or run.not_before > now else run._replace(not_before=None)
            for run in state.waiting
        ],
        # To the microsecond, as the database has it, so that a plan of it comes out the same.
        held=[_later(one, passed) for one in state.held if one.open or one.seconds > passed],
        usage={
            project: seconds - state.fading.get(project, 0.0) + fading.get(project, 0.0)
            for project, seconds in state.usage.items()
        },
        fading=fading,
        reserved=[one for one in state.reserved if one.ends_at > now],
    )


def _changes(before: QueueState, after: QueueState) -> Changes:
    waited = {run.id: run for run in before.waiting}
    waiting = {run.id: run for run in after.waiting}
    had = {(one.run_id, one.open): one for one in before.held}
    held = {(one.run_id, one.open): one for one in after.held}
    rest = Rest(after.pools, after.shares, after.groups, after.limits, after.reserved)
    same = (before.pools, before.shares, before.limits) == (after.pools, after.shares, after.limits)
    same = same and list(before.reserved) == list(after.reserved)
    same = same and _same_groups(before.groups, after.groups)
    return Changes(
        now=after.now,
        waiting=[run for run in after.waiting if waited.get(run.id) != run],
        gone=sorted(waited.keys() - waiting.keys()),
        held=[one for key, one in held.items() if key not in had or not _same_hold(had[key], one)],
        freed=sorted(had.keys() - held.keys()),
        funds={
            allocation: funds
            for allocation, funds in after.funds.items()
            if allocation not in before.funds or not _same_funds(before.funds[allocation], funds)
        },
        usage=dict(_moved(before.usage, after.usage)),
        fading=dict(_moved(before.fading, after.fading)),
        rest=None if same else rest,
    )


def _applied(state: QueueState, changes: Changes) -> QueueState:
    """A state with changes, both of one moment."""
    waiting = {run.id: run for run in state.waiting} | {run.id: run for run in changes.waiting}
    held = {(one.run_id, one.open): one for one in state.held} | {(one.run_id, one.open): one for one in changes.held}
    for number in changes.gone:
        del waiting[number]
    for key in changes.freed:
        del held[key]
    rest = changes.rest or Rest(state.pools, state.shares, state.groups, state.limits, state.reserved)
    return QueueState(
        now=changes.now,
        pools=rest.pools,
        waiting=list(waiting.values()),
        held=list(held.values()),
        funds={**state.funds, **changes.funds},
        usage={**state.usage, **changes.usage},
        fading={**state.fading, **changes.fading},
        shares=rest.shares,
        groups=rest.groups,
        limits=rest.limits,
        reserved=rest.reserved,
    )


def _later(one: Held, passed: float) -> Held:
    """What an attempt holds so many seconds later; one that stops, stops soon."""
    return one if one.stopping else one._replace(seconds=round(one.seconds - passed, 6))


def _same_hold(one: Held, other: Held) -> bool:
    """Whether an attempt holds the same; how far its run has come, which preemption goes by, changes all the time."""
    return one._replace(preemptible=None) == other._replace(preemptible=None)


def _same_funds(one: Funds, other: Funds) -> bool:
    """Whether a plan would find the same: how much is reserved does not matter, only whether anything is."""
    return (one.left, bool(one.reserved), one.ended) == (other.left, bool(other.reserved), other.ended)


def _same_groups(some: Mapping[int, Groups[int]], others: Mapping[int, Groups[int]]) -> bool:
    """Whether the groups are the same, and their use to a thousandth: it fades all the time."""
    if some.keys() != others.keys():
        return False
    pairs = [(groups, others[pool]) for pool, groups in some.items()]
    return all(
        (one.shares, one.of) == (other.shares, other.of)
        and one.usage.keys() == other.usage.keys()
        and not any(True for _ in _moved(one.usage, other.usage, by=1e-3))
        for one, other in pairs
    )


def _moved(before: Mapping[int, float], after: Mapping[int, float], by: float = 1e-9) -> Iterator[tuple[int, float]]:
    """The numbers that differ by more than a rounding error."""
    for key, now in after.items():
        if abs(now - before.get(key, 0.0)) > by * max(1.0, now) or key not in before:
            yield key, now


def _packed(json: bytes) -> bytes:
    return zlib.compress(json, 6)


@cache
def _whole_adapter() -> TypeAdapter[QueueState]:
    return TypeAdapter(QueueState)


@cache
def _changes_adapter() -> TypeAdapter[Changes]:
    return TypeAdapter(Changes)
