"""Faults in mid-run, over real parts: Valkey, a Celery worker, two schedulers, supervisors, trainers, and a Hub."""

import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import func
from sqlmodel import col, select

from broker.allocations import ledger
from broker.allocations.ledger import LedgerRow, Movement
from broker.publications import Publication
from broker.runs import attempts, launching, runs
from broker.runs.attempts import Attempt
from broker.runs.launching import Order
from broker.runs.runs import ENDED, Run, RunState
from cli.services import environment
from projects.db.columns import utcnow
from projects.db.database import Database
from projects.errors import ConflictError
from projects.record import record
from projects.settings import Settings
from tests.broker.lab import ADA, Lab, settings
from tests.patience import PATIENCE, wait_for
from tests.system import processes
from tests.system.forked_services import ForkedServices
from tests.system.processes import Watch

LEASE = 60.0  # a successor has most of it to come in, and a slow machine takes its time to start one
GRACE = 120.0
RENEWAL = LEASE / 6 + 0.2
LOOK = 0.5
"""Seconds between two looks at all processes of the machine."""
RECIPE = f"""{processes.SMALL}
training: {{batch: 2, micro_batch: 2, evaluation_tokens: 64}}
"""
SCHEDULER = [sys.executable, "-m", "cli.main", "scheduler"]
SECRET = "a-discord-token-nobody-may-see"


class Stoa:
    """One installation on SQLite with its parts up, and what a test asks of it."""

    def __init__(self, home: Path) -> None:
        self.parts = ForkedServices(home / "logs")
        described = home / "sandbox" / "sandbox.json"
        command = [sys.executable, "-m", "sandbox", "--dir", str(described.parent)]
        self.parts.start("sandbox", command, dict(os.environ), described.exists)
        hub = json.loads(described.read_text())
        self.settings: Settings = settings(
            home,
            lease_seconds=LEASE,
            stop_grace_seconds=GRACE,
            hub_endpoint=hub["hub"],
            hub_token=hub["hub_token"],
            hub_namespace="faults",
            discord_token=SECRET,
        )
        self.db = Database(self.settings.database)
        self.db.migrate()
        self.lab = Lab(self.db)
        self.lab.pool()
        self.recipe = self.lab.recipe("small", RECIPE)
        self.project = self.lab.project()
        self.parts.start_valkey(self.settings)
        self.parts.start_stoa(self.settings, "scheduler")
        self.second_scheduler()
        self.parts.start_stoa(self.settings, "worker")
        self.parts.anew = ("worker", "publisher")  # in whose environments a test looks
        self.parts.start_stoa(self.settings, "publisher")

    def second_scheduler(self) -> None:
        self.parts.start("second scheduler", SCHEDULER, environment(self.settings, "scheduler"), lambda: True)

    def launch(self, steps: int) -> int:
        """Queue a run on one device, with a time limit that is for nobody to reach."""
        allocation = self.lab.allocation(self.project, hours="0.6")
        with self.db.write() as session:
            order = Order(self.project, self.recipe, "30m", overrides=f"steps={steps}", allocation_id=allocation)
            return launching.launch(session, ADA, f"faults-{allocation}", order).run_id

    def folder(self, run: int, token: int) -> Path:
        return self.settings.runs_dir / str(run) / f"attempt-{token}"

    def state(self, run: int) -> RunState:
        return self.lab.run(run).state

    def supervisor(self, run: int, token: int) -> int:
        pid = processes.supervisor(self.settings.home, run, token)
        assert pid is not None
        return pid

    def trainer(self, run: int, token: int) -> int:
        return processes.trainers(self.folder(run, token))[0]

    def steps(self, run: int, token: int) -> list[int]:
        """The steps that an attempt has logged."""
        path = self.folder(run, token) / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line)["step"] for line in lines if line.endswith("\n")]

    def has_done(self, run: int, token: int, step: int) -> bool:
        """Whether an attempt has logged a step or a later one."""
        return max(self.steps(run, token), default=0) >= step

    def checkpoints(self, run: int, token: int) -> list[int]:
        """The steps of an attempt's whole checkpoints."""
        names = (path.name.removeprefix("step") for path in self.folder(run, token).glob("checkpoints/step*"))
        return sorted(int(name) for name in names if name.isdigit())

    def trains(self, run: int, token: int, more: int = 6) -> None:
        """Wait until an attempt has done some steps and the database knows it."""
        wait_for(lambda: len(self.steps(run, token)) > more, f"attempt {token} of run {run} trains")
        done = self.steps(run, token)[more]
        with processes.held(self.folder(run, token)):
            wait_for(lambda: self.lab.row(run).step >= done, "the supervisor tells of the steps")

    def samples(self, run: int) -> list[int]:
        """The samples of a run."""
        with self.db.read() as session:
            return list(session.scalars(select(Run.id).where(Run.parent_id == run, Run.kind == "sample")))

    def shorten(self, run: int, seconds: int) -> int:
        """Let the time limit of a run in its first attempt come in so many seconds; the whole limit."""
        with self.db.write() as session:
            attempts.lock(session, run)
            attempt = session.get_one(Attempt, (run, 1))
            limit = attempt.charged + seconds
            attempt.reserved = runs.load(session, run).time_limit = limit
        return limit

    def kill_supervisor(self, run: int, token: int) -> int:
        """The pid of the attempt's supervisor, which is killed; it has missed the renewals of a third of its lease."""
        dead = self.supervisor(run, token)
        os.kill(dead, signal.SIGKILL)
        wait_for(lambda: not processes.command(dead), "the supervisor is gone")
        with self.db.write() as session:
            attempts.lock(session, run)
            session.get_one(Attempt, (run, token)).lease_until = utcnow() + timedelta(seconds=LEASE * 2 / 3 - 1)
        return dead

    def charged(self, run: int, token: int) -> int:
        with self.db.read() as session:
            query = select(func.sum(col(LedgerRow.seconds))).where(
                LedgerRow.run_id == run, LedgerRow.token == token, LedgerRow.movement == Movement.CHARGE
            )
            return session.scalar(query) or 0

    def published(self, run: int) -> list[int]:
        with self.db.read() as session:
            query = select(Publication.step).where(Publication.run_id == run, col(Publication.url).is_not(None))
            return sorted(session.scalars(query))

    def told(self, run: int) -> list[tuple[str, int]]:
        """What the record tells of a run, not of its samples, each with the attempt or, of a checkpoint, its step."""
        with self.db.read() as session:
            entries = record.since(session, record.project_stream(self.project), 0, limit=10_000)
        told = [(entry.kind, entry.payload or {}) for entry in entries]
        return [
            (kind, payload["step"] if kind == "checkpoint.published" else payload["attempt"])
            for kind, payload in told
            if payload.get("run") == run and "sample" not in payload
        ]

    def is_over(self, run: int) -> None:
        """Wait until nothing of a run is left: no process, nothing reserved, nothing that waits to be published."""
        wait_for(lambda: self.state(run) in ENDED, "the run ends")
        wait_for(lambda: not self._processes(run), "its processes are gone", LOOK)
        with self.db.read() as session:
            folders = [row.folder for row in session.scalars(select(Publication).where(Publication.run_id == run))]
        wait_for(lambda: len(self.published(run)) == len(folders), "its checkpoints are published")
        assert sorted(step for kind, step in self.told(run) if kind == "checkpoint.published") == self.published(run)
        assert self.lab.account(self.lab.row(run).allocation_id).reserved == 0

    def _processes(self, run: int) -> list[int]:
        runs_folder = str(self.settings.runs_dir / str(run))
        return [
            pid
            for pid, line in processes.of_home(self.settings.home).items()
            if f"{runs_folder}/" in line or f"broker.runners.supervisor {run} " in line
        ]

    def close(self) -> None:
        self.parts.stop()
        self.db.close()


@pytest.fixture(scope="module")
def stoa() -> Iterator[Stoa]:
    home = Path(tempfile.mkdtemp(prefix="stoa-faults-"))
    stoa = Stoa(home)
    try:
        yield stoa
    finally:
        stoa.close()
    left = processes.of_home(home)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
    assert not stoa.settings.valkey_socket.parent.exists()
    shutil.rmtree(home)


@pytest.mark.chaos
def test_a_run_never_notices_what_befalls_queue_worker_and_scheduler(stoa: Stoa) -> None:
    stoa.parts.kill("worker")
    run = stoa.launch(steps=500)
    wait_for(lambda: stoa.state(run) == RunState.STARTING, "the run is admitted")
    wait_for(lambda: ask_valkey(stoa, "LLEN runs") != b":0\r\n", "a message to the worker")
    assert ask_valkey(stoa, "FLUSHALL") == b"+OK\r\n"
    stoa.parts.start_stoa(stoa.settings, "worker")
    with Watch(stoa.settings.runs_dir, run) as watch:
        stoa.trains(run, 1)
        with processes.held(stoa.folder(run, 1)):
            before = (stoa.supervisor(run, 1), *processes.trainers(stoa.folder(run, 1)))
            no_secret_is_seen(stoa, *before)
        stoa.parts.kill("worker")
        stoa.parts.kill("scheduler")
        with processes.held(stoa.folder(run, 1)):
            stoa.parts.start_stoa(stoa.settings, "scheduler")
            more = len(stoa.steps(run, 1)) + 2
        stoa.trains(run, 1, more=more)
        with processes.held(stoa.folder(run, 1)):
            assert (stoa.supervisor(run, 1), *processes.trainers(stoa.folder(run, 1))) == before
        stoa.parts.anew = ()
        stoa.parts.start_stoa(stoa.settings, "worker")
        for step in range(50, 501, 50):
            wait_for(partial(stoa.has_done, run, 1, step), f"step {step}")
        wait_for(lambda: stoa.state(run) in ENDED, "the run ends")
        for sample in stoa.samples(run):  # what its sample reserves is none of its own
            with suppress(ConflictError):
                stoa.lab.cancel(sample)
        wait_for(lambda: all(stoa.state(sample) in ENDED for sample in stoa.samples(run)), "its samples end")
        stoa.is_over(run)
    assert stoa.state(run) == RunState.FINISHED
    assert {life.pid for life in watch.lives.values()} == set(before[1:])
    assert [said for said in stoa.told(run) if said[0].startswith("run.")] == [
        ("run.queued", 0),
        ("run.starting", 1),
        ("run.started", 1),
        ("run.finished", 1),
    ]
    assert stoa.published(run) == [0, 1, 2, 4, 8, 16, 32, 64, 128, 200, 300, 400, 500]
    paid_once(stoa, run, watch, {1: watch.span(1)[1]})


def test_a_run_goes_on_after_its_supervisor_and_its_trainer_were_killed(stoa: Stoa) -> None:
    run = stoa.launch(steps=100_000)
    with Watch(stoa.settings.runs_dir, run) as watch:
        stoa.trains(run, 1)
        trainers = processes.trainers(stoa.folder(run, 1))
        dead = stoa.kill_supervisor(run, 1)
        # The ranks train on meanwhile: a gap in their supervision is nothing to them.
        wait_for(
            lambda: processes.supervisor(stoa.settings.home, run, 1) not in (None, dead), "another supervisor", LOOK
        )
        stoa.trains(run, 1, more=len(stoa.steps(run, 1)) + 2)
        assert processes.trainers(stoa.folder(run, 1)) == trainers, "the trainer has noticed nothing"

        parent, *ranks = trainers
        ends = {1: time.time()}
        os.kill(parent, signal.SIGKILL)
        wait_for(lambda: stoa.folder(run, 2).exists(), "a second attempt")
        assert not processes.trainers(stoa.folder(run, 1)), f"of {parent} and {ranks} some are left"
        stoa.trains(run, 2)
        last = stoa.checkpoints(run, 1)[-1]
        assert f"--resume\0{stoa.folder(run, 1)}/checkpoints/step{last}\0" in processes.command(stoa.trainer(run, 2))
        assert stoa.steps(run, 2)[0] > last

        stoa.lab.cancel(run)
        stoa.is_over(run)
        ends[2] = watch.span(2)[1]
    view = stoa.lab.run(run)
    assert (view.state, view.reason) == (RunState.CANCELLED, "cancelled by Ada")
    assert stoa.checkpoints(run, 2)[-1] == stoa.steps(run, 2)[-1] == view.step
    assert {last, view.step} <= set(stoa.published(run))
    assert watch.span(1)[1] <= watch.span(2)[0], "two attempts lived at once"
    paid_once(stoa, run, watch, ends)


def test_the_time_limit_ends_a_run_with_a_checkpoint(stoa: Stoa) -> None:
    run = stoa.launch(steps=100_000)
    with Watch(stoa.settings.runs_dir, run) as watch:
        stoa.trains(run, 1)
        limit = stoa.shorten(run, seconds=5)
        stoa.is_over(run)
    view = stoa.lab.run(run)
    assert (view.state, view.reason, view.attempt) == (RunState.TIMED_OUT, "it reached its time limit", 1)
    assert 0 < stoa.checkpoints(run, 1)[-1] == view.step == stoa.published(run)[-1]
    assert view.spent == limit, "never more than was reserved"
    born, seen = watch.span(1)
    assert limit - RENEWAL - watch.longest_gap <= seen - born <= limit + GRACE


def no_secret_is_seen(stoa: Stoa, supervisor: int, *trainers: int) -> None:
    """Assert that each process was given only the secrets that it needs, and that the publisher did have one."""
    hub_token = stoa.settings.hub_token.get_secret_value()
    publisher = processes.environment(stoa.parts.running["publisher"].popen.pid)
    assert hub_token in publisher
    assert SECRET not in publisher
    worker = processes.environment(stoa.parts.running["worker"].popen.pid)
    assert "STOA_" in worker
    assert "TOKEN" not in worker
    given = processes.environment(supervisor)
    assert f"STOA_DATABASE_URL={stoa.settings.database}" in given
    assert hub_token not in given
    assert "TOKEN" not in given
    assert len(trainers) == 2, "a parent and a rank"
    for pid in trainers:
        given = processes.environment(pid)
        assert "PATH=" in given
        assert "STOA_" not in given
        assert "TOKEN" not in given
        assert "sqlite" not in given


def paid_once(stoa: Stoa, run: int, watch: Watch, ends: dict[int, float]) -> None:
    """Assert that each attempt was charged what its trainer lived until it was ended, by a clock of the test's own.

    That clock sees no better than the watch's longest gap; a busy machine starts a trainer as late after its shim.
    """
    slack = 0.5 + 2 * watch.longest_gap
    for attempt, end in ends.items():
        lived = end - watch.span(attempt)[0]
        charged = stoa.charged(run, attempt)
        assert lived - RENEWAL - 1 - slack <= charged <= lived + slack, f"attempt {attempt} lived {lived:.1f} s"
    with stoa.db.read() as session:
        assert len(attempts.earlier(session, run, 1 + max(ends))) == len(ends)
        refunded = ledger.totals(session, run_id=run)[Movement.REFUND]
    lived = sum(watch.span(attempt)[1] - watch.span(attempt)[0] for attempt in ends)
    charged = sum(stoa.charged(run, attempt) for attempt in ends)
    assert stoa.lab.run(run).spent == charged - refunded
    assert charged <= lived + slack * len(ends)


def ask_valkey(stoa: Stoa, command: str) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(str(stoa.settings.valkey_socket))
        connection.sendall(f"{command}\r\n".encode())
        return connection.recv(1024)
