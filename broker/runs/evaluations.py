"""Evaluations: members have tasks of lm-evaluation-harness run on checkpoints of a run."""

import re
from collections.abc import Sequence

import yaml
from pydantic import BaseModel
from sqlalchemy.orm import Session
from sqlmodel import select

from broker import publications
from broker.allocations import payers
from broker.allocations.allocations import Allocation
from broker.runs import entries, launching, runs
from broker.runs.kinds.kind import kind_of
from broker.runs.launching import Receipt
from broker.runs.runs import Run, RunKind
from projects import projects, quotas, rights, text
from projects.errors import ConflictError, InvalidError, NotFoundError
from projects.people import Actor
from projects.projects import Project
from projects.quotas import QuotaKind

MOST_TASKS, MOST_STEPS, MOST_SHOTS = 20, 200, 100
LONGEST_TASK = 100
LAST, ALL = "last", "all"
"""The steps of a run by a word: its newest checkpoint, or each that is on this disk or open on the Hub."""


class Evaluation(BaseModel):
    """What an evaluation runs, as its configuration says it. `shots` are examples before each question and `limit`
    documents of each task; None leaves both to the task."""

    tasks: list[str]
    steps: list[int]
    shots: int | None = None
    limit: int | None = None


def launch(
    session: Session,
    actor: Actor,
    request_id: str,
    run_id: int,
    *,
    tasks: str,
    steps: str = LAST,
    time_limit: str = "1h",
    shots: int | None = None,
    limit: int | None = None,
) -> Receipt:
    """Queue an evaluation of checkpoints of a run, on one GPU of the pool of the allocation that pays.

    A repeat of the same request returns the same evaluation. Raises DomainError.
    """
    earlier = session.scalars(select(Run).where(Run.request_id == request_id)).one_or_none()
    if earlier is not None:
        return launching.receipt(session, earlier)
    parent = runs.load(session, run_id)
    if not kind_of(parent).trains:
        raise ConflictError(f"{kind_of(parent).what_it_is(parent)}; only a run that trains can be evaluated.")
    project = session.get_one(Project, parent.project_id)
    person = rights.hold_member(session, actor, project)
    wanted = Evaluation(
        tasks=parse_tasks(tasks),
        steps=parse_steps(session, parent, steps),
        shots=_bounded("examples before each question", shots, 0, MOST_SHOTS),
        limit=_bounded("documents of each task", limit, 1, 10**6),
    )
    seconds = launching.parse_time_limit(time_limit)
    pays = _paying(session, project, parent, seconds)
    session.refresh(parent, with_for_update={"key_share": True})  # its checkpoints stay on the disk from here on
    _check_readable(session, parent, wanted.steps)
    quotas.check(session, actor, QuotaKind.LAUNCH)
    evaluation = Run(
        request_id=request_id,
        kind=RunKind.EVALUATE,
        project_id=project.id,
        allocation_id=pays.id,
        pool_id=pays.pool_id,
        requested_by=person.id,
        parent_id=parent.id,
        recipe=parent.recipe,
        overrides={},
        config=yaml.safe_dump(wanted.model_dump(), sort_keys=False),
        total_steps=0,
        gpus=1,
        time_limit=seconds,
    )
    session.add(evaluation)
    session.flush()
    quotas.check_project(session, QuotaKind.LAUNCH, project.id)
    entries.tell(session, evaluation, "run.queued", by=person, recipe=parent.recipe, gpus=1, time_limit=seconds)
    return launching.receipt(session, evaluation)


def what(run: Run) -> Evaluation:
    """What an evaluation runs."""
    return Evaluation.model_validate(yaml.safe_load(run.config))


def parse_tasks(typed: str) -> list[str]:
    """Names of tasks as typed, such as “heldout, lambada_openai”; raises InvalidError."""
    names = list(dict.fromkeys(re.split(r"[\s,]+", text.cleaned(typed).strip(" ,"))))
    if names == [""] or len(names) > MOST_TASKS:
        raise InvalidError(f"Name one to {MOST_TASKS} tasks, such as heldout, lambada_openai.")
    for name in names:
        if not re.fullmatch(r"\w[\w.:+*-]*", name, re.ASCII) or len(name) > LONGEST_TASK:
            raise InvalidError(f"“{name[:60]}” is no name of a task; one is written like lambada_openai.")
    return names


def parse_steps(session: Session, run: Run, typed: str) -> list[int]:
    """The steps of a run's checkpoints as typed: “all”, “last”, or numbers. Raises InvalidError, NotFoundError and
    ConflictError."""
    kept = list(publications.readable(session, run.id))
    if not kept:
        raise ConflictError(f"Run {run.id} has no checkpoint here or open on the Hub to evaluate.")
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
        raise InvalidError(f"One evaluation takes at most {MOST_STEPS} checkpoints; these are {len(steps)}.")
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


def check_may_evaluate(session: Session, actor: Actor, run_id: int) -> None:
    """Raise unless the actor may have checkpoints of the run evaluated now."""
    run = runs.load(session, run_id)
    rights.check(session, actor, session.get_one(Project, run.project_id), rights.Act.USE_COMPUTE)


def _paying(session: Session, project: Project, run: Run, seconds: int) -> Allocation:
    """The allocation that pays for an evaluation: the run's own while it is good. Raises ConflictError without one."""
    if not projects.may_compute(project):
        raise ConflictError(f"“{project.title}” is {project.stage}; runs are evaluated while a project is under way.")
    allocation = payers.spendable(session, project, payers.payer(session, run.allocation_id, seconds))
    launching.check_left(session, allocation.id, 1, seconds)
    return allocation


def _bounded(what: str, count: int | None, least: int, most: int) -> int | None:
    """Raises InvalidError for a number out of bounds."""
    if count is not None and not least <= count <= most:
        raise InvalidError(f"The number of {what} is from {least} to {most:,}, not {count}.")
    return count
