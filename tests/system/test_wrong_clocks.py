"""Hosts whose clocks are minutes wrong compare only the database's times: no run is lost, and none runs twice."""

import re
import signal
import subprocess
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from celery import Celery

from broker.allocations import hosts
from broker.runs.attempts import AttemptState
from broker.runs.runs import RunState
from broker.scheduling import tasks
from projects.db.columns import utcnow
from tests.patience import wait_for
from tests.system import processes
from tests.system.test_hosts import NAMES, Cluster


@pytest.fixture
def cluster(tmp_path: Path, database_url: str) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path, database_url, {"here": 600.0, "there": -600.0, "lab": 240.0})
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_wrong_clocks_lose_no_run_and_run_none_twice(cluster: Cluster) -> None:
    runs = {cluster.launch(pool): pool for pool in NAMES}
    for run in runs:
        wait_for(partial(cluster.has_begun, run), f"run {run}")
        wait_for(partial(cluster.is_published, run), f"the checkpoint of run {run}")
    renewed = utcnow() + timedelta(seconds=cluster.settings["lab"].lease_seconds)
    for run in runs:
        wait_for(partial(holds_until, cluster, run, renewed), "another renewal")
        assert (cluster.attempt(run).state, cluster.lab.row(run).token) == (AttemptState.RUNNING, 1)
        assert cluster.lab.run(run).spent < 600
    with Celery(broker=cluster.settings["lab"].celery_broker_url) as client:
        for run, pool in runs.items():  # by the clocks of the hosts, the other message would have expired
            expires = (utcnow() + timedelta(minutes={"here": 5, "there": -5}[pool])).isoformat()
            client.send_task("stoa.take_over", (run, 1), headers={"expires": expires}, queue=tasks.inbox(pool))
    wait_for(partial(says, cluster, "there", r"Discarding revoked task: stoa\.take_over"), "an old message")
    wait_for(partial(says, cluster, "here", r"Task stoa\.take_over\S+ succeeded"), "a new message")
    assert not says(cluster, "here", "Discarding revoked task")
    with cluster.db.read() as session:
        assert [(host.name, host.is_away) for host in hosts.every(session)] == [("here", False), ("there", False)]

    for run, pool in runs.items():
        supervisor = processes.supervisor(cluster.home / pool, run, 1)
        assert supervisor is not None
        subprocess.run(["kill", f"-{signal.SIGKILL.value}", str(supervisor)], check=True)
        wait_for(partial(is_taken_over, cluster, run), "another supervisor")
        cluster.lab.cancel(run)
        wait_for(partial(is_cancelled, cluster, run), "the end of the run")
        assert cluster.lab.row(run).token == 1


def says(cluster: Cluster, host: str, words: str) -> bool:
    return bool(re.search(words, (cluster.home / host / "worker.log").read_text()))


def holds_until(cluster: Cluster, run: int, moment: datetime) -> bool:
    until = cluster.attempt(run).lease_until
    return until is not None and until > moment


def is_taken_over(cluster: Cluster, run: int) -> bool:
    return cluster.attempt(run).generation > 1


def is_cancelled(cluster: Cluster, run: int) -> bool:
    return cluster.lab.run(run).state == RunState.CANCELLED
