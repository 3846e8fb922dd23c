"""What mentions a person, as they have chosen (`Notify`), and who is mentioned by the news of a project."""

from sqlalchemy import ColumnElement, and_, or_
from sqlalchemy.orm import Session
from sqlmodel import col

from projects import people
from projects.people import NAMELESS, Actor, Notify, Person
from projects.projects import Membership, ProjectRole


def choose(session: Session, actor: Actor, notify: Notify) -> None:
    """Set what mentions the actor; raises ForbiddenError where they are banned. The record does not tell of it."""
    people.ensure(session, actor).notify = notify


def chosen(session: Session, actor: Actor) -> Notify:
    """What mentions the actor; raises ForbiddenError where they are banned."""
    person = people.find(session, actor)
    return Notify.MINE if person is None else Notify(person.notify)


def mentionable(person: Person) -> bool:
    """Whether what concerns a person mentions them: unless they want none of it, are banned or were forgotten."""
    return person.notify != Notify.NONE and person.banned is None and person.name != NAMELESS


def hears_news() -> ColumnElement[bool]:
    """Whether the news of a project mention somebody, in a query of `Membership` with its `Person`.

    They do of followers, and of those who work on the project where they want all.
    """
    return and_(
        or_(
            col(Person.notify) == Notify.ALL,
            and_(col(Person.notify) == Notify.MINE, col(Membership.role) == ProjectRole.FOLLOWER),
        ),
        col(Person.banned).is_(None),
        col(Person.name) != NAMELESS,
    )
