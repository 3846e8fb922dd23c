"""Launchers start a trainer somewhere and know it again: one small interface, here with processes of this host.

`broker.runners.slurm` has the other one.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import psutil

from broker.allocations import pools
from broker.runners import shim, slurm
from broker.runs.attempts import Process
from trainer.contract import LOG_FILE

PASSED_ON = ("PATH", "HOME", "LANG", "TMPDIR", "OMP_WAIT_POLICY")


class Launcher(Protocol):
    """Starts one trainer and ends it. A trainer's process sees no token and no database address.

    `waiting`: why the trainer has not begun yet, empty once it has; that time costs nothing. `ended`: how it came to
    its end, where the launcher knows more than the exit status says. It outlives a supervisor that dies.
    """

    waiting: str
    ended: str

    def start(self, command: Sequence[str], folder: Path, devices: str) -> Process:
        """Start `command` in `folder` on `devices`, its output going to `trainer.log` there."""

    def adopt(self, process: Process, folder: Path, waiting: str = "") -> None:
        """Take over what another launcher has started in `folder`, be it `waiting`, running or over."""

    def process(self) -> Process:
        """What it started."""

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it waits or runs."""

    def seconds(self) -> float:
        """How long the trainer has run."""

    def keep(self, seconds: float) -> None:
        """Let it run so much longer from now without another word."""

    def stop(self) -> None:
        """Ask it to write a checkpoint and exit (SIGTERM)."""

    def kill(self) -> None:
        """End it and all that it has started at once, and wait until they are gone."""


def choose(pool: pools.Pool, *, gpus: int, seconds: float, grace: float, lease: float, every: float) -> Launcher:
    """The launcher of a pool, for a trainer that may run `seconds` and has `grace` seconds to stop."""
    if pool.launcher == pools.Launcher.LOCAL:
        return LocalLauncher(lease, grace)
    wanted = slurm.Wanted(gpus, seconds, grace, partition=pool.slurm_partition, gres=pool.slurm_gres)
    return slurm.SlurmLauncher(wanted, every=every)


class LocalLauncher:
    """The trainer as a process group of this host, led by its keeper: it outlives its supervisor by its lease."""

    waiting = ""
    ended = ""

    def __init__(self, lease: float = 60, grace: float = 60) -> None:
        self._lease = lease
        self._grace = grace
        self._folder = Path()
        self._popen: subprocess.Popen[bytes] | None = None
        self._process: Process | None = None
        self._over: tuple[int, float] | None = None
        self._last_renewed: float | None = None

    def start(self, command: Sequence[str], folder: Path, devices: str) -> Process:
        """See `Launcher`."""
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        self._folder = folder
        self.keep(self._lease)
        with (folder / LOG_FILE).open("ab") as log:
            self._popen = subprocess.Popen(
                [sys.executable, "-I", "-S", shim.__file__, str(folder), str(self._grace), *command],
                env={**environment, "CUDA_VISIBLE_DEVICES": devices},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._process = identify(self._popen.pid)
        return self._process

    def adopt(self, process: Process, folder: Path, waiting: str = "") -> None:
        """See `Launcher`; the other was of this host and boot."""
        self._process, self._folder = process, folder
        with contextlib.suppress(OSError, ValueError):
            self._last_renewed = float(json.loads((folder / "lease").read_text())) - self._lease
        if self.poll() is None:
            self._last_renewed = None
            self.keep(self._lease)

    def keep(self, seconds: float) -> None:
        """See `Launcher`."""
        with contextlib.suppress(OSError):  # a disk that is full now may be so no more at the next renewal
            shim.write(self._folder / "lease", shim.since_boot() + seconds)

    def process(self) -> Process:
        """See `Launcher`."""
        assert self._process is not None
        return self._process

    def poll(self) -> int | None:
        """See `Launcher`."""
        if self._process is None:
            return None
        if self._over is None and not (alive(self._process) if self._popen is None else self._popen.poll() is None):
            self._over = self._exit()
        return None if self._over is None else self._over[0]

    def seconds(self) -> float:
        """See `Launcher`."""
        if self._process is None:
            return 0.0
        over_at = shim.since_boot() if self._over is None else self._over[1]
        return max(0.0, over_at - self._process.started / os.sysconf("SC_CLK_TCK"))

    def stop(self) -> None:
        """See `Launcher`. Only the trainer's keeper is told; it tells the trainer, and that its ranks."""
        if self._process is not None and self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """See `Launcher`."""
        if self._process is not None:
            kill_group(self._process)
            if self._popen is not None:
                self._popen.wait()

    def _exit(self) -> tuple[int, float]:
        """How and when it ended, by what its keeper has left; one that left nothing was killed with its trainer.

        Of one that was dead when it was taken over, no more is known than that it lived at the last renewal.
        """
        try:
            said = json.loads((self._folder / "exit").read_text())
        except FileNotFoundError:
            return -signal.SIGKILL, self._last_renewed or shim.since_boot()
        return int(said["status"]), float(said["at"])


def identify(pid: int) -> Process:
    """The identity of a running process of this host."""
    return Process(host(), boot_id(), pid, _start_ticks(pid))


def kill_group(process: Process) -> list[int]:
    """End with SIGKILL every process of the group that `process` led, on this host and boot only; return their pids."""
    if not of_this_host(process) or _number_taken(process):
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


def of_this_host(process: Process) -> bool:
    """Whether a process was started on this host since its boot."""
    return (process.host, process.boot_id) == (host(), boot_id())


def gone(process: Process) -> bool:
    """Whether a process has surely ended: it was one of this host, and of an earlier boot, or it runs no more."""
    return process.host == host() and (process.boot_id != boot_id() or not alive(process))


def alive(process: Process) -> bool:
    """Whether a process of this host and boot still runs."""
    try:
        stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return int(stat[19]) == process.started and stat[0] != "Z"


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
