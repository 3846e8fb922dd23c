"""What a trainer leaves in its folder while it runs, read from the byte where the last reading ended."""

import json
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from broker.end_reasons import EndReason
from broker.runs.attempts import Checkpoint, Ending, Progress
from broker.runs.series import Measured
from projects import text
from trainer import contract
from trainer.contract import Event, Status

MOST_SAID = 4000
LAST_BYTES = 2000
MEASURED = ("loss", "lr", "grad_norm", "tokens_per_second")

log = structlog.get_logger()


def read(folder: Path, metrics_read: int, events_read: int) -> Progress:
    """The progress written since those bytes of `metrics.jsonl` and `events.jsonl`; only whole lines are read."""
    metrics, metrics_end = _lines(folder / contract.METRICS_FILE, metrics_read, "step", "tokens")
    events, events_end = _lines(folder / contract.EVENTS_FILE, events_read, "event")
    points = [
        Measured(name, line["step"], line["tokens"], float(line[name]))
        for line in metrics
        for name in MEASURED
        if isinstance(line.get(name), int | float) and math.isfinite(line[name])
    ]
    evaluations = [event for event in events if event["event"] == Event.EVALUATION]
    points += [
        Measured("held_out", event["step"], event["tokens"], event["loss"])
        for event in evaluations
        if math.isfinite(event["loss"])
    ]
    return Progress(
        metrics_read=metrics_end,
        events_read=events_end,
        step=metrics[-1]["step"] if metrics else None,
        tokens=metrics[-1]["tokens"] if metrics else None,
        unigram_entropy=evaluations[-1]["unigram_entropy"] if evaluations else None,
        points=points,
        checkpoints=[
            Checkpoint(event["step"], str(folder / event["path"]))
            for event in events
            if event["event"] == Event.CHECKPOINT
        ],
    )


def ending(folder: Path, status: int, *, timed_out: bool, how: str = "", known: EndReason | None = None) -> Ending:
    """How the trainer ended, by its exit status and the sentence that it, or else its runner (`how`), gave.

    `known` is what the runner or the supervisor knows of the reason beyond the status.
    """
    said = _said(folder / contract.OUTCOME_FILE)
    reason = said.get("reason") or how or ("" if status == Status.DONE else _unsaid(folder, status))
    return Ending(
        status=status,
        reason=text.cleaned(str(reason))[:MOST_SAID],
        # A trainer that gave no reason may do better another time, unless it was refused.
        transient=said.get("transient", status not in (Status.REFUSED, Status.CONFIG)),
        timed_out=timed_out,
        known=known,
        sample=text.cleaned(str(_said(folder / contract.SAMPLE_FILE).get("text", "")))[:MOST_SAID]
        if status == Status.DONE
        else "",
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
    if not closed.exists():
        names = [path.name for path in contract.checkpoints(folder)]
        if not folder.is_dir():
            return []
        new = folder / f".closed.{os.getpid()}"
        new.write_text(json.dumps(names))
        new.replace(closed)
    paths = [folder / contract.CHECKPOINTS_FOLDER / name for name in json.loads(closed.read_text())]
    return [path for path in paths if path.exists()]


def _said(path: Path) -> dict[str, Any]:
    """What a trainer has left in a file of its own; nothing where it is missing, or a full disk has cut it short."""
    with suppress(OSError, ValueError):
        said = json.loads(path.read_text())
        return said if isinstance(said, dict) else {}
    return {}


def _unsaid(folder: Path, status: int) -> str:
    if status == Status.STOPPED:
        return "it was asked to stop"
    if status == Status.CONFIG and (last := _last_line(folder / contract.LOG_FILE)):
        return last
    return f"the trainer was ended by signal {-status}" if status < 0 else f"the trainer ended with status {status}"


def _last_line(path: Path) -> str:
    """The last words of a log; empty where there are none."""
    with suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LAST_BYTES))
        lines = file.read().decode(errors="replace").split("\n")
        return next((said for line in reversed(lines) if (said := text.cleaned(line))), "")
    return ""


def _lines(path: Path, start: int, *names: str) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of a JSONL file from byte `start` that have these names, and the byte after the last of them.

    A line that a full disk has cut short, with the next one written on to it, is left out.
    """
    if not path.exists():
        return [], start
    with path.open("rb") as file:
        file.seek(start)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    found = [_parsed(line) for line in whole.splitlines()]
    good = [line for line in found if line is not None and all(name in line for name in names)]
    if len(good) < len(found):
        log.warning("lines that are no entries were left out", file=str(path), count=len(found) - len(good))
    return good, start + len(whole)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        parsed = json.loads(line)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None
