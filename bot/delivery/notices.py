"""Notices to the admins about the delivery itself, posted in the reviewers' channel, each once."""

import contextlib
import re

import aiohttp
import discord
import structlog
from sqlalchemy.orm import Session
from sqlmodel import col, select

from bot import text
from bot.app import App
from bot.delivery import outbox
from bot.delivery.lease import LostLeaseError
from bot.delivery.sender import Sender
from bot.tables import DiscordMessage
from projects.record import record

WAITS = "waits:"
"""What the keys of notices that posting waits begin with."""
OVER = "over"
"""The digest of such a notice once posting has resumed."""
NAMES = {"proposals": "proposals", "review": "reviews", "announcements": "announcements", "record": "public record"}
ROLES = {"reviewer_role": "reviewers", "moderator_role": "moderators", "admin_role": "admins"}

log = structlog.get_logger()


class Notices:
    """Posts the notices; one that cannot be posted is only logged."""

    def __init__(self, app: App, sender: Sender) -> None:
        self.app, self.sender = app, sender
        self._waiting: set[str] | None = None
        self._reported: set[int] = set()

    async def say_waiting(self, stream: str, reason: str) -> None:
        """Post that a stream waits, at which entry, and why."""
        if self._waiting is not None:
            self._waiting.add(stream)
        number = (await self.app.read(outbox.cursors)).get(stream, 0) + 1
        before = await self.app.read(outbox.message, _key(stream, number))
        if before is not None and before.digest == OVER:  # the stream has waited at this entry before
            await self.app.write(outbox.forget, before.key)
        said = f"⚠️ Posting waits: {reason} It resumes by itself once that is fixed."
        end = f"-# {_owner(stream)} · waits at record {number}"
        await self._post(_key(stream, number), f"{said}\n{end}", self.app.server.review)

    async def say_resumed(self, stream: str, *, behind: bool) -> None:
        """Edit the notices of a stream to say that posting has resumed.

        Where the stream is `behind`, one of its cards may still wait, and the notice of that stays.
        """
        if self._waiting is None:  # an earlier process may have posted notices
            self._waiting = {row.key.removeprefix(WAITS).rpartition(":")[0] for row in await self.app.read(_open)}
        if stream not in self._waiting:
            return
        try:
            posted = (await self.app.read(outbox.cursors)).get(stream, 0)
            for row in await self.app.read(_open, stream):
                number = int(row.key.rpartition(":")[2])
                if behind and number > posted:
                    continue
                said = "✅ Posting waited here, and has resumed."
                await self.sender.rewrite(row, f"{said}\n-# {_owner(stream)} · waited at record {number}")
                await self.app.write(outbox.sent, row.key, row.message_id or "", OVER)
            if not behind:
                self._waiting.discard(stream)
        except (discord.DiscordException, aiohttp.ClientError, OSError) as error:
            log.warning("a notice to the admins cannot be changed", stream=stream, reason=str(error))

    async def report_deleted(self) -> None:
        """Post which of the lab's own channels and roles were deleted: to the reviewers' channel, else the record's."""
        server = self.app.server
        guild = self.app.get_guild(server.guild)
        if guild is None or guild.unavailable:
            return
        ids = {name: getattr(server, name) for name in NAMES}
        deleted = {name for name, channel_id in ids.items() if guild.get_channel(channel_id) is None}
        target = ids["record" if "review" in deleted else "review"]
        for name in deleted:
            said = f"The channel for the {NAMES[name]} was deleted: its posts wait."
            await self._say_deleted("channel", ids[name], said, target)
        for name, holders in ROLES.items():
            role_id = getattr(server, name)
            if role_id and guild.get_role(role_id) is None:
                await self._say_deleted(
                    "role", role_id, f"The role of the {holders} was deleted: nobody holds it.", target
                )

    async def _say_deleted(self, kind: str, discord_id: int, said: str, target: int) -> None:
        if discord_id in self._reported:
            return
        end = f"-# Lab · {kind} {discord_id} is gone"
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):  # the next round tries again
            await self._post(f"gone:{discord_id}", f"⚠️ {said} /stoa setup chooses another.\n{end}", target)
            self._reported.add(discord_id)

    async def _post(self, key: str, said: str, channel_id: int) -> None:
        try:
            await self.sender.post(key, str(channel_id), said)
        except (discord.DiscordException, LostLeaseError) as error:
            log.warning("a notice to the admins cannot be posted", notice=key, reason=str(error))


def refusal(error: discord.HTTPException) -> str:
    """A sentence for the admins that says what Discord refuses, and in which channel."""
    found = re.search(r"/channels/(\d+)", str(error.response.url))
    where = f" in <#{found[1]}>" if found else ""
    if error.status == 403:
        return f"the bot lacks a permission{where} ({text.line(error.text, 100)}, {error.code})."
    return f"Discord refuses it{where} ({text.line(error.text, 300)}, {error.code})."


def _key(stream: str, number: int) -> str:
    return f"{WAITS}{stream}:{number}"


def _owner(stream: str) -> str:
    return "Lab" if stream == record.LAB else f"P{stream.partition(':')[2]}"


def _open(session: Session, stream: str = "") -> list[DiscordMessage]:
    """The notices, of one stream or of all, which still say that posting waits."""
    wanted = col(DiscordMessage.key).startswith(f"{WAITS}{stream}:" if stream else WAITS, autoescape=True)
    query = select(DiscordMessage).where(
        wanted, col(DiscordMessage.message_id).is_not(None), DiscordMessage.digest != OVER
    )
    return list(session.scalars(query.where(col(DiscordMessage.gone).is_(False))))
