"""How soon after its launch a run's trainer is a process: `make bench-broker` runs this too.

A scheduler, a worker and a queue as `stoa up` starts them; the trainer is a program that notes when it began. The time
that Python takes to import the supervisor, measured apart, is taken off: it is the machine's. On a quiet host only.
"""

import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from bench.goals import Goal, as_json
from broker.runs.runs import RunState
from cli.services import Services, environment
from projects.db.database import Database
from projects.settings import Settings
from tests.broker.lab import Lab
from tests.patience import wait_for
from tests.standin import python_with_trainer

MOST_SECONDS = 1.0
TRAINER = """
import pathlib, sys, time
began = time.time()
(pathlib.Path(sys.argv[sys.argv.index("--out") + 1]) / "began").write_text(repr(began))
sys.exit(70)
"""


def main(launches: Annotated[int, typer.Option(min=2, help="Runs, one after the other.")] = 20) -> None:
    """Launch runs one after the other, and hold the time to the trainer's process against its goal."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        settings = Settings(_env_file=None, home=home, disk_floor_gib=0)
        python = python_with_trainer(home, TRAINER)
        importing, times = [str(python), "-c", "import broker.runners.supervisor"], min(5, launches)
        imports = statistics.median(_timed(importing) for _ in range(times))
        db, parts = Database(settings.database), Services(home / "logs")
        db.migrate()
        try:
            parts.start_valkey(settings)
            parts.start_stoa(settings, "scheduler")
            log = home / "logs" / "worker.log"
            command = [str(python), "-m", "cli.main", "worker"]
            parts.start("worker", command, environment(settings, "worker"), lambda: b"ready" in log.read_bytes())
            seconds = _launch_all(Lab(db), home, launches)
        finally:
            parts.stop()
            db.close()
    seconds.sort()
    p95 = seconds[min(len(seconds) - 1, int(0.95 * len(seconds)))]
    print(f"launch to trainer: median {statistics.median(seconds):.2f} s, p95 {p95:.2f} s, imports {imports:.2f} s")
    goals = [
        Goal("seconds of imports", imports),
        Goal("p95: seconds from launch to trainer, without imports", p95 - imports, most=MOST_SECONDS),
    ]
    print(as_json(goals))
    raise typer.Exit(any(goal.missed for goal in goals))


def _launch_all(lab: Lab, home: Path, launches: int) -> list[float]:
    """Seconds from each launch to its trainer's first line."""
    lab.pool()
    project = lab.project()
    lab.allocation(project, hours="90")
    seconds = []
    for number in range(launches):
        time.sleep(0.37 * number % 1)  # at any moment of the scheduler's pause
        launched = time.time()
        run = lab.launch(project)
        began = home / "runs" / str(run) / "attempt-1" / "began"
        wait_for(lambda: lab.run(run).state == RunState.FAILED, "the end of the run")  # noqa: B023  called at once
        seconds.append(float(began.read_text()) - launched)
    return seconds


def _timed(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    typer.run(main)
