"""Redaction: payloads and names are blanked, a public tombstone says so, and the chain still verifies."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Column, Select, Table, update
from sqlalchemy.orm import Session
from sqlmodel import col, select

from projects import people, rights, text
from projects.db.columns import WORDS, Base
from projects.errors import ConflictError, NotFoundError
from projects.people import Actor, Person
from projects.record import record
from projects.record.record import Entry, Payload, Stream
from projects.rights import Act

NAMELESS = "a former member"
REMOVED = "[removed]"

# By table, the keys of a payload that hold ids of its rows; an entry that names no row is about its project.
ABOUT = {
    "runs": ("run", "sample"),
    "allocations": ("allocation",),
    "allocation_changes": ("change",),
    "catalogue_entries": ("entry",),
}

# The tombstones: entries that report a redaction. They name nobody and are never blanked themselves.
TOMBSTONES = frozenset({"record.redacted", "record.forgotten"})


def redact(session: Session, actor: Actor | None, stream: str, number: int, reason: str) -> None:
    """Blank the payload of an entry, and append a tombstone with the reason to its chain.

    The same texts are removed from the run, request or project that the entry is about, and so from cards. An `actor`
    of None is the operator. Raises ForbiddenError for all but admins, NotFoundError, and ConflictError for a tombstone
    and for an entry that is blank already.
    """
    rights.require_admin(actor, Act.REDACT)
    because = text.prose("The reason", reason, most=text.USUAL)
    entry = named(session, stream, number)
    told = session.scalars(select(col(Payload.body)).where(Payload.entry_id == entry.id)).one()
    _unsay(session, stream, json.loads(told or "{}"))
    _lock(session, stream)
    if not _blank(session, [entry.id]):
        raise ConflictError(f"Entry {number} of “{stream}” is blank already.")
    by = people.author(session, actor)
    record.append(session, stream, "record.redacted", by=by, why=because, numbers=[number])


def named(session: Session, stream: str, number: int) -> Entry:
    """The entry with this number, which can be blanked; raises NotFoundError, and ConflictError for a tombstone."""
    entry = session.scalars(select(Entry).where(Entry.stream == stream, Entry.number == number)).one_or_none()
    if entry is None:
        raise NotFoundError(
            f"There is no entry {number} in the chain “{stream[:60]}”; `stoa record verify` lists them."
        )
    if entry.kind in TOMBSTONES:
        raise ConflictError(f"Entry {number} of “{stream}” is itself a tombstone and stays.")
    return entry


def happened(session: Session, stream: str) -> bool:
    """Whether a chain holds a tombstone."""
    told = select(Entry.id).where(Entry.stream == stream, col(Entry.kind).in_(TOMBSTONES)).limit(1)
    return session.scalars(told).first() is not None


def blank_saying(session: Session, stream: str, said: str) -> list[int]:
    """Blank every entry of a chain whose payload holds exactly this text; returns the numbers of these entries."""
    rows = session.execute(_told().where(col(Entry.stream) == stream)).all()
    found = [entry for entry, body in rows if said in _strings(json.loads(body or "{}"))]
    _blank(session, [entry.id for entry in found])
    return [entry.number for entry in found]


def forget(session: Session, actor: Actor | None, discord_id: str, reason: str) -> int:
    """Remove a person's name from every table, and blank every entry that holds their name or Discord id.

    Returns the number of entries blanked. An `actor` of None is the operator. Raises ForbiddenError for all but admins,
    and NotFoundError.
    """
    rights.require_admin(actor, Act.REDACT)
    because = text.prose("The reason", reason, most=text.USUAL)
    person = session.scalars(select(Person).where(Person.discord_id == discord_id)).one_or_none()
    if person is None:
        raise NotFoundError(f"Nobody with the Discord id {discord_id[:30]!r} has done anything here.")
    by = people.author(session, actor)
    # The rows that entries are about come before the record's, as in every other transaction.
    name = _standing_alone(person.name)
    _unname(session, name)
    found = _naming(session, person, name)
    person.name = NAMELESS
    session.flush()
    for stream in sorted(found):
        _blank(session, [entry.id for entry in found[stream]])
        numbers = [entry.number for entry in found[stream]]
        record.append(session, stream, "record.forgotten", by=by, why=because, numbers=numbers)
    return sum(map(len, found.values()))


def _naming(session: Session, person: Person, name: re.Pattern[str]) -> dict[str, list[Entry]]:
    """The entries whose payload holds a person's id or name, by stream; locks those streams in their order."""
    rows = session.execute(_told()).all()
    found: dict[str, list[Entry]] = {}
    for entry, body in rows:
        if any(said == person.discord_id or name.search(said) for said in _strings(json.loads(body or "{}"))):
            found.setdefault(entry.stream, []).append(entry)
    for stream in sorted(found):
        _lock(session, stream)
    return found


def _lock(session: Session, stream: str) -> None:
    """Lock a chain until the transaction ends."""
    session.execute(select(col(Stream.key)).where(Stream.key == stream).with_for_update())


def _told() -> Select[Entry, str | None]:
    """Every entry that can be blanked, with its payload."""
    told = select(Entry, col(Payload.body)).join(Payload, col(Payload.entry_id) == Entry.id)
    return told.where(col(Payload.body).is_not(None), col(Entry.kind).not_in(TOMBSTONES)).order_by(col(Entry.id))


def _standing_alone(name: str) -> re.Pattern[str]:
    """A pattern for a name as a word of its own; an empty name and that of forgotten people match nothing."""
    return re.compile(rf"(?<!\w){re.escape(name)}(?!\w)" if name not in ("", NAMELESS) else r"(?!)")


def _unname(session: Session, name: re.Pattern[str]) -> None:
    """Replace a name in every text that people wrote: titles, reasons such as “cancelled by Ada”, and the like."""
    for table in Base.metadata.sorted_tables:
        keys = list(table.primary_key.columns)
        for column in _words(table):
            written = table.select().with_only_columns(*keys, column).where(column.is_not(None))
            for *key, said in session.execute(written).all():
                if name.search(said):
                    is_it = [each == value for each, value in zip(keys, key, strict=True)]
                    session.execute(update(table).where(*is_it).values({column.name: name.sub(NAMELESS, said)}))
    session.expire_all()


def _unsay(session: Session, stream: str, told: dict[str, Any]) -> None:
    """Remove the texts of an entry's payload from the rows that the entry is about."""
    said = set(_strings(told)) - {""}
    about = {table: [told[key] for key in keys if told.get(key) is not None] for table, keys in ABOUT.items()}
    if not any(about.values()) and stream != record.LAB:
        about["projects"] = [int(stream.removeprefix("project:"))]
    for table in Base.metadata.sorted_tables:
        for column in _words(table) if about.get(table.name) else ():
            these = table.c.id.in_(about[table.name]) & column.in_(said)
            session.execute(update(table).where(these).values({column.name: REMOVED}))
    session.expire_all()


def _words(table: Table) -> list[Column[Any]]:
    """The columns of a table that hold texts of people."""
    return [column for column in table.columns if column.info == WORDS]


def _strings(value: object) -> Iterator[str]:
    """Every text in a payload, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _blank(session: Session, ids: Sequence[int]) -> int:
    """Blank body and salt of these entries and return how many had them: without the salt, no text can be guessed."""
    blanked = session.execute(
        update(Payload)
        .where(col(Payload.entry_id).in_(ids), col(Payload.body).is_not(None))
        .values(salt=None, body=None)
        .returning(col(Payload.entry_id))
    ).all()
    return len(blanked)
