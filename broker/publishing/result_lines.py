"""What evaluations and studies have measured, as lines of `metrics.jsonl` and as an event file of TensorBoard."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from broker.publishing import tensorboard
from broker.runs import results
from broker.runs.series import Measured

RESULTS_TENSORBOARD_FILE = "events.out.tfevents.1.stoa"
"""Beside the losses' own: TensorBoard reads all event files of a folder as one run."""


def of_step(session: Session, run_id: int, step: int, tokens: int | None) -> list[dict[str, Any]]:
    """The lines of a step, one a task and metric; `tokens` are those that the run had read, None where not known."""
    at = {"step": step} | ({} if tokens is None else {"tokens": tokens})
    return [
        at | {"task": scored.task, "metric": scored.metric, "value": value, "stderr": stderr}
        for scored in results.of_step(session, run_id, step)
        for value, stderr in scored.values.values()
    ]


def added(metrics: str, lines: Sequence[Mapping[str, Any]]) -> str:
    """The text of a `metrics.jsonl` with these lines at its end, in place of all that it had of tasks before."""
    kept = [line for line in metrics.splitlines() if not _is_of_task(line)]
    return "".join(f"{line}\n" for line in [*kept, *map(json.dumps, lines)])


def events(session: Session, run_id: int, step: int) -> bytes:
    """The event file of all that was measured on a run up to a step, tagged TASK/METRIC; empty where nothing was."""
    found = {
        f"{each.task}/{each.metric}": [Measured(each.metric, at, 0, value) for at, (value, _) in each.values.items()]
        for each in results.up_to(session, run_id, step)
    }
    return tensorboard.encode(found) if found else b""


def _is_of_task(line: str) -> bool:
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(told, dict) and "task" in told
