"""Control of whole sweeps: all runs are cancelled, paused or resumed by the rules of a single run, or none is."""

from collections.abc import Sequence

from sqlalchemy.orm import Session
from sqlmodel import col

from broker.runs import control, sweeps
from broker.runs.runs import Run, RunState, Sweep
from broker.runs.sweeps import SweepReceipt
from projects import quotas, rights
from projects.errors import ConflictError
from projects.people import Actor, Person
from projects.projects import Project
from projects.quotas import QuotaKind
from projects.rights import Act

PAUSABLE = frozenset({RunState.QUEUED, RunState.STARTING, RunState.RUNNING})


def cancel(session: Session, actor: Actor, sweep_id: int) -> int:
    """Cancel the runs of a sweep that have not ended, running ones after a checkpoint; returns how many."""
    sweep, members, person = _held(session, actor, sweep_id)
    going = _cancellable(sweep_id, members)
    sweeps.tell(session, sweep, "sweep.stopping", by=person, count=len(going), stops_as=RunState.CANCELLED)
    for run in going:
        control.cancel(session, actor, run.id)
    return len(going)


def check_may_cancel(session: Session, actor: Actor, sweep_id: int) -> Sequence[Run]:
    """The runs that `cancel` would cancel now; raises its errors. Only reads."""
    project = session.get_one(Project, sweeps.load(session, sweep_id).project_id)
    rights.check(session, actor, project, Act.USE_COMPUTE)
    return _cancellable(sweep_id, sweeps.members(session, sweep_id))


def pause(session: Session, actor: Actor, sweep_id: int) -> int:
    """Pause the runs of a sweep that wait or run; returns how many. Raises the errors of a run's pause."""
    sweep, members, person = _held(session, actor, sweep_id)
    going = [run for run in members if run.state in PAUSABLE or control.makes_way(run)]
    if not going:
        raise ConflictError(f"Sweep {sweep_id} has no run that waits or runs; only those can be paused.")
    # Before the first entry: it locks the person, and an entry the project's stream.
    quotas.check(session, actor, QuotaKind.RUN_CHANGE, sweep.project_id, acts=len(going))
    sweeps.tell(session, sweep, "sweep.stopping", by=person, count=len(going), stops_as=RunState.PAUSED)
    for run in going:
        control.pause(session, actor, run.id)
    return len(going)


def resume(session: Session, actor: Actor, sweep_id: int) -> SweepReceipt:
    """Queue the paused runs of a sweep again, each as it was. Raises the errors of a run's resumption."""
    sweep, members, person = _held(session, actor, sweep_id)
    paused = [run for run in members if run.state == RunState.PAUSED]
    if not paused:
        raise ConflictError(f"Sweep {sweep_id} has no paused run; only those can be resumed.")
    sweeps.tell(session, sweep, "sweep.resumed", by=person, count=len(paused))
    for run in paused:
        control.resume(session, actor, run.id)
    return sweeps.receipt(session, sweep_id)


def _held(session: Session, actor: Actor, sweep_id: int) -> tuple[Sweep, Sequence[Run], Person]:
    """The sweep with its runs, locked like a single run that a member controls, and the actor's person."""
    sweep = sweeps.load(session, sweep_id)
    control.hold(session, col(Run.sweep_id) == sweep_id)
    person = rights.hold_member(session, actor, session.get_one(Project, sweep.project_id))
    return sweep, sweeps.members(session, sweep_id), person


def _cancellable(sweep_id: int, members: Sequence[Run]) -> Sequence[Run]:
    going = [run for run in members if control.is_cancellable(run)]
    if not going:
        raise ConflictError(f"Sweep {sweep_id} has no run left to cancel.")
    return going
