"""The metrics that go along with a checkpoint: the lines since the one before, and the thinned losses of the whole run.

A run may log millions of lines. Each is read once: what was seen up to a checkpoint is kept in a file of its attempt.
"""

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broker.runs import series
from broker.runs.series import Measured
from trainer import contract

STATE_FILE = "published_losses.json"
MOST_LOSSES = 2 * series.MOST_POINTS
"""The losses are thinned when there are more than this."""
LONGEST_LINE = 2**20
"""A longer line is no entry, and is left out."""


@dataclass
class Losses:
    """The thinned losses up to `step`, of an attempt and those before; `offset` is the byte after that step's line."""

    step: int = -1
    offset: int = 0
    points: list[Measured] = field(default_factory=list)

    def add(self, line: dict[str, Any]) -> None:
        """Add the loss of a line of the metrics, if it has one."""
        loss, tokens = line.get("loss"), line.get("tokens", line["step"])
        if isinstance(loss, float) and math.isfinite(loss) and isinstance(tokens, int):
            self.points.append(Measured("loss", line["step"], tokens, loss))
            if len(self.points) > MOST_LOSSES:
                self.points = series.downsample(self.points)


def write(step: int, attempt: Path, since: int, target: Path) -> Sequence[Measured]:
    """Write the lines after step `since` up to `step` to a file; returns the thinned losses of the run up to `step`.

    The lines are those of the attempt in the folder `attempt` and of the run's earlier ones, in the order of steps;
    where several attempts have a step, the latest attempt's line counts. Raises OSError.
    """
    known = _known(attempt, step)
    begin = known.step
    if begin > since:  # lines that were seen are to be written again, as the checkpoint before was not published
        known.offset = 0
    partial = target.with_name(f".{target.name}.writing")
    with partial.open("w", encoding="utf-8") as out:
        for line in _lines_up_to(step, attempt, min(begin, since), known):
            if line["step"] > since:
                out.write(f"{json.dumps(line)}\n")
            if line["step"] > begin:
                known.add(line)
    os.replace(partial, target)
    known.step = step
    _keep(attempt, known)
    return known.points


def _lines_up_to(step: int, attempt: Path, since: int, known: Losses) -> Iterator[dict[str, Any]]:
    """The lines that `write` asks for, whose number memory does not grow with.

    `known.offset` says where to begin in the attempt's own file, and moves on with the lines read.
    """
    folders = _attempts(attempt)
    firsts = [_first_step(folder) for folder in folders]
    for number, folder in enumerate(folders):
        later = [first for first in firsts[number + 1 :] if first is not None]
        last = min([step, *(first - 1 for first in later)])
        begin = known.offset if folder == attempt else _seen_up_to(folder, since)
        for line, end in _lines(folder / contract.METRICS_FILE, begin):
            if line["step"] > last:
                break
            if folder == attempt:
                known.offset = end
            if line["step"] > since:
                since = line["step"]
                yield line


def _seen_up_to(earlier: Path, since: int) -> int:
    """The byte of an earlier attempt's metrics before which there is no line after step `since`, as far as is kept."""
    kept = _kept(earlier / STATE_FILE)
    return kept.offset if kept is not None and kept.step <= since else 0


def _known(attempt: Path, step: int) -> Losses:
    """What was seen up to an earlier checkpoint, of this attempt or else of the latest one before; nothing else."""
    later: int | None = None
    for folder in reversed(_attempts(attempt)):
        kept = _kept(folder / STATE_FILE)
        if kept is not None and kept.step <= step:
            if folder == attempt:
                return kept
            until = kept.step if later is None else min(kept.step, later - 1)
            return Losses(until, 0, [point for point in kept.points if point.step <= until])
        later = min((first for first in (later, _first_step(folder)) if first is not None), default=None)
    return Losses()


def _kept(path: Path) -> Losses | None:
    try:
        told = json.loads(path.read_bytes())
        points = [Measured("loss", int(step), int(tokens), float(loss)) for step, tokens, loss in told["losses"]]
        return Losses(int(told["step"]), int(told["offset"]), points)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _keep(attempt: Path, losses: Losses) -> None:
    points = [(point.step, point.tokens, point.value) for point in losses.points]
    partial = attempt / f".{STATE_FILE}.{os.getpid()}"
    partial.write_text(json.dumps({"step": losses.step, "offset": losses.offset, "losses": points}))
    os.replace(partial, attempt / STATE_FILE)


def _attempts(attempt: Path) -> list[Path]:
    """The folders of the run's attempts up to this one, the oldest first."""
    token = attempt.name.removeprefix("attempt-")
    numbers = range(1, int(token) + 1) if token.isdecimal() else ()
    return [attempt.with_name(f"attempt-{number}") for number in numbers] or [attempt]


def _first_step(folder: Path) -> int | None:
    """The step of the first line of an attempt's metrics; None where it has none."""
    line, _ = next(_lines(folder / contract.METRICS_FILE, 0), (None, 0))
    return None if line is None else int(line["step"])


def _lines(path: Path, offset: int) -> Iterator[tuple[dict[str, Any], int]]:
    """The entries of a metrics file from a byte on, each with the byte after it; what a kill cut short is left out."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        while text := file.readline(LONGEST_LINE):
            offset += len(text)
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(line, dict) and type(line.get("step")) is int:
                yield line, offset
