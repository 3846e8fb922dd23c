"""Delivery: the loop that takes the record to Discord, with one feed a stream, while this process holds the lease."""

import asyncio
import math
import os
import socket
import time
from collections.abc import Awaitable, Callable

import aiohttp
import discord
import structlog
from sqlalchemy.orm import Session

from bot import kept_forms
from bot.app import App, in_delivery
from bot.delivery import lease, notices, outbox
from bot.delivery.feeds import LabFeed, ProjectFeed
from bot.delivery.follower_roles import FollowerRoles
from bot.delivery.forgotten_mentions import ForgottenMentions
from bot.delivery.lease import LostLeaseError
from bot.delivery.notices import Notices
from bot.delivery.sender import Sender
from broker.runs import runs
from projects import health
from projects.errors import AwayError
from projects.log import Seldom
from projects.record import record

MOST_FEEDS = 64
MOST_IDLE_FEEDS = 4
"""Feeds that run at once of projects with nothing new; after a start, thousands of them may have a card to check."""
LONGEST_BACKOFF_SECONDS = 30.0
DOUBLINGS = 6
TRIES_BEFORE_NOTICE = 3
TOO_MANY_REQUESTS = 429
SWEEP_SECONDS = 3600.0
"""How often old forms are looked for."""
REPORT, ROLES, FORGOTTEN = "report what was deleted", "give roles to followers", "mention no one who was forgotten"
FORMS = "delete old forms"
"""The names of the tasks that are no feed's."""

log = structlog.get_logger()


class Delivery:
    """Runs the feeds beside each other, so that one project's trouble does not stop the others."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.holder = f"{socket.gethostname()}:{os.getpid()}:{os.urandom(4).hex()}"
        self._sender = Sender(app, self.holder)
        self._notices = Notices(app, self._sender)
        self._roles = FollowerRoles(app, self.holder)
        self._forgotten = ForgottenMentions(app, self._sender)
        self._feeds: dict[str, LabFeed | ProjectFeed] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(MOST_FEEDS)
        self._idle_slots = asyncio.Semaphore(MOST_IDLE_FEEDS)
        self._backoffs: dict[str, Backoff] = {}
        self._waiting = False
        self._renews_at = -math.inf
        self._swept_at = -math.inf

    async def run(self) -> None:
        """Deliver until cancelled, then release the lease."""
        settings = self.app.settings
        guild = str(self.app.server.guild)
        in_delivery.set(True)
        try:
            while True:
                try:
                    held = await self._hold(guild)
                    if held:
                        self._start(REPORT, self._notices.report_deleted)
                        self._start(ROLES, self._roles.update)
                        self._start(FORGOTTEN, self._forgotten.update)
                        if time.monotonic() - self._swept_at > SWEEP_SECONDS:
                            self._swept_at = time.monotonic()
                            self._start(FORMS, self._sweep_forms)
                        await self._round()
                    else:
                        await self._stop()
                    health.beat(settings, "bot")
                    if self._waiting == held:
                        self._waiting = not held
                        log.info("delivering" if held else "another process delivers to this server; waiting")
                except AwayError:  # which is logged once a minute
                    health.beat(settings, "bot")  # members hear that the database is away; a restarted bot cannot start
                except Exception as error:
                    log.error("a round of the delivery failed", exc_info=error)
                await asyncio.sleep(settings.tick_seconds)
        finally:
            await self._stop()
            await self.app.write(lease.release, guild, self.holder)

    async def _hold(self, guild: str) -> bool:
        """Whether this process has the lease, which it takes, or renews once a third of it is over."""
        began, seconds = time.monotonic(), self.app.settings.lease_seconds
        if began < self._renews_at:
            return True
        held = await self.app.write(lease.hold, guild, self.holder, seconds)
        self._renews_at = began + seconds / 3 if held else -math.inf
        return held

    async def _sweep_forms(self) -> None:
        await self.app.write(kept_forms.sweep)

    def _start(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Start what is done beside the rounds, unless it is at work: Discord may be slow."""
        task = self._tasks.get(name)
        if task is None or task.done():
            self._tasks[name] = asyncio.create_task(self._try(name, work), name=name)

    async def _try(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except AwayError:
            pass
        except Exception as error:
            log.error("what is done beside the posts has failed; it is tried again", task=name, exc_info=error)

    async def _round(self) -> None:
        """Start the feeds that have something to do and are not running."""
        due, active = await self.app.read(_streams)
        if not self._feeds:  # a crash may have left any card out of date
            for stream in await self.app.read(record.streams):
                self._open(stream)
        for stream in (due | active) - self._feeds.keys():
            self._open(stream)
        for stream, feed in self._feeds.items():
            task = self._tasks.get(stream)
            if task is not None and not task.done():
                continue
            urgent = stream in due or stream in active
            backoff = self._backoffs.get(stream)
            if (backoff is None or backoff.over) and (urgent or feed.due):
                slots = self._slots if urgent else self._idle_slots
                self._tasks[stream] = asyncio.create_task(self._catch_up(stream, feed, slots), name=f"feed {stream}")

    def _open(self, stream: str) -> LabFeed | ProjectFeed:
        if stream == record.LAB:
            feed: LabFeed | ProjectFeed = LabFeed(self.app, self._sender)
        else:
            number = int(stream.partition(":")[2])
            feed = ProjectFeed(self.app, self._sender, self.app.renderer, number)
        self._feeds[stream] = feed
        return feed

    async def _catch_up(self, stream: str, feed: LabFeed | ProjectFeed, slots: asyncio.Semaphore) -> None:
        """Run a feed once; its trouble makes it wait, and the admins hear of what does not pass by itself."""
        try:
            await self._try_to_catch_up(stream, feed, slots)
        except AwayError:
            self._backoffs[stream].wait()

    async def _try_to_catch_up(self, stream: str, feed: LabFeed | ProjectFeed, slots: asyncio.Semaphore) -> None:
        backoff = self._backoffs.setdefault(stream, Backoff())
        try:
            more = True
            while more:  # a feed with much to post gives its place to those that wait, and queues again
                async with slots:
                    more = await feed.catch_up()
        except AwayError:
            raise
        except LostLeaseError:
            log.warning("the lease went to another process", stream=stream)
        except discord.RateLimited as error:
            backoff.note(stream, f"Discord asks to wait {error.retry_after:.0f} s")
        except discord.HTTPException as error:
            backoff.note(stream, f"Discord answers {error.status} {error.code}: {error.text}")
            if error.status < 500 and error.status != TOO_MANY_REQUESTS:
                await self._notices.say_waiting(stream, notices.refusal(error))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            backoff.note(stream, f"Discord cannot be reached: {error!r}")
        except Exception as error:
            backoff.note(stream, "an error of our own", error)
            if backoff.count >= TRIES_BEFORE_NOTICE:
                await self._notices.say_waiting(stream, "an error of our own, which is in the bot's log.")
        else:
            await self._notices.say_resumed(stream, behind=feed.behind)
            del self._backoffs[stream]

    async def _stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()
        self._feeds.clear()


class Backoff:
    """The exponential backoff of a feed that fails; its failures are logged once a minute."""

    def __init__(self) -> None:
        self.count = 0
        self._until = 0.0
        self._log_again = Seldom()

    @property
    def over(self) -> bool:
        """Whether the feed may try again."""
        return time.monotonic() >= self._until

    def wait(self) -> None:
        """Let the feed wait, longer each time."""
        self._until = time.monotonic() + min(0.5 * 2 ** min(self.count, DOUBLINGS), LONGEST_BACKOFF_SECONDS)
        self.count += 1

    def note(self, stream: str, reason: str, error: BaseException | None = None) -> None:
        """Count a failure, and log it."""
        self.wait()
        if self._log_again.is_due():
            log.warning("posting waits and is tried again", stream=stream, reason=reason, exc_info=error)


def _streams(session: Session) -> tuple[set[str], set[str]]:
    """The streams with entries to post, and those of projects with active runs."""
    active = {record.project_stream(project_id) for project_id in runs.in_motion(session)}
    return set(outbox.streams_behind(session)), active
