"""Tombstones: the post of an entry that was blanked is edited to say so, one post at a time beside the new ones."""

import time

import structlog

from bot.app import App
from bot.delivery import checkpoint_indexes, edit_budget, gatherings, outbox, posts
from bot.delivery.edit_budget import OldMessageError
from bot.delivery.sender import LockedThreadError, Sender
from bot.tables import DiscordMessage
from projects.record import record
from projects.record.record import EntryView

log = structlog.get_logger()


class Tombstones:
    """The tombstones of one stream. `behind` says that a post may still show what was blanked."""

    def __init__(self, app: App, sender: Sender, stream: str) -> None:
        self.app, self.sender = app, sender
        self.stream = stream
        self.behind = True  # a crash may have left any post unedited
        # By channel, the earliest time at which Discord may accept another such edit.
        self._not_before: dict[str, float] = {}
        self._rests_until = 0.0

    @property
    def due(self) -> bool:
        """Whether such a post may be edited now."""
        return self.behind and time.monotonic() >= self._rests_until

    def note(self, entry: EntryView) -> None:
        """Look for posts to blank, if an entry is about a redaction."""
        if entry.kind in record.TOMBSTONES:
            self.behind, self._rests_until = True, 0.0

    async def refresh(self) -> None:
        """Blank the next post, and only one, so that new posts do not wait for all of them."""
        if not self.due:
            return
        alone = await self.app.read(outbox.unblanked_posts, self.stream)
        left = [(row, f"{posts.BLANKED}\n{posts.marker(entry)}", outbox.TOMBSTONE) for entry, row in alone]
        left += await self.app.read(gatherings.blanked, self.stream)
        left += await self.app.read(checkpoint_indexes.blanked, self.stream)
        self.behind = bool(left)
        for row, said, digest in left:
            if time.monotonic() >= self._not_before.get(row.channel_id, 0.0):
                await self._blank(row, said, digest)
                return
        self._rests_until = min((self._not_before[row.channel_id] for row, *_ in left), default=0.0)

    async def _blank(self, row: DiscordMessage, said: str, digest: str) -> None:
        try:
            await self.sender.rewrite(row, said)
        except OldMessageError as error:
            log.info("an old post is blanked later", key=row.key, seconds=error.retry_after)
            self._not_before[row.channel_id] = time.monotonic() + error.retry_after
        except LockedThreadError:
            self._not_before[row.channel_id] = time.monotonic() + edit_budget.OLD
            await self._notify(row.channel_id, said.splitlines()[-1])
        else:
            await self.app.write(outbox.sent, row.key, row.message_id or "", digest)

    async def _notify(self, thread_id: str, marker: str) -> None:
        """Ask the admins, once for each locked thread, to unlock it."""
        said = f"⚠️ A blanked entry can still be read in <#{thread_id}>, because that thread is locked."
        said = f"{said} Unlock it, or delete the post.\n{marker} · to be blanked"
        await self.sender.post(f"locked:{thread_id}", str(self.app.server.review), said)
