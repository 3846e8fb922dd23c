"""Where the record and the tables refer to a person: by id in what Stoa wrote, perhaps by name in what people wrote.

A name is no identifier: somebody may be called “the”. Entries that hold the person's id are the person's for certain. A
text that holds one of their names is only a place to look at, and an admin decides about it.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Column, Select, Table
from sqlalchemy.orm import Session
from sqlmodel import col, select

from projects import people, rights
from projects.db.columns import SENTENCE, TAGS, WORDS, Base
from projects.errors import NotFoundError
from projects.people import Actor, FormerName, Person
from projects.record import record
from projects.record.record import Entry, Payload
from projects.rights import Act

AROUND = 80
"""The most characters that an excerpt shows before and after a name."""
NO_PEOPLE = frozenset({"places"})
"""The keys of a payload whose objects with an id and a name are no people: channels and roles."""


@dataclass(frozen=True)
class Mention:
    """A text that people wrote and that holds a name of the person; `said` is the part of it around the name.

    `key` names the place and fingerprints the text, so that a decision about it never hits a later text.
    """

    key: str
    where: str
    said: str


@dataclass(frozen=True)
class Mentions:
    """What forgetting a person would do: `entries` is how many are blanked, `texts` are those to decide about."""

    entries: int
    texts: Sequence[Mention]


@dataclass(frozen=True)
class Words:
    """A text of a table's row."""

    table: Table
    row: int
    column: str
    said: str

    @property
    def key(self) -> str:
        """The key of the text's place."""
        return f"{self.table.name}:{self.row}:{self.column}:{_fingerprint(self.said)}"


def find(session: Session, actor: Actor | None, discord_id: str) -> Mentions:
    """Everything that refers to a person, or may; changes nothing. An `actor` of None is the operator.

    Raises ForbiddenError for all but admins, and NotFoundError.
    """
    rights.require_admin(actor, Act.REDACT)
    names = pattern(session, discord_id, person(session, discord_id))
    about = {entry.id for entry in entries_about(session, discord_id)}
    texts = [_shown(names, words) for words in in_tables(session, names)]
    for entry, body in session.execute(readable().execution_options(yield_per=1000)):
        if entry.id not in about and (said := _naming(names, body)):
            where = f"entry {entry.number} of {entry.stream.replace(':', ' ')}"
            texts.append(Mention(f"entry:{entry.id}:{entry.payload_hash[:8]}", where, " … ".join(said)))
    return Mentions(len(about), texts)


def person(session: Session, discord_id: str) -> Person | None:
    """The person with this Discord id; None for one who has not acted, even where an entry refers to them.

    Raises NotFoundError where there is neither.
    """
    found = session.scalars(select(Person).where(Person.discord_id == discord_id)).one_or_none()
    if found is None and not entries_about(session, discord_id):
        raise NotFoundError(f"Nobody with the Discord id {discord_id[:30]!r} has done anything here.")
    return found


def pattern(session: Session, discord_id: str, whose: Person | None) -> re.Pattern[str]:
    """A pattern for the person's names, present and former, and for their Discord id, each as a word of its own."""
    names: set[str] = set()
    if whose is not None:
        names = {whose.name, *session.scalars(select(FormerName.name).where(FormerName.person_id == whose.id))}
    for _, body in session.execute(_holding(discord_id)):
        names.update(each["name"] for each in _people_in(json.loads(body or "{}")) if each["id"] == discord_id)
    words = {name for name in names if name.strip()} - {people.NAMELESS}
    # The longest comes first, so that “Ada Lovelace” is replaced as a whole where “Ada” is a former name.
    either = [re.escape(name) for name in sorted(words, key=len, reverse=True)]
    # An id in a mark is Stoa's own, and shows the present name.
    either.append(rf"(?<!{{person:){re.escape(discord_id)}")
    return re.compile(rf"(?<!\w)(?:{'|'.join(either)})(?!\w)", re.IGNORECASE)


def entries_about(session: Session, discord_id: str) -> Sequence[Entry]:
    """The entries that refer to the person by id."""
    rows = session.execute(_holding(discord_id))
    return [
        entry for entry, body in rows if any(each["id"] == discord_id for each in _people_in(json.loads(body or "{}")))
    ]


def chosen_entries(session: Session, names: re.Pattern[str], keys: Collection[str]) -> Sequence[Entry]:
    """The entries that these keys of places stand for, and whose texts hold one of the names."""
    ids = [int(key.split(":")[1]) for key in keys if re.fullmatch(r"entry:[0-9]{1,18}:[0-9a-f]{8}", key)]
    rows = session.execute(readable().where(col(Entry.id).in_(ids)))
    return [e for e, body in rows if f"entry:{e.id}:{e.payload_hash[:8]}" in keys and _naming(names, body)]


def in_tables(session: Session, names: re.Pattern[str]) -> Iterator[Words]:
    """The texts of tables that hold one of the names."""
    for table in Base.metadata.sorted_tables:
        for column in words_of(table):
            for row, said in session.execute(select(table.c.id, column).order_by(table.c.id)).all():
                if said and names.search(said):
                    yield Words(table, row, column.name, said)


def readable() -> Select[Entry, str | None]:
    """Every entry that can be blanked, with its payload."""
    told = select(Entry, col(Payload.body)).join(Payload, col(Payload.entry_id) == Entry.id)
    return told.where(col(Payload.body).is_not(None), col(Entry.kind).not_in(record.TOMBSTONES)).order_by(col(Entry.id))


def words_of(table: Table) -> list[Column[str]]:
    """The columns of a table that hold texts of people."""
    return [column for column in table.columns if column.info in (WORDS, TAGS, SENTENCE)]


def strings(value: object) -> Iterator[str]:
    """Every text in a payload, at any depth, but for the names of what it refers to by id."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in () if _is_reference(value) else value.values():
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


def _holding(discord_id: str) -> Select[Entry, str | None]:
    """The entries in whose payload the id stands as an id, of a person or else; a canonical payload has no spaces."""
    return readable().where(col(Payload.body).contains(f'"id":{json.dumps(discord_id)}', autoescape=True))


def _people_in(value: object) -> Iterator[dict[str, str]]:
    """The people that a payload refers to by id, each an object with `id` and `name`, at any depth."""
    if isinstance(value, dict):
        if _is_reference(value):
            yield value
        for key, item in value.items():
            if key not in NO_PEOPLE:
                yield from _people_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from _people_in(item)


def _is_reference(value: dict[str, object]) -> bool:
    return isinstance(value.get("id"), str) and isinstance(value.get("name"), str)


def _naming(names: re.Pattern[str], body: str | None) -> list[str]:
    """The parts of a payload's texts around the names; a text that is the name of somebody else in it is theirs."""
    payload = json.loads(body or "{}")
    others = {each["name"] for each in _people_in(payload)}
    return [_excerpt(names, said) for said in strings(payload) if said not in others and names.search(said)]


def _shown(names: re.Pattern[str], words: Words) -> Mention:
    thing = {"people": "person", "catalogue_entries": "catalogue entry"}.get(words.table.name)
    thing = thing or words.table.name.replace("_", " ").removesuffix("s")
    where = f"{words.column.replace('_', ' ')} of {thing} {words.row}"
    return Mention(words.key, where, _excerpt(names, words.said))


def _excerpt(names: re.Pattern[str], said: str) -> str:
    """The part of a text around the first of the names in it, as one line."""
    found = names.search(said)
    start, end = (max(0, found.start() - AROUND), found.end() + AROUND) if found else (0, AROUND)
    kept = " ".join(said[start:end].split())
    return f"{'…' if start else ''}{kept}{'…' if end < len(said) else ''}"


def _fingerprint(said: str) -> str:
    return hashlib.sha256(said.encode()).hexdigest()[:8]
