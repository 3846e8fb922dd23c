"""When cards may be edited: a budget for each channel, shared by all of its cards, the longest waiting first.

What is urgent, such as a decision, goes before all that is not.

Discord takes about five edits in five seconds in a channel, and few, how many it does not say, of messages older than
an hour. An edit waits for its turn here and not at Discord, so that it shows the state of the moment when it goes out.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import discord

from projects.db.columns import utcnow

BUSY, CALM, OLD = 3.0, 10.0, 300.0
"""Least seconds between two edits of a card: while much changes, while little does, and once its message is old."""
OLD_AGE = 3600.0
FRESH_EDITS = (4, 5.0)
OLD_EDITS = (1, 120.0)
A_SECOND = 18
"""Edits over all channels, which leave room for posts below Discord's 50 requests a second."""
REMEMBERED = 30.0
"""Seconds after its last edit for which a card counts as in motion."""
PATIENCE = 5.0
"""Seconds for which a card that does not ask again keeps its place."""


class OldMessageError(discord.DiscordException):
    """Discord takes no edit of this message now: it is older than an hour, and too many such were edited."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"no edit of an old message for {retry_after:.0f} s")
        self.retry_after = retry_after


def age(message_id: str) -> float:
    """Seconds since the message was sent, by its id."""
    return (utcnow() - discord.utils.snowflake_time(int(message_id))).total_seconds()


@dataclass
class Line:
    """The cards of a channel that wait, the longest waiting first, each with when it last asked; and the edits of late.

    Thousands may ask again and again, so an answer looks only at those whose turn it is.
    """

    most: int
    seconds: float
    urgent: dict[str, float] = field(default_factory=dict)
    others: dict[str, float] = field(default_factory=dict)
    edits: deque[float] = field(default_factory=deque)
    closed_until: float = 0.0

    def ask(self, key: str, now: float, *, urgent: bool) -> bool:
        """Whether it is this card's turn; it keeps its place while it asks again and again."""
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
        """Give a place up."""
        self.urgent.pop(key, None)
        self.others.pop(key, None)

    def _first(self, free: int, now: float) -> list[str]:
        """Whose turn it is; those before them that ask no more lose their places."""
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
    """One for the process. Keys are those of the messages; seconds throughout."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lines: dict[tuple[str, bool], Line] = {}
        # When each card was last edited, the one edited longest ago first: within `OLD` and `REMEMBERED` seconds.
        self._edited: dict[str, float] = {}
        self._moving: dict[str, float] = {}

    def edited_at(self, key: str) -> float:
        """When the card was last edited, on the clock; minus infinity where never."""
        return self._edited.get(key, float("-inf"))

    def rested(self, key: str, pause: float = BUSY) -> bool:
        """Whether the last edit is long enough ago; with many cards in motion, longer."""
        now = self._clock()
        while self._edited and now - next(iter(self._edited.values())) >= OLD:
            del self._edited[next(iter(self._edited))]
        while self._moving and now - next(iter(self._moving.values())) >= REMEMBERED:
            del self._moving[next(iter(self._moving))]
        return now - self.edited_at(key) >= max(pause, len(self._moving) / A_SECOND)

    def turn(self, key: str, channel_id: str, *, age: float, pause: float = BUSY, urgent: bool = False) -> bool:
        """Whether the card may be edited now; one that may not stands in line, if it has rested."""
        return self.rested(key, pause) and self._line(channel_id, age).ask(key, self._clock(), urgent=urgent)

    def edited(self, key: str, channel_id: str, *, age: float) -> None:
        """Count an edit."""
        now, line = self._clock(), self._line(channel_id, age)
        for known in (self._edited, self._moving):
            known.pop(key, None)
            known[key] = now
        line.edits.append(now)
        line.leave(key)

    def leave(self, key: str, channel_id: str, *, age: float) -> None:
        """Leave the line: there is nothing to edit."""
        self._line(channel_id, age).leave(key)

    def refused(self, channel_id: str, retry_after: float) -> None:
        """Edit no old message of the channel for so long."""
        self._line(channel_id, OLD_AGE).closed_until = self._clock() + retry_after

    def _line(self, channel_id: str, age: float) -> Line:
        old = age >= OLD_AGE
        return self._lines.setdefault((channel_id, old), Line(*(OLD_EDITS if old else FRESH_EDITS)))
