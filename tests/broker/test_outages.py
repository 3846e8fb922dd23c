"""The database goes away under a run: its trainer goes on where no other attempt can begin, and is charged once."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import text, update
from sqlmodel import col

from broker.end_reasons import EndReason
from broker.runners import lost_attempts, processes, shim
from broker.runs import attempts, leases, series
from broker.runs.attempts import Attempt, AttemptState
from broker.runs.progress import Checkpoint, Ending, Progress
from broker.runs.runs import RunState
from broker.runs.settlement import MOST_LOST
from broker.scheduling.scheduler import Scheduler
from projects.db.columns import utcnow
from projects.db.database import Database
from tests.broker.lab import Lab, settings
from tests.broker.test_supervisor import environment, living, supervisor_over
from tests.forked import Forked
from tests.outage import Relay, freezable, relayed
from tests.patience import PATIENCE, wait_for

LEASE = 6.0
ON_POSTGRES = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
# It keeps the trainer's contract: a step every tenth of a second, a checkpoint when it is asked to stop, LAST steps.
TRAINER = """
import json, os, pathlib, signal, sys, time
given = dict(zip(sys.argv[3::2], sys.argv[4::2]))
out, asked = pathlib.Path(given["--out"]), []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
step = int(given["--resume"].rpartition("step")[2]) if "--resume" in given else 0

def add(name, **line):
    with (out / name).open("a") as file:
        file.write(json.dumps(line) + "\\n")

while step < LAST and not asked:
    time.sleep(0.1)
    step += 1
    add("metrics.jsonl", step=step, tokens=step, loss=1.0 / step)
(out / "checkpoints" / f"step{step}").mkdir(parents=True, exist_ok=True)
add("events.jsonl", event="checkpoint", step=step, path=f"checkpoints/step{step}")
(out / "outcome.json").write_text(json.dumps({"status": 75 if asked else 0}))
sys.exit(75 if asked else 0)
"""


@pytest.fixture
def run(lab: Lab) -> int:
    """A queued run."""
    project = lab.project()
    lab.allocation(project)
    return lab.launch(project)


@pytest.fixture
def relay(lab: Lab) -> Iterator[tuple[Relay, Lab]]:
    """What may go away, and the lab by way of it."""
    with relayed(lab.db.url.render_as_string(hide_password=False)) as (relay, url):
        db = Database(url)
        yield relay, Lab(db)
        db.close()


def started(
    lab: Lab,
    through: Lab,
    home: Path,
    run: int,
    last: int = 100_000,
    outage: float = 86_400,
    lease: float = LEASE,
) -> Forked:
    """A supervisor that reaches the database by way of a relay, over a trainer of so many steps."""
    token = lab.admit(run)
    assert lab.claim(run, token, lease=lease, host=processes.host())
    return supervising(through, home, run, token, last, outage, lease)


def supervising(
    through: Lab,
    home: Path,
    run: int,
    token: int,
    last: int = 100_000,
    outage: float = 86_400,
    lease: float = LEASE,
) -> Forked:
    """The supervisor of an attempt that was claimed."""
    (home / "runs" / str(run)).mkdir(parents=True, exist_ok=True)
    told = environment(through, home, lease) | {"STOA_OUTAGE_SECONDS": str(outage)}
    return supervisor_over(TRAINER.replace("LAST", str(last)), home, told, run, token)


@contextmanager
def scheduling(db: Database, home: Path) -> Iterator[threading.Event]:
    """A scheduler that goes round meanwhile, until the event."""
    over = threading.Event()

    class Ending(Scheduler):
        """A signal would end it; here an event does."""

        def round(self) -> None:
            if over.is_set():
                raise KeyboardInterrupt
            super().round()

    def forever() -> None:
        with pytest.raises(KeyboardInterrupt):
            Ending(settings(home, tick_seconds=0.2, lease_seconds=LEASE), db).run_forever()

    thread = threading.Thread(target=forever)
    thread.start()
    try:
        yield over
    finally:
        over.set()
        thread.join()


def steps(home: Path, run: int) -> int:
    path = home / "runs" / str(run) / "attempt-1" / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def more_steps(lab: Lab, run: int, than: int) -> bool:
    return lab.row(run).step > than


def curve(lab: Lab, run: int) -> list[int]:
    with lab.db.read() as session:
        return [point.step for point in series.read(session, run, "loss")]


def attempt(lab: Lab, run: int, token: int = 1) -> Attempt:
    with lab.db.read() as session:
        return session.get_one(Attempt, (run, token))


def cancelled(lab: Lab, run: int, supervisor: Forked) -> float:
    """Cancel a run and wait for its supervisor; returns the seconds that the trainer has lived."""
    trainer = attempts.process_of(attempt(lab, run))
    assert trainer is not None
    lab.cancel(run)
    assert supervisor.wait(PATIENCE) == 0
    return shim.since_boot() - trainer.started / os.sysconf("SC_CLK_TCK")


def check_whole(lab: Lab, run: int, *, least: float, most: float) -> None:
    """Hold that a cancelled run has every point, and was charged once for all of its time."""
    assert lab.run(run).state == RunState.CANCELLED
    assert curve(lab, run) == list(range(1, lab.row(run).step + 1)), "no point is missing"
    assert least <= lab.run(run).spent <= most
    assert lab.account(1).reserved == 0


@ON_POSTGRES
@pytest.mark.usefixtures("memory_queue")
def test_an_outage_of_several_leases_ends_no_trainer_and_costs_no_point(
    lab: Lab, relay: tuple[Relay, Lab], tmp_path: Path, run: int
) -> None:
    wire, through = relay
    supervisor = started(lab, through, tmp_path, run)
    try:
        with scheduling(through.db, tmp_path):
            wait_for(lambda: lab.row(run).step > 3, "some steps")
            before = living(tmp_path)
            for _ in range(2):
                wire.away()
                done = steps(tmp_path, run)
                time.sleep(2 * LEASE)
                assert living(tmp_path) == before, "the trainer goes on"
                assert steps(tmp_path, run) > done
                told = lab.row(run).step
                wire.back()
                wait_for(partial(more_steps, lab, run, told), "the supervisor tells again")
            assert (attempt(lab, run).state, lab.run(run).attempt) == (AttemptState.RUNNING, 1)
            lived = cancelled(lab, run, supervisor)
    finally:
        supervisor.kill()
        supervisor.wait()
    check_whole(lab, run, least=4 * LEASE, most=lived + 1)


@ON_POSTGRES
@pytest.mark.usefixtures("memory_queue")
@pytest.mark.parametrize("how", ["frozen", "swallowed"])
def test_a_silence_of_the_database_ends_no_trainer_and_costs_no_point(
    lab: Lab, relay: tuple[Relay, Lab], tmp_path: Path, run: int, how: str
) -> None:
    """No connection breaks, and no question is answered: the server's processes stand, or the network loses all."""
    wire, through = relay
    server = freezable(lab.db.url.render_as_string(hide_password=False))
    supervisor = started(lab, through, tmp_path, run)
    try:
        with server as frozen, scheduling(through.db if how == "frozen" else lab.db, tmp_path) as ending:
            wait_for(lambda: lab.row(run).step > 3, "some steps")
            before, told = living(tmp_path), lab.row(run).step
            for _ in range(2):
                done = steps(tmp_path, run)
                if how == "frozen":
                    frozen.freeze()
                else:
                    wire.swallow()
                    ending.set()  # another host's scheduler would see a supervisor that is cut off: another test
                time.sleep(2 * LEASE)
                if how == "frozen":
                    frozen.thaw()
                else:
                    wire.pass_on()
                assert living(tmp_path) == before, "the trainer goes on"
                assert steps(tmp_path, run) > done
                told = max(told, done)
                wait_for(partial(more_steps, lab, run, told), "the supervisor tells again")
                time.sleep(LEASE)
            assert living(tmp_path) == before
            assert (attempt(lab, run).state, lab.run(run).attempt) == (AttemptState.RUNNING, 1)
            lived = cancelled(lab, run, supervisor)
    finally:
        supervisor.kill()
        supervisor.wait()
    check_whole(lab, run, least=6 * LEASE, most=lived + 1)


@ON_POSTGRES
@pytest.mark.parametrize("back", ["before it wakes", "after it wakes"])
def test_a_supervisor_that_wakes_late_asks_again_before_it_ends_its_trainer(
    lab: Lab, relay: tuple[Relay, Lab], tmp_path: Path, run: int, back: str
) -> None:
    """The database answered when it was last asked, and goes away while a busy host gives the supervisor no time."""
    wire, through = relay
    supervisor = started(lab, through, tmp_path, run, lease=2 * LEASE)
    lease = tmp_path / "runs" / str(run) / "attempt-1" / "lease"
    try:
        wait_for(lambda: lab.row(run).step > 3, "some steps")
        with lab.db.write() as session:
            attempts.lock(session, run)
            wait_for(partial(has_asked, lab), "the question whether the database answers")
            supervisor.send_signal(signal.SIGSTOP)
            wire.away()
            shim.write(lease, shim.since_boot() + 3600)  # the shim, which has time, would end the trainer
        wait_for(lambda: attempt_expired(lab, run), "the end of the lease")
        time.sleep(LEASE)
        told, before = lab.row(run).step, living(tmp_path)
        if back == "before it wakes":
            wire.back()
        supervisor.send_signal(signal.SIGCONT)
        if back == "after it wakes":
            wait_for(lambda: float(lease.read_text()) < shim.since_boot() + 3 * LEASE, "the trainer's longer time")
            wire.back()
        wait_for(partial(more_steps, lab, run, told), "the supervisor tells again")
        assert living(tmp_path) == before
        assert attempt(lab, run).state == AttemptState.RUNNING
        cancelled(lab, run, supervisor)
    finally:
        supervisor.kill()
        supervisor.wait()
    assert lab.run(run).state == RunState.CANCELLED


def has_asked(lab: Lab) -> bool:
    """Whether a supervisor whose renewal waits was told that the database answers: it then renews once more."""
    renewals = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with lab.db.read() as session:
        return int(session.scalar(text(renewals)) or 0) == 2


@ON_POSTGRES
def test_a_trainer_that_ends_during_an_outage_is_settled_after_it(
    lab: Lab, relay: tuple[Relay, Lab], tmp_path: Path, run: int
) -> None:
    wire, through = relay
    supervisor = started(lab, through, tmp_path, run, last=30)
    try:
        wait_for(lambda: lab.run(run).state == RunState.RUNNING, "a running run")
        wire.away()
        wait_for(lambda: not living(tmp_path), "the end of the trainer")
        time.sleep(2 * LEASE)
        wire.back()
        assert supervisor.wait(PATIENCE) == 0
    finally:
        supervisor.kill()
        supervisor.wait()
    assert (lab.run(run).state, curve(lab, run)) == (RunState.FINISHED, list(range(1, 31)))


@ON_POSTGRES
def test_a_supervisor_that_starts_during_an_outage_tries_again(
    lab: Lab, relay: tuple[Relay, Lab], tmp_path: Path, run: int
) -> None:
    wire, through = relay
    wire.away()
    supervisor = started(lab, through, tmp_path, run, last=10)
    try:
        time.sleep(2 * LEASE)
        assert supervisor.poll() is None
        wire.back()
        assert supervisor.wait(PATIENCE) == 0
    finally:
        supervisor.kill()
        supervisor.wait()
    assert (lab.run(run).state, lab.run(run).attempt) == (RunState.FINISHED, 1)


@ON_POSTGRES
def test_what_was_lost_in_an_outage_is_caught_up_by_the_next_attempt(
    lab: Lab, relay: tuple[Relay, Lab], tmp_path: Path, run: int
) -> None:
    """Its supervisor dies with the database away, so that the trainer stops with a checkpoint that nobody tells of."""
    wire, through = relay
    first = started(lab, through, tmp_path, run)
    wait_for(lambda: lab.row(run).step > 3, "some steps")
    wire.away()
    first.kill()
    first.wait()
    wait_for(lambda: not living(tmp_path), "the end of the trainer")
    last, told = steps(tmp_path, run), lab.row(run).step
    assert last > told
    lab.expire(run, 1)
    wire.back()
    token = lab.admit(run)
    assert lab.claim(run, token, lease=60)
    given = environment(through, tmp_path, LEASE)
    assert supervisor_over(TRAINER.replace("LAST", str(last + 10)), tmp_path, given, run, token).wait(PATIENCE) == 0
    assert lab.run(run).state == RunState.FINISHED
    assert curve(lab, run) == list(range(1, last + 11))


def lose(lab: Lab, run: int, progress: Progress | None = None) -> None:
    """Start an attempt, which does something and is lost."""
    token = lab.start(run, 0)
    if progress is not None:
        lab.renew(run, token, 5, progress)
    with lab.db.write() as session:
        session.execute(update(Attempt).where(col(Attempt.token) == token).values(lease_until=utcnow()))
    time.sleep(0.001)
    lab.expire(run, token)


def test_a_run_that_does_steps_survives_many_losses(lab: Lab, run: int) -> None:
    for number in range(1, MOST_LOST):
        lose(lab, run, Progress(number, 0, step=number, tokens=number))
        assert lab.run(run).state == RunState.QUEUED
    assert lab.row(run).not_before > utcnow() + timedelta(minutes=10), "the pauses grow"
    lose(lab, run, Progress(99, 0, step=99, tokens=99))
    view = lab.run(run)
    assert (view.state, view.end_reason) == (RunState.FAILED, EndReason.ATTEMPTS_EXHAUSTED)
    assert view.reason.startswith(f"{MOST_LOST} attempts were lost before a checkpoint")


@pytest.mark.parametrize("how", ["lost", "killed", "node"])
def test_a_checkpoint_resets_the_count(lab: Lab, run: int, how: str) -> None:
    for number in range(1, 6):
        progress = Progress(number, 0, step=number, tokens=1, checkpoints=[Checkpoint(number, f"folder {number}")])
        if how == "lost":
            lose(lab, run, progress)
        else:
            token = lab.start(run, 0)
            lab.renew(run, token, 5, progress)
            known = EndReason.NODE_FAILED if how == "node" else None
            lab.settle(run, token, 6, Ending(-9, "gone", transient=True, known=known))
        assert lab.run(run).state == RunState.QUEUED
    for _ in range(3 if how == "lost" else 2):
        assert lab.run(run).state == RunState.QUEUED
        lose(lab, run)
    assert lab.run(run).state == RunState.FAILED, "without a step, three failures in a row are enough"


def test_another_host_waits_until_a_trainer_that_is_cut_off_must_have_stopped(lab: Lab, run: int) -> None:
    lose(lab, run)
    token = lab.admit(run)

    def claims(host: str, boot: str, seconds: float) -> bool:
        with lab.db.write() as session:
            return leases.claim(session, run, token, host=host, lease_seconds=60, outlives=(boot, seconds))

    assert not claims("elsewhere", "another boot", 86_400)
    assert "may still run on host, out of reach" in attempt(lab, run, token).waiting
    assert lab.run(run).state == RunState.STARTING
    assert claims("elsewhere", "another boot", 0), "once it must have stopped"
    assert attempt(lab, run, token).waiting == ""


def claims_elsewhere(lab: Lab, run: int, token: int, seconds: float) -> bool:
    """Whether the worker of another host gets the attempt."""
    with lab.db.write() as session:
        return leases.claim(session, run, token, host="elsewhere", lease_seconds=60, outlives=("its boot", seconds))


@ON_POSTGRES
@pytest.mark.usefixtures("memory_queue")
@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("back", ["before", "after", "never"])
def test_of_two_hosts_that_are_cut_apart_only_one_trains(
    lab: Lab, relay: tuple[Relay, Lab], tmp_path: Path, run: int, told: bool, back: str
) -> None:
    """The host of the trainer comes back before or after the other one may go on, with or without its process told."""
    wire, through = relay
    outage = 4 * LEASE
    if told:
        supervisor = started(lab, through, tmp_path, run, outage=outage)
        wait_for(lambda: lab.row(run).step > 3, "some steps")
        wire.away()
    else:  # it is cut off as it starts its trainer: a lock holds back what it tells
        token = lab.admit(run)
        assert lab.claim(run, token, lease=LEASE, host=processes.host())
        with lab.db.write() as session:
            attempts.lock(session, run)
            supervisor = supervising(through, tmp_path, run, token, outage=outage)
            wait_for(lambda: steps(tmp_path, run) > 3, "some steps")
            wire.away()
        assert attempt(lab, run).pid is None
    try:
        wait_for(lambda: attempt_expired(lab, run), "the end of the lease")
        lab.expire(run, 1)
        second = lab.admit(run, 1)
        assert not claims_elsewhere(lab, run, second, outage)
        assert living(tmp_path), "the trainer goes on"
        if back == "before":
            wire.back()
            wait_for(lambda: supervisor.poll() is not None, "the end of the first supervisor")
            assert not living(tmp_path)
            assert claims_elsewhere(lab, run, second, outage), "at once, since the first host says that it is over"
            return
        while not claims_elsewhere(lab, run, second, outage):
            time.sleep(0.1)
        assert not living(tmp_path), "the first trainer has stopped by then"
        assert steps(tmp_path, run) > 10 * (outage - LEASE) / 2, "and not long before"
        if back == "after":
            wire.back()
            assert supervisor.wait(PATIENCE) == 1
            assert attempt(lab, run, second).state == AttemptState.CLAIMED, "the other host's attempt is left alone"
            assert lab.run(run).state == RunState.STARTING
    finally:
        supervisor.kill()
        supervisor.wait()


def attempt_expired(lab: Lab, run: int) -> bool:
    until = attempt(lab, run).lease_until
    return until is not None and until < utcnow()


@pytest.mark.parametrize("reachable", [True, False])
def test_a_host_that_comes_back_frees_the_runs_that_it_has_lost(
    lab: Lab, tmp_path: Path, run: int, reachable: bool
) -> None:
    """After a reboot, or with the trainer still there, of which nobody else knows: then it is ended first."""
    folder = tmp_path / "runs" / str(run) / "attempt-1"
    command = [sys.executable, "-c", "import time; time.sleep(3600)", str(folder)]
    with subprocess.Popen(command, start_new_session=True) as trainer:
        try:
            process = processes.identify(trainer.pid)
            token = lab.admit(run)
            assert lab.claim(run, token, host=processes.host())
            if not reachable:
                with lab.db.write() as session:
                    before = replace(process, boot_id="the boot before")
                    leases.started(session, run, token, before, (), lease_seconds=60)
            with lab.db.write() as session:
                session.execute(update(Attempt).values(lease_until=utcnow()))
            time.sleep(0.001)
            lab.expire(run, token)
            second = lab.admit(run, 1)
            assert not claims_elsewhere(lab, run, second, 86_400)
            lost_attempts.end_lost(settings(tmp_path), lab.db)
            assert processes.alive(process) is not reachable, "a process of another boot is not taken for this one"
            assert claims_elsewhere(lab, run, second, 86_400)
        finally:
            trainer.kill()


def test_a_host_does_not_free_what_another_host_has_lost(lab: Lab, tmp_path: Path, run: int) -> None:
    lose(lab, run)
    token = lab.admit(run, 1)
    lost_attempts.end_lost(settings(tmp_path), lab.db)
    assert not claims_elsewhere(lab, run, token, 86_400)


@pytest.mark.parametrize(("host", "boot"), [("host", "another boot"), ("a new container", "boot")])
def test_the_same_host_takes_its_run_over_at_once(lab: Lab, run: int, host: str, boot: str) -> None:
    lose(lab, run)
    token = lab.admit(run)
    with lab.db.write() as session:
        assert leases.claim(session, run, token, host=host, lease_seconds=60, outlives=(boot, 86_400))


@ON_POSTGRES
def test_a_trainer_stops_at_its_lease_where_no_outage_is_allowed(
    lab: Lab, relay: tuple[Relay, Lab], tmp_path: Path, run: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire, through = relay
    token = lab.admit(run)
    assert lab.claim(run, token, lease=LEASE, host=processes.host())
    (tmp_path / "runs" / str(run)).mkdir(parents=True)
    strict = environment(through, tmp_path, LEASE) | {"STOA_OUTAGE_SECONDS": "0"}
    supervisor = supervisor_over(TRAINER.replace("LAST", "100000"), tmp_path, strict, run, token)
    try:
        wait_for(lambda: lab.row(run).step > 3, "some steps")
        wire.away()
        wait_for(lambda: not living(tmp_path), "the end of the trainer")
        wire.back()
    finally:
        supervisor.kill()
        supervisor.wait()
