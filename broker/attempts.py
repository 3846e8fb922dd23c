"""Attempts of a run: admitted, claimed, renewed, settled or lost, each fenced by its token.

A token is good while the run carries it and its attempt is open. Every write of a supervisor is guarded by it; where
the guard finds no row, StaleError says: stop the trainer and drop the result.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy import ForeignKey, func, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from broker import ledger, preparing, publications, runs, series
from broker.ledger import LedgerRow, Movement
from broker.pools import Pool
from broker.runs import ENDED, Run, RunState
from broker.series import Measured
from projects.db import Base, utcnow
from projects.errors import ConflictError
from projects.people import Person

MOST_WAITING = 200


class StaleError(Exception):
    """The token is no longer good: another attempt has taken the run, or it has ended."""


class TakenOverError(StaleError):
    """The token is good, and another supervisor has taken its trainer over: leave it alone."""


class AttemptState(StrEnum):
    """Where an attempt stands; the first three are open."""

    ADMITTED = "admitted"
    CLAIMED = "claimed"
    RUNNING = "running"
    ENDED = "ended"
    LOST = "lost"


OPEN = (AttemptState.ADMITTED, AttemptState.CLAIMED, AttemptState.RUNNING)


class Attempt(Base):
    """One try at a run: its place, its lease, its process, and how far its output has been read (bytes).

    `generation` counts its supervisors: each write of one is guarded by its own. `charged_at_checkpoint` is what of
    `charged` the last whole checkpoint stands for.
    """

    __tablename__ = "attempts"

    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    token: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str] = mapped_column(default=AttemptState.ADMITTED, index=True)
    pool_id: Mapped[int] = mapped_column(ForeignKey("pools.id"))
    devices: Mapped[str]
    reserved: Mapped[int]
    charged: Mapped[int] = mapped_column(default=0)
    counted: Mapped[bool] = mapped_column(default=False, index=True)
    charged_at_checkpoint: Mapped[int] = mapped_column(default=0)
    refunded: Mapped[int] = mapped_column(default=0)
    period: Mapped[int] = mapped_column(default=0)
    host: Mapped[str] = mapped_column(default="")
    boot_id: Mapped[str] = mapped_column(default="")
    pid: Mapped[int | None]
    pid_started: Mapped[int | None]
    generation: Mapped[int] = mapped_column(default=1)
    supervisor_pid: Mapped[int | None]
    supervisor_started: Mapped[int | None]
    lease_until: Mapped[datetime | None]
    rung_at: Mapped[datetime | None]
    metrics_read: Mapped[int] = mapped_column(default=0)
    events_read: Mapped[int] = mapped_column(default=0)
    failed: Mapped[bool] = mapped_column(default=False)
    reason: Mapped[str] = mapped_column(default="")
    waiting: Mapped[str] = mapped_column(default="")


@dataclass(frozen=True)
class Process:
    """A process as it is known for sure: pids are used again, the boot and the start tell them apart.

    `started` is in clock ticks since the boot, which no turning of the clock changes.
    """

    host: str
    boot_id: str
    pid: int
    started: int


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint that an attempt has written."""

    step: int
    folder: str


@dataclass(frozen=True)
class Progress:
    """What a supervisor has read since its last renewal: up to which bytes, and what stood there."""

    metrics_read: int
    events_read: int
    step: int | None = None
    tokens: int | None = None
    unigram_entropy: float | None = None
    points: Sequence[Measured] = ()
    checkpoints: Sequence[Checkpoint] = ()


@dataclass(frozen=True)
class Ending:
    """How a trainer ended: exit status (negative: a signal), one sentence, whether a fresh try may do better."""

    status: int
    reason: str = ""
    transient: bool = False
    timed_out: bool = False
    sample: str = ""

    @property
    def fault(self) -> bool:
        """Whether the place that it ran in ended it, and not what it computed or a wish of ours."""
        return not self.timed_out and (self.status < 0 or (self.status == 70 and self.transient))


@dataclass(frozen=True)
class Renewed:
    """What a supervisor is told at a renewal: whether to stop, and how many seconds its trainer may take in all."""

    stop: bool
    seconds: float


def admit(session: Session, run_id: int, devices: Sequence[int]) -> int:
    """Take a queued run for `devices`: raise its token, reserve its cost, open an attempt. Returns the token.

    Raises ConflictError where the run, its allocation or a device has meanwhile been taken.
    """
    run = runs.load(session, run_id)
    # Two schedulers may have planned on different moments: the pool's row lets one of them at its devices at a time.
    session.execute(select(Pool.id).where(Pool.id == run.pool_id).with_for_update(key_share=True))
    taken = devices_in_use(session, run.pool_id).intersection(devices)
    if taken:
        raise ConflictError(f"Devices of the pool are in use already: {', '.join(map(str, sorted(taken)))}.")
    runs.move(session, run, RunState.STARTING, token=Run.token + 1)
    seconds = run.gpus * remaining(session, run)
    ledger.reserve(session, run.allocation_id, run.id, run.token, seconds)
    session.add(
        Attempt(
            run_id=run.id,
            token=run.token,
            pool_id=run.pool_id,
            devices=",".join(map(str, devices)),
            reserved=seconds,
        )
    )
    session.flush()
    runs.tell(session, run, "run.starting", reserved=seconds)
    return run.token


def remaining(session: Session, run: Run) -> int:
    """Seconds of the time limit that no attempt of the run has used, or that were refunded."""
    return run.time_limit - run.used


def extend(session: Session, run: Run, seconds: int) -> None:
    """Reserve so many GPU-seconds more for the run's open attempt; its supervisor learns of it at its next renewal."""
    attempt = session.get_one(Attempt, (run.id, run.token))
    session.refresh(attempt)
    if attempt.state not in OPEN:
        raise ConflictError(f"Run {run.id} is between two attempts; extend it in a moment.")
    period = session.scalar(
        select(func.count()).where(
            LedgerRow.run_id == run.id, LedgerRow.token == run.token, LedgerRow.movement == Movement.RESERVE
        )
    )
    ledger.reserve(session, run.allocation_id, run.id, run.token, seconds, period or 0)
    attempt.reserved += seconds
    session.flush()


def claim(session: Session, run_id: int, token: int, *, host: str, lease_seconds: float) -> bool:
    """Take an admitted attempt for this host; False where another message has done so, or it is no longer wanted."""
    wanted = select(Run.id).where(Run.id == run_id, Run.token == token, Run.state == RunState.STARTING).exists()
    claimed = session.execute(
        update(Attempt)
        .where(Attempt.run_id == run_id, Attempt.token == token, Attempt.state == AttemptState.ADMITTED, wanted)
        .values(state=AttemptState.CLAIMED, host=host, lease_until=_from_now(lease_seconds))
        .returning(Attempt.token)
    ).one_or_none()
    return claimed is not None


def withdraw(session: Session, run_id: int, token: int) -> None:
    """End an attempt whose run was stopped before a worker claimed it; raises StaleError where one just has."""
    _guarded(session, run_id, token, (AttemptState.ADMITTED,), state=AttemptState.ENDED, reason="it was not claimed")
    run = runs.load(session, run_id)
    ledger.release(session, run.allocation_id, run_id, token)
    _stop(session, run)


def started(
    session: Session, run_id: int, token: int, process: Process, found: Sequence[Checkpoint], *, lease_seconds: float
) -> None:
    """Note that the attempt's trainer runs as `process`; raises StaleError.

    `found` are whole checkpoints of earlier attempts, which may have died before they could tell of the last one.
    """
    _guarded(
        session,
        run_id,
        token,
        (AttemptState.CLAIMED,),
        state=AttemptState.RUNNING,
        boot_id=process.boot_id,
        pid=process.pid,
        pid_started=process.started,
        waiting="",
        lease_until=_from_now(lease_seconds),
    )
    run = runs.load(session, run_id)
    _keep(session, run, Progress(metrics_read=0, events_read=0, checkpoints=found))
    if run.state == RunState.STARTING:
        runs.move(session, run, RunState.RUNNING, started_at=run.started_at or utcnow())
        runs.tell(session, run, "run.started")


def waits(session: Session, run_id: int, token: int, process: Process, waiting: str, *, lease_seconds: float) -> bool:
    """Renew the lease of an attempt whose trainer is not yet running, and why it waits; nothing is charged.

    Returns whether the run is still wanted; raises StaleError.
    """
    _guarded(
        session,
        run_id,
        token,
        (AttemptState.CLAIMED,),
        boot_id=process.boot_id,
        pid=process.pid,
        pid_started=process.started,
        waiting=waiting[:MOST_WAITING],
        lease_until=_from_now(lease_seconds),
    )
    return runs.load(session, run_id).state != RunState.STOPPING


def renew(
    session: Session,
    run_id: int,
    token: int,
    elapsed: float,
    progress: Progress,
    *,
    lease_seconds: float,
    generation: int = 1,
) -> Renewed:
    """Renew the lease, charge the `elapsed` seconds of the trainer's life and keep its progress, all or nothing.

    Raises StaleError.
    """
    attempt = _guarded(
        session,
        run_id,
        token,
        (AttemptState.RUNNING,),
        generation=generation,
        lease_until=_from_now(lease_seconds),
        metrics_read=progress.metrics_read,
        events_read=progress.events_read,
    )
    run = runs.load(session, run_id)
    _charge(session, run, attempt, elapsed)
    _keep(session, run, progress, attempt)
    return Renewed(run.state == RunState.STOPPING, attempt.reserved / run.gpus)


def settle(
    session: Session,
    run_id: int,
    token: int,
    elapsed: float,
    progress: Progress,
    ending: Ending,
    most: int,
    *,
    generation: int = 1,
) -> None:
    """End the attempt: the last charge and progress, the rest of the reservation given back, the run moved on.

    A run fails for good after `most` failed attempts; one that was stopped from outside is none. A fault of the
    infrastructure refunds what no checkpoint stands for. Raises StaleError.
    """
    attempt = _guarded(
        session,
        run_id,
        token,
        (AttemptState.CLAIMED, AttemptState.RUNNING),
        generation=generation,
        state=AttemptState.ENDED,
        lease_until=None,
        reason=ending.reason,
        metrics_read=progress.metrics_read,
        events_read=progress.events_read,
    )
    run = runs.load(session, run_id)
    _charge(session, run, attempt, elapsed)
    _keep(session, run, progress, attempt)
    ledger.release(session, run.allocation_id, run_id, token)
    if ending.fault and run.state != RunState.STOPPING:
        _refund(session, run, attempt, ending.reason)
    if ending.status == 0:
        _end(session, run, RunState.FINISHED, ending.reason, sample=ending.sample)
        if run.kind == "train":
            runs.queue_sample(session, run)
        elif run.kind == "prepare":
            preparing.made(session, run)
    elif run.state == RunState.STOPPING:
        pausing = run.stops_as == RunState.PAUSED
        if ending.status > 0 and ending.status != 75 and not (pausing and ending.transient):
            _end(session, run, RunState.FAILED, ending.reason)
        else:
            _stop(session, run)
    elif ending.timed_out:
        _end(session, run, RunState.TIMED_OUT, "it reached its time limit")
    elif ending.status == 75:
        _retry(session, run, ending.reason, utcnow(), most)
    elif ending.transient or ending.status < 0:
        attempt.failed = True
        _retry(session, run, ending.reason, utcnow(), most)
    else:
        _end(session, run, RunState.FAILED, ending.reason)


def lose(session: Session, attempt: Attempt, *, grace_seconds: float, most: int) -> bool:
    """Give up an attempt whose lease has run out; its place is held until its trainer must surely have stopped.

    False where it was renewed or ended at the last moment.
    """
    lock(session, attempt.run_id)
    if attempt.lease_until is None:
        return False
    stopped_by = attempt.lease_until + timedelta(seconds=grace_seconds)
    reason = "its supervisor stopped renewing the lease"
    lost = session.execute(
        update(Attempt)
        .where(
            Attempt.run_id == attempt.run_id,
            Attempt.token == attempt.token,
            Attempt.state.in_(OPEN),
            Attempt.lease_until == attempt.lease_until,
            Attempt.lease_until < utcnow(),
        )
        .values(state=AttemptState.LOST, failed=True, reason=reason, lease_until=stopped_by)
        .returning(Attempt.token)
    ).one_or_none()
    if lost is None:
        return False
    run = runs.load(session, attempt.run_id)
    ledger.release(session, run.allocation_id, run.id, attempt.token)
    _refund(session, run, session.get_one(Attempt, (run.id, attempt.token)), reason)
    if run.state == RunState.STOPPING:
        _stop(session, run, not_before=stopped_by)
    else:
        _retry(session, run, reason, stopped_by, most)
    return True


def expired(session: Session) -> Sequence[Attempt]:
    """Open attempts whose lease has run out."""
    return session.scalars(select(Attempt).where(Attempt.state.in_(OPEN), Attempt.lease_until < utcnow())).all()


def unclaimed(session: Session, *, since_seconds: float) -> Sequence[Attempt]:
    """Admitted attempts that no worker has claimed since their doorbell was rung that long ago, or never."""
    before = _from_now(-since_seconds)
    return session.scalars(
        select(Attempt).where(
            Attempt.state == AttemptState.ADMITTED, (Attempt.rung_at.is_(None)) | (Attempt.rung_at < before)
        )
    ).all()


def cancelled_unclaimed(session: Session) -> Sequence[Attempt]:
    """Admitted attempts whose run was asked to stop since."""
    return session.scalars(
        select(Attempt)
        .join(Run, (Run.id == Attempt.run_id) & (Run.token == Attempt.token))
        .where(Attempt.state == AttemptState.ADMITTED, Run.state == RunState.STOPPING)
    ).all()


def rung(session: Session, run_id: int, token: int) -> None:
    """Note that the doorbell of an attempt has been rung."""
    session.execute(update(Attempt).where(Attempt.run_id == run_id, Attempt.token == token).values(rung_at=utcnow()))


def earlier(session: Session, run_id: int, token: int) -> Sequence[Attempt]:
    """The run's attempts before `token`."""
    return session.scalars(
        select(Attempt).where(Attempt.run_id == run_id, Attempt.token < token).order_by(Attempt.token)
    ).all()


def devices_in_use(session: Session, pool_id: int) -> set[int]:
    """The devices of a pool that open attempts hold, and those of lost ones whose trainer may still be stopping."""
    held = session.scalars(
        select(Attempt.devices).where(
            Attempt.pool_id == pool_id,
            Attempt.state.in_(OPEN) | ((Attempt.state == AttemptState.LOST) & (Attempt.lease_until > utcnow())),
        )
    )
    return {int(device) for devices in held for device in devices.split(",") if device}


def _charge(session: Session, run: Run, attempt: Attempt, elapsed: float) -> None:
    """Charge whole GPU-seconds up to `elapsed` seconds of the attempt's life, never more than it has reserved."""
    due = min(int(elapsed) * run.gpus, attempt.reserved) - attempt.charged
    if due <= 0:
        return
    attempt.period += 1
    attempt.charged += due
    run.used += due // run.gpus
    ledger.charge(session, run.allocation_id, run.id, attempt.token, attempt.period, due)


def _refund(session: Session, run: Run, attempt: Attempt, why: str) -> None:
    """Give back what the attempt was charged for since its last whole checkpoint, and the time with it."""
    seconds = attempt.charged - attempt.charged_at_checkpoint
    if seconds <= 0:
        return
    ledger.refund(session, run.allocation_id, run.id, attempt.token, seconds, why)
    attempt.refunded = seconds
    run.used -= seconds // run.gpus
    session.flush()
    runs.tell(session, run, "run.refunded", why=why, seconds=seconds)


def _keep(session: Session, run: Run, progress: Progress, attempt: Attempt | None = None) -> None:
    series.add(session, run.id, progress.points)
    if attempt is not None and progress.checkpoints:
        attempt.charged_at_checkpoint = attempt.charged
    for checkpoint in progress.checkpoints:
        publications.add(session, run.id, checkpoint.step, checkpoint.folder)
    if progress.step is not None:
        run.step = progress.step
    if progress.tokens is not None:
        run.tokens = progress.tokens
    if progress.unigram_entropy is not None:
        run.unigram_entropy = progress.unigram_entropy
    session.flush()


def _retry(session: Session, run: Run, reason: str, not_before: datetime, most: int) -> None:
    session.flush()
    failed = session.scalar(select(func.count()).where(Attempt.run_id == run.id, Attempt.failed)) or 0
    if failed >= most:
        _end(session, run, RunState.FAILED, f"{failed} attempts failed; the last one: {reason}")
        return
    if remaining(session, run) < 1:
        _end(session, run, RunState.TIMED_OUT, "it reached its time limit")
        return
    runs.move(session, run, RunState.QUEUED, reason=reason, not_before=not_before)
    runs.tell(session, run, "run.requeued", why=reason)


def _stop(session: Session, run: Run, **values: object) -> None:
    """Bring a run that was asked to stop to where that was to take it."""
    if run.stops_as == RunState.PAUSED:
        runs.move(session, run, RunState.PAUSED, **values)
        tell_paused(session, run)
    else:
        _end(session, run, RunState.CANCELLED, run.reason)


def tell_paused(session: Session, run: Run, *, by: Person | None = None) -> None:
    """Append the entry of a run that has come to be paused."""
    spent = runs.spent(session, run.id)
    runs.tell(session, run, "run.paused", by=by, why=run.reason, step=run.step, spent=spent)


def _end(session: Session, run: Run, to: RunState, reason: str, *, sample: str = "") -> None:
    if to not in ENDED:
        raise ValueError(f"{to} is not an end")
    runs.move(session, run, to, reason=reason, ended_at=utcnow(), sample=sample)
    spent = runs.spent(session, run.id)
    kind = {RunState.TIMED_OUT: "run.timed_out"}.get(to, f"run.{to}")
    runs.tell(session, run, kind, why=reason, step=run.step, spent=spent, text=sample)


def _guarded(
    session: Session,
    run_id: int,
    token: int,
    expected: Sequence[AttemptState],
    *,
    generation: int = 1,
    **values: object,
) -> Attempt:
    """Write to the attempt where its token is good; raises StaleError, and TakenOverError where only that is."""
    current = lock(session, run_id)
    good = (Attempt.run_id == run_id, Attempt.token == token, Attempt.state.in_(expected))
    written = session.execute(
        update(Attempt).where(*good, Attempt.generation == generation).values(**values).returning(Attempt.token)
    ).one_or_none()
    if current == token and written is None and session.scalar(select(Attempt.token).where(*good)) is not None:
        raise TakenOverError(f"attempt {token} of run {run_id} has another supervisor")
    if written is None or current != token:
        raise StaleError(f"attempt {token} of run {run_id} is no longer {' or '.join(expected)}")
    attempt = session.get_one(Attempt, (run_id, token))
    session.refresh(attempt)
    return attempt


def lock(session: Session, run_id: int) -> int | None:
    """Lock the run's row and return its token. Every path locks the run before its attempt."""
    return session.scalars(select(Run.token).where(Run.id == run_id).with_for_update(key_share=True)).one_or_none()


def _from_now(seconds: float) -> datetime:
    return utcnow() + timedelta(seconds=seconds)
