"""Processes of Stoa's parts that begin where the imports end: they are forked from one that has imported all of it.

Each is a process of its own, as one that `python -c` starts, without the seconds of CPU that its imports would take.
"""

import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import psutil

from broker.runners import shim
from projects.settings import get_settings
from tests import shown
from tests.patience import PATIENCE
from trainer import allocator

ROOT = Path(__file__).parents[1]
CONTEXT = multiprocessing.get_context("forkserver")

# Threads of PyTorch's that wait sleep: spinning, they take the cores from the processes that the tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
ENVIRONMENT = dict(os.environ)
"""What servers begin with: a test that sets a variable may end all processes that were started with it."""
_servers: list[psutil.Process] = []
_starting = threading.Lock()


class Server:
    """A process that has imported some modules, and from which others are forked; it begins with the first of them.

    multiprocessing has a single one, with the modules of whoever is first: ranks would import torch each for itself.
    `variables` are added to what the environment was when the tests began.
    """

    def __init__(self, *modules: str, variables: Mapping[str, str] | None = None) -> None:
        self._environment = ENVIRONMENT | dict(variables or {})
        self._server = forkserver.ForkServer()
        self._server.set_forkserver_preload(list(modules))
        self._begun = False

    def start(self, function: Callable[..., None], *arguments: object) -> ForkServerProcess:
        """A process that calls the function, and ends with this one at the latest."""
        process = CONTEXT.Process(target=function, args=arguments, daemon=True)
        connect = self._server.connect_to_new_process
        with _starting, mock.patch.object(forkserver, "connect_to_new_process", connect):
            if not self._begun:
                with mock.patch.dict(os.environ, self._environment, clear=True):
                    self._server.ensure_running()
            process.start()
        if not self._begun:
            self._begun = True
            _servers.append(psutil.Process(psutil.Process(process.pid).ppid()))
        return process

    def warm(self) -> None:
        """Have the modules imported by now."""
        if not self._begun:
            self.start(_nothing).join()


def _nothing() -> None:
    pass


PARTS = Server("tests.imported")
"""The server of Stoa's parts."""
WRONG_CLOCKS = Server("tests.wrong_clock", "tests.imported")
"""The server of parts whose clock may be wrong: each sets `tests.wrong_clock.SECONDS`."""
TRAINERS = Server(
    "tests.imported", "tests.forked_trainer", variables={"DS_ACCELERATOR": "cpu"} | allocator.environment(os.environ)
)
"""The server of trainers whose ranks are forked from them, and of parts whose trainers are."""
PYTHON = sys.executable
CARRIER, POD, SUPERVISOR = "broker.runners.carrier", "broker.runners.pod", "broker.runners.supervisor"
TRAINER = "trainer"
RANK = "trainer.distributed.rank"


class Forked:
    """A forked process that runs `code`; what tests use of `subprocess.Popen`.

    Its output goes to the file `log`, its errors too where they have no file of their own. `python` is what it takes
    for its own interpreter, and starts others with.
    """

    def __init__(
        self,
        code: str,
        log: Path,
        environment: Mapping[str, str],
        *arguments: str,
        errors: Path | None = None,
        python: Path | None = None,
        server: Server = PARTS,
    ) -> None:
        given = (code, log, errors or log, dict(environment), arguments, str(python or sys.executable))
        self._process = server.start(_run, *given)
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while the process runs."""
        with _starting:  # multiprocessing reads it once, of all processes also where one starts
            return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the process's end; raises subprocess.TimeoutExpired."""
        connection.wait([self._process.sentinel], timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0.0)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal to a process that has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM to a process that has not ended."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill -9."""
        self._process.kill()


def module(
    name: str,
    log: Path,
    environment: Mapping[str, str],
    *arguments: str,
    python: Path | None = None,
    session: bool = False,
    before: str = "",
    server: Server | None = None,
    forks: bool = False,
) -> Forked:
    """Start what `python -m name` is, with these arguments, after the statement `before`; with `session`, in a session
    of its own.

    With `forks`, what it starts is forked, too.
    """
    steps = ("import os; os.setsid()" if session else "", before, _of_module(name, forks=forks))
    server = server or (_server_of(python) if forks else PARTS)
    return Forked("; ".join(filter(None, steps)), log, environment, *arguments, python=python, server=server)


def _server_of(python: Path | None) -> Server:
    """What those are forked from: of those whose trainer is the real one, a process that has PyTorch."""
    return TRAINERS if python in (None, Path(PYTHON)) else PARTS


def run_module(name: str, environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run what `python -m name` is to its end, with its output and its errors caught; what it starts is forked."""
    return _to_its_end(PARTS, _of_module(name, forks=True), environment, arguments)


def run_trainer(
    environment: Mapping[str, str], *arguments: str, limits: Mapping[int, int] | None = None
) -> subprocess.CompletedProcess[str]:
    """The same for the trainer, whose ranks begin where their imports end, under `limits` of the kernel."""
    bounds = [f"resource.setrlimit({kind}, ({value}, {value}))" for kind, value in (limits or {}).items()]
    code = "; ".join(["import resource", *bounds, _of_module(TRAINER, forks=True)])
    return _to_its_end(TRAINERS, code, environment, arguments)


def start_trainer(environment: Mapping[str, str], *arguments: str, log: Path = Path(os.devnull)) -> Forked:
    """Start such a trainer in a process group of its own; what it says goes to the file `log`."""
    code = f"import os; os.setpgid(0, 0); {_of_module(TRAINER, forks=True)}"
    return Forked(code, log, environment, *arguments, server=TRAINERS)


def _to_its_end(
    server: Server, code: str, environment: Mapping[str, str], arguments: tuple[str, ...]
) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as folder:
        out, errors = Path(folder, "out"), Path(folder, "errors")
        status = Forked(code, out, environment, *arguments, errors=errors, server=server).wait(PATIENCE)
        return subprocess.CompletedProcess(arguments, status, out.read_text(), errors.read_text())


def cpu_seconds() -> float:
    """Of the processes that were forked here and have ended, and of those that they were forked from."""
    return sum(sum(server.cpu_times()[:4]) for server in _servers)


def _of_module(name: str, *, forks: bool = False) -> str:
    return f"import tests.forked; tests.forked.become({name!r}, {forks})"


def become(name: str, forks: bool) -> None:
    """Run a module, or a package's `__main__`, as the program; that it was imported before is forgotten.

    With `forks`, what it starts begins as a copy of it where that may be.
    """
    if forks:
        subprocess.Popen = Popen  # type: ignore[misc, assignment]
    program = ["-I", "-S", shim.__file__] if name == shim.__name__ else ["-m", name]
    with suppress(OSError):  # who reads it asks before
        shown.show([sys.executable, *program, *sys.argv[1:]], os.environ)
    if forks and name == "cli.main" and sys.argv[1:2] == ["worker"]:
        global _nursery
        _nursery = _start_nursery()
    package = hasattr(sys.modules.get(name), "__path__")
    sys.modules.pop(f"{name}.__main__" if package else name, None)
    runpy.run_module(name, run_name="__main__", alter_sys=True)


_nursery: socket.socket | None = None


def _start_nursery() -> socket.socket:
    """Leave a copy of this process behind in which supervisors begin, and return the socket that asks it for them.

    A copy of a worker that has opened an SQLite database could not open it: SQLite forbids that.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    first = os.fork()
    if first == 0:
        try:
            if os.fork() == 0:  # it is no child of the worker's, which may wait for the end of all of them
                ours.close()
                _tend(theirs)
        finally:
            os._exit(0)
    os.waitpid(first, 0)
    theirs.close()
    return ours


def _tend(asks: socket.socket) -> None:
    """Start what the socket asks for, each with the file that its output goes to, until nobody can ask any more."""
    while (given := socket.recv_fds(asks, 2**20, 1))[0]:
        args, environment = json.loads(given[0])
        with os.fdopen(given[1][0]) as out:
            begun = Popen(
                args, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        threading.Thread(target=begun.wait, daemon=True).start()


class Popen(subprocess.Popen[Any]):
    """`subprocess.Popen`, but what Stoa starts of its own begins in a copy of this process, where a Python would begin
    anew. The trainer does where it is the real one: its parent may have another Python."""

    def __init__(
        self,
        args: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        preexec_fn: Callable[[], object] | None = None,
        **others: Any,
    ) -> None:
        name, arguments = _program(args)
        if name == SUPERVISOR and _nursery is not None:
            socket.send_fds(_nursery, [json.dumps([args, dict(env or {})]).encode()], [others["stdout"].fileno()])
            self.returncode = 0  # nobody waits for it but to have it gone
            return

        def begin() -> None:
            if preexec_fn is not None:
                preexec_fn()
            _begin(name, arguments, env, pass_fds)

        super().__init__(args, env=env, pass_fds=pass_fds, preexec_fn=begin if name else preexec_fn, **others)


def _program(args: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The module that a command line runs, if it is one that may begin as a copy, and its arguments."""
    if args[1:4] == ["-I", "-S", shim.__file__]:
        return shim.__name__, args[4:]
    name = args[2] if args[1:2] == ["-m"] else ""
    if name == CARRIER:  # it uses the store, whose threads a copy of this process would lack
        forks = len(os.listdir("/proc/self/task")) == 1
    else:
        forks = name in (POD, SUPERVISOR) or (name in (TRAINER, RANK) and sys.executable == PYTHON)
    return (name, args[3:]) if forks else ("", ())


def _begin(name: str, arguments: Sequence[str], environment: Mapping[str, str] | None, kept: Sequence[int]) -> NoReturn:
    """Become what `python -m name` is, and end with it."""
    status: int | str | None = 1
    try:
        # With the others closes the one through which the parent would hear that no program has begun.
        opened = sorted({0, 1, 2, *kept})
        for low, high in zip(opened, [*opened[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
            os.closerange(low + 1, high)
        for helper in (resource_tracker._resource_tracker, forkserver._forkserver):  # whose files are closed now
            vars(helper).update(vars(type(helper)()))
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # as a Python that begins does
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if environment is not None:
            os.environ.clear()
            os.environ.update(environment)
        get_settings.cache_clear()
        if name == RANK:
            import torch

            torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        sys.stdin, sys.argv = os.fdopen(0, closefd=False), ["-m", *arguments]
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", 1, closefd=False)
        become(name, True)
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        if isinstance(status, str):
            print(status, file=sys.stderr)
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # or it would not end here
                stream.flush()
        os._exit(status if isinstance(status, int) else 1)


def _run(
    code: str, log: Path, errors: Path, environment: dict[str, str], arguments: tuple[str, ...], python: str
) -> None:
    """Become a process as `python -c` starts one, and run the code."""
    appending = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    for number, target, flags in ((0, os.devnull, os.O_RDONLY), (1, log, appending), (2, errors, appending)):
        opened = os.open(target, flags, 0o644)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.current_process().daemon = False
    main = types.ModuleType("__main__")
    sys.modules["__main__"], sys.argv, sys.executable = main, ["-c", *arguments], python
    exec(compile(code, "<string>", "exec"), vars(main))
