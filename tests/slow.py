"""Runs a command, such as pytest, with all its processes slowed down: `python -m tests.slow TIMES COMMAND…`.

A CPU quota does it where one can be set: by systemd, or by a control group that this process may make. Elsewhere all
processes of the command are stopped for most of the time. `STOA_TEST_SLOW=1` lengthens the nets of the tests.
"""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

PERIOD = 0.1
"""Seconds in which a command runs for its share, then rests."""

GROUPS = Path("/sys/fs/cgroup")
SET_CHILD_SUBREAPER = 36  # of prctl(2)


def main(arguments: list[str]) -> int:
    """Run the command; its exit status."""
    if len(arguments) < 2 or not arguments[0].isdigit() or arguments[0] == "0":
        raise SystemExit("Usage: python -m tests.slow TIMES COMMAND…; TIMES is a whole number, such as 3.")
    share, arguments = 1 / int(arguments[0]), arguments[1:]
    cpus = min(_workers(arguments), os.cpu_count() or 1) * share
    environment = os.environ | {"STOA_TEST_SLOW": "1"}
    if Path("/run/systemd/system").exists() and (prefix := _systemd(cpus)):
        return subprocess.run([*prefix, *arguments], env=environment, check=False).returncode
    if group := _control_group(cpus):
        try:
            entry = f'echo 0 > {group}/cgroup.procs && exec "$@"'
            return subprocess.run(["sh", "-c", entry, "slow", *arguments], env=environment, check=False).returncode
        finally:
            _remove(group)
    return _stop_and_go(arguments, environment, share)


def _workers(arguments: list[str]) -> int:
    """How many processes pytest-xdist is told to start; 1 without it."""
    if "--numprocesses" not in arguments:
        return 1
    return int(arguments[arguments.index("--numprocesses") + 1])


def _systemd(cpus: float) -> list[str]:
    """The start of a command line that runs under a quota of systemd, or nothing where it refuses."""
    prefix = ["systemd-run", *([] if os.geteuid() == 0 else ["--user"]), "--scope", "--quiet"]
    prefix += ["--property", f"CPUQuota={cpus:.0%}", "--"]
    tried = subprocess.run([*prefix, "true"], capture_output=True, check=False)
    return [] if tried.returncode else prefix


def _control_group(cpus: float) -> Path | None:
    """A new control group under a quota, of version 2 or 1, or None where this process may make none."""
    period, quota = round(PERIOD * 1e6), round(PERIOD * 1e6 * cpus)
    for above, name, told in [
        (GROUPS, "cpu.max", f"{quota} {period}"),
        (GROUPS / "cpu", "cpu.cfs_quota_us", str(quota)),
    ]:
        try:
            group = Path(tempfile.mkdtemp(prefix="stoa-slow-", dir=above))
        except OSError:
            continue
        if (group / name).exists():
            (group / name).write_text(told)
            return group
        group.rmdir()
    return None


def _remove(group: Path) -> None:
    """Remove a control group, once what the command left behind has ended."""
    for _ in range(100):
        try:
            group.rmdir()
        except OSError:
            time.sleep(0.1)
        else:
            return
    print(f"{group} holds processes still: {(group / 'cgroup.procs').read_text().split()}", file=sys.stderr)


def _stop_and_go(arguments: list[str], environment: dict[str, str], share: float) -> int:
    """Run the command, and let its processes run for their share of the time only; its exit status."""
    # What outlives its parent stays below this process.
    ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    command, this = subprocess.Popen(arguments, env=environment), psutil.Process()
    stopped: list[psutil.Process] = []
    try:
        while command.returncode is None:
            time.sleep(PERIOD * share)
            stopped = [process for process in this.children(recursive=True) if _send(process, signal.SIGSTOP)]
            time.sleep(PERIOD * (1 - share))
            for process in stopped:
                _send(process, signal.SIGCONT)
            _reap(command)
    finally:
        for process in stopped:
            _send(process, signal.SIGCONT)
    return command.returncode


def _send(process: psutil.Process, number: int) -> bool:
    """Send a signal; whether it was sent. What a test has stopped itself stays so."""
    try:
        if number == signal.SIGSTOP and process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
            return False
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return False
    return True


def _reap(command: "subprocess.Popen[bytes]") -> None:
    """Bury the processes that have ended and whose parents are gone."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None:
            return
        if found.si_pid == command.pid:
            command.wait()
        else:
            os.waitpid(found.si_pid, 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
