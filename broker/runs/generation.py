"""Generation: a run's last checkpoint writes a text, its sample, as a short run that is charged like any other."""

from sqlalchemy.orm import Session
from sqlmodel import select

from broker import publications
from broker.allocations import allocations, ledger, payers
from broker.allocations.allocations import Allocation
from broker.publications import Disk
from broker.runs import folders, launching, runs
from broker.runs.attempts import Attempt
from broker.runs.launching import Receipt
from broker.runs.runs import SAMPLE_TIME_LIMIT, Run, RunKind
from projects import projects, quotas, rights, text
from projects.errors import ConflictError
from projects.people import Actor, Person
from projects.projects import Project
from projects.quotas import QuotaKind
from projects.rights import Act

LONGEST_PROMPT = 1_000
TEMPERATURE, SEED = 0.8, 0
"""How the tokens of every sample are drawn."""


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
    sample = _sample(parent, request_id, _paying(session, project, parent), person.id)
    sample.prompt = wanted
    quotas.check_project(session, QuotaKind.LAUNCH, project.id)
    _queue(session, sample, by=person)
    return launching.receipt(session, sample)


def generate_at_end(session: Session, parent: Run) -> None:
    """Queue a sample without a prompt from a run that has just finished, where its allocation can pay for one."""
    allocation = allocations.load(session, payers.successor(session, parent.allocation_id))
    if payers.is_spendable(allocation) and ledger.account(session, allocation.id).left >= SAMPLE_TIME_LIMIT:
        _queue(session, _sample(parent, f"sample-{parent.id}", allocation, parent.requested_by))


def place(session: Session, sample: Run) -> str:
    """The host that has written the checkpoint which a sample is of, to its own disk; empty where it is not known."""
    checkpoint = publications.newest(session, sample.parent_id or 0)
    token = folders.token_of(checkpoint.folder) if checkpoint else None
    wrote = None if checkpoint is None or token is None else session.get(Attempt, (checkpoint.run_id, token))
    return wrote.host if wrote else ""


def _sample(parent: Run, request_id: str, allocation: Allocation, requested_by: int) -> Run:
    """A sample of a run, on one GPU of the pool of the allocation that pays, in no session yet."""
    return Run(
        request_id=request_id,
        kind=RunKind.SAMPLE,
        project_id=parent.project_id,
        allocation_id=allocation.id,
        pool_id=allocation.pool_id,
        requested_by=requested_by,
        parent_id=parent.id,
        recipe=parent.recipe,
        overrides={},
        config="",
        total_steps=0,
        gpus=1,
        time_limit=SAMPLE_TIME_LIMIT,
    )


def _queue(session: Session, sample: Run, *, by: Person | None = None) -> None:
    session.add(sample)
    session.flush()
    runs.tell(session, sample, "run.queued", by=by, recipe=sample.recipe, gpus=1, time_limit=SAMPLE_TIME_LIMIT)


def _trained(session: Session, run_id: int) -> Run:
    """The run, where it trains and has a checkpoint on this disk; raises ConflictError."""
    run = runs.load(session, run_id)
    if run.kind != RunKind.TRAIN:
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
