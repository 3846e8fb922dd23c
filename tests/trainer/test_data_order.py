"""The order of the data is a pure function of seed and place, and holds nothing as long as the run."""

import tracemalloc

import numpy as np
import pytest

from trainer.data.order import BLOCK, Order, Row, RowOrder, StagedOrder, StoredOrder

WEIGHTS = [0.25, 0.75]
GOLDEN = [(1, 477), (1, 410), (1, 152), (0, 3)]
PILE = [18.11, 14.4, 12.07, 10.01, 8.96, 7.59, 6.12, 5.13, 3.65, 3.07, 2.17]
PILE += [1.55, 1.53, 1.24, 0.88, 0.75, 0.73, 0.62, 0.6, 0.38, 0.3, 0.14]


def test_order_is_a_pure_function_of_the_seed_and_the_place() -> None:
    rows = Order(WEIGHTS, [700, 5000], 1).rows(0, 3 * BLOCK)
    fresh = Order(WEIGHTS, [700, 5000], 1)
    for first, count in ((BLOCK - 3, 7), (5, 1), (2 * BLOCK + 9, 40), (BLOCK // 2, 2 * BLOCK)):
        assert fresh.rows(first, count) == rows[first : first + count]
    assert Order(WEIGHTS, [700, 5000], 2).rows(0, 100) != rows[:100]


def test_the_order_does_not_change_between_versions() -> None:
    """A run that goes on under newer code must read what it would have read."""
    assert [tuple(row) for row in Order([1, 3], [10, 1000], 1234).rows(BLOCK - 2, 4)] == GOLDEN


def test_each_epoch_reads_each_row_once_in_another_order() -> None:
    rows = Order(WEIGHTS, [7, 50], 1).rows(0, 4 * BLOCK)
    for source, size in ((0, 7), (1, 50)):
        read = [row.number for row in rows if row.source == source]
        epochs = [read[start : start + size] for start in range(0, len(read) - size, size)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs[:20]}) == 20


@pytest.mark.parametrize("size", [1, 2, 3, 64, 65, 1000])
def test_a_shuffle_is_a_permutation(size: int) -> None:
    read = [row.number for row in Order([1.0], [size], 7).rows(0, 2 * size)]
    assert sorted(read[:size]) == sorted(read[size:]) == list(range(size))


def test_shuffles_are_fair() -> None:
    """Every row stands in every place of an epoch equally often: chi-squared over 2,000 epochs."""
    size, epochs = 12, 2_000
    read = np.array([row.number for row in Order([1.0], [size], 3).rows(0, size * epochs)]).reshape(epochs, size)
    found = np.stack([np.bincount(read[:, place], minlength=size) for place in range(size)])
    statistic = ((found - epochs / size) ** 2 / (epochs / size)).sum()
    # 121 degrees of freedom: mean 121, standard deviation 15.6.
    assert statistic < 121 + 5 * 15.6


def test_sources_mix_by_weight_everywhere() -> None:
    order = Order(PILE, [1000] * 22, 1)
    drawn = np.bincount([row.source for row in order.rows(0, 10 * BLOCK)], minlength=22)
    shares = np.array(PILE) / sum(PILE)
    assert np.abs(drawn - shares * 10 * BLOCK).max() < 2
    # And inside a block they are spread.
    part = np.bincount([row.source for row in order.rows(1000, 2048)], minlength=22)
    assert part[0] == pytest.approx(2048 * shares[0], abs=5 * np.sqrt(2048 * shares[0]))


def test_pythia_starts_at_once_and_small() -> None:
    tracemalloc.start()
    order = Order(PILE, [int(weight * 1_464_320) for weight in PILE], 1234)
    first, last = order.rows(0, 1024), order.rows(142_999 * 1024, 1024)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len({*first, *last}) == 2048
    assert peak < 30e6


@pytest.mark.parametrize(
    ("order", "sizes"),
    [
        (Order(WEIGHTS, [70, 500], 1), [70, 500]),
        (StagedOrder([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]], [BLOCK + 3, 2 * BLOCK, 3 * BLOCK], [70, 500], 5), [70, 500]),
        (StoredOrder([70, 500, 3]), [70, 500, 3]),
    ],
    ids=["mixed", "staged", "stored"],
)
def test_a_rows_positions_are_those_that_read_it(order: RowOrder, sizes: list[int]) -> None:
    first, end = 5, 2 * BLOCK + 77
    read: dict[Row, list[int]] = {}
    for position, row in enumerate(order.rows(first, end - first), first):
        read.setdefault(row, []).append(position)
    for source, size in enumerate(sizes):
        for number in (0, 1, size // 2, size - 1):
            row = Row(source, number)
            assert order.positions(row, first, end) == read.get(row, [])
