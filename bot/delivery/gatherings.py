"""Gatherings: where many people come and go at once, what waits to be posted of that shares one post.

So a crowd, or one person who follows and leaves again and again, never holds up what a project's own people tell. The
runs of a sweep that are queued together share posts too.
"""

import itertools
import re
from collections.abc import Sequence

from sqlalchemy.orm import Session
from sqlmodel import col, select

from bot import text
from bot.delivery.posts import BLANKED, Destination, marker, worded
from bot.mention import Mention, ended
from bot.tables import DiscordMessage
from projects.record import record
from projects.record.record import EntryView

KINDS = frozenset({"project.followed", "project.joined", "project.left"})
LEAST, MOST = 4, 15
"""The fewest and the most entries that share a post."""


def next_post(session: Session, waiting: Sequence[EntryView]) -> Sequence[EntryView]:
    """The entries that the next post tells of: the first one that waits, or it and those that share its post.

    What was begun before a crash goes on with the same entries, so that nothing is told twice.
    """
    first = waiting[0]
    shared = _shared(first)
    if shared is None:
        return waiting[:1]
    sharing = range(LEAST, min(MOST, len(waiting)) + 1)
    begun = {key(waiting[:many], destination): many for many in sharing for destination in Destination}
    begun |= {f"entry:{first.id}:{destination}": 1 for destination in Destination}
    known = session.scalars(select(DiscordMessage.key).where(col(DiscordMessage.key).in_(begun))).first()
    if known is not None:
        return waiting[: begun[known]]
    together = list(itertools.takewhile(lambda entry: _shared(entry) == shared, waiting[:MOST]))
    return together if len(together) >= LEAST else waiting[:1]


def key(entries: Sequence[EntryView], destination: Destination) -> str:
    """The key of the post that entries share, which says which these are."""
    first, last = entries[0], entries[-1]
    return f"{_prefix(first.stream)}{first.number}-{last.number}:{destination}"


def render(entries: Sequence[EntryView], mention: Mention | None = None) -> str:
    """The post of entries that share one: a line each, a mention, and a marker with the hash of the last of them."""
    end = ended(marker(entries[-1], since=entries[0].number), mention)
    lines = [BLANKED if entry.payload is None else worded(entry.kind, entry.payload) for entry in entries]
    said = "\n".join(lines)
    return f"{text.bounded(said, text.CARD - text.length(end) - 1)}\n{end}"


def blanked(session: Session, stream: str) -> Sequence[tuple[DiscordMessage, str, str]]:
    """The shared posts that still show an entry that was blanked, each with its new text and the digest of that."""
    shared = col(DiscordMessage.key).startswith(_prefix(stream), autoescape=True)
    standing = col(DiscordMessage.message_id).is_not(None) & ~col(DiscordMessage.gone)
    found = []
    for row in session.scalars(select(DiscordMessage).where(shared, standing)):
        first, last = _numbers(row.key)
        entries = record.since(session, stream, first - 1, last - first + 1)
        digest = " ".join(str(entry.number) for entry in entries if entry.payload is None)
        if digest != row.digest:
            found.append((row, render(entries), digest))
    return found


def _shared(entry: EntryView) -> str | None:
    """What the entries have in common that may share a post with this one; None where none may."""
    if entry.kind in KINDS:
        return "people"
    payload = entry.payload or {}
    queued = entry.kind == "run.queued" and "sweep" in payload and "sample" not in payload
    return f"sweep {payload['sweep']}" if queued else None


def _prefix(stream: str) -> str:
    """What the keys of a stream's shared posts begin with."""
    return f"entries:{stream}:"


def _numbers(key: str) -> tuple[int, int]:
    """The numbers of the first and the last entry of a shared post, by its key."""
    found = re.search(r":(\d+)-(\d+):", key)
    assert found is not None, key
    return int(found[1]), int(found[2])
