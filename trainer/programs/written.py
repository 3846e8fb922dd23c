"""What a program writes for people: `metrics.jsonl`, `results.json` and pictures, read within bounds. Imports no torch.

A program's folder is not to be trusted: what is no plain file, is too large or says something else is left out.
"""

import json
import math
import os
import shutil
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.contract import METRICS_FILE, PICTURES_FOLDER, RESULTS_FILE, SAMPLE_FILE, Event
from trainer.events import append_event
from trainer.files import write_atomically

MOST_NAMES, LONGEST_NAME = 40, 60
KEPT_LINES = 500
"""Lines of metrics, after which every second one is kept, and after as many again every fourth."""
LONGEST_LINE = 64 * 2**10
BYTES_A_ROUND = 2**20
MOST_RESULT_BYTES, MOST_FIELDS, LONGEST_VALUE = 2**20, 30, 200
MOST_PICTURES, MOST_PICTURE_BYTES, MOST_PIXELS_A_SIDE = 4, 8 * 2**20, 4096
PNG = b"\x89PNG\r\n\x1a\n"


class Metrics:
    """Tells the lines of a program's `metrics.jsonl` as results of their steps, fewer of them the longer it is."""

    def __init__(self, work: Path, out: Path) -> None:
        self._path, self._out = work / METRICS_FILE, out
        self._read = self._lines = self._kept = 0
        self._names: dict[str, None] = {}
        self.step = 0

    def tell(self) -> bool:
        """Tell what is new; whether there may be more at once."""
        with _opened(self._path) as file:
            if file is None:
                return False
            file.seek(self._read)
            data = file.read(BYTES_A_ROUND)
        whole = data[: data.rfind(b"\n") + 1] or (data if len(data) == BYTES_A_ROUND else b"")
        self._read += len(whole)
        for line in whole.splitlines():
            numbers = _numbers(line)
            if numbers is None:
                continue
            self._lines += 1
            step = int(numbers.pop("step", self._lines))
            if self._lines % 2 ** (self._kept // KEPT_LINES) == 0:
                self._kept += 1
                self._tell(step, numbers)
        return len(data) == BYTES_A_ROUND

    def _tell(self, step: int, numbers: Mapping[str, float]) -> None:
        for name in numbers:
            if len(self._names) < MOST_NAMES:
                self._names.setdefault(name)
        found = [
            {"task": "metrics", "metric": name, "value": value, "stderr": None, "documents": None, "shots": None}
            | {"version": ""}
            for name, value in numbers.items()
            if name in self._names
        ]
        if found:
            self.step = max(self.step, step)
            append_event(self._out, Event.RESULT, step=step, results=found)


def finish(work: Path, out: Path, step: int) -> list[str]:
    """Keep what a program that has ended leaves: its results as a text, and its pictures; what was left out, in words.

    Raises OSError.
    """
    said, left_out = _results(work / RESULTS_FILE)
    kept: list[str] = []
    for path in sorted(work.glob("*.png"))[:1000]:
        why = picture_refused(path)
        if not why and len(kept) == MOST_PICTURES:
            why = f"it is more than the {MOST_PICTURES} that are shown"
        if why:
            left_out.append(f"{path.name[:60]} is not shown: {why}")
            continue
        kept.append(path.name[:60])
        (out / PICTURES_FOLDER).mkdir(exist_ok=True)
        shutil.copyfile(path, out / PICTURES_FOLDER / f"{len(kept)}.png", follow_symlinks=False)
    shown = [f"pictures: {', '.join(kept)}"] if kept else []
    text = "\n".join([*said, *shown, *left_out[:MOST_FIELDS]])
    write_atomically(out / SAMPLE_FILE, json.dumps({"text": text, "checkpoint_step": step}))
    return left_out


def picture_refused(path: Path) -> str:
    """Why a picture is not shown, by its size and its header alone; empty where it is."""
    with _opened(path) as file:
        if file is None:
            return "it is no plain file"
        if os.fstat(file.fileno()).st_size > MOST_PICTURE_BYTES:
            return f"it has more than {MOST_PICTURE_BYTES >> 20} MB"
        header = file.read(24)
    if len(header) < 24 or header[:8] != PNG or header[12:16] != b"IHDR":
        return "it is no PNG"
    width, height = struct.unpack(">II", header[16:24])
    if not 0 < width <= MOST_PIXELS_A_SIDE or not 0 < height <= MOST_PIXELS_A_SIDE:
        return f"it is {width:,} × {height:,}, and at most {MOST_PIXELS_A_SIDE:,} × {MOST_PIXELS_A_SIDE:,} are shown"
    return ""


def _results(path: Path) -> tuple[list[str], list[str]]:
    """The fields of `results.json` as lines, and what was left out, in words."""
    with _opened(path) as file:
        if file is None:
            return [], []
        data = file.read(MOST_RESULT_BYTES + 1)
    if len(data) > MOST_RESULT_BYTES:
        return [], [f"{RESULTS_FILE} is not shown: it has more than {MOST_RESULT_BYTES >> 20} MB"]
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return [], [f"{RESULTS_FILE} is not shown: it is no JSON"]
    if not isinstance(found, dict):
        return [], [f"{RESULTS_FILE} is not shown: it holds no fields"]
    lines = [f"{_bounded(name, LONGEST_NAME)}: {_bounded(value, LONGEST_VALUE)}" for name, value in found.items()]
    more = (
        [f"{len(lines) - MOST_FIELDS} more fields of {RESULTS_FILE} are not shown"] if len(lines) > MOST_FIELDS else []
    )
    return lines[:MOST_FIELDS], more


def _bounded(value: Any, most: int) -> str:
    said = f"{value:.6g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    line = " ".join(said.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _numbers(line: bytes) -> dict[str, float] | None:
    """The finite numbers of a line of metrics by name, with its step; None for what is no such line."""
    if not line or len(line) > LONGEST_LINE:
        return None
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    numbers = {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and len(name) <= LONGEST_NAME
        if abs(value) < 2**53 and math.isfinite(value)
    }
    return numbers if numbers.get("step", 0) >= 0 else None


class _opened:  # noqa: N801
    """A plain file opened for reading, None for anything else: a link, a pipe, a device."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Any:
        self._file = None
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        self._file = os.fdopen(descriptor, "rb")
        return self._file if stat.S_ISREG(os.fstat(descriptor).st_mode) else None

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
