"""`python -m trainer data`: prepare data, inspect them, and show what a step of a run read. Imports no torch."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    FileSizeColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from trainer.config import load
from trainer.contract import CorpusKind
from trainer.data.config import SourceConfig, mixture, mixture_names, named_weights
from trainer.exits import one_sentence
from trainer.folder_lock import locked_beside
from trainer.schema import ConfigError

app = typer.Typer(help="Data: prepare them, inspect them, show what a step read.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

Since = Annotated[int | None, typer.Option(help="The step that the run begins after; by its checkpoints without it.")]
Until = Annotated[int | None, typer.Option(help="The last step that it has done; by its metrics without it.")]


@app.command()
def prepare(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yml", help="A training configuration; its data are read.")],
    out: Annotated[Path, typer.Option(help="The folder to write; data.prepared names it in a configuration.")],
    root: Annotated[Path | None, typer.Option(help="Where relative places start, in place of data.root.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=1_024, help="Processes; as many as there are cores.")
    ] = None,
    hosts: Annotated[
        int, typer.Option(min=1, max=65_536, help="Hosts that share the folder, each started with this command.")
    ] = 1,
    host: Annotated[int, typer.Option(min=0, max=65_535, help="Which of the hosts this is, from 0.")] = 0,
    rendezvous: Annotated[str | None, typer.Option(help="Not used: the hosts meet in the folder.")] = None,
) -> None:
    """Read the sources, train the tokenizer if there is none, and write tokens in Megatron's format."""
    with one_sentence(), locked_beside(out if host == 0 else out.with_name(f"{out.name}.host{host}")):
        if host >= hosts:
            raise ConfigError(f"--host is {host}, and the hosts are numbered from 0 to {hosts - 1}.")
        data = load(config).data
        if root is not None:
            data = data.model_copy(update={"root": str(root)})
        import os

        from trainer.data import prepare as preparing

        mark = preparing.fingerprint(data)
        if out.exists() and not preparing.is_prepared(out, mark) and (out.is_file() or any(out.iterdir())):
            raise ConfigError(f"The folder {out} holds something else than these data; give --out another.")
        with _bar() as (say, advance):
            count = workers or os.cpu_count() or 1
            preparing.prepare(data, out, None, say, count, advance, host=host, hosts=hosts)
        Console().print(_sources(preparing.manifest_of(out)["sources"]))


@app.command()
def show(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    step: Annotated[int, typer.Option(help="The step, counted from 1 as in the metrics.")],
    row: Annotated[int | None, typer.Option(help="A row of its batch, counted from 0; all without it.")] = None,
    count: Annotated[int, typer.Option(min=1, help="How many rows from --row on.")] = 1,
    since: Since = None,
    until: Until = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Show the token ids.")] = False,
    text: Annotated[bool, typer.Option("--text", help="Show all of the text.")] = False,
    json: AsJson = False,
) -> None:
    """Show what a step read: each row's source, documents, licence and text. Checkpoint stepN has seen steps 1 to N."""
    with one_sentence():
        from trainer.data.show import look, table

        found = look(run, step, row, count, since, until)
        if json:
            print(found.model_dump_json())
        else:
            Console().print(table(found, tokens, text))


@app.command()
def seen(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    text: Annotated[str, typer.Option(help="What to search for, in whole words.")],
    since: Since = None,
    until: Until = None,
    json: AsJson = False,
) -> None:
    """Show at which steps a run read a text, or else the passages of its data that are nearest to it."""
    with one_sentence():
        from trainer.data.seen import search, table

        found = search(run, text, since, until)
        if json:
            print(found.model_dump_json())
        else:
            Console().print(table(found))


@app.command()
def inspect(
    prefix: Annotated[Path, typer.Argument(metavar="PREFIX", help="A .bin/.idx pair, without the ending.")],
    json: AsJson = False,
) -> None:
    """Read a .bin/.idx pair, check that its files agree with each other and with the manifest beside them, and describe
    it."""
    with one_sentence():
        from trainer.data.indexed import describe
        from trainer.data.prepare import verify

        described = describe(prefix)
        if (prefix.parent / "manifest.json").is_file():
            verify(prefix.parent, f"{prefix.name}.", math.inf)
        if json:
            import json as encoder

            print(encoder.dumps(described))
        else:
            table = Table(show_header=False)
            for key, value in described.items():
                table.add_row(key, f"{value:,}" if isinstance(value, int) else value)
            Console().print(table)


@app.command()
def measure(
    kind: Annotated[CorpusKind, typer.Argument(help="What lies there.")],
    place: Annotated[Path, typer.Argument(help="As a source has it: a file, a glob, a folder, or a .bin/.idx prefix.")],
    text_key: Annotated[str, typer.Option(help="The key of the text in JSON and the column in Parquet.")] = "text",
    tokenizer: Annotated[Path | None, typer.Option(help="A tokenizer.json to count the tokens of text with.")] = None,
    manifest: Annotated[Path | None, typer.Option(help="A list as sha256sum writes it, to check files by.")] = None,
) -> None:
    """Read a corpus, prepared data or a tokenizer to its end, and print its size and contents as JSON."""
    with one_sentence():
        from trainer.data import measure as measuring

        with _bar() as (say, advance):
            say("reading")
            measured, files = measuring.measure(kind, place.absolute(), text_key, tokenizer, say, advance)
            if manifest is not None:
                say("checking against the manifest")
                measured.manifest = measuring.check_manifest(files, manifest.absolute(), advance)
        print(measured.model_dump_json())


@app.command()
def files(
    kind: Annotated[CorpusKind, typer.Argument(help="What lies there.")],
    place: Annotated[Path, typer.Argument(help="As a source has it: a file, a glob, a folder, or a .bin/.idx prefix.")],
) -> None:
    """Print the paths of the files that are read of a corpus, prepared data or a tokenizer, as a list in JSON."""
    with one_sentence():
        import json

        from trainer.data import measure as measuring

        print(json.dumps([str(path) for path in measuring.files_at(kind, place.absolute())]))


@app.command()
def mixtures(name: Annotated[str | None, typer.Argument(help="Show the sources of this one.")] = None) -> None:
    """List the mixtures that data.mixture may name, or the sources of one."""
    with one_sentence():
        if name is None:
            for each in mixture_names():
                sources = mixture(each)
                count = "1 source" if len(sources) == 1 else f"{len(sources)} sources"
                by_name = ", ".join(named_weights(each))
                others = f", and weights by name: {by_name}" if by_name else ""
                print(f"{each}: {count} by {'weight' if 'weight' in sources[0] else 'epochs'}{others}")
            return
        try:
            listed = [SourceConfig.model_validate(source) for source in mixture(name)]
        except ValueError as error:
            raise ConfigError(str(error)) from None
        named, table = named_weights(name), Table()
        for key in ("source", "licence", "weight" if listed[0].weight else "epochs", *named, "place"):
            table.add_column(key, overflow="fold")
        for source in listed:
            own = [f"{weights[source.name]:g}" if source.name in weights else "" for weights in named.values()]
            table.add_row(source.name, source.licence, f"{source.share:g}", *own, source.path or source.dataset)
        Console().print(table)


@contextmanager
def _bar() -> Iterator[tuple[Callable[[str], None], Callable[[int], None]]]:
    """A bar for each stage on a terminal, lines elsewhere. Yields the functions to call with the name of each stage and
    with the bytes of each batch."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        FileSizeColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:

        def say(message: str) -> None:
            for task in progress.tasks:
                progress.update(task.id, total=task.completed or 1, completed=task.completed or 1)
            progress.add_task(message, total=None)
            if not console.is_terminal:
                console.print(message, markup=False, highlight=False, soft_wrap=True)

        def advance(size: int) -> None:
            progress.advance(progress.tasks[-1].id, size)

        yield say, advance
        say("done")


def _sources(sources: list[dict[str, object]]) -> Table:
    """The manifest's sources as a table."""
    table = Table()
    for name in ("source", "licence"):
        table.add_column(name, overflow="fold")
    for name in ("documents", "held out", "tokens", "near-duplicates"):
        table.add_column(name, justify="right")
    for source in sources:
        train, held_out = source["train"], source["held_out"]
        assert isinstance(train, dict)
        assert isinstance(held_out, dict)
        removed = source["near_duplicates_removed"]
        table.add_row(
            str(source["name"]),
            str(source["licence"]),
            f"{train['documents']:,}",
            f"{held_out['documents']:,}",
            f"{train['tokens'] + held_out['tokens']:,}",
            "not looked for" if removed is None else f"{removed:,}",
        )
    return table
