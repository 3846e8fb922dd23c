"""Delivery: the loop that takes the record to Discord, one feed a stream, while this process holds the lease."""

import asyncio
import os
import socket
import time

import aiohttp
import discord
import structlog
from sqlalchemy.orm import Session

from bot.app import App, in_delivery
from bot.delivery import lease, notices, outbox
from bot.delivery.feeds import LabFeed, ProjectFeed
from bot.delivery.lease import LostLeaseError
from bot.delivery.notices import Notices
from bot.delivery.sender import Sender
from broker.runs import runs
from projects import health
from projects.record import record

AT_ONCE = 64
IDLE_AT_ONCE = 4
"""Of projects in which nothing happens, whose cards are looked at once after a start: thousands, perhaps."""
TELL_AGAIN_SECONDS = 60.0
LONGEST_PAUSE_SECONDS = 30.0
DOUBLINGS = 6
TRIES_BEFORE_TOLD = 3
TOO_MANY = 429
LOOKING = "look around"
"""The task beside those of the streams."""

log = structlog.get_logger()


class Delivery:
    """Feeds run beside each other, so that one project's trouble does not stop the others."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.holder = f"{socket.gethostname()}:{os.getpid()}:{os.urandom(4).hex()}"
        self._sender = Sender(app, self.holder)
        self._notices = Notices(app, self._sender)
        self._feeds: dict[str, LabFeed | ProjectFeed] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(AT_ONCE)
        self._idle_places = asyncio.Semaphore(IDLE_AT_ONCE)
        self._troubles: dict[str, Trouble] = {}
        self._waiting = False

    async def run(self) -> None:
        """Deliver until cancelled; then let the lease go."""
        settings = self.app.settings
        guild = str(self.app.server.guild)
        in_delivery.set(True)
        try:
            while True:
                try:
                    held = await self.app.write(lease.hold, guild, self.holder, settings.lease_seconds)
                    if held:
                        self._look_around()
                        await self._round()
                    else:
                        await self._stop()
                    health.beat(settings, "bot")
                    if self._waiting == held:
                        self._waiting = not held
                        log.info("delivering" if held else "another process delivers to this server; waiting")
                except Exception as error:
                    log.error("a round of the delivery failed", exc_info=error)
                await asyncio.sleep(settings.tick_seconds)
        finally:
            await self._stop()
            await self.app.write(lease.let_go, guild, self.holder)

    def _look_around(self) -> None:
        """Have the admins told of what is gone, beside the rounds: what is told them may wait for Discord."""
        task = self._tasks.get(LOOKING)
        if task is None or task.done():
            self._tasks[LOOKING] = asyncio.create_task(self._tell_what_is_gone(), name=LOOKING)

    async def _tell_what_is_gone(self) -> None:
        try:
            await self._notices.look_around()
        except Exception as error:
            log.error("the admins could not be told of what is gone", exc_info=error)

    async def _round(self) -> None:
        """Start the feeds that have something to do and are not at it."""
        due, moving = await self.app.read(_look)
        if not self._feeds:  # a crash may have left the cards of any project behind
            for stream in await self.app.read(record.streams):
                self._open(stream)
        for stream in (due | moving) - self._feeds.keys():
            self._open(stream)
        for stream, feed in self._feeds.items():
            task = self._tasks.get(stream)
            if task is not None and not task.done():
                continue
            urgent = stream in due or stream in moving
            trouble = self._troubles.get(stream)
            if (trouble is None or trouble.over) and (urgent or feed.due):
                places = self._places if urgent else self._idle_places
                self._tasks[stream] = asyncio.create_task(self._catch_up(stream, feed, places), name=f"feed {stream}")

    def _open(self, stream: str) -> LabFeed | ProjectFeed:
        if stream == record.LAB:
            feed: LabFeed | ProjectFeed = LabFeed(self.app, self._sender)
        else:
            number = int(stream.partition(":")[2])
            feed = ProjectFeed(self.app, self._sender, self.app.renderer, number)
        self._feeds[stream] = feed
        return feed

    async def _catch_up(self, stream: str, feed: LabFeed | ProjectFeed, places: asyncio.Semaphore) -> None:
        trouble = self._troubles.setdefault(stream, Trouble())
        try:
            async with places:
                await feed.catch_up()
        except LostLeaseError:
            log.warning("the lease went to another process", stream=stream)
        except discord.RateLimited as error:
            trouble.note(stream, f"Discord asks to wait {error.retry_after:.0f} s")
        except discord.HTTPException as error:
            trouble.note(stream, f"Discord answers {error.status} {error.code}: {error.text}")
            if error.status < 500 and error.status != TOO_MANY:
                await self._notices.waits(stream, notices.refusal(error))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            trouble.note(stream, f"Discord cannot be reached: {error!r}")
        except Exception as error:
            trouble.note(stream, "an error of our own", error)
            if trouble.count >= TRIES_BEFORE_TOLD:
                await self._notices.waits(stream, "an error of our own, which is in the bot's log.")
        else:
            await self._notices.goes_on(stream, behind=feed.behind)
            del self._troubles[stream]

    async def _stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()
        self._feeds.clear()


class Trouble:
    """How often in a row a feed has failed: it comes again ever later, and is logged once a minute."""

    def __init__(self) -> None:
        self.count = 0
        self._again = 0.0
        self._told = float("-inf")

    @property
    def over(self) -> bool:
        """Whether the feed may try again."""
        return time.monotonic() >= self._again

    def note(self, stream: str, said: str, error: BaseException | None = None) -> None:
        """Count a failure."""
        now = time.monotonic()
        self._again = now + min(0.5 * 2 ** min(self.count, DOUBLINGS), LONGEST_PAUSE_SECONDS)
        self.count += 1
        if now - self._told >= TELL_AGAIN_SECONDS:
            self._told = now
            log.warning("posting waits and is tried again", stream=stream, reason=said, exc_info=error)


def _look(session: Session) -> tuple[set[str], set[str]]:
    """The streams that have entries to tell, and those of projects with runs in motion."""
    moving = {record.project_stream(project_id) for project_id in runs.in_motion(session)}
    return set(outbox.due(session)), moving
