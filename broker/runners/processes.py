"""Processes of this host as they are known for sure, over pids that are used again and over reboots."""

import contextlib
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Process:
    """A process as it is known for sure: pids are used again, the boot and the start tell them apart.

    `started` is in clock ticks since the boot, which no turning of the clock changes.
    """

    host: str
    boot_id: str
    pid: int
    started: int


def identify(pid: int) -> Process:
    """The identity of a running process of this host."""
    return Process(host(), boot_id(), pid, _start_ticks(pid))


def named_by(word: str) -> list[Process]:
    """The leaders of process groups of this host with this word on their command line."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if word in process.cmdline() and os.getpgid(process.pid) == process.pid:
                found.append(identify(process.pid))
    return found


def kill_group(process: Process) -> list[int]:
    """End with SIGKILL every process of the group that `process` led, on this host and boot only; return their pids."""
    if not of_this_host(process) or _pid_reused(process):
        return []
    members = [member for member in psutil.process_iter() if _in_group(member, process)]
    for member in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    # psutil's own wait would take the exit status of a child, which its Popen then reads as 0.
    until = time.monotonic() + 10
    while any(_in_group(member, process) for member in members) and time.monotonic() < until:
        time.sleep(0.01)
    return [member.pid for member in members]


def host() -> str:
    """This host's name among those of the lab."""
    from projects.settings import get_settings  # imports SQLAlchemy, which the command line need not wait for

    return get_settings().host_name or socket.gethostname()


def boot_id() -> str:
    """The kernel's identifier of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def of_this_host(process: Process) -> bool:
    """Whether a process was started on this host since its boot."""
    return (process.host, process.boot_id) == (host(), boot_id())


def gone(process: Process) -> bool:
    """Whether a process of this host has surely ended: it runs no more, or was of an earlier boot."""
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


def _pid_reused(leader: Process) -> bool:
    """Whether another process has the leader's pid now: the kernel reuses a pid only once its group is gone."""
    try:
        return _start_ticks(leader.pid) != leader.started
    except OSError:
        return False


def _in_group(member: psutil.Process, leader: Process) -> bool:
    """Whether `member` belongs to the leader's group; a process that began before the leader is of another group."""
    try:
        if os.getpgid(member.pid) != leader.pid or member.status() == psutil.STATUS_ZOMBIE:
            return False
        return _start_ticks(member.pid) >= leader.started
    except (psutil.Error, OSError):
        return False
