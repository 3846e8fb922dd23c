"""Reads the curve of a run from the database, for its card, `/run show` and `/run compare`."""

from sqlalchemy.orm import Session

from bot.plots.curve import Curve
from broker.runs import series
from broker.runs.runs import RunView


def curve_of(session: Session, run: RunView) -> Curve:
    """The run's curve with every series that a picture shows."""

    def points(name: str) -> list[tuple[int, float]]:
        return [(point.tokens, point.value) for point in series.read(session, run.id, name)]

    per_step = run.tokens / run.step if run.step else 0.0
    norms = points("grad_norm")
    return Curve(
        title=f"Run {run.id} · {run.recipe}",
        loss=points("loss"),
        held_out=points("held_out"),
        checkpoints=[round(link.step * per_step) for link in run.checkpoints],
        unigram_entropy=run.unigram_entropy,
        below=norms or points("lr"),
        below_label="gradient norm" if norms else "learning rate",
    )
