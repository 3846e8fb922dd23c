"""What would end with a run, a sweep, an allocation or a project, to be told before it is ended. Only reads."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker.allocations import ledger, units
from broker.allocations.allocations import LIVE, Allocation, AllocationState
from broker.allocations.pools import Pool
from broker.allocations.units import Amounts
from broker.reviews import reviews
from broker.runs import control, sweep_control
from broker.runs.attempts import OPEN, Attempt
from broker.runs.runs import ACTIVE, Run, RunKind, RunState
from projects import lifecycle
from projects.people import Actor
from projects.projects import Stage
from projects.rights import Act

WAITING = frozenset({RunState.QUEUED, RunState.PAUSED})


@dataclass(frozen=True)
class Ending:
    """The ids of what would end, and the amounts that return.

    The runs `stopping` end when their trainers have stopped, after a `checkpoint` where all of them train; those
    `waiting` end at once. What the former do not use of `reserved` returns when they have ended. The live `allocations`
    return `returned` to their grants at once, and the open `requests` are withdrawn.
    """

    stopping: Sequence[int]
    waiting: Sequence[int]
    checkpoint: bool
    reserved: Amounts
    returned: Amounts
    allocations: Sequence[int] = ()
    requests: Sequence[int] = ()


def of_run(session: Session, actor: Actor, run_id: int) -> Ending:
    """What a run's cancellation would end; raises as `control.cancel`."""
    return _of_runs(session, [control.check_may_cancel(session, actor, run_id)])


def of_sweep(session: Session, actor: Actor, sweep_id: int) -> Ending:
    """What a sweep's cancellation would end; raises as `sweep_control.cancel`."""
    return _of_runs(session, sweep_control.check_may_cancel(session, actor, sweep_id))


def of_allocation(session: Session, actor: Actor, allocation_id: int) -> Ending:
    """What would end with an allocation that is revoked, whose runs pause; raises as `reviews.check_may_revoke`."""
    reviews.check_may_revoke(session, actor, allocation_id)
    query = select(Run).where(Run.allocation_id == allocation_id, control.cancellable(), col(Run.state).in_(ACTIVE))
    runs = session.scalars(query.order_by(col(Run.id))).all()
    return _of_runs(session, runs, [session.get_one(Allocation, allocation_id)])


def of_project(session: Session, actor: Actor, project_id: int, act: Act, to: Stage) -> Ending:
    """What would end with a project that is completed or stopped; raises as `lifecycle.check_may`."""
    lifecycle.check_may(session, actor, project_id, act, to=to)
    query = select(Run).where(Run.project_id == project_id, control.cancellable()).order_by(col(Run.id))
    of_it = select(Allocation).where(Allocation.project_id == project_id).order_by(col(Allocation.id))
    return _of_runs(session, session.scalars(query).all(), session.scalars(of_it).all())


def _of_runs(session: Session, runs: Sequence[Run], allocations: Sequence[Allocation] = ()) -> Ending:
    stopping = [run for run in runs if run.state not in WAITING]
    reserved: Amounts = {}
    for run in stopping:
        attempt = session.get(Attempt, (run.id, run.token))
        if attempt is not None and attempt.state in OPEN:
            reserved = units.plus(reserved, session.get_one(Pool, run.pool_id).unit, attempt.reserved)
    live = [each for each in allocations if each.state in LIVE]
    returned: Amounts = {}
    for each in live:
        account = ledger.account(session, each.id)
        returned = units.plus(returned, session.get_one(Pool, each.pool_id).unit, account.left + account.committed)
    return Ending(
        stopping=[run.id for run in stopping],
        waiting=[run.id for run in runs if run.state in WAITING],
        checkpoint=all(run.kind == RunKind.TRAIN and run.state != RunState.STARTING for run in stopping),
        reserved=reserved,
        allocations=[each.id for each in live],
        requests=[each.id for each in allocations if each.state == AllocationState.REQUESTED],
        returned=returned,
    )
