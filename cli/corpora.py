"""`stoa corpus …`: what lies on pools, by name: corpora, prepared data and tokenizers."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cli.admin import Why, database, refusing
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

    with refusing(), database().read() as session:
        corpora.check_new(session, pool=pool, name=name, kind=kind, licence=licence)
    path = path.absolute()
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
def retire(name: str, pool: Pool, why: Why) -> None:
    """Take NAME out; runs that were launched with it go on."""
    from broker.allocations import corpora

    with refusing(), database().write() as session:
        corpora.retire(session, pool=pool, name=name, reason=why)
    typer.echo(f"{name} on {pool} is retired")


@app.command("list")
def list_corpora() -> None:
    """List what lies on each pool, where, and how large it is."""
    from bot import text
    from broker.allocations import corpora

    with refusing(), database().read() as session:
        found = [
            (
                pool,
                each.name,
                each.kind,
                each.licence,
                text.contents(each.documents, each.tokens, each.bytes),
                each.path,
            )
            for pool, each in corpora.every(session)
        ]
    table = Table()
    for column in ("pool", "name", "kind", "licence", "size", "path"):
        table.add_column(column, overflow="fold")
    for row in found:
        table.add_row(*row)
    Console().print(table if found else "No pool has a corpus yet; `stoa corpus add` registers one.")
