"""The Discord client that the rest of the bot works with: its settings, and its own way to the database."""

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Concatenate, ParamSpec, TypeAlias, TypeVar

import discord
from discord import app_commands
from sqlalchemy.orm import Session

from bot import server
from bot.plots.renderer import Renderer
from bot.rate_limit import RateLimit
from bot.server import Server
from projects.db.database import Database
from projects.people import Actor
from projects.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")

LONGEST_WAIT = 30.0
"""Seconds for which a request waits for its bucket; where Discord says longer, discord.RateLimited is raised."""

in_delivery: ContextVar[bool] = ContextVar("in_delivery", default=False)
"""Set in the delivery and in all that it starts, whose calls of the database never stand before a person's."""


class App(discord.Client):
    """A client without privileged intents, which pings nobody, and calls the domain in threads of its own."""

    def __init__(self, settings: Settings, db: Database) -> None:
        super().__init__(
            intents=discord.Intents(guilds=True),
            allowed_mentions=discord.AllowedMentions.none(),
            guild_ready_timeout=0.5,
            http_trace=RateLimit().trace,
            max_ratelimit_timeout=LONGEST_WAIT,
        )
        self.settings = settings
        self.server = Server.of(settings)
        self.trouble = ""
        self.tree: app_commands.CommandTree[App]
        self.db = db
        self.renderer = Renderer()
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="database")
        self._delivery_threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="delivery")

    async def read(self, call: Callable[Concatenate[Session, P], R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function of the domain in a session that only looks."""

        def work() -> R:
            with self.db.read() as session:
                return call(session, *args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._pool(), work)

    async def write(self, call: Callable[Concatenate[Session, P], R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function of the domain in a transaction of its own."""

        def work() -> R:
            with self.db.write() as session:
                return call(session, *args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._pool(), work)

    async def reload_server(self) -> None:
        """Take over what the admins have chosen with `/stoa setup`; `trouble` is what the server lacks still."""
        self.server = await self.read(server.load, self.settings)

    async def close(self) -> None:
        """Leave Discord, and let the calls end that are still at the database."""
        await super().close()
        for threads in (self._threads, self._delivery_threads):
            end = functools.partial(threads.shutdown, wait=True, cancel_futures=True)
            await asyncio.get_running_loop().run_in_executor(None, end)
        self.renderer.close()

    def _pool(self) -> ThreadPoolExecutor:
        return self._delivery_threads if in_delivery.get() else self._threads


Interaction: TypeAlias = discord.Interaction[App]


def actor(interaction: Interaction) -> Actor:
    """The person who asks, with the lab roles that they hold at this moment.

    Each act resolves the roles anew: a member may have lost one, or the admins may have chosen another role of the
    server, while a form lay open.
    """
    user = interaction.user
    roles = user.roles if isinstance(user, discord.Member) else []
    return Actor(user.id, user.display_name, interaction.client.server.lab_roles(role.id for role in roles))
