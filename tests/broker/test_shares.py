"""Shares of projects: set by admins in public, and what fair-share makes of them."""

from collections.abc import Sequence

import pytest
from typer.testing import CliRunner

from broker.allocations import shares
from broker.reports import cluster, why
from broker.runs.progress import Ending
from broker.scheduling import backfill, snapshot
from cli.main import app
from projects.errors import ConflictError, DomainError, ForbiddenError, InvalidError, NotFoundError
from projects.people import Actor, LabRole
from projects.projects import Project
from projects.record import record
from projects.settings import get_settings
from tests.broker.lab import ADA, ROSA, STRANGER, Lab

OMAR = Actor(9, "Omar", frozenset({LabRole.ADMIN}))


@pytest.fixture
def theirs(lab: Lab) -> int:
    """Another project with hours."""
    project = lab.project(STRANGER, "Another question")
    lab.allocation(project, hours="10", lead=STRANGER)
    return project


def give(lab: Lab, project: int, share: str, actor: Actor | None = OMAR) -> float:
    with lab.db.write() as session:
        return shares.set_share(session, actor, project, share, "Its paper is due.")


def order(lab: Lab) -> list[int]:
    with lab.db.read() as session:
        (queue,) = backfill.plan(snapshot.load(session)).queues.values()
    return [placement.run.project_id for placement in queue]


def use(lab: Lab, project: int, seconds: int, actor: Actor) -> None:
    run = lab.launch(project, actor)
    lab.settle(run, lab.start(run, 0), seconds, Ending(70, "enough"))


def test_double_the_share_takes_double_the_turns(lab: Lab, ours: int, theirs: int) -> None:
    for project, actor in ((ours, ADA), (theirs, STRANGER)):
        for _ in range(3):
            lab.launch(project, actor)
    assert order(lab) == [ours, theirs, ours, theirs, ours, theirs]
    assert give(lab, theirs, "2") == 2
    assert order(lab) == [ours, theirs, theirs, ours, theirs, ours]
    give(lab, theirs, "1")
    assert order(lab) == [ours, theirs, ours, theirs, ours, theirs]


def test_use_is_held_against_the_share(lab: Lab, ours: int, theirs: int) -> None:
    use(lab, ours, 300, ADA)
    use(lab, theirs, 200, STRANGER)
    first, second = lab.launch(ours), lab.launch(theirs, STRANGER)
    assert order(lab) == [theirs, ours]
    give(lab, ours, "3")
    assert order(lab) == [ours, theirs]
    with lab.db.read() as session:
        told = {run: why.why(session, run).factors for run in (first, second)}
        used = {one.project_id: (round(one.lately, 2), one.share) for one in cluster.usage(session)}
    standings = [told[run].project for run in (first, second)]  # type: ignore[union-attr]
    assert [(one.share, round(one.used, 2), one.rank) for one in standings] == [(0.75, 0.6, 1), (0.25, 0.4, 2)]
    assert used == {ours: (0.6, 3), theirs: (0.4, 1)}


def test_the_record_says_who_set_it_and_why(lab: Lab, ours: int) -> None:
    give(lab, ours, "2.5")
    with lab.db.read() as session:
        told = record.newest(session, record.project_stream(ours))[0]
        assert [(one.project_id, one.project, one.share) for one in shares.listed(session)] == [
            (ours, "Sinks of attention", 2.5)
        ]
    assert (told.kind, told.payload and told.payload["by"]) == ("share.set", {"id": "9", "name": "Omar"})
    payload = told.payload or {}
    assert (payload["why"], payload["was"], payload["share"]) == ("Its paper is due.", 1, 2.5)


@pytest.mark.parametrize(
    "typed",
    ["0", "-1", "nan", "inf", "1e3", "0.001", "1000.01", "9" * 400, "", "½", "٣", "a lot", "1,5", "0x1", "+2", " "],
)
def test_what_is_no_share_is_refused_with_a_sentence(lab: Lab, ours: int, typed: str) -> None:
    before = lab.everything()
    with pytest.raises(InvalidError, match=r"^A share is a number from 0\.01 to 1,000, such as 0\.5, 1 or 2; “.*” is "):
        give(lab, ours, typed)
    assert (lab.everything(), order(lab)) == (before, [])


@pytest.mark.parametrize("typed", ["0.01", "1000", " 2 "])
def test_the_least_and_the_greatest_share_plan(lab: Lab, ours: int, theirs: int, typed: str) -> None:
    lab.launch(ours)
    lab.launch(theirs, STRANGER)
    use(lab, ours, 1, ADA)
    assert give(lab, ours, typed) == float(typed)
    assert sorted(order(lab)) == [ours, theirs]


def test_who_may_not_what_is_not_there_and_what_is_so_already(lab: Lab, ours: int) -> None:
    lab.launch(ours)
    before = lab.everything()
    refusals: Sequence[tuple[Actor, int, str, type[DomainError], str]] = (
        (ADA, ours, "2", ForbiddenError, "Only the admins can set shares"),
        (ROSA, ours, "2", ForbiddenError, "Only the admins can set shares"),
        (OMAR, 99, "2", NotFoundError, "There is no project 99"),
        (OMAR, ours, "1", ConflictError, f"The share of P{ours} is already 1"),
    )
    for actor, project, typed, error, sentence in refusals:
        with pytest.raises(error, match=sentence):
            give(lab, project, typed, actor)
    with pytest.raises(InvalidError, match="The reason is empty"), lab.db.write() as session:
        shares.set_share(session, OMAR, ours, "2", " ")
    assert lab.everything() == before


def test_the_command_line_sets_and_lists(lab: Lab, ours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOA_DATABASE_URL", lab.db.url.render_as_string(hide_password=False))
    monkeypatch.setenv("STOA_ENV_FILE", "")
    monkeypatch.setenv("COLUMNS", "200")
    get_settings.cache_clear()
    run = lab.launch(ours)
    why_set = ["--why", "Its paper is due."]
    try:
        said = [
            CliRunner().invoke(app, words)
            for words in (
                ["share", "set", str(ours), "2.5", *why_set],
                ["share", "list"],
                ["share", "set", str(ours), "-1", *why_set],
                ["why", str(run)],
            )
        ]
    finally:
        get_settings.cache_clear()
    assert [one.exit_code for one in said] == [0, 0, 2, 0]
    assert said[0].output == f"the share of project {ours} is 2.5\n"
    assert said[1].output == f"{ours}: Sinks of attention, share 2.5\nevery other project has 1\n"
    assert "A share is a number from 0.01 to 1,000, such as 0.5, 1 or 2; “-1” is not." in said[2].output
    assert "accounts for 0.0% of recent use (0 s); its share is 100.0%" in said[3].output


def test_a_hidden_project_has_no_title_in_the_list(lab: Lab, ours: int) -> None:
    give(lab, ours, "2")
    with lab.db.write() as session:
        session.get_one(Project, ours).hidden = True
        session.flush()
        assert [one.project for one in shares.listed(session)] == [f"P{ours}"]
