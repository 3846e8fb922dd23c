"""Allocations: GPU time that a project asks for and that a reviewer grants, in full or in part, with a reason."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy import Index
from sqlalchemy.orm import Session, aliased
from sqlmodel import Field, col, select
from sqlmodel.sql.expression import SelectOfScalar

from broker.allocations import ledger
from broker.allocations.endorsements import Endorsable
from broker.allocations.ledger import Account, Balance
from broker.allocations.pools import Grant, Pool
from broker.allocations.units import Unit
from projects.db import transition
from projects.db.columns import foreign_key, integer, row_id, timestamp, words
from projects.errors import ConflictError, NotFoundError
from projects.people import Person
from projects.projects import Project
from projects.record import record


class AllocationState(StrEnum):
    """The states of an allocation, from the request on."""

    REQUESTED = "requested"
    APPROVED = "approved"
    DECLINED = "declined"
    WITHDRAWN = "withdrawn"
    EXHAUSTED = "exhausted"
    EXPIRED = "expired"
    REVOKED = "revoked"
    RENEWED = "renewed"


_CLOSED = frozenset({AllocationState.EXPIRED, AllocationState.REVOKED, AllocationState.RENEWED})
TRANSITIONS: dict[AllocationState, frozenset[AllocationState]] = {
    AllocationState.REQUESTED: frozenset(
        {AllocationState.APPROVED, AllocationState.DECLINED, AllocationState.WITHDRAWN}
    ),
    AllocationState.APPROVED: _CLOSED | {AllocationState.EXHAUSTED},
    AllocationState.EXHAUSTED: _CLOSED | {AllocationState.APPROVED},  # a top-up, a refund or the second half
    AllocationState.DECLINED: frozenset(),
    AllocationState.WITHDRAWN: frozenset(),
    AllocationState.EXPIRED: frozenset(),
    AllocationState.REVOKED: frozenset(),
    AllocationState.RENEWED: frozenset(),
}
LIVE = (AllocationState.APPROVED, AllocationState.EXHAUSTED)


class Allocation(Endorsable, table=True):
    """A request for GPU-seconds of a pool, with the decision on it.

    Policy grants a project one starter allocation: `starter_of` is then the project. `half_until` is the deadline for
    releasing a committed second half.
    """

    __tablename__ = "allocations"
    __table_args__ = (Index("uq_allocations_starter_of", "starter_of", unique=True),)

    id: int = row_id()
    request_id: str = Field(unique=True)
    project_id: int = foreign_key("projects.id")
    pool_id: int = foreign_key("pools.id")
    grant_id: int | None = foreign_key("grants.id", default=None)
    seconds: int = integer()
    until: datetime = timestamp()
    justification: str = words()
    state: str = AllocationState.REQUESTED
    decided_by: int | None = foreign_key("people.id", default=None)
    reason: str = words(default="")
    starter_of: int | None = integer(default=None)
    renews_id: int | None = foreign_key("allocations.id", default=None)
    decided_at: datetime | None = timestamp(default=None)
    half_until: datetime | None = timestamp(default=None)
    report: str = words(default="")


@dataclass(frozen=True)
class AllocationView:
    """An allocation as cards show it; amounts are GPU-seconds."""

    id: int
    project_id: int
    project: str
    pool: str
    gpu_type: str
    requested_by: str
    seconds: int
    until: datetime
    justification: str
    state: AllocationState
    decided_by: str | None
    reason: str
    sponsor: str | None
    account: Account
    starter: bool = False
    renews: int | None = None
    endorsed_by: str | None = None
    half_until: datetime | None = None
    report: str = ""

    @property
    def unit(self) -> Unit:
        """What its pool counts."""
        return Unit.of(self.gpu_type)

    @property
    def size(self) -> int:
        """GPU-seconds: those asked for while the request is open, then those granted, and at the end those spent.

        A second half that is still to be released counts as granted.
        """
        if self.state in {AllocationState.REQUESTED, AllocationState.DECLINED, AllocationState.WITHDRAWN}:
            return self.seconds
        return self.account.granted + self.account.committed

    @property
    def standing(self) -> str:
        """The state in one word."""
        return "ended" if self.state == AllocationState.EXPIRED else str(self.state)


def close(session: Session, allocation: Allocation, to: AllocationState, **values: object) -> int:
    """End a live allocation; returns the GPU-seconds that go back to the grant: those neither spent nor reserved."""
    move(session, allocation, to, half_until=None, **values)
    return ledger.give_back(session, allocation.id, f"it was {to}") + ledger.lapse_half(session, allocation.id)


def move(session: Session, allocation: Allocation, to: AllocationState, **values: object) -> None:
    """Bring an allocation to another state by the table of transitions; raises ConflictError."""
    transition.move(session, allocation, to, TRANSITIONS, values, name=f"Allocation {allocation.id}")


def check_move(allocation: Allocation, to: AllocationState) -> None:
    """Raise ConflictError unless the table of transitions leads from the allocation's state to `to`."""
    transition.check(allocation, to, TRANSITIONS, name=f"Allocation {allocation.id}")


def tell(
    session: Session, allocation: Allocation, kind: str, *, by: Person | None = None, why: str = "", **told: object
) -> None:
    """Append an entry about the allocation to its project's record."""
    stream = record.project_stream(allocation.project_id)
    record.append(session, stream, kind, by=by, why=why, allocation=allocation.id, **told)


def require_live(allocation: Allocation) -> None:
    """Raise ConflictError unless the allocation is approved or exhausted: an exhausted one has not ended."""
    if allocation.state not in LIVE:
        raise ConflictError(f"Allocation {allocation.id} is {allocation.state}; this needs an approved one.")


def load(session: Session, allocation_id: int) -> Allocation:
    """The allocation's row; raises NotFoundError."""
    allocation = session.get(Allocation, allocation_id)
    if allocation is None:
        raise NotFoundError(f"There is no allocation {allocation_id}; /allocation list shows those of a project.")
    return allocation


def lock(session: Session, allocation_id: int) -> Allocation:
    """The allocation's row, locked so that two decisions on an allocation take turns; raises NotFoundError."""
    load(session, allocation_id)
    return session.get_one(Allocation, allocation_id, with_for_update={"key_share": True}, populate_existing=True)


def view(session: Session, allocation_id: int) -> AllocationView:
    """The allocation as cards show it; raises NotFoundError."""
    load(session, allocation_id)
    return _views(session, select(Allocation.id).where(Allocation.id == allocation_id))[0]


def of_project(session: Session, project_id: int) -> Sequence[AllocationView]:
    """The project's allocations, the newest first."""
    return _views(session, select(Allocation.id).where(Allocation.project_id == project_id))


def of_lead(session: Session, discord_id: int, *, limit: int = 25) -> Sequence[AllocationView]:
    """The newest allocations of all projects led by the person with this Discord id, the newest first."""
    led = (
        select(Allocation.id)
        .join(Project, col(Project.id) == Allocation.project_id)
        .join(Person, col(Person.id) == Project.lead_id)
        .where(Person.discord_id == str(discord_id))
        .order_by(col(Allocation.id).desc())
        .limit(limit)
    )
    return _views(session, led)


def _views(session: Session, ids: SelectOfScalar[int]) -> Sequence[AllocationView]:
    """The allocations whose ids a query selects, as cards show them, the newest first; one query reads them all."""
    requester, decider, endorser = aliased(Person), aliased(Person), aliased(Person)
    rows = session.execute(
        select(Allocation)
        .add_columns(col(Project.title), col(Pool.name), col(Pool.gpu_type), col(Grant.sponsor), Balance)
        .add_columns(col(requester.name), col(decider.name), col(endorser.name))
        .join(Project, col(Project.id) == Allocation.project_id)
        .join(Pool, col(Pool.id) == Allocation.pool_id)
        .join(requester, col(requester.id) == Allocation.requested_by)
        .outerjoin(Grant, col(Grant.id) == Allocation.grant_id)
        .outerjoin(Balance, col(Balance.allocation_id) == Allocation.id)
        .outerjoin(decider, col(decider.id) == Allocation.decided_by)
        .outerjoin(endorser, col(endorser.id) == Allocation.endorsed_by)
        .where(col(Allocation.id).in_(ids))
        .order_by(col(Allocation.id).desc())
        .execution_options(populate_existing=True)
    )
    return [
        AllocationView(
            id=allocation.id,
            project_id=allocation.project_id,
            project=project,
            pool=pool,
            gpu_type=gpu_type,
            requested_by=asked_by,
            seconds=allocation.seconds,
            until=allocation.until,
            justification=allocation.justification,
            state=AllocationState(allocation.state),
            decided_by=decided_by,
            reason=allocation.reason,
            sponsor=sponsor,
            account=ledger.account_of(balance),
            starter=allocation.starter_of is not None,
            renews=allocation.renews_id,
            endorsed_by=endorsed_by,
            half_until=allocation.half_until,
            report=allocation.report,
        )
        for allocation, project, pool, gpu_type, sponsor, balance, asked_by, decided_by, endorsed_by in rows
    ]
