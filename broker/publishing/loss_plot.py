"""The plot of the loss on a model card. It imports matplotlib, so `model_card` imports it only to draw."""

import io
from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

BLUE = "#0072B2"  # of Okabe and Ito's palette, which is safe for the colour-blind


def draw(tokens: Sequence[int], losses: Sequence[float]) -> bytes:
    """A PNG of 1000 × 600 pixels with `losses` in nats per token over the training `tokens` seen, lists of one length.

    The same values give the same bytes, so that publishing again changes nothing on the Hub.
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
