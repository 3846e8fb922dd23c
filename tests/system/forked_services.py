"""Stoa's services, each a forked process that begins where its imports end."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import Popen
from typing import cast

from cli.services import Service, Services
from tests import forked, shown


class ForkedServices(Services):
    """Services whose Python processes are forked, but for those named in `anew`; what a forked worker starts is, too,
    its trainers and their ranks."""

    def __init__(self, logs: Path, *, anew: Sequence[str] = ()) -> None:
        super().__init__(logs)
        self.anew = anew

    def launch(self, name: str, command: Sequence[str], env: Mapping[str, str], ready: Callable[[], bool]) -> Service:
        """See `Services`."""
        if name in self.anew or command[1] != "-m":
            return super().launch(name, command, env, ready)
        log = self.logs / f"{name}.log"
        log.touch()
        forks = command[2:4] == ["cli.main", "worker"] and shown.possible()
        process = forked.module(command[2], log, env, *command[3:], session=True, forks=forks)
        service = self.running[name] = Service(name, command, env, log, cast(Popen[bytes], process), ready)
        return service
