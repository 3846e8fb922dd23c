"""The API for donated machines served by two processes on one database: each run has one machine."""

import os
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest

from tests import forked
from tests.broker.donating import POOL, admit
from tests.broker.lab import Lab
from tests.environment import bare
from tests.forked import Forked
from tests.patience import PATIENCE, wait_for
from tests.ports import free_ports
from tests.web.test_machines import OWNER, Machine, order, ours

__all__ = ["ours"]


class Process:
    """A process that serves the API, and a client of it."""

    def __init__(self, environment: Mapping[str, str], home: Path) -> None:
        [port] = free_ports(1)
        own = {"STOA_MACHINES_ADDRESS": f"127.0.0.1:{port}", "STOA_HOME": str(home)}
        home.mkdir()
        self.forked = forked.module("cli.main", home / "log", dict(environment) | own, "machine", "serve")
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE)

    def answers(self) -> bool:
        with suppress(httpx2.TransportError):
            return self.client.get("/claims").status_code == 405
        return False


@pytest.fixture
def processes(lab: Lab, ours: object, tmp_path: Path) -> Iterator[list[Process]]:
    """Two processes over one lab and one store."""
    lab.pool(POOL, runner="donated")
    environment = bare() | {
        "STOA_ENV_FILE": "",
        "STOA_DATABASE_URL": lab.db.url.render_as_string(hide_password=False),
        "STOA_STORE": f"file://{tmp_path}/store",
    }
    both = [Process(environment, tmp_path / name) for name in ("one", "two")]
    try:
        for each in both:
            wait_for(each.answers, "a process that serves")
        yield both
    finally:
        for each in both:
            each.forked.kill()
            each.forked.wait(PATIENCE)
            each.client.close()


def test_two_processes_give_each_run_to_one_machine_and_one_may_be_killed(
    lab: Lab, processes: list[Process], tmp_path: Path
) -> None:
    one, two = processes
    tokens = [admit(lab, f"machine{number}") for number in range(8)]
    for run in (7, 8, 9):
        order(tmp_path, run)
    asked = [Machine(each.client, token) for token in tokens for each in processes]
    with ThreadPoolExecutor(len(asked)) as at_once:
        granted = [each for each in at_once.map(Machine.claim, asked) if each is not None]
    assert sorted(each["run"] for each in granted) == [f"{run}-{OWNER}" for run in (7, 8, 9)]

    order(tmp_path, 10)
    claim = tmp_path / "store" / "runs" / f"10-{OWNER}" / "attempt-1" / "claim.json"
    os.mkfifo(claim)  # whoever opens it stands still there, in the middle of a claim
    with ThreadPoolExecutor(2) as at_once:
        cut = at_once.submit(Machine(one.client, tokens[0]).claim)
        writer = stopped_as_it_reads(one.forked, claim)
        other = Machine(two.client, tokens[1])
        waits = at_once.submit(other.claim)
        assert two.answers()
        assert not waits.done()
        claim.unlink()
        one.forked.kill()
        os.close(writer)
        assert waits.result(PATIENCE) is not None
        assert isinstance(cut.exception(PATIENCE), httpx2.TransportError)
    assert Machine(two.client, tokens[0]).claim() is None, "the run has its machine"
    assert other.ask("POST", "renew", json={}) == 200


def stopped_as_it_reads(process: Forked, pipe: Path) -> int:
    """Stop a process as it opens a pipe; a descriptor of the pipe's other end."""
    found: list[int] = []

    def opened() -> bool:
        process.send_signal(signal.SIGSTOP)
        with suppress(OSError):  # nobody reads it yet
            found.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
            return True
        process.send_signal(signal.SIGCONT)
        return False

    wait_for(opened, "a claim under way")
    return found[0]
