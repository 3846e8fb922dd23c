"""The command `import`: a run folder from a model folder of transformers. It imports torch when it is run."""

from pathlib import Path
from typing import Annotated

import typer

from trainer.checkpoint import folders
from trainer.contract import CONFIG_FILE
from trainer.exits import one_sentence
from trainer.folder_lock import locked
from trainer.progress import bars
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
    """Start from weights of transformers: write config.yml and the checkpoint of step 0, checked against
    transformers."""
    with one_sentence(), locked(out):
        if folders.newest(out):
            raise ConfigError(f"{out} holds checkpoints already; give --out another folder.")
        from trainer.families.importing import import_folder

        with bars() as advance:
            done = import_folder(source, out, recipe, advance)
        for note in done.notes:
            print(f"Note: {note}")
        print(f"{done.folder}: its logits are those of transformers, {done.difference:.1g} apart at most.")
        config = out / CONFIG_FILE
        print(f"Fill in the data of {config}, then: python -m trainer train {config} --out NEW --fork {out}@0")
