"""`data show`: what a step of a run read, each row of its batch with source, licence, documents and text."""

from pathlib import Path
from typing import Any, NamedTuple

from rich.markup import escape
from rich.table import Table

from trainer.checkpoint import metadata
from trainer.checkpoint.folders import newest
from trainer.config import load
from trainer.contract import CONFIG_FILE, Part, SeenRow, SeenStep
from trainer.data import tokenizer
from trainer.data.corpus import Corpus
from trainer.data.prepare import folder_of, verify
from trainer.metrics import last_metrics
from trainer.schema import ConfigError

EXCERPT = 160


class ReadData(NamedTuple):
    """The data of a run, of which it has read the steps after `begun` up to `done`; those before are its `parent`'s."""

    corpus: Corpus
    begun: int
    done: int
    parent: str


def open_data(run: Path, since: int | None = None, until: int | None = None) -> ReadData:
    """The data that the run in that folder reads, which it has read after the step `since` up to `until`; where these
    are not told, by its newest checkpoint and its metrics. Raises ConfigError if they are gone."""
    config = load(run / CONFIG_FILE)
    kept = newest(run)
    parent = metadata.read(kept).get("parent") if kept else None
    corpus = Corpus(config, folder_of(config, run), kept)
    if since is None:
        since = parent["step"] if parent else 0
    if until is None:
        logged = last_metrics(run, 1)
        until = logged[0]["step"] if logged else config.training.steps
    return ReadData(corpus, since, until, parent["run"] if parent else "another run")


def look(
    run: Path, step: int, row: int | None = None, count: int = 1, since: int | None = None, until: int | None = None
) -> SeenStep:
    """The rows that step `step` read, or `count` of them from row `row` on; see `open_data`. Steps count from 1, as in
    the metrics.

    The line of step N in the metrics is about these rows, and checkpoint stepN has seen steps 1 to N. A row has
    sequence_length + 1 tokens: all but the last are inputs, all but the first targets. Raises ConfigError if the run
    has not done this step or its data are gone.
    """
    read = open_data(run, since, until)
    config, corpus = read.corpus.config, read.corpus
    if not 1 <= step <= config.training.steps:
        raise ConfigError(f"--step must be between 1 and {config.training.steps}, the steps of {run}, not {step}.")
    if row is not None and not 0 <= row < config.training.batch:
        raise ConfigError(f"--row must be between 0 and {config.training.batch - 1}, the rows of a step, not {row}.")
    if step <= read.begun:
        raise ConfigError(f"The steps up to {read.begun} were done by {read.parent}; ask that run.")
    if step > read.done:
        raise ConfigError(f"{run} has done {read.done} steps so far; --step must be one of them, not {step}.")
    verify(corpus.folder)
    bpe = tokenizer.load(corpus.folder)
    rows = []
    for number, drawn in enumerate(corpus.rows(step - 1)):
        if row is not None and not row <= number < row + count:
            continue
        source = corpus.sources[drawn.source]
        tokens = corpus.tokens(drawn).tolist()
        rows.append(
            SeenRow(
                row=number,
                source=source.name,
                licence=source.licence,
                number=drawn.number,
                documents=[
                    Part(document=span.document, start=span.start, end=span.end) for span in corpus.documents(drawn)
                ],
                text=bpe.decode(tokens, skip_special_tokens=False),
                tokens=tokens,
            )
        )
    return SeenStep(step=step, batch=config.training.batch, sequence_length=config.data.sequence_length, rows=rows)


def table(seen: SeenStep, tokens: bool, text: bool) -> Table:
    """The step as a table, with an excerpt of each row's text, with its whole text, or with its tokens."""
    shown = Table(title=f"Step {seen.step}: {len(seen.rows)} rows of {seen.sequence_length} tokens", show_lines=True)
    shown.add_column("row", justify="right")
    for name in ("source", "licence", "documents"):
        shown.add_column(name, overflow="fold")
    shown.add_column("tokens" if tokens else "text", overflow="fold", ratio=1)
    for row in seen.rows:
        documents = [part.document for part in row.documents]
        if not text and len(documents) > 3:
            documents = [*documents[:3], f"and {len(documents) - 3} more"]
        body = " ".join(map(str, row.tokens)) if tokens else row.text if text else _excerpt(row.text)
        cells: list[Any] = [str(row.row), row.source, row.licence, "\n".join(documents), body]
        shown.add_row(*map(escape, cells))
    return shown


def _excerpt(text: str) -> str:
    joined = " ".join(text.split())
    return joined if len(joined) <= EXCERPT else f"{joined[: EXCERPT - 1]}…"
