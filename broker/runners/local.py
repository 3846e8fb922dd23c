"""The runner `local`: trainers as processes of the worker's own host."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from broker.runners import host_gpus, processes, shim
from broker.runners.base import PASSED_ON, JobSpec, Runner
from broker.runners.processes import Process
from trainer.contract import LOG_FILE


class LocalRunner(Runner):
    """The trainer as a process group of this host, led by its shim: it outlives its supervisor by its lease."""

    name = "local"
    uses_host_gpus = True
    bound_to_host = True

    def __init__(self, spec: JobSpec) -> None:
        super().__init__(spec)
        self._folder = Path()
        self._popen: subprocess.Popen[bytes] | None = None
        self._process: Process | None = None
        self._exited: tuple[int, float] | None = None
        self._last_renewed: float | None = None

    def start(self, command: Sequence[str], folder: Path, devices: str) -> Process:
        """See `Runner`."""
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        self._folder = folder
        self.renew(self.spec.lease_seconds)
        limits = [str(self.spec.grace_seconds), str(self.spec.memory or 0)]
        with (folder / LOG_FILE).open("ab") as log:
            self._popen = subprocess.Popen(
                [sys.executable, "-I", "-S", shim.__file__, str(folder), *limits, *command],
                env=environment | host_gpus.visible(devices),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._process = processes.identify(self._popen.pid)
        return self._process

    def adopt(self, process: Process, folder: Path, waiting: str = "") -> None:
        """See `Runner`; the other supervisor was of this host and boot."""
        self._process, self._folder = process, folder
        with contextlib.suppress(OSError, ValueError):
            self._last_renewed = float(json.loads((folder / shim.LEASE_FILE).read_text())) - self.spec.lease_seconds
        if self.poll() is None:
            self._last_renewed = None
            self.renew(self.spec.lease_seconds)

    def renew(self, seconds: float) -> None:
        """See `Runner`."""
        with contextlib.suppress(OSError):  # a disk that is full now may have room at the next renewal
            shim.write(self._folder / shim.LEASE_FILE, shim.since_boot() + seconds)

    def process(self) -> Process:
        """See `Runner`."""
        assert self._process is not None
        return self._process

    def poll(self) -> int | None:
        """See `Runner`."""
        if self._process is None:
            return None
        if self._exited is None and not self._alive(self._process):
            self._exited = self._exit()
        return None if self._exited is None else self._exited[0]

    def seconds(self) -> float:
        """See `Runner`."""
        if self._process is None:
            return 0.0
        until = shim.since_boot() if self._exited is None else self._exited[1]
        return max(0.0, until - self._process.started / os.sysconf("SC_CLK_TCK"))

    def stop(self) -> None:
        """See `Runner`. Only the shim gets the signal; it tells the trainer, and the trainer its ranks."""
        if self._process is not None and self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """See `Runner`."""
        if self._process is not None:
            processes.kill_group(self._process)
            if self._popen is not None:
                self._popen.wait()

    def _alive(self, process: Process) -> bool:
        return processes.alive(process) if self._popen is None else self._popen.poll() is None

    def _exit(self) -> tuple[int, float]:
        """The status and the time (seconds since the boot) that the shim has left in the folder.

        A shim that left nothing was killed with its trainer: at the last renewal, as far as is known, where that was
        before this runner took the trainer over.
        """
        try:
            told = json.loads((self._folder / shim.EXIT_FILE).read_text())
        except FileNotFoundError:
            return -signal.SIGKILL, self._last_renewed or shim.since_boot()
        return int(told["status"]), float(told["at"])
