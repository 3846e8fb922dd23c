"""The table of requests for a change of a live allocation; `broker.reviews.changes` makes and decides them."""

from datetime import datetime
from enum import StrEnum

from sqlmodel import Field

from broker.allocations.endorsements import Endorsable
from projects.db.columns import foreign_key, integer, row_id, timestamp, words


class ChangeState(StrEnum):
    """The states of a request for a change."""

    REQUESTED = "requested"
    APPROVED = "approved"
    DECLINED = "declined"
    WITHDRAWN = "withdrawn"


DECIDED = frozenset(ChangeState) - {ChangeState.REQUESTED}
TRANSITIONS: dict[ChangeState, frozenset[ChangeState]] = {
    ChangeState.REQUESTED: DECIDED,
    **dict.fromkeys(DECIDED, frozenset()),
}


class AllocationChange(Endorsable, table=True):
    """A request for `seconds` more, or 0, and for another end `until`, or None, of an allocation."""

    __tablename__ = "allocation_changes"

    id: int = row_id()
    request_id: str = Field(unique=True)
    allocation_id: int = foreign_key("allocations.id", index=True)
    seconds: int = integer()
    until: datetime | None = timestamp(default=None)
    justification: str = words()
    state: str = ChangeState.REQUESTED
    decided_by: int | None = foreign_key("people.id", default=None)
    reason: str = words(default="")
