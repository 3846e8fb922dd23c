"""Containers without an image: processes of this machine with a host name and a PID namespace of their own."""

import subprocess
from collections.abc import Sequence
from functools import cache

from tests.absent import absent

UNSHARE = ("unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")


def contained(name: str, command: Sequence[str]) -> list[str]:
    """The command line that runs a command in a new container of this name; all in it ends with its first process."""
    why = _why_not()
    if why:
        absent("two hosts on one kernel", f"no PID namespace can be made ({why})")
    return [*UNSHARE, "sh", "-c", 'hostname "$0" && exec "$@"', name, *command]


@cache
def _why_not() -> str:
    """Why no container can be made here; empty where one can."""
    try:
        made = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    return "" if made.returncode == 0 else made.stderr.strip()
