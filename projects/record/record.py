"""The public record: append-only chains of numbered entries, one for each project and one for the lab.

An entry is appended in the transaction of the change that it reports. `record.hash_chain` has the formula of its hash.
The payload has a row of its own, so that it can be blanked while the chain still verifies.
"""

import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Index, Select, UniqueConstraint, bindparam, insert, update
from sqlalchemy.orm import Session
from sqlmodel import Field, col, select

from projects.db.columns import Base, foreign_key, integer, row_id, utcnow
from projects.people import Person
from projects.record.hash_chain import canonical, genesis_hash, hash_entry, hash_payload

LAB = "lab"

TOMBSTONES = frozenset({"record.redacted", "record.forgotten"})
"""The kinds of entries that report a redaction. They name nobody but the admin, and are never blanked themselves."""


class Stream(Base, table=True):
    """A chain of entries; `head` is the number of its newest entry, and `head_hash` the hash of that entry."""

    __tablename__ = "streams"

    key: str = Field(primary_key=True)
    head: int = integer(default=0)
    head_hash: str


class Entry(Base, table=True):
    """One link of a chain. Its payload says what happened."""

    __tablename__ = "entries"
    __table_args__ = (UniqueConstraint("stream", "number"),)

    id: int = row_id()
    stream: str = Field(foreign_key="streams.key")
    number: int = integer()
    kind: str = Field(index=True)
    payload_hash: str
    hash: str


class Payload(Base, table=True):
    """What an entry says: canonical JSON, and the salt that keeps a blanked payload from being guessed by its hash."""

    __tablename__ = "payloads"

    entry_id: int = foreign_key("entries.id", primary_key=True)
    salt: str | None = None
    body: str | None = None


class Authorship(Base, table=True):
    """Who made an entry, where somebody has acted; gone once the entry is blank.

    Quotas count a person's and a project's newest entries of a kind by its indexes, however long the record is.
    """

    __tablename__ = "authorships"
    __table_args__ = (
        Index("ix_authorships_person", "person_id", "kind", "entry_id"),
        Index("ix_authorships_stream", "stream", "kind", "entry_id"),
    )

    entry_id: int = foreign_key("entries.id", primary_key=True)
    person_id: int = foreign_key("people.id")
    stream: str = Field(foreign_key="streams.key")
    kind: str


# Made once, and run past the session: each act of anybody appends, and no session holds these rows as objects.
_NEXT = (
    update(Stream)
    .where(col(Stream.key) == bindparam("stream"))
    .values(head=Stream.head + 1)
    .returning(col(Stream.head), col(Stream.head_hash))
)
_ENTER = insert(Entry).returning(col(Entry.id))
_SAY, _SIGN = insert(Payload), insert(Authorship)
_LINK = update(Stream).where(col(Stream.key) == bindparam("stream")).values(head_hash=bindparam("hash"))


@dataclass(frozen=True)
class EntryView:
    """An entry with its payload, which is None where it was blanked."""

    id: int
    stream: str
    number: int
    kind: str
    hash: str
    payload: dict[str, Any] | None

    @property
    def project_id(self) -> int | None:
        """The id of the project to whose chain the entry belongs; None for the lab's chain."""
        return None if self.stream == LAB else int(self.stream.partition(":")[2])


def project_stream(project_id: int) -> str:
    """The key of a project's chain."""
    return f"project:{project_id}"


def open_stream(session: Session, key: str) -> None:
    """Begin a chain under its key."""
    session.add(Stream(key=key, head_hash=genesis_hash(key)))
    session.flush()


def append(session: Session, stream: str, kind: str, *, by: Person | None, why: str = "", **told: Any) -> EntryView:
    """Append an entry to a chain in the running transaction: who, what (`kind` and `told`), when and why.

    A transaction that appends to several chains takes them in the order of their keys, so that no two can deadlock.
    """
    session.flush()
    connection = session.connection()
    head = connection.execute(_NEXT, {"stream": stream}).one()
    payload = {
        "at": utcnow().isoformat(timespec="milliseconds"),
        "by": None if by is None else {"id": by.discord_id, "name": by.name},
        "why": why,
        **told,
    }
    body = canonical(payload)
    salt = secrets.token_hex(16)
    payload_hash = hash_payload(salt, body)
    entry_hash = hash_entry(head.head_hash, head.head, kind, payload_hash)
    link = {"stream": stream, "number": head.head, "kind": kind, "payload_hash": payload_hash, "hash": entry_hash}
    entry_id = connection.execute(_ENTER, link).scalar_one()
    connection.execute(_SAY, {"entry_id": entry_id, "salt": salt, "body": body})
    if by is not None:
        connection.execute(_SIGN, {"entry_id": entry_id, "person_id": by.id, "stream": stream, "kind": kind})
    connection.execute(_LINK, {"stream": stream, "hash": entry_hash})
    return EntryView(entry_id, stream, head.head, kind, entry_hash, payload)


def load(session: Session, entry_id: int) -> EntryView | None:
    """The entry with this id, whichever its chain; None where there is none."""
    told = select(Entry, col(Payload.body)).join(Payload, col(Payload.entry_id) == Entry.id).where(Entry.id == entry_id)
    row = session.execute(told).one_or_none()
    return None if row is None else _told(*row)


def _chain(stream: str, which: ColumnElement[bool]) -> Select[Entry, str | None]:
    """The query for entries of a chain and what they say, the oldest first."""
    told = select(Entry, col(Payload.body)).join(Payload, col(Payload.entry_id) == Entry.id)
    return told.where(Entry.stream == stream, which).order_by(col(Entry.number))


def since(session: Session, stream: str, number: int, limit: int = 100) -> Sequence[EntryView]:
    """The first `limit` entries of a chain after `number`, the oldest first."""
    rows = session.execute(_chain(stream, col(Entry.number) > number).limit(limit))
    return [_told(entry, body) for entry, body in rows]


def numbered(session: Session, stream: str, numbers: Collection[int]) -> Sequence[EntryView]:
    """The entries of a chain with these numbers, the oldest first."""
    return [_told(entry, body) for entry, body in session.execute(_chain(stream, col(Entry.number).in_(numbers)))]


def blank(session: Session, stream: str, kind: str) -> Sequence[int]:
    """The numbers of the entries of a chain that are of this kind and were blanked."""
    numbers = select(Entry.number).join(Payload, col(Payload.entry_id) == Entry.id)
    return session.scalars(numbers.where(Entry.stream == stream, Entry.kind == kind, col(Payload.body).is_(None))).all()


def of_kinds(session: Session, stream: str, kinds: Collection[str]) -> Sequence[EntryView]:
    """The entries of a chain that are of one of these kinds, the oldest first."""
    return [_told(entry, body) for entry, body in session.execute(_chain(stream, col(Entry.kind).in_(kinds)))]


def newest(session: Session, stream: str, limit: int = 100) -> Sequence[EntryView]:
    """The last `limit` entries of a chain, the newest first."""
    rows = session.execute(
        select(Entry, col(Payload.body))
        .join(Payload, col(Payload.entry_id) == Entry.id)
        .where(Entry.stream == stream)
        .order_by(col(Entry.number).desc())
        .limit(limit)
    )
    return [_told(entry, body) for entry, body in rows]


def streams(session: Session) -> Mapping[str, int]:
    """The key of every chain with the number of its newest entry."""
    return {stream.key: stream.head for stream in session.scalars(select(Stream).order_by(col(Stream.key)))}


def _told(entry: Entry, body: str | None) -> EntryView:
    return EntryView(
        entry.id, entry.stream, entry.number, entry.kind, entry.hash, None if body is None else json.loads(body)
    )
