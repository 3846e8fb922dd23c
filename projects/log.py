"""The log of every process: lines with time and level, without what a reader must not see."""

import logging
import re
import time
import traceback
from collections.abc import Hashable
from typing import Any

import structlog

# What follows the path of an address may be a signature that lets anybody upload; before the host may be a password.
_ADDRESS = re.compile(r"""(\b[a-z][a-z0-9+.-]*://)(?:[^\s/@'"]*@)?([^\s?#'"<>]*)(?:\?[^\s'"<>]*)?""", re.IGNORECASE)

AGAIN_SECONDS = 60.0
"""The least time between two lines of the log about the same trouble."""


class Seldom:
    """Lets what would be logged again and again be logged once a minute."""

    def __init__(self) -> None:
        self._logged_at: dict[Hashable, float] = {}

    def is_due(self, about: Hashable = None) -> bool:
        """Whether it is time to log a line about this; if so, its minute begins again."""
        now = time.monotonic()
        self._logged_at = {each: at for each, at in self._logged_at.items() if now - at < AGAIN_SECONDS}
        due = about not in self._logged_at
        if due:
            self._logged_at[about] = now
        return due


def without_secrets(said: str) -> str:
    """A text whose addresses have lost their query, and the user and password before their host."""
    return _ADDRESS.sub(r"\1\2", said) if "://" in said else said


def configure() -> None:
    """Configure the logs of Stoa and of all libraries.

    Tracebacks show no local variables, since those of the HTTP clients hold tokens.
    """
    renderer = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)

    def rendered(logger: Any, name: str, event: structlog.typing.EventDict) -> str:
        return without_secrets(str(renderer(logger, name, event)))

    structlog.configure(processors=[structlog.processors.add_log_level, stamp, rendered])
    if logging.getLogRecordFactory() is logging.LogRecord:
        logging.setLogRecordFactory(_record)


def _record(*args: Any, **kwargs: Any) -> logging.LogRecord:
    """A line of a library's log, and its traceback, without secrets."""
    record = logging.LogRecord(*args, **kwargs)
    try:
        said = record.getMessage()
    except (TypeError, ValueError):  # arguments that do not fit: the handler reports that
        return record
    if "://" in said:
        record.msg, record.args = without_secrets(said), ()
    if record.exc_info and record.exc_info[0] is not None:
        record.exc_text = without_secrets("".join(traceback.format_exception(*record.exc_info)).rstrip())
    return record
