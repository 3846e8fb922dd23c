"""The trainer's command line, `python -m trainer`. Imports no torch."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from trainer import base as bases
from trainer import layouts
from trainer.check import OFTEN, CheckReport, readable
from trainer.check import check as dry_run
from trainer.checkpoint.resume import find_starting_point
from trainer.config import ConfigError, TrainConfig, load
from trainer.contract import Event, Outcome, Status
from trainer.data.commands import app as data
from trainer.distributed import ranks
from trainer.evaluation.commands import app as evaluation
from trainer.events import append_event
from trainer.exits import finish, one_sentence, outcome_of
from trainer.folder_lock import locked
from trainer.gpus import named
from trainer.import_command import app as importing
from trainer.layouts import Layout
from trainer.memory import Device
from trainer.programs.commands import app as programming
from trainer.study.commands import app as studying

app = typer.Typer(help="Stoa's trainer.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Config = Annotated[Path, typer.Argument(metavar="CONFIG.yml", help="The configuration.")]
Out = Annotated[Path, typer.Option(help="The folder to write.")]
Gpus = Annotated[int, typer.Option(min=1, max=1_000_000, help="GPUs, one rank each; without CUDA, CPU processes.")]


@app.command()
def train(
    config: Config,
    out: Out,
    resume: Annotated[Path | None, typer.Option(help="A checkpoint of another folder; it is only read.")] = None,
    fork: Annotated[str | None, typer.Option(metavar="RUN@STEP", help="Start from a kept step of another run.")] = None,
    base: Annotated[
        Path | None, typer.Option(help="Where the base lies: a model folder of transformers, or a step folder.")
    ] = None,
    fork_name: Annotated[str, typer.Option(help="What checkpoints call that run; its folder's name by default.")] = "",
    change: Annotated[
        str, typer.Option(metavar="KEYS", help="Keys, such as training.steps, that a resumed run may change.")
    ] = "",
    gpus: Gpus = 1,
    hosts: Annotated[
        int, typer.Option(min=1, max=65_536, help="Hosts, each with --gpus GPUs and this same folder.")
    ] = 1,
    host: Annotated[int, typer.Option(min=0, max=65_535, help="Which of the hosts this is, from 0.")] = 0,
    rendezvous: Annotated[str | None, typer.Option(metavar="ADDRESS:PORT", help="Of host 0.")] = None,
    address: Annotated[str | None, typer.Option(help="This host's own, if it has several.")] = None,
) -> None:
    """Train; go on from the newest checkpoint in the folder, if there is one."""
    with one_sentence(interrupts=False):
        here = ranks.host(host, hosts, rendezvous, address)
        with locked(out, host):
            try:
                settings = load(config)
                settings.data_ranks(gpus * hosts, hosts)
                wished = [key.strip() for key in change.split(",") if key.strip()]
                based = None
                if base is not None:
                    begins = resume is None and fork is None
                    based = bases.found(settings, base.absolute(), out.absolute(), hosts, begins=begins)
                start = find_starting_point(settings, out, resume, fork, wished, based)
                if fork_name and start.is_fork and start.parent:
                    start = start._replace(parent=start.parent | {"run": fork_name})
                if host == 0:
                    append_event(out, Event.STARTED, step=start.step, steps=settings.training.steps, ranks=gpus * hosts)
                    for message in start.changes:
                        append_event(out, Event.WARNING, message=message)
                outcome = ranks.run(out.absolute(), settings, start, gpus, here)
                if outcome.status == Status.DONE:
                    bases.remove(out)
            except OSError as error:
                outcome = Outcome(status=Status.FAILED, reason=f"The ranks could not be started: {error}.")
            except Exception as error:
                outcome = outcome_of(error)
            finish(out, outcome, writes=host == 0)


@app.command()
def check(
    config: Config,
    gpus: Gpus = 1,
    nodes: Annotated[int, typer.Option(min=1, max=65_536, help="Nodes that share these GPUs equally.")] = 1,
    tokens_per_second: Annotated[
        float | None, typer.Option(min=1e-9, max=1e15, help="A measured rate, over all GPUs.")
    ] = None,
    gpu_memory: Annotated[float | None, typer.Option(min=0, max=1e6, help="GiB that each GPU has.")] = None,
    gpu_type: Annotated[str | None, typer.Option(metavar="NAME", help="What the GPUs are, such as V100.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a configuration would cost and which layouts fit, without running it."""
    with one_sentence():
        for option, value in (("--tokens-per-second", tokens_per_second), ("--gpu-memory", gpu_memory)):
            if value is not None and not math.isfinite(value):
                raise ConfigError(f"{option} must be a finite number, not {value}.")
        known = named(gpu_type) if gpu_type else None
        gib = gpu_memory if gpu_memory is not None or known is None else known.memory
        memory = None if gib is None else int(gib * 2**30)
        device: Device | None = "cuda" if gpu_type else None
        settings = load(config)
        counted = _tokens_of(settings)
        report = dry_run(
            settings, gpus, memory, tokens_per_second, device, nodes=nodes, gpu_type=gpu_type, corpus_tokens=counted
        )
        fit = layouts.fitting(settings, gpus, nodes, memory, device)
        if json:
            print(report.model_copy(update={"layouts": fit}).model_dump_json())
        else:
            Console().print(_table(report))
            Console().print(_layouts(fit))
            if report.note:
                print(report.note)
            for reading in report.reads:
                if reading.is_often:
                    print(f"It reads {reading}; beyond {OFTEN:g} epochs, repeated data lose their value.")
        if report.refusal:
            raise ConfigError(report.refusal)


app.add_typer(importing)
app.add_typer(evaluation)
app.add_typer(studying)
app.add_typer(programming)
app.add_typer(data, name="data")


def _tokens_of(config: TrainConfig) -> dict[str, int]:
    """The tokens of the sources that are prepared, by their names; none where no data are prepared."""
    if config.data.prepared is None:
        return {}
    from trainer.data.prepare import manifest_of

    return {source["name"]: source["train"]["tokens"] for source in manifest_of(Path(config.data.prepared))["sources"]}


def _table(report: CheckReport) -> Table:
    table = Table(show_header=False)
    table.add_row("parameters", f"{report.parameters:,}")
    table.add_row("tokens", f"{report.tokens:,}")
    table.add_row("steps", f"{report.steps:,}")
    for stage in report.stages:
        table.add_row(f"  stage {stage.number}", str(stage))
    table.add_row("FLOPs", f"{report.flops:.3g}")
    table.add_row("memory per GPU", f"{readable(report.memory_per_gpu)} (estimate)")
    for part, size in report.memory.items():
        table.add_row(f"  {part}", readable(size))
    for reading in report.reads:
        table.add_row("reads", str(reading))
    if report.seconds is not None:
        table.add_row("time", f"{report.seconds:,.0f} s")
    return table


def _layouts(fit: Sequence[Layout]) -> Table:
    table = Table("pipeline", "tensor", "data", "memory per GPU", title="Layouts that fit")
    for layout in fit:
        table.add_row(*map(str, (layout.pipeline, layout.tensor, layout.data)), readable(layout.memory_per_gpu))
    return table


if __name__ == "__main__":
    app()
