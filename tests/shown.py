"""What /proc shows of a forked process: by itself, that would be the command line of what it was forked from."""

import ctypes
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import psutil

PR_SET_MM, PR_SET_MM_MAP = 35, 14
NO_FILE = 2**32 - 1
# Where `man proc_pid_stat` has them, counted from 0.
START_CODE, END_CODE, START_STACK, START_DATA, END_DATA, START_BRK = 25, 26, 27, 44, 45, 46


class MemoryMap(ctypes.Structure):
    """The kernel's `struct prctl_mm_map`: what it knows of a process's memory."""

    _fields_ = (
        *((f"{end}_code", ctypes.c_uint64) for end in ("start", "end")),
        *((f"{end}_data", ctypes.c_uint64) for end in ("start", "end")),
        *((name, ctypes.c_uint64) for name in ("start_brk", "brk", "start_stack")),
        *((name, ctypes.c_uint64) for name in ("arg_start", "arg_end", "env_start", "env_end")),
        ("auxv", ctypes.c_void_p),
        ("auxv_size", ctypes.c_uint32),
        ("exe_fd", ctypes.c_uint32),
    )


_shown: list[object] = []


@cache
def possible() -> bool:
    """Whether this kernel lets a process say what /proc shows of it."""
    try:
        show(psutil.Process().cmdline(), psutil.Process().environ())
    except OSError:
        return False
    return True


def show(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Have /proc show this command line and this environment of the calling process; raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.sbrk.restype = ctypes.c_void_p
    stat = Path("/proc/self/stat").read_text()
    known = [0, 0, *(int(field) if field.lstrip("-").isdigit() else 0 for field in stat.rpartition(")")[2].split())]
    places = []
    for texts in (command, [f"{name}={value}" for name, value in environment.items()]):
        text = "".join(f"{text}\0" for text in texts).encode(errors="surrogateescape")
        buffer = ctypes.create_string_buffer(text, len(text))
        _shown.append(buffer)
        places += [ctypes.addressof(buffer), ctypes.addressof(buffer) + len(text)]
    code, data = (known[START_CODE], known[END_CODE]), (known[START_DATA], known[END_DATA])
    heap = (known[START_BRK], libc.sbrk(0), known[START_STACK])
    memory = MemoryMap(*code, *data, *heap, *places, None, 0, NO_FILE)
    if libc.prctl(PR_SET_MM, PR_SET_MM_MAP, ctypes.byref(memory), ctypes.sizeof(memory), 0):
        raise OSError(ctypes.get_errno(), "the kernel does not let a process name itself")
