"""When cards may be edited: each channel has a budget of edits, which its cards share, the longest waiting first.

An urgent edit, such as one after a decision, goes before all others.

Discord accepts about five edits in five seconds in a channel, and few of messages older than an hour; it does not say
how many. An edit waits here for its turn, and not at Discord, so that it shows the state of the moment it is sent.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import discord

from projects.db.columns import utcnow

BUSY, CALM, OLD = 3.0, 10.0, 300.0
"""The least seconds between two edits of a card: while much changes, while little does, and once its message is old."""
OLD_AGE = 3600.0
"""Seconds after which Discord counts a message as old."""
FRESH_EDITS = (4, 5.0)
OLD_EDITS = (1, 120.0)
"""The most edits in so many seconds in a channel, of fresh messages and of old ones."""
EDITS_A_SECOND = 18
"""The most edits a second over all channels, which leaves room for posts below Discord's 50 requests a second."""
ACTIVE_SECONDS = 30.0
"""Seconds after its last edit for which a card counts as active."""
PATIENCE = 5.0
"""Seconds for which a card that does not ask again keeps its place in the queue."""


class OldMessageError(discord.DiscordException):
    """Discord refuses to edit a message now: it is older than an hour, and too many of those were edited."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"no edit of an old message for {retry_after:.0f} s")
        self.retry_after = retry_after


def age(message_id: str) -> float:
    """Seconds since a message was sent, which its id tells."""
    return (utcnow() - discord.utils.snowflake_time(int(message_id))).total_seconds()


@dataclass
class Queue:
    """The cards of a channel that wait to be edited, the longest waiting first, and the recent edits in the channel.

    `urgent` and `others` hold when each card last asked. The budget is `most` edits in `seconds`. Thousands of cards
    may ask again and again, so an answer looks only at those whose turn it is.
    """

    most: int
    seconds: float
    urgent: dict[str, float] = field(default_factory=dict)
    others: dict[str, float] = field(default_factory=dict)
    edits: deque[float] = field(default_factory=deque)
    closed_until: float = 0.0

    def ask(self, key: str, now: float, *, urgent: bool) -> bool:
        """Whether it is this card's turn. A card keeps its place as long as it asks again and again."""
        mine, other = (self.urgent, self.others) if urgent else (self.others, self.urgent)
        other.pop(key, None)
        if now - mine.get(key, now) > PATIENCE:
            del mine[key]
        mine[key] = now
        while self.edits and now - self.edits[0] >= self.seconds:
            self.edits.popleft()
        free = self.most - len(self.edits) if now >= self.closed_until else 0
        return key in self._first(free, now)

    def leave(self, key: str) -> None:
        """Take a card out of the queue."""
        self.urgent.pop(key, None)
        self.others.pop(key, None)

    def _first(self, free: int, now: float) -> list[str]:
        """The cards whose turn it is; cards before them that no longer ask lose their places."""
        first: list[str] = []
        for waiting in (self.urgent, self.others):
            gone: list[str] = []
            for key, asked in waiting.items():
                if len(first) >= free:
                    break
                (gone if now - asked > PATIENCE else first).append(key)
            for key in gone:
                del waiting[key]
        return first


class EditBudget:
    """The budgets of all channels, of which the process has one. Cards are known by the keys of their messages."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._queues: dict[tuple[str, bool], Queue] = {}
        # When each card was last edited, the longest ago first: within `OLD` seconds, and within `ACTIVE_SECONDS`.
        self._edited: dict[str, float] = {}
        self._active: dict[str, float] = {}

    def edited_at(self, key: str) -> float:
        """When a card was last edited, in seconds on the clock; minus infinity where it never was."""
        return self._edited.get(key, float("-inf"))

    def rested(self, key: str, pause: float = BUSY) -> bool:
        """Whether a card's last edit is `pause` seconds ago; with many active cards, more."""
        now = self._clock()
        while self._edited and now - next(iter(self._edited.values())) >= OLD:
            del self._edited[next(iter(self._edited))]
        while self._active and now - next(iter(self._active.values())) >= ACTIVE_SECONDS:
            del self._active[next(iter(self._active))]
        return now - self.edited_at(key) >= max(pause, len(self._active) / EDITS_A_SECOND)

    def turn(self, key: str, channel_id: str, *, age: float, pause: float = BUSY, urgent: bool = False) -> bool:
        """Whether a card may be edited now, whose message is `age` seconds old; otherwise it joins the queue."""
        return self.rested(key, pause) and self._queue(channel_id, age).ask(key, self._clock(), urgent=urgent)

    def edited(self, key: str, channel_id: str, *, age: float) -> None:
        """Count an edit, and take its card out of the queue."""
        now, queue = self._clock(), self._queue(channel_id, age)
        for known in (self._edited, self._active):
            known.pop(key, None)
            known[key] = now
        queue.edits.append(now)
        queue.leave(key)

    def leave(self, key: str, channel_id: str, *, age: float) -> None:
        """Take a card out of the queue without an edit."""
        self._queue(channel_id, age).leave(key)

    def refused(self, channel_id: str, retry_after: float) -> None:
        """Allow no edit of an old message in a channel for `retry_after` seconds."""
        self._queue(channel_id, OLD_AGE).closed_until = self._clock() + retry_after

    def _queue(self, channel_id: str, age: float) -> Queue:
        old = age >= OLD_AGE
        return self._queues.setdefault((channel_id, old), Queue(*(OLD_EDITS if old else FRESH_EDITS)))
