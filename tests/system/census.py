"""A count of process time that knows nothing of Stoa's own: who of each attempt lived, from when until when."""

import os
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

PAUSE = 0.2

Attempt = tuple[int, int]


@dataclass
class Lives:
    """What was seen of one attempt; times in seconds since the epoch."""

    born: float
    trainer_seen: float
    trainers: set[int] = field(default_factory=set)


class Census:
    """Looks five times a second at the processes of the installation in `home`, by way of /proc.

    Its hosts keep their runs in the folders `runs`.
    """

    def __init__(self, home: Path, *runs: Path) -> None:
        self.attempts: dict[Attempt, Lives] = {}
        self.supervisors: dict[Attempt, int] = {}
        self.supervisor_seen: dict[Attempt, float] = {}
        self.longest_gap = 0.0
        folders = "|".join(re.escape(str(folder)) for folder in runs)
        self._writes_in = re.compile(rf"(?:{folders})/(\d+)/attempt-(\d+)[\0\"]")
        self._home = str(home)
        self._supervises = re.compile(r"\0broker\.runners\.supervisor\0(\d+)\0(\d+)(\0\d+)?\0?$")
        self._born: dict[int, float] = {}
        self._trainers: dict[int, Attempt] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._count, daemon=True)

    def __enter__(self) -> "Census":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def trainers(self) -> list[int]:
        """The pids that write in an attempt's folder now."""
        return list(self._trainers)

    def living_supervisors(self) -> list[int]:
        """The pids of the supervisors that were seen at the last look."""
        return list(self.supervisors.values())

    def _count(self) -> None:
        last = time.time()
        while not self._over.wait(PAUSE):
            self._look(time.time())
            now = time.time()
            self.longest_gap, last = max(self.longest_gap, now - last), now

    def _look(self, now: float) -> None:
        supervisors: dict[Attempt, int] = {}
        trainers: dict[int, Attempt] = {}
        for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
            line = _command(pid)
            if self._home not in line:
                continue
            if found := self._supervises.search(line):
                attempt = (int(found[1]), int(found[2]))
                supervisors[attempt] = pid
                if not found[3]:  # a successor may come when the trainer is dead already
                    self.supervisor_seen[attempt] = now
            elif "trainer" in line and (found := self._writes_in.search(line)):
                attempt = (int(found[1]), int(found[2]))
                trainers[pid] = attempt
                self._note(pid, attempt, now)
        self.supervisors, self._trainers = supervisors, trainers

    def _note(self, pid: int, attempt: Attempt, now: float) -> None:
        if pid not in self._trainers:  # not known from the look before: numbers are used again
            try:
                self._born[pid] = psutil.Process(pid).create_time()
            except psutil.NoSuchProcess:
                return
        lives = self.attempts.setdefault(attempt, Lives(self._born[pid], now))
        lives.born = min(lives.born, self._born[pid])
        lives.trainer_seen = now
        lives.trainers.add(pid)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""
