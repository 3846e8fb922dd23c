"""The supervisor of one attempt: a small process that outlives the worker, starts the trainer and renews its lease.

`python -m broker.runners.supervisor RUN TOKEN [GENERATION]`, where GENERATION is that of a dead supervisor whose
trainer is taken over.
"""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnectionError

from broker import fence
from broker import store as stores
from broker.allocations import nodes
from broker.allocations.hosts import gpu_numbers
from broker.allocations.pools import Pool, host_bytes, memory_each
from broker.end_reasons import EndReason
from broker.publishing import disk
from broker.runners import carrier, output, processes, registry, spawning
from broker.runners.base import JobSpec, Runner
from broker.runners.causes import Room
from broker.runners.local import LocalRunner
from broker.runners.outage import Outage
from broker.runners.processes import Process
from broker.runners.staging import AskedToStop, Staged, Staging, UnstartedError, not_started
from broker.runs import attempts, folders, leases, preparing, runs, settlement
from broker.runs.attempts import Attempt, AttemptState
from broker.runs.kinds.kind import kind_of
from broker.runs.leases import StaleError, TakenOverError
from broker.runs.progress import Checkpoint, Ending, Progress
from broker.runs.runs import Run, RunKind
from projects import log as log_format
from projects.db.database import Database, is_away
from projects.settings import Settings, get_settings
from trainer.contract import Status

POLL_SECONDS = 0.2
LIBRARIES = 1 << 30
"""Bytes beside what the trainer predicts for a process on a CPU: Python, its libraries, and what they reserve and never
touch."""
ASKED = "it was asked to stop"
DRAINED = "its host {} is being drained"
AWAY = (DBAPIError, NoConnectionError)
T = TypeVar("T")
Started = tuple[bool, Process, Sequence[Checkpoint] | None]
"""Whether a trainer has yet to be told as begun, its process, and the checkpoints of earlier attempts if known."""

log = structlog.get_logger()


class Supervisor:
    """Starts the trainer of one attempt, follows it, and stops it when told to or when its lease cannot be renewed.

    While the database answers nobody here, the trainer goes on without a renewed lease, for `outage_seconds` at most:
    no other attempt begins meanwhile but one that ends this trainer first (docs/locking.md).
    """

    def __init__(self, settings: Settings, run_id: int, token: int, after: int | None = None) -> None:
        self.settings = settings
        self.db = Database(settings.database)
        self.run_id = run_id
        self.token = token
        self.after = after
        self.generation = 1 if after is None else after + 1
        self.folder = folders.of_run(settings, run_id) / f"attempt-{token}"
        self.carrier: carrier.Watch | None = None
        self.runner: Runner = LocalRunner(JobSpec())
        self.devices = ""
        self.prepares: Path | None = None
        self.nodes = 1
        self.metrics_read = 0
        self.events_read = 0
        self.seconds = math.inf
        self.renewed_at = 0.0
        self.outage = Outage(self.db)
        self.prolonged_at = self.broken_off_at = -math.inf
        self.lease_file = threading.Lock()
        self.stopped_at: float | None = None
        self.timed_out = False
        self.stopped_for: EndReason | None = None
        self.stopped_why = ""
        self.room: Room | None = None
        self.mine = True
        self.over = threading.Event()

    def run(self) -> None:
        """See the attempt through to its end; raises StaleError where its token is no longer good."""
        signal.signal(signal.SIGTERM, lambda *_: self._stop(DRAINED.format(processes.host()), EndReason.HOST_DRAINED))
        self.renewed_at = time.monotonic()
        try:
            try:
                begins, process, before = self._start() if self.after is None else self._take_over(self.after)
            except UnstartedError as unstarted:
                ending = unstarted.ending
                self._retrying(lambda: self._settle(0.0, Progress(0, 0), ending))
                return
            threading.Thread(target=self._guard, daemon=True).start()
            if begins:
                self._see_begin(process, before)
            self._follow()
        except TakenOverError:
            self.mine = False
            raise
        except StaleError:
            if self.mine and self.runner.bound_to_host:
                self.runner.kill()
                self._tell_over()
            raise
        finally:
            self.over.set()
            if self.mine:
                self.runner.kill()
                if self.carrier is not None:
                    self.carrier.end(self.runner.poll())
            self.db.close()

    def _tell_over(self) -> None:
        """Say that the trainer of this attempt, which was given up, has ended, so that another host may go on."""
        with suppress(*AWAY), self.db.write() as session:
            attempts.surely_over(session, self.run_id, self.token)

    def _load(self) -> tuple[Run, Attempt, Runner]:
        """The run, the attempt, and a runner of its pool."""
        with self.db.read() as session:
            run = runs.load(session, self.run_id)
            attempt = session.get_one(Attempt, (self.run_id, self.token))
            pool = session.get_one(Pool, attempt.pool_id)
            self.devices = gpu_numbers(session, pool, attempt.devices)
        self.prepares = preparing.folder(self.settings, run) if run.kind == RunKind.PREPARE else None
        self.nodes = nodes.count(pool, run.gpus)
        each = memory_each(pool, run.gpus // self.nodes)
        trains = kind_of(run).trains
        self.room = Room(run.gpus, self.nodes, pool.is_cpu, each, host_bytes(pool)) if trains else None
        spec = JobSpec(
            gpus=run.gpus,
            nodes=self.nodes,
            seconds=attempt.reserved / run.gpus,
            grace_seconds=self.settings.stop_grace_seconds,
            lease_seconds=self.settings.lease_seconds,
            memory=each + LIBRARIES if pool.is_cpu else None,
            store_folder=stores.attempt_folder(run.id, run.request_id, self.token) if self.settings.store else "",
            pool=pool.name,
            options=pool.runner_options,
        )
        self.seconds = spec.seconds
        return run, attempt, registry.named(pool.runner)(spec)

    def _keep_claim(self, waits_for: str = "") -> bool:
        """Renew the lease before the trainer starts where it is time; whether to start still; raises StaleError."""
        if time.monotonic() - self.renewed_at > self.settings.lease_seconds / 2:
            self._retrying(lambda: self._renew_claim(waits_for))
        return self.stopped_at is None

    def _renew_claim(self, waits_for: str) -> None:
        asked_at = time.monotonic()
        with self.db.write() as session:
            wanted = leases.renew_claim(
                session,
                self.run_id,
                self.token,
                lease_seconds=self.settings.lease_seconds,
                waiting=waits_for,
                generation=self.generation,
            )
        self.renewed_at = asked_at
        if not wanted:
            self._stop(ASKED, EndReason.STOP_REQUESTED)

    def _retrying(self, work: Callable[[], T]) -> T:
        """The result of work on the database, tried again for an outage, or for a lease where the database answers."""
        while True:
            try:
                return work()
            except AWAY as error:
                longest = self.settings.lease_seconds + (self.settings.outage_seconds if is_away(error) else 0)
                if time.monotonic() - self.renewed_at > longest:
                    raise
                self.outage.say(error)
            time.sleep(self.settings.lease_seconds / 6)

    def _take_over(self, after: int) -> Started:
        """Go on where the supervisor before has died; raises StaleError where another does so, or the lease is gone.

        Raises UnstartedError where the other died before there was a trainer, and none is started.
        """
        self.mine = False
        run, attempt, runner = self._load()
        process, before = attempts.process_of(attempt), attempts.supervisor_of(attempt)
        reachable = process is not None and runner.can_adopt(process)
        if process is None or before is None or not reachable or not spawning.may_replace(before, type(runner)):
            raise StaleError(f"the supervisor of attempt {self.token} of run {self.run_id} has not died on this host")
        with self.db.write() as session:
            attempt = leases.take_over(
                session,
                self.run_id,
                self.token,
                after,
                processes.identify(os.getpid()),
                lease_seconds=self.settings.lease_seconds,
            )
        self.runner, self.mine = runner, True
        if runner.fills_store:  # what another host has read of the store is not on this disk
            self.folder.mkdir(exist_ok=True)
        found: Sequence[Checkpoint] | None = None
        if process.pid:
            runner.adopt(process, self.folder, attempt.waiting)
            if not runner.fills_store:
                found = output.checkpoints([self.folder.parent / f"attempt-{each}" for each in range(1, self.token)])
        else:  # the supervisor before this one died while it submitted a job, which may be there
            found, command = self._stage(run)
            runner.start(command, self.folder, self.devices)
        self._carry(run)
        self.metrics_read, self.events_read = attempt.metrics_read, attempt.events_read
        log.info("took a trainer over", run=self.run_id, token=self.token, pid=process.pid)
        return attempt.state == AttemptState.CLAIMED, runner.process(), found

    def _see_begin(self, process: Process, before: Sequence[Checkpoint] | None) -> None:
        """Wait until the trainer has begun, and tell that the run is running."""
        if self.runner.waiting:
            process = self._wait_to_run()
        if not self.runner.waiting:
            self._tell_started(process, before)

    def _start(self) -> Started:
        """Start the trainer; raises UnstartedError."""
        run, _, self.runner = self._retrying(self._load)
        self._keep_claim()
        try:
            self.folder.mkdir()
            before, command = self._stage(run)
            self._keep_claim()
            process = self.runner.start(command, self.folder, self.devices)
        except OSError as error:
            raise not_started(error) from error
        self._carry(run)
        if self.stopped_at is not None:  # asked to stop before there was anything to stop
            self.runner.stop()
        return True, process, before

    def _stage(self, run: Run) -> Staged:
        """What the trainer reads, at hand; raises UnstartedError."""
        staging = Staging(self.settings, self.db, self._keep_claim, self._retrying)
        try:
            return staging.stage(run, self.token, self.folder, self.nodes, in_store=self.runner.fills_store)
        except AskedToStop:
            raise UnstartedError(Ending(Status.STOPPED, self.stopped_why, known=self.stopped_for)) from None

    def _carry(self, run: Run) -> None:
        """Let a carrier put what the trainer writes into the store, where there is one and the runner does not."""
        if self.settings.store and not self.runner.fills_store:
            self.carrier = carrier.Watch(self.settings, self.folder)
            self.carrier.begin(stores.attempt_folder(run.id, run.request_id, self.token), self.prepares)

    def _wait_to_run(self) -> Process:
        """Renew the lease while the trainer waits for its turn, which costs nothing."""
        pause = self.settings.lease_seconds / 6
        while self.runner.poll() is None and self.runner.waiting:
            asked_at = time.monotonic()
            try:
                with self.db.write() as session:
                    wanted = leases.renew_waiting(
                        session,
                        self.run_id,
                        self.token,
                        self.runner.process(),
                        self.runner.waiting,
                        lease_seconds=self.settings.lease_seconds,
                        supervisor=processes.identify(os.getpid()),
                        generation=self.generation,
                    )
            except AWAY as error:
                self.outage.say(error)
            else:
                self.renewed_at = asked_at
                if not wanted:
                    self._stop(ASKED, EndReason.STOP_REQUESTED)
            while self.runner.poll() is None and self.runner.waiting and time.monotonic() < asked_at + pause:
                time.sleep(POLL_SECONDS)
        return self.runner.process()

    def _tell_started(self, process: Process, before: Sequence[Checkpoint] | None) -> None:
        def tell() -> None:
            asked_at = time.monotonic()
            with self.db.write() as session:
                leases.started(
                    session,
                    self.run_id,
                    self.token,
                    process,
                    before,
                    lease_seconds=self.settings.lease_seconds,
                    supervisor=processes.identify(os.getpid()),
                    generation=self.generation,
                )
            self.renewed_at = asked_at

        self._retrying(tell)
        if before:
            self._retrying(lambda: self._catch_up(before[-1]))

    def _catch_up(self, resumed: Checkpoint) -> None:
        """Tell what the earlier attempts had measured, up to the checkpoint gone on from, and nobody had told yet.

        The supervisor of an attempt that was lost may have written nothing for as long as the database was away.
        """
        with self.db.read() as session:
            earlier = attempts.earlier(session, self.run_id, self.token)
        for attempt in earlier:
            folder = self.folder.parent / f"attempt-{attempt.token}"
            metrics_read, events_read, more = attempt.metrics_read, attempt.events_read, True
            while more:
                progress = output.until(output.read(folder, metrics_read, events_read), resumed.step)
                if (progress.metrics_read, progress.events_read) == (metrics_read, events_read):
                    break
                with self.db.write() as session:
                    leases.catch_up(
                        session, self.run_id, self.token, attempt.token, progress, generation=self.generation
                    )
                metrics_read, events_read, more = progress.metrics_read, progress.events_read, progress.more

    def _settle(self, elapsed: float, progress: Progress, ending: Ending) -> None:
        with self.db.write() as session:
            settlement.settle(
                session,
                self.run_id,
                self.token,
                elapsed,
                progress,
                ending,
                self.settings.max_attempts,
                generation=self.generation,
            )

    def _follow(self) -> None:
        """Renew until the trainer has ended, as long as it may take."""
        pause = self.settings.lease_seconds / 6
        more = late = False
        while True:
            status = self._wait(0 if more or late else pause)
            asked_at = time.monotonic()
            elapsed = self.runner.seconds()
            progress = self._read()
            more = progress.more
            try:
                if status is not None and not more:
                    self.runner.kill()  # nothing of the trainer is left once the run may start again
                    self._settle(elapsed, progress, self._ending(status))
                    self._tell_trouble(at_once=True)
                    return
                with self.db.write() as session:
                    told = leases.renew(
                        session,
                        self.run_id,
                        self.token,
                        elapsed,
                        progress,
                        lease_seconds=self.settings.lease_seconds,
                        generation=self.generation,
                    )
            except AWAY as error:
                self.outage.say(error)
                more = late = False
                if status is not None:
                    time.sleep(pause)
            else:
                self.renewed_at, self.seconds = asked_at, told.seconds
                late = time.monotonic() - asked_at > pause  # the lease counts from before the wait
                self._prolong(self.settings.lease_seconds - (time.monotonic() - asked_at))
                self.metrics_read, self.events_read = progress.metrics_read, progress.events_read
                self._tell_trouble()
                if told.stop:
                    self._stop(ASKED, EndReason.STOP_REQUESTED)
                elif told.host_pauses and self.runner.bound_to_host:
                    self._stop(DRAINED.format(processes.host()), EndReason.HOST_DRAINED)
            if elapsed >= self.seconds and self.stopped_at is None:
                self.timed_out = True
                self._stop("its time limit was reached", EndReason.TIME_LIMIT)
            elif self.stopped_at is None and self._disk_is_low():
                self._stop(disk.PAUSED, EndReason.DISK_LOW)

    def _tell_trouble(self, *, at_once: bool = False) -> None:
        """Tell the admins, once a day, that the store does not take what is carried there."""
        if trouble := self.carrier.trouble(at_once=at_once) if self.carrier is not None else "":
            with suppress(*AWAY):
                fence.tell(self.db, carrier.PART, trouble)

    def _read(self) -> Progress:
        """What the trainer has written since the last renewal; nothing new where its files cannot be read now."""
        try:
            return output.read(self.folder, self.metrics_read, self.events_read)
        except Exception as error:
            log.error("the trainer's output could not be read; trying again", exc_info=error)
            return Progress(self.metrics_read, self.events_read)

    def _disk_is_low(self) -> bool:
        try:
            return disk.is_low(self.settings)
        except OSError as error:
            log.warning("the disk could not be looked at; trying again", error=str(error))
            return False

    def _prolong(self, seconds: float) -> None:
        """Let the trainer run for so many seconds more, by the file that its shim reads."""
        with self.lease_file:
            self.runner.renew(seconds)
        self.prolonged_at = time.monotonic()

    def _ending(self, status: int) -> Ending:
        """How the trainer ended: where it was asked to stop, for what; else by what it and its runner say."""
        why = self.stopped_for if status == Status.STOPPED or status < 0 else None
        known, how = why or self.runner.end_reason, self.runner.ended
        if why is not None:
            how = self.stopped_why + ("; the trainer was killed before it had ended by itself" if status < 0 else "")
        ending = output.ending(self.folder, status, timed_out=self.timed_out, how=how, known=known, room=self.room)
        if status == Status.DONE and self.prepares is not None:
            return replace(ending, prepared=output.prepared(self.prepares))
        return ending

    def _wait(self, seconds: float) -> int | None:
        """Wait at most `seconds` for the trainer's end; its exit status, or None."""
        until = time.monotonic() + seconds
        while (status := self.runner.poll()) is None and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
        return status

    def _guard(self) -> None:
        """Stop a trainer that may run no longer: in a thread, since a write may wait longer than the lease."""
        while not self.over.wait(POLL_SECONDS):
            try:
                self._look_after()
            except Exception as error:
                log.error("the trainer could not be looked after; trying again", exc_info=error)

    def _look_after(self) -> None:
        if self.carrier is not None:
            self.carrier.keep()
        now = time.monotonic()
        unrenewed, pause = now - self.renewed_at, self.settings.lease_seconds / 6
        if unrenewed > self.settings.lease_seconds / 2:
            if unrenewed > self.settings.lease_seconds and not self.outage.is_known(now, pause):
                self.outage.away = True  # a busy host woke this thread late: what it knew may no longer hold
            self.outage.ask(now, pause)
        else:
            self.outage.away = False
        known = self.outage.is_known(now, pause)
        survives = unrenewed < self.settings.outage_seconds
        # After an outage, the scheduler leaves the supervisors a lease's time to renew.
        overdue_since = max(self.renewed_at, self.outage.back_at) if survives else self.renewed_at
        if known and min(unrenewed, now - self.broken_off_at) > self.settings.lease_seconds / 2:
            self.db.break_off()
            self.broken_off_at = now
        if self.outage.away and survives:
            if self.stopped_at is None and now - self.prolonged_at > pause:
                self._prolong(self.settings.lease_seconds)
        elif known and now - overdue_since > self.settings.lease_seconds:
            why = (
                f"the database did not let its host {processes.host()} renew its lease for {now - overdue_since:.0f} s"
            )
            self._stop(why, EndReason.LEASE_EXPIRED)
        overdue = self.stopped_at is not None and now - self.stopped_at > self.settings.stop_grace_seconds
        if overdue and self.runner.poll() is None:
            self.runner.kill()

    def _stop(self, why: str, end_reason: EndReason) -> None:
        if self.stopped_at is None:
            log.info("stopping the trainer", why=why)
            self.stopped_at, self.stopped_for, self.stopped_why = time.monotonic(), end_reason, why
            self.runner.stop()


def main() -> None:
    """Run the supervisor that the command line names."""
    log_format.configure()
    run_id, token, *after = map(int, sys.argv[1:])
    try:
        Supervisor(get_settings(), run_id, token, *after).run()
    except TakenOverError as other:
        log.warning("another supervisor has taken the trainer over", reason=str(other))
        sys.exit(1)
    except StaleError as stale:
        log.warning("the token is no longer good; the trainer was stopped", reason=str(stale))
        sys.exit(1)


if __name__ == "__main__":
    main()
