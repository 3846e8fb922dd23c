"""Evaluations: members have tasks of lm-evaluation-harness run on checkpoints of a run."""

import re
from collections.abc import Sequence

import yaml
from pydantic import BaseModel
from sqlalchemy.orm import Session

from broker.runs import on_checkpoints
from broker.runs.launching import Receipt
from broker.runs.on_checkpoints import LAST
from broker.runs.runs import Run, RunKind
from projects import text
from projects.errors import InvalidError
from projects.people import Actor
from trainer.evaluation import task_names

MOST_TASKS, MOST_SHOTS = 20, 100


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
    time_limit: str = "30m",
    shots: int | None = None,
    limit: int | None = None,
) -> Receipt:
    """Queue an evaluation; `on_checkpoints.launch` says the rest."""

    def ask(chosen: list[int]) -> Evaluation:
        return Evaluation(
            tasks=parse_tasks(tasks),
            steps=chosen,
            shots=_bounded("examples before each question", shots, 0, MOST_SHOTS),
            limit=_bounded("documents of each task", limit, 1, 10**6),
        )

    return on_checkpoints.launch(
        session, actor, request_id, run_id, RunKind.EVALUATE, ask, steps=steps, time_limit=time_limit
    )


def what(run: Run) -> Evaluation:
    """What an evaluation runs."""
    return Evaluation.model_validate(yaml.safe_load(run.config))


def parse_tasks(typed: str) -> list[str]:
    """Names of tasks as typed, such as “heldout, lambada_openai”; raises InvalidError."""
    names = list(dict.fromkeys(re.split(r"[\s,]+", text.cleaned(typed).strip(" ,"))))
    if names == [""] or len(names) > MOST_TASKS:
        raise InvalidError(f"Name one to {MOST_TASKS} tasks, such as heldout, lambada_openai.")
    for name in names:
        if not task_names.is_known(name):
            near = task_names.nearest(name)
            hint = (
                f"do you mean {' or '.join(near)}?"
                if near
                else "tasks are those of lm-evaluation-harness, and heldout."
            )
            raise InvalidError(f"There is no task “{name[:60]}”; {hint}")
    return names


def tasks_with(part: str, most: int) -> Sequence[str]:
    """Up to `most` names of tasks that contain some letters, those that begin with them first."""
    return task_names.containing(part, most)


def _bounded(what: str, count: int | None, least: int, most: int) -> int | None:
    """Raises InvalidError for a number out of bounds."""
    if count is not None and not least <= count <= most:
        raise InvalidError(f"The number of {what} is from {least} to {most:,}, not {count}.")
    return count
