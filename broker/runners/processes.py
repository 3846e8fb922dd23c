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

    `boot_id` is the boot with the PID namespace, such as a container's, in which `pid` counts; rows of earlier versions
    have the boot alone. `started` is in clock ticks since the boot, which no turning of the clock changes.
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
    """End with SIGKILL every process of the group that `process` led, where its pid counts; return their pids."""
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
    from projects.settings import get_settings  # imports what the command line need not wait for

    return get_settings().host_name or socket.gethostname()


def boot_id() -> str:
    """The kernel's identifier of this boot, and the number of this PID namespace: two containers have one kernel."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}:{os.stat('/proc/self/ns/pid').st_ino}"


def of_this_host(process: Process) -> bool:
    """Whether the pid of a process counts here: on this boot and in this PID namespace, whatever the host's name."""
    here = boot_id()
    return process.boot_id == here or (process.host, process.boot_id) == (host(), kernel_boot(here))


def gone(process: Process) -> bool:
    """Whether a process has surely ended: it runs here no more, or was of an earlier boot of this host.

    One of another container under this host's name may be alive.
    """
    if of_this_host(process):
        return not alive(process)
    return is_of_earlier_boot(process.host, process.boot_id)


def is_of_earlier_boot(of_host: str, of_boot: str) -> bool:
    """Whether what ran under a host's name on a boot ran here before this boot."""
    return of_host == host() and kernel_boot(of_boot) != kernel_boot(boot_id())


def replaceable(supervisor: Process) -> bool:
    """Whether a supervisor has ended as far as this host can know, so that another may take its trainer over.

    It is taken for ended with its container; should it live, its generation is refused.
    """
    return not alive(supervisor) if of_this_host(supervisor) else supervisor.host == host()


def kernel_boot(of_boot: str) -> str:
    """The boot of the kernel alone, without the PID namespace."""
    return of_boot.partition(":")[0]


def alive(process: Process) -> bool:
    """Whether a process whose pid counts here still runs."""
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
