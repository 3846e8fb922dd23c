"""The pace of all requests to Discord, kept where each one goes out, so that none is answered with a 429.

discord.py holds each route's own bucket; it learns of the limit over all routes only by being refused. Here requests
go out evenly, below that limit, and only so many at once: answers that are slow to come cannot let a crowd arrive
together. The interactions' own endpoints are outside of Discord's limit, so that a first answer never waits here.

discord.py also repeats a request after an error of Discord's own, which may have done the work all the same: what must
not be made twice is asked for within `once`.
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

A_SECOND = 30.0
AT_ONCE = 15
FAILED = 500
# Discord shuts out an address with 10,000 answers of 401, 403 or 429 within ten minutes.
INVALID = frozenset({401, 403, 429})
MOST_INVALID = 5_000
INVALID_SECONDS = 600.0
EXEMPT = ("/interactions/", "/webhooks/")

log = structlog.get_logger()


class UnsureError(aiohttp.ClientError):
    """Discord has failed at a request that it may have carried out."""


_failures: ContextVar[list[int] | None] = ContextVar("failures", default=None)


@contextlib.contextmanager
def once() -> Iterator[None]:
    """Let a request in here go out again after a 429, but not after an error of Discord's own: raise UnsureError."""
    token = _failures.set([])
    try:
        yield
    finally:
        _failures.reset(token)


class RateLimit:
    """`trace` goes into the session through which the requests are made."""

    def __init__(self, *, a_second: float = A_SECOND, at_once: int = AT_ONCE, most_invalid: int = MOST_INVALID) -> None:
        self._between = 1 / a_second
        self._most_invalid = most_invalid
        self._next = 0.0
        self._places = asyncio.Semaphore(at_once)
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
        await self._places.acquire()
        try:
            now = time.monotonic()
            self._next = max(now, self._next + self._between)
            await asyncio.sleep(self._next - now)
        except BaseException:
            self._places.release()
            raise

    async def _end(self, _: Any, request: SimpleNamespace, about: aiohttp.TraceRequestEndParams) -> None:
        failures = _failures.get()
        if failures is not None and about.response.status >= FAILED:
            failures.append(about.response.status)
        if about.response.status in INVALID and about.response.headers.get("X-RateLimit-Scope") != "shared":
            self._invalid.append(time.monotonic())
        self._release(request)

    async def _failed(self, _: Any, request: SimpleNamespace, about: aiohttp.TraceRequestExceptionParams) -> None:
        self._release(request)

    def _release(self, request: SimpleNamespace) -> None:
        if request.counted:
            request.counted = False
            self._places.release()

    async def _while_invalid(self) -> None:
        """Wait while so many requests were refused of late that Discord may shut the bot out."""
        told = False
        while True:
            past = time.monotonic() - INVALID_SECONDS
            while self._invalid and self._invalid[0] < past:
                self._invalid.popleft()
            if len(self._invalid) < self._most_invalid:
                return
            if not told:
                log.warning(
                    "Discord has refused too many requests of late; the delivery waits", count=len(self._invalid)
                )
                told = True
            await asyncio.sleep(1.0)
