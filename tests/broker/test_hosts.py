"""Hosts of workers: which pools each serves, whose GPUs are whose, and what people read when one is away."""

import threading
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlmodel import col

from broker.allocations import hosts, pools
from broker.allocations.hosts import Host
from broker.allocations.pools import Pool
from broker.reports import cluster, why
from broker.runners import processes
from broker.runs.attempts import Attempt
from broker.scheduling import worker_host
from projects.db.columns import utcnow
from projects.errors import ConflictError, NotFoundError
from projects.record import record
from tests.broker.lab import POOL, Lab, settings


def gpu_pool(lab: Lab, name: str, gpus: int = 2) -> None:
    with lab.db.write() as session:
        pools.add_pool(session, name=name, gpu_type="H100", gpus=gpus)


def announce(lab: Lab, host: str, *serves: str) -> None:
    with lab.db.write() as session:
        hosts.announce(session, host, serves, {})


def serving(lab: Lab, pool: str) -> Sequence[str]:
    with lab.db.read() as session:
        return [host.name for host in hosts.of_pool(hosts.every(session), pools.named(session, pool))]


def numbers(lab: Lab, pool: str) -> str:
    with lab.db.read() as session:
        return hosts.gpu_numbers(session, pools.named(session, pool), "0,1")


def reason(lab: Lab, run: int) -> str:
    with lab.db.read() as session:
        return why.why(session, run).reason


def told(lab: Lab) -> list[str]:
    with lab.db.read() as session:
        return [entry.kind for entry in record.since(session, record.LAB, 0) if entry.kind.startswith("host")]


def url(lab: Lab) -> str:
    return lab.db.url.render_as_string(hide_password=False)


def pools_of(lab: Lab, name: str) -> Sequence[str]:
    with lab.db.read() as session:
        return hosts.named(session, name).pools


def silence(lab: Lab, host: str) -> None:
    with lab.db.write() as session:
        session.execute(update(Host).where(col(Host.name) == host).values(seen_at=utcnow() - timedelta(minutes=2)))


def test_a_pool_is_served_by_the_hosts_that_name_it_or_by_those_that_name_none(lab: Lab) -> None:
    for name in ("mine", "yours", "other"):
        lab.pool(name)
    assert serving(lab, "mine") == []
    announce(lab, "lab")
    announce(lab, "donor", "yours")
    assert [serving(lab, name) for name in ("mine", "yours", "other")] == [["lab"], ["donor"], ["lab"]]
    announce(lab, "second", "yours", "other", "yours")
    assert [serving(lab, name) for name in ("mine", "yours", "other")] == [["lab"], ["donor", "second"], ["second"]]
    announce(lab, "second")
    assert serving(lab, "other") == ["lab", "second"]
    with pytest.raises(NotFoundError, match="There is no pool “theirs”; the pools are"):
        announce(lab, "donor", "theirs")
    assert serving(lab, "yours") == ["donor"], "a refusal changes nothing"


def test_each_host_numbers_its_own_gpus(lab: Lab) -> None:
    for name in ("mine", "yours", "also-yours", "also-mine"):
        gpu_pool(lab, name)
    assert [numbers(lab, name) for name in ("mine", "yours", "also-yours", "also-mine")] == ["0,1", "2,3", "4,5", "6,7"]
    announce(lab, "donor", "yours", "also-yours")
    assert [numbers(lab, name) for name in ("mine", "yours", "also-yours", "also-mine")] == ["0,1", "0,1", "2,3", "2,3"]
    with lab.db.read() as session:
        assert [pool.name for pool in hosts.gpu_pools(session, "donor")] == ["yours", "also-yours"]
        assert [pool.name for pool in hosts.gpu_pools(session, "lab")] == ["mine", "also-mine"]


def test_no_host_gives_out_the_gpus_of_another(lab: Lab) -> None:
    gpu_pool(lab, "yours")
    announce(lab, "donor", "yours")
    announce(lab, "donor", "yours")
    with pytest.raises(
        ConflictError, match=r"“yours” is a pool of the GPUs of “donor”.*`stoa host remove donor` frees"
    ):
        announce(lab, "second", "yours")
    with lab.db.write() as session:
        hosts.remove(session, "donor", "It is gone.")
    announce(lab, "second", "yours")
    assert serving(lab, "yours") == ["second"]


def test_a_host_serves_other_pools_only_while_no_run_holds_gpus_of_them(lab: Lab, run: int, tmp_path: Path) -> None:
    with lab.db.write() as session:
        session.execute(update(Pool).values(gpu_type="H100"))
    lab.admit(run, 0, 1)
    conf = settings(tmp_path, database_url=url(lab))
    with pytest.raises(ConflictError, match=f"Runs hold GPUs of “{POOL}”, which would get other numbers"):
        worker_host.join(conf, [POOL])
    worker_host.join(conf, [])
    assert serving(lab, POOL) == [processes.host()]


def test_a_name_is_refused_while_another_machine_goes_by_it(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf, name, over = settings(tmp_path, database_url=url(lab)), processes.host(), threading.Event()
    theirs = {hosts.BOOT: "another"}

    def beat() -> None:
        while not over.wait(0.2):
            with lab.db.write() as session:
                hosts.beat(session, name, theirs)

    with lab.db.write() as session:
        hosts.announce(session, name, [POOL], theirs)
    other = threading.Thread(target=beat)
    other.start()
    try:
        with pytest.raises(ConflictError, match=f"Another machine or container is there as “{name}”, heard from at"):
            worker_host.join(conf, [])
    finally:
        over.set()
        other.join()
    assert pools_of(lab, name) == [POOL], "a refusal changes nothing"
    with lab.db.write() as session:
        hosts.leave(session, name)
    worker_host.join(conf, [])
    assert pools_of(lab, name) == [], "the other one has left"

    with lab.db.write() as session:
        hosts.announce(session, name, [POOL], theirs)
    monkeypatch.setattr(worker_host, "SILENT_SECONDS", 2)  # the wait itself
    worker_host.join(conf, [])
    assert pools_of(lab, name) == [], "the other one was silent, as this host is before it has restarted"


def test_a_job_whose_worker_is_away_says_so_beside_what_its_engine_has_said(lab: Lab, project: int) -> None:
    lab.pool("cluster", runner="slurm")
    announce(lab, "login", "cluster")
    allocation = lab.request(project, pool="cluster")
    lab.approve(allocation)
    run = lab.launch(project, allocation_id=allocation)
    lab.admit(run)
    assert reason(lab, run) == "Slurm decides when it starts. It has not said what it waits for."
    silence(lab, "login")
    with lab.db.read() as session:
        absent = hosts.absence(session, pools.named(session, "cluster"))
    assert reason(lab, run) == absent
    with lab.db.write() as session:
        session.execute(update(Attempt).values(waiting="PENDING (Resources)"))
    assert reason(lab, run) == f"Slurm decides when it starts. PENDING (Resources). {absent}"


def test_a_host_that_is_away_is_told_and_removed_with_a_reason(lab: Lab, run: int) -> None:
    announce(lab, "lab")
    announce(lab, "donor", POOL)
    with lab.db.write() as session:
        local = pools.named(session, POOL)
        assert hosts.absence(session, local) == ""
    silence(lab, "donor")
    with lab.db.read() as session:
        assert f"No worker of the pool “{POOL}” has been heard from since" in hosts.absence(session, local)
        [status] = cluster.status(session)
        absent = hosts.absence(session, local)
        waits = why.why(session, run)
    assert (waits.reason, waits.expected) == (absent, None)
    behind = lab.launch(1)
    lab.admit(run, 0, 1)
    assert reason(lab, run) == absent, "a run that starts says what it waits for"
    assert reason(lab, behind) == f"It waits for cores: 1 needed, 0 free on “{POOL}”. {absent}"
    assert [(host.name, host.is_away) for host in status.hosts] == [("donor", True)]
    with lab.db.write() as session, pytest.raises(NotFoundError, match="the hosts are: donor, lab"):
        hosts.remove(session, "nobody", "It is gone.")
    with lab.db.write() as session:
        hosts.remove(session, "donor", "It is gone.")
    assert told(lab) == ["host.removed"]
    assert serving(lab, POOL) == ["lab"]
    with lab.db.write() as session:
        assert not hosts.beat(session, "donor", {}), "a worker that was only thought gone announces itself anew"
