"""Whether the kernel has just killed processes of this host for want of memory. Imports no torch."""

from collections import deque
from pathlib import Path

VMSTAT = Path("/proc/vmstat")
LOOKS = 20
"""Looks that count as recent; a rank with much memory takes seconds to end."""


class OomKills:
    """Counts the kernel's kills for want of memory by `/proc/vmstat`, those within a container's limit among them."""

    def __init__(self) -> None:
        self._counts = deque([_count()], maxlen=LOOKS)

    def look(self) -> None:
        """Read the count once more; to be called all the time, about twice a second."""
        self._counts.append(_count())

    @property
    def are_recent(self) -> bool:
        """Whether there was a kill within the last looks."""
        return self._counts[-1] > self._counts[0]


def _count() -> int:
    """The kills since the host was booted; 0 where the kernel does not count them."""
    try:
        found = (line.split() for line in VMSTAT.read_text().splitlines() if line.startswith("oom_kill "))
        return next((int(words[1]) for words in found), 0)
    except (OSError, ValueError, IndexError):
        return 0
