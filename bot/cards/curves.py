"""A run's curve, as its card, a comparison and `/run show` picture it."""

from sqlalchemy.orm import Session

from bot.cards.renderer import Curve
from broker.runs import series
from broker.runs.runs import RunView


def curve_of(session: Session, run: RunView) -> Curve:
    """All that is measured of the run and shown."""

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
