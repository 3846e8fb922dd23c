"""Fair-share by itself: levels, ranks, decay, and taking turns."""

import math

import pytest

from broker.scheduling.fairshare import HALF_LIFE_SECONDS, Turns, decayed, standings


def test_use_is_halved_every_seven_days() -> None:
    weeks = [decayed(400, week * HALF_LIFE_SECONDS) for week in range(3)]
    assert weeks == pytest.approx([400, 200, 100])


def test_the_level_is_share_by_use_and_ranks_follow_it() -> None:
    found = standings({"a": 300.0, "b": 100.0}, {"a": 1.0, "b": 1.0, "c": 2.0})
    assert {name: one.level for name, one in found.items()} == {"a": 0.25 / 0.75, "b": 1.0, "c": math.inf}
    assert {name: one.rank for name, one in found.items()} == {"c": 1, "b": 2, "a": 3}
    assert (found["a"].share, found["a"].used, found["a"].of) == (0.25, 0.75, 3)


def test_those_who_are_level_share_a_rank() -> None:
    assert {one.rank for one in standings({}, {"a": 1.0, "b": 5.0}).values()} == {1}


def taken(turns: Turns[str], charge: float) -> list[int]:
    order = []
    while turns:
        order.append(turns.take())
        turns.done(charge)
    return order


def test_each_turn_is_charged_before_the_next() -> None:
    queues = {"a": [(1.0, 1), (2.0, 2), (3.0, 3)], "b": [(4.0, 4), (5.0, 5)]}
    assert taken(Turns(queues, {}, {}), 10) == [1, 4, 2, 5, 3], "level with one another, the older goes first"
    assert taken(Turns(queues, {"a": 15.0}, {}), 10) == [4, 5, 1, 2, 3]
    assert taken(Turns(queues, {}, {}), 0) == [1, 2, 3, 4, 5]


def test_double_the_shares_take_double_the_turns() -> None:
    queues = {"a": [(1.0, n) for n in range(1, 5)], "b": [(2.0, n) for n in range(5, 9)]}
    order = taken(Turns(queues, {}, {"b": 2.0}), 10)
    assert order == [1, 5, 6, 2, 7, 8, 3, 4], "of the first six, b has four"


def test_the_order_is_that_of_the_levels() -> None:
    """What Turns sorts by, usage / shares, is the order of Fair Tree's levels."""
    usage, shares = {1: 50.0, 2: 10.0, 3: 70.0, 4: 0.0}, {1: 1.0, 2: 0.1, 3: 3.0, 4: 1.0}
    levels = standings(usage, shares)
    turns = Turns({sibling: [(0.0, sibling)] for sibling in usage}, usage, shares)
    order = []
    while turns:
        order.append(turns.take())
        turns.done(1)
    assert order == sorted(usage, key=lambda sibling: levels[sibling].rank)
