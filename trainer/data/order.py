"""The order of the data: which row of which source comes at each position, a function of the seed and the position.

Batch after batch takes the next positions, counted from 0.
"""

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 14
"""Positions in a block. Every block has each source's share of positions to within one."""

_GOLDEN = 0x9E3779B97F4A7C15
_ROUNDS = 8

Words = NDArray[np.uint64]
Counts = NDArray[np.int64]
"""Of each source a number of rows, [sources]."""


class Row(NamedTuple):
    """Row `number` of source number `source`."""

    source: int
    number: int


class RowNumbers(NamedTuple):
    """The rows at some positions: the number of the source of each, and the row's number in it, [positions] both."""

    sources: NDArray[np.int64]
    numbers: NDArray[np.int64]


class RowOrder(ABC):
    """Which row comes at each position, and at which positions a row comes."""

    @abstractmethod
    def places(self, first: int, count: int) -> RowNumbers:
        """The rows at `count` positions from `first` on."""

    @abstractmethod
    def positions(self, row: Row, first: int, end: int) -> list[int]:
        """The positions in [first, end) that read the row, in order."""

    def rows(self, first: int, count: int) -> list[Row]:
        """The rows at `count` positions from `first` on, one by one."""
        return [Row(int(source), int(number)) for source, number in zip(*self.places(first, count), strict=True)]


class Order(RowOrder):
    """An endless order of rows. Sources are mixed by weight, and each source is reshuffled every epoch.

    The order does not depend on the number of ranks nor on the length of the run, and its memory not on the size of the
    data: the source of a position comes from its block, in which the sources' shares are shuffled, and the row from a
    permutation that is computed for this position alone (a Feistel network).
    """

    def __init__(self, weights: Sequence[float], rows: Sequence[int], seed: int) -> None:
        self._rows = rows
        self._seed = seed
        total = math.fsum(weights)
        edges = [math.fsum(weights[:count]) / total for count in range(len(weights))]
        self._edges = np.array([*edges, 1.0])
        self._before = np.zeros((1, len(rows)), dtype=np.int64)
        self._block = lru_cache(maxsize=8)(self._draw)

    def places(self, first: int, count: int, ahead: Counts | int = 0) -> RowNumbers:
        """The rows at `count` positions from `first` on. `ahead` says for each source how many of its rows were read
        besides those of earlier positions."""
        sources = np.empty(count, dtype=np.int64)
        nth = np.empty(count, dtype=np.int64)
        done = 0
        while done < count:
            block, inside = divmod(first + done, BLOCK)
            drawn = self._block(block)
            part = slice(done, done + min(count - done, BLOCK - inside))
            taken = slice(inside, inside + part.stop - done)
            sources[part], nth[part] = drawn[0][taken], drawn[1][taken]
            done = part.stop
        nth += np.broadcast_to(ahead, len(self._rows))[sources]
        numbers = np.empty(count, dtype=np.int64)
        for source in np.unique(sources):
            here = sources == source
            epochs, positions = nth[here] // self._rows[source], nth[here] % self._rows[source]
            keys = _hash(self._seed, 1 + int(source), epochs.astype(np.uint64))
            numbers[here] = _shuffled(positions.astype(np.uint64), self._rows[source], keys)
        return RowNumbers(sources, numbers)

    def positions(self, row: Row, first: int, end: int, ahead: int = 0) -> list[int]:
        """The positions in [first, end) that read the row, in order. `ahead` is the number of rows of its source that
        were read besides those of earlier positions."""
        size = self._rows[row.source]
        begun, done = (int(self.counted(place)[row.source]) + ahead for place in (first, end))
        epochs = np.arange(begun // size, -(-done // size), dtype=np.uint64)
        keys = _hash(self._seed, 1 + row.source, epochs)
        nth = epochs.astype(np.int64) * size + _unshuffled(np.full(len(epochs), row.number, np.uint64), size, keys)
        return [self._position(row.source, int(one) - ahead) for one in nth if begun <= one < done]

    def _position(self, source: int, nth: int) -> int:
        """The position at which a source is read for the time after `nth` earlier ones."""
        low, high = 0, 1
        while self._counted(high)[source] <= nth:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._counted(middle)[source] <= nth else (low, middle)
        sources, numbers = self._block(low)
        return low * BLOCK + int(np.flatnonzero((sources == source) & (numbers == nth))[0])

    def counted(self, position: int) -> Counts:
        """The number of earlier positions of each source, [sources]."""
        block, inside = divmod(position, BLOCK)
        return self._counted(block) + np.bincount(self._block(block)[0][:inside], minlength=len(self._rows))

    def _draw(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each position of a block its source [BLOCK], and the number of earlier positions of that source
        [BLOCK]."""
        counts = self._counts(np.array([block]))[0]
        shuffle = np.argsort(_hash(self._seed, 0, block, np.arange(BLOCK, dtype=np.uint64)), kind="stable")
        sources = np.repeat(np.arange(len(counts)), counts)[shuffle]
        nth = np.empty(BLOCK, dtype=np.int64)
        nth[np.argsort(sources, kind="stable")] = np.concatenate([np.arange(count) for count in counts])
        nth += self._counted(block)[sources]
        return sources, nth

    def _counts(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of positions that each source has in each block, [blocks, sources].

        A block stands for BLOCK equally spaced points in [0, 1), of which a source takes those between its edges. The
        offset of the points moves by the golden ratio from block to block, so that a source gets back in later blocks
        what rounding took from it in one.
        """
        steps = blocks.astype(np.uint64) * np.uint64(_GOLDEN) + _hash(self._seed, 0)
        offsets = (steps >> np.uint64(11)).astype(np.float64) * 2.0**-53
        ends = np.ceil(BLOCK * self._edges - offsets[:, None]).astype(np.int64)
        return ends[:, 1:] - ends[:, :-1]

    def _counted(self, block: int) -> NDArray[np.int64]:
        """The number of positions of each source in all blocks before this one, [sources]; from a table that grows."""
        while block >= len(self._before):
            start = len(self._before) - 1
            blocks = np.arange(start, start + max(1024, len(self._before)))
            sums = self._before[-1] + np.cumsum(self._counts(blocks), axis=0)
            self._before = np.concatenate([self._before, sums])
        return self._before[block]  # type: ignore[no-any-return]


class StagedOrder(RowOrder):
    """The order of a run of stages, each with weights of its own, of which stage k ends before position `ends[k]`; the
    last one goes on.

    Each source goes on where the stages before left it: all of its rows are read once before any is read again. A stage
    with the weights of the one before it reads what an order without stages does.
    """

    def __init__(self, weights: Sequence[Sequence[float]], ends: Sequence[int], rows: Sequence[int], seed: int) -> None:
        self._orders = [Order(own, rows, seed) for own in weights]
        self._inner_ends = list(ends[:-1])
        # Of each stage: the rows of each source that were read, less those that its own order would have read.
        self._ahead = [np.zeros(len(rows), dtype=np.int64)]
        for end, (before, after) in zip(self._inner_ends, pairwise(self._orders), strict=True):
            self._ahead.append(self._ahead[-1] + before.counted(end) - after.counted(end))

    def places(self, first: int, count: int) -> RowNumbers:
        """The rows at `count` positions from `first` on."""
        parts = [
            self._orders[stage].places(begin, end - begin, self._ahead[stage])
            for stage, begin, end in self._parts(first, first + count)
        ]
        return RowNumbers(
            *(np.concatenate([np.empty(0, dtype=np.int64), *arrays]) for arrays in zip(*parts, strict=True))
        )

    def positions(self, row: Row, first: int, end: int) -> list[int]:
        """The positions in [first, end) that read the row, in order."""
        return [
            position
            for stage, begin, until in self._parts(first, end)
            for position in self._orders[stage].positions(row, begin, until, int(self._ahead[stage][row.source]))
        ]

    def _parts(self, first: int, end: int) -> list[tuple[int, int, int]]:
        """The stages that positions [first, end) are in, and which of them are in each: number, first, end."""
        inside = [place for place in self._inner_ends if first < place < end]
        return [
            (bisect_right(self._inner_ends, begin), begin, until) for begin, until in pairwise([first, *inside, end])
        ]


class StoredOrder(RowOrder):
    """The rows as they are stored: source after source, each from its first row to its last, and then again."""

    def __init__(self, rows: Sequence[int]) -> None:
        self._ends = np.cumsum(rows)

    def first_beyond(self, rows: Sequence[int]) -> int:
        """The first position whose row has at least the number that `rows` says for its source; where no row has, the
        number of all rows."""
        starts = [0, *self._ends[:-1].tolist()]
        beyond = [start + own for start, own, end in zip(starts, rows, self._ends, strict=True) if start + own < end]
        return min(beyond, default=int(self._ends[-1]))

    def places(self, first: int, count: int) -> RowNumbers:
        """The rows at `count` positions from `first` on."""
        positions = np.arange(first, first + count) % self._ends[-1]
        sources = np.searchsorted(self._ends, positions, side="right")
        starts = np.concatenate([[0], self._ends[:-1]])[sources]
        return RowNumbers(sources, positions - starts)

    def positions(self, row: Row, first: int, end: int) -> list[int]:
        """The positions in [first, end) that read the row, in order."""
        total = int(self._ends[-1])
        place = (int(self._ends[row.source - 1]) if row.source else 0) + row.number
        return list(range(first + (place - first) % total, end, total))


def _shuffled(positions: Words, size: int, keys: Words) -> NDArray[np.int64]:
    """The image of each position under a permutation of range(size), one permutation for each key, [positions].

    A Feistel network on the next power of four, walked until it comes back below `size` (Black and Rogaway 2002,
    "Ciphers with arbitrary finite domains").
    """
    half, mask = _halves(size)
    result = positions.copy()
    todo = np.arange(len(result))
    while len(todo):
        left, right = result[todo] >> half, result[todo] & mask
        for number in range(_ROUNDS):
            left, right = right, left ^ (_round(keys[todo], right, number) & mask)
        result[todo] = (left << half) | right
        todo = todo[result[todo] >= size]
    return result.astype(np.int64)


def _unshuffled(images: Words, size: int, keys: Words) -> NDArray[np.int64]:
    """The position whose image under `_shuffled` each of these is, [images]: the network walked backwards."""
    half, mask = _halves(size)
    result = images.copy()
    todo = np.arange(len(result))
    while len(todo):
        left, right = result[todo] >> half, result[todo] & mask
        for number in reversed(range(_ROUNDS)):
            left, right = right ^ (_round(keys[todo], left, number) & mask), left
        result[todo] = (left << half) | right
        todo = todo[result[todo] >= size]
    return result.astype(np.int64)


def _halves(size: int) -> tuple[np.uint64, np.uint64]:
    """The bits of each half of a number that the network permutes, and the mask of one half."""
    half = np.uint64(max(3, -(-(size - 1).bit_length() // 2)))
    return half, (np.uint64(1) << half) - np.uint64(1)


def _round(keys: Words, right: Words, number: int) -> Words:
    return _mix(keys + right + (np.uint64(number) << np.uint64(40)))


def _hash(*parts: int | Words) -> Words:
    """A 64-bit hash of the parts, for each element where one of them is an array."""
    state = np.zeros(1, dtype=np.uint64)
    for part in parts:
        state = _mix(state + np.uint64(_GOLDEN) ^ (part if isinstance(part, np.ndarray) else np.uint64(part)))
    return state


def _mix(words: Words) -> Words:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every bit of a word changes every bit of the result."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
