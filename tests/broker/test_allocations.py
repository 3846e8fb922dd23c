"""Allocations: asked for by a project's lead, decided once by somebody else, and never more than the grants hold."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import text

from broker.allocations import allocations, pools, requests
from broker.allocations.allocations import AllocationState, AllocationView
from broker.allocations.ledger import Account
from broker.allocations.requests import parse_day, parse_hours
from broker.reports import review_context
from projects.db.columns import utcnow
from projects.errors import ConflictError, DomainError, ForbiddenError, InvalidError, NotFoundError
from projects.people import Actor, LabRole
from tests.at_once import at_once
from tests.broker.lab import ADA, EMMY, GRACE, HOUR, POOL, ROSA, Lab, in_days

REFUSED_REQUESTS = [
    ({"hours": "-5"}, "above 0"),
    ({"hours": "0"}, "above 0"),
    ({"hours": "1e9"}, "have 1,000 core-hours left"),
    ({"hours": "1,000"}, "may be 1000 or 1.000"),
    ({"hours": "NaN"}, "must be a number"),
    ({"hours": "1001"}, "have 1,000 core-hours left"),
    ({"until": "2020-01-01"}, "in the future"),
    ({"until": "soon"}, "year, month, day"),
    ({"pool": "moon"}, f"no pool “moon”; the pools are: {POOL}"),
    ({"justification": " \u200b "}, "justification is empty"),
    ({"justification": "x" * 5000}, "at most 1,500"),
]
REFUSED_DECISIONS: list[tuple[dict[str, Any], str]] = [
    ({"hours": "2.001"}, "The request is for 2 core-hours; grant at most that"),
    ({"hours": "0"}, "above 0"),
    ({"hours": "NaN"}, "must be a number"),
    ({"reason": ""}, "The reason is empty"),
    ({"reason": "x" * 4000}, "at most 1,000"),
]
NO_DECIDERS = [
    (GRACE, "Only compute reviewers"),
    (ADA, "Only compute reviewers"),
    (Actor(1, "Ada", frozenset({LabRole.REVIEWER})), "Nobody decides on a request of their own project"),
    (Actor(77, "Nobody", frozenset({LabRole.MODERATOR})), "Only compute reviewers"),
]


def view(lab: Lab, allocation: int) -> AllocationView:
    with lab.db.read() as session:
        return allocations.view(session, allocation)


def available(lab: Lab, pool: str = POOL) -> int:
    with lab.db.read() as session:
        return pools.available(session)[pools.named(session, pool).id]


@pytest.mark.parametrize(
    ("typed", "seconds"), [("2", 7200), (" 1.5 ", 5400), ("0.001", 3), ("1000000", 3_600_000_000), ("1e3", 3_600_000)]
)
def test_hours_as_typed(typed: str, seconds: int) -> None:
    assert parse_hours(typed) == seconds


@pytest.mark.parametrize(
    "typed",
    [
        *("-5", "0", "-0", "NaN", "sNaN", "inf", "-inf", "", "  ", "abc", "1d"),
        *("0x10", "1 2", "9" * 4000, "1e999999999", "½", "<@1>"),
    ],
)
def test_hours_that_are_none(typed: str) -> None:
    with pytest.raises(InvalidError, match=r"Hours must .* such as") as refused:
        parse_hours(typed)
    assert len(str(refused.value)) < 120


@pytest.mark.parametrize("typed", ["1e-99", "0.0001"])
def test_hours_that_are_no_second(typed: str) -> None:
    with pytest.raises(InvalidError, match=r"That is less than a second: ask for at least 0\.001 hours\."):
        parse_hours(typed)


def test_a_day_as_typed_lasts_to_its_end() -> None:
    assert parse_day(in_days(0)) > utcnow()
    assert parse_day(f" {in_days(3)} ").strftime("%H:%M:%S %Z") == "23:59:59 UTC"


@pytest.mark.parametrize(
    "typed", ["", "soon", "2020-01-01", "2020-02-30", "9999-12-31", "0001-01-01", "31.12.2030", "2030-12-31T00:00"]
)
def test_days_that_are_none(typed: str) -> None:
    with pytest.raises(InvalidError, match="The day must"):
        parse_day(typed)
    with pytest.raises(InvalidError, match="future"):
        parse_day(in_days(-1))
    with pytest.raises(InvalidError, match=f"no later than {in_days(365)}; {in_days(400)} does not"):
        parse_day(in_days(400))
    assert parse_day(in_days(365))


def test_a_request_that_cannot_stand_changes_nothing(lab: Lab, subtests: pytest.Subtests) -> None:
    project = lab.project()
    before = lab.everything()
    for changes, sentence in REFUSED_REQUESTS:
        with subtests.test(**{key: value[:40] for key, value in changes.items()}):
            with pytest.raises(DomainError, match=sentence):
                lab.request(project, ADA, **changes)
            assert lab.everything() == before


def test_only_the_lead_of_an_active_project_asks(lab: Lab) -> None:
    project, proposal = lab.project(), lab.proposal(title="Not yet")
    before = lab.everything()
    with pytest.raises(ForbiddenError, match="Only the lead of “Sinks of attention”, Ada"):
        lab.request(project, GRACE)
    with pytest.raises(ConflictError, match="only an active project"):
        lab.request(proposal)
    with pytest.raises(NotFoundError, match="no project 99"):
        lab.request(99)
    assert lab.everything() == before


def test_the_same_request_asks_once(lab: Lab) -> None:
    project = lab.project()

    def ask() -> int:
        with lab.db.write() as session:
            return requests.request(
                session,
                ADA,
                "once",
                project_id=project,
                pool=POOL,
                hours="1",
                until=in_days(9),
                justification="To see.",
            )

    assert ask() == ask()
    assert lab.kinds(project).count("allocation.requested") == 1


def test_a_corrected_request_takes_the_place_of_an_open_one(lab: Lab) -> None:
    project = lab.project()
    first = lab.request(project, hours="5")
    with pytest.raises(InvalidError, match="above 0"):
        lab.request(project, hours="0", corrects=first)
    assert view(lab, first).state == AllocationState.REQUESTED
    starter = lab.request(project, hours="1", corrects=first)
    earlier = view(lab, first)
    assert (earlier.state, earlier.decided_by) == (AllocationState.WITHDRAWN, "Ada")
    assert earlier.reason == f"Allocation {starter} is asked for in its place."
    assert (view(lab, starter).state, view(lab, starter).starter) == (AllocationState.APPROVED, True)
    assert lab.kinds(project)[-3:] == ["allocation.requested", "allocation.approved", "allocation.withdrawn"]
    other = lab.request(lab.project(title="Another question"), hours="3")
    before = lab.everything()
    for corrects, sentence in (
        (first, f"Allocation {first} is withdrawn already and can no longer be corrected"),
        (starter, f"Allocation {starter} is approved already and can no longer be corrected"),
        (other, f"Allocation {other} is not one of “Sinks of attention”"),
        (99, "There is no allocation 99"),
    ):
        with pytest.raises(DomainError, match=sentence):
            lab.request(project, corrects=corrects)
    assert lab.everything() == before


def test_granted_in_part_with_a_reason(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.request(project, hours="2")
    assert lab.account(allocation) == Account(0, 0, 0)
    lab.approve(allocation, hours="0.5", reason="A start.")
    told = view(lab, allocation)
    assert (told.state, told.seconds, told.decided_by, told.reason, told.sponsor) == (
        AllocationState.APPROVED,
        2 * HOUR,
        "Rosa",
        "A start.",
        "The house",
    )
    assert lab.account(allocation) == Account(HOUR // 2, 0, 0)
    assert available(lab) == 1000 * HOUR - HOUR // 2
    assert lab.kinds(project)[-2:] == ["allocation.requested", "allocation.approved"]


def test_declined_with_a_reason(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.request(project)
    lab.decline(allocation, reason="Not yet.")
    told = view(lab, allocation)
    assert (told.state, told.reason, told.account) == (AllocationState.DECLINED, "Not yet.", Account(0, 0, 0))
    assert available(lab) == 1000 * HOUR
    with pytest.raises(ConflictError, match="already declined, by Rosa"):
        lab.approve(allocation, reviewer=EMMY)
    assert lab.kinds(project)[-1] == "allocation.declined"


def test_who_may_not_decide(lab: Lab, subtests: pytest.Subtests) -> None:
    allocation = lab.request(lab.project())
    before = lab.everything()
    for actor, sentence in NO_DECIDERS:
        for decide in (lab.approve, lab.decline):
            with subtests.test(actor=actor.name, decide=decide.__name__):
                with pytest.raises(ForbiddenError, match=sentence):
                    decide(allocation, reviewer=actor)
                assert lab.everything() == before


def test_a_decision_that_cannot_stand_changes_nothing(lab: Lab, subtests: pytest.Subtests) -> None:
    allocation = lab.request(lab.project())
    before = lab.everything()
    for changes, sentence in REFUSED_DECISIONS:
        with subtests.test(**{key: value[:40] for key, value in changes.items()}):
            with pytest.raises(InvalidError, match=sentence):
                lab.approve(allocation, **changes)
            assert lab.everything() == before


def test_a_second_click_is_told_who_was_first(lab: Lab) -> None:
    allocation = lab.request(lab.project())
    lab.approve(allocation)
    before = lab.everything()
    for reviewer in (ROSA, EMMY):
        with pytest.raises(ConflictError, match="already approved, by Rosa"):
            lab.approve(allocation, reviewer=reviewer)
        with pytest.raises(ConflictError, match="already approved, by Rosa"):
            lab.decline(allocation, reviewer=reviewer)
    with pytest.raises(NotFoundError, match="no allocation 99"):
        lab.approve(99)
    assert lab.everything() == before


def test_of_reviewers_at_the_same_moment_one_wins(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.request(project, hours="2")
    reviewers = [Actor(100 + n, f"Reviewer {n}", frozenset({LabRole.REVIEWER})) for n in range(6)]

    def decide(n: int) -> str:
        try:
            if n % 2:
                lab.decline(allocation, reviewer=reviewers[n])
            else:
                lab.approve(allocation, hours="1", reviewer=reviewers[n])
        except ConflictError as conflict:
            return str(conflict)
        return "won"

    answers = at_once([partial(decide, n) for n in range(len(reviewers))])
    assert answers.count("won") == 1
    winner = answers.index("won")
    state = AllocationState.DECLINED if winner % 2 else AllocationState.APPROVED
    loser = f"This request was already {state}, by Reviewer {winner}."
    assert [answer for answer in answers if answer != "won"] == [loser] * (len(reviewers) - 1)
    granted = 0 if winner % 2 else HOUR
    assert lab.account(allocation).granted == granted
    assert available(lab) == 1000 * HOUR - granted
    assert lab.kinds(project)[-1] == f"allocation.{state}"
    assert len(lab.kinds(project)) == 6 + 1


def test_a_grant_is_drawn_empty_and_not_further(lab: Lab) -> None:
    project = lab.project()
    lab.let("one_reviewer_hours", 2000)
    large, small, last = (lab.request(project, hours=hours) for hours in ("998", "3", "1.5"))
    lab.consent(large, "998")
    before = lab.everything()
    with pytest.raises(ConflictError, match="No grant of this pool holds 3 core-hours any more; 2 are left"):
        lab.approve(small, hours="3")
    assert lab.everything() == before
    lab.approve(last, hours="1.5")
    lab.approve(small, hours="0.5")
    assert available(lab) == 0
    with pytest.raises(InvalidError, match="have 0 core-hours left"):
        lab.request(project, hours="0.001")


def test_many_approvals_at_once_do_not_overdraw_a_grant(lab: Lab) -> None:
    project = lab.project()
    lab.let("one_reviewer_hours", 1000)
    lab.pool("narrow", granted=310 * HOUR)
    asked = [lab.request(project, hours="100", pool="narrow") for _ in range(6)]

    def approve(allocation: int) -> bool:
        try:
            lab.approve(allocation, hours="100")
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(approve, asked)) == 3
    assert available(lab, "narrow") == 10 * HOUR


def test_no_more_is_asked_for_than_one_grant_holds(lab: Lab) -> None:
    project = lab.project()
    lab.pool("shared", granted=3 * HOUR)
    with lab.db.write() as session:
        until = utcnow() + timedelta(days=60)
        pools.add_grant(session, pool="shared", sponsor="Another house", seconds=2 * HOUR, until=until)
    with pytest.raises(InvalidError, match="have 3 core-hours left for one allocation"):
        lab.request(project, pool="shared", hours="4")
    asked = lab.request(project, pool="shared", hours="3")
    with lab.db.read() as session:
        assert review_context.of_request(session, asked).available == 3 * HOUR
    lab.approve(asked, hours="3")
    with lab.db.read() as session:
        assert review_context.of_request(session, asked).available == 0, "a change of it draws on its own grant"
        assert pools.largest_in(session, "shared").seconds == 2 * HOUR


def test_the_grant_that_ends_first_is_drawn_first_and_an_ended_one_not_at_all(lab: Lab) -> None:
    project = lab.project()
    with lab.db.write() as session:
        soon = utcnow() + timedelta(days=2)
        pools.add_grant(session, pool=POOL, sponsor="The well-wisher", seconds=HOUR, until=soon)
        over = pools.add_grant(session, pool=POOL, sponsor="The past", seconds=HOUR, until=soon)
        yesterday = (utcnow() - timedelta(days=1)).replace(tzinfo=None)
        session.execute(text("UPDATE grants SET until = :day WHERE id = :id"), {"day": yesterday, "id": over})
    sponsors = []
    for _ in range(2):
        allocation = lab.allocation(project, hours="1")
        sponsors.append(view(lab, allocation).sponsor)
    assert sponsors == ["The well-wisher", "The house"]


@pytest.mark.parametrize(
    ("values", "sentence"), [({"seconds": 0}, "at least one second"), ({"until": utcnow()}, "ends in the future")]
)
def test_a_grant_that_gives_nothing(lab: Lab, values: dict[str, object], sentence: str) -> None:
    before = lab.everything()
    given: dict[str, object] = {"seconds": 10, "until": utcnow() + timedelta(days=1)} | values
    with pytest.raises(InvalidError, match=sentence), lab.db.write() as session:
        pools.add_grant(session, pool=POOL, sponsor="Nobody", **given)  # type: ignore[arg-type]
    with pytest.raises(InvalidError, match="at least one GPU or core"), lab.db.write() as session:
        pools.add_pool(session, name="empty", gpu_type="cpu", gpus=0)
    assert lab.everything() == before
