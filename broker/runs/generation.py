"""Generation: members have a run's last checkpoint continue a text."""

from sqlalchemy.orm import Session
from sqlmodel import select

from broker import publications
from broker.allocations import payers
from broker.allocations.allocations import Allocation
from broker.publications import Disk
from broker.runs import launching, runs
from broker.runs.kinds import sample
from broker.runs.kinds.kind import kind_of
from broker.runs.launching import Receipt
from broker.runs.runs import SAMPLE_TIME_LIMIT, Run
from projects import projects, quotas, rights, text
from projects.errors import ConflictError
from projects.people import Actor
from projects.projects import Project
from projects.quotas import QuotaKind
from projects.rights import Act

LONGEST_PROMPT = 1_000


def check_may_generate(session: Session, actor: Actor, run_id: int) -> None:
    """Raise unless the actor may have the run generate text now. Only reads: a form may be opened on it."""
    run = _trained(session, run_id)
    project = session.get_one(Project, run.project_id)
    rights.check(session, actor, project, Act.USE_COMPUTE)
    _paying(session, project, run)


def generate(session: Session, actor: Actor, request_id: str, run_id: int, prompt: str) -> Receipt:
    """Queue a sample that continues the prompt; a repeat of the same request returns the same sample."""
    earlier = session.scalars(select(Run).where(Run.request_id == request_id)).one_or_none()
    if earlier is not None:
        return launching.receipt(session, earlier)
    parent = _trained(session, run_id)
    project = session.get_one(Project, parent.project_id)
    person = rights.hold_member(session, actor, project)
    quotas.check(session, actor, QuotaKind.LAUNCH)
    wanted = text.prose("The prompt", prompt, most=LONGEST_PROMPT)
    run = sample.of(parent, request_id, _paying(session, project, parent), person.id)
    run.prompt = wanted
    quotas.check_project(session, QuotaKind.LAUNCH, project.id)
    sample.queue(session, run, by=person)
    return launching.receipt(session, run)


def _trained(session: Session, run_id: int) -> Run:
    """The run, where it trains and has a checkpoint on this disk; raises ConflictError."""
    run = runs.load(session, run_id)
    if not kind_of(run).trains:
        raise ConflictError(f"Run {run_id} does not train; only a run that does can be sampled from.")
    checkpoint = publications.newest(session, run_id)
    if checkpoint is None or checkpoint.disk != Disk.KEPT:
        raise ConflictError(f"Run {run_id} has no checkpoint on this disk to sample from.")
    return run


def _paying(session: Session, project: Project, run: Run) -> Allocation:
    """The allocation that pays for a sample: the run's own while it is good. Raises ConflictError without one."""
    if not projects.may_compute(project):
        raise ConflictError(f"“{project.title}” is {project.stage}; samples are drawn while a project is under way.")
    allocation = payers.spendable(session, project, payers.payer(session, run.allocation_id, SAMPLE_TIME_LIMIT))
    launching.check_left(session, allocation.id, 1, SAMPLE_TIME_LIMIT)
    return allocation
