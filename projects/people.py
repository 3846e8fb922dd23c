"""People of the lab, and the actor: the person who acts now, with the lab roles that they hold."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlmodel import Field, select

from projects.db.columns import Base, row_id, timestamp, utcnow, words
from projects.errors import ForbiddenError


class Person(Base, table=True):
    """Somebody who has acted in the lab, known by their Discord id. `banned` is the reason for a ban, or None."""

    __tablename__ = "people"

    id: int = row_id()
    discord_id: str = Field(unique=True)
    name: str
    banned: str | None = words(default=None)
    first_seen: datetime = timestamp(default=utcnow)


class LabRole(StrEnum):
    """A role that the admins of the Discord server give, whatever the project."""

    REVIEWER = "reviewer"
    MODERATOR = "moderator"
    ADMIN = "admin"


@dataclass(frozen=True)
class Actor:
    """The person who acts: their Discord id, display name, and the lab roles that they hold at this moment."""

    discord_id: int
    name: str
    roles: frozenset[LabRole] = frozenset()


def ensure(session: Session, actor: Actor) -> Person:
    """The person who acts. Their first act makes their row, and their name follows Discord's.

    Raises ForbiddenError where the person is banned.
    """
    person = find(session, actor)
    if person is None:
        try:
            with session.begin_nested():
                person = Person(discord_id=str(actor.discord_id), name=actor.name)
                session.add(person)
        except IntegrityError:  # another transaction has just inserted the same person
            person = session.scalars(select(Person).where(Person.discord_id == str(actor.discord_id))).one()
    if person.name != actor.name:
        person.name = actor.name
    return person


def author(session: Session, actor: Actor | None) -> Person | None:
    """The person whom an entry of the record names as its author: nobody for the operator, whose `actor` is None."""
    return None if actor is None else ensure(session, actor)


def find(session: Session, actor: Actor) -> Person | None:
    """The person who acts, or None at their first act; raises ForbiddenError where the person is banned."""
    person = known(session, actor.discord_id)
    if person is not None and person.banned is not None:
        raise ForbiddenError(f"You can read here, and do nothing else, since you are banned: {person.banned}")
    return person


def known(session: Session, discord_id: int) -> Person | None:
    """The person with this Discord id, banned or not; None where nobody with it has acted."""
    return session.scalars(select(Person).where(Person.discord_id == str(discord_id))).one_or_none()
