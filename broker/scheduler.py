"""The scheduler: lets leases run out, picks queued runs by fair share, and rings the queue's doorbells.

The database is the truth. What is decided here is written first and rung after; a doorbell that was lost is rung again.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog
from kombu.exceptions import OperationalError
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from broker import attempts, ledger, publisher, queue
from broker.ledger import LedgerRow, Movement
from broker.pools import Pool
from broker.runs import Run, RunState
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


def usage(session: Session, pool_id: int, now: datetime) -> dict[int, float]:
    """GPU-seconds that each project has used of the pool, halved every seven days (Slurm's decay).

    What is reserved counts as used from the moment of admission (Kueue's entry penalty), so that many quick launches
    gain nothing.
    """
    used: dict[int, float] = defaultdict(float)
    rows = session.execute(
        select(Run.project_id, LedgerRow.movement, LedgerRow.seconds, LedgerRow.at)
        .join(Run, Run.id == LedgerRow.run_id)
        .where(Run.pool_id == pool_id, LedgerRow.movement.in_((Movement.RESERVE, Movement.RELEASE)))
    )
    for project_id, movement, seconds, at in rows:
        sign = 1 if movement == Movement.RESERVE else -1
        used[project_id] += sign * seconds * 2 ** (-(now - at).total_seconds() / HALF_LIFE_SECONDS)
    return used


def plan(session: Session) -> list[Decision]:
    """The runs that start now: in each pool the project that has used least first, with nobody overtaking it."""
    now = utcnow()
    decisions: list[Decision] = []
    for pool in session.scalars(select(Pool).order_by(Pool.id)):
        free = sorted(set(range(pool.gpus)) - attempts.devices_in_use(session, pool.id))
        used = usage(session, pool.id, now)
        for run in _in_order(session, pool.id, used, now):
            if run.gpus * attempts.remaining(session, run) > ledger.account(session, run.allocation_id).left:
                continue  # it waits for its own allocation, not for devices
            if run.gpus > len(free):
                break
            decisions.append(Decision(run.id, tuple(free[: run.gpus])))
            free = free[run.gpus :]
    return decisions


def _in_order(session: Session, pool_id: int, used: dict[int, float], now: datetime) -> Sequence[Run]:
    waiting = session.scalars(
        select(Run).where(Run.pool_id == pool_id, Run.state == RunState.QUEUED, Run.not_before <= now)
    )
    return sorted(waiting, key=lambda run: (used.get(run.project_id, 0.0), run.queued_at, run.id))


class Scheduler:
    """One round after another; two schedulers at once do no harm, since every write is guarded."""

    def __init__(self, settings: Settings, db: Database) -> None:
        self.settings = settings
        self.db = db

    def run_forever(self) -> None:
        """Go round until the process is ended."""
        while True:
            try:
                self.round()
            except DBAPIError as error:
                log.warning("the database could not be reached; trying again", error=str(error.orig))
            time.sleep(self.settings.tick_seconds)

    def round(self) -> None:
        """Give up what is lost, admit what fits, and ring for all that waits to be claimed."""
        self._give_up_lost()
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
                attempts.lose(
                    session, attempt, grace_seconds=self.settings.stop_grace_seconds, most=self.settings.max_attempts
                )
            log.warning("an attempt was lost", run=attempt.run_id, token=attempt.token)

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
        try:
            for attempt in unclaimed:
                queue.ring_start(attempt.run_id, attempt.token)
                with self.db.write() as session:
                    attempts.rung(session, attempt.run_id, attempt.token)
            for run_id in unpublished:
                queue.ring_publish(run_id)
        except OperationalError as error:
            log.warning("the queue could not be reached; ringing again later", error=str(error))
