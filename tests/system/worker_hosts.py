"""Several hosts on this machine: each has a home of its own and its own parts, over one database and one queue."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from broker.runs.attempts import Attempt
from cli.services import environment
from projects.db.database import Database
from projects.settings import Settings
from tests import forked, shown
from tests.broker.lab import POOL, Lab, settings
from tests.broker.test_publisher import checkpoint
from tests.containers import contained, entering
from tests.forked import Forked
from tests.patience import PATIENCE
from tests.standin import python_with_trainer
from tests.system import processes
from tests.system.test_queue_failover import Queue

LAB = "lab"
"""The host of the scheduler."""


class Hosts:
    """The parts of all hosts, by host and name. With `in_containers`, each part of a host but the lab's own is a
    container of the host's name, all of which ends at once when it is killed. The `clocks` of hosts are so many
    seconds ahead. Parts are forked; where they `begin_anew`, what their Python does as it begins is theirs.
    """

    def __init__(
        self,
        home: Path,
        names: Sequence[str],
        *,
        database_url: str = "",
        given: Settings | None = None,
        in_containers: bool = False,
        begin_anew: bool = False,
        clocks: Mapping[str, float] | None = None,
        **changes: object,
    ) -> None:
        self.home = home
        self.in_containers = in_containers
        self.begin_anew = begin_anew
        self.clocks = clocks or {}
        self.queue = Queue(home)
        place = {
            "database_url": database_url or f"sqlite:///{home / 'stoa.db'}",
            "redis_url": f"redis://127.0.0.1:{self.queue.port}/0",
        }
        own = {"lease_seconds": 60.0, "worker_concurrency": 1}
        base = (given or settings(home)).model_dump() | place | own | changes
        self.settings = {
            name: Settings.model_validate(base | {"home": home / name, "host_name": name}) for name in (*names, LAB)
        }
        self.running: dict[tuple[str, str], subprocess.Popen[bytes] | Forked] = {}
        self.db = Database(self.settings[LAB].database)
        self.db.migrate()
        self.lab = Lab(self.db)

    def start(self, host: str, part: str, *options: str, python: Path | None = None) -> None:
        """Start a part of a host and wait for nothing."""
        (self.home / host).mkdir(exist_ok=True)
        log, given = self.home / host / f"{part}.log", environment(self.settings[host], part)
        inside = self.in_containers and host != LAB
        if not self.begin_anew:
            server = forked.WRONG_CLOCKS if self.clocks else None
            steps = []
            if self.clocks:
                steps.append(f"import tests.wrong_clock; tests.wrong_clock.SECONDS = {self.clocks[host]}")
            if inside:
                steps.append(entering(host))
            before = "; ".join(steps)
            self.running[host, part] = forked.module(
                "cli.main",
                log,
                given,
                part,
                *options,
                python=python,
                session=True,
                before=before,
                server=server,
                forks=part == "worker" and shown.possible(),
            )
            return
        command = [str(python or sys.executable), "-m", "cli.main", part, *options]
        if inside:
            command = contained(host, command)
        with log.open("ab") as out:
            self.running[host, part] = subprocess.Popen(
                command, env=given, stdout=out, stderr=out, start_new_session=True
            )

    def python(self, host: str, trainer: str) -> Path:
        """A Python of a host in whose place of the trainer stands this program; a `checkpoint` is beside it."""
        if not (self.home / host / "checkpoint").exists():
            shutil.move(checkpoint(self.home / host, 1).folder, self.home / host / "checkpoint")
        return python_with_trainer(self.home / host, trainer)

    def launch(self, pool: str = POOL) -> int:
        """A queued run of a new project."""
        project = self.lab.project(title=f"On {pool}, once more")
        self.lab.approve(self.lab.request(project, pool=pool))
        return self.lab.launch(project)

    def attempt(self, run: int, token: int = 1) -> Attempt:
        """An attempt's row."""
        with self.db.read() as session:
            return session.get_one(Attempt, (run, token))

    def has_done(self, run: int, step: int) -> bool:
        """Whether a run has told of a step."""
        return self.lab.run(run).step == step

    def kill(self, host: str) -> None:
        """End all that runs on a host at once; jobs of an engine, which run elsewhere, go on."""
        for key in [key for key in self.running if key[0] == host]:
            process = self.running.pop(key)
            first = psutil.Process(process.pid).children() if self.in_containers and host != LAB else []
            end(process)
            psutil.wait_procs(first, PATIENCE)  # with it, the kernel ends all of the container
        if not self.in_containers:
            kill_all(self.home / host)

    def close(self) -> None:
        """Leave nothing."""
        for process in self.running.values():
            end(process)
        kill_all(self.home)
        self.queue.process.kill()
        self.queue.process.wait()
        self.db.close()


def end(process: subprocess.Popen[bytes] | Forked) -> None:
    """End a part with SIGKILL, with the processes that it has forked: those of a forked one do not name its home."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait(PATIENCE)


def kill_all(home: Path) -> None:
    """End with SIGKILL whatever names a home, also what one of them has started meanwhile."""
    for _ in range(3):
        for pid in processes.of_home(home):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
