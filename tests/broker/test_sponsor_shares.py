"""What sponsors set aside for their own projects, and fair-share in two levels."""

import random
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlmodel import col
from typer.testing import CliRunner

from broker.allocations import pools, shares, sponsor_shares
from broker.allocations.pools import Grant
from broker.reports import why
from broker.reports.why import Factors
from broker.runs.progress import Ending
from broker.runs.runs import RunState
from broker.scheduling import backfill, snapshot
from broker.scheduling.fairshare import OTHERS, Groups, Turns
from broker.scheduling.scheduler import Scheduler
from cli.main import app
from projects.db.columns import utcnow
from projects.errors import ConflictError, DomainError, ForbiddenError, InvalidError, NotFoundError
from projects.people import Actor, LabRole
from projects.record import record
from projects.settings import get_settings
from tests.broker.lab import ADA, HOUR, POOL, STRANGER, Lab, settings

OMAR = Actor(9, "Omar", frozenset({LabRole.ADMIN}))
HOUSE = "The house"

pytestmark = pytest.mark.usefixtures("memory_queue")


@pytest.fixture
def theirs(lab: Lab) -> int:
    """Another project with hours."""
    project = lab.project(STRANGER, "Another question")
    lab.allocation(project, hours="10", lead=STRANGER)
    return project


def aside(lab: Lab, share: str, *own: int, sponsor: str = HOUSE, actor: Actor | None = OMAR) -> None:
    with lab.db.write() as session:
        sponsor_shares.set_aside(session, actor, sponsor, share, own, "It gave the machines.")


def order(lab: Lab) -> list[int]:
    with lab.db.read() as session:
        return [one.run.project_id for one in backfill.plan(snapshot.load(session)).queues[1]]


def use(lab: Lab, project: int, seconds: int, actor: Actor) -> None:
    run = lab.launch(project, actor)
    lab.settle(run, lab.start(run, 0), seconds, Ending(70, "enough"))


def factors(lab: Lab, run: int) -> Factors:
    with lab.db.read() as session:
        found = why.why(session, run).factors
    assert found is not None
    return found


def taken(turns: Turns[str], charge: float) -> str:
    names = "ABCDEFGHIJ"
    order = ""
    while turns:
        order += names[turns.take() // 100]
        turns.done(charge)
    return order


def test_groups_are_compared_first_then_the_projects_in_them() -> None:
    queues = {name: [(1.0, 100 * at + n) for n in range(4)] for at, name in enumerate("abc")}
    usage = {"a": 100.0, "b": 0.0, "c": 0.0}
    assert taken(Turns(queues, usage), 10) == "BCBCBCBCAAAA"
    own_a = Groups({OTHERS: 0.75, 7: 0.25}, {"a": 7}, {"a": 0.0})
    assert taken(Turns(queues, usage, {}, own_a), 10) == "ABCBACBCABCA", "a quarter is a's, whatever it used elsewhere"
    spent = Groups({OTHERS: 0.75, 7: 0.25}, {"a": 7}, {"a": 100.0, "b": 30.0})
    assert taken(Turns(queues, usage, {}, spent), 10) == "BCBCBCBCAAAA"


def test_two_levels_of_one_group_take_the_turns_of_one_level() -> None:
    chance = random.Random(5)
    for _ in range(50):
        queues = {name: [(chance.random(), 100 * at + n) for n in range(5)] for at, name in enumerate("abcd")}
        queues = {name: sorted(queue) for name, queue in queues.items()}
        usage, shared = {name: chance.random() for name in "abcd"}, {"a": 2.0, "c": 0.5}
        single = taken(Turns(queues, usage, shared), 0.1)
        assert taken(Turns(queues, usage, shared, Groups({OTHERS: 0.4, 3: 0.6}, {}, usage)), 0.1) == single
        assert (
            taken(Turns(queues, usage, shared, Groups({OTHERS: 0.4, 3: 0.6}, dict.fromkeys("abcd", 3))), 0.1) == single
        )


def test_a_sponsor_projects_have_their_part_of_what_it_gave(lab: Lab, ours: int, theirs: int) -> None:
    with lab.db.write() as session:
        until = utcnow() + timedelta(days=9)
        pools.add_grant(session, pool=POOL, sponsor="A bank", seconds=1000 * HOUR, until=until)
        old = pools.add_grant(session, pool=POOL, sponsor="A bank", seconds=9000 * HOUR, until=until)
        session.execute(update(Grant).where(col(Grant.id) == old).values(until=utcnow() - timedelta(days=1)))
    for _ in range(4):
        lab.launch(ours)
        lab.launch(theirs, STRANGER)
    assert order(lab) == [ours, theirs] * 4
    aside(lab, "0.5", theirs)  # half of the half that the house gives
    assert order(lab) == [ours, theirs, ours, ours, theirs, ours, theirs, theirs]
    told = factors(lab, 2)
    assert told.group is not None
    assert (told.sponsor, told.group.share, told.project.share) == (HOUSE, 0.25, 1.0)
    told = factors(lab, 1)
    assert told.group is not None
    assert (told.sponsor, told.group.share, told.project.share) == ("", 0.75, 1.0)
    aside(lab, "0")
    assert order(lab) == [ours, theirs] * 4
    assert factors(lab, 1).group is None


def test_use_of_the_pool_decides_between_groups(lab: Lab, ours: int, theirs: int, tmp_path: Path) -> None:
    aside(lab, "0.5", theirs)
    use(lab, ours, 300, ADA)
    use(lab, theirs, 100, STRANGER)
    first, second = lab.launch(ours), lab.launch(theirs, STRANGER)
    assert order(lab) == [theirs, ours]
    told = factors(lab, second)
    assert told.group is not None
    assert (round(told.group.used, 2), told.group.share, told.group.rank) == (0.25, 0.5, 1)
    with lab.db.write() as session:
        shares.set_share(session, None, ours, "1000", "It is in a hurry.")
    assert order(lab) == [theirs, ours], "a share is among the projects of a group"
    Scheduler(settings(tmp_path), lab.db).round()
    with lab.db.read() as session:
        groups = snapshot.load(session).groups[1]
    assert {who: round(groups.usage[who]) for who in (ours, theirs)} == {ours: 900, theirs: 700}, (
        "kept, and two admitted"
    )
    assert lab.run(first).state == lab.run(second).state == RunState.STARTING


def test_the_record_says_what_is_set_aside(lab: Lab, ours: int) -> None:
    aside(lab, "0.25", ours)
    with lab.db.read() as session:
        told = record.newest(session, record.LAB)[0]
        (view,) = sponsor_shares.listed(session)
    assert (view.sponsor, view.share, view.projects) == (HOUSE, 0.25, [ours])
    payload = told.payload or {}
    assert (told.kind, payload["by"], payload["why"]) == (
        *("share.set_aside", {"id": "9", "name": "Omar"}),
        "It gave the machines.",
    )
    assert (payload["sponsor"], payload["was"], payload["share"], payload["projects"]) == (HOUSE, 0, 0.25, [ours])


@pytest.mark.parametrize("typed", ["1", "-0.25", "nan", "inf", "1e-1", "0.991", "25%", "9" * 400, "", ".5", "٠.٥"])
def test_what_is_no_part_is_refused_with_a_sentence(lab: Lab, ours: int, typed: str) -> None:
    before = lab.everything()
    with pytest.raises(
        InvalidError, match=r"^A sponsor's own share is a fraction of what it gives, from 0 to 0\.99, such"
    ):
        aside(lab, typed, ours)
    assert lab.everything() == before


def test_what_else_is_refused_changes_nothing(lab: Lab, ours: int, theirs: int) -> None:
    with lab.db.write() as session:
        until = utcnow() + timedelta(days=9)
        pools.add_grant(session, pool=POOL, sponsor="A bank", seconds=HOUR, until=until)
    aside(lab, "0.25", ours)
    before = lab.everything()
    refusals: list[tuple[str, list[int], dict[str, object], type[DomainError], str]] = [
        ("0.5", [ours], {"actor": ADA}, ForbiddenError, "Only the admins can set shares"),
        ("0.5", [], {}, InvalidError, "Name the sponsor's own projects"),
        ("0.5", [99], {}, NotFoundError, "There is no project 99"),
        (
            "0.5",
            [ours],
            {"sponsor": "Nobody"},
            NotFoundError,
            "No grant is of a sponsor “Nobody”; the sponsors are: A ba",
        ),
        ("0.5", list(range(1, 102)), {}, InvalidError, "at most 100 projects of its own"),
        ("0.25", [ours], {}, ConflictError, "The house already sets 0.25 aside for the same projects"),
        ("0.5", [theirs, ours], {"sponsor": "A bank"}, ConflictError, f"P{ours} is already a project of The house"),
    ]
    for share, own, who, error, sentence in refusals:
        with pytest.raises(error, match=sentence):
            aside(lab, share, *own, **who)  # type: ignore[arg-type]
    assert lab.everything() == before
    aside(lab, "0.25", theirs)
    with lab.db.read() as session:
        assert [one.projects for one in sponsor_shares.listed(session)] == [[theirs]]


def test_the_command_line_sets_aside_and_says_why(lab: Lab, ours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOA_DATABASE_URL", lab.db.url.render_as_string(hide_password=False))
    monkeypatch.setenv("STOA_ENV_FILE", "")
    monkeypatch.setenv("COLUMNS", "200")
    get_settings.cache_clear()
    run, given = lab.launch(ours), ["--project", str(ours), "--why", "It gave the machines."]
    asked = (["share", "set-aside", HOUSE, "0.25", *given], ["share", "list"], ["why", str(run)])
    ends = ["share", "set-aside", HOUSE, "0", "--why", "No more."]
    try:
        said = [CliRunner().invoke(app, words) for words in (*asked, ["share", "set-aside", HOUSE, "-1", *given], ends)]
    finally:
        get_settings.cache_clear()
    assert [one.exit_code for one in said] == [0, 0, 0, 2, 0]
    assert said[0].output == "0.25 of what The house gives is set aside\n"
    assert said[1].output == f"every other project has 1\nThe house: 0.25 of what it gives is first for {ours}\n"
    assert "projects of The house account for 0.0% of the pool's recent use; their share is 25.0%" in said[2].output
