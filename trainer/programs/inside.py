"""The first process of a program's namespaces: it closes the disk, starts the program, and hands its exit status on.

`python -I -S inside.py JSON`, where JSON says the `command`, the folder `work`, which alone can be written, files and
folders to `hide`, and `file_bytes`, the most of one file. With `namespaces`, this process is the first one of its PID
namespace: with it ends every process that the program has started. It imports the standard library only.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _RDONLY = 442, -100, 0x8000, 1
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38
_CAPABILITIES = 64
_SHARED_MEMORY = "size=2g"
_libc = ctypes.CDLL(None, use_errno=True)


class _Attributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]


def close_disk(work: str, hide: list[str]) -> None:
    """Make all that is mounted read-only but `work` and a small /dev/shm, and cover what is to be hidden.

    Raises OSError.
    """
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    _mount(work, work, None, _MS_BIND)
    _set("/", _Attributes(_RDONLY, 0, 0, 0))
    _set(work, _Attributes(0, _RDONLY, 0, 0))
    _mount("shm", "/dev/shm", "tmpfs", 0, _SHARED_MEMORY)
    for path in hide:
        if os.path.isdir(path):
            _mount("hidden", path, "tmpfs", _RDONLY)
        elif os.path.exists(path):
            _mount("/dev/null", path, None, _MS_BIND)


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    given = [None if each is None else os.fsencode(each) for each in (source, target, kind, data)]
    if _libc.mount(given[0], given[1], given[2], ctypes.c_ulong(flags), given[3]):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), target)


def _set(path: str, attributes: _Attributes) -> None:
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    if _libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, os.fsencode(path), _AT_RECURSIVE, ctypes.byref(attributes), size):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)


def main(told: dict[str, Any]) -> int:
    """Run the program; its exit status, or 128 and the number of the signal that ended it."""
    if told["namespaces"]:
        close_disk(told["work"], told["hide"])
    limit = int(told["file_bytes"])

    def bound() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if told["namespaces"]:  # what could open the disk again
            for number in range(_CAPABILITIES):
                _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)

    program = subprocess.Popen(told["command"], cwd=told["source"], stdin=subprocess.DEVNULL, preexec_fn=bound)

    def pass_on(number: int, _frame: object) -> None:
        with contextlib.suppress(OSError):
            os.kill(program.pid, number)

    signal.signal(signal.SIGTERM, pass_on)
    while True:  # reaps the orphans of its namespace, too
        try:
            pid, status = os.wait()
        except ChildProcessError:
            return 1
        if pid == program.pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    try:
        os._exit(main(json.loads(sys.argv[1])))
    except OSError as error:
        print(f"{Path(error.filename or '').name or 'the program'}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(126)
