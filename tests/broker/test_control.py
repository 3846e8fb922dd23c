"""Runs paused, resumed, extended, forked and run again: what moves, what it costs, and what is refused."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from broker.allocations import ledger
from broker.allocations.ledger import Account
from broker.end_reasons import EndReason
from broker.reports import run_plan
from broker.runs import attempts, control, leases, runs, settlement
from broker.runs.attempts import Attempt
from broker.runs.launching import Receipt
from broker.runs.progress import Checkpoint, Ending, Progress
from broker.runs.runs import RunState
from projects.errors import ConflictError, DomainError, ForbiddenError, InvalidError, NotFoundError
from projects.people import Actor
from tests.broker.lab import ADA, GRACE, HOUR, NOTHING, STRANGER, Lab, request_id

STOPPED = Ending(75, "stopped")
KILLED = Ending(-9, "the trainer was ended by signal 9")


def wrote(*steps: int) -> Progress:
    """The progress of a trainer that has written these checkpoints."""
    return Progress(1, 1, step=steps[-1], tokens=1, checkpoints=[Checkpoint(s, f"attempt-1/step{s}") for s in steps])


def fork(lab: Lab, run: int, step: int, **changes: object) -> Receipt:
    with lab.db.write() as session:
        preview = run_plan.plan_fork(session, ADA, request_id(), run, step, **changes)  # type: ignore[arg-type]
    with lab.db.write() as session:
        return run_plan.confirm(session, ADA, preview.plan_id)


def rerun(lab: Lab, actor: Actor, request: str, run: int) -> Receipt:
    with lab.db.write() as session:
        preview = run_plan.plan_rerun(session, actor, request, run)
    with lab.db.write() as session:
        return run_plan.confirm(session, actor, preview.plan_id)


def test_a_queued_run_pauses_at_once_and_resumes(lab: Lab, project: int, allocation: int, run: int) -> None:
    lab.pause(run, GRACE)
    view = lab.run(run)
    assert (view.state, view.reason, view.ended_at) == (RunState.PAUSED, "paused by Grace", None)
    assert lab.account(allocation) == Account(HOUR, 0, 0)
    with lab.db.read() as session:
        assert runs.in_motion(session) == {}
    receipt = lab.resume(run)
    assert (receipt.cost, receipt.left) == (1200, HOUR)
    assert (lab.run(run).state, lab.run(run).reason) == (RunState.QUEUED, "")
    assert lab.kinds(project)[-3:] == ["run.queued", "run.paused", "run.resumed"]


def test_a_running_run_pauses_with_a_checkpoint_and_gives_back_what_it_reserved(
    lab: Lab, project: int, allocation: int, run: int
) -> None:
    token = lab.start(run, 0, 1)
    lab.pause(run)
    assert lab.run(run).state == RunState.STOPPING
    assert lab.renew(run, token, 60, wrote(4)), "the supervisor is told to stop"
    lab.settle(run, token, 62, STOPPED)
    view = lab.run(run)
    assert (view.state, view.reason, view.spent, view.step) == (RunState.PAUSED, "paused by Ada", 124, 4)
    assert lab.account(allocation) == Account(HOUR, 0, 124)
    assert lab.kinds(project)[-2:] == ["run.stopping", "run.paused"]
    assert lab.resume(run).cost == 2 * (600 - 62)


def test_a_resumed_run_goes_on_with_another_number_of_gpus_and_another_limit(
    lab: Lab, allocation: int, run: int
) -> None:
    lab.pause(run)
    assert lab.resume(run, gpus=1).cost == 600
    token = lab.start(run, 0)
    assert lab.account(allocation) == Account(HOUR, 600, 0)
    lab.settle(run, token, 100, STOPPED)
    lab.pause(run)
    assert lab.resume(run, gpus=2, time_limit="1m").cost == 120
    assert lab.row(run).time_limit == 160, "what was used and what it may still take"
    second = lab.start(run, 0, 1)
    assert lab.account(allocation) == Account(HOUR, 120, 100)
    lab.settle(run, second, 1000, Ending(75, timed_out=True))
    assert (lab.run(run).state, lab.run(run).spent) == (RunState.TIMED_OUT, 220)


@pytest.mark.parametrize("end", [STOPPED, KILLED, Ending(70, "rank 1 was killed", transient=True)])
def test_a_pause_holds_however_the_trainer_stops(lab: Lab, run: int, end: Ending) -> None:
    token = lab.start(run, 0, 1)
    lab.pause(run)
    lab.settle(run, token, 5, end)
    assert lab.run(run).state == RunState.PAUSED


def test_a_pause_does_not_hide_how_a_run_ended(lab: Lab, project: int, run: int) -> None:
    token = lab.start(run, 0, 1)
    lab.pause(run)
    lab.settle(run, token, 5, Ending(70, "the loss is not finite"))
    assert (lab.run(run).state, lab.run(run).reason) == (RunState.FAILED, "the loss is not finite")
    other = lab.launch(project)
    token = lab.start(other, 0)
    lab.pause(other)
    lab.settle(other, token, 5, Ending(0))
    assert lab.run(other).state == RunState.FINISHED


def test_a_run_paused_before_it_was_claimed_or_as_its_supervisor_died_is_paused(lab: Lab, run: int) -> None:
    token = lab.admit(run, 0, 1)
    lab.pause(run)
    with lab.db.write() as session:
        settlement.withdraw(session, run, token)
    assert lab.run(run).state == RunState.PAUSED
    lab.resume(run)
    token = lab.start(run, 0, 1, lease=-1)
    lab.pause(run)
    lab.expire(run, token)
    assert lab.run(run).state == RunState.PAUSED


def test_a_run_that_stops_to_pause_may_still_be_cancelled_and_so_may_a_paused_one(lab: Lab, run: int) -> None:
    token = lab.start(run, 0, 1)
    lab.pause(run)
    with pytest.raises(ConflictError, match="is stopping; only one that waits or runs"):
        lab.pause(run)
    lab.cancel(run)
    with pytest.raises(ConflictError, match="is already stopping"):
        lab.cancel(run)
    lab.settle(run, token, 5, STOPPED)
    assert (lab.run(run).state, lab.run(run).reason) == (RunState.CANCELLED, "cancelled by Ada")


def test_a_paused_run_may_be_cancelled(lab: Lab, project: int, run: int) -> None:
    lab.pause(run)
    lab.cancel(run, GRACE)
    assert (lab.run(run).state, lab.run(run).reason) == (RunState.CANCELLED, "cancelled by Grace")
    before = lab.everything()
    for refused in (lambda: lab.pause(run), lambda: lab.resume(run), lambda: lab.extend(run, "5m")):
        with pytest.raises(ConflictError, match="is cancelled"):
            refused()
    assert lab.everything() == before


def test_what_cannot_be_resumed_changes_nothing(lab: Lab, project: int, run: int) -> None:
    lab.pause(run)
    before = lab.everything()
    for changes, sentence in (
        ({"gpus": 3}, "has 2 cores; ask for 1 to 2"),
        ({"gpus": 0}, "has 2 cores; ask for 1 to 2"),
        ({"time_limit": "2h"}, "may cost 4 core-hours, with 1 left: less time or fewer cores would fit"),
        ({"time_limit": "soon"}, "A time limit is written like"),
        ({"allocation_id": 99}, "no allocation 99"),
    ):
        with pytest.raises(DomainError, match=sentence):
            lab.resume(run, **changes)
    with pytest.raises(ForbiddenError), lab.db.write() as session:
        control.resume(session, STRANGER, run)
    with pytest.raises(ForbiddenError), lab.db.write() as session:
        control.pause(session, STRANGER, run)
    assert lab.everything() == before


def test_a_count_that_the_trainer_refuses_is_refused(lab: Lab, project: int, allocation: int) -> None:
    run = lab.launch(project, overrides="batch=8, micro_batch=8")
    lab.pause(run)
    with pytest.raises(InvalidError, match="multiple of"):
        lab.resume(run, gpus=2)


def test_of_many_who_pause_and_resume_one_is_heard(lab: Lab, project: int, run: int) -> None:
    def heard(act: object) -> bool:
        try:
            act(run)  # type: ignore[operator]
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(heard, [lab.pause] * 4)) == 1
        assert sum(pool.map(heard, [lab.resume] * 4)) == 1
    assert lab.kinds(project)[-2:] == ["run.paused", "run.resumed"]


def test_a_run_that_waits_is_extended_and_reserves_as_it_starts(lab: Lab, allocation: int, run: int) -> None:
    assert lab.extend(run, "5m").cost == 1800
    lab.start(run, 0, 1)
    assert lab.account(allocation).reserved == 1800


def test_an_extension_that_comes_while_the_time_limit_ends_a_run_lets_it_go_on(
    lab: Lab, project: int, allocation: int, run: int
) -> None:
    token = lab.start(run, 0, 1)
    lab.renew(run, token, 601, wrote(4))
    lab.extend(run, "5m")
    lab.settle(run, token, 610, Ending(75, timed_out=True))
    view = lab.run(run)
    assert (view.state, view.spent) == (RunState.QUEUED, 1220)
    assert view.reason == "it was extended while it stopped for its time limit, and goes on from its checkpoint"
    assert lab.kinds(project)[-2:] == ["run.extended", "run.requeued"]
    second = lab.start(run, 0, 1)
    assert lab.account(allocation).reserved == 2 * 290
    lab.settle(run, second, 290, Ending(75, timed_out=True))
    assert (lab.run(run).state, lab.run(run).reason) == (RunState.TIMED_OUT, "it reached its time limit")


def test_a_running_run_is_extended_at_once_and_its_supervisor_is_told(
    lab: Lab, project: int, allocation: int, run: int
) -> None:
    token = lab.start(run, 0, 1)
    lab.extend(run, "5m")
    lab.extend(run, "5m")
    assert lab.account(allocation) == Account(HOUR, 2400, 0)
    with lab.db.write() as session:
        told = leases.renew(session, run, token, 700, NOTHING, lease_seconds=60)
    assert (told.stop, told.seconds) == (False, 1200)
    assert lab.account(allocation) == Account(HOUR, 1000, 1400)
    with pytest.raises(ConflictError, match=r"0.367 hours are needed; the allocation has 0.333 left"):
        lab.extend(run, "11m")
    lab.settle(run, token, 1200, Ending(75, timed_out=True))
    assert (lab.run(run).state, lab.account(allocation)) == (RunState.TIMED_OUT, Account(HOUR, 0, 2400))
    assert lab.kinds(project).count("run.extended") == 2


def test_many_extensions_at_once_reserve_each_or_not_at_all(lab: Lab, allocation: int, run: int) -> None:
    lab.start(run, 0, 1)

    def extend(_: int) -> bool:
        try:
            lab.extend(run, "5m")
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        granted = sum(pool.map(extend, range(6)))
    assert granted == 4, "2,400 seconds were left, and each takes 600"
    assert lab.account(allocation) == Account(HOUR, HOUR, 0)
    assert lab.row(run).time_limit == 1800


def test_a_fork_goes_on_from_a_kept_step_of_another_run(lab: Lab, project: int, run: int) -> None:
    lab.settle(run, lab.start(run, 0, 1), 5, KILLED)
    token = lab.start(run, 0, 1)
    lab.renew(run, token, 5, wrote(1, 2, 4))
    forked = fork(lab, run, 2, overrides="seed=7, steps=300", time_limit="5m", gpus=1)
    view, row = lab.run(forked.run_id), lab.row(forked.run_id)
    assert (view.parent_id, row.fork_step, view.gpus, view.time_limit) == (run, 2, 1, 300)
    assert (view.recipe, view.overrides, view.total_steps) == ("demo", {"seed": "7", "steps": "300"}, 300)
    assert lab.kinds(project)[-1] == "run.forked"
    again = fork(lab, run, 4)
    assert (lab.run(again.run_id).gpus, lab.run(again.run_id).time_limit) == (2, 600)
    before = lab.everything()
    with pytest.raises(
        NotFoundError, match=f"Run {run} has no checkpoint of step 3 here or open on the Hub; it has: 1, 2, 4"
    ):
        fork(lab, run, 3)
    with pytest.raises(InvalidError, match="would end at step 4, where step 4 is done"):
        fork(lab, run, 4, overrides="steps=4")
    with pytest.raises(NotFoundError, match="no run 99"):
        fork(lab, 99, 4)
    assert lab.everything() == before


def test_a_run_is_run_again_with_all_that_it_was_asked_for(lab: Lab, project: int, allocation: int) -> None:
    first = lab.launch(project, gpus=2, time_limit="15m", overrides="steps=20, seed=3")
    lab.cancel(first)
    receipt = rerun(lab, GRACE, "again", first)
    assert rerun(lab, GRACE, "again", first).run_id == receipt.run_id
    view, before = lab.run(receipt.run_id), lab.run(first)
    for asked in ("recipe", "overrides", "gpus", "time_limit", "pool", "total_steps", "parent_id"):
        assert getattr(view, asked) == getattr(before, asked)
    assert (view.requested_by, view.state) == ("Grace", RunState.QUEUED)


def test_a_sample_is_neither_paused_nor_run_again(lab: Lab, project: int, allocation: int) -> None:
    run = lab.launch(project)
    lab.settle(run, lab.start(run, 0), 5, Ending(0))
    before = lab.everything()
    for refused in (lambda: lab.pause(run + 1), lambda: lab.extend(run + 1, "5m"), lambda: fork(lab, run + 1, 1)):
        with pytest.raises(ConflictError, match=f"is a sample of run {run}"):
            refused()
    assert lab.everything() == before


def test_a_run_that_is_unfunded_goes_on_once_it_can_be_paid(lab: Lab, project: int, allocation: int) -> None:
    first, second = lab.launch(project, time_limit="40m"), lab.launch(project, time_limit="40m")

    def revivable() -> list[int]:
        with lab.db.read() as session:
            return list(control.revivable(session))

    def act(what: object, run: int) -> bool:
        with lab.db.write() as session:
            return bool(what(session, run))  # type: ignore[operator]

    token = lab.start(first, 0)
    assert not act(control.pause_unfunded, second), "what is reserved may be given back"
    lab.settle(first, token, 2400, Ending(70, "broken"))
    assert act(control.pause_unfunded, second)
    assert (lab.run(second).state, lab.row(second).unfunded) == (RunState.PAUSED, True)
    assert "0.667 core-hours and its allocation has 0.333 left" in lab.run(second).reason
    assert (revivable(), act(control.revive, second)) == ([], False)
    lab.top_up(allocation, 1200)
    assert revivable() == [second]
    assert act(control.revive, second)
    assert not act(control.revive, second)
    assert lab.run(second).state == RunState.QUEUED
    assert lab.kinds(project)[-2:] == ["run.paused", "run.resumed"]
    lab.pause(second)
    assert revivable() == [], "who has paused it by hand resumes it by hand"


def test_all_that_is_on_a_revoked_allocation_is_paused(lab: Lab, project: int, allocation: int) -> None:
    running, queued = lab.launch(project), lab.launch(project)
    token = lab.start(running, 0)
    with lab.db.write() as session:
        stopped = control.stop_all(session, allocation, EndReason.ALLOCATION_REVOKED, "its allocation was revoked")
    assert stopped == [running, queued]
    lab.settle(running, token, 5, STOPPED)
    for run in (running, queued):
        assert (lab.run(run).state, lab.run(run).reason) == (RunState.PAUSED, "its allocation was revoked")


def test_a_fault_refunds_what_no_checkpoint_stands_for(lab: Lab, project: int, allocation: int, run: int) -> None:
    token = lab.start(run, 0, 1)
    lab.renew(run, token, 30)
    lab.renew(run, token, 60, wrote(4))
    lab.renew(run, token, 90)
    lab.settle(run, token, 100, KILLED)
    assert lab.account(allocation) == Account(HOUR, 0, 120)
    with lab.db.read() as session:
        assert session.get_one(Attempt, (run, token)).refunded == 80
        assert attempts.remaining(session, runs.load(session, run)) == 540
    assert lab.kinds(project)[-2:] == ["run.refunded", "run.requeued"]
    second = lab.start(run, 0, 1)
    assert lab.account(allocation) == Account(HOUR, 1080, 120)
    lab.settle(run, second, 540, Ending(75, timed_out=True))
    assert (lab.run(run).state, lab.run(run).spent) == (RunState.TIMED_OUT, 1200)


@pytest.mark.parametrize(
    "ending", [STOPPED, Ending(70, "the loss is not finite"), Ending(-9, timed_out=True), Ending(1, transient=True)]
)
def test_an_end_that_is_no_fault_of_the_machines_refunds_nothing(
    lab: Lab, project: int, run: int, ending: Ending
) -> None:
    lab.settle(run, lab.start(run, 0, 1), 10, ending)
    assert lab.run(run).spent == 20
    assert "run.refunded" not in lab.kinds(project)


def test_a_refund_is_given_once_and_never_more_than_was_charged(lab: Lab, allocation: int, run: int) -> None:
    token = lab.start(run, 0, 1)
    lab.renew(run, token, 10)
    with pytest.raises(ConflictError, match="was charged 20 s"), lab.db.write() as session:
        ledger.refund(session, allocation, run, token, 21, "a fault")
    with lab.db.write() as session:
        ledger.refund(session, allocation, run, token, 5, "a fault")
    with pytest.raises(ConflictError, match="was already refunded"), lab.db.write() as session:
        ledger.refund(session, allocation, run, token, 5, "a fault")
    assert lab.account(allocation) == Account(HOUR, 1180, 15)


def test_the_tables_of_runs_go_down_and_up_with_paused_runs_in_them(lab: Lab, project: int, run: int) -> None:
    other = lab.launch(project, gpus=2)
    lab.settle(other, lab.start(other, 0, 1), 7, STOPPED)
    lab.pause(run)
    lab.db.migrate(f"-{int(_head(lab)) - 5}")
    with lab.db.read() as session:
        assert session.scalar(text(f"SELECT state FROM runs WHERE id = {run}")) == "cancelled"
    lab.db.migrate()
    assert (lab.row(run).state, lab.row(run).used, lab.row(other).used) == (RunState.CANCELLED, 0, 7)


def _head(lab: Lab) -> str:
    with lab.db.read() as session:
        return str(session.scalar(text("SELECT version_num FROM alembic_version")))


@pytest.mark.parametrize(("lost", "spent"), [(False, 180), (True, 120)])
def test_a_lost_host_refunds_also_while_the_run_stops(lab: Lab, run: int, lost: bool, spent: int) -> None:
    """But not the trainer that dies of its own supervisor's signals."""
    token = lab.start(run, 0, 1, lease=60)
    lab.renew(run, token, 60, wrote(4))
    lab.renew(run, token, 90, lease=0.001 if lost else 60)
    lab.pause(run)
    if lost:
        lab.expire(run, token)
    else:
        lab.settle(run, token, 90, KILLED)
    assert (lab.run(run).state, lab.run(run).spent) == (RunState.PAUSED, spent)
