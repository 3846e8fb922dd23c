"""Evaluations: members have tasks of lm-evaluation-harness run on checkpoints of a run."""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import yaml
from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker import publications
from broker.publications import Disk, Publication
from broker.runs import evaluation_plans, launching, on_checkpoints
from broker.runs.evaluation_plans import EvaluationPlan
from broker.runs.launching import Receipt
from broker.runs.on_checkpoints import LAST, Reading
from broker.runs.runs import ENDED, Run, RunKind
from projects import projects
from projects.db.columns import utcnow
from projects.errors import ConflictError, InvalidError, NotFoundError
from projects.people import Actor
from projects.projects import Project
from trainer.evaluation import task_names

MOST_SHOTS = 100
SECONDS_A_STEP = 30 * 60
"""The time limit of an evaluation that was ordered with a run, for each of its checkpoints."""
PAUSE = timedelta(minutes=10)


class Evaluation(Reading):
    """What an evaluation runs, as its configuration says it. `shots` are examples before each question and `limit`
    documents of each task; None leaves both to the task."""

    tasks: list[str]
    shots: int | None = None
    limit: int | None = None

    @property
    def needs_data(self) -> str:
        return evaluation_plans.reading_data(self.tasks)


def launch(
    session: Session,
    actor: Actor,
    request_id: str,
    run_id: int,
    *,
    tasks: str,
    steps: str = LAST,
    time_limit: str = "30m",
    shots: int | None = None,
    limit: int | None = None,
) -> Receipt:
    """Queue an evaluation; `on_checkpoints.launch` says the rest."""

    def ask(chosen: list[int]) -> Evaluation:
        return Evaluation(
            tasks=evaluation_plans.parse_tasks(tasks),
            steps=chosen,
            shots=checked_shots(shots),
            limit=checked_limit(limit),
        )

    return on_checkpoints.launch(
        session, actor, request_id, run_id, RunKind.EVALUATE, ask, steps=steps, time_limit=time_limit
    )


def due(session: Session) -> Sequence[int]:
    """The runs that have come to something: checkpoints that are to be evaluated now, or the last of them."""
    newer = select(Publication.run_id).where(
        Publication.run_id == EvaluationPlan.run_id, col(Publication.step) > EvaluationPlan.through
    )
    has_come = select(Run.id).where(Run.id == EvaluationPlan.run_id, col(Run.state).in_(ENDED) | newer.exists())
    goes_on = select(Run.id).where(Run.id == EvaluationPlan.newest, col(Run.state).not_in(ENDED))
    waiting = (col(EvaluationPlan.is_over).is_(False), col(EvaluationPlan.not_before) <= utcnow())
    plans = session.scalars(select(EvaluationPlan).where(*waiting, has_come.exists(), ~goes_on.exists()))
    return [plan.run_id for plan in plans if _next(session, plan) is not None]


def queue_due(session: Session, run_id: int) -> None:
    """Queue an evaluation of the checkpoints of a run that have come, as ordered with it, one evaluation at a time.

    Where the allocation cannot pay for all of them, the first ones are queued; for none, it is tried again later, as
    long as the project may compute.
    """
    parent = session.get_one(Run, run_id, with_for_update={"key_share": True})
    plan = session.get_one(EvaluationPlan, run_id, with_for_update=True, populate_existing=True)
    steps = None if plan.is_over else _next(session, plan)
    if steps is None:
        return
    if not steps or (parent.state in ENDED and not projects.may_compute(session.get_one(Project, parent.project_id))):
        plan.is_over = True
        return
    while steps:
        asked = Evaluation(tasks=plan.ordered.tasks, steps=steps)
        seconds = min(len(steps) * SECONDS_A_STEP, launching.LONGEST_TIME_LIMIT)
        request_id = f"evaluation-{run_id}-{steps[-1]}"
        try:
            run = on_checkpoints.queue(session, parent, RunKind.EVALUATE, asked, steps, seconds, request_id)
        except (ConflictError, NotFoundError):
            steps = steps[: len(steps) // 2]
        else:
            plan.through, plan.newest = steps[-1], run.id
            return
    plan.not_before = utcnow() + PAUSE


def _next(session: Session, plan: EvaluationPlan) -> list[int] | None:
    """The steps that are to be evaluated now; none where all are and the run has ended, None where it is too early."""
    if plan.newest is not None and session.get_one(Run, plan.newest).state not in ENDED:
        return None
    run = session.get_one(Run, plan.run_id)
    whole = col(Publication.disk) != Disk.LOST
    saved = select(Publication.step).where(Publication.run_id == run.id, whole).order_by(col(Publication.step))
    steps = list(session.scalars(saved))
    chosen = steps[:: plan.every]
    if run.state in ENDED and steps:
        chosen = sorted({*chosen, steps[-1]})
    readable = set(publications.readable(session, run.id))
    left = [step for step in chosen if step > plan.through and step in readable]
    return left[: on_checkpoints.MOST_STEPS] if left or run.state in ENDED else None


def what(run: Run) -> Evaluation:
    """What an evaluation runs."""
    return Evaluation.model_validate(yaml.safe_load(run.config))


def tasks_with(part: str, most: int) -> Sequence[str]:
    """Up to `most` names of tasks that contain some letters, those that begin with them first."""
    return task_names.containing(part, most)


def options(tasks: Sequence[str], out: Path, shots: int | None, limit: int | None) -> list[str]:
    """The options of the trainer's `eval` for an evaluation that writes into the folder `out`."""
    given = [f"--tasks={','.join(tasks)}", "--out", str(out)]
    given += [] if shots is None else [f"--num-fewshot={shots}"]
    return given + ([] if limit is None else [f"--limit={limit}"])


def checked_shots(shots: int | None) -> int | None:
    """A number of examples before each question as typed; raises InvalidError."""
    return _bounded("examples before each question", shots, 0, MOST_SHOTS)


def checked_limit(limit: int | None) -> int | None:
    """A number of documents of each task as typed; raises InvalidError."""
    return _bounded("documents of each task", limit, 1, 10**6)


def _bounded(what: str, count: int | None, least: int, most: int) -> int | None:
    """Raises InvalidError for a number out of bounds."""
    if count is not None and not least <= count <= most:
        raise InvalidError(f"The number of {what} is from {least} to {most:,}, not {count}.")
    return count
