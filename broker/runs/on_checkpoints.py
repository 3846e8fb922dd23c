"""Runs about checkpoints of another run, such as evaluations: which checkpoints, who pays, and how they are queued."""

import re
from collections.abc import Callable, Sequence

import yaml
from pydantic import BaseModel
from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker import publications
from broker.allocations import nodes, payers
from broker.allocations.allocations import Allocation
from broker.allocations.pools import Pool
from broker.runners import registry
from broker.runs import entries, launching, runs
from broker.runs.kinds.kind import kind_of, named
from broker.runs.launching import Receipt
from broker.runs.results import CheckpointResult
from broker.runs.runs import Run, RunKind
from projects import projects, quotas, rights, text
from projects.errors import ConflictError, InvalidError, NotFoundError
from projects.people import Actor
from projects.projects import Project
from projects.quotas import QuotaKind

MOST_STEPS = 200
LAST, ALL = "last", "all"
"""The steps of a run by a word: its newest checkpoint, or each that is on this disk or open on the Hub."""


class Reading(BaseModel):
    """What a run about checkpoints does, as its configuration says it, and the steps of the checkpoints."""

    steps: list[int]

    @property
    def needs_data(self) -> str:
        """The first of its tasks or analyses that reads the data that the checkpoints were trained on, if one does."""
        return ""


def launch(
    session: Session,
    actor: Actor,
    request_id: str,
    run_id: int,
    kind: RunKind,
    ask: Callable[[list[int]], BaseModel],
    *,
    steps: str,
    time_limit: str,
    gpus: int = 1,
) -> Receipt:
    """Queue a run of a kind about checkpoints of another run, on GPUs of the pool of the allocation that pays.

    `ask` makes its configuration of the steps. A repeat of the same request returns the same run. Raises DomainError.
    """
    earlier = session.scalars(select(Run).where(Run.request_id == request_id)).one_or_none()
    if earlier is not None:
        return launching.receipt(session, earlier)
    parent = runs.load(session, run_id)
    if not kind_of(parent).trains:
        raise ConflictError(f"{kind_of(parent).what_it_is(parent)}; only a run that trains has checkpoints.")
    project = session.get_one(Project, parent.project_id)
    rights.hold_member(session, actor, project)
    chosen = parse_steps(session, parent, steps)
    asked, seconds = ask(chosen), launching.parse_time_limit(time_limit)
    run = queue(session, parent, kind, asked, chosen, seconds, request_id, actor, gpus=gpus)
    return launching.receipt(session, run)


def queue(
    session: Session,
    parent: Run,
    kind: RunKind,
    asked: BaseModel,
    chosen: Sequence[int],
    seconds: int,
    request_id: str,
    actor: Actor | None = None,
    *,
    gpus: int = 1,
) -> Run:
    """Queue a run about these checkpoints on GPUs of the pool of the allocation that pays: by the actor, or by itself,
    for whoever launched their run. Raises ConflictError and NotFoundError, and for an actor DomainError."""
    project = session.get_one(Project, parent.project_id)
    by = None if actor is None else rights.require_member(session, actor, project)
    pays = _paying(session, project, parent, gpus, seconds)
    pool = session.get_one(Pool, pays.pool_id)
    _check_kind(kind, pool, gpus)
    _check_reached(session, parent, chosen, pool)
    needy = asked.needs_data if isinstance(asked, Reading) else ""
    if needy and registry.named(pool.runner).fills_store:
        raise ConflictError(
            f"“{needy}” reads the data that run {parent.id} was trained on, which the trainers of “{pool.name}” do not "
            "have."
        )
    session.refresh(parent, with_for_update={"key_share": True})  # its checkpoints stay on the disk from here on
    _check_readable(session, parent, chosen)
    if actor is not None:
        quotas.check(session, actor, QuotaKind.LAUNCH)
    run = Run(
        request_id=request_id,
        kind=kind,
        project_id=project.id,
        allocation_id=pays.id,
        pool_id=pays.pool_id,
        requested_by=parent.requested_by if by is None else by.id,
        parent_id=parent.id,
        recipe=parent.recipe,
        overrides={},
        config=yaml.safe_dump(asked.model_dump(), sort_keys=False),
        total_steps=0,
        gpus=gpus,
        time_limit=seconds,
    )
    session.add(run)
    session.flush()
    if by is not None:
        quotas.check_project(session, QuotaKind.LAUNCH, project.id)
    entries.tell(session, run, "run.queued", by=by, recipe=parent.recipe, gpus=gpus, time_limit=seconds)
    return run


def newest(session: Session, project_id: int | None = None) -> Sequence[tuple[int, str, str]]:
    """Id, name and configuration in a line of the newest runs that have measured something, of a project or of all."""
    measured = select(CheckpointResult.measured_by).distinct()
    query = select(Run).where(col(Run.id).in_(measured)).order_by(col(Run.id).desc()).limit(50)
    if project_id is not None:
        query = query.where(Run.project_id == project_id)
    found = session.scalars(query).all()
    return [(run.id, kind_of(run).short_name(run), " ".join(run.config.split())) for run in found]


def parse_steps(session: Session, run: Run, typed: str) -> list[int]:
    """The steps of a run's checkpoints as typed: “all”, “last”, or numbers. Raises InvalidError, NotFoundError and
    ConflictError."""
    kept = list(publications.readable(session, run.id))
    if not kept:
        raise ConflictError(f"Run {run.id} has no checkpoint here or open on the Hub to read.")
    words = re.split(r"[\s,;]+", text.cleaned(typed).strip(" ,;").lower())
    if words == [LAST]:
        return kept[-1:]
    if words == [ALL]:
        steps = kept
    elif all(re.fullmatch(r"[0-9]{1,15}", word) for word in words):
        steps = sorted(set(map(int, words)))
    else:
        raise InvalidError(f"Steps are written like 10 20 30; or say {LAST} or {ALL}.")
    if len(steps) > MOST_STEPS:
        raise InvalidError(f"One run takes at most {MOST_STEPS} checkpoints; these are {len(steps)}.")
    _check_readable(session, run, steps)
    return steps


def _check_readable(session: Session, run: Run, steps: Sequence[int]) -> None:
    """Raise NotFoundError, which names the nearest ones, for a step without a checkpoint that can be read."""
    kept = publications.readable(session, run.id)
    for step in steps:
        if step not in kept:
            nearest = sorted(sorted(kept, key=lambda other: abs(other - step))[:3])
            raise NotFoundError(
                f"Run {run.id} has no checkpoint of step {step:,} here or open on the Hub; the nearest are "
                f"{', '.join(f'{other:,}' for other in nearest) or 'none'}."
            )


def _check_reached(session: Session, run: Run, steps: Sequence[int], pool: Pool) -> None:
    """Raise ConflictError where the pool's trainers read the store alone, and a checkpoint is on the Hub alone."""
    alone = set(steps) - set(publications.kept(session, run.id))
    if alone and registry.named(pool.runner).fills_store:
        raise ConflictError(
            f"Step {min(alone):,} of run {run.id} is on the Hub alone, and the trainers of “{pool.name}” read from the "
            "store; name steps that are kept here."
        )


def _check_kind(kind: RunKind, pool: Pool, gpus: int) -> None:
    """Raise ConflictError where the pool's runner cannot run a kind, and InvalidError where it has not so many GPUs."""
    if named(kind).needs_home and registry.named(pool.runner).fills_store:
        raise ConflictError(f"The hosts of “{pool.name}” share no disk with a worker, which a {kind} needs.")
    nodes.check(pool, gpus)
    if nodes.count(pool, gpus) > 1:
        raise InvalidError(
            f"A {kind} runs on one node, and one of “{pool.name}” has fewer than {gpus} {pool.unit.plural}."
        )


def _paying(session: Session, project: Project, run: Run, gpus: int, seconds: int) -> Allocation:
    """The allocation that pays: that of the other run while it is good. Raises ConflictError without one."""
    if not projects.may_compute(project):
        raise ConflictError(f"“{project.title}” is {project.stage}; runs are looked into while a project is under way.")
    allocation = payers.spendable(session, project, payers.payer(session, run.allocation_id, gpus * seconds))
    launching.check_left(session, allocation.id, gpus, seconds)
    return allocation
