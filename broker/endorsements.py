"""Endorsements: of a decision that needs two reviewers, the first one's consent."""

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, Session, mapped_column

from broker.tiers import Tiers
from projects.errors import ConflictError
from projects.people import Person
from projects.pipeline import Membership


class Endorsable:
    """The columns of what can be endorsed: by whom, and how many GPU-seconds they would grant."""

    endorsed_by: Mapped[int | None] = mapped_column(ForeignKey("people.id"))
    endorsed_seconds: Mapped[int | None]


def endorse(
    session: Session,
    request: Endorsable,
    project_id: int,
    reviewer: Person,
    seconds: int,
    *,
    size: int,
    tiers: Tiers,
) -> bool:
    """Whether a reviewer's consent to `seconds` is only the first of two; a decision of `size` may do with one.

    Raises ConflictError where the reviewer has given the first one. That of somebody who has joined the project since
    no longer counts. The request's row must be locked.
    """
    if request.endorsed_by is not None and session.get(Membership, (project_id, request.endorsed_by)) is not None:
        request.endorsed_by = request.endorsed_seconds = None
    first = request.endorsed_by is None
    if request.endorsed_by == reviewer.id:
        raise ConflictError("You have endorsed this request already; it needs the consent of another reviewer.")
    needed = first and size > tiers.one_reviewer
    if needed:
        request.endorsed_by, request.endorsed_seconds = reviewer.id, seconds
    session.flush()
    return needed
