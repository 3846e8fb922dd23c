"""How a run ends and what it leaves on the way: statuses, `outcome.json`, and the two append-only files."""

import json
import os
import time
from enum import IntEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel

CONNECTION_LOST = "The connection to another rank was lost, which ended before this one."


class Status(IntEnum):
    """Exit statuses, after sysexits.h."""

    DONE = 0
    FAILED = 70
    STOPPED = 75
    CONFIG = 78


class Outcome(BaseModel):
    """What `outcome.json` holds. `transient`: a fresh attempt may well succeed."""

    status: Status
    reason: str | None = None
    step: int | None = None
    transient: bool = False

    def write(self, out: Path) -> None:
        write_atomically(out / "outcome.json", self.model_dump_json() + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is whole whenever it is there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def add_event(out: Path, event: str, **fields: Any) -> None:
    _append(out / "events.jsonl", {"time": time.time(), "event": event, **fields})


def add_metrics(out: Path, **fields: Any) -> None:
    _append(out / "metrics.jsonl", {"time": time.time(), **fields})


def last_metrics(out: Path, count: int) -> list[dict[str, Any]]:
    """The last lines of `metrics.jsonl`, `count` of them if there are so many."""
    try:
        with (out / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1024 * (count + 1)))
            lines = file.read().splitlines()[-count:]
            # The first may have been cut, and a kill may have cut the last.
            return [json.loads(line) for line in lines if line.startswith(b"{") and line.endswith(b"}")]
    except (OSError, ValueError):
        return []


def cut_metrics(out: Path, step: int) -> None:
    """Take out the lines past `step`, which is done again."""
    path = out / "metrics.jsonl"
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    # A line that a kill cut short goes too.
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    if len(kept) < len(lines):
        write_atomically(path, "".join(kept))


def _append(path: Path, record: dict[str, Any]) -> None:
    """Add one line in one write, so that a reader never sees half of one."""
    line = json.dumps(record, allow_nan=False).encode() + b"\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)
