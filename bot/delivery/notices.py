"""What the admins are told of the delivery itself, in the channel of the reviews: each thing once."""

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

WAITS, OVER = "waits:", "over"
NAMES = {"proposals": "proposals", "review": "reviews", "announcements": "announcements", "record": "public record"}
ROLES = {"reviewer_role": "reviewers", "moderator_role": "moderators", "admin_role": "admins"}

log = structlog.get_logger()


class Notices:
    """Where a notice itself cannot be posted, the log alone has it."""

    def __init__(self, app: App, sender: Sender) -> None:
        self.app, self.sender = app, sender
        self._waiting: set[str] | None = None
        self._gone: set[int] = set()

    async def waits(self, stream: str, reason: str) -> None:
        """Say that the posts of a stream wait, at which entry, and why."""
        if self._waiting is not None:
            self._waiting.add(stream)
        number = (await self.app.read(outbox.cursors)).get(stream, 0) + 1
        before = await self.app.read(outbox.message, _key(stream, number))
        if before is not None and before.digest == OVER:  # that was another time
            await self.app.write(outbox.forget, before.key)
        said = f"⚠️ Posting waits: {reason} It goes on by itself once that is mended."
        end = f"-# {_owner(stream)} · waits at record {number}"
        await self._post(_key(stream, number), f"{said}\n{end}", self.app.server.review)

    async def goes_on(self, stream: str, *, behind: bool) -> None:
        """Say where it was said to wait that it does no more; `behind`: a card may be what waits still."""
        if self._waiting is None:  # of an earlier process
            self._waiting = {row.key.removeprefix(WAITS).rpartition(":")[0] for row in await self.app.read(_open)}
        if stream not in self._waiting:
            return
        try:
            told = (await self.app.read(outbox.cursors)).get(stream, 0)
            for row in await self.app.read(_open, stream):
                number = int(row.key.rpartition(":")[2])
                if behind and number > told:
                    continue
                said = "✅ Posting waited here, and goes on."
                await self.sender.rewrite(row, f"{said}\n-# {_owner(stream)} · waited at record {number}")
                await self.app.write(outbox.sent, row.key, row.message_id or "", OVER)
            if not behind:
                self._waiting.discard(stream)
        except (discord.DiscordException, aiohttp.ClientError, OSError) as error:
            log.warning("a notice to the admins cannot be changed", stream=stream, reason=str(error))

    async def look_around(self) -> None:
        """Say, once each, which of the lab's own channels and roles are gone: to the reviews, else in the record."""
        server = self.app.server
        guild = self.app.get_guild(server.guild)
        if guild is None or guild.unavailable:
            return
        ids = {name: getattr(server, name) for name in NAMES}
        gone = {name for name, channel_id in ids.items() if guild.get_channel(channel_id) is None}
        place = ids["record" if "review" in gone else "review"]
        for name in gone:
            said = f"The channel for the {NAMES[name]} was deleted: what belongs there waits."
            await self._is_gone("channel", ids[name], said, place)
        for name, holders in ROLES.items():
            role_id = getattr(server, name)
            if role_id and guild.get_role(role_id) is None:
                await self._is_gone("role", role_id, f"The role of the {holders} was deleted: nobody holds it.", place)

    async def _is_gone(self, kind: str, discord_id: int, said: str, place: int) -> None:
        if discord_id in self._gone:
            return
        end = f"-# Lab · {kind} {discord_id} is gone"
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):  # told in the next round, then
            await self._post(f"gone:{discord_id}", f"⚠️ {said} /stoa setup names another.\n{end}", place)
            self._gone.add(discord_id)

    async def _post(self, key: str, said: str, channel_id: int) -> None:
        try:
            await self.sender.post(key, str(channel_id), said)
        except (discord.DiscordException, LostLeaseError) as error:
            log.warning("the admins cannot be told", notice=key, reason=str(error))


def refusal(error: discord.HTTPException) -> str:
    """What Discord refuses and where, in a sentence for the admins."""
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
    """The notices, of one stream or all, that say of something that it waits."""
    mine = col(DiscordMessage.key).startswith(f"{WAITS}{stream}:" if stream else WAITS, autoescape=True)
    told = select(DiscordMessage).where(
        mine, col(DiscordMessage.message_id).is_not(None), DiscordMessage.digest != OVER
    )
    return list(session.scalars(told.where(col(DiscordMessage.gone).is_(False))))
