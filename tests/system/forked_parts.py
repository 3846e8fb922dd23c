"""Stoa's parts, each a forked process that begins where its imports end."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import Popen
from typing import cast

from cli.services import Part, Parts
from tests import forked


class ForkedParts(Parts):
    """Parts whose Python processes are forked, but for those named in `anew`: /proc shows a forked one by the command
    line and the environment of what it was forked from."""

    def __init__(self, logs: Path, *, anew: Sequence[str] = ()) -> None:
        super().__init__(logs)
        self.anew = anew

    def launch(self, name: str, command: Sequence[str], env: Mapping[str, str], ready: Callable[[], bool]) -> Part:
        """See `Parts`."""
        if name in self.anew or command[1] != "-m":
            return super().launch(name, command, env, ready)
        log = self.logs / f"{name}.log"
        log.touch()
        process = forked.module(command[2], log, env, *command[3:], session=True)
        part = self.running[name] = Part(name, command, env, log, cast(Popen[bytes], process), ready)
        return part
