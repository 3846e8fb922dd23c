"""Endorsements: of a decision that needs two reviewers, the first one's consent."""

from sqlalchemy.orm import Session

from broker.allocations import tiers
from projects import people, projects
from projects.db.columns import Base, foreign_key, integer
from projects.errors import ConflictError
from projects.people import Actor, Person
from projects.projects import Project


class Endorsable(Base):
    """The columns of what can be endorsed: by whom, and how many GPU-seconds they would grant."""

    endorsed_by: int | None = foreign_key("people.id", default=None)
    endorsed_seconds: int | None = integer(default=None)


def check_second(session: Session, actor: Actor, request: Endorsable) -> None:
    """Raise ConflictError where the actor has given the first consent. Only reads: a form may be opened on it."""
    person = people.find(session, actor)
    if person is not None and request.endorsed_by == person.id:
        raise ConflictError("You have endorsed this request already; it needs the consent of another reviewer.")


def endorse(
    session: Session,
    request: Endorsable,
    project_id: int,
    reviewer: Person,
    seconds: int,
    *,
    size: int,
) -> bool:
    """Whether a reviewer's consent to `seconds` is only the first of two; a decision of `size` may do with one.

    Raises ConflictError where the reviewer has given the first one. That of somebody who has joined the project since
    no longer counts. The request's row must be locked.
    """
    first = None if request.endorsed_by is None else session.get_one(Person, request.endorsed_by)
    if first is not None and projects.works_on(session, first, session.get_one(Project, project_id)):
        request.endorsed_by = request.endorsed_seconds = None
    if request.endorsed_by == reviewer.id:
        raise ConflictError("You have endorsed this request already; it needs the consent of another reviewer.")
    needed = request.endorsed_by is None and size > tiers.current(session).one_reviewer
    if needed:
        request.endorsed_by, request.endorsed_seconds = reviewer.id, seconds
    session.flush()
    return needed
