"""The loss curve on a model card. Only what publishes imports this, and with it matplotlib."""

import io
from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

BLUE = "#0072B2"  # of Okabe and Ito's palette, which nobody's eyes confuse


def draw(tokens: Sequence[int], losses: Sequence[float]) -> bytes:
    """A PNG of 1000 × 600 pixels: `losses` in nats per token over the training `tokens` seen.

    The same values give the same bytes, so that a second try to publish sends what the first one did.
    """
    figure = Figure(figsize=(5, 3), dpi=200, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(tokens, losses, color=BLUE, linewidth=1.6, marker="." if len(losses) < 40 else "")
    axes.set_xlabel("tokens")
    axes.set_ylabel("loss, nats per token")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()
