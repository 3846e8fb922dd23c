"""A large allocation comes in halves: the second is released on a public report, or returns to the grant."""

from datetime import datetime, timedelta
from functools import partial

import pytest

from broker.allocations import pools
from broker.allocations.allocations import AllocationState
from broker.allocations.ledger import Account
from broker.reviews import reviews
from projects.db.columns import utcnow
from projects.errors import ConflictError, ForbiddenError
from projects.people import Actor, LabRole
from tests.at_once import allowed
from tests.broker.lab import EMMY, GRACE, ROSA, STRANGER, Lab
from tests.broker.reviewing import HALF, large, pass_time, report, review, spend, told, view


def test_the_second_half_is_released_on_a_public_report(lab: Lab) -> None:
    project, allocation = large(lab)
    assert lab.account(allocation) == Account(HALF, 0, 0, committed=HALF)
    with pytest.raises(ConflictError, match="on a public report"):
        review(lab, reviews.release_half, allocation)
    with pytest.raises(ForbiddenError, match="Only the lead"):
        report(lab, allocation, GRACE)
    report(lab, allocation)
    with pytest.raises(ForbiddenError, match="Nobody decides"):
        review(lab, reviews.release_half, allocation, Actor(1, "Ada", frozenset({LabRole.REVIEWER})))
    with pytest.raises(ForbiddenError, match="Only compute reviewers"):
        review(lab, reviews.release_half, allocation, STRANGER)
    spend(lab, allocation, HALF)
    pass_time(lab)
    assert view(lab, allocation).state == AllocationState.EXHAUSTED
    review(lab, reviews.release_half, allocation, reason="Good progress.")
    assert lab.account(allocation) == Account(2 * HALF, 0, HALF)
    assert view(lab, allocation).state == AllocationState.APPROVED
    assert lab.kinds(project)[-1] == "allocation.half_released"
    with pytest.raises(ConflictError, match="no second half"):
        review(lab, reviews.release_half, allocation)


def test_the_second_half_returns_to_the_grant_at_its_deadline(lab: Lab) -> None:
    project, allocation = large(lab)
    with lab.db.read() as session:
        source = next(grant for grant in pools.grants(session) if grant.pool == "cluster")
    assert (source.granted, source.committed, source.left) == (HALF, HALF, 3 * HALF)
    pass_time(lab, days=14)
    assert lab.account(allocation).committed == HALF
    pass_time(lab, days=16)
    assert lab.account(allocation) == Account(HALF, 0, 0)
    with lab.db.read() as session:
        source = next(grant for grant in pools.grants(session) if grant.pool == "cluster")
    assert (source.granted, source.committed, source.left) == (HALF, 0, 4 * HALF)
    assert told(lab, project, "allocation.half_returned")[0]["returned"] == HALF
    with pytest.raises(ConflictError, match="no second half"):
        review(lab, reviews.release_half, allocation)


def test_release_and_deadline_at_the_same_moment_move_the_half_once(lab: Lab) -> None:
    _, allocation = large(lab)
    report(lab, allocation)
    late = [partial(pass_time, lab, days=16)] * 2
    released = [partial(review, lab, reviews.release_half, allocation, reviewer) for reviewer in (ROSA, EMMY)]
    allowed([*late, *released], ConflictError)
    assert lab.account(allocation) in (Account(HALF, 0, 0), Account(2 * HALF, 0, 0))
    with lab.db.read() as session:
        source = next(grant for grant in pools.grants(session) if grant.pool == "cluster")
    assert (source.granted, source.committed) == (lab.account(allocation).granted, 0)


def test_half_of_the_time_is_the_deadline(lab: Lab) -> None:
    _, allocation = large(lab)
    shown = view(lab, allocation)
    assert shown.half_until is not None
    expected: datetime = utcnow() + (shown.until - utcnow()) / 2
    assert abs(shown.half_until - expected) < timedelta(minutes=1)
