"""The arithmetic of drawing a curve: its finite points, its smoothed line, its gaps, and how high its axis must reach.

Arrays have the shape (points,). `at` holds tokens and rises; `values` holds what was measured there.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]
Points: TypeAlias = Sequence[tuple[int, float]]


def columns(points: Points) -> tuple[Array, Array]:
    """The tokens and the values of those points that are finite."""
    array = np.asarray(points, dtype=float).reshape(-1, 2)
    array = array[np.isfinite(array).all(axis=1)]
    return array[:, 0], array[:, 1]


def smoothed(at: Array, values: Array) -> Array:
    """A centred moving mean over a window of tokens: an eighth of the run where points are few, a fortieth where many.

    The window is narrower at the beginning, where the loss falls fast. It spans tokens and not points, because the old
    points of a long run are downsampled.
    """
    if len(at) < 3:
        return values
    half = (at[-1] - at[0]) * max(1 / 80, min(1 / 16, 4 / len(at)))
    reach = np.minimum(half, at - at[0])
    sums = np.concatenate(([0.0], np.cumsum(values)))
    first, last = np.searchsorted(at, at - reach, "left"), np.searchsorted(at, at + reach, "right")
    means: Array = (sums[last] - sums[first]) / (last - first)
    return means


def ceiling(values: Array) -> float:
    """The highest value that the y axis must show, which leaves out a few spikes far above everything else."""
    usual = float(max(np.percentile(values, 98), np.median(values[:3])))
    top = usual + 0.25 * (usual - float(values.min()))
    return min(float(values.max()), top) if len(values) > 8 else float(values.max())


def broken(at: Array, values: Array) -> tuple[Array, Array]:
    """The points with a NaN, which matplotlib draws as a gap, wherever a twelfth of the run or more has no point."""
    if len(at) < 40:
        return at, values
    gaps = np.flatnonzero(np.diff(at) > (at[-1] - at[0]) / 12) + 1
    return np.insert(at, gaps, np.nan), np.insert(values, gaps, np.nan)
