"""The attempts of a run: admission, claim, renewal of the lease, progress. `settlement.py` ends them.

Each attempt has a fencing token, which is valid while the run's row has the same token and the attempt is open. Every
write of a supervisor is guarded by its token: a write with an invalid token raises StaleError, and the supervisor then
stops the trainer and discards the result.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import func, update
from sqlalchemy.orm import Session
from sqlmodel import Field, col, select

from broker import publications
from broker.allocations import ledger
from broker.allocations.ledger import LedgerRow, Movement
from broker.allocations.pools import Pool
from broker.end_reasons import EndReason
from broker.runners.processes import Process
from broker.runs import runs, series
from broker.runs.runs import Run, RunState
from broker.runs.series import Measured
from projects.db import transition
from projects.db.columns import Base, foreign_key, integer, timestamp, utcnow
from projects.errors import ConflictError
from trainer.contract import Status

MOST_WAITING = 200

END_REASONS: dict[int, EndReason] = {
    Status.STOPPED: EndReason.STOP_REQUESTED,
    Status.CONFIG: EndReason.CONFIG_REFUSED,
    Status.REFUSED: EndReason.RUNNER_REFUSED,
}


class StaleError(Exception):
    """The token is no longer valid: another attempt has taken the run, or the attempt has ended."""


class TakenOverError(StaleError):
    """The token is valid, but another supervisor has taken the trainer over: leave the trainer alone."""


class AttemptState(StrEnum):
    """The states of an attempt; the first three are open."""

    ADMITTED = "admitted"
    CLAIMED = "claimed"
    RUNNING = "running"
    ENDED = "ended"
    LOST = "lost"


OPEN = (AttemptState.ADMITTED, AttemptState.CLAIMED, AttemptState.RUNNING)


class Attempt(Base, table=True):
    """One attempt at a run: its devices, its lease, its processes, and how many bytes of its output have been read.

    `reserved`, `charged` and `refunded` are GPU-seconds; `charged_at_checkpoint` is the part of `charged` up to the
    last complete checkpoint. `generation` counts the attempt's supervisors and guards the writes of each. `failed` says
    whether the attempt counts towards the attempts that a run may fail.
    """

    __tablename__ = "attempts"

    run_id: int = foreign_key("runs.id", primary_key=True)
    token: int = integer(primary_key=True)
    state: str = Field(default=AttemptState.ADMITTED, index=True)
    pool_id: int = foreign_key("pools.id")
    devices: str
    reserved: int = integer()
    charged: int = integer(default=0)
    counted: bool = Field(default=False, index=True)
    charged_at_checkpoint: int = integer(default=0)
    refunded: int = integer(default=0)
    period: int = integer(default=0)
    host: str = ""
    boot_id: str = ""
    pid: int | None = integer(default=None)
    pid_started: int | None = integer(default=None)
    generation: int = integer(default=1)
    supervisor_boot_id: str = ""
    supervisor_pid: int | None = integer(default=None)
    supervisor_started: int | None = integer(default=None)
    lease_until: datetime | None = timestamp(default=None)
    notified_at: datetime | None = timestamp(default=None)
    metrics_read: int = integer(default=0)
    events_read: int = integer(default=0)
    failed: bool = False
    reason: str = ""
    end_reason: str | None = None
    waiting: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint that an attempt wrote."""

    step: int
    folder: str


@dataclass(frozen=True)
class Progress:
    """What a supervisor read of the trainer's output since its last renewal.

    `metrics_read` and `events_read` are the bytes of `metrics.jsonl` and `events.jsonl` read so far; `more` says that
    more can be read at once.
    """

    metrics_read: int
    events_read: int
    step: int | None = None
    tokens: int | None = None
    unigram_entropy: float | None = None
    points: Sequence[Measured] = ()
    checkpoints: Sequence[Checkpoint] = ()
    more: bool = False


@dataclass(frozen=True)
class Ending:
    """How a trainer ended. `status` is its exit status, or the negative number of a signal.

    `transient` says that another attempt may succeed. `known` is what the runner or the supervisor knows of the reason
    beyond the status.
    """

    status: int
    reason: str = ""
    transient: bool = False
    timed_out: bool = False
    sample: str = ""
    known: EndReason | None = None

    @property
    def fault(self) -> bool:
        """Whether the infrastructure ended the trainer, and neither its own computation nor a request to stop."""
        return not self.timed_out and (self.status < 0 or (self.status == Status.FAILED and self.transient))

    @property
    def end_reason(self) -> EndReason:
        """The enumerated reason of the attempt's end."""
        if self.status == Status.DONE:
            return EndReason.DONE
        if self.timed_out:
            return EndReason.TIME_LIMIT
        if self.known is not None:
            return self.known
        if self.status < 0:
            return EndReason.SIGNAL
        failed = EndReason.TRAINER_FAULT if self.transient else EndReason.TRAINER_FAILED
        return END_REASONS.get(self.status, failed)


@dataclass(frozen=True)
class Renewed:
    """The answer to a renewal: whether to stop the trainer, and the attempt's time limit in seconds."""

    stop: bool
    seconds: float


def admit(session: Session, run_id: int, devices: Sequence[int]) -> int:
    """Admit a queued run to `devices`: increment its token, reserve its cost, and open an attempt. Returns the token.

    Raises ConflictError if the run is no longer queued, a device is in use, or the allocation has too little left.
    """
    run = runs.load(session, run_id)
    # Two schedulers may plan at the same time; the lock on the pool's row lets one of them admit at a time.
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
    """Seconds of the run's time limit that its attempts have not used; refunded seconds count as unused."""
    return run.time_limit - run.used


def extend(session: Session, run: Run, seconds: int) -> None:
    """Reserve more GPU-seconds for the run's open attempt, which its supervisor learns of at the next renewal.

    Raises ConflictError between two attempts, or if the allocation has too little left.
    """
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


def claim(
    session: Session,
    run_id: int,
    token: int,
    *,
    host: str,
    lease_seconds: float,
    outlives: tuple[str, float] | None = None,
) -> bool:
    """Claim an admitted attempt for `host`; False if another worker has claimed it or the run no longer wants it.

    `outlives` is this host's boot id and how many seconds a trainer may outlive its lease on a host that cannot reach
    the database: False, too, while an earlier attempt may still be alive on another host, which `waiting` then says.
    """
    admitted = (col(Attempt.run_id) == run_id, col(Attempt.token) == token, col(Attempt.state) == AttemptState.ADMITTED)
    if outlives is not None and (elsewhere := _alive_elsewhere(session, run_id, token, host, *outlives)):
        lock(session, run_id)
        transition.write_where(session, Attempt, *admitted, waiting=elsewhere[:MOST_WAITING])
        return False
    wanted = select(Run.id).where(Run.id == run_id, Run.token == token, Run.state == RunState.STARTING).exists()
    values = {"state": AttemptState.CLAIMED, "host": host, "lease_until": _from_now(lease_seconds), "waiting": ""}
    return transition.write_where(session, Attempt, *admitted, wanted, **values) is not None


def _alive_elsewhere(session: Session, run_id: int, token: int, host: str, boot_id: str, seconds: float) -> str:
    """Where an earlier attempt of the run may still be alive, and until when, as a sentence; empty if nowhere."""
    lost = session.scalars(
        select(Attempt)
        .where(
            Attempt.run_id == run_id,
            Attempt.token < token,
            Attempt.state == AttemptState.LOST,
            col(Attempt.pid).is_not(None),
            Attempt.host != host,
            Attempt.boot_id != boot_id,
            col(Attempt.lease_until) > _from_now(-seconds),
        )
        .order_by(col(Attempt.lease_until).desc())
    ).first()
    if lost is None or lost.lease_until is None:
        return ""
    until = lost.lease_until + timedelta(seconds=seconds)
    return f"An earlier attempt may still run on {lost.host}, out of reach; other hosts wait until {until:%F %T} UTC"


def lost_on(session: Session, host: str, *, since_seconds: float) -> Sequence[Attempt]:
    """The attempts on `host` that were given up and should have stopped within the last `since_seconds`.

    The trainer of one may be alive, where its supervisor cannot reach the database.
    """
    return session.scalars(
        select(Attempt).where(
            Attempt.state == AttemptState.LOST,
            Attempt.host == host,
            col(Attempt.lease_until).between(_from_now(-since_seconds), utcnow()),
        )
    ).all()


def renew_claim(session: Session, run_id: int, token: int, *, lease_seconds: float) -> None:
    """Renew the lease of a claimed attempt whose supervisor has been kept from starting; raises StaleError."""
    guarded(session, run_id, token, (AttemptState.CLAIMED,), lease_until=_from_now(lease_seconds))


def catch_up(session: Session, run_id: int, token: int, earlier: int, progress: Progress, *, generation: int) -> None:
    """Save what the trainer of an earlier attempt had written and its supervisor had not told; raises StaleError."""
    guarded(session, run_id, token, (AttemptState.CLAIMED, AttemptState.RUNNING), generation=generation)
    attempt = session.get_one(Attempt, (run_id, earlier))
    attempt.metrics_read, attempt.events_read = progress.metrics_read, progress.events_read
    save_progress(session, runs.load(session, run_id), progress)


def started(
    session: Session,
    run_id: int,
    token: int,
    process: Process,
    found: Sequence[Checkpoint],
    *,
    lease_seconds: float,
    supervisor: Process | None = None,
    generation: int = 1,
) -> None:
    """Record that the attempt's trainer runs as `process` under `supervisor`, and move the run to running.

    `found` are the complete checkpoints of earlier attempts, which may have ended before they reported their last one.
    Raises StaleError.
    """
    guarded(
        session,
        run_id,
        token,
        (AttemptState.CLAIMED,),
        generation=generation,
        state=AttemptState.RUNNING,
        boot_id=process.boot_id,
        pid=process.pid,
        pid_started=process.started,
        **_supervised_by(supervisor),
        waiting="",
        lease_until=_from_now(lease_seconds),
    )
    run = runs.load(session, run_id)
    save_progress(session, run, Progress(metrics_read=0, events_read=0, checkpoints=found))
    if run.state == RunState.STARTING:
        runs.move(session, run, RunState.RUNNING, started_at=run.started_at or utcnow())
        runs.tell(session, run, "run.started")


def take_over(
    session: Session, run_id: int, token: int, generation: int, supervisor: Process, *, lease_seconds: float
) -> Attempt:
    """Replace the attempt's dead supervisor of `generation` by `supervisor`; the trainer runs or waits in a queue.

    Raises StaleError, or TakenOverError if another supervisor has replaced it already.
    """
    return guarded(
        session,
        run_id,
        token,
        (AttemptState.CLAIMED, AttemptState.RUNNING),
        generation=generation,
        next_generation=generation + 1,
        **_supervised_by(supervisor),
        lease_until=_from_now(lease_seconds),
    )


def process_of(attempt: Attempt) -> Process | None:
    """The trainer's process; None until it is known."""
    if attempt.pid is None or attempt.pid_started is None:
        return None
    return Process(attempt.host, attempt.boot_id, attempt.pid, attempt.pid_started)


def supervisor_of(attempt: Attempt) -> Process | None:
    """The process of the attempt's supervisor; None if it is unknown or cannot be replaced."""
    if attempt.supervisor_pid is None or attempt.supervisor_started is None:
        return None
    return Process(attempt.host, attempt.supervisor_boot_id, attempt.supervisor_pid, attempt.supervisor_started)


def _supervised_by(supervisor: Process | None) -> dict[str, Any]:
    """The columns of an attempt that hold its supervisor's process."""
    return {
        "supervisor_boot_id": "" if supervisor is None else supervisor.boot_id,
        "supervisor_pid": None if supervisor is None else supervisor.pid,
        "supervisor_started": None if supervisor is None else supervisor.started,
    }


def unsupervised(session: Session, *, lease_seconds: float) -> Sequence[Attempt]:
    """Attempts whose supervisor may be dead: they missed a renewal, and their lease has not expired yet."""
    return session.scalars(
        select(Attempt).where(
            col(Attempt.state).in_((AttemptState.CLAIMED, AttemptState.RUNNING)),
            col(Attempt.supervisor_pid).is_not(None),
            col(Attempt.lease_until).between(utcnow(), _from_now(lease_seconds * 2 / 3)),
        )
    ).all()


def waits(
    session: Session,
    run_id: int,
    token: int,
    process: Process,
    waiting: str,
    *,
    lease_seconds: float,
    supervisor: Process,
    generation: int = 1,
) -> bool:
    """Renew the lease of an attempt whose trainer still waits in the runner's queue, without charging anything.

    `waiting` is the queue's reason. Returns False if the run was asked to stop. Raises StaleError.
    """
    guarded(
        session,
        run_id,
        token,
        (AttemptState.CLAIMED,),
        generation=generation,
        boot_id=process.boot_id,
        pid=process.pid,
        pid_started=process.started,
        **_supervised_by(supervisor),
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
    """Renew the lease, charge for the trainer's first `elapsed` seconds and save its progress, in one transaction.

    Raises StaleError.
    """
    attempt = guarded(
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
    charge(session, run, attempt, elapsed)
    if progress.step is not None and progress.step > run.step == (run.fork_step or 0):
        series.add(session, run_id, [Measured(series.START, progress.step, progress.tokens or 0, elapsed)])
    save_progress(session, run, progress, attempt)
    return Renewed(run.state == RunState.STOPPING, attempt.reserved / run.gpus)


def expired(session: Session) -> Sequence[Attempt]:
    """Open attempts whose lease has expired."""
    return session.scalars(
        select(Attempt).where(col(Attempt.state).in_(OPEN), col(Attempt.lease_until) < utcnow())
    ).all()


def unclaimed(session: Session, *, since_seconds: float) -> Sequence[Attempt]:
    """Admitted attempts that no worker has claimed, and for which none was notified in the last `since_seconds`."""
    before = _from_now(-since_seconds)
    return session.scalars(
        select(Attempt).where(
            Attempt.state == AttemptState.ADMITTED,
            (col(Attempt.notified_at).is_(None)) | (col(Attempt.notified_at) < before),
        )
    ).all()


def cancelled_unclaimed(session: Session) -> Sequence[Attempt]:
    """Admitted attempts whose run was asked to stop before a worker claimed them."""
    return session.scalars(
        select(Attempt)
        .join(Run, (col(Run.id) == Attempt.run_id) & (col(Run.token) == Attempt.token))
        .where(Attempt.state == AttemptState.ADMITTED, Run.state == RunState.STOPPING)
    ).all()


def notified(session: Session, run_id: int, token: int) -> None:
    """Record that the workers were just notified of an admitted attempt."""
    session.execute(
        update(Attempt).where(col(Attempt.run_id) == run_id, col(Attempt.token) == token).values(notified_at=utcnow())
    )


def earlier(session: Session, run_id: int, token: int) -> Sequence[Attempt]:
    """The run's attempts before `token`, in order."""
    return session.scalars(
        select(Attempt).where(Attempt.run_id == run_id, Attempt.token < token).order_by(col(Attempt.token))
    ).all()


def devices_in_use(session: Session, pool_id: int) -> set[int]:
    """The pool's devices held by open attempts, and by lost attempts whose trainer may still be stopping."""
    held = session.scalars(
        select(Attempt.devices).where(
            Attempt.pool_id == pool_id,
            col(Attempt.state).in_(OPEN)
            | ((col(Attempt.state) == AttemptState.LOST) & (col(Attempt.lease_until) > utcnow())),
        )
    )
    return {int(device) for devices in held for device in devices.split(",") if device}


def charge(session: Session, run: Run, attempt: Attempt, elapsed: float) -> None:
    """Charge an attempt for its first `elapsed` seconds, in whole GPU-seconds and at most what it has reserved.

    Seconds that were charged before are not charged again.
    """
    due = min(int(elapsed) * run.gpus, attempt.reserved) - attempt.charged
    if due <= 0:
        return
    attempt.period += 1
    attempt.charged += due
    run.used += due // run.gpus
    ledger.charge(session, run.allocation_id, run.id, attempt.token, attempt.period, due)


def save_progress(session: Session, run: Run, progress: Progress, attempt: Attempt | None = None) -> None:
    """Save what a supervisor read: points, checkpoints, and the step and tokens reached.

    `attempt` is given where the new checkpoints are its own.
    """
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


def guarded(
    session: Session,
    run_id: int,
    token: int,
    expected: Sequence[AttemptState],
    *,
    generation: int = 1,
    next_generation: int | None = None,
    **values: object,
) -> Attempt:
    """Lock the run, and write `values` to the attempt if it is in an expected state. Returns the attempt.

    Raises StaleError if the token is invalid or the state is another, and TakenOverError if only the generation is old.
    """
    current = lock(session, run_id)
    good = (col(Attempt.run_id) == run_id, col(Attempt.token) == token, col(Attempt.state).in_(expected))
    attempt = transition.write_where(
        session,
        Attempt,
        *good,
        col(Attempt.generation) == generation,
        generation=next_generation or generation,
        **values,
    )
    if current == token and attempt is None and session.scalar(select(Attempt.token).where(*good)) is not None:
        raise TakenOverError(f"attempt {token} of run {run_id} has another supervisor")
    if attempt is None or current != token:
        raise StaleError(f"attempt {token} of run {run_id} is no longer {' or '.join(expected)}")
    return attempt


def lock(session: Session, run_id: int) -> int | None:
    """Lock the run's row and return its token; None if there is no such run. A run is locked before its attempts."""
    return session.scalars(select(Run.token).where(Run.id == run_id).with_for_update(key_share=True)).one_or_none()


def _from_now(seconds: float) -> datetime:
    return utcnow() + timedelta(seconds=seconds)
