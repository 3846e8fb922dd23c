"""A run of many lines of metrics: nobody who reads them needs more memory for more of them, nor reads a line again."""

import json
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from bench import metrics as bench
from broker.plots.curve_of_run import curve_of
from broker.publishing import metrics
from broker.runs import runs, series
from projects.db.database import Database
from trainer.contract import CHECKPOINTS_FOLDER, METRICS_FILE

FEW, MANY = 5_000, 20_000
CHECKPOINTS = 10


def peak(work: Callable[[], object]) -> int:
    """The most bytes of Python's own that some work holds at once."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.chaos
def test_four_times_the_lines_take_no_more_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.runners.output.MOST_BYTES", 2**18)  # less than the fewer lines have
    most: dict[str, list[int]] = {"supervise": [], "publish": [], "curve": []}
    for lines in (FEW, MANY):
        url, attempt = f"sqlite:///{tmp_path / str(lines)}.db", tmp_path / str(lines) / "attempt-1"
        db = Database(url)
        db.migrate()
        bench.furnish(db, lines)
        bench.train(attempt, lines, CHECKPOINTS)
        most["supervise"].append(peak(partial(bench.supervise, url, attempt)))
        most["publish"].append(peak(partial(publish, attempt, lines)))
        most["curve"].append(peak(partial(read_curve, db)))
        with db.read() as session:
            assert runs.view(session, 1).step == lines
            points = series.read(session, 1, "loss")
        assert (points[0].step, points[-1].step) == (1, lines)
        assert len(points) <= series.MOST_POINTS
        db.close()
    for what, (few, many) in most.items():
        assert many < 1.3 * few, f"{what}: {few:,} bytes for {FEW:,} lines, {many:,} for {MANY:,}"


def publish(attempt: Path, lines: int) -> None:
    """Write what each checkpoint is published with, and hold that each line is in one of them."""
    since, seen = -1, 0
    for number in range(1, CHECKPOINTS + 1):
        step = lines * number // CHECKPOINTS
        target = attempt / CHECKPOINTS_FOLDER / f"step{step}" / METRICS_FILE
        losses = metrics.write(step, attempt, since, target)
        with target.open() as file:
            for line in file:
                seen += 1
                assert json.loads(line)["step"] == seen
        assert losses[-1].step == step
        since = step
    assert seen == lines


def read_curve(db: Database) -> None:
    with db.read() as session:
        curve_of(session, runs.view(session, 1))


def test_a_checkpoint_reads_on_where_the_last_one_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a count of the lines that are read: in all not many more than there are."""
    attempt = tmp_path / "attempt-1"
    bench.train(attempt, FEW, CHECKPOINTS)
    parsed = 0
    loads = json.loads

    def counting(text: bytes) -> object:
        nonlocal parsed
        parsed += 1
        return loads(text)

    with monkeypatch.context() as patched:
        patched.setattr("broker.publishing.metrics.json.loads", counting)
        since = -1
        for number in range(1, CHECKPOINTS + 1):
            step = FEW * number // CHECKPOINTS
            metrics.write(step, attempt, since, tmp_path / f"{step}.jsonl")
            since = step
    assert FEW <= parsed < FEW + 10 * CHECKPOINTS


def test_lines_of_a_checkpoint_that_was_not_published_go_along_with_the_next(tmp_path: Path) -> None:
    attempt, target = tmp_path / "attempt-1", tmp_path / "target.jsonl"
    attempt.mkdir()
    (attempt / METRICS_FILE).write_text("".join(json.dumps({"step": n, "loss": 1.0}) + "\n" for n in range(1, 7)))
    for step, since, steps in ((2, -1, [1, 2]), (4, -1, [1, 2, 3, 4]), (6, 4, [5, 6])):
        losses = metrics.write(step, attempt, since, target)
        assert [json.loads(line)["step"] for line in target.read_text().splitlines()] == steps
        assert [point.step for point in losses] == list(range(1, step + 1))
