"""What millions of lines of metrics cost: `make bench-metrics`.

A run's trainer writes its lines and checkpoints beforehand. Then a process each does what Stoa does with them: the
supervisor reads all into the database, the publisher writes each checkpoint's files (and uploads nothing), the bot
reads the curve and draws its picture and a comparison. The last line is one JSON object of values and goals; the status
is 1 where a goal is missed.
"""

import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy import insert
from sqlmodel import col, select

from bench.goals import Goal, as_json
from broker.allocations.allocations import Allocation, AllocationState
from broker.allocations.ledger import Balance
from broker.allocations.pools import Pool
from broker.publications import Publication
from broker.runners import output
from broker.runs import comparison, leases, runs
from broker.runs.attempts import Attempt, AttemptState
from broker.runs.runs import Run, RunState
from projects.db.columns import utcnow
from projects.db.database import Database
from projects.people import Person
from projects.projects import Project, Stage
from trainer import contract

MOST_BYTES = 300 * 2**20
MOST_MICROSECONDS_A_LINE = 50.0
"""Of each process's CPU time, where there are LINES of them: with less, the constant time counts."""
LINES = 2_000_000
Work = Callable[[str, Path], None]


def main(
    lines: Annotated[int, typer.Option(min=10, help="Lines of metrics.")] = LINES,
    checkpoints: Annotated[int, typer.Option(min=1, help="Checkpoints, evenly spread.")] = 154,
    database: Annotated[str, typer.Option(help="URL of an empty database; SQLite in a file without it.")] = "",
) -> None:
    """Time each process's work on a run of so many lines, and hold its memory against the goal."""
    table = Table("process", "CPU seconds", "a line", "memory at its highest", "of it before the work")
    goals: list[Goal] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        url = database or f"sqlite:///{folder / 'stoa.db'}"
        db = Database(url)
        db.migrate()
        furnish(db, lines)
        db.close()
        attempt = folder / "1" / "attempt-1"
        train(attempt, lines, checkpoints)
        for work in (supervise, publish, draw):
            seconds, before, most = apart(work, url, attempt)
            a_line = 1e6 * seconds / lines
            megabytes = [f"{size / 2**20:.0f} MiB" for size in (most, before)]
            table.add_row(work.__name__, f"{seconds:.1f}", f"{a_line:.1f} µs", *megabytes)
            goals.append(
                Goal(
                    f"{work.__name__}: CPU microseconds a line",
                    a_line,
                    most=MOST_MICROSECONDS_A_LINE if lines >= LINES else None,
                )
            )
            goals.append(Goal(f"{work.__name__}: bytes of memory", most, most=MOST_BYTES))
        written = (attempt / contract.METRICS_FILE).stat().st_size
        sent = sum(path.stat().st_size for path in attempt.glob(f"*/*/{contract.METRICS_FILE}"))
        goals.append(Goal("bytes published for each one written", sent / written, most=1.1))
    Console().print(table)
    print(as_json(goals))
    raise typer.Exit(any(goal.missed for goal in goals))


def apart(work: Work, url: str, attempt: Path) -> tuple[float, int, int]:
    """The CPU seconds of some work in a process of its own, and the process's memory before it and at its highest."""
    context = multiprocessing.get_context("spawn")
    told = context.SimpleQueue()
    process = context.Process(target=_measured, args=(work, url, attempt, told))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{work.__name__} failed with status {process.exitcode}")
    seconds, before, most = told.get()
    return seconds, before, most


def _measured(work: Work, url: str, attempt: Path, told: "SimpleQueue[tuple[float, int, int]]") -> None:
    before, began = _memory(), time.process_time()
    work(url, attempt)
    told.put((time.process_time() - began, before, _memory()))


def _memory() -> int:
    """The highest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def furnish(db: Database, lines: int) -> None:
    """A running run of one project, and what its row refers to."""
    about = dict.fromkeys(("question", "why", "needs", "goal", "plan", "compute", "release", "learnt"), "")
    asked = {"request_id": "1", "project_id": 1, "pool_id": 1, "requested_by": 1}
    run = asked | {"id": 1, "allocation_id": 1, "recipe": "demo", "overrides": {}, "total_steps": lines, "gpus": 1}
    run |= {"time_limit": 10**6, "state": RunState.RUNNING, "token": 1, "queued_at": utcnow()}
    run |= dict.fromkeys(("reason", "config", "sample"), "")
    until = utcnow() + timedelta(days=1)
    allocation = asked | {"id": 1, "seconds": 10**6, "until": until, "justification": ""}
    attempt = {"run_id": 1, "token": 1, "pool_id": 1, "devices": "0", "reserved": 10**6, "state": AttemptState.RUNNING}
    with db.write() as session:
        session.execute(insert(Person).values(id=1, discord_id="1", name="Ada"))
        session.execute(insert(Pool).values(id=1, name="pool", gpu_type="H200", gpus=8))
        session.execute(
            insert(Project).values(id=1, request_id="1", title="A project", stage=Stage.ACTIVE, lead_id=1, **about)
        )
        session.execute(insert(Allocation).values(state=AllocationState.APPROVED, **allocation))
        session.execute(insert(Balance).values(allocation_id=1, granted=10**6, reserved=10**6, spent=0))
        session.execute(insert(Run).values(run))
        session.execute(insert(Attempt).values(attempt | {"lease_until": until, "reason": ""}))


def train(attempt: Path, lines: int, checkpoints: int) -> None:
    """What a trainer leaves: a line a step, and checkpoints without a model."""
    attempt.mkdir(parents=True)
    with (attempt / contract.METRICS_FILE).open("w") as metrics:
        metrics.writelines(f"{json.dumps(line)}\n" for line in measured(lines))
    with (attempt / contract.EVENTS_FILE).open("w") as events:
        for number in range(1, checkpoints + 1):
            step = lines * number // checkpoints
            folder = attempt / contract.CHECKPOINTS_FOLDER / f"step{step}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / contract.CHECKPOINT_METADATA_FILE).write_text(json.dumps({"step": step, "data": {}}))
            path = str(folder.relative_to(attempt))
            events.write(json.dumps({"event": "checkpoint", "step": step, "path": path}) + "\n")


def measured(lines: int) -> Iterator[dict[str, float]]:
    """The lines that a trainer logs."""
    for step in range(1, lines + 1):
        about = {"step": step, "tokens": 2048 * step, "loss": 2 + 9 * step**-0.5, "lr": 3e-4, "grad_norm": 1.0 / step}
        yield about | {"tokens_per_second": 1e5 + step % 7, "seconds": 0.02 * step, "mfu": 0.4}


def supervise(url: str, attempt: Path) -> None:
    """Read all that the trainer has written into the database, as its supervisor does."""
    db = Database(url)
    metrics = events = 0
    more = True
    while more:
        progress = output.read(attempt, metrics, events)
        with db.write() as session:
            leases.renew(session, 1, 1, 0.0, progress, lease_seconds=86_400)
        metrics, events, more = progress.metrics_read, progress.events_read, progress.more
    db.close()


def publish(url: str, attempt: Path) -> None:
    """Write the files of each checkpoint in turn, as its publisher does before it uploads them."""
    from broker.publishing.model_card import write_card

    db = Database(url)
    with db.read() as session:
        steps = session.scalars(select(Publication.step).order_by(col(Publication.step))).all()
    for step in steps:
        with db.read() as session:
            write_card(session, 1, "lab/run-1", attempt / contract.CHECKPOINTS_FOLDER / f"step{step}")
        with db.write() as session:
            session.get_one(Publication, (1, step)).url = f"https://hub.example/step{step}"
    db.close()


def draw(url: str, attempt: Path) -> None:
    """Read the run's curve and draw what `/run show` and `/run compare` show."""
    from broker.plots import comparison_curves, loss_curve
    from broker.plots.curve import Comparison
    from broker.plots.curve_of_run import curve_of

    db = Database(url)
    with db.read() as session:
        view = runs.view(session, 1)
        curve = curve_of(session, view)
    loss_curve.draw(curve)
    comparison_curves.draw(Comparison([curve] * comparison.MOST))
    db.close()


if __name__ == "__main__":
    typer.run(main)
