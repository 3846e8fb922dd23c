"""What evaluations and studies have measured on the checkpoints of runs."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement
from sqlalchemy.orm import Session
from sqlmodel import Field, col, select

from broker.runs.progress import Result
from projects.db.columns import Base, foreign_key, integer, number


class CheckpointResult(Base, table=True):
    """A metric of a task, or of an analysis, on a checkpoint.

    `measured_by` is the run that measured it, `run_id` the run whose checkpoint it was, `position` its place among the
    metrics of its task. `stderr` is the standard error, None where the task knows none.
    """

    __tablename__ = "checkpoint_results"

    measured_by: int = foreign_key("runs.id", primary_key=True)
    step: int = integer(primary_key=True)
    task: str = Field(primary_key=True)
    metric: str = Field(primary_key=True)
    run_id: int = foreign_key("runs.id", index=True)
    position: int = integer(default=0)
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


def save(session: Session, measured_by: int, run_id: int, results: Sequence[Result]) -> None:
    """Save what a run has measured on another one; a later attempt's value replaces an earlier one's."""
    known: Counter[tuple[int, str]] = Counter()
    for result in results:
        place = known[result.step, result.task]
        session.merge(CheckpointResult(measured_by=measured_by, run_id=run_id, position=place, **result._asdict()))
        known[result.step, result.task] += 1
    session.flush()


def steps(session: Session, run_id: int) -> set[int]:
    """The steps of the checkpoints that a run has measured."""
    done = select(CheckpointResult.step).where(CheckpointResult.measured_by == run_id).distinct()
    return set(session.scalars(done))


def measured_by(session: Session, run_id: int) -> Sequence[Scored]:
    """What a run has measured, in the order of tasks."""
    by_run = _scored(session, col(CheckpointResult.measured_by) == run_id)
    return [scored for found in by_run.values() for scored in found]


def of_runs(session: Session, run_ids: Iterable[int]) -> Mapping[int, Sequence[Scored]]:
    """What was measured on the checkpoints of each run, in the order of tasks; of several runs that measured a
    checkpoint, the newest counts."""
    return _scored(session, col(CheckpointResult.run_id).in_(list(run_ids)))


def _scored(session: Session, condition: ColumnElement[bool]) -> dict[int, list[Scored]]:
    """The results by run."""
    order = (
        CheckpointResult.task,
        CheckpointResult.position,
        CheckpointResult.metric,
        CheckpointResult.step,
        CheckpointResult.measured_by,
    )
    rows = session.scalars(select(CheckpointResult).where(condition).order_by(*map(col, order)))
    found: dict[tuple[int, str, str], dict[int, tuple[float, float | None]]] = {}
    for row in rows:
        found.setdefault((row.run_id, row.task, row.metric), {})[row.step] = (row.value, row.stderr)
    by_run: dict[int, list[Scored]] = {}
    for (run_id, task, metric), values in found.items():
        by_run.setdefault(run_id, []).append(Scored(task, metric, values))
    return by_run
