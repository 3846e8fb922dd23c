"""People, and who is acting: a person of the lab with the roles that the community has given them."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlmodel import Field, select

from projects.db.columns import Base, row_id, timestamp, utcnow, words
from projects.errors import ForbiddenError


class Person(Base, table=True):
    """Somebody who has done something here; known by their Discord id. `banned` says why, where they are."""

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
    """The person who acts, made at their first act; their name follows Discord's. Raises ForbiddenError."""
    person = find(session, actor)
    if person is None:
        try:
            with session.begin_nested():
                person = Person(discord_id=str(actor.discord_id), name=actor.name)
                session.add(person)
        except IntegrityError:  # another transaction has met the same person first
            person = session.scalars(select(Person).where(Person.discord_id == str(actor.discord_id))).one()
    if person.name != actor.name:
        person.name = actor.name
    return person


def find(session: Session, actor: Actor) -> Person | None:
    """The person who acts, if they have acted before; raises ForbiddenError where they are banned."""
    person = known(session, actor.discord_id)
    if person is not None and person.banned is not None:
        raise ForbiddenError(f"You can read here, and do nothing else, since you are banned: {person.banned}")
    return person


def known(session: Session, discord_id: int) -> Person | None:
    """The person with a Discord id, who may be banned."""
    return session.scalars(select(Person).where(Person.discord_id == str(discord_id))).one_or_none()
