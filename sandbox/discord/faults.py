"""Faults a test orders: answers that fail, answers that never arrive, and delays."""

import re
from dataclasses import dataclass, field


@dataclass
class Fault:
    """What befalls the next `count` requests whose "METHOD /path" matches `pattern`.

    `status` answers with that status and does nothing; `cut` does the work and closes the connection before the
    answer; both do the work and answer with the status; `delay` waits that many seconds first. `retry_after` goes with
    status 429.
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

    def take(self, method: str, path: str) -> Fault | None:
        """The first fault that fits this request, used up by one."""
        for fault in self.ordered:
            if re.search(fault.pattern, f"{method} {path}"):
                fault.count -= 1
                if fault.count <= 0:
                    self.ordered.remove(fault)
                return fault
        return None
