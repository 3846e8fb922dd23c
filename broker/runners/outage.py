"""Whether the database is away, as a supervisor has to know whose renewal is overdue (docs/locking.md)."""

import math
import threading
import time

import structlog

from projects.db.database import Database
from projects.log import Seldom

log = structlog.get_logger()


class Outage:
    """Asks whether the database answers at all; a database that only lets a write wait is not away.

    `away` is what is known. `answered_at` is when the database last answered, and `back_at` when it did so for the
    first time after it had been away, in seconds of the monotonic clock.
    """

    def __init__(self, db: Database) -> None:
        self.away = False
        self.answered_at = self.back_at = -math.inf
        self._db = db
        self._asking: threading.Thread | None = None
        self._asked_at = -math.inf
        self._log_again = Seldom()

    def ask(self, now: float, patience: float) -> None:
        """Ask again after `patience` seconds.

        In a thread, since a server that hangs leaves the question open: unanswered for `patience`, it is away.
        """
        if self._asking is not None and self._asking.is_alive():
            self.away = self.away or now - self._asked_at > patience
        elif now - self._asked_at > patience:
            self._asking, self._asked_at = threading.Thread(target=self._ask, daemon=True), now
            self._asking.start()

    def is_known(self, now: float, patience: float) -> bool:
        """Whether it is known if the database answers: it is away, or has answered one of the last two questions."""
        return self.away or now - self.answered_at <= 2 * patience

    def say(self, error: Exception) -> None:
        """Log, once a minute, that the database cannot be used."""
        if self._log_again.is_due():
            log.warning("the database could not be used; trying again", error=str(getattr(error, "orig", error)))

    def _ask(self) -> None:
        try:
            self._db.answers()
        except Exception as error:
            self.away = True
            self.say(error)
        else:
            self.answered_at = time.monotonic()
            if self.away:
                self.back_at = self.answered_at
            self.away = False
