"""Indexes of checkpoints: in the thread of a run or sweep, one post has a line for each checkpoint that is published.

The post is edited as they come, when the edits of its channel allow one. A full post is followed by another, so that
each entry has its line. A line ends with the number of its entry; the marker is that of the newest entry, whose hash
covers those before it.
"""

import contextlib
import functools
import re
from collections.abc import Callable, Sequence

import discord
from sqlalchemy.orm import Session
from sqlmodel import col, select
from sqlmodel.sql.expression import SelectOfScalar

from bot import text
from bot.app import App
from bot.delivery import edit_budget, outbox
from bot.delivery.edit_budget import OLD, OldMessageError
from bot.delivery.entry_text.run import checkpoint_line
from bot.delivery.posts import BLANKED, marker
from bot.delivery.sender import LockedThreadError, Sender
from bot.tables import DiscordMessage
from projects.record import record
from projects.record.record import EntryView

PUBLISHED = "checkpoint.published"
MOST = 20
"""The most lines of a post."""
UNSHOWN, BLANK = "?", "x"
"""In the digest of an index, what follows the number of an entry that it does not show yet, and of a blanked one."""


class CheckpointIndexes:
    """The indexes of one project. `behind` says that one lacks a line; `due` that it may be edited now."""

    def __init__(self, app: App, sender: Sender, project_id: int) -> None:
        self.app, self.sender = app, sender
        self.stream = record.project_stream(project_id)
        self.behind = True  # a crash may have left any index unedited
        # For each index that must wait, what asks whether its turn has come.
        self._waiting: list[Callable[[], bool]] = []

    @property
    def due(self) -> bool:
        """Whether the turn of an index has come; one that waits keeps its place in the queue by this question."""
        return self.behind and (not self._waiting or any(ask() for ask in self._waiting))

    async def tell(self, entry: EntryView, subject: str, number: int, thread_id: str) -> None:
        """Add the entry of a checkpoint to the index of a run or sweep, which is edited later, or post a new one."""
        prefix = f"{_prefix(self.stream)}{subject}:{number}:"
        if await self.app.write(_add, entry, prefix, thread_id):
            self.behind, self._waiting = True, []
        else:
            await self._post(f"{prefix}{entry.number}", thread_id, [entry])

    async def refresh(self) -> None:
        """Edit the indexes that lack a line, each if its turn has come."""
        if not self.due:
            return
        waiting: list[Callable[[], bool]] = []
        for row in await self.app.read(_growing, self.stream):
            entries = await self.app.read(record.numbered, self.stream, list(_told(row)))
            if row.gone:
                if await self._replace(row, entries):
                    waiting.append(lambda: True)
                continue
            age = edit_budget.age(row.message_id or "")
            is_turn = functools.partial(self.sender.budget.turn, row.key, row.channel_id, age=age)
            if not is_turn():
                waiting.append(is_turn)
                continue
            try:
                await self.sender.rewrite(row, render(row.key, entries))
            except OldMessageError:
                waiting.append(is_turn)
            except LockedThreadError:
                waiting.append(functools.partial(is_turn, pause=OLD))
            else:
                now = await self.app.read(outbox.message, row.key)
                if now is not None and now.gone:  # it was deleted before the edit
                    waiting.append(lambda: True)
                else:
                    await self.app.write(_shown, row.key, digest(entries))
        self._waiting, self.behind = waiting, bool(waiting)

    async def _replace(self, row: DiscordMessage, entries: Sequence[EntryView]) -> bool:
        """Begin another index for what a deleted one did not show; True where nobody knows what the new one shows."""
        own = int(row.key.rpartition(":")[2])  # the deleted post began with this entry
        left = [entry for entry in entries if entry.number != own and _told(row)[entry.number] == UNSHOWN]
        key = f"{row.key.rpartition(':')[0]}:{left[0].number}" if left else ""
        if left:
            with contextlib.suppress(discord.NotFound):  # the thread is gone with the lab's channel
                await self._post(key, row.channel_id, left)
        return await self.app.write(_replaced, row.key, digest(entries), key, [entry.number for entry in left])

    async def _post(self, key: str, thread_id: str, entries: Sequence[EntryView]) -> None:
        await self.sender.post(key, thread_id, render(key, entries), digest=digest(entries), grows=True)


def render(key: str, entries: Sequence[EntryView]) -> str:
    """The post of an index: its title, a line for each entry, and the marker of the last one."""
    end = marker(entries[-1])
    return f"{text.bounded(_lines(key, entries), text.CARD - text.length(end) - 1)}\n{end}"


def _lines(key: str, entries: Sequence[EntryView]) -> str:
    """The title of an index and a line for each entry, however long they are."""
    _, subject, number, _ = key.rsplit(":", 3)
    lines = [f"📦 **Checkpoints of {subject} {number} on the Hub**"]
    for entry in entries:
        said = BLANKED if entry.payload is None else checkpoint_line(entry.payload, names_run=subject == "sweep")
        lines.append(f"{said} · record {entry.number}")
    if len(entries) == MOST:
        lines.append("-# This post is full: the next checkpoint begins another one.")
    return "\n".join(lines)


def digest(entries: Sequence[EntryView]) -> str:
    """The digest of an index that shows these entries: their numbers, which say which of them are blanked."""
    return " ".join(f"{entry.number}{BLANK if entry.payload is None else ''}" for entry in entries)


def blanked(session: Session, stream: str) -> Sequence[tuple[DiscordMessage, str, str]]:
    """The indexes that still show an entry that was blanked, each with its new text and the digest of that."""
    blank = set(record.blank(session, stream, PUBLISHED))
    found = []
    for row in session.scalars(_standing(_prefix(stream))):
        if any(number in blank and how != BLANK for number, how in _told(row).items()):
            entries = record.numbered(session, stream, list(_told(row)))
            found.append((row, render(row.key, entries), digest(entries)))
    return found


def _add(session: Session, entry: EntryView, prefix: str, thread_id: str) -> bool:
    """Note that the newest index tells of an entry, as it is to show; False where another has to be begun for it."""
    if outbox.message(session, f"{prefix}{entry.number}") is not None:  # it was begun before a crash
        return False
    there = _standing(prefix).where(DiscordMessage.channel_id == thread_id)
    row = max(session.scalars(there), key=lambda row: max(_told(row)), default=None)
    if row is None:
        return False
    told = _told(row)
    if entry.number in told:
        return True
    if len(told) >= MOST:
        return False
    entries = [*record.numbered(session, entry.stream, list(told)), entry]
    if text.length(f"{_lines(row.key, entries)}\n{marker(entry)}") > text.CARD:
        return False
    row.digest = " ".join(f"{number}{how}" for number, how in (told | {entry.number: UNSHOWN}).items())
    return True


def _growing(session: Session, stream: str) -> Sequence[DiscordMessage]:
    """The indexes of a stream that lack a line, also deleted ones, and those of which nobody knows what they show."""
    begun = col(DiscordMessage.message_id).is_not(None) | col(DiscordMessage.gone)
    rows = select(DiscordMessage).where(col(DiscordMessage.key).startswith(_prefix(stream), autoescape=True), begun)
    return [row for row in session.scalars(rows) if UNSHOWN in _told(row).values()]


def _shown(session: Session, key: str, digest: str) -> None:
    """Note what an index shows after an edit, or what another shows in its place."""
    session.get_one(DiscordMessage, key).digest = digest


def _replaced(session: Session, key: str, digest: str, new_key: str, left: Sequence[int]) -> bool:
    """Note that the entries left by a deleted index are those of a new one; True where that may not show them all."""
    _shown(session, key, digest)
    new = outbox.message(session, new_key)
    if new is None or new.gone or new.digest:
        return False
    new.digest = " ".join(f"{number}{UNSHOWN}" for number in left)
    return True


def _told(row: DiscordMessage) -> dict[int, str]:
    """The numbers of the entries that an index tells of, in order, each with how it shows them."""
    found = {int(number): how for number, how in re.findall(r"(\d+)([?x]?)", row.digest)}
    return found or {int(row.key.rpartition(":")[2]): UNSHOWN}


def _standing(prefix: str) -> SelectOfScalar[DiscordMessage]:
    """The query for the indexes whose keys begin so, and which stand in their threads."""
    stands = col(DiscordMessage.message_id).is_not(None) & ~col(DiscordMessage.gone)
    return select(DiscordMessage).where(col(DiscordMessage.key).startswith(prefix, autoescape=True), stands)


def _prefix(stream: str) -> str:
    """What the keys of a stream's indexes begin with."""
    return f"checkpoints:{stream}:"
