"""Why a run waits: one true reason, and what the scheduler then does."""

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlmodel import col
from typer.testing import CliRunner

from broker.allocations import pools
from broker.end_reasons import EndReason
from broker.reports import why
from broker.reports.why import Why
from broker.runs import control, runs
from broker.runs.attempts import Attempt
from broker.runs.progress import Ending
from broker.runs.runs import Run, RunState
from broker.scheduling import scheduler, snapshot
from broker.scheduling.backfill import Decision, Limits
from broker.scheduling.scheduler import Scheduler
from cli.main import app
from projects import lifecycle
from projects.db.columns import utcnow
from projects.errors import ConflictError, NotFoundError
from projects.projects import Project
from projects.settings import get_settings
from tests.broker.lab import ADA, GRACE, HOUR, STRANGER, Lab, settings

pytestmark = pytest.mark.usefixtures("memory_queue")


def tell(lab: Lab, run: int) -> Why:
    with lab.db.read() as session:
        return why.why(session, run)


def go_round(lab: Lab, tmp_path: Path) -> None:
    Scheduler(settings(tmp_path), lab.db).round()


def test_what_is_said_to_start_is_started_and_the_rest_waits(lab: Lab, ours: int, tmp_path: Path) -> None:
    queued = [lab.launch(ours, gpus=gpus, time_limit=limit) for gpus, limit in ((1, "10m"), (2, "10m"), (1, "5m"))]
    said = [tell(lab, run) for run in queued]
    assert [one.reason for one in said] == [
        "Nothing holds it up.",
        "It waits for cores: 2 needed, 1 free on “laptop”.",
        "Nothing holds it up.",
    ]
    assert [(one.position, one.length) for one in said] == [(1, 3), (2, 3), (3, 3)]
    waits = [one.expected - utcnow() for one in said if one.expected]
    assert [round(wait.total_seconds(), -1) for wait in waits] == [0, 600, 0]
    go_round(lab, tmp_path)
    assert [lab.run(run).state for run in queued] == [RunState.STARTING, RunState.QUEUED, RunState.STARTING]
    assert tell(lab, queued[0]).reason == "It has its cores and is starting."
    assert tell(lab, queued[1]).reason == "It waits for cores: 2 needed, 0 free on “laptop”."


def test_behind_whom(lab: Lab, ours: int) -> None:
    lab.start(lab.launch(ours), 0)
    large = lab.launch(ours, gpus=2)
    small = lab.launch(ours, time_limit="30m")
    told = tell(lab, small)
    assert told.reason == f"It is behind run {large}, which would start later if this one started now."
    assert told.expected is not None
    assert 1190 <= (told.expected - utcnow()).total_seconds() <= 1201
    lab.cancel(large)
    assert tell(lab, small).reason == "Nothing holds it up."


def test_what_decides_its_place(lab: Lab, ours: int) -> None:
    theirs = lab.project(STRANGER, "Another question")
    lab.allocation(theirs, hours="10", lead=STRANGER)
    for project, seconds, actor in ((ours, 300, GRACE), (theirs, 100, STRANGER)):
        run = lab.launch(project, actor)
        lab.settle(run, lab.start(run, 0), seconds, Ending(70, "enough"))
    older, newer = lab.launch(ours), lab.launch(theirs, STRANGER)
    with lab.db.write() as session:
        session.execute(update(Run).where(col(Run.id) == older).values(queued_at=utcnow() - timedelta(hours=2)))
    first, second = tell(lab, newer), tell(lab, older)
    assert (first.position, second.position) == (1, 2)
    assert first.factors is not None
    assert second.factors is not None
    assert (first.factors.project.rank, second.factors.project.rank) == (1, 2)
    assert (first.factors.project.level, second.factors.project.level) == pytest.approx((2, 2 / 3), rel=1e-3)
    assert second.factors.project.usage == pytest.approx(300, rel=1e-3)
    assert second.factors.age == pytest.approx(7200, abs=60)


def test_the_hours_of_its_allocation(lab: Lab, ours: int) -> None:
    lab.allocation(ours, "0.5")
    running, second = lab.launch(ours, time_limit="20m"), lab.launch(ours, time_limit="20m")
    lab.start(running, 0)
    told = tell(lab, second)
    assert "other runs hold the hours: it may cost 0.333 core-hours, and 0.167 are not promised" in told.reason
    assert told.expected is None
    lab.settle(running, 1, 1200, Ending(70, "enough"))
    assert "It cannot start: it may cost 0.334 hours and its allocation has 0.166 left" in tell(lab, second).reason


def test_an_earlier_attempt_that_may_still_be_stopping(lab: Lab, ours: int) -> None:
    run = lab.launch(ours)
    token = lab.start(run, 0, lease=0.001)
    lab.expire(run, token, grace=60)
    assert tell(lab, run).reason.startswith("Not before ")
    assert "an earlier attempt may still be stopping" in tell(lab, run).reason


def test_the_limits_of_project_and_person(lab: Lab, ours: int, tmp_path: Path) -> None:
    lab.let("most_running_a_project", 1)
    first, second = lab.launch(ours), lab.launch(ours, GRACE)
    go_round(lab, tmp_path)
    assert [lab.run(run).state for run in (first, second)] == [RunState.STARTING, RunState.QUEUED]
    assert tell(lab, second).reason == "Its project already has the most runs it may have at once: 1."
    lab.let("most_running_a_project", 100)
    lab.let("most_running_a_person", 1)
    third = lab.launch(ours)
    assert tell(lab, third).reason == "Its person already has the most runs one may have at once: 1."
    go_round(lab, tmp_path)
    assert [lab.run(run).state for run in (second, third)] == [RunState.STARTING, RunState.QUEUED]


def test_schedulers_with_different_plans_pass_no_limit(lab: Lab, ours: int) -> None:
    first, second = lab.launch(ours), lab.launch(ours)
    one = Limits(most_running_a_project=1)
    with lab.db.write() as session:
        scheduler.admit(session, Decision(first, (0,)), one)
    with pytest.raises(ConflictError, match="1 runs of its project are already under way"), lab.db.write() as session:
        scheduler.admit(session, Decision(second, (1,)), one)
    assert lab.run(second).state == RunState.QUEUED


def test_a_pool_of_slurm_is_given_a_few_jobs_without_devices(lab: Lab, ours: int, tmp_path: Path) -> None:
    with lab.db.write() as session:
        pools.add_pool(session, name="cluster", gpu_type="V100", gpus=64, runner="slurm", most_submitted=2)
        pools.add_grant(session, pool="cluster", sponsor="s", seconds=900 * HOUR, until=utcnow() + timedelta(days=9))
    allocation = lab.request(ours, pool="cluster", hours="100")
    lab.consent(allocation, "100")
    queued = [lab.launch(ours, gpus=2, allocation_id=allocation) for _ in range(3)]
    go_round(lab, tmp_path)
    assert [lab.run(run).state for run in queued] == [RunState.STARTING] * 2 + [RunState.QUEUED]
    go_round(lab, tmp_path)
    assert lab.run(queued[2]).state == RunState.QUEUED
    with lab.db.read() as session:
        assert [one.devices for one in snapshot.load(session).held] == [(), ()]
    told = tell(lab, queued[2])
    assert told.reason == "Stoa keeps at most 2 jobs submitted to Slurm on “cluster”, and has that many."
    assert told.expected is None
    with lab.db.write() as session:
        session.execute(
            update(Attempt).where(col(Attempt.run_id) == queued[0]).values(waiting="Slurm: PENDING (Resources)")
        )
    assert tell(lab, queued[0]).reason == "Slurm decides when it starts. Slurm: PENDING (Resources)."
    assert lab.account(allocation).reserved == 2 * 2 * 600


def test_what_is_not_queued_waits_for_nothing(lab: Lab, ours: int) -> None:
    run = lab.launch(ours)
    token = lab.start(run, 0)
    assert (tell(lab, run).reason, tell(lab, run).position) == ("It is running.", None)
    lab.settle(run, token, 1, Ending(70, "The loss is not finite."))
    assert tell(lab, run).reason == "The loss is not finite."
    with pytest.raises(NotFoundError):
        tell(lab, 99)


def test_the_command_line_says_the_same(lab: Lab, ours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.start(lab.launch(ours), 0)
    large = lab.launch(ours, gpus=2)
    monkeypatch.setenv("STOA_DATABASE_URL", lab.db.url.render_as_string(hide_password=False))
    monkeypatch.setenv("STOA_ENV_FILE", "")
    monkeypatch.setenv("COLUMNS", "200")
    get_settings.cache_clear()
    try:
        said, listed = (CliRunner().invoke(app, words) for words in (["why", str(large)], ["queue"]))
        nobody = CliRunner().invoke(app, ["queue", "nowhere"])
    finally:
        get_settings.cache_clear()
    for shown in (said, listed):
        assert shown.exit_code == 0
        assert "It waits for cores: 2 needed, 1 free on “laptop”." in shown.output
    assert "1 of 1" in said.output
    assert nobody.exit_code == 2


def test_a_paused_project_starts_nothing_and_goes_on_where_it_was(lab: Lab, ours: int, tmp_path: Path) -> None:
    waits, unfunded = lab.launch(ours), lab.launch(ours)
    theirs = lab.project(STRANGER, "Another question")
    lab.allocation(theirs, lead=STRANGER)
    with lab.db.write() as session:
        row = runs.load(session, unfunded)
        control.suspend(session, row, EndReason.UNFUNDED, "nobody can pay for it", unfunded=True)
    with lab.db.write() as session:
        lifecycle.pause(session, ADA, ours, reason="A holiday.")
    behind = lab.launch(theirs, STRANGER, gpus=2)
    told = tell(lab, waits)
    assert told.reason == "Its project is paused: nothing of it starts before its lead resumes the project."
    assert (told.position, told.expected) == (1, None)
    with pytest.raises(ConflictError, match="is paused; nothing of it starts"), lab.db.write() as session:
        scheduler.admit(session, Decision(waits, (0,)), Limits())
    with lab.db.write() as session:
        assert (control.revivable(session), control.revive(session, unfunded)) == ([], False)
    go_round(lab, tmp_path)
    assert [lab.run(run).state for run in (waits, unfunded, behind)] == [
        *(RunState.QUEUED, RunState.PAUSED),
        RunState.STARTING,
    ]
    with lab.db.write() as session:
        lifecycle.resume(session, ADA, ours)
    assert lab.claim(behind, 1)
    lab.settle(behind, 1, 0, Ending(70))
    go_round(lab, tmp_path)
    assert [lab.run(run).state for run in (waits, unfunded)] == [RunState.STARTING] * 2


def test_a_hidden_project_has_no_title_in_the_queue(lab: Lab, ours: int) -> None:
    lab.launch(ours)
    with lab.db.write() as session:
        session.get_one(Project, ours).hidden = True
    with lab.db.read() as session:
        assert [one.project for one in why.queue(session)] == [f"P{ours}"]
