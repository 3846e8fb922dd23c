"""Reads the curve of a run from the database, for its card, `/run show` and `/run compare`."""

import bisect
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum

from sqlalchemy.orm import Session

from broker.plots.curve import Curve, Evaluated
from broker.runs import runs, series
from broker.runs.results import Scored
from broker.runs.runs import RunKind, RunView
from broker.runs.series import Measured

MOST_PANELS = 3
"""Tasks whose results are drawn; a taller picture would be cut on a phone."""


class Panel(StrEnum):
    """What the second panel shows, as the series are called."""

    GRADIENT_NORM = "grad_norm"
    LEARNING_RATE = "lr"
    SPEED = "tokens_per_second"

    @property
    def label(self) -> str:
        """What the panel is called."""
        return LABELS[self]


LABELS = {Panel.GRADIENT_NORM: "gradient norm", Panel.LEARNING_RATE: "learning rate", Panel.SPEED: "tokens/s"}


def curve_of(session: Session, run: RunView, panel: Panel | None = None, *, log: bool = False) -> Curve:
    """The run's curve with every series that a picture shows; the gradient norm in the second panel by default."""

    def points(name: str) -> list[tuple[int, float]]:
        return [(point.tokens, point.value) for point in series.read(session, run.id, name)]

    measured = series.read(session, run.id, "loss")
    choices = [panel] if panel else [Panel.GRADIENT_NORM, Panel.LEARNING_RATE]
    shown = next((choice for choice in choices if series.has(session, run.id, choice)), choices[-1])
    return Curve(
        title=f"Run {run.id} · {run.name or run.recipe}",
        loss=[(point.tokens, point.value) for point in measured],
        held_out=points("held_out"),
        checkpoints=[_tokens_at(measured, link.step) for link in run.checkpoints],
        unigram_entropy=run.unigram_entropy,
        below=points(shown),
        below_label=shown.label,
        before=_before(session, run.id),
        log=log,
        evaluations=[each for each in evaluated(run, measured) if len(each.points) > 1][:MOST_PANELS],
    )


def evaluated(run: RunView, measured: Sequence[Measured]) -> list[Evaluated]:
    """What was measured on the run's checkpoints, over its tokens as its losses have them."""
    return [
        Evaluated(
            _label(scored),
            [(_tokens_at(measured, step), *value) for step, value in scored.values.items()],
        )
        for scored in run.evaluations
    ]


def to_compare(session: Session, run: RunView, tokens_a_step: int | None) -> Curve:
    """The run's curve for a comparison, with all that was measured on its checkpoints.

    The steps of a model of the Hub stand where those of the compared runs do; where these differ, so that
    `tokens_a_step` is None, its last step counts alone.
    """
    if run.kind == RunKind.BASELINE:
        return _of_model(run, tokens_a_step)
    measured = series.read(session, run.id, "loss")
    return replace(curve_of(session, run), evaluations=evaluated(run, measured))


def _of_model(run: RunView, tokens_a_step: int | None) -> Curve:
    found = []
    for scored in run.evaluations:
        points = [((tokens_a_step or 0) * step, *value) for step, value in scored.values.items()]
        found.append(Evaluated(_label(scored), points if tokens_a_step else points[-1:]))
    return Curve(f"Run {run.id} · {run.recipe}", (), (), (), None, evaluations=found, is_model=True)


def _label(scored: Scored) -> str:
    return f"{scored.task} · {scored.metric}"


def _tokens_at(measured: Sequence[Measured], step: int) -> int:
    """The tokens after a step, in proportion to those of the steps measured before and after it."""
    after = bisect.bisect_left(measured, step, key=lambda point: point.step)
    if after == len(measured):
        return measured[-1].tokens if measured else 0
    first, last = measured[max(after - 1, 0)], measured[after]
    if after == 0:
        return last.tokens * step // last.step if last.step else 0
    return first.tokens + (last.tokens - first.tokens) * (step - first.step) // (last.step - first.step)


def _before(session: Session, run_id: int) -> list[tuple[int, float]]:
    """The losses of the runs that a run was forked from, each up to the step of the fork."""
    found: list[tuple[int, float]] = []
    run, until = runs.load(session, run_id), float("inf")
    while run.parent_id is not None and run.fork_step is not None:
        until = min(until, run.fork_step)
        parent = runs.load(session, run.parent_id)
        first = parent.fork_step or 0
        points = series.read(session, parent.id, "loss")
        found[:0] = [(point.tokens, point.value) for point in points if first < point.step <= until]
        run = parent
    return found
