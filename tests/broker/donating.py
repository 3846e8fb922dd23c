"""The API for donated machines at work in a thread of the tests, and machines that speak to it, as processes."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from broker.allocations import machines
from broker.store import Store
from projects.settings import Settings
from tests import forked
from tests.broker.lab import Lab
from tests.environment import bare
from tests.forked import Forked
from tests.patience import PATIENCE, wait_for
from tests.ports import free_ports
from web.machines import app

POOL = "garage"


class Served:
    """The API of a lab, which a test stops and starts again."""

    def __init__(self, lab: Lab, settings: Settings) -> None:
        self.lab, self.settings = lab, settings
        [self.port] = free_ports(1)
        place = "https://localhost" if settings.machines_key else "http://127.0.0.1"
        self.address = f"{place}:{self.port}"
        self.start()

    def start(self) -> None:
        """Serve, and wait until it answers."""
        app_ = app(self.lab.db, Store(self.settings))
        config = uvicorn.Config(
            app_,
            port=self.port,
            ssl_certfile=self.settings.machines_certificate or None,
            ssl_keyfile=self.settings.machines_key or None,
            lifespan="off",
            log_config=None,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        wait_for(lambda: self._server.started, "the API")

    def stop(self) -> None:
        """Answer nobody any more."""
        self._server.should_exit = True
        self._thread.join(PATIENCE)


@contextmanager
def serving(lab: Lab, settings: Settings) -> Iterator[Served]:
    """The API of a lab whose settings name a store."""
    served = Served(lab, settings)
    try:
        yield served
    finally:
        served.stop()


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate of localhost that no authority knows, and its key."""
    certificate, key = folder / "lab.pem", folder / "lab.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


def admit(lab: Lab, name: str, pool: str = POOL) -> str:
    """The token of a machine."""
    with lab.db.write() as session:
        return machines.admit(session, name, pool)


@contextmanager
def donated(
    address: str,
    home: Path,
    name: str,
    token: str,
    python: Path = Path(sys.executable),
    *options: str,
    forks: bool = True,
) -> Iterator[Forked]:
    """A machine at work, with a home of its own, until the end of the block at the latest; its log is `NAME.log`.

    Without `forks`, what it starts begins anew, and is known by its command line and its environment.
    """
    (home / f"{name}.token").write_text(f"{token}\n")
    given = ["donate", "--lab", address, "--token-file", str(home / f"{name}.token"), "--home", str(home / name)]
    process = forked.module("cli.main", home / f"{name}.log", bare(), *given, *options, python=python, forks=forks)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE)
