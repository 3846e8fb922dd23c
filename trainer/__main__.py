"""The trainer's command line: train, check, generate."""

import contextlib
import fcntl
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from trainer import checkpoint, ranks
from trainer.check import CheckReport
from trainer.check import check as dry_run
from trainer.config import ConfigError, dump, load
from trainer.outcome import Outcome, Status, add_event, write_atomically

app = typer.Typer(help="Stoa's trainer.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Config = Annotated[Path, typer.Argument(metavar="CONFIG.yml", help="The configuration.")]
Out = Annotated[Path, typer.Option(help="The folder to write.")]
Gpus = Annotated[int, typer.Option(min=1, help="GPUs, one rank each; without CUDA, CPU processes.")]


@app.command()
def train(
    config: Config,
    out: Out,
    resume: Annotated[Path | None, typer.Option(help="A checkpoint of another folder; it is only read.")] = None,
    gpus: Gpus = 1,
) -> None:
    """Train; go on from the newest checkpoint in the folder, if there is one."""
    with _hold(out):
        try:
            settings = load(config)
            settings.accumulation(gpus)
            start = checkpoint.start(settings, out, resume)
            write_atomically(out / "config.yml", dump(settings))
            step = checkpoint.how(start)["step"] if start else 0
            add_event(out, "started", step=step, steps=settings.training.steps, ranks=gpus)
            outcome = ranks.run(out.absolute(), start and start.absolute(), gpus)
        except ConfigError as error:
            outcome = Outcome(status=Status.CONFIG, reason=str(error))
        except OSError as error:
            outcome = Outcome(status=Status.FAILED, reason=f"The ranks could not be started: {error}.")
        _finish(out, outcome)


@app.command()
def check(
    config: Config,
    gpus: Gpus = 1,
    tokens_per_second: Annotated[float | None, typer.Option(min=1e-9, help="A measured rate, over all GPUs.")] = None,
    gpu_memory: Annotated[float | None, typer.Option(min=0, help="GiB that each GPU has.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a configuration would cost, without running it."""
    try:
        memory = None if gpu_memory is None else int(gpu_memory * 2**30)
        report = dry_run(load(config), gpus, memory, tokens_per_second)
    except ConfigError as error:
        _fail(Status.CONFIG, str(error))
    if json:
        print(report.model_dump_json())
    else:
        Console().print(_table(report))
    if report.refusal:
        _fail(Status.CONFIG, report.refusal)


@app.command()
def generate(
    folder: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A step folder.")],
    prompt: Annotated[str, typer.Option(help="The text to continue.")],
    out: Out,
    max_tokens: Annotated[int, typer.Option(min=1, max=100_000)] = 100,
    temperature: Annotated[float, typer.Option(min=0.0, max=100.0)] = 0.8,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Sample a text from a checkpoint."""
    with _hold(out):
        _finish(out, _sample(folder, prompt, out, max_tokens, temperature, seed))


def _sample(folder: Path, prompt: str, out: Path, max_tokens: int, temperature: float, seed: int) -> Outcome:
    for number in ranks.STOP_SIGNALS:
        signal.signal(number, _interrupt)
    try:
        step = checkpoint.how(folder)["step"]
        from trainer.generate import generate as sample

        print(sample(folder, prompt, out, max_tokens, temperature, seed))
    except ConfigError as error:
        return Outcome(status=Status.CONFIG, reason=str(error))
    except KeyboardInterrupt:
        return Outcome(status=Status.STOPPED)
    except Exception as error:
        return Outcome(status=Status.FAILED, reason=f"{type(error).__name__}: {error}")
    return Outcome(status=Status.DONE, step=step)


@contextlib.contextmanager
def _hold(out: Path) -> Iterator[None]:
    """Make the folder and hold it alone, an earlier outcome taken away."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with (out / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _fail(Status.CONFIG, f"Another trainer is at work in {out}; give --out another folder.")
            (out / "outcome.json").unlink(missing_ok=True)
            yield
    except OSError as error:
        _fail(Status.CONFIG, f"The folder {out} cannot be written ({error.strerror}); give --out another.")


def _finish(out: Path, outcome: Outcome) -> NoReturn:
    """Leave the last event and the outcome in the folder, and exit with its status."""
    names = {Status.DONE: "finished", Status.STOPPED: "stopped"}
    event = names.get(outcome.status, "failed")
    # A full disk may be what ended the run; the exit status says it all the same.
    with contextlib.suppress(OSError):
        add_event(out, event, **outcome.model_dump(mode="json"))
        outcome.write(out)
    if event == "failed":
        _fail(outcome.status, outcome.reason or "")
    raise typer.Exit(outcome.status)


def _fail(status: Status, reason: str) -> NoReturn:
    print(reason, file=sys.stderr)
    raise typer.Exit(status)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _table(report: CheckReport) -> Table:
    table = Table(show_header=False)
    table.add_row("parameters", f"{report.parameters:,}")
    table.add_row("tokens", f"{report.tokens:,}")
    table.add_row("steps", f"{report.steps:,}")
    table.add_row("FLOPs", f"{report.flops:.3g}")
    table.add_row("memory per GPU", f"{report.memory_per_gpu / 2**30:.2f} GiB (estimate)")
    if report.seconds is not None:
        table.add_row("time", f"{report.seconds:,.0f} s")
    return table


if __name__ == "__main__":
    app()
