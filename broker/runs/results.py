"""What evaluations and studies have measured on the checkpoints of runs."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy
from sqlalchemy import ColumnElement, delete, func, insert
from sqlalchemy.orm import Session
from sqlmodel import Field, col, select

from broker.runs.progress import Result
from projects.db.columns import Base, foreign_key, integer, number

MOST_TASKS = 8
"""Tasks and analyses of a run that are shown with it."""


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
    """Save what a run has measured on another one: all of each step, in place of what it has saved of that before."""
    if not results:
        return
    steps = {result.step for result in results}
    mine = col(CheckpointResult.measured_by) == measured_by
    session.execute(delete(CheckpointResult).where(mine, col(CheckpointResult.step).in_(steps)))
    rows: dict[tuple[int, str, str], dict[str, Any]] = {}
    for position, result in enumerate(results):
        about = {"measured_by": measured_by, "run_id": run_id, "position": position}
        rows[result.step, result.task, result.metric] = about | result._asdict()
    session.execute(insert(CheckpointResult), list(rows.values()))


def steps(session: Session, run_id: int) -> set[int]:
    """The steps of the checkpoints that a run has measured."""
    done = select(CheckpointResult.step).where(CheckpointResult.measured_by == run_id).distinct()
    return set(session.scalars(done))


def measured_by(session: Session, run_id: int) -> list[Scored]:
    """What a run has measured, in the order of tasks."""
    return _scored(session, col(CheckpointResult.measured_by) == run_id)


def of_run(session: Session, run_id: int) -> list[Scored]:
    """What was measured on the checkpoints of a run: the first metric of the `MOST_TASKS` tasks measured last."""
    of_it = col(CheckpointResult.run_id) == run_id
    newest = func.max(col(CheckpointResult.measured_by)).desc()
    tasks = select(CheckpointResult.task).where(of_it).group_by(col(CheckpointResult.task)).order_by(newest)
    first: dict[str, Scored] = {}
    for scored in _scored(session, of_it & col(CheckpointResult.task).in_(tasks.limit(MOST_TASKS))):
        first.setdefault(scored.task, scored)
    return list(first.values())


def of_step(session: Session, run_id: int, step: int) -> list[Scored]:
    """All that was measured on the checkpoint of a step."""
    return _scored(session, (col(CheckpointResult.run_id) == run_id) & (col(CheckpointResult.step) == step))


def up_to(session: Session, run_id: int, step: int) -> list[Scored]:
    """All that was measured on the checkpoints of a run up to a step."""
    return _scored(session, (col(CheckpointResult.run_id) == run_id) & (col(CheckpointResult.step) <= step))


def rows_of_step(session: Session, run_id: int, step: int) -> Sequence[CheckpointResult]:
    """Every result on the checkpoint of a step, in the order in which the runs measured them."""
    of_it = (col(CheckpointResult.run_id) == run_id, col(CheckpointResult.step) == step)
    order = (col(CheckpointResult.measured_by), col(CheckpointResult.position))
    return session.scalars(select(CheckpointResult).where(*of_it).order_by(*order)).all()


def _scored(session: Session, condition: ColumnElement[bool]) -> list[Scored]:
    """The results in the order of tasks. Of a task that was run in several ways, on more or fewer documents or after
    more or fewer examples, that on the most documents counts, and of those the newest; so it is of each step."""
    columns = ("task", "metric", "documents", "shots", "step", "value", "stderr", "measured_by", "position")
    asked = sqlalchemy.select(*(col(getattr(CheckpointResult, name)) for name in columns))
    rows = session.execute(asked.where(condition)).all()
    ways: dict[tuple[str, int | None, int | None], int] = {}
    for row in rows:
        way = (row.task, row.documents, row.shots)
        ways[way] = max(ways.get(way, 0), row.measured_by)
    best: dict[str, tuple[int, int, tuple[str, int | None, int | None]]] = {}
    for way, newest in ways.items():
        rank = (way[1] or 0, newest, way)
        best[way[0]] = max(best.get(way[0], rank), rank, key=lambda rank: rank[:2])
    found: dict[tuple[str, str], dict[int, tuple[float, float | None]]] = {}
    for row in sorted(rows, key=lambda row: (row.task, row.position, row.measured_by)):
        if best[row.task][2] == (row.task, row.documents, row.shots):
            found.setdefault((row.task, row.metric), {})[row.step] = (row.value, row.stderr)
    return [Scored(task, metric, dict(sorted(values.items()))) for (task, metric), values in found.items()]
