"""The ledger: granted = reserved + spent + left at every moment, and no second is charged twice."""

import random
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from itertools import count
from threading import Event
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import func, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlmodel import col, select

from broker.allocations import ledger, pools
from broker.allocations.ledger import Account, Movement
from broker.allocations.pools import GrantRow, GrantView
from projects.db.columns import utcnow
from projects.errors import ConflictError, InvalidError
from tests.at_once import at_once as together
from tests.broker.lab import HOUR, POOL, Lab

GRANTED = 1000
RUNS = count(10_000)
A_THOUSAND_SECONDS = "0.27777778"


@pytest.fixture
def allocation(lab: Lab) -> int:
    """An approved allocation of a thousand GPU-seconds."""
    allocation = lab.request(lab.project())
    lab.approve(allocation, hours=A_THOUSAND_SECONDS)
    assert lab.account(allocation).left == GRANTED
    return allocation


def move(lab: Lab, what: str, *args: int | str, **named: int) -> bool:
    """Whether the ledger lets a movement happen."""
    try:
        with lab.db.write() as session:
            getattr(ledger, what)(session, *args, **named)
    except (ConflictError, InvalidError, IntegrityError):
        return False
    return True


def outstanding(lab: Lab, run: int, token: int = 1) -> int:
    with lab.db.read() as session:
        return ledger.outstanding(session, run, token)


def test_any_sequence_of_movements_keeps_the_balance_true(lab: Lab) -> None:
    project = lab.project()
    lab.let("most_requests_a_day", 1_000_000)
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
        Movements, settings=settings(max_examples=15, stateful_step_count=15, deadline=None, database=None)
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


def source(lab: Lab, allocations: list[int], grant_id: int) -> GrantView:
    """A grant, after its parts have been held against its movements and its allocations, at one moment."""
    with lab.db.read() as session:
        found = next(grant for grant in pools.grants(session) if grant.id == grant_id)
        accounts = [ledger.account(session, allocation) for allocation in allocations]
        query = select(GrantRow.movement, func.sum(col(GrantRow.seconds))).where(GrantRow.grant_id == grant_id)
        sums = defaultdict(int, {kind: int(seconds) for kind, seconds in session.execute(query.group_by("movement"))})
    assert found.seconds == found.granted + found.committed + found.left == sums["give"]
    assert found.granted == sum(account.granted for account in accounts)
    assert found.granted == sums["draw"] + sums["fulfil"] - sums["return"]
    assert found.committed == sum(account.committed for account in accounts)
    assert found.committed == sums["commit"] - sums["fulfil"] - sums["lapse"]
    assert min(found.granted, found.committed, found.left) >= 0
    return found


def unopened(lab: Lab, project: int, number: int) -> list[int]:
    """Requests on which nothing has been decided."""
    return [lab.request(project) for _ in range(number)]


def small_grant(lab: Lab, seconds: int) -> int:
    with lab.db.write() as session:
        until = utcnow() + timedelta(days=9)
        return pools.add_grant(session, pool=POOL, sponsor="A small house", seconds=seconds, until=until)


def test_any_sequence_of_movements_keeps_the_grant_true(lab: Lab) -> None:
    project = lab.project()
    lab.let("most_requests_a_day", 1_000_000)

    class Movements(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.grant = small_grant(lab, GRANTED)
            self.waiting = unopened(lab, project, 3)
            self.opened: list[int] = []
            self.charged: dict[int, tuple[int, int]] = {}

        def one(self, data: Any) -> int:
            return self.opened[int(data.draw(st.integers(0, len(self.opened) - 1)))]

        @precondition(lambda self: self.waiting)
        @rule(seconds=st.integers(1, 600), half=st.integers(0, 400))
        def open(self, seconds: int, half: int) -> None:
            left = source(lab, self.opened, self.grant).left
            moved = move(lab, "grant", self.waiting[-1], self.grant, seconds, committed=half)
            assert moved == (seconds + half <= left)
            if moved:
                self.opened.append(self.waiting.pop())

        @precondition(lambda self: self.opened)
        @rule(data=st.data(), seconds=st.integers(1, 600), half=st.integers(0, 300))
        def top_up(self, data: Any, seconds: int, half: int) -> None:
            left = source(lab, self.opened, self.grant).left
            assert move(lab, "top_up", self.one(data), seconds, committed=half) == (seconds + half <= left)

        @precondition(lambda self: self.opened)
        @rule(data=st.data(), seconds=st.integers(-600, 600).filter(bool))
        def adjust(self, data: Any, seconds: int) -> None:
            allocation = self.one(data)
            gives = source(lab, self.opened, self.grant).left if seconds > 0 else lab.account(allocation).left
            assert move(lab, "adjust", allocation, seconds, "Counted anew.") == (abs(seconds) <= gives)

        @precondition(lambda self: self.opened)
        @rule(data=st.data(), what=st.sampled_from(["release_half", "lapse_half"]))
        def half(self, data: Any, what: str) -> None:
            allocation = self.one(data)
            assert move(lab, what, allocation)
            assert lab.account(allocation).committed == 0

        @precondition(lambda self: self.opened)
        @rule(data=st.data())
        def give_back(self, data: Any) -> None:
            allocation = self.one(data)
            assert move(lab, "give_back", allocation, "It ended.")
            assert lab.account(allocation).left == 0

        @precondition(lambda self: self.opened)
        @rule(data=st.data(), seconds=st.integers(1, 300))
        def spend(self, data: Any, seconds: int) -> None:
            allocation, run = self.one(data), next(RUNS)
            left = lab.account(allocation).left
            moved = move(lab, "reserve", allocation, run, 1, seconds)
            assert moved == (seconds <= left)
            if moved:
                assert move(lab, "charge", allocation, run, 1, 1, (seconds + 1) // 2)
                assert move(lab, "release", allocation, run, 1)
                self.charged[run] = (allocation, (seconds + 1) // 2)

        @precondition(lambda self: self.charged)
        @rule(data=st.data(), seconds=st.integers(1, 300))
        def refund(self, data: Any, seconds: int) -> None:
            run = data.draw(st.sampled_from(sorted(self.charged)))
            allocation, charged = self.charged[run]
            moved = move(lab, "refund", allocation, run, 1, seconds, "The host died.")
            assert moved == (seconds <= charged)
            if moved:
                self.charged.pop(run)
                assert not move(lab, "refund", allocation, run, 1, 1, "Again.")

        @invariant()
        def holds(self) -> None:
            source(lab, self.opened, self.grant)
            for allocation in self.opened:
                lab.account(allocation)

    run_state_machine_as_test(
        Movements, settings=settings(max_examples=10, stateful_step_count=15, deadline=None, database=None)
    )


SECONDS = st.integers(1, 400)
MOVES = st.one_of(
    st.tuples(st.sampled_from(["reserve", "charge", "refund"]), st.integers(0, 2), SECONDS),
    st.tuples(st.just("release"), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("adjust"), st.just(0), st.integers(-400, 400).filter(bool)),
    st.tuples(st.just("top_up"), st.integers(0, 300), SECONDS),
    st.tuples(st.sampled_from(["release_half", "lapse_half", "give_back"]), st.just(0), st.just(0)),
)
"""A movement: what; of which run, or how much of it committed; and GPU-seconds."""


def test_any_movements_of_threads_at_once_keep_all_balances_true(lab: Lab) -> None:
    """Hypothesis draws what each thread does; they share two allocations, three runs of each, and one small grant."""
    project = lab.project()
    lab.let("most_requests_a_day", 1_000_000)

    @settings(max_examples=12, deadline=None, database=None)
    @given(st.lists(st.lists(st.tuples(st.integers(0, 1), MOVES), min_size=2, max_size=7), min_size=2, max_size=4))
    def at_once(threads: list[list[tuple[int, tuple[str, int, int]]]]) -> None:
        grant, opened, runs = small_grant(lab, GRANTED), unopened(lab, project, 2), [next(RUNS) for _ in range(6)]
        periods = count(1)
        for allocation in opened:
            assert move(lab, "grant", allocation, grant, 300, committed=100)

        def act(which: int, what: str, number: int, seconds: int) -> bool:
            allocation, of_run = opened[which], (runs[3 * which + number % 3], 1)
            args: dict[str, tuple[int | str, ...]] = {
                "reserve": (*of_run, seconds),
                "charge": (*of_run, next(periods), seconds),
                "refund": (*of_run, seconds, "The host died."),
                "release": of_run,
                "adjust": (seconds, "Counted anew."),
                "top_up": (seconds,),
                "give_back": ("It ended.",),
            }
            named = {"committed": number} if what == "top_up" else {}
            return move(lab, what, allocation, *args.get(what, ()), **named)

        def live(moves: list[tuple[int, tuple[str, int, int]]]) -> list[tuple[int, str, int]]:
            return [(which, what, seconds) for which, (what, n, seconds) in moves if act(which, what, n, seconds)]

        lives = [partial(live, moves) for moves in threads]
        taken = [one for life in together(lives, lambda: source(lab, opened, grant)) for one in life]
        source(lab, opened, grant)
        for which, allocation in enumerate(opened):
            lab.account(allocation)
            with lab.db.read() as session:
                sums = ledger.totals(session, allocation_id=allocation)
            for movement in (Movement.RESERVE, Movement.CHARGE, Movement.REFUND):
                said = sum(seconds for of, what, seconds in taken if (of, what) == (which, movement))
                assert sums[movement] == said, "what was answered is what was written"

    at_once()


def test_threads_at_once_keep_the_grant_true(lab: Lab) -> None:
    """Twelve allocations that want more than the grant holds, moving at once, while a reader looks at all of it."""
    grant, requests, over = small_grant(lab, GRANTED), unopened(lab, lab.project(), 12), Event()

    def live(allocation: int) -> None:
        chance = random.Random(allocation)
        if not move(lab, "grant", allocation, grant, chance.randrange(50, 200), committed=chance.randrange(60)):
            return
        acts: list[tuple[str, Any]] = [
            ("reserve", (1000 + allocation, 1, 40)),
            ("charge", (1000 + allocation, 1, 1, 30)),
            ("top_up", (chance.randrange(1, 100),)),
            ("adjust", (-chance.randrange(1, 100), "Less.")),
            (chance.choice(["release_half", "lapse_half"]), ()),
            ("refund", (1000 + allocation, 1, 20, "The host died.")),
            ("release", (1000 + allocation, 1)),
            ("give_back", ("It ended.",)),
        ]
        for what, args in acts:
            move(lab, what, allocation, *args)

    def watch() -> int:
        looks = 0
        while not over.wait(0.02):
            source(lab, requests, grant)
            looks += 1
        return looks

    with ThreadPoolExecutor(13) as pool:
        watcher = pool.submit(watch)
        list(pool.map(live, requests))
        over.set()
        assert watcher.result() > 0
    accounts = [lab.account(allocation) for allocation in requests]
    assert all((account.reserved, account.left, account.committed) == (0, 0, 0) for account in accounts)
    assert source(lab, requests, grant).left == GRANTED - sum(account.spent for account in accounts)
    assert sum(account.spent for account in accounts) > 0


def test_an_attempt_is_refunded_once_and_at_most_what_it_was_charged(lab: Lab, allocation: int) -> None:
    assert move(lab, "reserve", allocation, 1, 1, 100)
    assert move(lab, "charge", allocation, 1, 1, 1, 60)
    before = lab.everything()
    for seconds in (61, 0, -5):
        assert not move(lab, "refund", allocation, 1, 1, seconds, "Too much.")
    assert not move(lab, "refund", allocation, 2, 1, 1, "Never charged.")
    assert lab.everything() == before
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda _: move(lab, "refund", allocation, 1, 1, 50, "The host died."), range(8)))
    assert sum(taken) == 1
    assert (lab.account(allocation).spent, lab.account(allocation).left) == (10, GRANTED - 50)


def test_an_attempt_cannot_be_charged_what_another_has_reserved(lab: Lab, allocation: int) -> None:
    assert move(lab, "reserve", allocation, 1, 1, 10)
    assert move(lab, "reserve", allocation, 2, 1, 500)
    with pytest.raises(ConflictError, match="has 10 s reserved; 11 cannot"), lab.db.write() as session:
        ledger.charge(session, allocation, 1, 1, 1, 11)
    assert lab.account(allocation).spent == 0


def test_more_than_is_left_is_refused(lab: Lab, allocation: int) -> None:
    assert move(lab, "reserve", allocation, 1, 1, GRANTED - 1)
    with (
        pytest.raises(ConflictError, match=r"0.001 hours are needed; the allocation has 0 left"),
        lab.db.write() as session,
    ):
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
