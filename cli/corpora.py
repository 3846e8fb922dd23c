"""`stoa corpus …`: what lies on pools, by name: corpora, prepared data and tokenizers."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich import filesize
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from cli.admin import Why, database, refuse, refusing, settings
from trainer.contract import CorpusKind, Measured

app = typer.Typer(help="Corpora, prepared data and tokenizers on pools.", no_args_is_help=True)

Pool = Annotated[str, typer.Option(help="The pool that it lies on.")]


@app.command()
def add(
    name: str,
    pool: Pool,
    path: Annotated[Path, typer.Option(help="A file, a glob, a folder, or a .bin/.idx pair without the ending.")],
    kind: Annotated[CorpusKind, typer.Option(help="What lies there.")] = CorpusKind.TEXT,
    licence: Annotated[str, typer.Option(help="An SPDX identifier; the built-in recipes' corpora have theirs.")] = "",
    text_key: Annotated[str, typer.Option(help="The key of the text in JSON and the column in Parquet.")] = "text",
    tokenizer: Annotated[Path | None, typer.Option(help="A tokenizer.json to count the tokens of text with.")] = None,
    sha256_manifest: Annotated[
        Path | None, typer.Option(help="A list as sha256sum writes it; each file is checked by it.")
    ] = None,
) -> None:
    """Register what lies at a PATH under NAME, on a host of the pool: it is read to its end and measured."""
    from bot import text
    from broker.allocations import corpora
    from broker.publishing import prepared_data
    from broker.store import StoreError

    path = path.absolute()
    try:
        with refusing(), database().read() as session:
            corpora.check_new(session, pool=pool, name=name, kind=kind, licence=licence)
            if kind == CorpusKind.PREPARED:
                prepared_data.check_stored(settings(), session, pool, path)
    except StoreError as error:
        refuse(str(error))
    command = [sys.executable, "-m", "trainer", "data", "measure", kind, str(path), "--text-key", text_key]
    for option, file in (("--tokenizer", tokenizer), ("--manifest", sha256_manifest)):
        command += [] if file is None else [option, str(file)]
    found = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if found.returncode:
        sys.exit(2)
    measured = Measured.model_validate_json(found.stdout)
    with refusing(), database().write() as session:
        corpora.add(
            session,
            pool=pool,
            name=name,
            kind=kind,
            path=str(path),
            licence=licence,
            measured=measured,
            text_key=text_key,
        )
    typer.echo(f"{name} on {pool}: {text.contents(measured.documents, measured.tokens, measured.bytes)}")


@app.command()
def push(
    name: str,
    pool: Pool,
    again: Annotated[
        bool, typer.Option("--again", help="Send all files once more, as the store has damaged some.")
    ] = False,
) -> None:
    """Send NAME, on a host of the pool, into the store, from which pools that lack it copy it.

    After a cut, the same command goes on.
    """
    from broker import corpus_copies
    from broker.allocations import corpora
    from broker.store import Store, StoreError

    if not settings().store:
        refuse("STOA_STORE is not set: it names the store that all hosts reach.")
    with refusing(), database().read() as session:
        corpus = corpora.named(session, pool=pool, name=name)
    command = [sys.executable, "-m", "trainer", "data", "files", corpus.kind, corpus.path]
    found = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if found.returncode:
        sys.exit(2)
    base = corpus_copies.place(corpus.path)[0]
    files = {path.relative_to(base).as_posix(): path for path in map(Path, json.loads(found.stdout))}
    with refusing():
        corpora.check_names(corpus, files)
    try:
        with _bar(corpus.bytes) as (say, advance), refusing():
            say("reading")
            described = corpus_copies.described_files(files, advance)
            with database().read() as session:
                corpora.check_unchanged(session, corpus, described)
            say("sending")
            sha256 = corpus_copies.digest(described)
            place = corpus_copies.folder(corpus_copies.copy_name(name, sha256))
            Store(settings()).push_files(files, place, described, again=again, advance=advance)
    except StoreError as error:
        refuse(f"{error} What was sent need not be sent again: run the command again.")
    except OSError as error:
        refuse(f"{error.filename} cannot be read: {error.strerror}.")
    with refusing(), database().write() as session:
        corpora.is_stored(session, corpus, pool=pool, sha256=sha256)
    typer.echo(f"{name} of {pool} is in the store: pools that lack it copy it")


@app.command()
def retire(name: str, pool: Pool, why: Why) -> None:
    """Take NAME out; runs that were launched with it go on."""
    from broker.allocations import corpora

    with refusing(), database().write() as session:
        corpora.retire(session, pool=pool, name=name, reason=why)
    typer.echo(f"{name} on {pool} is retired")


@app.command("list")
def list_corpora() -> None:
    """List what lies on each pool, where, how large it is and whether the store has it, and the copies on this host."""
    from bot import text
    from broker import corpus_copies
    from broker.allocations import corpora

    with refusing(), database().read() as session:
        found = [
            (
                pool,
                each.name,
                each.kind,
                each.licences,
                text.contents(each.documents, each.tokens, each.bytes),
                each.path,
                "yes" if each.stored else "",
            )
            for pool, each in corpora.every(session)
        ]
    table = Table()
    for column in ("pool", "name", "kind", "licences", "size", "path", "in the store"):
        table.add_column(column, overflow="fold")
    for row in found:
        table.add_row(*row)
    Console().print(table if found else "No pool has a corpus yet; `stoa corpus add` registers one.")
    home, days = settings().corpora_dir, settings().keep_copies_days
    if copies := corpus_copies.here(home):
        here = Table(title=f"Copies on this host, removed {days:g} days after the last run that needs them")
        for column in ("copy", "size", "last needed"):
            here.add_column(column, overflow="fold")
        for copy in copies:
            size = filesize.decimal(corpus_copies.size(home, copy.name))
            here.add_row(copy.name, size, f"{copy.used_at:%Y-%m-%d %H:%M} UTC")
        Console().print(here)


@contextmanager
def _bar(size: int) -> Iterator[tuple[Callable[[str], None], Callable[[int], None]]]:
    """A bar for each stage of a work on `size` bytes. Yields the functions to call with the name of each stage and with
    the bytes of each block."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield (
            lambda stage: progress.update(progress.add_task(stage, total=size)),
            lambda done: progress.advance(progress.tasks[-1].id, done),
        )
