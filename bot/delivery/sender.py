"""Sending each message once: the intent is committed before, the message's id after, and an open intent is settled.

Discord returns the first message for a repeat of its nonce within a few minutes. An intent older than that is settled
by looking in the channel for the message's marker, its last line of text.
"""

import asyncio
import io
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

import discord
import structlog
from discord import ui
from sqlalchemy.orm import Session

from bot import text
from bot.app import App
from bot.cards.card import Card
from bot.delivery import edit_budget, lease, outbox
from bot.delivery.edit_budget import EditBudget, OldMessageError
from bot.delivery.lease import LostLeaseError
from bot.tables import DiscordMessage
from projects.db.columns import utcnow

NONCE_GOOD_FOR = timedelta(minutes=2)
REPEAT_SECONDS = 45.0
"""The longest that a repeat may take, waiting for its turn included, so that its nonce is still known on arrival."""
CLOCKS_APART = timedelta(minutes=10)
UNKNOWN_CHANNEL, UNKNOWN_MESSAGE = 10003, 10008
# A person has deleted it.
DELETED = frozenset({UNKNOWN_CHANNEL, UNKNOWN_MESSAGE})
TOO_MANY_OLD_EDITS = 30046
# A thread is archived, or a moderator has locked it; for a locked one it may also be a permission that is missing.
CLOSED = frozenset({50013, 50083, 160005})

log = structlog.get_logger()


class LockedThreadError(discord.DiscordException):
    """A moderator has locked the thread: the bot says nothing there, and changes nothing."""


class Sender:
    """The only sender of posts and cards to a server; `holder` names this process in the lease."""

    def __init__(self, app: App, holder: str) -> None:
        self.app = app
        self.guild_id = app.server.guild
        self.holder = holder
        self.budget = EditBudget()
        # One post at a time in a channel: of several at once more may go out than are left of its limit.
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def post(self, key: str, channel_id: str, said: str, buttons: Sequence[ui.Item[Any]] = ()) -> str | None:
        """Post a text whose last line is its marker; the message's id, or None where a person has deleted its place.

        Raises discord.NotFound where the place is one of the lab's own channels, until there is another.
        """
        if not buttons and text.length(said) <= text.MESSAGE:
            return await self._send(key, channel_id, said.splitlines()[-1], content=said)
        view = ui.LayoutView(timeout=None)
        view.add_item(ui.TextDisplay(said))
        if buttons:
            view.add_item(ui.ActionRow(*buttons))
        return await self._send(key, channel_id, said.splitlines()[-1], view=view)

    async def place(self, key: str, channel_id: str, card: Card) -> str | None:
        """Send a card for the first time; like `post`."""
        return await self._send(key, channel_id, card.marker, view=card, digest=card.digest)

    async def change(self, row: DiscordMessage, card: Card, name: str, picture: bytes | None) -> None:
        """Bring a card up to date; `picture` replaces the one it has, `name` is the one it shows now.

        Raises OldMessageError where Discord takes no more edits of so old a message for now.
        """
        message = self._channel(row.channel_id).get_partial_message(int(row.message_id or 0))

        async def edit() -> None:
            if picture is not None:
                await message.edit(view=card, attachments=[discord.File(io.BytesIO(picture), name)])
            elif name:
                await message.edit(view=card)
            else:
                await message.edit(view=card, attachments=[])

        try:
            if await self._edited(row, edit):
                await self.app.write(outbox.sent, row.key, row.message_id or "", card.digest, name)
        except LockedThreadError:
            await self._locked(row.key)

    async def rewrite(self, row: DiscordMessage, said: str) -> None:
        """Put another text in the place of a post, whichever sort of message it is.

        Raises OldMessageError, and LockedThreadError.
        """

        async def edit() -> None:
            message = await self._channel(row.channel_id).fetch_message(int(row.message_id or 0))
            if _said(message) == said:
                return
            if message.flags.components_v2:
                view = ui.LayoutView(timeout=None)
                view.add_item(ui.TextDisplay(said))
                await message.edit(view=view)
            else:
                await message.edit(content=said)

        await self._edited(row, edit)

    async def _edited(self, row: DiscordMessage, edit: Callable[[], Awaitable[None]]) -> bool:
        """Make an edit, in an archived thread too; False where a person has deleted the message.

        Raises OldMessageError, and LockedThreadError.
        """
        try:
            try:
                await edit()
            except discord.HTTPException as error:
                thread = await self._closed(row.channel_id, error)
                if thread.locked:
                    raise LockedThreadError from error
                await thread.edit(archived=False)
                await edit()
        except discord.NotFound as error:
            await self._deleted(row.key, error)
            return False
        except discord.RateLimited as error:
            if edit_budget.age(row.message_id or "") < edit_budget.OLD_AGE:  # it is the bot's pace that Discord refuses
                raise
            raise OldMessageError(error.retry_after) from error
        except discord.HTTPException as error:
            if error.code != TOO_MANY_OLD_EDITS:
                raise
            raise OldMessageError(edit_budget.OLD) from error
        return True

    async def _send(
        self,
        key: str,
        channel_id: str,
        marker: str,
        *,
        content: str | None = None,
        view: ui.LayoutView | None = None,
        digest: str = "",
    ) -> str | None:
        row, certain = await self.app.write(self._intend, key, channel_id)
        if row.gone or row.message_id is not None:
            return None if row.gone else row.message_id
        try:
            if not certain and row.intended_at < utcnow() - NONCE_GOOD_FOR:
                found = await self._find(row, marker)
                if found is not None:
                    # What it shows is not known: an empty digest has a card drawn anew.
                    await self.app.write(outbox.sent, key, found)
                    return found
                row, certain = await self.app.write(outbox.intend_again, key), True
            channel = self._channel(row.channel_id)
            async with asyncio.timeout(None if certain else REPEAT_SECONDS), self._turns[row.channel_id]:
                await self.app.read(self._require_still, row)
                if view is None:
                    message = await channel.send(content, nonce=row.nonce, suppress_embeds=True)
                else:
                    message = await channel.send(view=view, nonce=row.nonce)
        except discord.NotFound as error:
            if await self._awaits_another(row.channel_id, error):
                await self.app.write(outbox.forget, key)
                raise
            await self._deleted(key, error)
            return None
        except discord.HTTPException as error:
            if not (await self._closed(row.channel_id, error)).locked:
                raise
            await self._locked(key)
            return None
        # For a repeat of a nonce Discord returns the first message, which may show an earlier state.
        await self.app.write(_close, row, str(message.id), digest if certain else "")
        return str(message.id)

    def _intend(self, session: Session, key: str, channel_id: str) -> tuple[DiscordMessage, bool]:
        """The message's row, and whether its intent is new; raises LostLeaseError."""
        lease.require(session, str(self.guild_id), self.holder)
        row = outbox.message(session, key)
        if row is not None:
            return row, False
        return outbox.intend(session, key, channel_id), True

    def _require_still(self, session: Session, row: DiscordMessage) -> None:
        """Raise LostLeaseError where this process was held up so long that another may have sent the message."""
        lease.require(session, str(self.guild_id), self.holder)
        _require_nonce(session, row)

    async def _find(self, row: DiscordMessage, marker: str) -> str | None:
        """The message of an old intent, if it stands in its channel; raises Forbidden where that cannot be read."""
        after = row.intended_at - CLOCKS_APART
        me, channel = self.app.user, self._channel(row.channel_id)
        await self._require_history(channel)
        async for message in channel.history(limit=None, after=after):
            if me is not None and message.author.id == me.id and _last_line(message) == marker:
                return str(message.id)
        return None

    async def _require_history(self, channel: discord.PartialMessageable) -> None:
        """Raise Forbidden where the bot may not read a channel's history: Discord lists it as empty then.

        A single message is refused instead, even one that never was; the application's id is such a one.
        """
        try:
            await channel.fetch_message(self.app.application_id or 0)
        except discord.NotFound as error:
            if error.code != UNKNOWN_MESSAGE:
                raise

    async def _awaits_another(self, channel_id: str, error: discord.NotFound) -> bool:
        """Whether one of the lab's own channels is gone, or a thread with it: `/stoa setup` names another."""
        if error.code != UNKNOWN_CHANNEL:
            return False
        room = await self.app.read(outbox.room_in, channel_id)
        if room is None or not room.startswith(outbox.PROPOSAL):
            return room is None
        try:
            await self.app.fetch_channel(self.app.server.proposals)
        except discord.NotFound:
            return True
        return False

    async def _deleted(self, key: str, error: discord.NotFound) -> None:
        """Take a deletion as a decision."""
        if error.code not in DELETED:
            raise error
        log.warning("a person has deleted this message or its channel; it is not sent again", key=key)
        await self.app.write(outbox.message_gone, key)

    async def _closed(self, channel_id: str, error: discord.HTTPException) -> discord.Thread:
        """The thread that is archived or locked, which may be why Discord refuses; raises `error` elsewhere."""
        thread = await self.app.fetch_channel(int(channel_id)) if error.code in CLOSED else None
        if not isinstance(thread, discord.Thread) or not (thread.archived or thread.locked):
            raise error
        return thread

    async def _locked(self, key: str) -> None:
        """Take a locked thread as a decision, of what stands there alone."""
        log.warning("a moderator has locked the thread of this message; it is neither sent nor changed", key=key)
        await self.app.write(outbox.message_gone, key)

    def _channel(self, channel_id: str) -> discord.PartialMessageable:
        return self.app.get_partial_messageable(int(channel_id), guild_id=self.guild_id)


def _close(session: Session, row: DiscordMessage, message_id: str, digest: str) -> None:
    """Close an intent, unless another process has begun it anew."""
    _require_nonce(session, row)
    outbox.sent(session, row.key, message_id, digest)


def _require_nonce(session: Session, row: DiscordMessage) -> None:
    """Raise LostLeaseError where another process has begun the intent anew."""
    known = outbox.message(session, row.key)
    if known is None or known.nonce != row.nonce:
        raise LostLeaseError


def _said(message: discord.Message) -> str:
    """The text of a message, of either sort."""
    if not message.flags.components_v2:
        return message.content
    shown = ui.LayoutView.from_message(message).walk_children()
    return "\n".join(item.content for item in shown if isinstance(item, ui.TextDisplay))


def _last_line(message: discord.Message) -> str:
    """The last line of text of a message."""
    lines = _said(message).splitlines()
    return lines[-1] if lines else ""
