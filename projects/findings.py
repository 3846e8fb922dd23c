"""Findings: messages of a conversation that a member of a project has put on its record, each message once."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlmodel import Field, col, select

from projects import people, projects, quotas, rights, text
from projects.db.columns import Base, foreign_key, integer
from projects.errors import ConflictError, InvalidError
from projects.people import Actor
from projects.projects import Membership, Project, ProjectRole
from projects.quotas import QuotaKind
from projects.record import record
from projects.rights import Act

LONGEST = 4000


class Finding(Base, table=True):
    """A message that has become entry `number` of a project's record."""

    __tablename__ = "findings"

    message_id: str = Field(primary_key=True)
    project_id: int = foreign_key("projects.id")
    number: int = integer()


@dataclass(frozen=True)
class Message:
    """A message on Discord: its author, text, time and address."""

    message_id: int
    author: Actor
    text: str
    at: datetime
    link: str


@dataclass(frozen=True)
class RecordedMessage:
    """The project and the entry's number of a message on record; `new` says that it was put there just now."""

    project_id: int
    number: int
    new: bool


def put_on_record(session: Session, actor: Actor, project_id: int, said: Message) -> RecordedMessage:
    """Make a message an entry of the project's record. A message on record already keeps its entry, which is returned.

    Raises NotFoundError, ForbiddenError unless the actor works on the project, InvalidError for a message without words
    or without an address, and ConflictError where another transaction puts it on record at this moment.
    """
    project = projects.lock(session, project_id)
    person = rights.require(session, actor, project, Act.PUT_ON_RECORD)
    earlier = find(session, said.message_id)
    if earlier is not None:
        return earlier
    words = text.cleaned(said.text)
    if not words:
        raise InvalidError("This message has no words to put on record; write in one what it shows.")
    if not re.fullmatch(r"https://[\w.-]+(/[\w@.-]+)*", said.link, re.ASCII):
        raise InvalidError("This message has no address that the record could name.")
    if len(words) > LONGEST:
        words = words[: LONGEST - 1] + "…"
    row = Finding(message_id=str(said.message_id), project_id=project_id, number=0)
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError:  # another transaction puts it on another project's record
        raise ConflictError("This message is just being put on record; look again.") from None
    quotas.check(session, actor, QuotaKind.UPDATE, project_id)
    told = record.append(
        session,
        record.project_stream(project_id),
        "project.finding",
        by=person,
        text=words,
        author={"id": str(said.author.discord_id), "name": said.author.name},
        said_at=said.at.astimezone(UTC).isoformat(timespec="seconds"),
        link=said.link,
    )
    row.number = told.number
    session.flush()
    return RecordedMessage(project_id, told.number, new=True)


def find(session: Session, message_id: int) -> RecordedMessage | None:
    """The project and the entry's number of a message, or None where it is not on record."""
    row = session.get(Finding, str(message_id))
    return None if row is None else RecordedMessage(row.project_id, row.number, new=False)


def projects_of(session: Session, actor: Actor) -> list[tuple[int, str]]:
    """Ids and titles of the projects that the actor works on, the newest first; raises ConflictError for none."""
    person = people.find(session, actor)
    rows = []
    if person is not None:
        works_on = (col(Membership.person_id) == person.id) & (col(Membership.role) == ProjectRole.CONTRIBUTOR)
        query = select(Project.id, Project.title).join(Membership, col(Membership.project_id) == Project.id)
        rows = [(row.id, row.title) for row in session.execute(query.where(works_on).order_by(col(Project.id).desc()))]
    if not rows:
        raise ConflictError("You work on no project yet, whose record it could be put on: /project list shows them.")
    return rows
