"""Control of launched runs: cancelling, pausing, preempting, resuming, extending, pausing what nobody can pay for."""

import contextlib
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, func, update
from sqlalchemy.orm import Session
from sqlmodel import col, select
from sqlmodel.sql.expression import SelectOfScalar

from broker.allocations import ledger, nodes, payers
from broker.allocations.allocations import Allocation, AllocationState
from broker.allocations.ledger import BALANCE_LEFT, Balance
from broker.allocations.pools import Pool
from broker.end_reasons import EndReason
from broker.runs import attempts, entries, estimates, launching, runs, settlement, sweeps
from broker.runs.kinds.kind import kind_of
from broker.runs.launching import LONGEST_TIME_LIMIT, Receipt
from broker.runs.runs import ACTIVE, ENDED, Run, RunState
from projects import people, projects, quotas, rights
from projects.db import transition
from projects.db.columns import utcnow
from projects.errors import ConflictError, InvalidError
from projects.people import Actor, Person
from projects.projects import Project, Stage
from projects.quotas import QuotaKind
from projects.rights import Act


def cancel(session: Session, actor: Actor, run_id: int) -> None:
    """Cancel a run; a running one writes a checkpoint first."""
    run, person = _of_member(session, actor, run_id)
    _cancel(session, run, EndReason.CANCELLED, f"cancelled by {people.mark(person)}", by=person)


def check_may_cancel(session: Session, actor: Actor, run_id: int) -> Run:
    """The run, where the actor may cancel it now; raises the errors of `cancel`. Only reads."""
    run = runs.load(session, run_id)
    rights.check(session, actor, session.get_one(Project, run.project_id), Act.USE_COMPUTE)
    if not is_cancellable(run):
        raise ConflictError(f"Run {run.id} is already {run.state}.")
    return run


def pause(session: Session, actor: Actor, run_id: int) -> None:
    """Pause a run, which frees its GPUs; a running one writes a checkpoint first."""
    run, person = _of_member(session, actor, run_id)
    _require_training(run)
    quotas.check(session, actor, QuotaKind.RUN_CHANGE, run.project_id)
    suspend(session, run, EndReason.PAUSED, f"paused by {people.mark(person)}", by=person)


def suspend(
    session: Session,
    run: Run,
    end_reason: EndReason,
    reason: str,
    *,
    by: Person | None = None,
    unfunded: bool = False,
) -> None:
    """Pause a run: a queued one at once, a running one, or one that makes way, after it has written a checkpoint.

    An `unfunded` run goes on by itself once its allocation can pay for it. Raises ConflictError if the run has ended,
    is paused or is stopping.
    """
    values: dict[str, Any] = {"reason": reason, "end_reason": end_reason, "unfunded": unfunded}
    if run.state == RunState.QUEUED:
        runs.move(session, run, RunState.PAUSED, **values)
        settlement.tell_paused(session, run, by=by)
    elif run.state in (RunState.STARTING, RunState.RUNNING) or makes_way(run):
        values["stops_as"] = RunState.PAUSED
        if makes_way(run):
            transition.write_as_seen(session, run, values, ["state", "stops_as", "token"], name=f"Run {run.id}")
        else:
            runs.move(session, run, RunState.STOPPING, **values)
        why = "" if by else reason
        entries.tell(session, run, "run.stopping", by=by, why=why, end_reason=end_reason, stops_as=RunState.PAUSED)
    else:
        raise ConflictError(f"Run {run.id} is {run.state}; only one that waits or runs can be paused.")


def preempt(session: Session, run_ids: Sequence[int], for_run: int) -> None:
    """Ask running runs of a pool to write a checkpoint and wait again, all for one waiting run.

    Raises ConflictError, with nothing changed, where one of them does not run any more or was preempted lately, where
    the other no longer waits or is being made way for already (two schedulers may have planned at the same time), or
    where the pool preempts no longer.
    """
    waiting = runs.load(session, for_run)
    pool = session.get_one(Pool, waiting.pool_id)
    session.refresh(pool, with_for_update={"key_share": True})
    session.refresh(waiting)
    if not pool.preempt_after:
        raise ConflictError(f"The pool “{pool.name}” preempts no runs.")
    if waiting.state != RunState.QUEUED:
        raise ConflictError(f"Run {for_run} is {waiting.state}; no run makes way for it.")
    making_way = (Run.preempted_for == for_run, Run.state == RunState.STOPPING, Run.stops_as == RunState.QUEUED)
    if session.scalar(select(func.count()).where(*making_way)):
        raise ConflictError(f"Other runs are already making way for run {for_run}.")
    lately = attempts.from_now(-pool.preempt_after)
    for run_id in sorted(run_ids):
        attempts.lock(session, run_id)
        run = runs.load(session, run_id)
        session.refresh(run)
        if run.state != RunState.RUNNING or (run.preempted_at is not None and run.preempted_at > lately):
            raise ConflictError(f"Run {run_id} is {run.state}, or was recently preempted; it does not make way now.")
        reason = f"it makes way for run {for_run} of project P{waiting.project_id}, and waits again after a checkpoint"
        runs.move(
            session,
            run,
            RunState.STOPPING,
            stops_as=RunState.QUEUED,
            reason=reason,
            end_reason=EndReason.PREEMPTED,
            preempted_at=utcnow(),
            preempted_for=for_run,
        )
        about: dict[str, Any] = {"for_run": for_run, "for_project": waiting.project_id}
        stops_as, end_reason = RunState.QUEUED, EndReason.PREEMPTED
        entries.tell(session, run, "run.stopping", end_reason=end_reason, stops_as=stops_as, **about)


def resume(
    session: Session,
    actor: Actor,
    run_id: int,
    gpus: int | None = None,
    time_limit: str | None = None,
    allocation_id: int | None = None,
) -> Receipt:
    """Queue a paused run again, to go on from its last checkpoint, on the same or another number of GPUs.

    `time_limit` is the time from here on; without it, the run has the rest of its old time limit. Raises DomainError.
    """
    run, person = _of_member(session, actor, run_id)
    if run.state != RunState.PAUSED:
        raise ConflictError(f"Run {run.id} is {run.state}; only a paused run can be resumed.")
    project = session.get_one(Project, run.project_id)
    if not projects.may_compute(project):
        raise ConflictError(f"“{project.title}” is {project.stage}; runs are resumed while a project is under way.")
    count = run.gpus if gpus is None else gpus
    seconds = run.time_limit - run.used if time_limit is None else launching.parse_time_limit(time_limit)
    own = payers.successor(session, run.allocation_id)
    pays = allocation_id or payers.payer(session, run.allocation_id, max(count, 1) * seconds) or own
    allocation = payers.spendable(session, project, pays)
    pool = session.get_one(Pool, allocation.pool_id)
    nodes.check(pool, count)
    host_memory = run.host_memory
    if kind_of(run).trains:
        config = estimates.config_of(run)
        launching.check_fit(config, count, pool)
        host_memory = launching.host_memory(config, count, pool)
    launching.check_left(session, allocation.id, count, seconds)
    runs.move(
        session,
        run,
        RunState.QUEUED,
        reason="",
        end_reason=None,
        unfunded=False,
        gpus=count,
        host_memory=host_memory,
        time_limit=run.used + seconds,
        allocation_id=allocation.id,
        pool_id=pool.id,
        queued_at=utcnow(),
    )
    entries.tell(session, run, "run.resumed", by=person, gpus=count, time_limit=seconds, step=run.step)
    return launching.receipt(session, run)


def resumable_on(session: Session, run_id: int) -> list[tuple[int, bool]]:
    """The numbers of the pool's GPUs that the run's configuration fits, each with whether it is the present one."""
    run = runs.load(session, run_id)
    if not kind_of(run).trains:
        return [(run.gpus, True)]
    config = estimates.config_of(run)
    pool = session.get_one(Pool, run.pool_id)
    fitting = []
    for count in sorted({*nodes.sizes(pool), run.gpus}):
        with contextlib.suppress(InvalidError):
            nodes.check(pool, count)
            launching.check_fit(config, count, pool)
            fitting.append((count, count == run.gpus))
    return fitting


def extend(session: Session, actor: Actor, run_id: int, time: str) -> Receipt:
    """Extend the time limit by a time such as “30m”; a running run reserves the cost at once. Raises DomainError."""
    run, person = _of_member(session, actor, run_id)
    if not kind_of(run).can_be_extended:
        _require_training(run)
    seconds = launching.parse_time_limit(time)
    if run.state not in ACTIVE - {RunState.STOPPING} | {RunState.PAUSED}:
        raise ConflictError(f"Run {run.id} is {run.state}; its time limit no longer matters.")
    if run.time_limit - run.used + seconds > LONGEST_TIME_LIMIT:
        raise InvalidError("A run may have at most 720 hours left; extend it by less, or later.")
    quotas.check(session, actor, QuotaKind.RUN_CHANGE)
    if run.state in (RunState.STARTING, RunState.RUNNING):
        _reserve_more(session, run, run.gpus * seconds)
    else:
        rest = run.time_limit - run.used + seconds
        pays = payers.payer(session, run.allocation_id, run.gpus * rest) or run.allocation_id
        launching.check_left(session, pays, run.gpus, rest)
        if pays != run.allocation_id:
            transition.write_as_seen(session, run, {"allocation_id": pays}, ["state", "token"], name=f"Run {run.id}")
    run.time_limit += seconds
    session.flush()
    quotas.check_project(session, QuotaKind.RUN_CHANGE, run.project_id)
    entries.tell(session, run, "run.extended", by=person, seconds=seconds, time_limit=run.time_limit)
    return launching.receipt(session, run)


def _reserve_more(session: Session, run: Run, seconds: int) -> None:
    """Reserve more for a run that is under way, whose allocation stays the one that holds its reservation."""
    try:
        attempts.extend(session, run, seconds)
    except ConflictError as refused:
        other = payers.naming_another(session, run.project_id, seconds)
        hint = f"{other} Pause the run, and resume it on that one." if other else ""
        raise ConflictError(f"{refused}{hint}") from refused


def unpayable(session: Session, run: Run) -> str | None:
    """Why the allocation cannot pay for the rest of the run, even after other runs end; None if it can."""
    allocation = session.get_one(Allocation, run.allocation_id)
    account = ledger.account(session, run.allocation_id)
    cost = run.gpus * attempts.remaining(session, run)
    if allocation.state != AllocationState.APPROVED:
        why = f"its allocation is {allocation.state}"
    elif allocation.until <= utcnow():
        why = f"its allocation ended on {allocation.until:%Y-%m-%d}"
    elif cost > account.left and not account.reserved:
        needed, left = ledger.too_much(cost, account.left)
        unit = session.get_one(Pool, run.pool_id).unit
        why = f"it may cost {needed} {unit.in_hours} and its allocation has {left} left"
    else:
        return None
    able = payers.able_to_pay(session, run.project_id, max(cost, 1))
    return f"{why}; /run resume lets allocation {able[0].id} pay" if able else why


def pause_unfunded(session: Session, run_id: int) -> bool:
    """Pause a queued run until its allocation can pay for it; False if it can by now or the run is not queued."""
    run = runs.load(session, run_id)
    why = unpayable(session, run)
    if run.state != RunState.QUEUED or why is None:
        return False
    suspend(session, run, EndReason.UNFUNDED, why, unfunded=True)
    return True


def hold(session: Session, whose: ColumnElement[bool]) -> None:
    """Lock the runs of a condition that have not ended: before the balance, in the order that supervisors lock in."""
    open_ = select(Run.id).where(whose, col(Run.state).not_in(ENDED)).order_by(col(Run.id))
    session.execute(open_.with_for_update(key_share=True)).all()


def carry_over(session: Session, earlier: Allocation, later: Allocation) -> Sequence[int]:
    """Move the queued and paused runs of an allocation, live or ended, to its renewal on the same pool; their ids.

    A running run moves when its attempt ends, since its reservation belongs to the earlier allocation.
    """
    waits = col(Run.state).in_((RunState.QUEUED, RunState.PAUSED))
    moved = session.execute(
        update(Run)
        .where(col(Run.allocation_id) == earlier.id, col(Run.pool_id) == later.pool_id, waits)
        .values(allocation_id=later.id)
        .returning(col(Run.id))
    )
    return sorted(moved.scalars())


def stop_all(session: Session, allocation_id: int, end_reason: EndReason, reason: str) -> Sequence[int]:
    """Pause the queued and running runs of a revoked or expired allocation; returns their ids."""
    stays = (col(Run.state) == RunState.STOPPING) & (col(Run.stops_as) != RunState.QUEUED)
    found = session.scalars(
        select(Run)
        .where(Run.allocation_id == allocation_id, col(Run.state).in_(ACTIVE), ~stays)
        .order_by(col(Run.id))
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    ).all()
    for run in found:
        suspend(session, run, end_reason, reason, unfunded=True)
    return [run.id for run in found]


def cancel_all(session: Session, project_id: int, reason: str) -> Sequence[int]:
    """Cancel the runs of an ended project, running ones after a checkpoint; returns their ids."""
    found = session.scalars(select(Run).where(Run.project_id == project_id, cancellable()).order_by(col(Run.id))).all()
    for run in found:
        attempts.lock(session, run.id)
        session.refresh(run)
        _cancel(session, run, EndReason.PROJECT_ENDED, reason)
    return [run.id for run in found]


def cancellable() -> ColumnElement[bool]:
    """The condition for runs that have neither ended nor are being cancelled."""
    stops = (col(Run.state) == RunState.STOPPING) & (col(Run.stops_as) == RunState.CANCELLED)
    return col(Run.state).not_in(ENDED) & ~stops


def is_cancellable(run: Run) -> bool:
    """Whether the run has neither ended nor is being cancelled."""
    return run.state not in ENDED and not (run.state == RunState.STOPPING and run.stops_as == RunState.CANCELLED)


def revivable(session: Session) -> Sequence[int]:
    """The runs that were paused as unfunded and whose allocation can pay for them again."""
    return session.scalars(_revivable().order_by(col(Run.queued_at), col(Run.id))).all()


def revive(session: Session, run_id: int) -> bool:
    """Queue an unfunded run again; False if it was resumed or cancelled meanwhile, or is still unfunded."""
    if session.scalars(_revivable().where(Run.id == run_id)).one_or_none() is None:
        return False
    run = runs.load(session, run_id)
    runs.move(session, run, RunState.QUEUED, reason="", end_reason=None, unfunded=False, queued_at=utcnow())
    why = "its allocation can pay for it again"
    seconds = attempts.remaining(session, run)
    entries.tell(session, run, "run.resumed", why=why, gpus=run.gpus, time_limit=seconds, step=run.step)
    return True


def _revivable() -> SelectOfScalar[int]:
    """The query for the unfunded runs whose allocation has enough GPU-seconds left now."""
    return (
        select(Run.id)
        .join(Project, col(Project.id) == Run.project_id)
        .join(Allocation, col(Allocation.id) == Run.allocation_id)
        .join(Balance, col(Balance.allocation_id) == Run.allocation_id)
        .where(
            Run.state == RunState.PAUSED,
            Run.unfunded,
            col(Project.stage).not_in((Stage.PAUSED, *projects.ENDED)),
            payers.spendable_now(),
            col(Run.gpus) * (col(Run.time_limit) - Run.used) <= BALANCE_LEFT,
        )
    )


def _of_member(session: Session, actor: Actor, run_id: int) -> tuple[Run, Person]:
    """The run, locked so that the member need not try again while its supervisor writes, and the actor's person."""
    run = runs.load(session, run_id)
    attempts.lock(session, run_id)
    session.refresh(run)
    return run, rights.hold_member(session, actor, session.get_one(Project, run.project_id))


def _cancel(session: Session, run: Run, end_reason: EndReason, reason: str, *, by: Person | None = None) -> None:
    """Cancel a run: a waiting one at once, a running one after a checkpoint; without `by`, the entry has the reason."""
    values: dict[str, Any] = {"reason": reason, "end_reason": end_reason}
    told: dict[str, Any] = {"by": by, "why": "" if by else reason, "end_reason": end_reason}
    if run.state in (RunState.QUEUED, RunState.PAUSED):
        runs.move(session, run, RunState.CANCELLED, ended_at=utcnow(), **values)
        entries.tell(session, run, "run.cancelled", spent=runs.spent(session, run.id), **told)
        sweeps.tell_if_over(session, run)
    elif run.state == RunState.STOPPING and run.stops_as != RunState.CANCELLED:
        ends = {"stops_as": RunState.CANCELLED, "unfunded": False, **values}
        transition.write_as_seen(session, run, ends, ["state", "token"], name=f"Run {run.id}")
        entries.tell(session, run, "run.stopping", **told)
    elif run.state in ACTIVE and run.state != RunState.STOPPING:
        runs.move(session, run, RunState.STOPPING, stops_as=RunState.CANCELLED, **values)
        entries.tell(session, run, "run.stopping", **told)
    else:
        raise ConflictError(f"Run {run.id} is already {run.state}.")


def makes_way(run: Run) -> bool:
    """Whether the run is stopping in order to wait again."""
    return run.state == RunState.STOPPING and run.stops_as == RunState.QUEUED


def _require_training(run: Run) -> None:
    """Raise ConflictError unless the run trains."""
    if not kind_of(run).trains:
        raise ConflictError(f"{kind_of(run).what_it_is(run)}, {kind_of(run).not_paused}.")
