"""Redaction: what must not be read any more is blanked, a tombstone says so in public, and the chain still verifies."""

import json
import re
from collections.abc import Iterator, Sequence

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from projects import people, record, rights, text
from projects.errors import ConflictError, NotFoundError
from projects.people import Actor, Person
from projects.record import Entry, Payload, Stream
from projects.rights import Act

NAMELESS = "a former member"

# What these entries tell is only that something was taken away, and they name nobody.
KINDS = frozenset({"record.redacted", "record.forgotten"})


def redact(
    session: Session, actor: Actor | None, stream: str, number: int, reason: str, *, admin_role_id: int = 0
) -> None:
    """Blank what an entry tells, and say in the same chain that and why it was done; `actor` None is the operator.

    Raises ForbiddenError for all but admins, NotFoundError and ConflictError.
    """
    rights.require_admin(actor, Act.REDACT, admin_role_id)
    because = text.prose("The reason", reason, most=1000)
    entry = session.scalars(select(Entry).where(Entry.stream == stream, Entry.number == number)).one_or_none()
    if entry is None:
        raise NotFoundError(
            f"There is no entry {number} in the chain “{stream[:60]}”; `stoa record verify` lists them."
        )
    if entry.kind in KINDS:
        raise ConflictError(f"Entry {number} of “{stream}” is itself a tombstone and stays.")
    if not _blank(session, [entry.id]):
        raise ConflictError(f"Entry {number} of “{stream}” is blank already.")
    by = None if actor is None else people.ensure(session, actor)
    record.append(session, stream, "record.redacted", by=by, why=because, numbers=[number])


def forget(session: Session, actor: Actor | None, discord_id: str, reason: str, *, admin_role_id: int = 0) -> int:
    """Blank a person's name, and every entry that holds it or their id; returns how many those are.

    Raises ForbiddenError for all but admins, and NotFoundError.
    """
    rights.require_admin(actor, Act.REDACT, admin_role_id)
    because = text.prose("The reason", reason, most=1000)
    person = session.scalars(select(Person).where(Person.discord_id == discord_id)).one_or_none()
    if person is None:
        raise NotFoundError(f"Nobody with the Discord id {discord_id[:30]!r} has done anything here.")
    by = None if actor is None else people.ensure(session, actor)
    found = _naming(session, person)
    person.name = NAMELESS
    session.flush()
    for stream in sorted(found):
        _blank(session, [entry.id for entry in found[stream]])
        numbers = [entry.number for entry in found[stream]]
        record.append(session, stream, "record.forgotten", by=by, why=because, numbers=numbers)
    return sum(map(len, found.values()))


def _naming(session: Session, person: Person) -> dict[str, list[Entry]]:
    """The entries whose payload holds a person's id or name, by stream; locks those streams in their order."""
    told = select(Entry, Payload.body).join(Payload, Payload.entry_id == Entry.id)
    rows = session.execute(told.where(Payload.body.is_not(None), Entry.kind.not_in(KINDS)).order_by(Entry.id)).all()
    name = re.compile(rf"(?<!\w){re.escape(person.name)}(?!\w)") if person.name else re.compile(r"(?!)")
    found: dict[str, list[Entry]] = {}
    for entry, body in rows:
        if any(said == person.discord_id or name.search(said) for said in _strings(json.loads(body or "{}"))):
            found.setdefault(entry.stream, []).append(entry)
    for stream in sorted(found):
        session.execute(select(Stream.key).where(Stream.key == stream).with_for_update())
    return found


def _strings(value: object) -> Iterator[str]:
    """Every text in a payload, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _blank(session: Session, ids: Sequence[int]) -> int:
    """Take body and salt away; without its salt, a short text cannot be guessed from its hash."""
    blanked = session.execute(
        update(Payload)
        .where(Payload.entry_id.in_(ids), Payload.body.is_not(None))
        .values(salt=None, body=None)
        .returning(Payload.entry_id)
    ).all()
    return len(blanked)
