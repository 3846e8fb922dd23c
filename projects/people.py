"""People of the lab, and the actor: the person who acts now, with the lab roles that they hold.

A sentence that Stoa composes and keeps refers to people by a mark that holds their id (`mark`); whoever shows the
sentence puts the present name in its place (`spelt`).
"""

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy import bindparam
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlmodel import Field, col, select

from projects import cleaning
from projects.db.columns import Base, foreign_key, row_id, timestamp, utcnow, words
from projects.errors import ForbiddenError

NAMELESS = "a former member"
"""The name of every person who was forgotten."""

_MARK = re.compile(r"\{person:([0-9]+)\}")


class Person(Base, table=True):
    """Somebody who has acted in the lab, known by their Discord id. `banned` is the reason for a ban, or None.

    `notify` is a `Notify`: what mentions them.
    """

    __tablename__ = "people"

    id: int = row_id()
    discord_id: str = Field(unique=True)
    name: str
    banned: str | None = words(default=None)
    notify: str = "mine"
    first_seen: datetime = timestamp(default=utcnow)


class FormerName(Base, table=True):
    """A name that a person had before the present one, kept until the person is forgotten."""

    __tablename__ = "former_names"

    person_id: int = foreign_key("people.id", primary_key=True)
    name: str = Field(primary_key=True)


class LabRole(StrEnum):
    """A role that the admins of the Discord server give, whatever the project."""

    REVIEWER = "reviewer"
    MODERATOR = "moderator"
    ADMIN = "admin"


class Notify(StrEnum):
    """What mentions a person: what concerns them, and the news of projects; `all` has those that they work on too."""

    ALL = "all"
    MINE = "mine"
    NONE = "none"


@dataclass(frozen=True)
class Actor:
    """The person who acts: their Discord id, display name, and the lab roles that they hold at this moment."""

    discord_id: int
    name: str
    roles: frozenset[LabRole] = frozenset()

    def __post_init__(self) -> None:
        """Clean the name, which anybody chooses as they like."""
        object.__setattr__(self, "name", cleaning.name(self.name) or f"member {self.discord_id}")


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
        _keep_name(session, person)
        person.name = actor.name
    return person


def _keep_name(session: Session, person: Person) -> None:
    """Add the person's name to their former ones, unless it is there already."""
    if person.name == NAMELESS or session.get(FormerName, (person.id, person.name)) is not None:
        return
    with contextlib.suppress(IntegrityError), session.begin_nested():  # another transaction may have just kept it
        session.add(FormerName(person_id=person.id, name=person.name))


def mark(person: Person) -> str:
    """What stands for the person in a sentence that is kept."""
    return f"{{person:{person.discord_id}}}"


def marked(session: Session, *sentences: str) -> Mapping[str, str]:
    """The present names of the people whose marks are in the sentences, by Discord id."""
    ids = {found for sentence in sentences for found in _MARK.findall(sentence)}
    if not ids:
        return {}
    rows = session.execute(select(Person.discord_id, Person.name).where(col(Person.discord_id).in_(ids)))
    return dict(rows.all())


def spelt(sentence: str, names: Mapping[str, str]) -> str:
    """The sentence with names in place of the marks."""
    return _MARK.sub(lambda found: names.get(found[1], NAMELESS), sentence)


def author(session: Session, actor: Actor | None) -> Person | None:
    """The person that an entry of the record names as its author: nobody for the operator, whose `actor` is None."""
    return None if actor is None else ensure(session, actor)


def find(session: Session, actor: Actor) -> Person | None:
    """The person who acts, or None at their first act; raises ForbiddenError where the person is banned."""
    person = known(session, actor.discord_id)
    if person is not None and person.banned is not None:
        raise ForbiddenError(f"You can read here, and do nothing else, since you are banned: {person.banned}")
    return person


def known(session: Session, discord_id: int) -> Person | None:
    """The person with this Discord id, banned or not; None where nobody with it has acted."""
    return session.scalars(_KNOWN, {"discord_id": str(discord_id)}).one_or_none()


_KNOWN = select(Person).where(Person.discord_id == bindparam("discord_id"))  # made once: every act asks this
