"""Health of the services: each touches a file in every round of its loop, and a check looks at the file's age."""

import socket
import time
from pathlib import Path

from projects.settings import Settings

OLDEST_SECONDS = 180
"""Longer than a round in which each of two statements waits a minute for a database that has fallen silent."""


def beat(settings: Settings, part: str) -> None:
    """Note that a service has just completed a round."""
    path = _path(settings, part)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def problem(settings: Settings, part: str) -> str | None:
    """What is wrong with a service on this host, in one sentence; None where it is healthy."""
    path = _path(settings, part)
    if not path.exists():
        return f"The {part} has not completed a round yet; its log says why."
    age = time.time() - path.stat().st_mtime
    if age > OLDEST_SECONDS:
        return f"The {part} last completed a round {age:.0f} s ago; its log says what it waits for."
    return None


def _path(settings: Settings, part: str) -> Path:
    return settings.home / "health" / f"{part}@{socket.gethostname()}"
