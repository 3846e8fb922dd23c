"""This trainer beside transformers' GPTNeoXForCausalLM, on the same shapes, in turn: `make bench-trainer`.

The last line is one JSON object of values and goals; the status is 1 where a goal is missed.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import typer
from rich.console import Console
from rich.table import Table

from bench.goals import Goal, as_json
from bench.shapes import CPU, GPU, SHAPES, SMALL, Side
from trainer.allocator import environment
from trainer.config import load_recipe
from trainer.contract import METRICS_FILE
from trainer.memory import device_here
from trainer.metrics import flops_per_token

ROOT = Path(__file__).parent.parent
SECONDS_A_TURN = 4.0
APART = 0.02
"""Nats that the losses of one step may differ by: the two round bf16 at different places."""
PEAK = 989e12
"""FLOP/s of the H200's datasheet, dense bf16."""


class Runner:
    """A side at work in a process of its own."""

    def __init__(self, side: Side, shape: str, tuned: bool) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.side", side, shape],
            cwd=ROOT,
            env=clean | (environment(clean) if tuned else {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.imported: int = self._answer()["imported"]
        self.losses: list[float] = []
        self.peak = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def steps(self, count: int) -> float:
        """Do so many steps; the seconds they took."""
        assert self.process.stdin
        print(count, file=self.process.stdin, flush=True)
        answer = self._answer()
        self.losses += answer["losses"]
        self.peak = answer["peak"] - self.imported
        seconds: float = answer["seconds"]
        return seconds

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("A side ended before its time; what it said stands above.")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Compared(NamedTuple):
    """Medians: tokens a second and peak bytes of either side, and the median of the ratios of each turn.

    `apart` is the most that the two losses of one step differ by.
    """

    ours: float
    theirs: float
    faster: float
    our_peak: int
    their_peak: int
    apart: float

    @property
    def memory(self) -> float:
        return self.our_peak / self.their_peak


def compare(name: str, tuned: bool, turns: int, console: Console) -> Compared:
    """Both sides of one shape in turn, with the same allocator or each with its own."""
    shape = SHAPES[name]
    sides: list[Side] = (
        ["stoa-eager", "transformers"] if name in SMALL else ["stoa", "transformers", "transformers-compiled"]
    )
    ours = sides[0]
    rates: dict[Side, list[float]] = {side: [] for side in sides}
    runners = {side: Runner(side, name, tuned or side == ours) for side in sides}
    try:
        for runner in runners.values():
            runner.steps(3)
        counts = {
            side: max(2, round((0.1 if name in SMALL else SECONDS_A_TURN) / (runner.steps(2) / 2)))
            for side, runner in runners.items()
        }
        for _ in range(turns):
            for side, runner in runners.items():
                rates[side].append(counts[side] * shape.tokens / runner.steps(counts[side]))
        for side, runner in runners.items():
            console.print(
                f"{name} {'tuned' if tuned else 'as it comes'}: {side} {statistics.median(rates[side]):,.0f} tokens/s, "
                f"{runner.peak / 2**20:,.0f} MiB, loss of step 5 {runner.losses[4]:.3f}"
            )
        best: Side = max(sides[1:], key=lambda side: statistics.median(rates[side]))
        ratios = [mine / other for mine, other in zip(rates[ours], rates[best], strict=True)]
        losses = zip(runners[ours].losses, runners[best].losses, strict=False)
        return Compared(
            statistics.median(rates[ours]),
            statistics.median(rates[best]),
            statistics.median(ratios),
            runners[ours].peak,
            runners[best].peak,
            max(abs(mine - other) for mine, other in losses),
        )
    finally:
        for runner in runners.values():
            runner.__exit__()


def start_to_first_step() -> float:
    """Seconds from the command to the first logged step of `demo`, the second time, when caches are warm."""
    for _ in range(2):
        out = Path(tempfile.mkdtemp())
        began = time.perf_counter()
        command = [sys.executable, "-m", "trainer", "train", "trainer/recipes/demo.yml", "--out", str(out)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        while not (out / METRICS_FILE).exists() and process.poll() is None:
            time.sleep(0.02)
        seconds = time.perf_counter() - began
        process.terminate()
        process.wait()
        shutil.rmtree(out)
    return seconds


def checkpoint_cost(tokens_per_second: float, console: Console) -> float:
    """The share of the time that a checkpoint every 100 steps takes at 70m."""
    seconds = float(subprocess.check_output([sys.executable, "-m", "bench.saving"], cwd=ROOT, text=True))
    console.print(f"70m: a checkpoint takes {seconds:.2f} s")
    return seconds / (seconds + 100 * CPU["70m"].tokens / tokens_per_second)


def main(
    turns: Annotated[int, typer.Option(min=1, help="Alternations of each comparison.")] = 7,
    shapes: Annotated[str, typer.Option(help="Which shapes, with commas; without it, all that fit here.")] = "",
    small: Annotated[bool, typer.Option(help="One tiny shape without goals, to see that this works.")] = False,
) -> None:
    """Compare the two, print the medians, and hold them against the goals."""
    gpu = device_here() == "cuda"
    names = shapes.split(",") if shapes else list(SMALL if small else GPU if gpu else CPU)
    console, goals = Console(stderr=True), list[Goal]()
    table = Table("shape", "allocator", "ours", "theirs", "faster", "our memory", "theirs", "ratio")
    for name in names:
        for tuned in (True,) if small else (False, True):
            found = compare(name, tuned, turns, console)
            mode = "tuned" if tuned else "as it comes"
            table.add_row(
                name,
                mode,
                f"{found.ours:,.0f}",
                f"{found.theirs:,.0f}",
                f"{found.faster:.2f}×",
                f"{found.our_peak / 2**20:,.0f} MiB",
                f"{found.their_peak / 2**20:,.0f} MiB",
                f"{found.memory:.2f}",
            )
            goals.append(Goal(f"{name} {mode}: losses apart", found.apart, most=APART))
            if name in CPU:
                goals.append(Goal(f"{name} {mode}: tokens/s", found.faster, least=1.1 if tuned else 1.3))
                goals += [Goal(f"{name} {mode}: memory", found.memory, most=0.85)] if tuned else []
            elif name in GPU and not tuned:
                goals.append(Goal(f"{name}: tokens/s", found.faster, least=1.3))
                goals.append(Goal(f"{name}: memory", found.memory, most=1.0))
            if name == "1.4b" and not tuned:
                flops = flops_per_token(load_recipe("pythia-1.4b")) * found.ours
                goals.append(Goal("1.4b: share of 989 TFLOP/s", flops / PEAK, least=0.5))
            if name == "70m" and not tuned and not gpu:
                goals.append(Goal("70m: checkpoint every 100 steps", checkpoint_cost(found.ours, console), most=0.05))
    if not gpu and not small:
        goals.append(Goal("demo: seconds to the first step", start_to_first_step(), most=15))
        goals += [Goal(f"{name}: tokens/s", None, least=1.3) for name in GPU]
        goals.append(Goal("1.4b: share of 989 TFLOP/s", None, least=0.5))
    Console().print(table)
    print(as_json(goals))
    raise typer.Exit(any(goal.missed for goal in goals))


if __name__ == "__main__":
    typer.run(main)
