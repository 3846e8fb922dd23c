"""The scheduler: lets leases run out, picks queued runs by fair share, and rings the queue's doorbells.

The database is the truth. What is decided here is written first and rung after; a doorbell that was lost is rung again.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

import structlog
from kombu.exceptions import OperationalError
from sqlalchemy import case, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from broker import attempts, control, ledger, publisher, queue
from broker.attempts import StaleError
from broker.ledger import LedgerRow, Movement
from broker.pools import Pool
from broker.runs import Run, RunState
from projects import health
from projects.db import Database, utcnow
from projects.errors import ConflictError
from projects.settings import Settings

HALF_LIFE_SECONDS = 7 * 86_400
RING_AGAIN_SECONDS = 5.0

log = structlog.get_logger()


@dataclass(frozen=True)
class Decision:
    """That a queued run starts now, on these devices of its pool."""

    run_id: int
    devices: tuple[int, ...]


def usage(session: Session, pool_id: int, now: datetime) -> defaultdict[int, float]:
    """GPU-seconds that each project has used of the pool, halved every seven days (Slurm's decay).

    What is reserved counts as used from the moment of admission (Kueue's entry penalty), so that many quick launches
    gain nothing. What an attempt has not given back ages as one sum: a release never outweighs its older reservation.
    """
    used: defaultdict[int, float] = defaultdict(float)
    kept = case((LedgerRow.movement == Movement.RESERVE, LedgerRow.seconds), else_=-LedgerRow.seconds)
    rows = session.execute(
        select(Run.project_id, func.sum(kept), func.max(LedgerRow.at))
        .join(Run, Run.id == LedgerRow.run_id)
        .where(Run.pool_id == pool_id, LedgerRow.movement.in_((Movement.RESERVE, Movement.RELEASE)))
        .group_by(Run.project_id, LedgerRow.run_id, LedgerRow.token)
    )
    for project_id, seconds, at in rows:
        used[project_id] += int(seconds) * 2 ** (-(now - at).total_seconds() / HALF_LIFE_SECONDS)
    return used


def plan(session: Session) -> list[Decision]:
    """The runs that start now: in each pool the project that has used least first, with nobody overtaking it."""
    now = utcnow()
    decisions: list[Decision] = []
    for pool in session.scalars(select(Pool).order_by(Pool.id)):
        waiting = _waiting(session, pool.id, now)
        if not waiting:
            continue
        free = sorted(set(range(pool.gpus)) - attempts.devices_in_use(session, pool.id))
        used = usage(session, pool.id, now)
        while waiting:
            run = min(waiting, key=lambda run: (used[run.project_id], run.queued_at, run.id))
            waiting.remove(run)
            cost = run.gpus * attempts.remaining(session, run)
            if cost > ledger.account(session, run.allocation_id).left:
                continue  # it waits for its own allocation, not for devices
            if run.gpus > len(free):
                break
            decisions.append(Decision(run.id, tuple(free[: run.gpus])))
            free = free[run.gpus :]
            used[run.project_id] += cost
    return decisions


def _waiting(session: Session, pool_id: int, now: datetime) -> list[Run]:
    return list(
        session.scalars(select(Run).where(Run.pool_id == pool_id, Run.state == RunState.QUEUED, Run.not_before <= now))
    )


class Scheduler:
    """One round after another; two schedulers at once do no harm, since every write is guarded."""

    def __init__(self, settings: Settings, db: Database) -> None:
        self.settings = settings
        self.db = db
        self.rung: dict[int, tuple[int, float]] = {}

    def run_forever(self) -> None:
        """Go round until the process is ended."""
        while True:
            try:
                self.round()
                health.beat(self.settings, "scheduler")
            except DBAPIError as error:
                log.warning("the database could not be reached; trying again", error=str(error.orig))
            time.sleep(self.settings.tick_seconds)

    def round(self) -> None:
        """Give up what is lost or cannot be, admit what fits, and ring for all that waits to be claimed."""
        self._give_up_lost()
        self._withdraw_cancelled()
        self._pause_dry_and_revive()
        with self.db.read() as session:
            decisions = plan(session)
        for decision in decisions:
            self._admit(decision)
        self._ring()

    def _give_up_lost(self) -> None:
        with self.db.read() as session:
            candidates = attempts.expired(session)
        for attempt in candidates:
            with self.db.write() as session:
                lost = attempts.lose(
                    session, attempt, grace_seconds=self.settings.stop_grace_seconds, most=self.settings.max_attempts
                )
            if lost:
                log.warning("an attempt was lost", run=attempt.run_id, token=attempt.token)

    def _withdraw_cancelled(self) -> None:
        with self.db.read() as session:
            candidates = attempts.cancelled_unclaimed(session)
        for attempt in candidates:
            with suppress(StaleError), self.db.write() as session:
                attempts.withdraw(session, attempt.run_id, attempt.token)

    def _pause_dry_and_revive(self) -> None:
        with self.db.read() as session:
            dry, revivable = control.dry(session), control.revivable(session)
        for run_id, _ in dry:
            with suppress(ConflictError), self.db.write() as session:
                control.run_dry(session, run_id)
        for run_id in revivable:
            with suppress(ConflictError), self.db.write() as session:
                control.revive(session, run_id)

    def _admit(self, decision: Decision) -> None:
        try:
            with self.db.write() as session:
                token = attempts.admit(session, decision.run_id, decision.devices)
        except ConflictError as conflict:
            log.info("not admitted", run=decision.run_id, why=str(conflict))
        else:
            log.info("admitted", run=decision.run_id, token=token, devices=decision.devices)

    def _ring(self) -> None:
        with self.db.read() as session:
            unclaimed = attempts.unclaimed(session, since_seconds=RING_AGAIN_SECONDS)
            unpublished = publisher.waiting(session)
            unsupervised = attempts.unsupervised(session, lease_seconds=self.settings.lease_seconds)
        try:
            for attempt in unsupervised:
                queue.ring_take_over(attempt.run_id, attempt.token)
            for attempt in unclaimed:
                queue.ring_start(attempt.run_id, attempt.token)
                with self.db.write() as session:
                    attempts.rung(session, attempt.run_id, attempt.token)
            self._ring_publishers(unpublished)
        except OperationalError as error:
            log.warning("the queue could not be reached; ringing again later", error=str(error))

    def _ring_publishers(self, unpublished: Sequence[tuple[int, int]]) -> None:
        """Ring at once for a checkpoint that has just come to be next, and now and then for one that stays so."""
        before, self.rung = self.rung, {}
        for run_id, step in unpublished:
            known, at = before.get(run_id, (-1, 0.0))
            if step != known or time.monotonic() - at > RING_AGAIN_SECONDS:
                queue.ring_publish(run_id)
                at = time.monotonic()
            self.rung[run_id] = (step, at)
