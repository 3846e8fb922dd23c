"""How long a checkpoint takes into an S3 store, beside the same bytes by the server's own client: `make bench-broker`.

Both send the same two files to one SeaweedFS on this host, in turns: the carrier's way is hashed, goes over S3 and ends
with its manifest; `weed filer.copy` goes to the server's own ports. The last line is one JSON object of values and
goals; the status is 1 where the goal is missed.
"""

import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bench.goals import Goal, as_json
from broker.store import Store
from projects.settings import Settings
from tests.seaweed import Seaweed, server, weed

FILES = 2
MOST_TIMES = 1.3
BLOCK = 2**20


def main(
    mib: Annotated[int, typer.Option(min=FILES, help="Size of the checkpoint.")] = 1024,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each sends it.")] = 3,
) -> None:
    """Time both in turns, and hold the ratio of their medians against its goal."""
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder, server() as seaweed:
        checkpoint = Path(folder) / "step1"
        checkpoint.mkdir()
        for number in range(FILES):
            with (checkpoint / f"model-{number}.safetensors").open("wb") as file:
                for _ in range(mib // FILES):
                    file.write(os.urandom(BLOCK))
        store = Store(seaweed.settings(Settings(_env_file=None), prefix="bench"))
        for number in range(rounds):
            theirs.append(copied(seaweed, checkpoint, number))
            began = time.perf_counter()
            store.push(checkpoint, f"checkpoints/step{number}")
            ours.append(time.perf_counter() - began)
    ratio = statistics.median(ours) / statistics.median(theirs)
    table = Table("round", "Stoa's store", "weed filer.copy")
    for number, (mine, other) in enumerate(zip(ours, theirs, strict=True), 1):
        table.add_row(str(number), f"{mine:.1f} s", f"{other:.1f} s")
    Console().print(table)
    goals = [Goal(f"{mib} MiB into the store, times the server's own client", round(ratio, 2), most=MOST_TIMES)]
    print(as_json(goals))
    raise typer.Exit(any(goal.missed for goal in goals))


def copied(seaweed: Seaweed, checkpoint: Path, number: int) -> float:
    """Seconds that the server's own client takes."""
    began = time.perf_counter()
    target = f"{seaweed.filer}/buckets/lab/copied-{number}/"
    subprocess.run([weed(), "filer.copy", str(checkpoint), target], check=True, capture_output=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    typer.run(main)
