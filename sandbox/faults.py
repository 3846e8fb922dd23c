"""Faults a test orders: answers that fail, answers that never arrive, and delays."""

import asyncio
import contextlib
import re
from dataclasses import dataclass, field


@dataclass
class Fault:
    """What befalls the next `count` requests whose "METHOD /path" matches `pattern`.

    `status` answers with that status and does nothing; `cut` does the work and closes the connection before the
    answer; both do the work and answer with the status; `delay` waits that many seconds first, or until the faults are
    cleared. `retry_after` goes with status 429.
    """

    pattern: str
    count: int = 1
    status: int | None = None
    cut: bool = False
    delay: float = 0.0
    retry_after: float = 1.0


@dataclass
class Faults:
    ordered: list[Fault] = field(default_factory=list)
    _cleared: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, method: str, path: str) -> Fault | None:
        """The first fault that fits this request, used up by one."""
        for fault in self.ordered:
            if re.search(fault.pattern, f"{method} {path}"):
                fault.count -= 1
                if fault.count <= 0:
                    self.ordered.remove(fault)
                return fault
        return None

    async def delay(self, seconds: float) -> None:
        """Waits for so long, or until the faults are cleared."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._cleared.wait(), seconds)

    def clear(self) -> None:
        """Takes back what was ordered, and lets go what it delays."""
        self.ordered.clear()
        self._cleared.set()
        self._cleared = asyncio.Event()
