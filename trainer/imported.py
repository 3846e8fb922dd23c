"""The command that makes a run of ours from a model folder of transformers. Torch is imported when it is run."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, TaskID

from trainer import checkpoint
from trainer.exits import fail, hold, interruptible
from trainer.outcome import Status
from trainer.schema import ConfigError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command("import")
def import_(
    source: Annotated[
        Path, typer.Argument(metavar="HF_DIR", help="A folder with config.json, weights and tokenizer.json.")
    ],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    recipe: Annotated[
        str, typer.Option(help="Whose data, optimizer, training and checkpoints to begin with.")
    ] = "demo",
) -> None:
    """Start from foreign weights: write config.yml and the checkpoint of step 0, checked against transformers."""
    if checkpoint.newest(out):
        fail(Status.CONFIG, f"{out} holds checkpoints already; give --out another folder.")
    try:
        with interruptible(), hold(out):
            from trainer.families.importing import import_folder

            console = Console(stderr=True)
            with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
                lines: dict[str, TaskID] = {}

                def advance(stage: str, share: float) -> None:
                    if stage not in lines:
                        lines[stage] = bar.add_task(stage, total=1.0)
                    bar.advance(lines[stage], share)

                done = import_folder(source, out, recipe, advance)
    except KeyboardInterrupt:
        raise typer.Exit(Status.STOPPED) from None
    except ConfigError as error:
        fail(Status.CONFIG, str(error))
    for note in done.notes:
        print(f"Note: {note}")
    print(f"{done.folder}: its logits are those of transformers, {done.difference:.1g} apart at most.")
    config = out / "config.yml"
    print(f"Fill in the data of {config}, then: python -m trainer train {config} --out NEW --fork {out}@0")
