"""What a reviewer should know before a decision on compute: what the project has used, what is left, who decides."""

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import func
from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker.allocations import allocations, ledger, period_sums, pools, shares, tiers, units
from broker.allocations.allocations import Allocation
from broker.allocations.change_requests import AllocationChange
from broker.allocations.ledger import Account, Balance
from broker.allocations.period_sums import Asker, PeriodSum
from broker.allocations.pools import GRANT_LEFT, Grant, Pool
from broker.allocations.units import Amounts, Unit
from broker.reviews import changes
from broker.reviews.changes import size_of
from broker.scheduling import fairshare, usage
from broker.scheduling.fairshare import Standing
from projects.db.columns import utcnow
from projects.record import record
from projects.record.record import Entry, Payload

NOTHING = Account(0, 0, 0)


@dataclass(frozen=True)
class Remark:
    """A reviewer's question about a request, or an answer to one."""

    by: str
    said: str
    question: bool


@dataclass(frozen=True)
class ReviewContext:
    """What is known of a request at the moment; amounts are in seconds of GPUs or cores.

    `grants` is the number of the project's allocations so far; `spent` and `reserved` are sums over these. `available`
    is the most that can be granted now, out of one grant. `recent` is what the project was granted within `days` days,
    and `with_this` adds what is asked for. Where the sum of a person behind the request is larger, it decides in the
    project's place, and `person` is that sum. Consent takes `reviewers` people, as one may grant `one_reviewer` of the
    sum that decides, and `halves` says whether the time then comes in two halves. The sums that decide count an hour of
    any of the lab's `units` alike.
    """

    grants: int
    spent: Amounts
    reserved: Amounts
    available: int
    reviewers: int
    halves: bool
    recent: int
    with_this: int
    one_reviewer: int
    days: int
    standing: Standing
    units: Collection[Unit]
    remarks: Sequence[Remark] = ()
    person: PeriodSum | None = None


class _Request(NamedTuple):
    """A request for an allocation, or for a change of one, in GPU-seconds.

    `seconds` are asked for, by the person with the id `requested_by`; `account` is the allocation's.
    """

    allocation: Allocation
    requested_by: int
    seconds: int
    account: Account


class _Use(NamedTuple):
    """A project's allocations so far: their number, and what is spent and reserved of all of them."""

    grants: int
    spent: Amounts
    reserved: Amounts


def of_request(session: Session, allocation_id: int) -> ReviewContext:
    """The context of a request for an allocation; raises NotFoundError."""
    allocations.load(session, allocation_id)
    return of_requests(session, [allocation_id])[allocation_id]


def of_requests(session: Session, allocation_ids: Collection[int]) -> Mapping[int, ReviewContext]:
    """The contexts of requests for allocations, by as many queries as one of them takes."""
    found = session.scalars(select(Allocation).where(col(Allocation.id).in_(allocation_ids))).all()
    requests = {
        allocation.id: _Request(allocation, allocation.requested_by, allocation.seconds, NOTHING)
        for allocation in found
    }
    return _contexts(session, requests, _remarks(session, found))


def of_change(session: Session, change_id: int) -> ReviewContext:
    """The context of a request for a change; raises NotFoundError."""
    changes.load(session, change_id)
    return of_changes(session, [change_id])[change_id]


def of_changes(session: Session, change_ids: Collection[int]) -> Mapping[int, ReviewContext]:
    """The contexts of requests for changes, by as many queries as one of them takes."""
    rows = session.execute(
        select(AllocationChange, Allocation, Balance)
        .join(Allocation, col(Allocation.id) == AllocationChange.allocation_id)
        .outerjoin(Balance, col(Balance.allocation_id) == Allocation.id)
        .where(col(AllocationChange.id).in_(change_ids))
        .execution_options(populate_existing=True)
    )
    requests = {
        change.id: _Request(allocation, change.requested_by, change.seconds, ledger.account_of(balance))
        for change, allocation, balance in rows
    }
    return _contexts(session, requests, {})


def _contexts(
    session: Session, requests: Mapping[int, _Request], remarks: Mapping[int, Sequence[Remark]]
) -> Mapping[int, ReviewContext]:
    """The contexts of requests by their numbers; `remarks` are by the numbers of allocations."""
    asked = [request.allocation for request in requests.values()]
    projects = {allocation.project_id for allocation in asked}
    bounds, used, shared = tiers.current(session), usage.of_ended(session, utcnow()), shares.of_projects(session)
    use, available = _use(session, projects), _available(session, asked)
    askers = {
        number: Asker(request.allocation.project_id, request.requested_by) for number, request in requests.items()
    }
    sums = period_sums.of_askers(session, set(askers.values()))
    beside = {number: sums[asker] for number, asker in askers.items()}
    counted = {pool.unit for pool in pools.every(session)}
    return {
        number: ReviewContext(
            **use[request.allocation.project_id]._asdict(),
            available=available[request.allocation.id],
            reviewers=2
            if size_of(request.account, request.seconds, beside[number].seconds) > bounds.one_reviewer
            else 1,
            halves=bool(request.seconds) and beside[number].seconds + request.seconds > bounds.halves,
            recent=beside[number].project,
            with_this=beside[number].project + request.seconds,
            one_reviewer=bounds.one_reviewer,
            days=bounds.days,
            standing=_standing(used, shared, request.allocation.project_id),
            units=counted,
            remarks=remarks.get(request.allocation.id, []),
            person=None if beside[number].person is None else beside[number],
        )
        for number, request in requests.items()
    }


def _standing(used: Mapping[int, float], shared: Mapping[int, float], project_id: int) -> Standing:
    """A project's standing among all that have used compute."""
    return fairshare.standings(used, fairshare.among({project_id, *used}, shared))[project_id]


def _use(session: Session, project_ids: Collection[int]) -> Mapping[int, _Use]:
    """What each project was granted so far and has used of it."""
    rows = session.execute(
        select(Allocation.project_id, Pool.gpu_type, func.count())
        .add_columns(func.sum(col(Balance.spent)), func.sum(col(Balance.reserved)))
        .join(Balance, col(Balance.allocation_id) == Allocation.id)
        .join(Pool, col(Pool.id) == Allocation.pool_id)
        .where(col(Allocation.project_id).in_(project_ids))
        .group_by(col(Allocation.project_id), col(Pool.gpu_type))
    )
    found = dict.fromkeys(project_ids, _Use(0, {}, {}))
    for project_id, gpu_type, count, spent, reserved in rows:
        use = found[project_id]
        found[project_id] = _Use(
            use.grants + count,
            units.plus(use.spent, Unit.of(gpu_type), spent),
            units.plus(use.reserved, Unit.of(gpu_type), reserved),
        )
    return found


def _available(session: Session, asked: Sequence[Allocation]) -> Mapping[int, int]:
    """The most that each request can be given now: a change of an allocation draws on the same grant again."""
    largest = pools.largest_by_pool(session)
    rows = session.execute(
        select(Grant.id, GRANT_LEFT).where(
            col(Grant.id).in_({allocation.grant_id for allocation in asked if allocation.grant_id is not None})
        )
    )
    left = dict(rows.all())
    return {
        allocation.id: largest.get(allocation.pool_id, 0) if allocation.grant_id is None else left[allocation.grant_id]
        for allocation in asked
    }


def _remarks(session: Session, asked: Sequence[Allocation]) -> Mapping[int, Sequence[Remark]]:
    """The questions and answers about each request, the oldest first, without redacted ones."""
    streams = {record.project_stream(allocation.project_id) for allocation in asked}
    bodies = session.execute(
        select(Entry.kind, Payload.body)
        .join(Payload, col(Payload.entry_id) == Entry.id)
        .where(col(Entry.kind).in_(("allocation.asked", "allocation.answered")), col(Entry.stream).in_(streams))
        .order_by(col(Entry.number))
    )
    found = defaultdict[int, list[Remark]](list)
    for kind, body in bodies:
        if body is not None:
            payload = json.loads(body)
            remark = Remark(payload["by"]["name"], payload["why"], kind == "allocation.asked")
            found[payload["allocation"]].append(remark)
    return found
