"""The public record: an append-only, numbered, hash-chained list of entries for each project, and one for the lab.

An entry is appended in the transaction of the change that it tells. Its hash is
`H(previous, number, kind, H(salt ‖ payload))`, with H = SHA-256; the payload lies in a row of its own, so that it can
be blanked while the chain still verifies.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import UniqueConstraint, update
from sqlalchemy.orm import Session
from sqlmodel import Field, col, select

from projects.db.columns import Base, foreign_key, integer, row_id, utcnow
from projects.people import Person
from projects.record.hash_chain import canonical, genesis_hash, hash_entry, hash_payload

LAB = "lab"


class Stream(Base, table=True):
    """A chain of entries. `head` is the number of its newest entry, `head_hash` that entry's hash."""

    __tablename__ = "streams"

    key: str = Field(primary_key=True)
    head: int = integer(default=0)
    head_hash: str


class Entry(Base, table=True):
    """One link of a chain; what happened is in its payload."""

    __tablename__ = "entries"
    __table_args__ = (UniqueConstraint("stream", "number"),)

    id: int = row_id()
    stream: str = Field(foreign_key="streams.key")
    number: int = integer()
    kind: str = Field(index=True)
    payload_hash: str
    hash: str


class Payload(Base, table=True):
    """What an entry tells, as canonical JSON, and the salt that keeps a blanked one from being guessed."""

    __tablename__ = "payloads"

    entry_id: int = foreign_key("entries.id", primary_key=True)
    salt: str | None = None
    body: str | None = None


@dataclass(frozen=True)
class Told:
    """An entry as its readers see it. `payload` is None where it was blanked."""

    id: int
    stream: str
    number: int
    kind: str
    hash: str
    payload: dict[str, Any] | None

    @property
    def project_id(self) -> int | None:
        """The project whose chain this is, or None for the lab's."""
        return None if self.stream == LAB else int(self.stream.partition(":")[2])


def project_stream(project_id: int) -> str:
    """The name of a project's chain."""
    return f"project:{project_id}"


def open_stream(session: Session, key: str) -> None:
    """Begin a chain; its first `previous` is the hash of its name, so that no chain can stand in for another."""
    session.add(Stream(key=key, head_hash=genesis_hash(key)))
    session.flush()


def append(session: Session, stream: str, kind: str, *, by: Person | None, why: str = "", **told: Any) -> Told:
    """Append an entry to `stream` in the running transaction: who, what (`kind` and `told`), when and why.

    A transaction that appends to several streams takes them in the order of their names, so that no two can deadlock.
    """
    head = session.execute(
        update(Stream)
        .where(col(Stream.key) == stream)
        .values(head=Stream.head + 1)
        .returning(col(Stream.head), col(Stream.head_hash))
    ).one()
    payload = {
        "at": utcnow().isoformat(timespec="milliseconds"),
        "by": None if by is None else {"id": by.discord_id, "name": by.name},
        "why": why,
        **told,
    }
    body = canonical(payload)
    salt = secrets.token_hex(16)
    payload_hash = hash_payload(salt, body)
    entry = Entry(
        stream=stream,
        number=head.head,
        kind=kind,
        payload_hash=payload_hash,
        hash=hash_entry(head.head_hash, head.head, kind, payload_hash),
    )
    session.add(entry)
    session.flush()
    session.add(Payload(entry_id=entry.id, salt=salt, body=body))
    session.execute(update(Stream).where(col(Stream.key) == stream).values(head_hash=entry.hash))
    return Told(entry.id, stream, entry.number, kind, entry.hash, payload)


def since(session: Session, stream: str, number: int, limit: int = 100) -> Sequence[Told]:
    """The entries of `stream` after `number`, oldest first."""
    rows = session.execute(
        select(Entry, col(Payload.body))
        .join(Payload, col(Payload.entry_id) == Entry.id)
        .where(Entry.stream == stream, Entry.number > number)
        .order_by(col(Entry.number))
        .limit(limit)
    )
    return [_told(entry, body) for entry, body in rows]


def newest(session: Session, stream: str, limit: int = 100) -> Sequence[Told]:
    """The last entries of `stream`, newest first."""
    rows = session.execute(
        select(Entry, col(Payload.body))
        .join(Payload, col(Payload.entry_id) == Entry.id)
        .where(Entry.stream == stream)
        .order_by(col(Entry.number).desc())
        .limit(limit)
    )
    return [_told(entry, body) for entry, body in rows]


def streams(session: Session) -> Mapping[str, int]:
    """Every chain with the number of its newest entry."""
    return {stream.key: stream.head for stream in session.scalars(select(Stream).order_by(col(Stream.key)))}


def _told(entry: Entry, body: str | None) -> Told:
    return Told(
        entry.id, entry.stream, entry.number, entry.kind, entry.hash, None if body is None else json.loads(body)
    )
