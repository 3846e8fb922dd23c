"""A host is known by the id that its home keeps: it may be renamed, and no other goes by its name or its id."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import update

from broker.allocations import hosts
from broker.allocations.hosts import HostView
from broker.allocations.pools import Pool
from broker.runners import host_home, lost_attempts, processes
from broker.runs import leases
from broker.runs.attempts import Attempt, AttemptState
from broker.scheduling import worker_host
from projects.db.columns import utcnow
from projects.errors import ConflictError, InvalidError
from projects.settings import Settings, get_settings
from tests.broker.lab import POOL, Lab, settings

HOLDS = """
import os, sys, time
from pathlib import Path
from broker.runners import host_home
print(host_home.hold(Path(sys.argv[1])), flush=True)
if os.fork() == 0:
    os.fork()
    while not Path(sys.argv[1], "over").exists():
        time.sleep(0.1)
    os._exit(0)
sys.stdin.readline()
os._exit(0)
"""
OTHER = "0" * 31 + "1"


@pytest.fixture
def conf(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """The settings of a host named “one”."""
    monkeypatch.setattr(worker_host, "SILENT_SECONDS", 2)  # the wait itself
    yield named("one", lab, tmp_path / "one", monkeypatch)
    get_settings.cache_clear()


def named(name: str, lab: Lab, home: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of this process as a host of this name."""
    monkeypatch.setenv("STOA_HOST_NAME", name)
    monkeypatch.setenv("STOA_ENV_FILE", "")
    get_settings.cache_clear()
    home.mkdir(exist_ok=True)
    return settings(home, database_url=lab.db.url.render_as_string(hide_password=False), host_name=name)


def known(lab: Lab) -> list[HostView]:
    with lab.db.read() as session:
        return list(hosts.every(session))


def attempt(lab: Lab, run: int, token: int = 1) -> Attempt:
    with lab.db.read() as session:
        return session.get_one(Attempt, (run, token))


def lose(lab: Lab, run: int, boot: str) -> None:
    """Let the first attempt of a run be lost on the host of this process, under an earlier boot of it."""
    token = lab.admit(run)
    with lab.db.write() as session:
        assert leases.claim(session, run, token, host=processes.host(), lease_seconds=60, outlives=(boot, 0.0))
        session.execute(update(Attempt).values(lease_until=utcnow()))
    lab.expire(run, token)
    with lab.db.write() as session:
        session.execute(update(Attempt).values(lease_until=utcnow()))


@contextmanager
def beating(lab: Lab, name: str, facts: dict[str, str], host_id: str) -> Iterator[None]:
    """Another machine that is there as a host."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(0.2):
            with lab.db.write() as session:
                assert hosts.beat(session, name, facts, host_id)

    other = threading.Thread(target=beat)
    other.start()
    try:
        yield
    finally:
        over.set()
        other.join()


def test_a_home_keeps_one_id_and_one_worker(tmp_path: Path) -> None:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as first:
        try:
            assert first.stdin is not None
            assert first.stdout is not None
            said = first.stdout.readline().strip()
            assert said == host_home.kept_id(tmp_path)
            with pytest.raises(ConflictError, match=f"Another worker is at work in {tmp_path}; stop it first, or give"):
                host_home.hold(tmp_path)
            shutil.copytree(tmp_path, tmp_path / "copy")
            assert host_home.hold(tmp_path / "copy") == said, "a lock of its own"
            first.stdin.write("\n")
            first.stdin.flush()
            assert first.wait() == 0
            assert host_home.hold(tmp_path) == said, "what the worker has forked lives on and holds nothing"
        finally:
            first.kill()
            (tmp_path / "over").touch()
    (tmp_path / host_home.ID_FILE).write_text("../../etc")
    with pytest.raises(InvalidError, match="does not hold the id of a host; restore it, or remove it"):
        host_home.kept_id(tmp_path)


def test_a_renamed_host_keeps_its_pools_and_its_runs(
    lab: Lab, run: int, conf: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lab.db.write() as session:
        session.execute(update(Pool).values(gpu_type="H100"))
    host_id = host_home.hold(conf.home)
    worker_host.join(conf, [POOL], host_id)
    lose(lab, run, "an-earlier-boot")
    with lab.db.write() as session:
        hosts.drain(session, "one", "New GPUs.")
    renamed = named("two", lab, conf.home, monkeypatch)
    worker_host.join(renamed, [POOL], host_id)
    [host] = known(lab)
    assert (host.name, host.pools, host.is_drained, host.id) == ("two", [POOL], True, host_id)
    assert attempt(lab, run).host == "two"
    lost_attempts.end_lost(renamed, lab.db)
    lease = attempt(lab, run).lease_until
    assert lease is not None
    assert lease.year == 2000, "the renamed host frees what it has lost"


def test_another_machine_does_not_go_by_the_name_of_a_host_that_is_there(lab: Lab, conf: Settings) -> None:
    theirs = {hosts.BOOT: processes.boot_id(), hosts.HOME: "1:1"}
    with lab.db.write() as session:
        hosts.announce(session, "one", [POOL], theirs, OTHER)
    with (
        beating(lab, "one", theirs, OTHER),
        pytest.raises(ConflictError, match="Another machine or container is there as “one”, heard from at"),
    ):
        worker_host.join(conf, [], host_home.kept_id(conf.home) or "2" * 32)
    assert [(host.id, host.pools) for host in known(lab)] == [(OTHER, [POOL])], "a refusal changes nothing"


@pytest.mark.parametrize("how", ["left", "silent"])
def test_who_takes_the_name_of_a_host_that_is_gone_does_not_get_its_runs(
    lab: Lab, run: int, conf: Settings, how: str
) -> None:
    theirs = {hosts.BOOT: "their-boot", hosts.HOME: "1:1"}
    with lab.db.write() as session:
        hosts.announce(session, "one", [POOL], theirs, OTHER)
    lose(lab, run, "their-boot")
    if how == "left":
        with lab.db.write() as session:
            hosts.leave(session, "one", OTHER)
    worker_host.join(conf, [POOL], "2" * 32)
    assert [(host.name, host.id) for host in known(lab)] == [("one", "2" * 32)]
    assert attempt(lab, run).host == "one.00000000"
    lost_attempts.end_lost(conf, lab.db)
    token = lab.admit(run)
    with lab.db.write() as session:
        outlives = (processes.boot_id(), 3600.0)
        claimed = leases.claim(session, run, token, host="one", lease_seconds=60, outlives=outlives)
        assert not claimed, "its trainer may be alive, out of reach"
    assert "An earlier attempt may still run on one.00000000" in attempt(lab, run, token).waiting
    with lab.db.write() as session:
        assert not hosts.beat(session, "one", theirs, OTHER)
        assert "another host" in hosts.why_not_start(session, "one", OTHER, theirs)
        assert hosts.why_not_start(session, "one", "2" * 32, worker_host.place(conf)) == ""
        hosts.leave(session, "one", OTHER)
    assert known(lab)[0].boot == processes.boot_id(), "the other one's end is not this one's"


@pytest.mark.parametrize("name", ["one", "two"])
def test_a_copy_of_a_home_is_refused_while_the_host_is_there(lab: Lab, conf: Settings, name: str) -> None:
    theirs = {hosts.BOOT: processes.boot_id(), hosts.HOME: "1:1"}
    with lab.db.write() as session:
        hosts.announce(session, name, [POOL], theirs, OTHER)
    with (
        beating(lab, name, theirs, OTHER),
        pytest.raises(ConflictError, match=f"with the id of this host, as “{name}”.*remove {conf.home}/host-id"),
    ):
        worker_host.join(conf, [], OTHER)
    with lab.db.write() as session:
        assert "another host" in hosts.why_not_start(session, name, OTHER, worker_host.place(conf))
    assert [(host.name, host.pools) for host in known(lab)] == [(name, [POOL])], "a refusal changes nothing"


def test_a_worker_of_another_name_starts_no_run_of_a_host(
    lab: Lab, run: int, conf: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from broker.scheduling import tasks

    with lab.db.write() as session:
        hosts.announce(session, "one", [], {}, OTHER)
    host_home.hold(conf.home)
    monkeypatch.setenv("STOA_HOME", str(conf.home))
    monkeypatch.setenv("STOA_DATABASE_URL", conf.database)
    get_settings.cache_clear()
    token = lab.admit(run)
    tasks.start_attempt(run, token)
    assert attempt(lab, run).state == AttemptState.ADMITTED
