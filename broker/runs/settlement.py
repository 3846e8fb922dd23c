"""How attempts end (settled, expired or withdrawn) and where that takes their run: over, paused or queued again."""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker import publications
from broker.allocations import ledger, payers
from broker.allocations.pools import Pool
from broker.end_reasons import INFRASTRUCTURE, EndReason
from broker.runs import attempts, entries, leases, runs, sweeps
from broker.runs.attempts import OPEN, Attempt, AttemptState
from broker.runs.kinds.kind import kind_of
from broker.runs.progress import Ending, Progress
from broker.runs.runs import ENDED, Run, RunState
from projects.db import transition
from projects.db.columns import utcnow
from projects.people import Person
from trainer.contract import Status

MOST_LOST = 10
"""A run fails for good after so many attempts in a row that the infrastructure ended before a checkpoint."""
FIRST_PAUSE, LONGEST_PAUSE = timedelta(seconds=15), timedelta(hours=1)
"""The pause before another attempt after two such losses in a row; it doubles with each."""
EXTENDED = "it was extended while it stopped for its time limit, and goes on from its checkpoint"


def withdraw(session: Session, run_id: int, token: int) -> None:
    """End an attempt whose run was stopped before a worker claimed it; raises StaleError if one has claimed it."""
    leases.guarded(
        session,
        run_id,
        token,
        (AttemptState.ADMITTED,),
        state=AttemptState.ENDED,
        reason="it was not claimed",
        end_reason=EndReason.NOT_CLAIMED,
    )
    run = runs.load(session, run_id)
    ledger.release(session, run.allocation_id, run_id, token)
    _stop(session, run)


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
    """End an attempt: charge its last seconds, save its progress, release its reservation, and move the run on.

    The run fails for good after `most` failed attempts since its last checkpoint; an attempt that was asked to stop
    does not count as failed. A fault of the infrastructure refunds what was charged since the last checkpoint, unless
    the attempt was asked to stop; so does a preemption. Raises StaleError.
    """
    attempt = leases.guarded(
        session,
        run_id,
        token,
        (AttemptState.CLAIMED, AttemptState.RUNNING),
        generation=generation,
        state=AttemptState.ENDED,
        lease_until=None,
        reason=ending.reason,
        end_reason=ending.end_reason,
        metrics_read=progress.metrics_read,
        events_read=progress.events_read,
    )
    run = runs.load(session, run_id)
    if ending.status == Status.DONE and (others := kind_of(run).renews_cards_of(run)):
        publications.renew_cards(session, others, at_once=False)  # locks repositories, and so comes before the ledger
    leases.charge(session, run, attempt, elapsed)
    leases.save_progress(session, run, progress, attempt)
    ledger.release(session, run.allocation_id, run_id, token)
    if ending.fault and run.state != RunState.STOPPING:
        _refund(session, run, attempt, ending.reason)
    leases.tell_spikes(session, run, progress.spikes)
    if ending.status == Status.DONE:
        kind_of(run).finished(session, run, ending)
        _end(session, run, RunState.FINISHED, EndReason.DONE, ending.reason, ending)
        kind_of(run).followed(session, run)
    elif run.state == RunState.STOPPING:
        goes_on = run.stops_as != RunState.CANCELLED
        if ending.status > 0 and ending.status != Status.STOPPED and not (goes_on and ending.transient):
            _end(session, run, RunState.FAILED, ending.end_reason, ending.reason)
        else:
            if run.stops_as == RunState.QUEUED:
                _refund(session, run, attempt, run.reason, preempted=True)
            _stop(session, run)
    elif ending.timed_out and attempts.remaining(session, run) >= 1:
        _retry(session, run, ending.end_reason, EXTENDED, utcnow(), most)
    elif ending.timed_out:
        _end(session, run, RunState.TIMED_OUT, EndReason.TIME_LIMIT, "it reached its time limit")
    elif ending.status == Status.STOPPED:
        _retry(session, run, ending.end_reason, ending.reason, utcnow(), most)
    elif ending.transient or ending.status < 0:
        attempt.failed = True
        _retry(session, run, ending.end_reason, ending.reason, utcnow(), most)
    else:
        _end(session, run, RunState.FAILED, ending.end_reason, ending.reason)


def expire(
    session: Session, attempt: Attempt, *, lease_seconds: float, grace_seconds: float, most: int, said: str = ""
) -> bool:
    """Give up an attempt whose lease has run out; it holds its devices until its trainer must surely have stopped.

    `said` is why its trainer had failed before, where that is known. Returns False where the attempt was renewed or
    ended at the last moment.
    """
    attempts.lock(session, attempt.run_id)
    if attempt.lease_until is None:
        return False
    stopped_by = attempt.lease_until + timedelta(seconds=grace_seconds)
    heard_at = attempt.lease_until - timedelta(seconds=lease_seconds)
    reason = f"its host {attempt.host} was last heard from at {heard_at:%F %T} UTC"
    if said:
        reason = f"{said.removesuffix('.')}; {reason}"
    run_out = (
        col(Attempt.run_id) == attempt.run_id,
        col(Attempt.token) == attempt.token,
        col(Attempt.state).in_(OPEN),
        col(Attempt.lease_until) == attempt.lease_until,
        col(Attempt.lease_until) < utcnow(),
    )
    lost = transition.write_where(
        session,
        Attempt,
        *run_out,
        state=AttemptState.LOST,
        failed=True,
        reason=reason,
        end_reason=EndReason.LEASE_EXPIRED,
        lease_until=stopped_by,
    )
    if lost is None:
        return False
    run = runs.load(session, attempt.run_id)
    ledger.release(session, run.allocation_id, run.id, lost.token)
    _refund(session, run, lost, reason)
    if run.state == RunState.STOPPING:
        _stop(session, run, not_before=stopped_by)
    elif why := kind_of(run).not_retried(run, lost.host):
        _end(session, run, RunState.FAILED, EndReason.LEASE_EXPIRED, why)
    else:
        _retry(session, run, EndReason.LEASE_EXPIRED, reason, stopped_by, most)
    return True


def _refund(session: Session, run: Run, attempt: Attempt, why: str, **told: Any) -> None:
    """Refund what the attempt was charged since its last complete checkpoint, and give the run that time back."""
    seconds = attempt.charged - attempt.charged_at_checkpoint
    if seconds <= 0:
        return
    ledger.refund(session, run.allocation_id, run.id, attempt.token, seconds, why)
    attempt.refunded = seconds
    run.used -= seconds // run.gpus
    session.flush()
    entries.tell(session, run, "run.refunded", why=why, seconds=seconds, **told)


def _retry(session: Session, run: Run, end_reason: EndReason, reason: str, not_before: datetime, most: int) -> None:
    """Queue the run for another attempt, or end it after too many failed attempts or at its time limit."""
    session.flush()
    failed, lost = _failed_in_a_row(session, run)
    if failed >= most or lost >= max(most, MOST_LOST):
        many = f"{failed} attempts failed" if failed >= most else f"{lost} attempts were lost before a checkpoint"
        _end(session, run, RunState.FAILED, EndReason.ATTEMPTS_EXHAUSTED, f"{many}; the last one: {reason}")
        return
    if attempts.remaining(session, run) < 1:
        _end(session, run, RunState.TIMED_OUT, EndReason.TIME_LIMIT, "it reached its time limit")
        return
    if lost > 1:
        not_before = max(not_before, utcnow() + min(FIRST_PAUSE * 2 ** (lost - 2), LONGEST_PAUSE))
    pays = payers.successor(session, run.allocation_id)
    if not_before > utcnow():
        reason = f"{reason.removesuffix('.')}; the next attempt begins after {not_before:%F %T} UTC"
    runs.move(session, run, RunState.QUEUED, reason=reason, not_before=not_before, allocation_id=pays)
    entries.tell(session, run, "run.requeued", why=reason, end_reason=end_reason)


def _failed_in_a_row(session: Session, run: Run) -> tuple[int, int]:
    """How many of the run's last attempts failed, and how many the infrastructure ended, since its last checkpoint.

    An attempt that did steps until the infrastructure ended it has not failed.
    """
    rows = session.execute(
        select(Attempt.failed, Attempt.end_reason, Attempt.metrics_read, Attempt.charged_at_checkpoint)
        .where(Attempt.run_id == run.id)
        .order_by(col(Attempt.token).desc())
    )
    failed = lost = 0
    for counts, end_reason, metrics_read, charged_at_checkpoint in rows:
        infrastructure = end_reason in INFRASTRUCTURE
        lost += counts and infrastructure
        failed += counts and not (infrastructure and metrics_read)
        if charged_at_checkpoint:
            break
    return failed, lost


def _stop(session: Session, run: Run, **values: object) -> None:
    """Bring a run that was asked to stop to the state asked for: paused, queued again, or cancelled."""
    if run.stops_as == RunState.PAUSED:
        pays = payers.successor(session, run.allocation_id)
        runs.move(session, run, RunState.PAUSED, allocation_id=pays, **values)
        tell_paused(session, run)
    elif run.stops_as == RunState.QUEUED:
        _wait_again(session, run, **values)
    else:
        _end(session, run, RunState.CANCELLED, run.end_reason, run.reason)


def _wait_again(session: Session, run: Run, **values: object) -> None:
    """Queue a run that has made way, at its earlier place; end it where its time limit is used up."""
    if attempts.remaining(session, run) < 1:
        _end(session, run, RunState.TIMED_OUT, EndReason.TIME_LIMIT, "it reached its time limit")
        return
    newest, other = publications.newest(session, run.id), session.get_one(Run, run.preempted_for)
    step = newest.step if newest else run.fork_step or 0
    free = f"when {session.get_one(Pool, run.pool_id).unit.plural} are free"
    reason = f"Preempted for run {other.id} of project P{other.project_id}; continues from step {step:,} {free}"
    pays = payers.successor(session, run.allocation_id)
    runs.move(session, run, RunState.QUEUED, reason=reason, end_reason=None, allocation_id=pays, **values)
    entries.tell(session, run, "run.preempted", for_run=other.id, for_project=other.project_id, step=step)


def tell_paused(session: Session, run: Run, *, by: Person | None = None) -> None:
    """Append the entry that the run is paused."""
    spent = runs.spent(session, run.id)
    entries.tell(
        session, run, "run.paused", by=by, why=run.reason, end_reason=run.end_reason, step=run.step, spent=spent
    )


def _end(
    session: Session, run: Run, to: RunState, end_reason: str | None, reason: str, ending: Ending | None = None
) -> None:
    """End the run in one of the final states, with an entry."""
    if to not in ENDED:
        raise ValueError(f"{to} is not an end")
    sample = ending.sample if ending else ""
    runs.move(session, run, to, reason=reason, end_reason=end_reason, ended_at=utcnow(), sample=sample)
    spent = runs.spent(session, run.id)
    kind = {RunState.TIMED_OUT: "run.timed_out"}.get(to, f"run.{to}")
    entries.tell(
        session,
        run,
        kind,
        why=reason,
        end_reason=end_reason,
        step=run.step,
        spent=spent,
        text=sample,
        **(kind_of(run).told_at_end(session, run, ending) if ending else {}),
    )
    sweeps.tell_if_over(session, run)
