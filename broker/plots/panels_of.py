"""Reads what a study or an evaluation has measured from the database, for `/study show` and the post of its end."""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy.orm import Session

from broker.plots.curve import Evaluated, Panels
from broker.runs import results, runs
from broker.runs.kinds.kind import kind_of
from broker.runs.results import Scored
from projects.errors import ConflictError

MOST_PANELS = 8
"""Numbers that one picture shows."""


class Measured(NamedTuple):
    """What a run has measured: a title, all numbers, and the picture of those that change over the steps; None where
    none does."""

    title: str
    scored: Sequence[Scored]
    panels: Panels | None


def measured(session: Session, run_id: int) -> Measured:
    """What a study or an evaluation has measured. Raises NotFoundError, and ConflictError for another run."""
    run = runs.load(session, run_id)
    scored = results.measured_by(session, run_id)
    if not scored:
        raise ConflictError(f"Run {run_id} has measured nothing on the checkpoints of another run.")
    title = kind_of(run).what_it_is(run)
    changing = [each for each in scored if len(set(each.values.values())) > 1][:MOST_PANELS]
    shown = [Evaluated(f"{each.task} · {each.metric}", _points(each)) for each in changing]
    return Measured(title, scored, Panels(title, shown) if shown else None)


def _points(scored: Scored) -> list[tuple[int, float, float | None]]:
    return [(step, value, stderr) for step, (value, stderr) in scored.values.items()]
