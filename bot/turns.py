"""Turns: work for many people is done a few pieces at once, person by person, so that one's many make nobody wait."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """Gives turns to people, who are known by their Discord ids: `at_once` in all, and `each` to one person.

    Whoever waits longest among those without a turn is next, whatever others have waiting.
    """

    def __init__(self, at_once: int, each: int = 1) -> None:
        self._free = at_once
        self._each = each
        self._busy: Counter[int] = Counter()
        self._waiting: dict[int, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def take(self, person: int) -> AsyncIterator[None]:
        """Wait for one of a person's turns, and keep it as long as the context."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(person, deque()).append(turn)
        self._give()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._forget(person, turn)
            else:  # the turn came at the same moment
                self._end(person)
            raise
        try:
            yield
        finally:
            self._end(person)

    def _give(self) -> None:
        """Give the free turns to those who have waited longest; whoever gets one goes to the end of the line."""
        while self._free:
            person = next((who for who in self._waiting if self._busy[who] < self._each), None)
            if person is None:
                return
            waiting = self._waiting.pop(person)
            turn = waiting.popleft()
            if waiting:
                self._waiting[person] = waiting
            self._busy[person] += 1
            self._free -= 1
            turn.set_result(None)

    def _end(self, person: int) -> None:
        self._free += 1
        self._busy[person] -= 1
        if not self._busy[person]:
            del self._busy[person]
        self._give()

    def _forget(self, person: int, turn: asyncio.Future[None]) -> None:
        self._waiting[person].remove(turn)
        if not self._waiting[person]:
            del self._waiting[person]
