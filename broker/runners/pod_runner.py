"""What runners have in common whose trainers run in pods: machines that see no disk of the lab, but its object store.

All that passes between a supervisor and its pods lies in the store, below the attempt's own folder: what to do
(`task.json`), what the trainer writes (logs, metrics, `checkpoints/`), and how it has ended (`outcome.json`). What a
runner asks may be away for a while at any moment: it is asked again.
"""

import json
import math
import threading
import time
import zlib
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from broker.end_reasons import EndReason
from broker.runners.base import JobSpec, Runner, UnavailableError
from broker.runners.processes import Process
from trainer import contract
from trainer.contract import Status

if TYPE_CHECKING:  # the store and the settings import what the command line need not wait for
    from broker.store import Store
    from projects.settings import Settings

RENEWALS_A_LEASE = 6  # the engine is asked as often as a supervisor renews
SHORTEST_SECONDS = 2.0
GONE_SECONDS = 90.0
GROWING = (contract.LOG_FILE, contract.METRICS_FILE, contract.EVENTS_FILE)

log = structlog.get_logger()


class PodRunner(Runner):
    """The trainer of one attempt in pods. A subclass says in `ask` what is due, and whether it `has_begun`."""

    fills_store = True

    def __init__(self, spec: JobSpec) -> None:
        super().__init__(spec)
        self._every = spec.lease_seconds / RENEWALS_A_LEASE
        self._patience = max(SHORTEST_SECONDS, self._every * 2)
        self._store: Store | None = None
        self._folder = Path()
        self._command: Sequence[str] = ()
        self._asked_at = -math.inf
        self._known_pid = 0
        self._ran = 0.0
        self._runs_since: float | None = None
        self._status: int | None = None
        self._lost_for: tuple[EndReason, str] | None = None
        self._to_stop = self._to_kill = False
        self._lock = threading.RLock()  # re-entrant: a signal handler of the main thread may stop what it just polls
        self._asker: threading.Thread | None = None

    @abstractmethod
    def ask(self) -> None:
        """Do what is due: have the pods started, pass the stop on, look how they do.

        Raises UnavailableError, StoreError and OSError for what does not answer now.
        """

    def start(self, command: Sequence[str], folder: Path, devices: str) -> Process:
        """Have the pods of `command` started, or find those of `folder` that are there. The engine assigns devices."""
        self._command, self._folder = command, folder
        self.poll()
        return self.process()

    def adopt(self, process: Process, folder: Path, waiting: str = "") -> None:
        """See `Runner`; what was started for `process` is known again by its pid, and nothing is started instead."""
        self._known_pid, self._folder, self.waiting = process.pid, folder, waiting
        self.poll()

    def poll(self) -> int | None:
        """The exit status, as of the last time that the engine was asked; None while the pods wait or run."""
        self._ask_beside()
        return self._status

    def seconds(self) -> float:
        """How long all pods have run, to the second; 0 while one of them waits."""
        since = self._runs_since
        return self._ran + (0.0 if since is None else time.monotonic() - since)

    def renew(self, seconds: float) -> None:
        """See `Runner`. The pods end at their time limit, or the reaper cancels them."""

    def stop(self) -> None:
        """Ask for a checkpoint, which the pods have their grace to send to the store."""
        self._to_stop = True
        self._ask_beside(now=True)

    def kill(self) -> None:
        """End all pods at once, and wait until they are gone."""
        self._to_stop = self._to_kill = True
        begun = bool(self.process().pid or self._command)
        if begun:
            self._ask_beside(now=True)
        until = time.monotonic() + GONE_SECONDS
        while begun and self.poll() is None:
            if time.monotonic() > until:
                log.error("a job is still not gone; look at its machine", folder=str(self._folder))
                return
            time.sleep(0.1)

    def _ask_beside(self, *, now: bool = False) -> None:
        """Ask, if it is time to, in a thread that is waited for as long as an answer should take and no longer.

        A store or an engine that hangs holds up no renewal of the lease.
        """
        with self._lock:
            if self._asker is None or not self._asker.is_alive():
                late = time.monotonic() - self._asked_at >= self._every
                if self._status is not None or not (now or late):
                    return
                self._asked_at = time.monotonic()
                self._asker = threading.Thread(target=self._ask, daemon=True)
                self._asker.start()
            asker = self._asker
        asker.join(max(0.0, self._asked_at + self._patience - time.monotonic()))

    def _ask(self) -> None:
        from broker.store import StoreError

        try:
            self.ask()
        except (UnavailableError, StoreError, OSError) as away:
            if self.waiting:
                self.waiting = str(away)
            log.warning("the engine or the store could not be asked; trying again", why=str(away))
        except Exception as error:
            log.error("the job could not be looked after; trying again", exc_info=error)

    def _fetch(self) -> None:
        """Append what the trainer has written to the same files here."""
        from broker import pieces

        pieces.fetch(self._open_store(), self.spec.store_folder, GROWING, self._folder)

    def _read_outcome(self) -> int | None:
        """The status of the outcome in the store, which is then in the folder too; None where there is none yet."""
        store = self._open_store()
        data = store.read(f"{self.spec.store_folder}/{contract.OUTCOME_FILE}")
        with suppress(ValueError, RecursionError, TypeError, KeyError):
            status = int(json.loads(data or b"null")["status"])
            if sample := store.read(f"{self.spec.store_folder}/{contract.SAMPLE_FILE}"):
                (self._folder / contract.SAMPLE_FILE).write_bytes(sample)
            (self._folder / contract.OUTCOME_FILE).write_bytes(data or b"")
            return status
        return None

    def _end_for(self, reason: EndReason, sentence: str, said: int | None) -> None:
        """End as the outcome says. The reason and the sentence are those of an end that the trainer did not choose."""
        chosen = said is not None and (said != Status.STOPPED or self._to_stop)
        if reason == EndReason.OUT_OF_MEMORY and said == Status.FAILED:  # the trainer saw a killed rank
            chosen = False
        if not chosen:
            self.end_reason = reason
        self._end(Status.FAILED if said is None else said, "" if chosen else sentence)

    def _end(self, status: int, sentence: str) -> None:
        self._status, self.ended, self._runs_since = status, sentence, None

    def _write_task(self) -> None:
        """Leave in the store what the pods are to do."""
        from broker.runners import task

        told = task.of(self.spec, self._command, self._folder)
        self._open_store().write(f"{self.spec.store_folder}/{task.TASK_FILE}", told)

    def _open_store(self) -> "Store":
        from broker.store import Store

        self._store = self._store or Store(store_settings())
        return self._store

    def _run(self) -> int:
        return int(self._folder.parent.name)

    def _token(self) -> int:
        return int(self._folder.name.rpartition("-")[2])


def store_settings() -> "Settings":
    """The settings, which say where the store is."""
    from projects.settings import get_settings

    return get_settings()


def pid_of(name: str) -> int:
    """A number that stands for what an engine calls a job in the place of a pid; never 0."""
    return zlib.crc32(name.encode()) & 0x7FFFFFFF | 1
