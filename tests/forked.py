"""Processes of Stoa's parts that begin where the imports end: they are forked from one that has imported all of it.

Each is a process of its own, as one that `python -c` starts, without the seconds of CPU that its imports would take.
"""

import multiprocessing
import os
import subprocess
import sys
import types
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["bot.client", "sandbox.__main__", "sandbox.hub.server"])
_servers: set[psutil.Process] = set()


class Forked:
    """A forked process that runs `code`; what tests use of `subprocess.Popen`. Its output goes to the file `log`."""

    def __init__(self, code: str, log: Path, environment: Mapping[str, str], *arguments: str) -> None:
        self._process: ForkServerProcess = CONTEXT.Process(
            target=_run, args=(code, log, dict(environment), arguments), daemon=True
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid
        if not _servers:
            _servers.add(psutil.Process(psutil.Process(self.pid).ppid()))

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while the process runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the process's end; raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0.0)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal to a process that has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill -9."""
        self._process.kill()


def cpu_seconds() -> float:
    """Of the processes that were forked here and have ended, and of the one that they were forked from."""
    return sum(sum(server.cpu_times()[:4]) for server in _servers)


def _run(code: str, log: Path, environment: dict[str, str], arguments: tuple[str, ...]) -> None:
    """Become a process as `python -c` starts one, and run the code."""
    for number, target, flags in ((0, os.devnull, os.O_RDONLY), (1, log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)):
        opened = os.open(target, flags)
        os.dup2(opened, number)
        os.close(opened)
    os.dup2(1, 2)
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.current_process().daemon = False
    main = types.ModuleType("__main__")
    sys.modules["__main__"], sys.argv = main, ["-c", *arguments]
    exec(compile(code, "<string>", "exec"), vars(main))
