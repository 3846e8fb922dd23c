"""What a reviewer is told before a decision, and the questions and answers about a request."""

import pytest

from broker.allocations import pools
from broker.allocations.units import Amount, Unit
from broker.reports import review_context
from broker.reports.review_context import Remark, ReviewContext
from broker.reviews import changes, reviews
from broker.runs.progress import Ending
from broker.scheduling import usage
from projects.errors import ConflictError, ForbiddenError
from projects.people import Actor, LabRole
from projects.record import record, redaction
from tests.broker.lab import ADA, EMMY, GRACE, HOUR, ROSA, Lab, in_days, request_id


def told(lab: Lab, allocation: int) -> ReviewContext:
    with lab.db.read() as session:
        return review_context.of_request(session, allocation)


def test_what_was_used_what_is_left_and_who_decides(lab: Lab) -> None:
    project, other = lab.project(), lab.project(EMMY, "Another question")
    first = told(lab, lab.request(project, hours="150"))
    assert (first.grants, first.spent, first.reserved, first.available) == (0, {}, {}, 1000 * HOUR)
    assert (first.reviewers, first.halves, first.standing.of) == (2, False, 1)

    for owner, lead, seconds in ((project, ADA, 300), (other, EMMY, 100)):
        lab.allocation(owner, lead=lead)
        run = lab.launch(owner, lead)
        lab.settle(run, lab.start(run), seconds, Ending(0))
    lab.start(lab.launch(project))
    with lab.db.write() as session:
        usage.add_ended(session)
    lab.let("halves_hours", 50)
    second = told(lab, lab.request(project, hours="60"))
    used = {Unit.CORE: 300}, {Unit.CORE: 600}
    assert (second.grants, second.spent, second.reserved, second.available) == (1, *used, 998 * HOUR)
    assert (second.reviewers, second.halves, second.standing.of) == (1, True, 2)
    assert second.standing.used == pytest.approx(0.75, abs=0.01)


def test_a_change_is_weighed_by_what_the_allocation_comes_to(lab: Lab) -> None:
    allocation = lab.allocation(lab.project(), "80")
    with lab.db.write() as session:
        change = changes.request(session, ADA, request_id(), allocation, justification="More.", hours="30")
        assert review_context.of_change(session, change).reviewers == 2
        changes.withdraw(session, ADA, change, reason="Later.")
        later = changes.request(session, ADA, request_id(), allocation, justification="Longer.", until=in_days(50))
        assert review_context.of_change(session, later).reviewers == 1
        assert changes.open_of(session, allocation) == later


def test_questions_and_answers_until_they_are_decided_or_blanked(lab: Lab) -> None:
    project = lab.project()
    one, two = lab.request(project), lab.request(project)
    with lab.db.write() as session:
        reviews.ask(session, ROSA, one, "Why so few?")
        reviews.answer(session, ADA, one, "We begin.")
    assert told(lab, one).remarks == [Remark("Rosa", "Why so few?", True), Remark("Ada", "We begin.", False)]
    assert told(lab, two).remarks == []
    with pytest.raises(ForbiddenError, match="Only the lead"), lab.db.write() as session:
        reviews.answer(session, GRACE, one, "Me too.")
    with lab.db.write() as session:
        number = record.streams(session)[record.project_stream(project)]
        admin = Actor(9, "Omar", frozenset({LabRole.ADMIN}))
        redaction.redact(session, admin, record.project_stream(project), number, "By mistake.")
    assert [remark.said for remark in told(lab, one).remarks] == ["Why so few?"]
    lab.decline(one)
    with pytest.raises(ConflictError, match="is declined; reviewers can no longer ask"), lab.db.write() as session:
        reviews.answer(session, ADA, one, "Too late.")


def test_the_second_consent_is_another_reviewers(lab: Lab) -> None:
    large = lab.request(lab.project(), hours="150")
    lab.approve(large, "150")
    with lab.db.read() as session:
        with pytest.raises(ConflictError, match="already endorsed this request"):
            reviews.check_may_approve(session, ROSA, large)
        reviews.check_may_approve(session, EMMY, large)
        assert pools.largest_in(session, "laptop") == Amount(Unit.CORE, 1000 * HOUR)
