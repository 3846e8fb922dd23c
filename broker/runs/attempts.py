"""The attempts of a run: their rows, their admission, and which of them somebody must look after.

`leases.py` has what a worker and a supervisor write, `settlement.py` how an attempt ends.

Each attempt has a fencing token, which is valid while the run's row has the same token and the attempt is open.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from sqlalchemy import ColumnElement, func, update
from sqlalchemy.orm import Session
from sqlmodel import Field, col, select

from broker.allocations import ledger
from broker.allocations.ledger import LedgerRow, Movement
from broker.allocations.pools import Pool
from broker.runners import registry
from broker.runners.processes import Process
from broker.runs import entries, runs
from broker.runs.runs import Run, RunState
from projects.db.columns import Base, foreign_key, integer, timestamp, utcnow
from projects.errors import ConflictError


class AttemptState(StrEnum):
    """The states of an attempt; the first three are open."""

    ADMITTED = "admitted"
    CLAIMED = "claimed"
    RUNNING = "running"
    ENDED = "ended"
    LOST = "lost"


LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
"""Where `lease_until` stands once a lost attempt's trainer is known to have ended."""
OPEN = (AttemptState.ADMITTED, AttemptState.CLAIMED, AttemptState.RUNNING)


class Attempt(Base, table=True):
    """One attempt at a run: its devices, its lease, its processes, and how many bytes of its output have been read.

    `reserved`, `charged` and `refunded` are GPU-seconds; `charged_at_checkpoint` is the part of `charged` up to the
    last complete checkpoint. `generation` counts the attempt's supervisors and guards the writes of each. `failed` says
    whether the attempt counts towards the attempts that a run may fail, `data_cleared` that the store has none of the
    data that it prepared any more.
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
    data_cleared: bool = False
    reason: str = ""
    end_reason: str | None = None
    waiting: str = ""


def admit(session: Session, run_id: int, devices: Sequence[int]) -> int:
    """Admit a queued run to `devices`: increment its token, reserve its cost, and open an attempt. Returns the token.

    Raises ConflictError if the run is no longer queued, a device is in use, or the allocation has too little left.
    """
    run = runs.load(session, run_id)
    # Two schedulers may plan at the same time; the lock on the pool's row lets one of them admit at a time.
    session.execute(select(Pool.id).where(Pool.id == run.pool_id).with_for_update(key_share=True))
    taken = devices_in_use(session, run.pool_id).intersection(devices)
    if taken:
        raise ConflictError(f"Devices of the pool are already in use: {', '.join(map(str, sorted(taken)))}.")
    runs.move(session, run, RunState.STARTING, token=run.token + 1, reason="")
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
    entries.tell(session, run, "run.starting", reserved=seconds)
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
        raise ConflictError(f"Run {run.id} is between two attempts; try again in a moment.")
    period = session.scalar(
        select(func.count()).where(
            LedgerRow.run_id == run.id, LedgerRow.token == run.token, LedgerRow.movement == Movement.RESERVE
        )
    )
    ledger.reserve(session, run.allocation_id, run.id, run.token, seconds, period or 0)
    attempt.reserved += seconds
    session.flush()


def last_hosts(session: Session, run_ids: Collection[int], pool_ids: Collection[int]) -> dict[int, str]:
    """The host of the last attempt of each of these runs that was made on one of the pools."""
    rows = session.execute(
        select(Attempt.run_id, Attempt.host)
        .where(col(Attempt.run_id).in_(run_ids), col(Attempt.pool_id).in_(pool_ids), Attempt.host != "")
        .order_by(col(Attempt.token))
    )
    return {row.run_id: row.host for row in rows}


def rename_host(session: Session, before: str, after: str) -> None:
    """Let all attempts of a host be those of the host by another name."""
    session.execute(update(Attempt).where(col(Attempt.host) == before).values(host=after))


def open_on(session: Session, host: str) -> Sequence[Attempt]:
    """The open attempts of a host, by run."""
    here = (Attempt.host == host, col(Attempt.state).in_(OPEN))
    return session.scalars(select(Attempt).where(*here).order_by(col(Attempt.run_id))).all()


def under_way(session: Session) -> Mapping[str, Sequence[Run]]:
    """The runs with an open attempt on each host, by the host's name."""
    found: dict[str, list[Run]] = {}
    query = select(Attempt.host, Run).join(Run, col(Run.id) == Attempt.run_id)
    for host, run in session.execute(
        query.where(col(Attempt.state).in_(OPEN), Attempt.host != "").order_by(col(Run.id))
    ):
        found.setdefault(host, []).append(run)
    return found


def lost_on(session: Session, host: str, *, since_seconds: float) -> Sequence[Attempt]:
    """The attempts on `host` that were given up and should have stopped within the last `since_seconds`.

    The trainer of one may be alive, where its supervisor cannot reach the database.
    """
    return session.scalars(
        select(Attempt).where(
            Attempt.state == AttemptState.LOST,
            Attempt.host == host,
            col(Attempt.lease_until).between(from_now(-since_seconds), utcnow()),
        )
    ).all()


def surely_over(session: Session, run_id: int, token: int) -> None:
    """Record that nothing of a lost attempt lives: its devices are free, and any host may claim the run's next one."""
    lock(session, run_id)
    lost = (col(Attempt.run_id) == run_id, col(Attempt.token) == token, col(Attempt.state) == AttemptState.LOST)
    session.execute(update(Attempt).where(*lost, col(Attempt.lease_until).is_not(None)).values(lease_until=LONG_AGO))


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


def unsupervised(session: Session, *, lease_seconds: float) -> Sequence[Attempt]:
    """Attempts whose supervisor may be dead: they missed a renewal, and their lease has not expired yet."""
    return session.scalars(
        select(Attempt).where(
            col(Attempt.state).in_((AttemptState.CLAIMED, AttemptState.RUNNING)),
            col(Attempt.supervisor_pid).is_not(None),
            col(Attempt.lease_until).between(utcnow(), from_now(lease_seconds * 2 / 3)),
        )
    ).all()


def adoptable(session: Session, *, lease_seconds: float) -> Sequence[Attempt]:
    """Attempts whose lease ran out less than a lease ago, and whose trainer, an engine's job, any worker of the pool
    may take over."""
    rows = session.execute(
        select(Attempt, Pool.runner)
        .join(Pool, col(Pool.id) == Attempt.pool_id)
        .where(
            col(Attempt.state).in_((AttemptState.CLAIMED, AttemptState.RUNNING)),
            col(Attempt.supervisor_pid).is_not(None),
            col(Attempt.pid).is_not(None),
            col(Attempt.lease_until).between(from_now(-lease_seconds), utcnow()),
        )
    )
    return [attempt for attempt, runner in rows if not registry.named(runner).bound_to_host]


def expired(session: Session) -> Sequence[Attempt]:
    """Open attempts whose lease has expired."""
    return session.scalars(
        select(Attempt).where(col(Attempt.state).in_(OPEN), col(Attempt.lease_until) < utcnow())
    ).all()


def unclaimed(session: Session, *, since_seconds: float) -> Sequence[Attempt]:
    """Admitted attempts that no worker has claimed, and for which none was notified in the last `since_seconds`."""
    before = from_now(-since_seconds)
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
    held = session.scalars(select(Attempt.devices).where(Attempt.pool_id == pool_id, holding()))
    return {int(device) for devices in held for device in devices.split(",") if device}


def holding() -> ColumnElement[bool]:
    """The condition for attempts that hold what they were admitted to: open ones, and lost ones whose trainer may still
    be stopping."""
    lost = (col(Attempt.state) == AttemptState.LOST) & (col(Attempt.lease_until) > utcnow())
    return col(Attempt.state).in_(OPEN) | lost


def lock(session: Session, run_id: int) -> int | None:
    """Lock the run's row and return its token; None if there is no such run. A run is locked before its attempts."""
    return session.scalars(select(Run.token).where(Run.id == run_id).with_for_update(key_share=True)).one_or_none()


def from_now(seconds: float) -> datetime:
    """The time in so many seconds, or with a negative number so many ago."""
    return utcnow() + timedelta(seconds=seconds)
