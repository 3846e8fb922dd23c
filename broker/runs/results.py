"""What evaluations have measured on the checkpoints of runs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement
from sqlalchemy.orm import Session
from sqlmodel import Field, col, select

from broker.runs.progress import Result
from projects.db.columns import Base, foreign_key, integer, number


class EvaluationResult(Base, table=True):
    """A metric of a task on a checkpoint, as one evaluation has measured it.

    `evaluation_id` is the run that evaluated, `run_id` the run whose checkpoint it was. `stderr` is the standard error,
    None where the task knows none.
    """

    __tablename__ = "evaluation_results"

    evaluation_id: int = foreign_key("runs.id", primary_key=True)
    step: int = integer(primary_key=True)
    task: str = Field(primary_key=True)
    metric: str = Field(primary_key=True)
    run_id: int = foreign_key("runs.id", index=True)
    value: float = number()
    stderr: float | None = number(default=None)
    documents: int | None = integer(default=None)
    shots: int | None = integer(default=None)
    version: str = ""


class Scored(NamedTuple):
    """The values of a task's metric by step, each with its standard error where there is one."""

    task: str
    metric: str
    values: Mapping[int, tuple[float, float | None]]


def save(session: Session, evaluation_id: int, run_id: int, results: Sequence[Result]) -> None:
    """Save what an evaluation of a run has measured; a later attempt's value replaces an earlier one's."""
    for result in results:
        session.merge(EvaluationResult(evaluation_id=evaluation_id, run_id=run_id, **result._asdict()))
    session.flush()


def steps(session: Session, evaluation_id: int) -> set[int]:
    """The steps of the checkpoints that an evaluation has done."""
    done = select(EvaluationResult.step).where(EvaluationResult.evaluation_id == evaluation_id).distinct()
    return set(session.scalars(done))


def of_evaluation(session: Session, evaluation_id: int) -> Sequence[Scored]:
    """What an evaluation has measured, in the order of tasks."""
    by_run = _scored(session, col(EvaluationResult.evaluation_id) == evaluation_id)
    return [scored for found in by_run.values() for scored in found]


def of_runs(session: Session, run_ids: Iterable[int]) -> Mapping[int, Sequence[Scored]]:
    """What was measured on the checkpoints of each run, in the order of tasks; of several evaluations of a checkpoint,
    the newest counts."""
    return _scored(session, col(EvaluationResult.run_id).in_(list(run_ids)))


def _scored(session: Session, condition: ColumnElement[bool]) -> dict[int, list[Scored]]:
    """The results by run."""
    order = (EvaluationResult.task, EvaluationResult.metric, EvaluationResult.step, EvaluationResult.evaluation_id)
    rows = session.scalars(select(EvaluationResult).where(condition).order_by(*map(col, order)))
    found: dict[tuple[int, str, str], dict[int, tuple[float, float | None]]] = {}
    for row in rows:
        found.setdefault((row.run_id, row.task, row.metric), {})[row.step] = (row.value, row.stderr)
    by_run: dict[int, list[Scored]] = {}
    for (run_id, task, metric), values in found.items():
        by_run.setdefault(run_id, []).append(Scored(task, metric, values))
    return by_run
