"""The lifecycle of a project, through its public functions."""

import secrets
from concurrent.futures import ThreadPoolExecutor

import pytest

from projects import lifecycle, projects
from projects.db.database import Database
from projects.errors import ConflictError, DomainError, ForbiddenError, InvalidError, NotFoundError
from projects.people import Actor
from projects.projects import Outcome, Stage
from projects.record import record, verification

ADA = Actor(1, "Ada")
GRACE = Actor(2, "Grace")
SAID = {"title": "Sinks of attention", "question": "Do they form early?", "why": "Nobody knows.", "needs": "A reader."}
SCOPE = {"goal": "Know.", "plan": "Train.", "compute": "1 GPU-hour.", "release": "All."}


def propose(db: Database, request: str = "r1", **changes: str) -> int:
    with db.write() as session:
        return lifecycle.propose(session, ADA, request, **(SAID | changes))


def entries(db: Database, project_id: int) -> list[str]:
    with db.read() as session:
        return [entry.kind for entry in record.since(session, record.project_stream(project_id), 0)]


def stage(db: Database, project_id: int) -> Stage:
    with db.read() as session:
        return projects.view(session, project_id).stage


def test_from_proposal_to_announcement(db: Database) -> None:
    project = propose(db)
    with db.write() as session:
        lifecycle.join(session, GRACE, project, min_people=2)
    assert stage(db, project) == Stage.RECRUITING
    with db.write() as session:
        lifecycle.scope(session, ADA, project, **SCOPE, min_people=2)
    assert stage(db, project) == Stage.ACTIVE
    with db.write() as session:
        lifecycle.complete(session, ADA, project, outcome=Outcome.NEGATIVE, learnt="They do not.")
    with db.read() as session:
        view = projects.view(session, project)
        assert verification.verify(session, record.project_stream(project)).ok
    assert (view.stage, view.outcome, view.slug) == (
        Stage.COMPLETED,
        Outcome.NEGATIVE,
        f"p{project}-sinks-of-attention",
    )
    assert [member.name for member in view.members] == ["Ada", "Grace"]
    assert entries(db, project) == [
        "project.proposed",
        "project.joined",
        "project.scoped",
        "project.activated",
        "project.completed",
    ]


def test_a_scoped_project_waits_for_people(db: Database) -> None:
    project = propose(db)
    with db.write() as session:
        lifecycle.scope(session, ADA, project, **SCOPE, min_people=2)
    assert stage(db, project) == Stage.SCOPED
    with db.write() as session:
        lifecycle.join(session, GRACE, project, min_people=2)
    assert stage(db, project) == Stage.ACTIVE


def test_the_same_request_makes_one_project(db: Database) -> None:
    assert propose(db, "same") == propose(db, "same")
    assert propose(db, "other") != propose(db, "same")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"title": ""}, "needs a title"),
        ({"title": "   "}, "needs a title"),
        ({"title": "🎉🎉🎉 @everyone"}, "cannot mention"),
        ({"title": "🎉🎉🎉🎉"}, "at least three letters"),
        ({"title": "<@&123> rules all"}, "cannot mention"),
        ({"title": "x" * 4000}, "at most 80"),
        ({"question": " "}, "research question is empty"),
        ({"why": "y" * 4000}, "at most 1,000"),
    ],
)
def test_a_proposal_that_cannot_stand_changes_nothing(db: Database, changes: dict[str, str], sentence: str) -> None:
    with pytest.raises(InvalidError, match=sentence):
        propose(db, **changes)
    with db.read() as session:
        assert record.streams(session) == {record.LAB: 0}


def test_what_is_out_of_turn_is_refused(db: Database) -> None:
    project = propose(db)
    before = entries(db, project)
    refused: list[tuple[type[DomainError], Actor, str]] = []
    for actor, act in ((ADA, "join"), (GRACE, "scope"), (ADA, "complete")):
        try:
            with db.write() as session:
                if act == "join":
                    lifecycle.join(session, actor, project, min_people=2)
                elif act == "scope":
                    lifecycle.scope(session, actor, project, **SCOPE, min_people=2)
                else:
                    lifecycle.complete(session, actor, project, outcome=Outcome.RESULT, learnt="x")
        except DomainError as error:
            refused.append((type(error), actor, act))
    assert refused == [(ConflictError, ADA, "join"), (ForbiddenError, GRACE, "scope"), (ConflictError, ADA, "complete")]
    assert entries(db, project) == before


def test_people_who_join_while_the_scope_is_written_make_the_project_active(db: Database) -> None:
    for _ in range(5):
        project = propose(db, secrets.token_hex(4))

        def join(actor: Actor, project: int = project) -> None:
            with db.write() as session:
                lifecycle.join(session, actor, project, min_people=3)

        def scope(project: int = project) -> None:
            with db.write() as session:
                lifecycle.scope(session, ADA, project, **SCOPE, min_people=3)

        with ThreadPoolExecutor(3) as pool:
            for done in [pool.submit(join, GRACE), pool.submit(scope), pool.submit(join, Actor(3, "Rosa"))]:
                done.result()
        assert stage(db, project) == Stage.ACTIVE


def test_what_nobody_joined_can_be_abandoned(db: Database) -> None:
    project = propose(db)
    with db.write() as session:
        lifecycle.complete(session, ADA, project, outcome=Outcome.ABANDONED, learnt="Ask in spring.")
    assert stage(db, project) == Stage.COMPLETED


def test_nobody_joins_what_is_not_there(db: Database) -> None:
    with pytest.raises(NotFoundError, match="no project 99"), db.write() as session:
        lifecycle.join(session, GRACE, 99, min_people=2)
