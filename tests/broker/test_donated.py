"""Runs on donated machines, which reach the lab by its API alone: real machines, supervisors and trainers."""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from broker import store as stores
from broker.allocations import machines
from broker.end_reasons import EndReason
from broker.reports.why import why
from broker.runners import donated_presence, reaper
from broker.runners.donated_machine import DonatedMachine
from broker.runs.runs import RunState
from broker.store import Store
from projects.db.columns import utcnow
from projects.settings import Settings, get_settings
from tests import forked
from tests.broker.donating import POOL, Served, admit, donated, self_signed, serving
from tests.broker.lab import Lab, settings
from tests.broker.supervised import TRAINER, admitted, attempt, charged, queued, supervised_by
from tests.databases import ONCE
from tests.environment import bare
from tests.forked import Forked
from tests.patience import PATIENCE, wait_for
from tests.ports import free_ports
from tests.seaweed import Seaweed
from tests.standin import python_with_trainer

LEASE = 12.0  # the store is looked at every two seconds


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """The lab's settings, with an empty store, which are those of this process too."""
    monkeypatch.setenv("STOA_STORE", f"file://{tmp_path}/store")
    monkeypatch.setenv("STOA_ENV_FILE", "")
    get_settings.cache_clear()
    yield settings(tmp_path, store=f"file://{tmp_path}/store")
    get_settings.cache_clear()


@pytest.fixture
def served(lab: Lab, ours: Settings) -> Iterator[Served]:
    """The lab's API."""
    with serving(lab, ours) as served:
        yield served


@pytest.fixture
def run(lab: Lab) -> int:
    """A queued run on a pool of donated machines."""
    return queued(lab, POOL, "donated")


@pytest.fixture
def soon_lost(lab: Lab) -> int:
    """A queued run on a pool whose machines may be unheard for some seconds only."""
    return queued(lab, POOL, "donated", {"silence_seconds": "8"})


@contextmanager
def supervised(
    lab: Lab, home: Path, run: int, *, lease: float = LEASE, places: Mapping[str, str] | None = None
) -> Iterator[tuple[Forked, int, Path]]:
    """A supervisor of the run's next attempt, its token and folder."""
    token, folder = admitted(lab, home, run, lease)
    told = places or {"STOA_STORE": f"file://{home}/store"}
    with supervised_by(lab, Path(sys.executable), home, lease, told, run, token) as supervisor:
        yield supervisor, token, folder


def standin(home: Path, last: int) -> Path:
    """A Python of a machine, whose trainer does so many steps and keeps the contract."""
    return python_with_trainer(home, TRAINER.replace("LAST", str(last)))


def said(folder: Path) -> str:
    log = folder / "trainer.log"
    return log.read_text() if log.exists() else ""


@ONCE
def test_a_donated_machine_trains_a_run(lab: Lab, served: Served, tmp_path: Path, run: int) -> None:
    token = admit(lab, "ada", POOL)
    corpora = tmp_path / "ada" / "corpora"
    old, young, cut = (
        corpora / name for name in ("old-0123456789ab", "young-0123456789ab", ".cut-0123456789ab.pulling")
    )
    for copy in (old, young, cut):
        copy.mkdir(parents=True)
        (copy / "a.jsonl").touch()
    os.utime(old, (0, 0))
    os.utime(cut, (0, 0))
    used = corpora / f".{young.name}.lock"
    used.touch()
    os.utime(used, (time.time() + 3600,) * 2)  # after the run's begin, whenever that is
    with supervised(lab, tmp_path, run) as (supervisor, number, folder):
        never = "no machine of the pool garage has been heard from yet"
        wait_for(lambda: attempt(lab, run, number).waiting == never, "the reason")
        with lab.db.read() as session:
            reason = why(session, run).reason
        assert reason == f"The board of donated machines decides when it starts. {never[0].upper()}{never[1:]}."
        assert charged(lab, run, number) == 0
        with donated(served.address, tmp_path, "ada", token):
            assert supervisor.wait(PATIENCE) == 0
            wait_for(lambda: not old.exists() and not cut.exists(), "the end of copies that no run has used for long")
    assert young.exists()
    [outcome] = (tmp_path / "store").glob("runs/*/attempt-1/outcome.json")
    assert outcome.stat().st_mtime <= used.stat().st_mtime <= time.time(), "a copy is in use until the run's end"
    assert lab.run(run).state == RunState.FINISHED, said(folder)
    assert lab.row(run).step == 4
    row = attempt(lab, run, number)
    assert (row.boot_id, row.waiting) == ("donated", "")
    assert charged(lab, run, number) > 0
    assert list((tmp_path / "store").glob("runs/*/attempt-1/checkpoints/step4/whole"))
    assert not list((tmp_path / "store").glob("donated/*/*")), "the board is empty"


def test_a_copy_that_cannot_be_removed_is_one_line_and_the_machine_works_on(tmp_path: Path) -> None:
    old = tmp_path / "corpora" / "old-0123456789ab"
    lock = tmp_path / "corpora" / f".{old.name}.lock"
    for folder in (old, lock):
        folder.mkdir(parents=True)
    os.utime(lock, (0, 0))
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if "removed" in line:
            machine.leave()

    [port] = free_ports(1)
    machine = DonatedMachine(f"http://127.0.0.1:{port}", "token", tmp_path, say)
    machine.run()
    assert said[-2:] == [f"copies of corpora could not be removed: [Errno 21] Is a directory: '{lock}'", "left"]


@ONCE
def test_a_machine_holds_no_secret_but_its_token_and_the_api_may_restart(
    lab: Lab, served: Served, tmp_path: Path, run: int
) -> None:
    token = admit(lab, "ada", POOL)
    hidden = [lab.db.url.render_as_string(hide_password=False), str(tmp_path / "store")]
    with (
        supervised(lab, tmp_path, run) as (supervisor, _, folder),
        donated(served.address, tmp_path, "ada", token, standin(tmp_path, 10_000), forks=False) as machine,
    ):
        wait_for(lambda: lab.row(run).step > 10, "steps")
        below = psutil.Process(machine.pid).children(recursive=True)
        environments = [process.environ() for process in below]
        assert len(below) == 3, "a shim, a pod and a trainer"
        assert not [each for each in environments if any(word in repr(each) for word in (*hidden, token))]
        keys = [each.get("STOA_STORE_SECRET", "") for each in environments]
        assert sorted(map(bool, keys)) == [False, True, True]
        assert not [name for name in environments[-1] if name.startswith("STOA_")], "the trainer has no key"
        served.stop()
        seen = lab.row(run).step
        served.start()
        wait_for(lambda: lab.row(run).step > seen + 10, "more steps")
        lab.cancel(run)
        assert supervisor.wait(PATIENCE) == 0
        ends = ("ended with status 75", "the lab has closed it")
        wait_for(lambda: any(end in (tmp_path / "ada.log").read_text() for end in ends), "a word of the machine")
        wait_for(lambda: not list((tmp_path / "ada" / "pods").iterdir()), "the end of the pod's folder")
    assert lab.run(run).state == RunState.CANCELLED
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert list((tmp_path / "store").glob(f"runs/*/attempt-1/checkpoints/step{last}/whole"))
    assert machine.poll() == 0


@ONCE
def test_a_run_goes_on_elsewhere_when_its_machine_dies_or_is_taken_back(
    lab: Lab, served: Served, tmp_path: Path, soon_lost: int
) -> None:
    run = soon_lost
    tokens = {name: admit(lab, name, POOL) for name in ("ada", "bob", "carla")}
    python = standin(tmp_path, 10_000)
    with (
        supervised(lab, tmp_path, run) as (supervisor, first, _),
        donated(served.address, tmp_path, "ada", tokens["ada"], python) as machine,
    ):
        wait_for(lambda: lab.row(run).step > 10, "a checkpoint")
        below = psutil.Process(machine.pid).children(recursive=True)
        machine.kill()
        for process in below:
            process.kill()
        assert supervisor.wait(PATIENCE) == 0
    assert (lab.run(run).state, attempt(lab, run, first).end_reason) == (RunState.QUEUED, EndReason.NODE_FAILED)
    with (
        supervised(lab, tmp_path, run) as (supervisor, second, folder),
        donated(served.address, tmp_path, "bob", tokens["bob"], python) as machine,
    ):
        wait_for(lambda: "from step" in said(folder), "the second attempt")
        assert int(said(folder).split()[2]) >= 10
        machine.terminate()
        assert supervisor.wait(PATIENCE) == 0
        assert machine.wait(PATIENCE) == 0
    assert (lab.run(run).state, attempt(lab, run, second).end_reason) == (RunState.QUEUED, EndReason.RUNNER_ENDED)
    assert attempt(lab, run, second).reason == "the machine bob was taken back by its owner"
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    with (
        supervised(lab, tmp_path, run) as (supervisor, third, folder),
        donated(served.address, tmp_path, "carla", tokens["carla"], python),
    ):
        wait_for(lambda: "from step" in said(folder), "the third attempt")
        assert int(said(folder).split()[2]) == last
        lab.pause(run)
        assert supervisor.wait(PATIENCE) == 0
    assert lab.run(run).state == RunState.PAUSED
    assert charged(lab, run, third) >= 0


@ONCE
@pytest.mark.parametrize("host", ["", "another"])
def test_a_supervisor_that_is_killed_gets_an_heir_and_the_machine_notices_nothing(
    lab: Lab, served: Served, tmp_path: Path, run: int, host: str
) -> None:
    token, lease = admit(lab, "ada", POOL), 6.0
    begun = time.monotonic()
    with (
        supervised(lab, tmp_path, run, lease=lease) as (first, number, _),
        donated(served.address, tmp_path, "ada", token, standin(tmp_path, 150)),
    ):
        wait_for(lambda: lab.row(run).step > 60, "half of the steps")
        first.kill()
        first.wait()
        home = tmp_path / host
        if host:
            until = attempt(lab, run, number).lease_until
            assert until is not None
            wait_for(lambda: utcnow() > until, "the end of the lease")
            (home / "runs" / str(run)).mkdir(parents=True)
        places = {"STOA_STORE": f"file://{tmp_path}/store", "STOA_HOST_NAME": host}
        with supervised_by(lab, Path(sys.executable), home, lease, places, run, number, 1) as successor:
            assert successor.wait(PATIENCE) == 0, (home / "supervisor.log").read_text()
        took = time.monotonic() - begun
        log = tmp_path / "ada.log"
        wait_for(lambda: len(log.read_text().splitlines()) > 2, "a word of the machine")
    assert lab.run(run).state == RunState.FINISHED
    assert (lab.row(run).step, attempt(lab, run, number).generation) == (150, 2)
    assert 0 < charged(lab, run, number) <= took, "each second once"
    words = log.read_text().splitlines()
    ends = (f"run {run}, attempt 1: ended with status 0", f"run {run}, attempt 1: the lab has closed it")
    assert words[1] == f"run {run}, attempt 1: started"
    assert words[2] in ends
    steps = [json.loads(line)["step"] for line in (home / "runs" / str(run) / "attempt-1" / "metrics.jsonl").open()]
    assert steps == list(range(1, 151))


@ONCE
@pytest.mark.parametrize("second", ["ada", "bob"])
def test_a_paused_run_is_resumed_on_the_same_machine_or_another(
    lab: Lab, served: Served, tmp_path: Path, run: int, second: str
) -> None:
    tokens = {name: admit(lab, name, POOL) for name in ("ada", "bob")}
    with (
        supervised(lab, tmp_path, run) as (supervisor, _, first_folder),
        donated(served.address, tmp_path, "ada", tokens["ada"], standin(tmp_path, 10_000)),
    ):
        wait_for(lambda: lab.row(run).step > 5, "steps")
        lab.pause(run)
        assert supervisor.wait(PATIENCE) == 0
    assert lab.run(run).state == RunState.PAUSED
    last = json.loads((first_folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    served.stop()
    served.start()
    lab.resume(run)
    (tmp_path / "second").mkdir()
    python = standin(tmp_path / "second", last + 5)
    with (
        supervised(lab, tmp_path, run) as (supervisor, _, folder),
        donated(served.address, tmp_path, second, tokens[second], python),
    ):
        assert supervisor.wait(PATIENCE) == 0
    assert lab.run(run).state == RunState.FINISHED
    assert said(folder).splitlines()[0] == f"from step {last}"


@ONCE
def test_the_api_serves_a_store_of_s3(
    lab: Lab, tmp_path: Path, seaweed: Seaweed, run: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = seaweed.settings(settings(tmp_path), prefix=tmp_path.name)
    for name, value in stores.environment(store).items():
        monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    with (
        serving(lab, store) as served,
        supervised(lab, tmp_path, run, places=stores.environment(store)) as (supervisor, _, folder),
        donated(served.address, tmp_path, "ada", admit(lab, "ada", POOL), standin(tmp_path, 15)),
    ):
        assert supervisor.wait(PATIENCE) == 0
    assert lab.run(run).state == RunState.FINISHED, said(folder)
    attempt_folder = stores.attempt_folder(run, lab.row(run).request_id, 1)
    for step in (10, 15):
        assert Store(store).pull(stores.checkpoint_folder(attempt_folder, step), tmp_path / f"step{step}")
        assert (tmp_path / f"step{step}" / "weights").read_text() == str(step)


@ONCE
def test_a_revoked_machine_loses_its_run_and_works_no_more(
    lab: Lab, served: Served, tmp_path: Path, soon_lost: int
) -> None:
    run, token = soon_lost, admit(lab, "ada", POOL)
    with (
        supervised(lab, tmp_path, run) as (supervisor, first, _),
        donated(served.address, tmp_path, "ada", token, standin(tmp_path, 10_000)) as machine,
    ):
        wait_for(lambda: lab.row(run).step > 2, "steps")
        with lab.db.write() as session:
            machines.revoke(session, "ada", "It was stolen.")
        assert machine.wait(PATIENCE) == 2
        assert supervisor.wait(PATIENCE) == 0
    assert attempt(lab, run, first).end_reason == EndReason.NODE_FAILED
    log = (tmp_path / "ada.log").read_text().splitlines()
    assert log[-1] == "The lab does not take this machine's token: it is wrong, or was revoked."
    assert not list((tmp_path / "ada" / "pods").iterdir())


@ONCE
def test_a_machine_of_another_version_says_so_and_ends(
    lab: Lab, served: Served, tmp_path: Path, run: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = donated_presence.versions()
    monkeypatch.setattr(donated_presence, "versions", lambda: ours | {"stoa": "9.9.9"})  # the API is in this process
    with donated(served.address, tmp_path, "ada", admit(lab, "ada", POOL)) as machine:
        assert machine.wait(PATIENCE) == 2
    said = (tmp_path / "ada.log").read_text().splitlines()[-1]
    assert said == f"This machine runs Stoa {ours['stoa']}, and the lab 9.9.9; install that version here."
    assert lab.run(run).state == RunState.QUEUED


@ONCE
def test_the_whole_way_over_tls_by_the_command_line(lab: Lab, ours: Settings, tmp_path: Path, run: int) -> None:
    certificate, key = self_signed(tmp_path)
    [port] = free_ports(1)
    told = bare() | {
        "STOA_ENV_FILE": "",
        "STOA_HOME": str(tmp_path),
        "STOA_DATABASE_URL": lab.db.url.render_as_string(hide_password=False),
        "STOA_STORE": ours.store,
        "STOA_MACHINES_ADDRESS": f"127.0.0.1:{port}",
    }
    with_tls = told | {"STOA_MACHINES_CERTIFICATE": str(certificate), "STOA_MACHINES_KEY": str(key)}
    token = forked.run_module("cli.main", told, "machine", "token", "ada", "--pool", POOL).stdout.strip()
    assert forked.run_module("cli.main", told, "health", "machine").returncode == 1
    served = forked.module("cli.main", tmp_path / "machine.log", with_tls, "machine", "serve")
    assert "never" in forked.run_module("cli.main", told, "machine", "list").stdout
    address, python = f"https://localhost:{port}", standin(tmp_path, 10)
    try:
        log = tmp_path / "machine.log"
        wait_for(lambda: log.exists() and "ready" in log.read_text(), "the API")
        with (
            supervised(lab, tmp_path, run) as (supervisor, _, _),
            donated(address, tmp_path, "bob", token, python),
            donated(address, tmp_path, "ada", token, python, "--certificate", str(certificate)),
        ):
            assert supervisor.wait(PATIENCE) == 0
        assert forked.run_module("cli.main", told, "health", "machine").returncode == 0
        assert "the lab does not answer" in (tmp_path / "bob.log").read_text(), "a certificate that nobody knows"
    finally:
        served.terminate()
        served.wait(PATIENCE)
    assert lab.run(run).state == RunState.FINISHED
    assert token not in (tmp_path / "machine.log").read_text()
    listed = forked.run_module("cli.main", told | {"COLUMNS": "200"}, "machine", "list").stdout
    assert ("never" in listed, f"{utcnow():%Y-}" in listed, "1 process " in listed) == (False, True, True)
    taken = forked.run_module("cli.main", told, "store")
    assert (taken.returncode, f"│ {run} " in taken.stdout, "finished" in taken.stdout) == (0, True, True)
    refused = forked.run_module("cli.main", told | {"STOA_MACHINES_ADDRESS": "0.0.0.0:8443"}, "machine", "list")
    assert (refused.returncode, "STOA_MACHINES_CERTIFICATE" in refused.stderr) == (2, True)


@ONCE
def test_an_order_that_nobody_supervises_is_taken_off_the_board(
    lab: Lab, served: Served, tmp_path: Path, run: int, ours: Settings
) -> None:
    pool = lab.row(run).pool_id
    with (
        supervised(lab, tmp_path, run) as (supervisor, token, _),
        donated(served.address, tmp_path, "ada", admit(lab, "ada", POOL), standin(tmp_path, 10_000)),
    ):
        wait_for(lambda: lab.run(run).state == RunState.RUNNING, "the run")
        supervisor.kill()
        supervisor.wait()
        assert reaper.end_strays(ours, lab.db, pool) == 0
        lab.cancel(run)
        until = attempt(lab, run, token).lease_until
        assert until is not None
        wait_for(lambda: utcnow() > until, "the end of the lease")
        lab.expire(run, token)
        assert reaper.end_strays(ours, lab.db, pool) == 1
        wait_for(lambda: "has closed it" in (tmp_path / "ada.log").read_text(), "a word of the machine")
        assert reaper.end_strays(ours, lab.db, pool) == 0
