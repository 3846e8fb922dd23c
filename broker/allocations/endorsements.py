"""Endorsements: the first of the two consents that a large request needs.

Both reviewers must be able to decide when the second one does. Whether the first one is banned or has been in the
project, the database knows; whether they still are a reviewer, only the server where the role is given.
"""

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy.orm import Session

from broker.allocations import tiers
from projects import people, projects
from projects.db.columns import Base, foreign_key, integer, timestamp, utcnow
from projects.errors import ConflictError
from projects.people import Actor, LabRole, Person


class Endorsable(Base):
    """The columns of a request that can be endorsed: the endorsing reviewer, and the GPU-seconds consented to."""

    requested_by: int = foreign_key("people.id")
    created_at: datetime = timestamp(default=utcnow)
    endorsed_by: int | None = foreign_key("people.id", default=None)
    endorsed_seconds: int | None = integer(default=None)


RolesNow = Mapping[str, frozenset[LabRole]]
"""The lab roles that people hold at this moment, by their Discord ids, as far as they were asked for."""


def endorser(session: Session, request: Endorsable) -> str | None:
    """The Discord id of who has given the first consent, whose roles the second one depends on; None without one."""
    return None if request.endorsed_by is None else session.get_one(Person, request.endorsed_by).discord_id


def check_second(session: Session, actor: Actor, request: Endorsable) -> None:
    """Raise ConflictError if the actor has given the first consent already. Only reads."""
    person = people.find(session, actor)
    if person is not None and request.endorsed_by == person.id:
        raise ConflictError("You have already endorsed this request; another reviewer must agree.")


def endorse(
    session: Session,
    request: Endorsable,
    project_id: int,
    reviewer: Person,
    seconds: int,
    *,
    size: int,
    roles_now: RolesNow | None = None,
) -> bool:
    """Store a reviewer's consent to `seconds` if it is the first of two; returns whether it is.

    `size`, in GPU-seconds, decides how many consents are needed. An endorsement lapses once its reviewer is banned, has
    been in the project since the request, or no longer is a reviewer by `roles_now`; an endorser who is not in
    `roles_now` is taken for a reviewer still. Raises ConflictError if the same reviewer consents twice. The caller must
    hold the locks on the project's row, since its grants add up to `size`, and on the request's.
    """
    first = None if request.endorsed_by is None else session.get_one(Person, request.endorsed_by)
    if first is not None and (
        first.banned is not None
        or projects.was_in(session, first, project_id, since=request.created_at)
        or LabRole.REVIEWER not in (roles_now or {}).get(first.discord_id, {LabRole.REVIEWER})
    ):
        request.endorsed_by = request.endorsed_seconds = None
    if request.endorsed_by == reviewer.id:
        raise ConflictError("You have already endorsed this request; another reviewer must agree.")
    needed = request.endorsed_by is None and size > tiers.current(session).one_reviewer
    if needed:
        request.endorsed_by, request.endorsed_seconds = reviewer.id, seconds
    session.flush()
    return needed
