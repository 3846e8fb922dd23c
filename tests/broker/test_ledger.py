"""The ledger: granted = reserved + spent + left at every moment, and no second is charged twice."""

import random
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from threading import Event
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError

from broker import ledger
from broker.ledger import Account
from projects.errors import ConflictError
from tests.broker.lab import HOUR, Lab

GRANTED = 1000
A_THOUSAND_SECONDS = "0.27777778"


@pytest.fixture
def allocation(lab: Lab) -> int:
    """An approved allocation of a thousand GPU-seconds."""
    allocation = lab.request(lab.project())
    lab.approve(allocation, hours=A_THOUSAND_SECONDS)
    assert lab.account(allocation).left == GRANTED
    return allocation


def move(lab: Lab, what: str, *args: int) -> bool:
    """Whether the ledger lets a movement happen."""
    try:
        with lab.db.write() as session:
            getattr(ledger, what)(session, *args)
    except (ConflictError, IntegrityError):
        return False
    return True


def outstanding(lab: Lab, run: int, token: int = 1) -> int:
    with lab.db.read() as session:
        return ledger.outstanding(session, run, token)


def test_any_sequence_of_movements_keeps_the_balance_true(lab: Lab) -> None:
    project = lab.project()
    runs = count(1)

    class Movements(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.allocation = lab.request(project)
            lab.approve(self.allocation, hours=A_THOUSAND_SECONDS)
            self.open: list[int] = []
            self.periods = count(1)

        @rule(seconds=st.integers(1, 700))
        def reserve(self, seconds: int) -> None:
            run, left = next(runs), lab.account(self.allocation).left
            moved = move(lab, "reserve", self.allocation, run, 1, seconds)
            assert moved == (seconds <= left)
            if moved:
                self.open.append(run)

        @precondition(lambda self: self.open)
        @rule(data=st.data(), seconds=st.integers(1, 700))
        def charge(self, data: Any, seconds: int) -> None:
            run = self.open[data.draw(st.integers(0, len(self.open) - 1))]
            seconds = min(seconds, outstanding(lab, run))
            if seconds:
                assert move(lab, "charge", self.allocation, run, 1, next(self.periods), seconds)

        @precondition(lambda self: self.open)
        @rule(data=st.data())
        def release(self, data: Any) -> None:
            run = self.open[data.draw(st.integers(0, len(self.open) - 1))]
            assert move(lab, "release", self.allocation, run, 1)
            assert outstanding(lab, run) == 0

        @precondition(lambda self: self.open)
        @rule()
        def overcharge(self) -> None:
            account = lab.account(self.allocation)
            assert not move(lab, "charge", self.allocation, self.open[0], 1, next(self.periods), account.reserved + 1)

        @invariant()
        def holds(self) -> None:
            assert lab.account(self.allocation).granted == GRANTED

    run_state_machine_as_test(
        Movements, settings=settings(max_examples=10, stateful_step_count=12, deadline=None, database=None)
    )


def test_threads_at_once_neither_lose_nor_overdraw_a_second(lab: Lab, allocation: int) -> None:
    """Sixteen runs that want more than there is, moving at once, while a reader looks at the balance all the time."""
    over = Event()

    def attempt(run: int) -> int:
        chance = random.Random(run)
        reserved = chance.randrange(50, 250)
        if not move(lab, "reserve", allocation, run, 1, reserved):
            return 0
        charged = 0
        for period in range(1, 5):
            due = chance.randrange(1, 1 + reserved // 4)
            assert move(lab, "charge", allocation, run, 1, period, due)
            charged += due
        assert move(lab, "release", allocation, run, 1)
        return charged

    def watch() -> int:
        looks = 0
        while not over.wait(0.005):
            lab.account(allocation)
            looks += 1
        return looks

    with ThreadPoolExecutor(17) as pool:
        watcher = pool.submit(watch)
        charged = sum(pool.map(attempt, range(1, 17)))
        over.set()
        assert watcher.result() > 0
    account = lab.account(allocation)
    assert (account.reserved, account.spent, account.left) == (0, charged, GRANTED - charged)
    assert charged > 0


def test_more_than_is_left_is_refused(lab: Lab, allocation: int) -> None:
    assert move(lab, "reserve", allocation, 1, 1, GRANTED - 1)
    with pytest.raises(ConflictError, match="1 GPU-seconds left; 2 are needed"), lab.db.write() as session:
        ledger.reserve(session, allocation, 2, 1, 2)
    assert move(lab, "reserve", allocation, 2, 1, 1)
    assert lab.account(allocation).left == 0


def test_a_period_is_charged_once(lab: Lab, allocation: int) -> None:
    assert move(lab, "reserve", allocation, 1, 1, 500)
    assert move(lab, "charge", allocation, 1, 1, 1, 10)
    assert not move(lab, "charge", allocation, 1, 1, 1, 10)
    assert lab.account(allocation).spent == 10
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda _: move(lab, "charge", allocation, 1, 1, 2, 7), range(8)))
    assert sum(taken) == 1
    assert lab.account(allocation).spent == 17


def test_an_attempt_is_reserved_and_released_once(lab: Lab, allocation: int) -> None:
    assert move(lab, "reserve", allocation, 1, 1, 100)
    assert not move(lab, "reserve", allocation, 1, 1, 100)
    assert move(lab, "release", allocation, 1, 1)
    assert move(lab, "release", allocation, 1, 1)
    assert lab.account(allocation).left == GRANTED


def test_the_table_refuses_changes(lab: Lab, allocation: int) -> None:
    for statement in ("UPDATE ledger SET seconds = seconds + 1", "DELETE FROM ledger"):
        with pytest.raises(DBAPIError, match="append-only"), lab.db.write() as session:
            session.execute(text(statement))
    for seconds in ("granted + 1, spent = granted + 2", "granted, reserved = -1", "granted, spent = -1"):
        with pytest.raises(IntegrityError), lab.db.write() as session:
            session.execute(text(f"UPDATE balances SET granted = {seconds}"))
    assert lab.account(allocation).left == GRANTED


def test_amounts_of_a_cluster_fit(lab: Lab) -> None:
    """A million GPU-hours are more seconds than 32 bits hold."""
    lab.pool("cluster", gpus=4096, granted=2_000_000 * HOUR)
    allocation = lab.request(lab.project(title="Large"), pool="cluster", hours="1000000")
    lab.consent(allocation, "1000000")
    assert lab.account(allocation) == Account(500_000 * HOUR, 0, 0, committed=500_000 * HOUR)
