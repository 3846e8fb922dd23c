"""The database's own clock, which all hosts share: a host whose clock is wrong neither ends nor outlives a lease.

A process asks the database for its time when it takes a connection, and counts on by the time since the boot, which no
turning of the host's clock changes. Before the first answer, which the first session waits for, it goes by the host's
clock.
"""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine, event

GOOD_FOR_SECONDS = 30.0
TRIES = 3
QUICK_SECONDS = 0.05
"""An answer that took no longer than this is exact enough; else the quickest of a few counts."""
TOLERANCE = timedelta(seconds=0.1)
"""A difference too small to be told from the answer's way is not followed, so that times of a process stay in order."""

_told: tuple[datetime, float] | None = None
_asked_at = float("-inf")


def now() -> datetime:
    """The current time of the database, UTC with zone."""
    if _told is None:
        return datetime.now(UTC)
    at, since = _told
    return at + timedelta(seconds=_since_boot() - since)


def is_known() -> bool:
    """Whether the database has told its time."""
    return _told is not None


def follow(engine: Engine, query: str) -> None:
    """Keep the time of an engine's database; `query` selects its time as naive UTC."""

    @event.listens_for(engine, "checkout")
    def _checkout(connection: Any, _record: Any, _proxy: Any) -> None:
        global _told, _asked_at
        if _since_boot() - _asked_at < GOOD_FOR_SECONDS:
            return
        at, since = _ask(connection, query)
        connection.rollback()
        _asked_at = _since_boot()
        if _told is None or abs(at + timedelta(seconds=_asked_at - since) - now()) > TOLERANCE:
            _told = at, since


def _ask(connection: Any, query: str) -> tuple[datetime, float]:
    """The database's time, and when that was in seconds since the boot."""
    best, took = None, float("inf")
    for _ in range(TRIES):
        begun = _since_boot()
        [said] = connection.execute(query).fetchone()
        ended = _since_boot()
        if best is None or ended - begun < took:
            took = ended - begun
            at = said if isinstance(said, datetime) else datetime.fromisoformat(said)
            best = at.replace(tzinfo=UTC), (begun + ended) / 2
        if took <= QUICK_SECONDS:
            break
    assert best is not None
    return best


def _since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
