"""Evaluating a checkpoint with lm-evaluation-harness: finding the tasks, running them, and their results."""

import contextlib
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import lm_eval
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable
from rich import box
from rich.table import Table

from trainer import contract
from trainer.contract import CHECKPOINT_METADATA_FILE, EVALUATION_SEEDS, PROBE_FILE, RESULTS_FOLDER, Event
from trainer.evaluation import task_files, task_names
from trainer.evaluation.lm_eval_model import CheckpointLM
from trainer.evaluation.open_checkpoint import OpenCheckpoint, open_checkpoint
from trainer.evaluation.tasks import heldout
from trainer.events import append_event
from trainer.exits import FailedError
from trainer.families.importing import import_folder
from trainer.files import write_atomically
from trainer.schema import ConfigError

CONFIG_OF_TRANSFORMERS = "config.json"
"""In a model folder of transformers."""

Results = dict[str, Any]
"""What the harness returns: `results` by task and `metric,filter`, versions, shots, samples, settings. We add
`checkpoint`, its path and step."""


class Row(NamedTuple):
    """A result: a metric of a task on some documents, with its standard error where the harness knows one."""

    task: str
    metric: str
    value: Any
    stderr: Any
    documents: int | None
    shots: int | None
    version: str


@dataclass(frozen=True)
class Settings:
    """How tasks are run. `limit` is the number of documents of each task, `shots` that of examples before each
    question, `rows` the batch size; None leaves each to the task or to the length. `include` is the folder of the
    user's own task files."""

    limit: int | None = None
    shots: int | None = None
    rows: int | None = None
    include: Path | None = None


_OUT_OF_REACH = (
    ConnectionError,
    DatasetNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
"""Errors that mean that a data set is neither on this machine nor can be downloaded."""
_NOT_OF_TASKS = (MemoryError, OSError, RuntimeError)
"""Errors of the machine and of the model."""


def find_tasks(names: Iterable[str], data: Path, include: Path | None) -> list[Task | Group]:
    """The tasks and groups of these names, of the harness, of the folder `include`, and `heldout`. `*` in a name stands
    for any letters, and a tag for all tasks that have it.

    `data` is the prepared data folder that `heldout` reads. Raises ConfigError for a name that no task has and for what
    is wrong with a file in `include`, and FailedError for a task whose data set is out of reach.
    """
    if include is not None:
        task_files.check_folder(include)
    ours: dict[str, Task | Group] = {}
    if any(name.startswith(heldout.NAME) for name in names):
        with _quiet():
            group = heldout.heldout(data)
        ours = {group.name: group} | {task.task_name: task for task in group}
    manager = TaskManager(include_path=include, include_defaults=False)
    included = manager.all_tasks
    known = [*ours, *sorted({*included, *task_names.of_harness()})]
    matches: list[str] = []
    for name in names:
        fitting = [task for task in known if fnmatchcase(task, name)]
        if not fitting:
            raise ConfigError(_unknown(name, known))
        for match in fitting:
            if include is not None and (lacks := task_files.missing_task(include, match, known)):
                raise ConfigError(_lacking(*lacks, known))
        matches += fitting
    theirs = [match for match in matches if match not in ours]
    if not all(match in included and _has_all(include, match, included) for match in theirs):
        # The harness's own 14,000 tasks take ten seconds to read, so they are read only where one of them is to run.
        manager = TaskManager(include_path=include)
    found: dict[str, Task | Group] = {}
    for match in matches:
        found |= {match: ours[match]} if match in ours else _load(manager, match, match in included)
    return list(found.values())


def evaluate_each(
    folders: Sequence[Path],
    names: Iterable[str],
    data: Path | None,
    settings: Settings,
    advance: Callable[[str, float], None],
) -> Iterator[Results]:
    """The results of each checkpoint in turn; one model is in memory at a time.

    A folder may be a model folder of transformers too, whose step is N where it is `stepN` or `base-stepN`, else 0. The
    tasks are found once, `heldout` in the prepared folder `data`, or in that of the first checkpoint's run. Raises what
    `find_tasks` and `evaluate` do, and ConfigError for a model that the trainer cannot read.
    """
    found: list[Task | Group] = []
    for folder in folders:
        opened = _open(folder, advance)
        if data is None and not _is_ours(folder) and any(name.partition("_")[0] == heldout.NAME for name in names):
            raise ConfigError(
                f"{folder} says of no data that it was trained on; give --data, or leave {heldout.NAME} out."
            )
        found = found or find_tasks(names, data or opened.data, settings.include)
        several = f"step {opened.step:,}: " if len(folders) > 1 else ""
        yield evaluate(opened, found, settings, lambda stage, share, several=several: advance(several + stage, share))  # type: ignore[misc]
        del opened


def _open(folder: Path, advance: Callable[[str, float], None]) -> OpenCheckpoint:
    """Open a checkpoint, or a model folder of transformers, which is imported for as long as that takes."""
    if _is_ours(folder) or not (folder / CONFIG_OF_TRANSFORMERS).exists():
        return open_checkpoint(folder)
    step = contract.revision_step(folder.name.removeprefix(contract.BASE_PREFIX))
    with TemporaryDirectory(prefix="imported-", dir=folder.parent) as place:
        imported = import_folder(folder, Path(place), "demo", advance).folder
        return replace(open_checkpoint(imported), folder=folder, step=step)


def _is_ours(folder: Path) -> bool:
    """Whether a folder is a checkpoint of this trainer, and no other model of transformers."""
    return any((folder / name).exists() for name in (CHECKPOINT_METADATA_FILE, PROBE_FILE))


def evaluate(
    opened: OpenCheckpoint,
    tasks: list[Task | Group],
    settings: Settings,
    advance: Callable[[str, float], None],
) -> Results:
    """Run the tasks on the checkpoint.

    `advance` is told a stage and the share of it that was just done. Raises ConfigError if the harness cannot run the
    user's own tasks, and FailedError for others.
    """
    include = settings.include
    model = CheckpointLM(opened, settings.rows, advance)
    os.environ["DISABLE_MULTIPROC"] = "1"  # a fork beside torch's threads might wait for ever
    with _quiet():
        try:
            results: Results = lm_eval.simple_evaluate(
                model=model,
                tasks=tasks,
                num_fewshot=settings.shots,
                limit=settings.limit,
                log_samples=False,
                task_manager=TaskManager(include_defaults=False),
                random_seed=EVALUATION_SEEDS["random"],
                numpy_random_seed=EVALUATION_SEEDS["numpy"],
                torch_random_seed=EVALUATION_SEEDS["torch"],
                fewshot_random_seed=EVALUATION_SEEDS["fewshot"],
            )
        except Exception as error:  # tasks bring templates and code of their own
            if isinstance(error, _NOT_OF_TASKS) and not isinstance(error, (NotImplementedError, *_OUT_OF_REACH)):
                raise
            if include is not None and any(Path(file).is_relative_to(include) for file in _files(tasks)):
                raise ConfigError(f"Mend the tasks in --include-path: {_first_line(error)}") from error
            raise FailedError(f"lm-evaluation-harness cannot run these tasks: {_first_line(error)}") from error
    # Left out: pages about the machine, its packages and its folders.
    results = {key: value for key, value in results.items() if key not in ("pretty_env_info", "upper_git_hash")}
    return {"checkpoint": {"path": str(opened.folder.absolute()), "step": opened.step}, **results}


def save(results: Results, out: Path) -> None:
    """Write a checkpoint's results into the folder `out`, and append one event with all of them. Raises OSError."""
    step = results["checkpoint"]["step"]
    (out / RESULTS_FOLDER).mkdir(exist_ok=True)
    write_atomically(out / RESULTS_FOLDER / f"step{step}.json", as_json(results))
    known = [row for row in rows(results) if _finite(row.value) is not None]
    measured = [row._replace(value=_finite(row.value), stderr=_finite(row.stderr))._asdict() for row in known]
    append_event(out, Event.RESULT, step=step, results=measured)


def rows(results: Results) -> Iterator[Row]:
    """The results, a row a task and metric, a task's metrics in the order of its configuration; groups come last."""
    for task, metrics in {**results["results"], **results.get("groups", {})}.items():
        listed = results.get("configs", {}).get(task, {}).get("metric_list") or []
        places = {metric["metric"]: place for place, metric in enumerate(listed)}
        for key, value in sorted(metrics.items(), key=lambda item: places.get(item[0].partition(",")[0], len(places))):
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            yield Row(
                task=task,
                metric=metric if kind == "none" else f"{metric} ({kind})",
                value=value,
                stderr=metrics.get(f"{metric}_stderr,{kind}"),
                documents=results["n-samples"].get(task, {}).get("effective"),
                shots=results["n-shot"].get(task),
                version=str(results.get("versions", {}).get(task, "")),
            )


def as_json(results: Results) -> str:
    """The results as JSON text."""
    return json.dumps(results, indent=2, ensure_ascii=False, default=handle_non_serializable) + "\n"


def as_table(results: Results) -> Table:
    """The results as a table, one row a task and metric."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("task", "docs", "shots", "metric", "value", "stderr"):
        is_text = name in ("task", "metric")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=is_text, overflow="fold")
    for row in rows(results):
        documents, shots = ("" if each is None else str(each) for each in (row.documents, row.shots))
        table.add_row(row.task, documents, shots, row.metric, _number(row.value), _number(row.stderr))
    return table


def _has_all(include: Path | None, name: str, included: Collection[str]) -> bool:
    """Whether the tasks that one of the user's own groups names are in the same folder."""
    return include is not None and task_files.missing_task(include, name, included) is None


def _load(manager: TaskManager, name: str, is_own: bool) -> dict[str, Task | Group]:
    """The task or the group of a name, or the tasks of a tag, by name. Raises FailedError, and ConfigError where the
    task file is the user's own."""
    with _quiet():
        try:
            loaded = manager.load(name)
        except Exception as error:  # tasks bring code of their own
            if any(isinstance(cause, _OUT_OF_REACH) for cause in _causes(error)):
                raise FailedError(
                    f"The task {name} needs a data set that is not on this machine and could not be fetched; run it "
                    "once with a network, or set HF_HOME to a cache that holds it."
                ) from error
            if is_own:
                raise ConfigError(f"Mend the task {name} in --include-path: {_first_line(error)}") from error
            raise FailedError(f"The task {name} cannot be loaded: {_first_line(error)}") from error
    return {name: loaded["groups"][name]} if name in loaded["groups"] else dict(loaded["tasks"])


def _files(tasks: Iterable[Task | Group]) -> Iterator[str]:
    """The files that the tasks were read from."""
    for task in tasks:
        if isinstance(task, Group):
            yield from _files(task)
        else:
            yield str((task.config.metadata or {}).get("config_source", ""))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Send what the harness prints to standard error, for standard output is for results, and drop what it logs:
    an error of a task is raised besides."""
    logging.getLogger("lm_eval").setLevel(logging.CRITICAL)
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _unknown(name: str, known: list[str]) -> str:
    near = task_names.nearest(name, known)
    hint = f"do you mean {' or '.join(near)}?" if near else f"ours are {heldout.NAME} and {heldout.NAME}_SOURCE."
    return f"There is no task {name!r}; {hint}"


def _lacking(group: str, task: str, known: list[str]) -> str:
    near = task_names.nearest(task, known)
    hint = f"do you mean {' or '.join(near)}?" if near else "add that task, or take it out of the group."
    return f"The group {group!r} in --include-path names {task!r}, and there is no such task; {hint}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _finite(value: Any) -> float | None:
    """The value, where it is a number other than NaN and the infinities."""
    return float(value) if isinstance(value, float | int) and math.isfinite(value) else None


def _number(value: Any) -> str:
    """A metric as text. For an unknown standard error the harness has N/A or None, which become the empty text."""
    return f"{value:.4f}" if isinstance(value, float) else "" if value in (None, "N/A") else str(value)
