"""The order of the data: which row each place of each batch holds, a pure function of the seed and the place."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Row(NamedTuple):
    """Row `number` of source number `source`."""

    source: int
    number: int


class Order:
    """Rows for `places` places, sources drawn by weight; each source is read in a fresh shuffle every epoch.

    A longer order begins with the shorter one, and the number of ranks has no part in it.
    """

    def __init__(self, weights: NDArray[np.float64], rows: list[int], seed: int, places: int) -> None:
        self._rows = rows
        self._seed = seed
        edges = np.cumsum(weights)[:-1]
        self._sources = np.searchsorted(edges, _random(seed, places), side="right").astype(np.int16)
        self._nth = np.empty(places, dtype=np.int64)
        for source in range(len(rows)):
            drawn = self._sources == source
            self._nth[drawn] = np.arange(drawn.sum())

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, place: int) -> Row:
        source = int(self._sources[place])
        epoch, nth = divmod(int(self._nth[place]), self._rows[source])
        return Row(source, int(_shuffle(self._seed, source, epoch, self._rows[source])[nth]))


@lru_cache(maxsize=64)
def _shuffle(seed: int, source: int, epoch: int, rows: int) -> NDArray[np.int64]:
    return np.argsort(_random(seed, rows, 1 + source, epoch), kind="stable")


def _random(seed: int, count: int, stream: int = 0, epoch: int = 0) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) by a counter-based generator (Philox), one stream for each purpose."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, epoch, stream])).random(count)
