"""How long a checkpoint takes into an S3 store, beside the same bytes by other clients: a part of `make bench-broker`.

All send the same two files to one SeaweedFS on this host, in turns: Stoa's store, which hashes them, goes over S3 and
ends with a manifest; pyarrow's client of S3 alone; and `weed filer.copy`, which spares the server all of S3 and goes to
its own ports. The last line is one JSON object of values and goals; the status is 1 where a goal is missed.
"""

import os
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from pyarrow.fs import LocalFileSystem, S3FileSystem, copy_files
from rich.console import Console
from rich.table import Table

from bench.goals import Goal, as_json
from broker.store import Store
from projects.settings import Settings
from tests.seaweed import KEY, SECRET, server, weed

FILES = 2
MOST_TIMES = 1.3
BLOCK = 2**20
OURS, S3, OWN = "Stoa's store", "S3 alone", "weed filer.copy"


def main(
    mib: Annotated[int, typer.Option(min=FILES, help="Size of the checkpoint.")] = 1024,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each client sends it.")] = 3,
) -> None:
    """Time all clients in turns, and hold the ratios of their medians against the goals."""
    took = defaultdict[str, list[float]](list)
    with tempfile.TemporaryDirectory() as folder, server() as seaweed:
        checkpoint = Path(folder) / "step1"
        checkpoint.mkdir()
        for number in range(FILES):
            with (checkpoint / f"model-{number}.safetensors").open("wb") as file:
                for _ in range(mib // FILES):
                    file.write(os.urandom(BLOCK))
        store = Store(seaweed.settings(Settings(_env_file=None), prefix="ours"))
        s3 = S3FileSystem(access_key=KEY, secret_key=SECRET, endpoint_override=seaweed.endpoint)

        def over_s3(number: int) -> None:
            there = f"lab/s3/step{number}"
            copy_files(str(checkpoint), there, source_filesystem=LocalFileSystem(), destination_filesystem=s3)

        def by_its_own(number: int) -> None:
            target = f"{seaweed.filer}/buckets/lab/own-{number}/"
            subprocess.run([weed(), "filer.copy", str(checkpoint), target], check=True, capture_output=True)

        clients: dict[str, Callable[[int], None]] = {
            OURS: lambda number: store.push(checkpoint, f"checkpoints/step{number}"),
            S3: over_s3,
            OWN: by_its_own,
        }
        for number in range(rounds):
            for client, send in clients.items():
                began = time.perf_counter()
                send(number)
                took[client].append(time.perf_counter() - began)
    table = Table("round", *clients)
    for number, seconds in enumerate(zip(*took.values(), strict=True), 1):
        table.add_row(str(number), *(f"{each:.1f} s" for each in seconds))
    Console().print(table)
    ours = statistics.median(took[OURS])
    goals = [
        Goal(f"{mib} MiB into the store, times {S3}", round(ours / statistics.median(took[S3]), 2), most=MOST_TIMES),
        Goal(f"{mib} MiB into the store, times {OWN}", round(ours / statistics.median(took[OWN]), 2)),
    ]
    print(as_json(goals))
    raise typer.Exit(any(goal.missed for goal in goals))


if __name__ == "__main__":
    typer.run(main)
