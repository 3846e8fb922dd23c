"""The file `results/step{N}.json` of a published checkpoint: all that evaluations and studies have measured on it."""

import json
from importlib.metadata import version
from typing import Any

from sqlalchemy.orm import Session

from broker.runs import results, runs
from broker.runs.runs import RunKind
from trainer.contract import EVALUATION_SEEDS, RESULTS_FOLDER


def name(step: int) -> str:
    """The file's path on a branch, as the trainer names the same file."""
    return f"{RESULTS_FOLDER}/step{step}.json"


def content(session: Session, run_id: int, step: int) -> str:
    """The file as JSON; empty where nothing was measured.

    `results` has an object for each task and metric, with the run that measured it, the number of documents and of
    examples before each question, and the task's version; `stderr` is null where the task knows none.
    """
    found: list[dict[str, Any]] = []
    for row in results.rows_of_step(session, run_id, step):
        kind = runs.load(session, row.measured_by).kind
        found.append({"measured_by": row.measured_by, "kind": kind, **row.model_dump(include=_TOLD)})
    if not found:
        return ""
    harness: dict[str, Any] = {"lm_eval": version("lm_eval"), "seeds": EVALUATION_SEEDS}
    evaluated = any(each["kind"] == RunKind.EVALUATE for each in found)
    return json.dumps({"step": step, **(harness if evaluated else {}), "results": found}, indent=2) + "\n"


_TOLD = {"task", "metric", "value", "stderr", "documents", "shots", "version"}
