"""Containers without an image: processes of this machine with a host name and a PID namespace of their own."""

import ctypes
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from functools import cache

from tests.absent import absent

_NEW_MOUNTS, _NEW_HOST_NAME, _NEW_PIDS = 0x00020000, 0x04000000, 0x20000000
_PRIVATE, _RECURSIVE = 1 << 18, 1 << 14
_PR_SET_PDEATHSIG = 1
UNSHARE = ("unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
_LIBC = ctypes.CDLL(None, use_errno=True)


def contained(name: str, command: Sequence[str]) -> list[str]:
    """The command line that runs a command in a new container of this name; all in it ends with its first process."""
    _check()
    return [*UNSHARE, "sh", "-c", 'hostname "$0" && exec "$@"', name, *command]


def entering(name: str) -> str:
    """The statement by which a forked process goes on in a new container of this name."""
    _check()
    return f"import tests.containers; tests.containers.enter({name!r})"


def enter(name: str) -> None:
    """Go on as the first process of a new container; the process that was there waits for it, and ends it by ending.

    Raises OSError.
    """
    _done(_LIBC.unshare(_NEW_MOUNTS | _NEW_HOST_NAME | _NEW_PIDS))
    first = os.fork()
    if first:
        os._exit(abs(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])))
    _done(_LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    _done(_LIBC.mount(b"none", b"/", None, _PRIVATE | _RECURSIVE, None))
    _done(_LIBC.mount(b"proc", b"/proc", b"proc", 0, None))
    socket.sethostname(name)


def _done(status: int) -> None:
    if status:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _check() -> None:
    """The test is left out where no container can be made."""
    why = _why_not()
    if why:
        absent("two hosts on one kernel", f"no PID namespace can be made ({why})")


@cache
def _why_not() -> str:
    """Why no container can be made here; empty where one can."""
    try:
        made = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    return "" if made.returncode == 0 else made.stderr.strip()
