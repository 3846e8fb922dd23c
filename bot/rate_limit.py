"""Keeps the bot below Discord's limit over all routes, so that no request is answered with a 429.

discord.py keeps to the limit of each route, but learns of the limit over all routes only when a request is refused.
Here requests go out at an even rate below that limit, and only so many at once, so that slow answers cannot make many
arrive together. Discord exempts the endpoints of interactions, so an answer to a person never waits here.

discord.py also repeats a request after a server error, although Discord may have carried it out: `once` prevents that
for requests which must not be carried out twice.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterator
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import aiohttp
import structlog

REQUESTS_A_SECOND = 30.0
MOST_AT_ONCE = 15
SERVER_ERROR = 500
# Discord bans an address for a while after 10,000 answers of 401, 403 or 429 within ten minutes.
INVALID = frozenset({401, 403, 429})
MOST_INVALID = 5_000
INVALID_SECONDS = 600.0
EXEMPT = ("/interactions/", "/webhooks/")

log = structlog.get_logger()


class UnsureError(aiohttp.ClientError):
    """Discord answered a request with a server error, and may have carried it out."""


_failures: ContextVar[list[int] | None] = ContextVar("failures", default=None)


@contextlib.contextmanager
def once() -> Iterator[None]:
    """Raise UnsureError instead of repeating a request after a server error; after a 429 it is still repeated."""
    token = _failures.set([])
    try:
        yield
    finally:
        _failures.reset(token)


class RateLimit:
    """Limits the requests of an aiohttp session that is given `trace`."""

    def __init__(
        self,
        *,
        a_second: float = REQUESTS_A_SECOND,
        at_once: int = MOST_AT_ONCE,
        most_invalid: int = MOST_INVALID,
    ) -> None:
        self._between = 1 / a_second
        self._most_invalid = most_invalid
        self._next = 0.0
        self._slots = asyncio.Semaphore(at_once)
        self._invalid: deque[float] = deque()
        self.trace = aiohttp.TraceConfig()
        self.trace.on_request_start.append(self._start)
        self.trace.on_request_end.append(self._end)
        self.trace.on_request_exception.append(self._failed)

    async def _start(self, _: Any, request: SimpleNamespace, about: aiohttp.TraceRequestStartParams) -> None:
        if failures := _failures.get():
            raise UnsureError(f"Discord answers {failures[0]} to {about.method} {about.url.path}")
        request.counted = "/api/" in about.url.path and not any(part in about.url.path for part in EXEMPT)
        if not request.counted:
            return
        await self._while_invalid()
        await self._slots.acquire()
        try:
            now = time.monotonic()
            self._next = max(now, self._next + self._between)
            await asyncio.sleep(self._next - now)
        except BaseException:
            self._slots.release()
            raise

    async def _end(self, _: Any, request: SimpleNamespace, about: aiohttp.TraceRequestEndParams) -> None:
        failures = _failures.get()
        if failures is not None and about.response.status >= SERVER_ERROR:
            failures.append(about.response.status)
        if about.response.status in INVALID and about.response.headers.get("X-RateLimit-Scope") != "shared":
            self._invalid.append(time.monotonic())
        self._release(request)

    async def _failed(self, _: Any, request: SimpleNamespace, about: aiohttp.TraceRequestExceptionParams) -> None:
        self._release(request)

    def _release(self, request: SimpleNamespace) -> None:
        if request.counted:
            request.counted = False
            self._slots.release()

    async def _while_invalid(self) -> None:
        """Wait while so many requests were refused in the last ten minutes that Discord might ban the bot."""
        logged = False
        while True:
            past = time.monotonic() - INVALID_SECONDS
            while self._invalid and self._invalid[0] < past:
                self._invalid.popleft()
            if len(self._invalid) < self._most_invalid:
                return
            if not logged:
                log.warning("Discord has refused too many requests; the delivery waits", count=len(self._invalid))
                logged = True
            await asyncio.sleep(1.0)
