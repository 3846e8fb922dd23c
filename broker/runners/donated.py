"""The runner `donated`: trainers on machines that somebody lends, each of which holds a token of its own and no more.

The runner puts an order on the board in the store. A machine claims it through the lab's API (`web/machines.py`), which
passes on the little that the machine may do. No machine reaches the database; see docs/donated-machines.md.
"""

import math
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from broker.end_reasons import EndReason
from broker.runners.base import Check, Job, JobSpec, PoolOption, UnavailableError
from broker.runners.pod_runner import PodRunner, pid_of, store_settings
from broker.runners.processes import Process
from trainer.contract import Status

if TYPE_CHECKING:  # the store and what lies in it import what the command line need not wait for
    from broker.runners.donated_orders import Claim, Order, Posted

BOOT = "donated"  # instead of a boot id: the pid is made from the attempt's folder, and is not that of a process
CHOSEN = frozenset({Status.DONE, Status.STOPPED, Status.CONFIG, Status.FAILED})
"""How a machine may say that its trainer has ended."""


class DonatedRunner(PodRunner):
    """The trainer on a donated machine; see the module."""

    name = "donated"
    lent = True
    queue = "the board of donated machines"
    pool_options = (
        PoolOption(
            "silence_seconds",
            help="Seconds after which a machine that says nothing has lost its run.",
            pattern=r"[1-9][0-9]{0,4}",
            refusal="The silence is a whole number of seconds, such as 300.",
            default="300",
        ),
    )

    def __init__(self, spec: JobSpec) -> None:
        super().__init__(spec)
        self.waiting = "it is being put on the board of donated machines"
        self._posted = self._told_to_stop = False
        self._beats = -1
        self._silent = 0.0
        self._looked_at = time.monotonic()
        self._asked_why_at = -math.inf

    def process(self) -> Process:
        """A number made from the attempt's folder instead of a pid; 0 until the order is on the board."""
        return Process(BOOT, BOOT, pid_of(self.spec.store_folder) if self._posted else self._known_pid, 0)

    @classmethod
    def can_adopt(cls, process: Process) -> bool:
        """See `Runner`. The board is reached from every host."""
        return process.boot_id == BOOT

    @classmethod
    def check(cls, options: Mapping[str, str]) -> Check:
        """Whether there are a store and an API for the machines."""
        if not store_settings().store:
            return Check("there is no object store", "Set STOA_STORE: donated machines write there, through the API.")
        return Check("there is a store for what donated machines write")

    @classmethod
    def living(cls, runs_dir: Path, options: Mapping[str, str]) -> Sequence[Job]:
        """See `Runner`; the orders of all pools."""
        from broker.runners import donated_orders as orders
        from broker.store import Store, StoreError

        try:
            return [Job(each.name, each.run, each.token, each.pool) for each in orders.posted(Store(store_settings()))]
        except StoreError as error:
            raise UnavailableError(str(error)) from None

    @classmethod
    def cancel(cls, job: Job, options: Mapping[str, str]) -> None:
        """End an order: its machine is told when it renews its claim. Raises UnavailableError."""
        from broker.runners import donated_orders as orders
        from broker.store import Store, StoreError

        try:
            orders.end(Store(store_settings()), orders.Posted(job.state, job.run_id, job.token))
        except StoreError as error:
            raise UnavailableError(str(error)) from None

    def ask(self) -> None:
        """Put the order on the board, pass the stop on, look how its machine does."""
        from broker.runners import donated_orders as orders

        if not self._known_pid and not self._posted:
            self._posted = self._submit()
        if self._status is not None or not (self._posted or self._known_pid):
            return
        if self._to_stop and not self._told_to_stop:
            orders.write_order(self._open_store(), self.spec.store_folder, self._order())
            self._told_to_stop = True
        self._look()
        if self._status is not None:
            orders.end(self._open_store(), self._place())

    def _submit(self) -> bool:
        """Whether the order is on the board. Those of the run's earlier attempts are taken off it."""
        from broker.runners import donated_orders as orders

        if not self.spec.store_folder:
            self._end(Status.REFUSED, "donated machines write to an object store only; set STOA_STORE to one")
            return False
        store = self._open_store()
        siblings = [each for each in orders.posted(store) if each.run == self._run()]
        if any(each.token > self._token() for each in siblings):
            self._end(Status.STOPPED, "a later attempt of the run is on the board")
            return False
        for each in siblings:
            if each.token < self._token():
                orders.end(store, each)
        if orders.read_order(store, self.spec.store_folder) is None:
            if self._to_stop:
                self._end(Status.STOPPED, "it was stopped before it was on the board")
                return False
            self._write_task()
            orders.write_order(store, self.spec.store_folder, self._order())
        orders.post(store, self._place(), self.spec.store_folder)
        return True

    def _look(self) -> None:
        """Read how the machine does, and what its trainer has written."""
        from broker.runners import donated_orders as orders

        claim = orders.read_claim(self._open_store(), self.spec.store_folder)
        if claim is None:
            if self._to_stop:
                self._end(Status.STOPPED, "")
            else:
                self._say_why()
            return
        self.waiting = ""
        said = self._read_outcome()
        self._fetch()
        self._hear(claim)
        if said is not None:
            why = "was taken back by its owner" if claim.leaves else "has stopped by itself"
            said = said if said in CHOSEN else Status.FAILED
            self._end_for(EndReason.RUNNER_ENDED, f"the machine {claim.machine} {why}", said)
        elif self._to_kill:
            self._end(-signal.SIGKILL, "")
        elif claim.status is not None:
            self._end_for(EndReason.RUNNER_ENDED, f"the machine {claim.machine} ended without a word of how", None)
        elif self._silent > self._silence():
            silent = f"the machine {claim.machine} has not been heard from for {self._silent:.0f} s"
            self._end_for(EndReason.NODE_FAILED, silent, None)

    def _say_why(self) -> None:
        """Say now and then why no machine has taken the order."""
        from broker.runners import donated_presence as presence

        if time.monotonic() - self._asked_why_at > presence.NOTE_SECONDS:
            self.waiting = presence.why_unclaimed(self._open_store(), self.spec.pool, self.spec.gpus)
            self._asked_why_at = time.monotonic()

    def _hear(self, claim: "Claim") -> None:
        """Count how long the machine has said nothing, by this host's clock, and while the store answers only."""
        now = time.monotonic()
        if claim.beats == self._beats:
            self._silent += min(now - self._looked_at, 2 * self._every)
        else:
            self._beats, self._silent = claim.beats, 0.0
            self._ran, self._runs_since = max(self._ran, claim.seconds), now
        self._looked_at = now

    def _silence(self) -> float:
        return float(self.spec.options["silence_seconds"])

    def _place(self) -> "Posted":
        from broker.runners.donated_orders import Posted

        return Posted(self.spec.pool, self._run(), self._token())

    def _order(self) -> "Order":
        from broker.runners.donated_orders import Order

        return Order(
            pool=self.spec.pool,
            gpus=self.spec.gpus,
            grace_seconds=self.spec.grace_seconds,
            silence_seconds=self._silence(),
            stop=self._to_stop,
        )
