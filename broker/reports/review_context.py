"""What a reviewer should know before a decision on GPU time: what the project has used, what is left, who decides."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func
from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker.allocations import allocations, ledger, pools, tiers
from broker.allocations.allocations import Allocation
from broker.allocations.ledger import Balance
from broker.allocations.pools import Grant
from broker.reviews import changes
from broker.scheduling import fairshare, usage
from broker.scheduling.fairshare import Standing
from projects.db.columns import utcnow
from projects.record import record
from projects.record.record import Entry, Payload


@dataclass(frozen=True)
class Remark:
    """What a reviewer asked about a request, or what was answered."""

    by: str
    said: str
    question: bool


@dataclass(frozen=True)
class Dossier:
    """Amounts are in GPU-seconds.

    `grants` counts the project's allocations so far, of which it has `spent` and `reserved` so much; `available` is
    the most that can be granted, out of one grant; a full consent takes `reviewers`, and comes in `halves` or whole.
    """

    grants: int
    spent: int
    reserved: int
    available: int
    reviewers: int
    halves: bool
    standing: Standing
    remarks: Sequence[Remark] = ()


def of_request(session: Session, allocation_id: int) -> Dossier:
    """Of a request for an allocation; raises NotFoundError."""
    allocation = allocations.load(session, allocation_id)
    remarks = _remarks(session, allocation)
    return _of(session, allocation, allocation.seconds, allocation.seconds, remarks)


def of_change(session: Session, change_id: int) -> Dossier:
    """Of a request for a change; raises NotFoundError."""
    change = changes.load(session, change_id)
    account = ledger.account(session, change.allocation_id)
    size = account.granted + account.committed + change.seconds if change.seconds else 0
    return _of(session, allocations.load(session, change.allocation_id), change.seconds, size)


def _of(session: Session, allocation: Allocation, seconds: int, size: int, remarks: Sequence[Remark] = ()) -> Dossier:
    project_id, bounds = allocation.project_id, tiers.current(session)
    grants, spent, reserved = session.execute(
        select(
            func.count(),
            func.coalesce(func.sum(col(Balance.spent)), 0),
            func.coalesce(func.sum(col(Balance.reserved)), 0),
        )
        .select_from(Balance)
        .join(Allocation, col(Allocation.id) == Balance.allocation_id)
        .where(Allocation.project_id == project_id)
    ).one()
    used = usage.of_ended(session, utcnow())
    standing = fairshare.standings(used, dict.fromkeys({project_id, *used}, 1.0))[project_id]
    return Dossier(
        grants=grants,
        spent=int(spent),
        reserved=int(reserved),
        available=_available(session, allocation),
        reviewers=2 if size > bounds.one_reviewer else 1,
        halves=seconds > bounds.halves,
        standing=standing,
        remarks=remarks,
    )


def _available(session: Session, allocation: Allocation) -> int:
    """What a request can be given at most, or a change of an allocation that draws on its grant already."""
    if allocation.grant_id is None:
        return pools.largest(session, allocation.pool_id)
    grant = session.get_one(Grant, allocation.grant_id, populate_existing=True)
    return grant.seconds - grant.drawn - grant.committed


def _remarks(session: Session, allocation: Allocation) -> Sequence[Remark]:
    """What was asked and answered about the request, the oldest first, without what was blanked."""
    bodies = session.execute(
        select(Entry.kind, col(Payload.body))
        .join(Payload, col(Payload.entry_id) == Entry.id)
        .where(
            col(Entry.kind).in_(("allocation.asked", "allocation.answered")),
            Entry.stream == record.project_stream(allocation.project_id),
        )
        .order_by(col(Entry.number))
    )
    told = [(kind, json.loads(body)) for kind, body in bodies if body is not None]
    return [
        Remark(payload["by"]["name"], payload["why"], kind == "allocation.asked")
        for kind, payload in told
        if payload["allocation"] == allocation.id
    ]
