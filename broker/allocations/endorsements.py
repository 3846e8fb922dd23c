"""Endorsements: the first of the two consents that a large request needs."""

from sqlalchemy.orm import Session

from broker.allocations import tiers
from projects import people, projects
from projects.db.columns import Base, foreign_key, integer
from projects.errors import ConflictError
from projects.people import Actor, Person
from projects.projects import Project


class Endorsable(Base):
    """The columns of a request that can be endorsed: the endorsing reviewer, and the GPU-seconds consented to."""

    endorsed_by: int | None = foreign_key("people.id", default=None)
    endorsed_seconds: int | None = integer(default=None)


def check_second(session: Session, actor: Actor, request: Endorsable) -> None:
    """Raise ConflictError if the actor has given the first consent already. Only reads."""
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
    """Store a reviewer's consent to `seconds` if it is the first of two; returns whether it is.

    `size`, in GPU-seconds, decides how many consents are needed. An endorsement lapses once its reviewer joins the
    project. Raises ConflictError if the same reviewer consents twice. The caller must hold the locks on the project's
    row, since its grants add up to `size`, and on the request's.
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
