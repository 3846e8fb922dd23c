"""Samples that members ask for: how a run's last checkpoint continues a text, as a short charged run of its own."""

from sqlalchemy.orm import Session
from sqlmodel import select

from broker import publications
from broker.publications import Disk
from broker.runs import launching, runs
from broker.runs.launching import Receipt
from broker.runs.runs import SAMPLE_TIME_LIMIT, Run, RunKind
from projects import lifecycle, quotas, text
from projects.errors import ConflictError
from projects.lifecycle import Project
from projects.people import Actor
from projects.quotas import QuotaKind
from projects.rights import Act

LONGEST_PROMPT = 1_000


def check(session: Session, actor: Actor, run_id: int) -> None:
    """Raise unless the actor may sample from the run now. Only reads: a form may be opened on it."""
    run = _sampled(session, run_id)
    project = session.get_one(Project, run.project_id)
    lifecycle.check(session, actor, project, Act.USE_COMPUTE)
    _demand_payable(session, project, run)


def sample(session: Session, actor: Actor, request_id: str, run_id: int, prompt: str) -> Receipt:
    """Queue a sample that continues the prompt; a repeat of the same request returns the same sample."""
    earlier = session.scalars(select(Run).where(Run.request_id == request_id)).one_or_none()
    if earlier is not None:
        return launching.receipt(session, earlier)
    parent = _sampled(session, run_id)
    project = session.get_one(Project, parent.project_id)
    person = lifecycle.require_member(session, actor, project)
    quotas.check(session, actor, QuotaKind.LAUNCH)
    wanted = text.prose("The prompt", prompt, most=LONGEST_PROMPT)
    allocation_id, pool_id = _demand_payable(session, project, parent)
    run = Run(
        request_id=request_id,
        kind=RunKind.SAMPLE,
        project_id=project.id,
        allocation_id=allocation_id,
        pool_id=pool_id,
        requested_by=person.id,
        parent_id=parent.id,
        recipe=parent.recipe,
        overrides={},
        config="",
        total_steps=0,
        gpus=1,
        time_limit=SAMPLE_TIME_LIMIT,
        prompt=wanted,
    )
    session.add(run)
    session.flush()
    runs.tell(session, run, "run.queued", by=person, recipe=parent.recipe, gpus=1, time_limit=SAMPLE_TIME_LIMIT)
    return launching.receipt(session, run)


def _sampled(session: Session, run_id: int) -> Run:
    """The run, where it trains and has left a checkpoint on this disk."""
    run = runs.load(session, run_id)
    if run.kind != RunKind.TRAIN:
        raise ConflictError(f"Run {run_id} does not train; only a run that does can be sampled from.")
    checkpoint = publications.newest(session, run_id)
    if checkpoint is None or checkpoint.disk != Disk.KEPT:
        raise ConflictError(f"Run {run_id} has no checkpoint on this disk to sample from.")
    return run


def _demand_payable(session: Session, project: Project, run: Run) -> tuple[int, int]:
    """The allocation that pays, the run's own while it is good, and its pool."""
    if not lifecycle.may_compute(project):
        raise ConflictError(f"“{project.title}” is {project.stage}; samples are drawn while a project is under way.")
    allocation = launching.spendable(session, project, launching.still_spendable(session, run))
    launching.check_left(session, allocation.id, 1, SAMPLE_TIME_LIMIT)
    return allocation.id, allocation.pool_id
