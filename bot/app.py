"""The Discord client that the rest of the bot shares, with its settings and its access to the database."""

import asyncio
import functools
import math
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeAlias, TypeVar

import discord
import structlog
from discord import app_commands
from sqlalchemy.orm import Session

from bot import server
from bot.rate_limit import RateLimit
from bot.renderer import Renderer
from bot.server import Server
from bot.turns import Turns
from projects.db.database import Database, is_away
from projects.errors import AwayError
from projects.log import Seldom
from projects.people import Actor
from projects.settings import Settings

log = structlog.get_logger()

P = ParamSpec("P")
R = TypeVar("R")

AWAY = "Stoa cannot reach its database at the moment, so nothing was done. Please try again in a minute or two."
FAILED_LATELY = 2.0
"""For so many seconds after a failure, the database is taken to be away without asking it."""
MOMENT = 1.5
"""The seconds that suggestions wait for the database; Discord drops those that come after three."""
FIRST_ANSWER = 2.0
"""The seconds that what reads before its first answer, such as what opens a form, waits for the database; Discord shows
a failure after three."""
SILENCE = 5.0
"""After so many seconds without an answer, the database is asked whether it answers at all; after as many more, the
connections that wait for it are broken."""
LONGEST_WAIT = 30.0
"""The most seconds that a request waits for a rate limit; where Discord asks for more, RateLimited is raised."""

in_delivery: ContextVar[bool] = ContextVar("in_delivery", default=False)
"""Set in the delivery's tasks, whose database calls have threads of their own, so that no member waits for them."""

asking: ContextVar[int] = ContextVar("asking", default=0)
"""The Discord id of the person that a task works for; 0 where it works for nobody."""

first_answer: ContextVar["FirstAnswer | None"] = ContextVar("first_answer", default=None)
"""The interaction for which a task works, and until when it is answered."""

THREADS = 4
"""Reads at once, and writes at once, for people; half of them at most for one person."""


class FirstAnswer(NamedTuple):
    """An interaction, and the moment of the monotonic clock until which its first answer should be sent."""

    interaction: "Interaction"
    until: float

    @property
    def left(self) -> float:
        """The seconds that are left; ∞ once the interaction is answered or acknowledged."""
        return math.inf if self.interaction.response.is_done() else self.until - time.monotonic()


class App(discord.Client):
    """A client without privileged intents that mentions nobody, and calls the domain in threads of its own."""

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
        self.problem = ""
        self.tree: app_commands.CommandTree[App]
        self.db = db
        self.renderer = Renderer()
        self._failed_at = -math.inf
        self._late = set[asyncio.Future[Any]]()
        self._log_again = Seldom()
        # Reads, which a form waits for, never stand behind writes, which wait for one another.
        self._readers = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="reader")
        self._writers = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="writer")
        self._turns = {pool: Turns(THREADS, THREADS // 2) for pool in (self._readers, self._writers)}
        self._dear, self._searches = Turns(2), Turns(1)
        self._delivery_threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="delivery")

    async def read(self, call: Callable[Concatenate[Session, P], R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function of the domain in a read-only session; returns what it returns."""

        def work() -> R:
            with self.db.read() as session:
                return call(session, *args, **kwargs)

        return await self._in_time(self._in(self._readers, work))

    async def write(self, call: Callable[Concatenate[Session, P], R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function of the domain in a transaction of its own; returns what it returns."""

        def work() -> R:
            with self.db.write() as session:
                return call(session, *args, **kwargs)

        return await self._in(self._writers, work)

    def dear_turn(self) -> AbstractAsyncContextManager[None]:
        """The turn of the person who asks for a dear answer, such as a picture: each has one made at a time."""
        return self._dear.take(asking.get())

    def search_turn(self) -> AbstractAsyncContextManager[None]:
        """The turn of the person who searches data, which may take minutes: one does at a time."""
        return self._searches.take(asking.get())

    async def reload_server(self) -> None:
        """Read again what the admins have chosen with `/stoa setup`; `problem` says what the server still lacks."""
        self.server = await self.read(server.load, self.settings)

    async def close(self) -> None:
        """Disconnect from Discord, and wait for running database calls to end."""
        await super().close()
        for threads in (self._readers, self._writers, self._delivery_threads):
            end = functools.partial(threads.shutdown, wait=True, cancel_futures=True)
            await asyncio.get_running_loop().run_in_executor(None, end)
        self.renderer.close()

    async def answers(self) -> bool:
        """Whether the database answers within a moment."""
        if time.monotonic() - self._failed_at < FAILED_LATELY:
            return False
        try:
            await asyncio.wait_for(asyncio.to_thread(self.db.answers), MOMENT)
        except Exception as error:
            return not (isinstance(error, TimeoutError) or is_away(error))
        return True

    async def _in_time(self, reading: Coroutine[Any, Any, R]) -> R:
        """What a read returns; raises AwayError where it takes longer than an interaction's first answer may."""
        waits = first_answer.get()
        left = math.inf if waits is None or in_delivery.get() else waits.left
        if left == math.inf:
            return await reading
        read = asyncio.ensure_future(reading)
        if not (await asyncio.wait({read}, timeout=max(0.0, left)))[0]:
            self._failed_at = time.monotonic()
            self._late.add(read)  # it goes on, as its thread does, and nobody hears what came of it
            read.add_done_callback(self._ended_late)
            raise AwayError(AWAY)
        return read.result()

    def _ended_late(self, read: asyncio.Future[Any]) -> None:
        self._late.discard(read)
        if not read.cancelled() and (error := read.exception()) is not None:
            log.debug("a read that was given up has failed", error=type(error).__name__)

    async def _in(self, threads: ThreadPoolExecutor, work: Callable[[], R]) -> R:
        """What a call of the domain in a thread returns; raises AwayError while the database is away."""
        loop = asyncio.get_running_loop()
        try:
            if in_delivery.get():
                result = await self._unless_silent(loop.run_in_executor(self._delivery_threads, work))
            else:
                async with self._turns[threads].take(asking.get()):
                    result = await self._unless_silent(loop.run_in_executor(threads, work))
        except Exception as error:
            if not is_away(error):
                raise
            self._failed_at = time.monotonic()
            if self._log_again.is_due():
                log.warning("the database cannot be reached; trying again", error=str(getattr(error, "orig", error)))
            raise AwayError(AWAY) from error
        self._failed_at = -math.inf
        return result

    async def _unless_silent(self, call: asyncio.Future[R]) -> R:
        """What a database call in a thread returns; it fails where the database has fallen silent meanwhile."""
        while not (await asyncio.wait({call}, timeout=SILENCE))[0]:
            try:
                await asyncio.wait_for(asyncio.to_thread(self.db.answers), SILENCE)
            except TimeoutError:
                self.db.break_off()
            except Exception as error:
                log.debug("the database does not answer", error=str(error))
        return call.result()


Interaction: TypeAlias = discord.Interaction[App]


def begin(interaction: discord.Interaction[Any]) -> None:
    """Let the present task work for an interaction that has just come: in its person's turns, and in time."""
    asking.set(interaction.user.id)
    first_answer.set(FirstAnswer(interaction, time.monotonic() + FIRST_ANSWER))


def take(interaction: discord.Interaction[Any]) -> None:
    """Let a form or a button of this process answer, in the turns at the database of the person who uses it."""
    begin(interaction)
    interaction.extras[take] = True


def taken(interaction: discord.Interaction[Any]) -> bool:
    """Whether a form or a button of this process answers; else it was made by an earlier one, or is too old."""
    return take in interaction.extras


async def acknowledge(interaction: Interaction) -> None:
    """Say that a private answer is to come, unless that was said: Discord hears of one within 3 s, or shows a failure.

    A form cannot follow. Whatever opens one only reads before it.
    """
    if not interaction.response.is_done():
        await interaction.response.defer(ephemeral=True, thinking=True)


def actor(interaction: Interaction) -> Actor:
    """The person who uses a command, button or form, with the lab roles that they hold at this moment.

    Roles are resolved at each use: while a form was open, the member may have lost a role, or the admins may have
    chosen another role of the server.
    """
    user = interaction.user
    roles = user.roles if isinstance(user, discord.Member) else []
    return Actor(user.id, user.display_name, interaction.client.server.lab_roles(role.id for role in roles))
