"""Draws what a study or an evaluation has measured: a panel a number, over the steps of the checkpoints."""

import math

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from broker.plots import canvas
from broker.plots.canvas import DARK, Theme
from broker.plots.curve import Panels
from broker.plots.loss_curve import evaluation

LONG = 64
"""From this step on, steps have a logarithmic axis: checkpoints lie closer together at the beginning."""


def draw(shown: Panels, theme: Theme = DARK) -> bytes:
    """Draw the panels as a PNG, 1000 pixels wide and 200 high for each, with 150 for title and axis."""
    return canvas.png(figure(shown, theme))


def figure(shown: Panels, theme: Theme = DARK) -> Figure:
    """The picture of the panels as a matplotlib figure."""
    drawn = canvas.blank(150 + 200 * len(shown.panels), theme)
    panels = drawn.subplots(len(shown.panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, measured in zip(panels, shown.panels, strict=True):
        evaluation(axes, measured, theme)
    last = max((at for measured in shown.panels for at, _, _ in measured.points), default=0)
    if last >= LONG:
        panels[-1].set_xscale("symlog", linthresh=1)
        panels[-1].set_xlim(-0.3, 1.3 * last)
        decades = [10**power for power in range(int(math.log10(last)) + 1)]
        panels[-1].xaxis.set_major_locator(FixedLocator([0, *decades[:: 1 + len(decades) // 5]]))
        panels[-1].xaxis.set_major_formatter(FuncFormatter(lambda step, _: canvas.short(step)))
    panels[-1].set_xlabel("step, log scale" if last >= LONG else "step", fontsize=canvas.NORMAL, color=theme.ink)
    title = canvas.fitted(shown.title, canvas.LARGE, 900, bold=True)
    drawn.suptitle(title, fontsize=canvas.LARGE, fontweight="bold", color=theme.ink, x=0.02, ha="left")
    return drawn
