"""Reads the losses of a sweep from the database, for its card and `/run show`."""

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker.plots.curve import Comparison, Curve
from broker.runs.comparison import MOST
from broker.runs.runs import RunView
from broker.runs.series import Point
from broker.runs.sweeps import SweepView

THINNED = 200
"""Points of a run that is drawn in the background."""


def curves_of(session: Session, sweep: SweepView) -> Comparison | None:
    """The losses of a sweep's runs; None before one of them has two points.

    Where there are more runs than can be told apart, the best ones are drawn in colours before the others.
    """
    losses: dict[int, list[tuple[int, float]]] = {run.id: [] for run in sweep.runs}
    query = select(Point.run_id, Point.tokens, Point.value).where(col(Point.run_id).in_(losses), Point.series == "loss")
    for run_id, tokens, value in session.execute(query.order_by(col(Point.run_id), col(Point.step))):
        losses[run_id].append((tokens, value))
    if all(len(points) < 2 for points in losses.values()):
        return None
    if len(sweep.runs) <= MOST:
        return Comparison(_curves(sweep, sweep.runs, losses))
    ranked = [run.id for run in sweep.ranked()]
    first = set(ranked[: MOST - 1])
    shown = [run for run in sweep.runs if run.id in first]
    rest = [run for run in sweep.runs if run.id not in first and len(losses[run.id]) > 1]
    others = [
        replace(curve, loss=[*curve.loss[:: max(1, len(curve.loss) // THINNED)], curve.loss[-1]])
        for curve in _curves(sweep, rest, losses)
    ]
    return Comparison(_curves(sweep, shown, losses), others=others)


def _curves(sweep: SweepView, runs: Sequence[RunView], losses: dict[int, list[tuple[int, float]]]) -> list[Curve]:
    best = sweep.best
    word = {best.id: f" (best by {sweep.measure})"} if best is not None else {}
    return [
        Curve(
            title=f"Run {run.id} · {sweep.named(run)}{word.get(run.id, '')}",
            loss=losses[run.id],
            held_out=(),
            checkpoints=(),
            unigram_entropy=None,
        )
        for run in runs
    ]
