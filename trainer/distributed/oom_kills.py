"""Whether the kernel has just killed processes for want of memory. Imports no torch."""

from collections import deque
from contextlib import suppress
from pathlib import Path

VMSTAT = Path("/proc/vmstat")
OWN_GROUP, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
LOOKS = 20
"""Looks that count as recent; a rank with much memory takes seconds to end."""


class OomKills:
    """Counts the kernel's kills for want of memory in this process's control group, where it has version 2 of them.

    Elsewhere it counts those of the whole host, by `/proc/vmstat`: they may be of other containers and users.
    """

    def __init__(self) -> None:
        events = _events()
        self._of_host = events is None
        self._counters = events or VMSTAT
        self._counts = deque([self._count()], maxlen=LOOKS)

    def look(self) -> None:
        """Read the count once more; to be called all the time, about twice a second."""
        self._counts.append(self._count())

    @property
    def cause(self) -> str:
        """Why a process was just killed, by the kills within the last looks; empty where there were none."""
        if self._counts[-1] <= self._counts[0]:
            return ""
        return "perhaps because its host ran out of memory" if self._of_host else "because memory ran out"

    def _count(self) -> int:
        """The kills so far; 0 where the kernel does not count them."""
        try:
            lines = self._counters.read_text().splitlines()
            return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
        except (OSError, ValueError, IndexError):
            return 0


def _events() -> Path | None:
    """The file that counts what happened to the memory of this process's control group, where there is one."""
    with suppress(OSError):
        for line in OWN_GROUP.read_text().splitlines():
            events = GROUPS / line.removeprefix("0::/") / "memory.events"
            if line.startswith("0::/") and events.is_file():
                return events
    return None
