"""Redaction: payloads are blanked, a public tombstone says so, and the chain still verifies.

A person is forgotten by their id. What people wrote may name them too, or may only hold the same word: an admin decides
which of these texts are changed (`mentions.find`).
"""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import delete, func, update
from sqlalchemy.orm import Session
from sqlmodel import col, select

from projects import people, rights, text
from projects.db.columns import SENTENCE, TAGS, Base
from projects.errors import NotFoundError, OverError
from projects.people import Actor, FormerName, Person
from projects.record import mentions, record
from projects.record.record import Authorship, Entry, Payload, Stream
from projects.rights import Act

NAMELESS = people.NAMELESS
REMOVED = "[removed]"

# By table, the keys of a payload that hold ids of its rows; an entry that names no row is about its project.
ABOUT = {
    "runs": ("run", "sample", "evaluation", "study"),
    "allocations": ("allocation",),
    "allocation_changes": ("change",),
    "catalogue_entries": ("entry",),
}


Changed = Mapping[str, Sequence[int]]
"""The ids of the rows that lost a text, by table."""


def redact(
    session: Session,
    actor: Actor | None,
    stream: str,
    number: int,
    reason: str,
    *,
    follow: Callable[[Changed], object] = lambda _: None,
) -> None:
    """Blank the payload of an entry, and append a tombstone with the reason to its chain.

    The same texts are removed from the run, request or project that the entry is about, and so from cards.
    `follow` is called with what lost a text before the chain is locked, as it may lock rows. An `actor` of None is the
    operator. Raises ForbiddenError for all but admins, NotFoundError, and ConflictError for a tombstone and for
    an entry that is already blank.
    """
    rights.require_admin(actor, Act.REDACT)
    because = text.prose("The reason", reason, most=text.USUAL)
    entry = named(session, stream, number)
    told = session.scalars(select(col(Payload.body)).where(Payload.entry_id == entry.id)).one()
    follow(_unsay(session, stream, json.loads(told or "{}")))
    _lock(session, stream)
    if not _blank(session, [entry.id]):
        raise OverError(f"Entry {number} of “{stream}” is already blank.")
    by = people.author(session, actor)
    record.append(session, stream, "record.redacted", by=by, why=because, numbers=[number])


def named(session: Session, stream: str, number: int) -> Entry:
    """The entry with this number, which can be blanked; raises NotFoundError, and ConflictError for a tombstone."""
    entry = session.scalars(select(Entry).where(Entry.stream == stream, Entry.number == number)).one_or_none()
    if entry is None:
        raise NotFoundError(
            f"There is no entry {number} in the chain “{stream[:60]}”; `stoa record verify` lists them."
        )
    if entry.kind in record.TOMBSTONES:
        raise OverError(f"Entry {number} of “{stream}” is itself a tombstone and stays.")
    return entry


def happened(session: Session, stream: str) -> bool:
    """Whether a chain holds a tombstone."""
    told = select(Entry.id).where(Entry.stream == stream, col(Entry.kind).in_(record.TOMBSTONES)).limit(1)
    return session.scalars(told).first() is not None


def blank_saying(session: Session, stream: str, said: str) -> list[int]:
    """Blank every entry of a chain whose payload holds exactly this text; returns the numbers of these entries."""
    rows = session.execute(mentions.readable().where(col(Entry.stream) == stream)).all()
    found = [entry for entry, body in rows if said in mentions.strings(json.loads(body or "{}"))]
    _blank(session, [entry.id for entry in found])
    return [entry.number for entry in found]


def forget(
    session: Session,
    actor: Actor | None,
    discord_id: str,
    reason: str,
    texts: Collection[str] = (),
    *,
    follow: Callable[[], object] = lambda: None,
) -> int:
    """Remove a person's name, and blank every entry that refers to them by id.

    `texts` are the keys of those texts of `mentions.find` that an admin has chosen: of these, an entry is blanked, and
    in a text of a table the person's names are replaced. One that has changed since it was shown is left alone.
    `follow` is called before the person and the chains are locked, as it may lock rows. Returns the number of entries
    blanked. An `actor` of None is the operator. Raises ForbiddenError for all but admins, and NotFoundError.
    """
    rights.require_admin(actor, Act.REDACT)
    because = text.prose("The reason", reason, most=text.USUAL)
    person = mentions.person(session, discord_id)
    by = people.author(session, actor)
    pattern = mentions.pattern(session, discord_id, person)
    chosen = set(texts)
    # The rows that entries are about come before the record's, as in every other transaction.
    _unname(session, pattern, chosen)
    if person is not None:
        _unmark(session, person)
    follow()
    # Of two admins who forget the same person, the second waits here, and then finds no name and no entry.
    if person is not None:
        session.execute(select(Person.id).where(Person.id == person.id).with_for_update(key_share=True))
    found = [*mentions.entries_about(session, discord_id), *mentions.chosen_entries(session, pattern, chosen)]
    if person is not None:
        person.name, person.notify = NAMELESS, people.Notify.MINE
        session.execute(delete(FormerName).where(col(FormerName.person_id) == person.id))
        session.flush()
    return sum(_bury(session, stream, found, by, because) for stream in sorted({entry.stream for entry in found}))


def _unmark(session: Session, person: Person) -> None:
    """Replace the person's mark in the sentences that Stoa has composed, so that a later name does not show there."""
    mark = people.mark(person)
    for table in Base.metadata.sorted_tables:
        for column in [column for column in table.columns if column.info == SENTENCE]:
            unmarked = {column.name: func.replace(column, mark, NAMELESS)}
            session.execute(update(table).where(column.contains(mark, autoescape=True)).values(unmarked))


def _bury(session: Session, stream: str, found: Sequence[Entry], by: Person | None, why: str) -> int:
    """Blank those of the entries that are of this chain, and append their tombstone; returns how many were blanked."""
    _lock(session, stream)
    blanked = set(_blank(session, [entry.id for entry in found if entry.stream == stream]))
    numbers = sorted({entry.number for entry in found if entry.id in blanked})
    if numbers:
        record.append(session, stream, "record.forgotten", by=by, why=why, numbers=numbers)
    return len(numbers)


def _unname(session: Session, pattern: re.Pattern[str], chosen: Collection[str]) -> None:
    """Replace a person's names in the chosen texts of tables."""
    for place in mentions.in_tables(session, pattern):
        if place.key in chosen:
            row = place.table.c
            is_it = (row.id == place.row) & (row[place.column] == place.said)
            changed = {place.column: _nameless(pattern, place.said, tags=row[place.column].info == TAGS)}
            session.execute(update(place.table).where(is_it).values(changed))
    session.expire_all()


def _nameless(pattern: re.Pattern[str], said: str, *, tags: bool) -> str:
    """The text without the names; of `tags`, those that hold a part of one go, as a stand-in would be three tags."""
    if not tags:
        return pattern.sub(NAMELESS, said)
    return " ".join(re.sub(rf"\S*(?:{pattern.pattern})\S*", "", said, flags=pattern.flags).split())


def _lock(session: Session, stream: str) -> None:
    """Lock a chain until the transaction ends."""
    session.execute(select(col(Stream.key)).where(Stream.key == stream).with_for_update())


def _unsay(session: Session, stream: str, told: dict[str, Any]) -> Changed:
    """Remove the texts of an entry's payload from the rows that the entry is about; returns the ids of those that lost
    one, by table."""
    changed: dict[str, list[int]] = {}
    said = set(mentions.strings(told)) - {""}
    # The row of a sentence that names people has their marks where the payload has their names.
    names = {person["id"]: person["name"] for person in told.get("named", ())}
    about = {table: [told[key] for key in keys if told.get(key) is not None] for table, keys in ABOUT.items()}
    if not any(about.values()) and stream != record.LAB:
        about["projects"] = [int(stream.removeprefix("project:"))]
    for table in Base.metadata.sorted_tables:
        for column in mentions.words_of(table) if about.get(table.name) else ():
            rows = session.execute(select(table.c.id, column).where(table.c.id.in_(about[table.name])))
            these = [row_id for row_id, words in rows.all() if words and people.spelt(words, names) in said]
            left = "" if column.info == TAGS else REMOVED
            session.execute(update(table).where(table.c.id.in_(these)).values({column.name: left}))
            changed.setdefault(table.name, []).extend(these)
    session.expire_all()
    return changed


def _blank(session: Session, ids: Sequence[int]) -> Sequence[int]:
    """Blank body, salt and author of these entries, as a salt could tell the text; returns those not blank before."""
    blanked = session.scalars(
        update(Payload)
        .where(col(Payload.entry_id).in_(ids), col(Payload.body).is_not(None))
        .values(salt=None, body=None)
        .returning(col(Payload.entry_id))
    )
    found = blanked.all()
    session.execute(delete(Authorship).where(col(Authorship.entry_id).in_(found)))
    return found
