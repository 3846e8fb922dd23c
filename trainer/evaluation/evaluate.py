"""A checkpoint under lm-evaluation-harness: which tasks are meant, running them, and what comes out."""

import contextlib
import difflib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import lm_eval
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable
from rich import box
from rich.table import Table

from trainer.evaluation.lm_eval_model import CheckpointLM
from trainer.evaluation.open_checkpoint import OpenCheckpoint
from trainer.evaluation.tasks import heldout
from trainer.exits import FailedError
from trainer.schema import ConfigError

Results = dict[str, Any]
"""The harness's own: `results` by task and `metric,filter`, versions, shots, samples, settings; and our checkpoint."""

_OUT_OF_REACH = (
    ConnectionError,
    DatasetNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
"""What is raised for a data set that is neither on this machine nor to be fetched."""


def find_tasks(names: Iterable[str], data: Path, include: Path | None) -> list[Task | Group]:
    """The harness's tasks, groups and tags, those in `include`, and ours, by name; `*` stands for any letters.

    `data` is the prepared folder for `heldout`. Raises ConfigError for a name that is none, and FailedError for a task
    whose data cannot be had.
    """
    if include is not None and not include.is_dir():
        raise ConfigError(f"--include-path {include} is no folder; give one that holds task files (.yaml).")
    ours: dict[str, Task | Group] = {}
    if any(name.startswith(heldout.NAME) for name in names):
        with _quiet():
            group = heldout.heldout(data)
        ours = {group.name: group} | {task.task_name: task for task in group}
    manager = TaskManager(include_path=include, include_defaults=False)
    if not all(name.startswith(heldout.NAME) or name in manager.all_subtasks for name in names):
        # Reading the harness's 14,000 tasks takes ten seconds.
        manager = TaskManager(include_path=include)
    known = [*ours, *manager.all_tasks]
    found: dict[str, Task | Group] = {}
    for name in names:
        matches = [task for task in known if fnmatchcase(task, name)]
        if not matches:
            raise ConfigError(_unknown(name, known))
        for match in matches:
            found |= {match: ours[match]} if match in ours else _load(manager, match)
    return list(found.values())


def evaluate(
    opened: OpenCheckpoint,
    tasks: list[Task | Group],
    *,
    limit: int | None,
    shots: int | None,
    rows: int | None,
    advance: Callable[[str, float], None],
) -> Results:
    """Run the tasks, `limit` documents of each. Raises FailedError if the harness cannot."""
    model = CheckpointLM(opened, rows, advance)
    os.environ["DISABLE_MULTIPROC"] = "1"  # the harness would fork beside torch's threads, and might wait for ever
    with _quiet():
        try:
            results: Results = lm_eval.simple_evaluate(
                model=model,
                tasks=tasks,
                num_fewshot=shots,
                limit=limit,
                log_samples=False,
                task_manager=TaskManager(include_defaults=False),
            )
        except (ValueError, AssertionError, NotImplementedError, *_OUT_OF_REACH) as error:
            raise FailedError(f"lm-evaluation-harness cannot run these tasks: {_first_line(error)}") from error
    # Pages about the machine, its packages and its folders.
    results = {key: value for key, value in results.items() if key not in ("pretty_env_info", "upper_git_hash")}
    return {"checkpoint": {"path": str(opened.folder.absolute()), "step": opened.step}, **results}


def as_json(results: Results) -> str:
    return json.dumps(results, indent=2, ensure_ascii=False, default=handle_non_serializable) + "\n"


def as_table(results: Results) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("task", "docs", "shots", "metric", "value", "stderr"):
        is_text = name in ("task", "metric")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=is_text, overflow="fold")
    for task, metrics in {**results["results"], **results.get("groups", {})}.items():
        documents = results["n-samples"].get(task, {}).get("effective", "")
        for key, value in metrics.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            error = metrics.get(f"{metric}_stderr,{kind}")
            name = metric if kind == "none" else f"{metric} ({kind})"
            shots = str(results["n-shot"].get(task, ""))
            table.add_row(task, str(documents), shots, name, _number(value), _number(error))
    return table


def _load(manager: TaskManager, name: str) -> dict[str, Task | Group]:
    """A task or a group by its name, or the tasks of a tag. Raises FailedError."""
    with _quiet():
        try:
            loaded = manager.load(name)
        except Exception as error:  # Tasks bring code of their own.
            if any(isinstance(cause, _OUT_OF_REACH) for cause in _causes(error)):
                raise FailedError(
                    f"The task {name} needs a data set that is not on this machine and could not be fetched; run it "
                    "once with a network, or set HF_HOME to a cache that holds it."
                ) from error
            raise FailedError(f"The task {name} cannot be loaded: {_first_line(error)}") from error
    return {name: loaded["groups"][name]} if name in loaded["groups"] else dict(loaded["tasks"])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The harness prints as it goes, where results belong, and warns of its own tasks' omissions."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"do you mean {' or '.join(near)}?" if near else f"ours are {heldout.NAME} and {heldout.NAME}_SOURCE."
    return f"There is no task {name!r}; {hint}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _number(value: Any) -> str:
    """A metric as text; the harness gives N/A, or nothing, for an error that it does not know."""
    return f"{value:.4f}" if isinstance(value, float) else "" if value in (None, "N/A") else str(value)
