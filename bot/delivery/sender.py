"""Sends each message exactly once: its intent is committed before, its id after, and an open intent is settled.

Within a few minutes Discord answers a repeat of a nonce with the first message. An older intent is settled by searching
the channel for the message's marker, its last line of text.
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
from bot.delivery import edit_budget, kept_file, lease, outbox
from bot.delivery.edit_budget import EditBudget, OldMessageError
from bot.delivery.kept_file import KeptFile
from bot.delivery.lease import LostLeaseError
from bot.mention import Mention
from bot.tables import DiscordMessage
from projects.db.columns import utcnow

NONCE_GOOD_FOR = timedelta(minutes=2)
REPEAT_SECONDS = 45.0
"""The most that a repeat may take, its wait for a turn included, so that Discord still knows its nonce on arrival."""
CLOCKS_APART = timedelta(minutes=10)
"""The most by which this machine's clock may be ahead of Discord's."""
UNKNOWN_CHANNEL, UNKNOWN_MESSAGE = 10003, 10008
DELETED = frozenset({UNKNOWN_CHANNEL, UNKNOWN_MESSAGE})
"""Discord's codes for a message or channel that a person has deleted."""
TOO_MANY_OLD_EDITS = 30046
PICTURES_KNOWN = 4096
CLOSED = frozenset({50013, 50083, 160005})
"""Discord's codes for an archived or locked thread; the first also stands for a missing permission."""

NOBODY = discord.AllowedMentions.none()
"""Said with each edit too: without it, discord.py lets the edit of a card mention whoever stands in its text."""

log = structlog.get_logger()


class LockedThreadError(discord.DiscordException):
    """A moderator has locked the thread, so the bot neither posts nor edits there."""


class LostPictureError(Exception):
    """A card's message does not show the picture that it was last sent with."""


class Sender:
    """Sends all posts and cards to a server; `holder` names this process in the lease."""

    def __init__(self, app: App, holder: str) -> None:
        self.app = app
        self.guild_id = app.server.guild
        self.holder = holder
        self.budget = EditBudget()
        self._pictures: dict[str, KeptFile] = {}
        self._not_pinned: set[str] = set()
        # One post at a time in a channel: several at once could exceed what is left of Discord's limit there.
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def post(
        self,
        key: str,
        channel_id: str,
        said: str,
        buttons: Sequence[ui.Item[Any]] = (),
        mention: Mention | None = None,
        *,
        digest: str = "",
        grows: bool = False,
        pictures: Sequence[bytes] = (),
    ) -> str | None:
        """Post a text whose last line is its marker; whatever it says, it pings nobody but `mention`.

        A text of at most 2,000 characters takes `pictures` with it, PNG. One that `grows` may be rewritten with up to
        4,000 characters; `digest` tells what it shows.
        Returns the message's id, or None where a person has deleted the message or its channel. Raises discord.NotFound
        while one of the lab's own channels is deleted and no other is chosen.
        """
        end = said.splitlines()[-1]
        if not buttons and not grows and text.length(said) <= text.MESSAGE:
            return await self._send(
                key, channel_id, end, content=said, digest=digest, mention=mention, pictures=pictures
            )
        view = ui.LayoutView(timeout=None)
        view.add_item(ui.TextDisplay(said))
        if buttons:
            view.add_item(ui.ActionRow(*buttons))
        return await self._send(key, channel_id, end, view=view, digest=digest, mention=mention)

    async def send_card(self, key: str, channel_id: str, card: Card) -> str | None:
        """Send a card for the first time; returns and raises what `post` does."""
        return await self._send(key, channel_id, card.marker, view=card, digest=card.digest, mention=card.mention)

    async def edit_card(self, row: DiscordMessage, card: Card, name: str, picture: bytes | None) -> None:
        """Edit a card. `name` is the file name of the picture that it shows, `picture` the PNG where that is a new one.

        Raises OldMessageError where Discord refuses to edit so old a message now, and LostPictureError where the
        message has no such picture.
        """
        message = self._channel(row.channel_id).get_partial_message(int(row.message_id or 0))

        async def edit() -> None:
            files: list[discord.Attachment | discord.File] = []
            if picture is not None:
                files = [discord.File(io.BytesIO(picture), name)]
            elif name:
                files = [await self._kept(row.key, message, name)]
            edited = await message.edit(view=card, attachments=files, allowed_mentions=NOBODY)
            if name and (shown := kept_file.find(edited, name)):
                if len(self._pictures) >= PICTURES_KNOWN:
                    self._pictures.clear()
                self._pictures[row.key] = shown

        try:
            if await self._edited(row, edit):
                await self.app.write(outbox.sent, row.key, row.message_id or "", card.digest, name)
        except LockedThreadError:
            await self._locked(row.key)
        except LostPictureError:
            await self.app.write(outbox.sent, row.key, row.message_id or "")  # so that it is drawn again
            raise

    async def pin(self, key: str) -> None:
        """Pin a message that was sent, once: whoever unpins it has decided so.

        A crash before this is noted lets the next process pin it again, which changes nothing.
        """
        row = await self.app.read(outbox.message, key)
        if row is None or row.gone or row.message_id is None or key in self._not_pinned:
            return
        if await self.app.read(outbox.message, outbox.pin_of(key)) is not None:
            return
        try:
            await self._channel(row.channel_id).get_partial_message(int(row.message_id)).pin()
        except discord.NotFound as error:
            await self._deleted(key, error)
        except discord.HTTPException as error:
            if error.status >= 500:
                raise
            self._not_pinned.add(key)  # until the next start
            log.warning("Discord does not let the bot pin a message", key=key, reason=error.text)
        else:
            await self.app.write(outbox.pinned, row)

    async def _kept(self, key: str, message: discord.PartialMessage, name: str) -> KeptFile:
        """The picture of that name which a card shows; looked up once, as edits tell of it afterwards."""
        known = self._pictures.pop(key, None)
        if known is None or known.filename != name:
            known = kept_file.find(await message.fetch(), name)
        if known is None:
            raise LostPictureError(f"The card {key} does not show {name}.")
        return known

    async def rewrite(self, row: DiscordMessage, said: str | None) -> None:
        """Replace the text of a post, which is a plain message or a Components V2 one, and take its buttons away.

        A post that says so already keeps them. None leaves the text as it is; another text comes without pictures.

        Raises OldMessageError and LockedThreadError.
        """

        async def edit() -> None:
            message = await self._channel(row.channel_id).fetch_message(int(row.message_id or 0))
            shown = _said(message)
            if shown == said:
                return
            await _replace(message, shown if said is None else said)
            if said is not None and message.attachments and not message.flags.components_v2:
                await message.edit(attachments=[])

        await self._post_edited(row, edit)

    async def take_line(self, row: DiscordMessage, line: str) -> None:
        """Take a line from a post, and its buttons with it. Raises OldMessageError and LockedThreadError."""

        async def edit() -> None:
            message = await self._channel(row.channel_id).fetch_message(int(row.message_id or 0))
            lines = _said(message).splitlines()
            if line in lines:
                await _replace(message, "\n".join(each for each in lines if each != line))

        await self._post_edited(row, edit)

    async def _post_edited(self, row: DiscordMessage, edit: Callable[[], Awaitable[None]]) -> None:
        """Edit a post, which is counted in the budget of its channel. Raises OldMessageError and LockedThreadError."""
        self.budget.edited(row.key, row.channel_id, age=edit_budget.age(row.message_id or ""))
        try:
            await self._edited(row, edit)
        except OldMessageError as error:
            self.budget.refused(row.channel_id, error.retry_after)
            raise

    async def _edited(self, row: DiscordMessage, edit: Callable[[], Awaitable[None]]) -> bool:
        """Make an edit, after reopening an archived thread; False where a person has deleted the message.

        Raises OldMessageError and LockedThreadError.
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
            if (
                edit_budget.age(row.message_id or "") < edit_budget.OLD_AGE
            ):  # the refusal is not about the message's age
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
        mention: Mention | None = None,
        pictures: Sequence[bytes] = (),
    ) -> str | None:
        pinged = None if mention is None or mention.is_role else str(mention.discord_id)
        row, certain = await self.app.write(self._intend, key, channel_id, pinged)
        if row.gone or row.message_id is not None:
            return None if row.gone else row.message_id
        try:
            if not certain and row.intended_at < utcnow() - NONCE_GOOD_FOR:
                found = await self._find(row, marker)
                if found is not None:
                    # An empty digest, as nobody knows what the message shows: a card is edited once more.
                    await self.app.write(outbox.sent, key, found)
                    return found
                row, certain = await self.app.write(outbox.intend_again, key), True
            channel = self._channel(row.channel_id)
            async with asyncio.timeout(None if certain else REPEAT_SECONDS), self._turns[row.channel_id]:
                await self.app.read(self._require_still, row)
                pings = NOBODY if mention is None else mention.allowed
                if view is None:
                    files = [discord.File(io.BytesIO(png), f"{n}.png") for n, png in enumerate(pictures, 1)]
                    message = await channel.send(
                        content, nonce=row.nonce, suppress_embeds=True, allowed_mentions=pings, files=files
                    )
                else:
                    message = await channel.send(view=view, nonce=row.nonce, allowed_mentions=pings)
        except discord.NotFound as error:
            if await self._to_be_replaced(row.channel_id, error):
                await self.app.write(outbox.forget, key)
                raise
            await self._deleted(key, error)
            return None
        except discord.HTTPException as error:
            if not (await self._closed(row.channel_id, error)).locked:
                raise
            await self._locked(key)
            return None
        # Discord answers a repeated nonce with the first message, which may show an earlier state: an empty digest.
        await self.app.write(_close, row, str(message.id), digest if certain else "")
        return str(message.id)

    def _intend(self, session: Session, key: str, channel_id: str, mentions: str | None) -> tuple[DiscordMessage, bool]:
        """The message's row, and whether its intent is new. Raises LostLeaseError."""
        lease.require(session, str(self.guild_id), self.holder)
        row = outbox.message(session, key)
        if row is None:
            return outbox.intend(session, key, channel_id, mentions), True
        if row.message_id is None and mentions is not None:
            row.mentions = mentions
        return row, False

    def _require_still(self, session: Session, row: DiscordMessage) -> None:
        """Raise LostLeaseError where this process was delayed so long that another may have sent the message."""
        lease.require(session, str(self.guild_id), self.holder)
        _require_nonce(session, row)

    async def _find(self, row: DiscordMessage, marker: str) -> str | None:
        """The id of an old intent's message, if it was sent. Raises Forbidden where the channel cannot be read."""
        after = row.intended_at - CLOCKS_APART
        me, channel = self.app.user, self._channel(row.channel_id)
        await self._require_history(channel)
        async for message in channel.history(limit=None, after=after):
            if me is not None and message.author.id == me.id and _last_line(message) == marker:
                return str(message.id)
        return None

    async def _require_history(self, channel: discord.PartialMessageable) -> None:
        """Raise Forbidden where the bot may not read a channel's history, which Discord then lists as empty.

        Discord does refuse a request for a single message, even for one that never existed, such as the application's
        id.
        """
        try:
            await channel.fetch_message(self.app.application_id or 0)
        except discord.NotFound as error:
            if error.code != UNKNOWN_MESSAGE:
                raise

    async def _to_be_replaced(self, channel_id: str, error: discord.NotFound) -> bool:
        """Whether a deleted channel is one of the lab's own, or a thread in it, which `/stoa setup` replaces."""
        if error.code != UNKNOWN_CHANNEL:
            return False
        key = await self.app.read(outbox.key_of_channel, channel_id)
        if key is None or not key.startswith(outbox.PROPOSAL):
            return key is None
        try:
            await self.app.fetch_channel(self.app.server.proposals)
        except discord.NotFound:
            return True
        return False

    async def _deleted(self, key: str, error: discord.NotFound) -> None:
        """Note a deletion as a decision: the message is not sent again. Raises any other `error`."""
        if error.code not in DELETED:
            raise error
        log.warning("a person has deleted this message or its channel; it is not sent again", key=key)
        await self.app.write(outbox.message_gone, key)

    async def _closed(self, channel_id: str, error: discord.HTTPException) -> discord.Thread:
        """The thread whose being archived or locked may explain a refusal. Raises `error` where there is none."""
        thread = await self.app.fetch_channel(int(channel_id)) if error.code in CLOSED else None
        if not isinstance(thread, discord.Thread) or not (thread.archived or thread.locked):
            raise error
        return thread

    async def _locked(self, key: str) -> None:
        """Note a locked thread as a moderator's decision: the message is neither sent nor edited again."""
        log.warning("a moderator has locked the thread of this message; it is neither sent nor edited", key=key)
        await self.app.write(outbox.message_gone, key)

    def _channel(self, channel_id: str) -> discord.PartialMessageable:
        return self.app.get_partial_messageable(int(channel_id), guild_id=self.guild_id)


def _close(session: Session, row: DiscordMessage, message_id: str, digest: str) -> None:
    """Complete an intent. Raises LostLeaseError where another process has begun it again."""
    _require_nonce(session, row)
    outbox.sent(session, row.key, message_id, digest)


def _require_nonce(session: Session, row: DiscordMessage) -> None:
    """Raise LostLeaseError where another process has begun the intent again."""
    known = outbox.message(session, row.key)
    if known is None or known.nonce != row.nonce:
        raise LostLeaseError


async def _replace(message: discord.Message, said: str) -> None:
    """Replace the text of a message, and take its buttons away."""
    if message.flags.components_v2:
        view = ui.LayoutView(timeout=None)
        view.add_item(ui.TextDisplay(said))
        await message.edit(view=view, attachments=[], allowed_mentions=NOBODY)
    else:
        await message.edit(content=said, allowed_mentions=NOBODY)


def _said(message: discord.Message) -> str:
    """The text of a message, which is a plain one or a Components V2 one."""
    if not message.flags.components_v2:
        return message.content
    shown = ui.LayoutView.from_message(message).walk_children()
    return "\n".join(item.content for item in shown if isinstance(item, ui.TextDisplay))


def _last_line(message: discord.Message) -> str:
    """The last line of text of a message."""
    lines = _said(message).splitlines()
    return lines[-1] if lines else ""
