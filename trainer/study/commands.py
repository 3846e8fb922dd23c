"""`python -m trainer study`: analyses over the checkpoints of a run. Imports torch when it is run."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from trainer.contract import Event, Outcome, Status
from trainer.events import append_event
from trainer.exits import finish, interruptible, one_sentence, outcome_of
from trainer.folder_lock import locked
from trainer.progress import Progress, bars
from trainer.study import registry, results, selection

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def study(
    places: Annotated[list[Path], typer.Argument(metavar="PLACE...", help="Step folders, or the folder of a run.")],
    analyses: Annotated[str, typer.Option(help=f"Names with commas, of {', '.join(registry.ANALYSES)}.")],
    out: Annotated[Path, typer.Option(help="The folder to write; the same one again goes on.")],
    steps: Annotated[str | None, typer.Option(help="Which checkpoints, such as 0,100-500; without it, all.")] = None,
    data: Annotated[Path | None, typer.Option(help="The prepared data to read; without it, the run's.")] = None,
    resume: Annotated[Path | None, typer.Option(help="The folder of an earlier attempt; it is only read.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="The file of paired_prompts, as --set may name it.")] = None,
    settings: Annotated[
        list[str], typer.Option("--set", metavar="ANALYSIS.KEY=VALUE", help="A setting of an analysis.")
    ] = [],  # noqa: B006  # typer copies it
) -> None:
    """Run analyses on checkpoints of one run, one at a time, and write their numbers to results.jsonl."""
    with one_sentence(), locked(out):
        try:
            with interruptible(), bars() as advance:
                selected = selection.choose(places, steps)
                steps_read = [one.step for one in selected.checkpoints]
                of_pairs = [] if pairs is None else [f"paired_prompts.file={json.dumps(str(pairs))}"]
                made = registry.choose(analyses, [*settings, *of_pairs])
                if resume is not None:
                    results.take_over(out, resume)
                from trainer.study.run import run

                progress = Progress(out, len(steps_read), shown=True)
                append_event(out, Event.STARTED, step=steps_read[0], steps=len(steps_read), analyses=list(made))
                found = run(selected, made, data, out.absolute(), progress.stage, advance)
            Console().print(_table(found))
            outcome = Outcome(status=Status.DONE, step=steps_read[-1])
        except (Exception, KeyboardInterrupt) as error:
            outcome = outcome_of(error)
        finish(out, outcome)


def _table(found: dict[str, Any]) -> Table:
    """The single numbers of each analysis at the first and at the last step, and what all steps say together."""
    table = Table("analysis", "number", "first step", "last step", box=box.SIMPLE_HEAD)
    for name, content in found.items():
        for key, series in content["values"].items():
            table.add_row(name, key, *(_number(series[at]) for at in (0, -1)))
        for key, value in content["summary"].items():
            if not isinstance(value, list | dict):
                table.add_row(name, key, "", _number(value))
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
