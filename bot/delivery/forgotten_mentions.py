"""Takes the mention of a person from the posts that pinged them, once the person was forgotten."""

import time
from collections.abc import Collection, Sequence

import aiohttp
import discord
import structlog
from sqlalchemy.orm import Session
from sqlmodel import col, select

from bot.app import App
from bot.delivery.edit_budget import OldMessageError
from bot.delivery.sender import LockedThreadError, Sender
from bot.mention import Mention
from bot.tables import DiscordMessage
from projects.people import NAMELESS, Person

PAUSE_SECONDS, AGAIN_SECONDS = 5.0, 60.0
AT_ONCE = 20

log = structlog.get_logger()


class ForgottenMentions:
    """Edits such posts of all projects, a few at a time."""

    def __init__(self, app: App, sender: Sender) -> None:
        self.app, self.sender = app, sender
        self._not_before = 0.0
        self._refused: set[str] = set()

    async def update(self) -> None:
        """Edit the next posts. Those that Discord refuses to edit, as in a locked thread, wait until the next start."""
        if time.monotonic() < self._not_before:
            return
        self._not_before = time.monotonic() + PAUSE_SECONDS
        for row in await self.app.read(_of_forgotten, list(self._refused)):
            try:
                await self.sender.take_line(row, Mention(int(row.mentions or 0)).line)
            except OldMessageError as error:
                self._not_before = time.monotonic() + error.retry_after
                return
            except (LockedThreadError, discord.Forbidden) as error:
                self._refused.add(row.key)
                log.warning("a post mentions somebody who was forgotten", key=row.key, reason=repr(error))
            except (discord.DiscordException, aiohttp.ClientError, OSError) as error:
                self._not_before = time.monotonic() + AGAIN_SECONDS
                log.warning("a mention of somebody who was forgotten is taken away later", reason=repr(error))
                return
            else:
                await self.app.write(_taken, row.key)


def _of_forgotten(session: Session, but: Collection[str]) -> Sequence[DiscordMessage]:
    """The next posts that mention somebody who was forgotten, `but` these."""
    shows = (col(DiscordMessage.message_id).is_not(None), ~col(DiscordMessage.gone))
    return session.scalars(
        select(DiscordMessage)
        .join(Person, col(Person.discord_id) == DiscordMessage.mentions)
        .where(Person.name == NAMELESS, *shows, col(DiscordMessage.key).not_in(but))
        .order_by(col(DiscordMessage.key))
        .limit(AT_ONCE)
    ).all()


def _taken(session: Session, key: str) -> None:
    session.get_one(DiscordMessage, key).mentions = None
