"""What a trainer leaves in its folder while it runs, read from the byte where the last reading ended."""

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from broker.end_reasons import EndReason
from broker.runners import causes
from broker.runners.causes import Room
from broker.runs.progress import Checkpoint, Ending, PreparedData, Progress, Result, Spike
from broker.runs.series import Measured
from projects import text
from trainer import contract
from trainer.contract import Event, Status

MOST_SAID = 4000
MOST_BYTES = 4 * 2**20
"""The most bytes of a file that one reading takes, so that a supervisor's memory does not grow with a run's length."""
MOST_COUNT = 2**53
"""The largest whole number that a float holds exactly; a column of the database holds it too."""
UNREADABLE = (OSError, ValueError, RecursionError)
RESULT_FIELDS = frozenset(Result._fields) - {"step"}
LONGEST_NAME = 200
MEASURED = ("loss", "lr", "grad_norm", "tokens_per_second", "mfu", "loss_scale", "skipped")
"""What of a line of metrics becomes series; the last two come in fp16."""

log = structlog.get_logger()


def read(folder: Path, metrics_read: int, events_read: int) -> Progress:
    """The progress written since those bytes of `metrics.jsonl` and `events.jsonl`; only whole lines are read.

    Reads at most `MOST_BYTES` of each file. A value of another type than the contract's leaves its line out.
    """
    metrics, metrics_end, more_metrics = _lines(folder / contract.METRICS_FILE, metrics_read, _is_metric)
    events, events_end, more_events = _lines(folder / contract.EVENTS_FILE, events_read, _is_event)
    points = [
        Measured(name, line["step"], line["tokens"], float(line[name]))
        for line in metrics
        for name in MEASURED
        if _is_finite(line.get(name))
    ]
    evaluations = [event for event in events if event["event"] == Event.EVALUATION]
    points += [
        Measured("held_out", event["step"], event["tokens"], float(event["loss"]))
        for event in evaluations
        if _is_finite(event.get("loss"))
    ]
    entropies = [event["unigram_entropy"] for event in evaluations if _is_finite(event.get("unigram_entropy"))]
    return Progress(
        metrics_read=metrics_end,
        events_read=events_end,
        step=metrics[-1]["step"] if metrics else None,
        tokens=metrics[-1]["tokens"] if metrics else None,
        unigram_entropy=float(entropies[-1]) if entropies else None,
        points=points,
        checkpoints=[
            Checkpoint(event["step"], str(folder / event["path"]))
            for event in events
            if event["event"] == Event.CHECKPOINT
        ],
        spikes=[
            Spike(event["step"], float(event["loss"]), float(event["usual"]))
            for event in events
            if event["event"] == Event.SPIKE
        ],
        results=[
            *(
                Result(event["step"], **result)
                for event in events
                if event["event"] == Event.RESULT
                for result in event["results"]
            ),
            *(result for line in metrics if "loss" not in line for result in _studied(line)),
        ],
        phase=next((event["message"] for event in reversed(events) if event["event"] == Event.PROGRESS), None),
        more=more_metrics or more_events,
    )


def until(progress: Progress, step: int) -> Progress:
    """The part of a progress up to a step."""
    points = [point for point in progress.points if point.step <= step]
    done = progress.step is not None and progress.step <= step
    spikes = [spike for spike in progress.spikes if spike.step <= step]
    found = [checkpoint for checkpoint in progress.checkpoints if checkpoint.step <= step]
    if done:
        return replace(progress, points=points, checkpoints=found, spikes=spikes)
    return replace(progress, points=points, checkpoints=found, spikes=spikes, step=None, tokens=None)


def left(folder: Path) -> str:
    """The sentence that a trainer which failed has left in its folder; empty where there is none."""
    said = _said(folder / contract.OUTCOME_FILE)
    failed = said.get("status") in (Status.FAILED, Status.CONFIG)
    return causes.public(str(said.get("reason") or ""), folder) if failed else ""


def prepared(folder: Path) -> PreparedData | None:
    """What a preparation has made in its folder; None where it cannot be read."""
    try:
        return PreparedData(str(folder), contract.measured_data(folder))
    except (OSError, ValueError, LookupError, TypeError) as error:
        log.error("the prepared data cannot be read", folder=str(folder), exc_info=error)
        return None


def ending(
    folder: Path,
    status: int,
    *,
    timed_out: bool,
    how: str = "",
    known: EndReason | None = None,
    room: Room | None = None,
) -> Ending:
    """How the trainer ended, by its exit status and the sentences that it and its runner (`how`) gave.

    `known` is what the runner or the supervisor knows of the reason beyond the status, `room` the memory that it had.
    """
    said = _said(folder / contract.OUTCOME_FILE)
    written = _said(folder / contract.SAMPLE_FILE) if status == Status.DONE else {}
    given = str(said.get("reason") or "")
    return Ending(
        status=status,
        reason=causes.sentence(folder, status, said=given, runner=how, known=known, room=room),
        # A trainer that gave no reason may do better another time, unless it was refused.
        transient=bool(said.get("transient", status not in (Status.REFUSED, Status.CONFIG))),
        timed_out=timed_out,
        known=known,
        sample=text.cleaned(str(written.get("text", "")))[:MOST_SAID],
        sample_step=int(step) if isinstance(step := written.get("checkpoint_step"), int) else None,
    )


def checkpoints(folders: Sequence[Path]) -> list[Checkpoint]:
    """The checkpoints in the folders of a run's earlier attempts, in the order of steps, which this closes.

    What a stale trainer adds later, on a host that was given up but lives on, is not read by any later attempt.
    """
    whole = [(contract.checkpoint_step(path), path) for folder in folders for path in _closed(folder)]
    return sorted(
        (Checkpoint(step, str(path)) for step, path in whole if step is not None), key=lambda found: found.step
    )


def _closed(folder: Path) -> list[Path]:
    """The whole checkpoints, which have a final name, as they stood when this was first asked."""
    closed = folder / "closed.json"
    names = _names(closed)
    if names is None:
        names = [path.name for path in contract.checkpoints(folder)]
        if not folder.is_dir():
            return []
        new = folder / f".closed.{os.getpid()}"
        new.write_text(json.dumps(names))
        new.replace(closed)
    paths = [folder / contract.CHECKPOINTS_FOLDER / name for name in names]
    return [path for path in paths if path.exists()]


def _names(closed: Path) -> list[str] | None:
    """The names in a file of `_closed`; None where there is none, or a power cut has left it without them."""
    with suppress(*UNREADABLE):
        names = json.loads(closed.read_bytes())
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return names
    return None


def _said(path: Path) -> dict[str, Any]:
    """What a trainer has left in a file of its own; nothing where it is missing, or a full disk has cut it short."""
    with suppress(*UNREADABLE):
        said = json.loads(path.read_bytes())
        return said if isinstance(said, dict) else {}
    return {}


def _lines(path: Path, start: int, good: Callable[[dict[str, Any]], bool]) -> tuple[list[dict[str, Any]], int, bool]:
    """The good lines of a JSONL file from byte `start`, the byte after the last whole line, and whether more follows.

    A line that a full disk has cut short, with the next one written on to it, is left out, and so is one of more than
    `MOST_BYTES`.
    """
    if not path.exists():
        return [], start, False
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(MOST_BYTES)
    whole = data[: data.rfind(b"\n") + 1] or (data if len(data) == MOST_BYTES else b"")
    parsed = [_parsed(line) for line in whole.split(b"\n") if line]
    found = [line for line in parsed if line is not None and good(line)]
    if len(found) < len(parsed):
        log.warning("lines that are no entries were left out", file=str(path), count=len(parsed) - len(found))
    return found, start + len(whole), len(data) == MOST_BYTES


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        parsed = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _is_metric(line: dict[str, Any]) -> bool:
    return _is_count(line.get("step")) and _is_count(line.get("tokens"))


def _is_event(event: dict[str, Any]) -> bool:
    """Whether an event has what its kind needs; kinds that are not read here need nothing."""
    match event.get("event"):
        case Event.CHECKPOINT:
            path = event.get("path")
            return _is_count(event.get("step")) and isinstance(path, str) and _is_inside(path)
        case Event.EVALUATION:
            return _is_metric(event)
        case Event.PROGRESS:
            return isinstance(event.get("message"), str)
        case Event.SPIKE:
            return _is_count(event.get("step")) and _is_finite(event.get("loss")) and _is_finite(event.get("usual"))
        case Event.RESULT:
            results = event.get("results")
            return _is_count(event.get("step")) and isinstance(results, list) and all(map(_is_result, results))
        case other:
            return isinstance(other, str)


def _studied(line: dict[str, Any]) -> Iterator[Result]:
    """The numbers of a checkpoint that a study has written as `ANALYSIS.NAME`, each with its standard error."""
    for key, value in line.items():
        analysis, dot, name = key.partition(".")
        if dot and not key.endswith("_stderr") and _is_finite(value) and len(key) <= LONGEST_NAME:
            yield Result(line["step"], analysis, name, float(value), _finite(line.get(f"{key}_stderr")))


def _finite(value: Any) -> float | None:
    return float(value) if _is_finite(value) else None


def _is_result(result: Any) -> bool:
    """Whether a result has exactly what one has, each of its type, and short names."""
    if not isinstance(result, dict) or set(result) != RESULT_FIELDS:
        return False
    names = (result["task"], result["metric"], result["version"])
    return (
        all(isinstance(name, str) and len(name) <= LONGEST_NAME for name in names)
        and _is_finite(result["value"])
        and (result["stderr"] is None or _is_finite(result["stderr"]))
        and all(result[name] is None or _is_count(result[name]) for name in ("documents", "shots"))
    )


def _is_inside(path: str) -> bool:
    """Whether a path leads into the trainer's own folder."""
    return "\0" not in path and not Path(path).is_absolute() and ".." not in Path(path).parts


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_COUNT


def _is_finite(value: object) -> bool:
    """Whether a value is a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) <= MOST_COUNT
