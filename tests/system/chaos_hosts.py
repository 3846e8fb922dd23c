"""The chaos story of hosts: each of two hosts has a pool and does small runs, while one after the other is lost.

Each host is a container (UTS and PID namespaces) with a home of its own; all of its processes end at once, and some
moments later its worker starts afresh. They share a PostgreSQL and a Valkey over TCP. `python -m
tests.system.chaos_hosts` plays it; `STOA_CHAOS_RUNS`, `STOA_CHAOS_FAULTS` and `STOA_CHAOS_SEED` make it smaller, or the
same again.
"""

import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from sqlalchemy import func
from sqlmodel import col, select

from broker.runs.runs import ENDED, Run
from tests import databases
from tests.absent import absent
from tests.standin import python_with
from tests.system import chaos_report, processes
from tests.system.census import Census
from tests.system.chaos import LEADS, MOST_ATTEMPTS, STANDIN, STANDIN_SEED, left_over, settle
from tests.system.worker_hosts import LAB, Hosts, kill_all

NAMES = ("one", "two")
RUNS, FAULTS = (int(os.environ.get(f"STOA_CHAOS_{name}") or most) for name, most in (("RUNS", 20), ("FAULTS", 24)))
GPUS = 2
LEASE = 12.0
GRACE = 6.0
QUICKEST, SLOWEST = 4.0, 12.0
"""Seconds between two faults."""
LONGEST_DOWN = 4.0
HEAL_SECONDS = 1200.0
OVERRIDES = f"steps=60, seed={STANDIN_SEED}, batch=2, micro_batch=1, sequence_length=32"
OF_RUNS = ("broker.runners.supervisor", "runners/shim.py", "-m trainer")
"""What the command lines of a run's processes hold."""


class Story(Hosts):
    """Two hosts with their parts up, and what has befallen them so far."""

    def __init__(self, home: Path, database_url: str, seed: int) -> None:
        super().__init__(
            home,
            NAMES,
            database_url=database_url,
            in_containers=True,
            begin_anew=True,
            lease_seconds=LEASE,
            stop_grace_seconds=GRACE,
            max_attempts=MOST_ATTEMPTS,
        )
        self.chance = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.down: dict[str, float] = {}
        self.launched = 0
        self.deck: list[Callable[[], str | None]] = []
        for name in NAMES:
            self.lab.pool(name, gpus=GPUS)
        self.projects = [self.lab.project(lead, f"A question of {lead.name}") for lead in LEADS]
        self.pythons = {name: python_with(home / name / "python", STANDIN) for name in (*NAMES, LAB)}
        for name in (*NAMES, LAB):
            self.begin(name)

    def begin(self, host: str) -> None:
        """Start the part of a host."""
        if host == LAB:
            self.start(host, "scheduler", python=self.pythons[host])
        else:
            self.start(host, "worker", "--pool", host, python=self.pythons[host])

    def lose(self, *names: str) -> str | None:
        """End all that runs on a host; some moments later it is started afresh."""
        up = [name for name in names if name not in self.down]
        if not up:
            return None
        name = self.chance.choice(up)
        self.kill(name)
        self.down[name] = time.monotonic() + self.chance.uniform(0.1, LONGEST_DOWN)
        return "kill -9 scheduler" if name == LAB else f"host {name} lost"

    def wipe(self) -> str:
        """Lose all that the queue holds."""
        self.queue.ask("FLUSHALL")
        return "the queue wiped"

    def deal(self) -> None:
        """Do the next fault of a shuffled deck that can be done now."""
        done = None
        while done is None:
            if not self.deck:
                self.deck = [*[lambda: self.lose(*NAMES)] * 4, lambda: self.lose(LAB), self.wipe]
                self.chance.shuffle(self.deck)
            done = self.deck.pop()()
        self.done[done] += 1

    def tend(self) -> None:
        """Start again what is down long enough, or has ended by itself."""
        for (name, _), process in list(self.running.items()):
            if process.poll() is not None:
                raise AssertionError(f"the part of {name} ended by itself with status {process.poll()}")
        for name, again in list(self.down.items()):
            if time.monotonic() >= again:
                del self.down[name]
                self.begin(name)

    def queue_run(self) -> None:
        """Launch one run, on the pools in turn."""
        pool, number = NAMES[self.launched % len(NAMES)], self.launched % len(LEADS)
        lead, project = LEADS[number], self.projects[number]
        allocation = self.lab.request(project, lead, pool=pool)
        self.lab.approve(allocation)
        asked = {"allocation_id": allocation, "overrides": OVERRIDES, "time_limit": "10m"}
        self.lab.launch(project, lead, **asked)
        self.launched += 1

    def moving(self) -> int:
        """How many runs are not at their end yet."""
        with self.db.read() as session:
            return session.scalar(select(func.count()).where(col(Run.state).not_in(ENDED))) or 0

    def live(self) -> list[str]:
        """The processes of runs."""
        return [line for line in processes.of_home(self.home).values() if any(word in line for word in OF_RUNS)]

    def play(self, console: Console) -> None:
        """Let the faults come while runs are launched one by one; then let everything heal."""
        due = 0.0
        while self.done.total() < FAULTS:
            self.tend()
            if self.launched < RUNS and self.launched * FAULTS <= self.done.total() * RUNS:
                self.queue_run()
            if time.monotonic() >= due:
                self.deal()
                due = time.monotonic() + self.chance.uniform(QUICKEST, SLOWEST)
                console.print(f"[dim]{self.done.total():>4} faults, {self.moving()} runs under way[/]", highlight=False)
            time.sleep(0.1)
        while self.launched < RUNS:
            self.queue_run()
        until = time.monotonic() + HEAL_SECONDS
        while (self.moving() or self.live()) and time.monotonic() < until:
            self.tend()
            time.sleep(0.5)


def play(console: Console) -> bool:
    """Play the story and print its table; whether every line of it holds."""
    programs = databases.binaries()
    if programs is None:
        absent("the chaos story of hosts", "PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    seed = int(os.environ.get("STOA_CHAOS_SEED") or int.from_bytes(os.urandom(4)))
    home = Path(tempfile.mkdtemp(prefix="stoa-chaos-"))
    console.print(f"chaos of hosts: {RUNS} runs, {FAULTS} faults, STOA_CHAOS_SEED={seed}, in {home}")
    started = time.monotonic()
    with databases.server(programs) as url:
        story = Story(home, url, seed)
        try:
            with Census(home, *(home / name / "runs" for name in NAMES)) as census:
                story.play(console)
            left: list[int | str] = [*story.live()]
            for name in (*NAMES, LAB):
                story.kill(name)
            settle(home)
            with story.db.read() as session:
                lines = chaos_report.of_runs(session, census, RUNS, LEASE / 6, [*left, *left_over(home)])
            befell = f"What befell it in {time.monotonic() - started:.0f} s, seed {seed}"
            chaos_report.show(console, befell, story.done, [], lines)
        finally:
            story.close()
            kill_all(home)
    good = all(line.ok for line in lines)
    if good:
        shutil.rmtree(home, ignore_errors=True)
    else:
        console.print(f"The logs are kept in {home}.")
    return good


if __name__ == "__main__":
    sys.exit(0 if play(Console()) else 1)
