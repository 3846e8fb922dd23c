"""The arithmetic of drawing a curve: its finite points, its smoothed line, its gaps, and the heights that it shows.

Arrays have the shape (points,). `at` holds tokens and rises; `values` holds what was measured there.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]
Points: TypeAlias = Sequence[tuple[int, float]]
BEGINNING = 0.1
"""The share of the tokens for which a loss falls too far to share an axis with the rest."""
GRID = 400
SPANS = 320
"""Spans of a run with more points, over whose means the median runs."""
USUAL = 95
"""The percentile of a curve's smoothed heights, over tokens, that counts as its usual height."""
TALLEST = 2.2
"""How many times the usual height a picture may be as high: what rises further leaves it."""


def columns(points: Points) -> tuple[Array, Array]:
    """The tokens and the values of those points that are finite."""
    array = np.asarray(points, dtype=float).reshape(-1, 2)
    array = array[np.isfinite(array).all(axis=1)]
    return array[:, 0], array[:, 1]


def smoothed(at: Array, values: Array) -> Array:
    """A running median, then an exponential moving average of it: a short spike leaves no trace.

    The window of the median is an eighth of the run where points are few, a fortieth where many, and narrower at the
    beginning, where the loss falls fast; the average has a time constant of an eighth of the window. Both span tokens
    and not points. Where points are many the median is that of means over short spans, because the points of a long
    run are the lowest and the highest of each span.
    """
    if len(at) < 3:
        return values
    half = (at[-1] - at[0]) * max(1 / 80, min(1 / 16, 4 / len(at)))
    x, y = _means(at, values) if len(at) > SPANS else (at, values)
    reach = np.minimum(half, x - x[0])
    first, last = np.searchsorted(x, x - reach, "left"), np.searchsorted(x, x + reach, "right")
    line = np.array([np.median(y[low:high]) for low, high in zip(first, last, strict=True)])
    constants = np.minimum(half, x - x[0])[1:] / 4
    weights = -np.expm1(-np.diff(x) / np.maximum(constants, 1e-9))
    for number, weight in enumerate(weights, start=1):
        line[number] = line[number - 1] + weight * (line[number] - line[number - 1])
    smooth: Array = np.interp(at, x, line)
    return smooth


def _means(at: Array, values: Array) -> tuple[Array, Array]:
    """The means of the tokens and values of each of SPANS equal spans of the run that has points."""
    spans = ((at - at[0]) / (at[-1] - at[0]) * SPANS).astype(int).clip(0, SPANS - 1)
    counts = np.bincount(spans, minlength=SPANS)
    some = counts > 0
    x, y = (np.bincount(spans, each, minlength=SPANS)[some] / counts[some] for each in (at, values))
    return x, y


def value_at(at: Array, values: Array, tokens: float) -> float:
    """The value after so many tokens, between its neighbours in proportion."""
    return float(np.interp(tokens, at, values))


def heights(at: Array, values: Array, since: float) -> tuple[float, float]:
    """The lowest and the highest value that a picture must show of a curve, from `since` tokens on.

    Of many points a few spikes are left out, and so is the end of a run that diverges: what is usual keeps near half of
    the picture.
    """
    late = at >= since if np.count_nonzero(at >= since) > 1 else np.ones(len(at), bool)
    smooth = smoothed(at, values)
    if np.count_nonzero(late) <= 8:
        return float(values[late].min()), float(values[late].max())
    even = np.interp(np.linspace(max(at[0], since), at[-1], GRID), at, smooth)
    low = float(min(even.min(), np.percentile(values[late], 1)))
    high = float(max(even.max(), np.percentile(values[late], 99)))
    usual = float(np.percentile(even, USUAL))
    return low, min(high, low + TALLEST * (usual - low)) if usual > low else high


def start(at: Array) -> float:
    """The tokens after which a curve has its beginning behind it."""
    return float(at[0] + BEGINNING * (at[-1] - at[0])) if len(at) else 0.0


def broken(at: Array, values: Array) -> tuple[Array, Array]:
    """The points with a NaN, which matplotlib draws as a gap, wherever a twelfth of the run or more has no point."""
    if len(at) < 40:
        return at, values
    gaps = np.flatnonzero(np.diff(at) > (at[-1] - at[0]) / 12) + 1
    return np.insert(at, gaps, np.nan), np.insert(values, gaps, np.nan)
