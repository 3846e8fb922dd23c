"""What one person may ask for at most, and the ban list: who is on it may read, and do nothing else."""

import json
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy import column, func, table
from sqlalchemy.orm import Session
from sqlmodel import col, select

from projects import people, policies, rights, text
from projects.db.columns import utcnow
from projects.errors import ConflictError, NotFoundError
from projects.people import Actor, Person
from projects.record import record
from projects.record.record import Entry, Payload
from projects.rights import Act

DAY = timedelta(days=1)

# By their names alone: the pipeline asks here, and so cannot be asked.
_projects = table("projects", column("lead_id"), column("stage"))
_UNBEGUN = ("proposed", "recruiting", "scoped")


class Kind(StrEnum):
    """What is counted."""

    PROPOSAL = "proposal"
    REQUEST = "request"
    LAUNCH = "launch"


# Each by the entries that the record has of it.
_ENTRIES = {
    Kind.REQUEST: ("allocation.requested", "allocation.change_requested"),
    Kind.LAUNCH: ("run.queued", "run.forked"),
}


def check(session: Session, actor: Actor, kind: Kind) -> None:
    """Raise ForbiddenError where the actor is banned, and ConflictError where they have asked for enough."""
    person = people.find(session, actor)
    if person is None:
        return
    # The row is held, so that two requests at the same moment cannot both be the last one.
    session.refresh(person, with_for_update={"key_share": True})
    limits = policies.current(session)
    if kind is Kind.PROPOSAL:
        led = (_projects.c.lead_id == person.id) & _projects.c.stage.in_(_UNBEGUN)
        unbegun = session.scalar(select(func.count()).select_from(_projects).where(led)) or 0
        if unbegun >= limits.most_open_proposals:
            raise ConflictError(
                f"{unbegun} of your proposals are not active yet, and one person may have "
                f"{limits.most_open_proposals} of them open; scope one, or complete it as abandoned."
            )
        return
    most, what = {
        Kind.REQUEST: (limits.most_requests_a_day, "requests for compute"),
        Kind.LAUNCH: (limits.most_launches_a_day, "launches"),
    }[kind]
    begun = _nth_newest(session, person, kind, most)
    if begun is not None and begun > utcnow() - DAY:
        again = begun + DAY
        raise ConflictError(
            f"One person may make {most} {what} a day; the next one can be at {again:%Y-%m-%d %H:%M} UTC."
        )


def ban(session: Session, actor: Actor | None, who: Actor, reason: str) -> None:
    """Let somebody do nothing but read from now on, in public; `actor` None is the operator.

    Raises ForbiddenError for all but admins, and ConflictError.
    """
    rights.require_admin(actor, Act.BAN)
    because = text.prose("The reason", reason, most=text.USUAL)
    if actor is not None and actor.discord_id == who.discord_id:
        raise ConflictError("Nobody can ban themselves.")
    by = None if actor is None else people.ensure(session, actor)
    person = people.known(session, who.discord_id) or people.ensure(session, who)
    if person.banned is not None:
        raise ConflictError(f"{person.name} is banned already.")
    person.banned = because
    session.flush()
    record.append(session, record.LAB, "person.banned", by=by, why=because, person=_named(person))


def unban(session: Session, actor: Actor | None, discord_id: int, reason: str) -> None:
    """Let somebody take part again, in public; `actor` None is the operator.

    Raises ForbiddenError for all but admins, NotFoundError and ConflictError.
    """
    rights.require_admin(actor, Act.BAN)
    because = text.prose("The reason", reason, most=text.USUAL)
    person = people.known(session, discord_id)
    if person is None:
        raise NotFoundError(f"Nobody with the Discord id {discord_id} has done anything here.")
    if person.banned is None:
        raise ConflictError(f"{person.name} is not banned.")
    by = None if actor is None else people.ensure(session, actor)
    person.banned = None
    session.flush()
    record.append(session, record.LAB, "person.unbanned", by=by, why=because, person=_named(person))


def _named(person: Person) -> dict[str, str]:
    return {"id": person.discord_id, "name": person.name}


def _nth_newest(session: Session, person: Person, kind: Kind, number: int) -> datetime | None:
    """When the person did something for the last time but `number` - 1; None where they have not done it so often."""
    by = record.canonical({"by": {"id": person.discord_id}})[1:-2] + ","
    body = session.scalars(
        select(col(Payload.body))
        .join(Entry, col(Entry.id) == Payload.entry_id)
        .where(col(Entry.kind).in_(_ENTRIES[kind]), col(Payload.body).contains(by, autoescape=True))
        .order_by(col(Entry.id).desc())
        .offset(number - 1)
        .limit(1)
    ).one_or_none()
    return None if body is None else datetime.fromisoformat(json.loads(body)["at"])
