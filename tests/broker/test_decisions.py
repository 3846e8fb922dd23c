"""The scheduler's decisions are kept, and `why` answers from them as it did at the time."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import func
from sqlmodel import col, select
from typer.testing import CliRunner

from broker.allocations import shares, sponsor_shares
from broker.reports import why
from broker.reports.why import Why
from broker.runs.progress import Ending
from broker.runs.runs import RunState
from broker.scheduling import decisions, snapshot
from broker.scheduling.decisions import Keeper, KeptDecision
from broker.scheduling.scheduler import Scheduler
from cli.main import app
from projects.db.columns import utcnow
from projects.errors import ConflictError, InvalidError, NotFoundError
from projects.settings import get_settings
from tests.broker.lab import ADA, STRANGER, Lab, settings

pytestmark = pytest.mark.usefixtures("memory_queue")


@pytest.fixture
def theirs(lab: Lab) -> int:
    """Another project with hours."""
    project = lab.project(STRANGER, "Another question")
    lab.allocation(project, hours="10", lead=STRANGER)
    return project


@pytest.fixture
def keep(lab: Lab) -> Callable[[], datetime]:
    """Keeps the present state as a scheduler does, and returns the moment."""
    keeper = Keeper()

    def keep() -> datetime:
        with lab.db.read() as session:
            state = snapshot.load(session)
        keeper.keep(lab.db, state, low=False)
        return state.now

    return keep


def tell(lab: Lab, run: int, at: datetime | None = None) -> Why:
    with lab.db.read() as session:
        return why.why(session, run) if at is None else why.replayed(session, run, at)


def kept(lab: Lab) -> int:
    with lab.db.read() as session:
        return session.scalar(select(func.count()).select_from(KeptDecision)) or 0


def said_again(lab: Lab, run: int, at: datetime, other: Why) -> bool:
    """Whether the answer for a moment is the one that was given shortly after it, but for the time until then."""
    one = tell(lab, run, at)
    within = (utcnow() - at).total_seconds()
    assert one.factors is not None
    assert other.factors is not None
    assert (one.expected is None) == (other.expected is None)
    if one.expected and other.expected:
        assert abs((one.expected - other.expected).total_seconds()) <= within
    assert one.factors.project.used == pytest.approx(other.factors.project.used, abs=1e-6 * max(1, within))
    assert one.factors.age == pytest.approx(other.factors.age, abs=within)
    assert one.factors.project.rank == other.factors.project.rank
    apart = {"expected": None, "factors": None, "decided_at": None}
    return replace(one, **apart) == replace(other, **apart)  # type: ignore[arg-type]


def test_what_was_said_is_said_again_after_all_has_changed(
    lab: Lab, ours: int, theirs: int, tmp_path: Path, keep: Callable[[], datetime]
) -> None:
    running = lab.launch(ours)
    token = lab.start(running, 0)
    large, small = lab.launch(ours, gpus=2), lab.launch(theirs, STRANGER, time_limit="30m")
    told: list[tuple[datetime, dict[int, Why]]] = []

    def note(*runs: int) -> None:
        at = keep()
        told.append((at, {run: tell(lab, run) for run in runs}))

    note(large, small)
    with lab.db.write() as session:
        shares.set_share(session, None, theirs, "4", "Its paper is due.")
    with lab.db.write() as session:
        sponsor_shares.set_aside(session, None, "The house", "0.25", [ours], "It gave all.")
    note(large, small)
    lab.let("most_running_a_person", 1)
    third = lab.launch(ours)
    note(large, small, third)
    lab.settle(running, token, 300, Ending(70, "enough"))
    note(large, small, third)
    lab.cancel(large)
    with lab.db.write() as session:
        shares.set_share(session, None, theirs, "0.01", "It is over.")
    Scheduler(settings(tmp_path), lab.db).round()
    for run in (small, third):
        assert lab.run(run).state == RunState.STARTING
    reasons = {one.reason for _, said in told for one in said.values()}
    assert len(reasons) >= 4, reasons
    for at, said in told:
        for run, one in said.items():
            assert said_again(lab, run, at, one)
    assert said_again(lab, large, told[0][0] + timedelta(milliseconds=1), told[0][1][large])


def test_the_scheduler_keeps_what_has_changed_only(lab: Lab, ours: int, tmp_path: Path) -> None:
    lab.start(lab.launch(ours), 0)
    waits = lab.launch(ours, gpus=2)
    scheduler = Scheduler(settings(tmp_path), lab.db)
    scheduler.round()
    assert kept(lab) == 1
    at, said = utcnow(), tell(lab, waits)
    scheduler.round()
    assert kept(lab) == 1, "nothing has changed"
    lab.launch(ours, gpus=2)
    scheduler.round()
    assert kept(lab) == 2
    lab.cancel(waits)
    Scheduler(settings(tmp_path), lab.db).round()
    assert kept(lab) == 3, "another scheduler begins anew"
    assert said_again(lab, waits, at, said)


def test_use_fades_between_two_decisions(lab: Lab, ours: int, theirs: int, keep: Callable[[], datetime]) -> None:
    for project, actor in ((ours, ADA), (theirs, STRANGER)):
        run = lab.launch(project, actor)
        lab.settle(run, lab.start(run, 0), 300, Ending(70, "enough"))
    lab.start(lab.launch(ours), 0)
    waits = lab.launch(theirs, STRANGER, gpus=2)
    at = keep()
    factors = tell(lab, waits, at + timedelta(days=7)).factors
    assert factors is not None
    assert factors.project.usage == pytest.approx(150, rel=1e-3)
    assert factors.project.used == pytest.approx(150 / (150 + 150 + 600), rel=1e-3)


def test_a_long_history_is_replayed_through_whole_states_and_changes(
    lab: Lab, ours: int, keep: Callable[[], datetime], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decisions, "MOST_CHANGES", 3)
    lab.start(lab.launch(ours), 0)
    told = []
    for _ in range(9):
        run = lab.launch(ours, gpus=2)
        told.append((keep(), run, tell(lab, run)))
    with lab.db.read() as session:
        whole = session.scalars(select(KeptDecision.whole_id).order_by(col(KeptDecision.id))).all()
    assert whole.count(None) >= 3
    assert any(whole)
    for at, run, said in told:
        assert said_again(lab, run, at, said)


def test_what_is_older_than_the_policy_goes_and_the_newest_stays(
    lab: Lab, ours: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        lab.launch(ours)
        Scheduler(settings(tmp_path), lab.db).round()
    with lab.db.write() as session:
        for row in session.scalars(select(KeptDecision).where(col(KeptDecision.id) < 3)):
            row.at -= timedelta(days=31 if row.id == 1 else 29)
    Scheduler(settings(tmp_path), lab.db).round()
    assert kept(lab) == 3, "one has gone, one has come"
    lab.let("decision_days", 28)
    Scheduler(settings(tmp_path), lab.db).round()
    assert kept(lab) == 3, "the second has gone"
    monkeypatch.setattr(decisions, "MOST_BYTES", 1)
    decisions.remove_old(lab.db, 30)
    assert kept(lab) == 1


def test_what_was_not_in_the_queue_then(lab: Lab, ours: int, keep: Callable[[], datetime]) -> None:
    run = lab.launch(ours)
    with pytest.raises(NotFoundError, match=r"kept from before .*; none is kept yet"):
        tell(lab, run, utcnow())
    before = utcnow()
    lab.start(run, 0)
    late = lab.launch(ours)
    lab.cancel(late)
    at = keep()
    assert (tell(lab, run, at).state, tell(lab, run, at).reason) == (RunState.RUNNING, "It had its cores on “laptop”.")
    with pytest.raises(ConflictError, match=f"Run {late} was neither waiting nor running at "):
        tell(lab, late, at)
    with pytest.raises(NotFoundError, match="those kept begin at "):
        tell(lab, run, before - timedelta(days=1))
    with pytest.raises(NotFoundError):
        tell(lab, 99, at)


def test_moments_as_typed() -> None:
    assert why.moment("2026-11-29 10:00") == datetime(2026, 11, 29, 10, tzinfo=UTC)
    assert why.moment(" 2026-11-29T10:00:01+02:00 ") == datetime(2026, 11, 29, 8, 0, 1, tzinfo=UTC)
    assert why.moment("yesterday") < why.moment("yesterday 12:00") < utcnow()
    for wrong in ("", "soon", "10:00", "2026-02-30", "9" * 400, "0001-01-01T00:00+14:00"):
        with pytest.raises(InvalidError, match=r"The moment must be written like "):
            why.moment(wrong)
    with pytest.raises(InvalidError, match="2999-01-01 00:00:00 UTC is in the future"):
        why.moment("2999-01-01")


def test_the_command_line_replays(
    lab: Lab, ours: int, keep: Callable[[], datetime], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOA_DATABASE_URL", lab.db.url.render_as_string(hide_password=False))
    monkeypatch.setenv("STOA_ENV_FILE", "")
    monkeypatch.setenv("COLUMNS", "200")
    get_settings.cache_clear()
    lab.start(lab.launch(ours), 0)
    waits = lab.launch(ours, gpus=2)
    at = keep()
    lab.cancel(waits)
    try:
        said, now, wrong = (
            CliRunner().invoke(app, ["why", str(waits), *more])
            for more in (["--at", at.isoformat()], [], ["--at", "noon"])
        )
    finally:
        get_settings.cache_clear()
    assert (said.exit_code, now.exit_code, wrong.exit_code) == (0, 0, 2)
    assert "It waits for cores: 2 needed, 1 free on “laptop”." in said.output
    assert f"{at:%Y-%m-%d %H:%M:%S} UTC" in said.output
    assert "1 of 1" in said.output
    assert "waits for cores" not in now.output
