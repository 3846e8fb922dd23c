"""Baselines: models of the Hub that a project has evaluated, to compare its runs with."""

import re
from collections.abc import Sequence

import yaml
from pydantic import BaseModel
from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker import configs
from broker.allocations import nodes, payers
from broker.allocations.pools import Pool
from broker.configs import Base
from broker.runners import registry
from broker.runs import entries, evaluation_plans, evaluations, launching
from broker.runs.launching import Receipt
from broker.runs.results import CheckpointResult
from broker.runs.runs import Run, RunKind
from projects import projects, quotas, rights, text
from projects.errors import ConflictError, InvalidError
from projects.people import Actor
from projects.quotas import QuotaKind
from trainer.contract import STEP_REVISION, revision_step

MOST_REVISIONS = 50


class Baseline(BaseModel):
    """What a baseline runs, as its configuration says it: tasks on a model of the Hub at each of its `revisions`.
    `shots` and `limit` are as those of an evaluation."""

    model: str
    revisions: list[str]
    tasks: list[str]
    shots: int | None = None
    limit: int | None = None

    @property
    def sources(self) -> Sequence[Base]:
        """The model at each revision."""
        return [Base(self.model, revision) for revision in self.revisions]


def launch(
    session: Session,
    actor: Actor,
    request_id: str,
    project_id: int,
    *,
    model: str,
    tasks: str,
    time_limit: str = "30m",
    shots: int | None = None,
    limit: int | None = None,
    allocation_id: int | None = None,
) -> Receipt:
    """Queue the evaluation of a model of the Hub on a GPU of the pool of the allocation that pays.

    `model` is as in `parse`. A repeat of the same request returns the same run. Raises DomainError.
    """
    earlier = session.scalars(select(Run).where(Run.request_id == request_id)).one_or_none()
    if earlier is not None:
        return launching.receipt(session, earlier)
    project = projects.load(session, project_id)
    person = rights.hold_member(session, actor, project)
    named, revisions = parse(model)
    asked = Baseline(
        model=named,
        revisions=revisions,
        tasks=evaluation_plans.parse_tasks(tasks),
        shots=evaluations.checked_shots(shots),
        limit=evaluations.checked_limit(limit),
    )
    if needy := evaluation_plans.reading_data(asked.tasks):
        raise InvalidError(f"“{needy}” reads the data that a run was trained on; a model of the Hub has none here.")
    seconds = launching.parse_time_limit(time_limit)
    quotas.check(session, actor, QuotaKind.LAUNCH)
    if not projects.may_compute(project):
        raise ConflictError(f"“{project.title}” is {project.stage}; models are evaluated while a project is under way.")
    pays = payers.spendable(session, project, allocation_id)
    pool = session.get_one(Pool, pays.pool_id)
    nodes.check(pool, 1)
    if registry.named(pool.runner).fills_store:
        raise ConflictError(
            f"The machines of “{pool.name}” cannot fetch a model from the Hub; name an allocation on another pool."
        )
    if allocation_id is None:
        pays = payers.or_another(session, pays, seconds)
    launching.check_left(session, pays.id, 1, seconds)
    run = Run(
        request_id=request_id,
        kind=RunKind.BASELINE,
        project_id=project.id,
        allocation_id=pays.id,
        pool_id=pays.pool_id,
        requested_by=person.id,
        recipe=f"{named}@{' @'.join(revisions)}",
        overrides={},
        config=yaml.safe_dump(asked.model_dump(), sort_keys=False),
        total_steps=0,
        gpus=1,
        time_limit=seconds,
    )
    session.add(run)
    session.flush()
    quotas.check_project(session, QuotaKind.LAUNCH, project.id)
    entries.tell(session, run, "run.queued", by=person, gpus=1, time_limit=seconds)
    return launching.receipt(session, run)


def parse(typed: str) -> tuple[str, list[str]]:
    """A model of the Hub and its revisions as typed, such as “org/name@main” or “org/name@step1000 @step2000”.

    Several revisions are steps each, `stepN`, and come in the order of steps. Raises InvalidError.
    """
    first, *more = [word for word in re.split(r"[\s,]+", text.cleaned(typed)) if word] or [""]
    try:
        bases = [configs.parse_base(first)]
        bases += [configs.parse_base(f"{bases[0].repo}@{word.removeprefix('@')}") for word in more]
    except InvalidError:
        raise InvalidError(
            f"“{text.cleaned(typed).strip()[:80]}” names no model of the Hub at a revision; write ORG/NAME@REVISION, "
            "such as EleutherAI/pythia-14m@step1000, and further revisions after it, such as @step2000."
        ) from None
    revisions = list(dict.fromkeys(base.revision for base in bases))
    if len(revisions) > MOST_REVISIONS:
        raise InvalidError(f"One run takes at most {MOST_REVISIONS} revisions; these are {len(revisions)}.")
    if len(revisions) > 1:
        if unordered := next((each for each in revisions if not STEP_REVISION.fullmatch(each)), None):
            raise InvalidError(f"Of several revisions each is a step, such as step1000; “{unordered}” is none.")
        revisions = sorted({revision_step(each): each for each in revisions}.values(), key=revision_step)
    return bases[0].repo, revisions


def newest(session: Session, project_id: int, *, limit: int = 10) -> Sequence[tuple[int, str]]:
    """Id and model of the newest baselines of a project that have measured something."""
    measured = select(CheckpointResult.measured_by).where(CheckpointResult.measured_by == Run.id).exists()
    done = (Run.project_id == project_id, Run.kind == RunKind.BASELINE, measured)
    rows = session.execute(select(Run.id, Run.recipe).where(*done).order_by(col(Run.id).desc()).limit(limit))
    return [(number, name) for number, name in rows]


def what(run: Run) -> Baseline:
    """What a baseline runs."""
    return Baseline.model_validate(yaml.safe_load(run.config))
