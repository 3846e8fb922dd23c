"""Evaluations ordered with a run: the tasks that each k-th of its checkpoints is given as it comes."""

import re
from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from sqlalchemy.orm import Session
from sqlmodel import Field

from projects import text
from projects.db.columns import Base, foreign_key, integer, timestamp, utcnow
from projects.errors import InvalidError
from trainer.evaluation import task_names

MOST_TASKS = 20
MOST_EVERY = 1_000


class Evaluated(NamedTuple):
    """The tasks that every `every`-th checkpoint of a run is given, counted from its first, and its last one."""

    tasks: list[str]
    every: int

    @property
    def needs_data(self) -> str:
        """The first of the tasks that reads the data that the run was trained on, if one does."""
        return reading_data(self.tasks)

    def __str__(self) -> str:
        return ", ".join(self.tasks) + (f" every {self.every}" if self.every > 1 else "")


class EvaluationPlan(Base, table=True):
    """What `Evaluated` says of a run, and how far that has come.

    Checkpoints up to the step `through` are queued or evaluated; `newest` is the run that evaluates the last of them.
    Nothing is queued before `not_before`, nor once it `is_over`.
    """

    __tablename__ = "evaluation_plans"

    run_id: int = foreign_key("runs.id", primary_key=True)
    tasks: str
    every: int = integer()
    through: int = integer(default=-1)
    newest: int | None = foreign_key("runs.id", default=None)
    not_before: datetime = timestamp(default=utcnow)
    is_over: bool = Field(default=False, index=True)

    @property
    def ordered(self) -> Evaluated:
        """What was ordered."""
        return Evaluated(self.tasks.split(), self.every)


def reading_data(tasks: Iterable[str]) -> str:
    """The first of these tasks that reads the data that a run was trained on, if one does."""
    return next((task for task in tasks if task.startswith(task_names.HELDOUT)), "")


def parse(typed: str) -> Evaluated | None:
    """An order as typed, such as “heldout, arc_easy every 4”; None where nothing is typed. Raises InvalidError."""
    words = re.fullmatch(r"(.*?)(?:\s+every\s+(\S+))?", text.cleaned(typed).strip(), re.DOTALL)
    if words is None or not words[0]:
        return None
    every = words[2] or "1"
    if not re.fullmatch(r"[0-9]{1,4}", every) or not 1 <= int(every) <= MOST_EVERY:
        said = f"“every” takes a number of checkpoints from 1 to {MOST_EVERY:,}, as in heldout every 4"
        raise InvalidError(f"{said}, not “{every[:40]}”.")
    return Evaluated(parse_tasks(words[1]), int(every))


def parse_tasks(typed: str) -> list[str]:
    """Names of tasks as typed, such as “heldout, lambada_openai”; raises InvalidError."""
    names = list(dict.fromkeys(re.split(r"[\s,]+", text.cleaned(typed).strip(" ,"))))
    if names == [""] or len(names) > MOST_TASKS:
        raise InvalidError(f"Name one to {MOST_TASKS} tasks, such as heldout, lambada_openai.")
    for name in names:
        if not task_names.is_known(name):
            near = task_names.nearest(name)
            known = "tasks are those of lm-evaluation-harness, and heldout."
            hint = f"do you mean {' or '.join(near)}?" if near else known
            raise InvalidError(f"There is no task “{name[:60]}”; {hint}")
    return names


def add(session: Session, run_id: int, typed: str) -> Evaluated | None:
    """Keep what was ordered with a run that is being launched; raises InvalidError."""
    ordered = parse(typed)
    if ordered is not None:
        session.add(EvaluationPlan(run_id=run_id, tasks=" ".join(ordered.tasks), every=ordered.every))
        session.flush()
    return ordered


def typed(session: Session, run_id: int) -> str:
    """What was ordered with a run, as one would type it; empty where nothing was."""
    plan = session.get(EvaluationPlan, run_id)
    return "" if plan is None else str(plan.ordered)
