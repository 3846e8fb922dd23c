"""Leases: a worker claims an attempt, and its supervisor renews the lease and saves the trainer's progress.

Every write is guarded by the attempt's fencing token. With an invalid token it raises StaleError, and the supervisor
then stops the trainer and discards the result.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker import configs, publications
from broker.allocations import hosts, ledger
from broker.runners.processes import Process
from broker.runs import attempts, entries, runs, series
from broker.runs.attempts import Attempt, AttemptState
from broker.runs.kinds.kind import kind_of
from broker.runs.progress import Checkpoint, Progress, Spike
from broker.runs.runs import Run, RunState
from broker.runs.series import Measured, Point
from projects.db import transition
from projects.db.columns import utcnow
from projects.errors import InvalidError

MOST_WAITING = 200
LONGEST_PHASE = 200
QUIET = 50


class StaleError(Exception):
    """The token is no longer valid: another attempt has taken the run, or the attempt has ended."""


class TakenOverError(StaleError):
    """The token is valid, but another supervisor has taken the trainer over: leave the trainer alone."""


@dataclass(frozen=True)
class Renewed:
    """The answer to a renewal: whether to stop the trainer, and the attempt's time limit in seconds.

    `host_pauses` is whether the attempt's host is drained and stops its runs.
    """

    stop: bool
    seconds: float
    host_pauses: bool = False


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

    `outlives` is where pids count here (`processes.boot_id`), and how many seconds a trainer may outlive its lease on a
    host that cannot reach the database: False, too, while an earlier attempt may still be alive on another host, which
    `waiting` then says.
    """
    admitted = (col(Attempt.run_id) == run_id, col(Attempt.token) == token, col(Attempt.state) == AttemptState.ADMITTED)
    if outlives is not None and (elsewhere := _alive_elsewhere(session, run_id, token, host, *outlives)):
        attempts.lock(session, run_id)
        transition.write_where(session, Attempt, *admitted, waiting=elsewhere[:MOST_WAITING])
        return False
    wanted = select(Run.id).where(Run.id == run_id, Run.token == token, Run.state == RunState.STARTING).exists()
    values = {
        "state": AttemptState.CLAIMED,
        "host": host,
        "boot_id": "" if outlives is None else outlives[0],
        "lease_until": attempts.from_now(lease_seconds),
        "waiting": "",
    }
    return transition.write_where(session, Attempt, *admitted, wanted, **values) is not None


def _alive_elsewhere(session: Session, run_id: int, token: int, host: str, boot_id: str, seconds: float) -> str:
    """Where an earlier attempt of the run may still be alive, and until when, as a sentence; empty if nowhere."""
    lost = session.scalars(
        select(Attempt)
        .where(
            Attempt.run_id == run_id,
            Attempt.token < token,
            Attempt.state == AttemptState.LOST,
            Attempt.host != host,
            Attempt.boot_id != boot_id,
            col(Attempt.lease_until) > attempts.from_now(-seconds),
        )
        .order_by(col(Attempt.lease_until).desc())
    ).first()
    if lost is None or lost.lease_until is None:
        return ""
    until = lost.lease_until + timedelta(seconds=seconds)
    return f"An earlier attempt may still run on {lost.host}, out of reach; other hosts wait until {until:%F %T} UTC"


def renew_claim(
    session: Session, run_id: int, token: int, *, lease_seconds: float, waiting: str = "", generation: int = 1
) -> bool:
    """Renew the lease of a claimed attempt whose supervisor has been kept from starting, by what `waiting` says.

    Returns False if the run was asked to stop. Raises StaleError.
    """
    return _renew_claimed(session, run_id, token, waiting, lease_seconds=lease_seconds, generation=generation)


def catch_up(session: Session, run_id: int, token: int, earlier: int, progress: Progress, *, generation: int) -> None:
    """Save what the trainer of an earlier attempt had written and its supervisor had not told; raises StaleError."""
    guarded(session, run_id, token, (AttemptState.CLAIMED, AttemptState.RUNNING), generation=generation)
    attempt = session.get_one(Attempt, (run_id, earlier))
    attempt.metrics_read, attempt.events_read = progress.metrics_read, progress.events_read
    run = runs.load(session, run_id)
    save_progress(session, run, progress)
    tell_spikes(session, run, progress.spikes)


def started(
    session: Session,
    run_id: int,
    token: int,
    process: Process,
    found: Sequence[Checkpoint] | None,
    *,
    lease_seconds: float,
    supervisor: Process | None = None,
    generation: int = 1,
) -> None:
    """Record that the attempt's trainer runs as `process` under `supervisor`, and move the run to running.

    `found` are the complete checkpoints of earlier attempts, which may have ended before they reported their last one;
    None where they are not known. Raises StaleError.
    """
    guarded(
        session,
        run_id,
        token,
        (AttemptState.CLAIMED,),
        generation=generation,
        state=AttemptState.RUNNING,
        **_run_as(process),
        **_supervised_by(supervisor),
        waiting="",
        lease_until=attempts.from_now(lease_seconds),
    )
    run = runs.load(session, run_id)
    save_progress(session, run, Progress(metrics_read=0, events_read=0, checkpoints=found or ()))
    if run.state == RunState.STARTING:
        runs.move(session, run, RunState.RUNNING, started_at=run.started_at or utcnow(), phase="")
        again: dict[str, Any] = {}
        if token > 1 and kind_of(run).trains and found is not None:
            again["from_step"] = found[-1].step if found else None
        entries.tell(session, run, "run.started", **again)


def take_over(
    session: Session, run_id: int, token: int, generation: int, supervisor: Process, *, lease_seconds: float
) -> Attempt:
    """Replace the attempt's dead supervisor of `generation` by `supervisor`; the trainer runs or waits in a queue.

    Raises StaleError, also for a supervisor of another host while the lease is not out, or TakenOverError if another
    supervisor has replaced it already.
    """
    attempts.lock(session, run_id)
    known = session.get_one(Attempt, (run_id, token), populate_existing=True)
    if known.host != supervisor.host and known.lease_until is not None and known.lease_until > utcnow():
        raise StaleError(f"attempt {token} of run {run_id} may still be supervised on {known.host}")
    return guarded(
        session,
        run_id,
        token,
        (AttemptState.CLAIMED, AttemptState.RUNNING),
        generation=generation,
        next_generation=generation + 1,
        host=supervisor.host,
        **_supervised_by(supervisor),
        lease_until=attempts.from_now(lease_seconds),
    )


def _run_as(process: Process) -> dict[str, Any]:
    """The columns of an attempt that hold its trainer's process."""
    return {"boot_id": process.boot_id, "pid": process.pid, "pid_started": process.started}


def _supervised_by(supervisor: Process | None) -> dict[str, Any]:
    """The columns of an attempt that hold its supervisor's process."""
    return {
        "supervisor_boot_id": "" if supervisor is None else supervisor.boot_id,
        "supervisor_pid": None if supervisor is None else supervisor.pid,
        "supervisor_started": None if supervisor is None else supervisor.started,
    }


def renew_waiting(
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
    known = _run_as(process) | _supervised_by(supervisor)
    return _renew_claimed(session, run_id, token, waiting, lease_seconds=lease_seconds, generation=generation, **known)


def _renew_claimed(
    session: Session, run_id: int, token: int, waiting: str, *, lease_seconds: float, generation: int, **known: Any
) -> bool:
    """Renew the lease of a waiting attempt, with what is `known` of its processes; False if it is asked to stop."""
    guarded(
        session,
        run_id,
        token,
        (AttemptState.CLAIMED,),
        generation=generation,
        waiting=waiting[:MOST_WAITING],
        lease_until=attempts.from_now(lease_seconds),
        **known,
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
        lease_until=attempts.from_now(lease_seconds),
        metrics_read=progress.metrics_read,
        events_read=progress.events_read,
    )
    run = runs.load(session, run_id)
    charge(session, run, attempt, elapsed)
    if progress.step is not None and progress.step > run.step == (run.fork_step or 0):
        series.add(session, run_id, [Measured(series.START, progress.step, progress.tokens or 0, elapsed)])
    save_progress(session, run, progress, attempt)
    tell_spikes(session, run, progress.spikes)
    return Renewed(run.state == RunState.STOPPING, attempt.reserved / run.gpus, hosts.pauses(session, attempt.host))


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
    if attempt is not None and (progress.checkpoints or (progress.results and kind_of(run).goes_on)):
        attempt.charged_at_checkpoint = attempt.charged
    for checkpoint in progress.checkpoints:
        publications.add(session, run.id, checkpoint.step, checkpoint.folder)
    if progress.phase is not None and run.phase != progress.phase[:LONGEST_PHASE]:
        run.phase, run.phase_at = progress.phase[:LONGEST_PHASE], utcnow()
    if progress.step is not None:
        run.step, run.phase = progress.step, ""
    if progress.tokens is not None:
        run.tokens = progress.tokens
    if progress.unigram_entropy is not None:
        run.unigram_entropy = progress.unigram_entropy
    session.flush()
    kind_of(run).measured(session, run, progress.results)


def tell_spikes(session: Session, run: Run, spikes: Sequence[Spike]) -> None:
    """Save the steps at which the loss spiked, and tell of each spike once, however many steps it has.

    A spike ends with `QUIET` steps, a hundredth of a long run, or two logged steps, without one. One near a known one,
    as where a later attempt trains the same steps again, is not told again. After this a transaction locks no other
    balance, as it holds the project's stream.
    """
    if not spikes:
        return
    quiet = max(QUIET, run.total_steps // 100, 2 * _log_every(run))
    query = select(Point.step).where(Point.run_id == run.id, Point.series == series.SPIKE)
    known = list(session.scalars(query))
    series.add(session, run.id, [Measured(series.SPIKE, spike.step, 0, spike.loss) for spike in spikes])
    for spike in spikes:
        if all(abs(spike.step - step) > quiet for step in known):
            loss, usual = f"{spike.loss:.3f}", f"{spike.usual:.3f}"
            entries.tell(session, run, "run.spiked", step=spike.step, loss=loss, usual=usual)
        known.append(spike.step)


def _log_every(run: Run) -> int:
    """The steps from one logged loss to the next; 1 where an earlier version wrote a configuration refused today."""
    with suppress(InvalidError):
        return configs.read(run.config).training.log_every
    return 1


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
    current = attempts.lock(session, run_id)
    good = {"run_id": run_id, "token": token, "state": tuple(expected), "generation": generation}
    attempt = transition.write_if(session, Attempt, good, generation=next_generation or generation, **values)
    if current == token and attempt is None and _is_open(session, run_id, token, expected):
        raise TakenOverError(f"attempt {token} of run {run_id} has another supervisor")
    if attempt is None or current != token:
        raise StaleError(f"attempt {token} of run {run_id} is no longer {' or '.join(expected)}")
    return attempt


def _is_open(session: Session, run_id: int, token: int, states: Sequence[AttemptState]) -> bool:
    """Whether the attempt is in one of the states, whoever supervises it."""
    attempt = session.get(Attempt, (run_id, token), populate_existing=True)
    return attempt is not None and attempt.state in states
