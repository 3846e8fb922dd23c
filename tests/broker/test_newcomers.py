"""A newcomer, and who has left or was removed, starts, stops and spends nothing; what they have launched stays."""

from collections.abc import Callable
from functools import partial

import pytest
from sqlalchemy.orm import Session

from broker.allocations import requests
from broker.reports import run_plan
from broker.reviews import changes, reviews
from broker.runs import control, generation, launching
from broker.runs.launching import Order
from broker.runs.progress import Checkpoint, Progress
from broker.runs.runs import RunState
from projects import membership
from projects.errors import ForbiddenError
from tests.at_once import allowed
from tests.broker.lab import ADA, GRACE, STRANGER, Lab, request_id
from tests.broker.reviewing import ask_change, withdraw

WROTE = Progress(10, 20, 2, 128, 5.0, [], [Checkpoint(2, "/tmp/nowhere/step2")])
Spending = Callable[[Session, Lab, int, int], object]

SPENDING: dict[str, Spending] = {
    "launch": lambda s, _, p, r: launching.launch(s, STRANGER, request_id(), Order(p, "demo", "10m")),
    "plan": lambda s, _, p, r: run_plan.plan_run(s, STRANGER, request_id(), Order(p, "demo", "10m")),
    "rerun": lambda s, _, p, r: run_plan.plan_rerun(s, STRANGER, request_id(), r),
    "cancel": lambda s, _, p, r: control.cancel(s, STRANGER, r),
    "pause": lambda s, _, p, r: control.pause(s, STRANGER, r),
    "resume": lambda s, _, p, r: control.resume(s, STRANGER, r),
    "extend": lambda s, _, p, r: control.extend(s, STRANGER, r, "10m"),
}


@pytest.mark.parametrize("name", SPENDING)
def test_a_newcomer_starts_and_stops_nothing(lab: Lab, project: int, run: int, name: str) -> None:
    lab.join(project, STRANGER)
    before = lab.everything()
    with pytest.raises(ForbiddenError, match="Ada, the lead of “Sinks of attention”, has yet to confirm you"):  # noqa: SIM117
        with lab.db.write() as session:
            SPENDING[name](session, lab, project, run)
    assert lab.everything() == before
    with lab.db.write() as session:
        membership.confirm(session, ADA, project, who=str(STRANGER.discord_id))
    lab.launch(project, STRANGER)


def test_a_newcomer_draws_no_sample_forks_nothing_and_asks_for_nothing(
    lab: Lab, project: int, allocation: int, run: int
) -> None:
    lab.renew(run, lab.start(run, 0, 1), 10, WROTE)
    lab.join(project, STRANGER)
    before = lab.everything()
    acts: list[Callable[[Session], object]] = [
        lambda s: generation.generate(s, STRANGER, request_id(), run, "Once"),
        lambda s: run_plan.plan_fork(s, STRANGER, request_id(), run, 2),
    ]
    for act in acts:
        with pytest.raises(ForbiddenError, match="has yet to confirm you"), lab.db.write() as session:
            act(session)
    with lab.db.read() as session, pytest.raises(ForbiddenError, match="has yet to confirm you"):
        generation.check_may_generate(session, STRANGER, run)
    with lab.db.read() as session, pytest.raises(ForbiddenError, match="Only the lead"):
        requests.check_may_request(session, STRANGER, project)
    with pytest.raises(ForbiddenError, match="Only the lead"):
        ask_change(lab, allocation, STRANGER, hours="1")
    assert lab.everything() == before


def test_a_lone_lead_uses_the_starter_grant(lab: Lab) -> None:
    proposal = lab.proposal()
    lab.request(proposal, hours="1")
    lab.join(proposal, STRANGER)
    with pytest.raises(ForbiddenError, match="has yet to confirm you"):
        lab.launch(proposal, STRANGER)
    assert lab.run(lab.launch(proposal)).state == RunState.QUEUED


def test_the_runs_of_who_was_removed_stay_and_obey_them_no_more(lab: Lab, project: int, allocation: int) -> None:
    run = lab.launch(project, GRACE)
    with lab.db.write() as session:
        offer = run_plan.plan_run(session, GRACE, request_id(), Order(project, "demo", "10m")).plan_id
    lab.remove(project, GRACE)
    view = lab.run(run)
    assert (view.state, view.requested_by) == (RunState.QUEUED, "Grace")
    before = lab.everything()
    with pytest.raises(ForbiddenError, match="Only members"):
        lab.cancel(run, GRACE)
    with pytest.raises(ForbiddenError, match="Only members"), lab.db.write() as session:
        run_plan.confirm(session, GRACE, offer)
    assert lab.everything() == before
    lab.cancel(run)


def test_who_asked_for_hours_and_is_out_of_the_project_takes_nothing_back(lab: Lab) -> None:
    """A former lead who was removed neither withdraws the project's requests nor speaks for it."""
    project = lab.project()
    live, asked = lab.allocation(project), lab.request(project)
    change = ask_change(lab, live, hours="1")
    with lab.db.write() as session:
        membership.offer_lead(session, ADA, project, to=str(GRACE.discord_id), reason="Moving on.")
        membership.accept_lead(session, GRACE, project)
    with lab.db.read() as session:
        requests.check_may_withdraw(session, ADA, asked)  # still a contributor
    lab.remove(project, ADA, GRACE)
    before = lab.everything()
    acts: list[Callable[[Session], object]] = [
        lambda s: changes.withdraw(s, ADA, change, reason="Mine."),
        lambda s: reviews.answer(s, ADA, asked, "Five."),
    ]
    with pytest.raises(ForbiddenError, match="Only the lead of “Sinks of attention”, Grace"):
        withdraw(lab, asked)
    for act in acts:
        with pytest.raises(ForbiddenError, match="Only the lead of"), lab.db.write() as session:
            act(session)
    assert lab.everything() == before
    withdraw(lab, asked, GRACE)


def test_who_is_removed_while_they_launch_launches_before_it_or_not_at_all(lab: Lab) -> None:
    for _ in range(4):
        project = lab.project()
        lab.allocation(project)
        acts: list[Callable[[], object]] = [partial(lab.launch, project, GRACE), partial(lab.remove, project, GRACE)]
        done, removed = allowed(acts, ForbiddenError)
        assert removed
        kinds = lab.kinds(project)
        assert kinds[-2:] == (["run.queued", "project.removed"] if done else kinds[-2:])
        assert ("run.queued" in kinds) == done
