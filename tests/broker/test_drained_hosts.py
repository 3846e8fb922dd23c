"""Drained hosts: they start no run, and their runs go on to their end or back to the queue."""

import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from broker.allocations import hosts
from broker.end_reasons import EndReason
from broker.reports import cluster, why
from broker.runners import processes
from broker.runs.attempts import Attempt, AttemptState
from broker.runs.runs import RunState
from broker.scheduling.scheduler import Scheduler
from cli.main import app
from projects.errors import NotFoundError
from projects.record import record
from projects.settings import get_settings
from tests.broker.lab import POOL, Lab, settings
from tests.broker.supervised import attempt
from tests.broker.test_supervisor import end_reason, environment, living, supervised
from tests.patience import PATIENCE, wait_for


def announce(lab: Lab, host: str, *serves: str) -> None:
    with lab.db.write() as session:
        hosts.announce(session, host, serves, {})


def drain(lab: Lab, host: str, *, pause: bool = False) -> bool:
    with lab.db.write() as session:
        return hosts.drain(session, host, "New GPUs.", pause=pause)


def undrain(lab: Lab, host: str) -> bool:
    with lab.db.write() as session:
        return hosts.undrain(session, host, "They are in.")


def reason(lab: Lab, run: int) -> str:
    with lab.db.read() as session:
        return why.why(session, run).reason


def drained(lab: Lab) -> Sequence[str]:
    with lab.db.read() as session:
        return [host.name for host in hosts.every(session) if host.is_drained]


def told(lab: Lab) -> list[tuple[str, object]]:
    with lab.db.read() as session:
        entries = [entry for entry in record.since(session, record.LAB, 0) if entry.kind.startswith("host")]
    return [(entry.kind, (entry.payload or {}).get("pauses")) for entry in entries]


@pytest.mark.usefixtures("memory_queue")
def test_nothing_starts_on_a_pool_whose_hosts_are_all_drained(lab: Lab, run: int, tmp_path: Path) -> None:
    announce(lab, "one", POOL)
    announce(lab, "two", POOL)
    scheduler = Scheduler(settings(tmp_path), lab.db)
    for host in ("one", "two"):
        assert drain(lab, host)
    scheduler.round()
    assert lab.run(run).state == RunState.QUEUED
    expected = f"Nothing starts on “{POOL}”: its hosts are drained (one, two), until an operator undrains one."
    assert reason(lab, run) == expected
    with lab.db.read() as session:
        [status] = cluster.status(session)
    assert [host.is_drained for host in status.hosts] == [True, True]
    assert undrain(lab, "two")
    scheduler.round()
    assert lab.run(run).state == RunState.STARTING
    assert drain(lab, "two")
    assert reason(lab, run) == expected, "a run that no worker has claimed waits, too"


def test_a_drained_host_claims_no_run(lab: Lab, run: int, tmp_path: Path) -> None:
    announce(lab, "one", POOL)
    token = lab.admit(run)
    drain(lab, "one")
    task = [sys.executable, "-c", f"from broker.scheduling.tasks import start_attempt; start_attempt({run}, {token})"]
    given = environment(lab, tmp_path, 60) | {"STOA_HOST_NAME": "one"}
    subprocess.run(task, env=given, check=True, timeout=PATIENCE)
    with lab.db.read() as session:
        assert session.get_one(Attempt, (run, token)).state == AttemptState.ADMITTED
    assert not (tmp_path / "runs").exists()


def test_a_host_stays_drained_and_is_drained_once(lab: Lab) -> None:
    announce(lab, "one")
    assert [drain(lab, "one"), drain(lab, "one"), drain(lab, "one", pause=True), drain(lab, "one")] == [
        True,
        False,
        True,
        False,
    ]
    announce(lab, "one", POOL)
    assert drained(lab) == ["one"], "its worker has started anew"
    assert [undrain(lab, "one"), undrain(lab, "one")] == [True, False]
    assert drained(lab) == []
    assert told(lab) == [("host.drained", False), ("host.drained", True), ("host.undrained", None)]
    before = lab.everything()
    for act in (drain, undrain):
        with pytest.raises(NotFoundError, match="There is no host “nobody”; the hosts are: one"):
            act(lab, "nobody")
    assert lab.everything() == before


@pytest.mark.parametrize("pause", [False, True])
def test_the_runs_of_a_drained_host_go_on_or_go_back_to_the_queue(
    lab: Lab, run: int, tmp_path: Path, pause: bool
) -> None:
    announce(lab, processes.host(), POOL)

    def is_renewed(before: datetime | None) -> bool:
        return attempt(lab, run, 1).lease_until != before

    with supervised(lab, tmp_path, run, lease=12) as (supervisor, said):
        drain(lab, processes.host(), pause=pause)
        if pause:
            assert supervisor.wait(PATIENCE) == 0
            assert "asked" in said()
        else:
            for _ in range(2):  # the first renewal may have been on its way
                wait_for(partial(is_renewed, attempt(lab, run, 1).lease_until), "a renewal")
            assert supervisor.poll() is None
            assert living(tmp_path)
            assert lab.run(run).state == RunState.RUNNING
            return
    assert (lab.run(run).state, end_reason(lab, run)) == (RunState.QUEUED, EndReason.HOST_DRAINED)
    assert "drained" in reason(lab, run)


def test_an_operator_drains_a_host_by_its_name(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(lab, tmp_path, 60).items():
        monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    announce(lab, "one")

    def says(*command: str) -> str:
        return CliRunner().invoke(app, command).output.strip()

    assert says("worker", "drain", "one", "--pause") == "the host one is drained"
    assert says("worker", "drain", "one") == "the host one is already drained"
    listed = " ".join(says("host", "list").split())
    assert "drained" in listed
    assert "GPUs or cores" in listed
    assert f"cores │ 2 cores of {POOL}" in " ".join(says("host", "show", "one").split())
    assert says("worker", "undrain", "one") == "the host one starts runs"
    assert "There is no host “two”; the hosts are: one." in says("worker", "drain", "two")
    get_settings.cache_clear()
