"""Private answers about the data that a run has read."""

from collections.abc import Sequence

from rich import filesize

from bot import text
from broker.reports.data_read import ReadableData
from projects.errors import InvalidError
from trainer.contract import Part, Passage, SeenStep, SeenText

ROWS = 4
"""Rows on a page."""
EXCERPT = 300
DOCUMENTS_SHOWN = 3
STEPS_SHOWN = 12


def first_row(place: ReadableData, page: int) -> int:
    """The first row of a page, counted from 0; raises InvalidError for a page that a step does not fill."""
    pages = -(-place.batch // ROWS)
    if page > pages:
        raise InvalidError(f"The rows of a step fill {text.count(pages, 'page')}; page {page:,} is none of them.")
    return (page - 1) * ROWS


def rows(run_id: int, place: ReadableData, found: SeenStep, page: int) -> str:
    """A page of the rows of a step: where each comes from, and how it begins."""
    pages = -(-found.batch // ROWS)
    of_parent = f", which its parent, run {place.run_id}, did" if place.run_id != run_id else ""
    head = (
        f"**Run {run_id}, step {found.step:,}**{of_parent} read {text.count(found.batch, 'row')} of "
        f"{text.count(found.sequence_length, 'token')}. Page {page:,} of {pages:,}:"
    )
    heads = [
        f"**{row.row + 1}.** {_documents(row.documents)} · {text.line(row.source, 60)}, {text.line(row.licence, 40)}\n"
        for row in found.rows
    ]
    turn = f"`/run data run:{run_id} step:{found.step} page:{page + 1}` shows the next. " if page < pages else ""
    end = f"-# {turn}The data are kept with the run: {filesize.decimal(place.size)}."
    # Beside each excerpt stand the fences of its block and the ends of lines.
    taken = sum(map(text.length, (head, *heads, end))) + 2
    excerpt = min(EXCERPT, (text.MESSAGE - taken) // len(heads) - 10)
    listed = [f"{said}{text.block(row.text, excerpt)}" for said, row in zip(heads, found.rows, strict=True)]
    return "\n".join([head, *listed, end])


def passages(place: ReadableData, typed: str, found: SeenText) -> str:
    """At which steps a run read a text, or which passages are nearest to it."""
    quoted, data = f"“{text.line(typed, 120)}”", f"The data of run {place.run_id}"
    head = f"{data} have nothing like {quoted}."
    if found.found:
        head = f"{data} have {quoted} in {text.count(found.found, 'passage')}, with the steps that read each:"
    elif found.passages:
        head = f"{data} do not have {quoted}. The nearest passages, with the steps that read each:"
    listed = [_passage(passage, exact=bool(found.found)) for passage in found.passages]
    notes = []
    if place.parent_id is not None:
        notes.append(
            f"Steps up to {place.fork_step:,} were run {place.parent_id}'s; `/run seen` tells of that run too."
        )
    if found.searched < found.held:
        notes.append(f"Searched: the first {found.searched:,} of {found.held:,} tokens.")
    end = "\n".join(f"-# {note}" for note in notes)
    return text.listed([head, *listed], of=1 + max(found.found, len(listed)), end=end)


def _documents(parts: Sequence[Part]) -> str:
    shown = ", ".join(text.code(part.document, 60) for part in parts[:DOCUMENTS_SHOWN])
    more = len(parts) - DOCUMENTS_SHOWN
    return f"{shown} and {text.count(more, 'more document')}" if more > 0 else shown


def _passage(passage: Passage, *, exact: bool) -> str:
    share = "" if exact else f", {passage.share:.0%} of it"
    where = f"{text.code(passage.document, 80)} · {text.line(passage.source, 60)}, {text.line(passage.licence, 40)}"
    shown = ", ".join(f"{step:,}" for step in passage.steps[:STEPS_SHOWN])
    more = len(passage.steps) - STEPS_SHOWN
    when = f"not read so far{share}"
    if passage.steps:
        noun = "step" if len(passage.steps) == 1 else "steps"
        when = f"{noun} {shown}{f' and {more:,} more' if more > 0 else ''}{share}"
    return f"- {where}: {when}"
