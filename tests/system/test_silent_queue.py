"""The queue's server falls silent, as behind a proxy that passes nothing on: connections stay open, nothing answers."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from broker.runners import processes
from broker.runs.attempts import Attempt, AttemptState
from cli import doctor
from cli.services import environment
from projects.db.database import Database
from projects.settings import Settings
from tests import forked
from tests.broker.lab import Lab, settings
from tests.forked import Forked
from tests.outage import Relay
from tests.patience import PATIENCE, wait_for
from tests.standin import python_with_trainer
from tests.system.test_queue_failover import Queue

PARTS = ("worker", "publisher", "scheduler")
MINUTE = timedelta(seconds=59)  # by a clock of the scheduler's, and told by another


class Site:
    """A scheduler, a worker and a publisher, whose queue is behind a relay."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.queue = Queue(home)
        self.relay = Relay("127.0.0.1", self.queue.port)
        address = f"redis://127.0.0.1:{self.relay.port}/0"
        self.settings: Settings = settings(home / "home", redis_url=address, worker_concurrency=1)
        self.db = Database(self.settings.database)
        self.db.migrate()
        self.lab = Lab(self.db)
        self.lab.pool()
        python = python_with_trainer(home, "import time; time.sleep(3600)")
        self.running = {part: self._start(python, part) for part in PARTS}
        for part in PARTS:
            wait_for(partial(self.has_said, part, "ready"), f"a {part} that is ready")

    def _start(self, python: Path, part: str) -> Forked:
        log, given = self.home / f"{part}.log", environment(self.settings, part)
        log.touch()
        return forked.module("cli.main", log, given, part, python=python, session=True)

    def log(self, part: str) -> str:
        return (self.home / f"{part}.log").read_text()

    def has_said(self, part: str, words: str) -> bool:
        return words in self.log(part)

    def stoa(self, *words: str) -> str:
        """What the command line says."""
        done = forked.run_module("cli.main", environment(self.settings, "worker"), *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def is_claimed(self, run: int) -> bool:
        """Whether a worker has taken the run's attempt."""
        with self.db.read() as session:
            attempt = session.get(Attempt, (run, 1))
        return attempt is not None and attempt.state != AttemptState.ADMITTED

    def beat(self, part: str) -> int:
        """When a part has last said that it lives, in nanoseconds."""
        (file,) = (self.settings.home / "health").glob(f"{part}@*")
        return file.stat().st_mtime_ns

    def has_beaten(self, part: str, after: int) -> bool:
        return self.beat(part) > after

    def ask_to_publish(self, run: int) -> None:
        """Send the publisher a message."""
        code = f"from broker.scheduling import tasks; tasks.notify_publish({run})"
        log, given = self.home / "sent.log", environment(self.settings, "scheduler")
        assert Forked(code, log, given).wait(PATIENCE) == 0

    def close(self) -> None:
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            process.wait(PATIENCE)
        self.db.close()
        self.relay.away()
        self.queue.process.kill()
        self.queue.process.wait()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.close()


def test_every_part_notices_a_silent_queue_waits_and_goes_on(site: Site) -> None:
    project = site.lab.project()
    site.lab.approve(site.lab.request(project))
    first = site.lab.launch(project)
    wait_for(partial(site.is_claimed, first), "the worker to start a run")
    site.relay.swallow()
    second = site.lab.launch(project)
    assert doctor.check_queue(site.settings).found == "Redis does not answer"
    assert "its worker does not answer" in " ".join(site.stoa("host", "show", processes.host()).split())
    wait_for(partial(site.has_said, "scheduler", "the queue could not be reached"), "the scheduler to notice")
    for part in ("worker", "publisher"):
        wait_for(partial(site.has_said, part, "Connection to broker lost"), f"the {part} to notice")
        wait_for(partial(site.has_beaten, part, site.beat(part)), f"the {part} to say that it lives")
    said = [line.split()[0] for line in site.log("scheduler").splitlines() if "the queue could not be reached" in line]
    at = [datetime.fromisoformat(moment) for moment in said]
    assert all(later - earlier >= MINUTE for earlier, later in pairwise(at)), "one line a minute"
    assert all(process.poll() is None for process in site.running.values())
    site.relay.pass_on()
    wait_for(partial(site.is_claimed, second), "the run that waited to start")
    site.ask_to_publish(second)
    wait_for(partial(site.has_said, "publisher", "stoa.publish["), "the publisher to hear a message")
    site.relay.swallow()
    for part in ("worker", "publisher"):
        site.running[part].terminate()
    assert [site.running[part].wait(PATIENCE) for part in ("worker", "publisher")] == [0, 0]
