"""Takes the buttons from under a post once what it asks for is done, such as a question that was answered."""

import time
from collections.abc import Mapping, Sequence

import structlog
from sqlalchemy.orm import Session
from sqlmodel import col, select

from bot.app import App
from bot.delivery import outbox
from bot.delivery.edit_budget import OldMessageError
from bot.delivery.posts import Destination
from bot.delivery.sender import LockedThreadError, Sender
from bot.tables import DiscordMessage
from projects.record import record
from projects.record.record import EntryView

DONE = "done"
"""The digest of a post whose buttons were taken away."""
DONE_BY: Mapping[str, frozenset[str]] = {
    "allocation.asked": frozenset(f"allocation.{how}" for how in ("answered", "approved", "declined", "withdrawn")),
    "project.proposed": frozenset({"project.scoped", "project.stopped", "project.completed"}),
}
"""By kind of entry, the kinds of later ones after which the buttons under its post have no use."""

log = structlog.get_logger()


class DoneButtons:
    """The posts of one project that ask for something."""

    def __init__(self, app: App, sender: Sender, project_id: int) -> None:
        self.app, self.sender = app, sender
        self.stream = record.project_stream(project_id)
        self._behind = True  # a crash may have left any post unedited
        self._rests_until = 0.0

    @property
    def due(self) -> bool:
        """Whether a post may be edited now."""
        return self._behind and time.monotonic() >= self._rests_until

    def note(self, entry: EntryView) -> None:
        """Look for posts that are done, if an entry may be what they ask for."""
        if any(entry.kind in kinds for kinds in DONE_BY.values()):
            self._behind, self._rests_until = True, 0.0

    async def refresh(self) -> None:
        """Take the buttons from under all posts that are done."""
        if not self.due:
            return
        for row in await self.app.read(_done, self.stream):  # few, as each is edited once
            try:
                await self.sender.rewrite(row, None)
            except OldMessageError as error:
                self._rests_until = time.monotonic() + error.retry_after
                return
            except LockedThreadError:
                log.info("a post in a locked thread keeps its buttons", key=row.key)
            await self.app.write(outbox.sent, row.key, row.message_id or "", DONE)
        self._behind = False


def _done(session: Session, stream: str) -> Sequence[DiscordMessage]:
    """The posts that are done and still have their buttons."""
    entries = record.of_kinds(session, stream, DONE_BY.keys() | frozenset().union(*DONE_BY.values()))
    done = [
        f"entry:{entry.id}:{destination}"
        for place, entry in enumerate(entries)
        for destination in Destination
        if entry.payload is not None and any(_answers(later, entry) for later in entries[place + 1 :])
    ]
    shows = col(DiscordMessage.message_id).is_not(None) & ~col(DiscordMessage.gone) & (DiscordMessage.digest == "")
    return session.scalars(select(DiscordMessage).where(col(DiscordMessage.key).in_(done), shows)).all()


def _answers(later: EntryView, entry: EntryView) -> bool:
    """Whether a later entry is what an entry asks for."""
    if later.kind not in DONE_BY.get(entry.kind, ()) or later.payload is None or entry.payload is None:
        return False
    return bool(later.payload.get("allocation") == entry.payload.get("allocation"))
