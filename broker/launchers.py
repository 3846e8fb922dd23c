"""Launchers start a trainer somewhere and know it again: one small interface, here with processes of this host.

`broker.slurm` has the other one.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import psutil

from broker import pools, slurm
from broker.attempts import Process

PASSED_ON = ("PATH", "HOME", "LANG", "TMPDIR")
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class Launcher(Protocol):
    """Starts one trainer and ends it. A trainer's process sees no token and no database address.

    `waiting`: why the trainer has not begun yet, empty once it has; that time costs nothing. `ended`: how it came to
    its end, where the launcher knows more than the exit status says.
    """

    waiting: str
    ended: str

    def start(self, command: Sequence[str], folder: Path, devices: str) -> Process:
        """Start `command` in `folder` on `devices`, its output going to `trainer.log` there."""

    def process(self) -> Process:
        """What it started."""

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it waits or runs."""

    def seconds(self) -> float:
        """How long the trainer has run."""

    def stop(self) -> None:
        """Ask it to write a checkpoint and exit (SIGTERM)."""

    def kill(self) -> None:
        """End it and all that it has started at once, and wait until they are gone."""


def choose(pool: pools.Pool, *, gpus: int, seconds: float, grace: float, every: float) -> Launcher:
    """The launcher of a pool, for a trainer that may run `seconds` and has `grace` seconds to stop."""
    if pool.launcher == pools.Launcher.LOCAL:
        return LocalLauncher()
    wanted = slurm.Wanted(gpus, seconds, grace, partition=pool.slurm_partition, gres=pool.slurm_gres)
    return slurm.SlurmLauncher(wanted, every=every)


class LocalLauncher:
    """The trainer as a process group of this host, which is asked to stop should its supervisor die."""

    waiting = ""
    ended = ""

    def __init__(self) -> None:
        self._popen: subprocess.Popen[bytes] | None = None
        self._process: Process | None = None
        self._began = 0.0
        self._over_at: float | None = None

    def start(self, command: Sequence[str], folder: Path, devices: str) -> Process:
        """See `Launcher`. Must be called from the main thread: PR_SET_PDEATHSIG is bound to the thread that forks."""
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        with (folder / "trainer.log").open("ab") as log:
            self._popen = subprocess.Popen(
                command,
                cwd=folder,
                env={**environment, "CUDA_VISIBLE_DEVICES": devices},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=tied_to_parent(),
            )
        self._began = time.monotonic()
        self._process = identify(self._popen.pid)
        return self._process

    def process(self) -> Process:
        """See `Launcher`."""
        assert self._process is not None
        return self._process

    def poll(self) -> int | None:
        """See `Launcher`."""
        status = None if self._popen is None else self._popen.poll()
        if status is not None and self._over_at is None:
            self._over_at = time.monotonic()
        return status

    def seconds(self) -> float:
        """See `Launcher`."""
        return 0.0 if self._popen is None else (self._over_at or time.monotonic()) - self._began

    def stop(self) -> None:
        """See `Launcher`. Only the trainer's parent is told; it tells its ranks."""
        if self._popen is not None and self._popen.poll() is None:
            self._popen.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """See `Launcher`."""
        if self._popen is not None and self._process is not None:
            kill_group(self._process)
            self._popen.wait()


def tied_to_parent() -> Callable[[], None]:
    """What a new process runs before its program, so that it gets SIGTERM when the thread that started it is gone."""
    parent = os.getpid()

    def tie() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(75)

    return tie


def identify(pid: int) -> Process:
    """The identity of a running process of this host."""
    return Process(host(), boot_id(), pid, _start_ticks(pid))


def kill_group(process: Process) -> list[int]:
    """End with SIGKILL every process of the group that `process` led, on this host and boot only; return their pids."""
    if (process.host, process.boot_id) != (host(), boot_id()) or _number_taken(process):
        return []
    members = [member for member in psutil.process_iter() if _in_group(member, process)]
    for member in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    # Not psutil's own waiting: it would take the exit status of a child, which then looks like 0 to its Popen.
    until = time.monotonic() + 10
    while any(_in_group(member, process) for member in members) and time.monotonic() < until:
        time.sleep(0.01)
    return [member.pid for member in members]


def host() -> str:
    """This host's name."""
    return socket.gethostname()


def boot_id() -> str:
    """What names this boot of the kernel."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since the boot: the 22nd field of its `stat` (man 5 proc)."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def _number_taken(leader: Process) -> bool:
    """Whether another process has the leader's pid now: the kernel gives it away only once its group is gone."""
    try:
        return _start_ticks(leader.pid) != leader.started
    except OSError:
        return False


def _in_group(member: psutil.Process, leader: Process) -> bool:
    """Whether `member` belongs to the leader's group; a group that began before the leader is another's."""
    try:
        if os.getpgid(member.pid) != leader.pid or member.status() == psutil.STATUS_ZOMBIE:
            return False
        return _start_ticks(member.pid) >= leader.started
    except (psutil.Error, OSError):
        return False
