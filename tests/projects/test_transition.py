"""Guarded writes: of two who have seen a row in one state, one moves it, and the other learns that it has changed."""

import pytest

from projects import lifecycle
from projects.db import transition
from projects.db.database import Database
from projects.errors import ConflictError
from projects.projects import Project, Stage
from tests.projects.school import School


def move(db: Database, row: Project, to: Stage) -> None:
    with db.write() as session:
        transition.move(session, row, to, lifecycle.TRANSITIONS, name="P1", state="stage")


def test_of_two_who_saw_the_same_state_one_moves_the_row(school: School) -> None:
    project, db = school.propose(), school.db
    with db.read() as session:
        first = session.get_one(Project, project)
    with db.read() as session:
        second = session.get_one(Project, project)
    move(db, first, Stage.RECRUITING)
    with pytest.raises(ConflictError, match="P1 has just changed; look again"):
        move(db, second, Stage.STOPPED)
    with db.read() as session:
        assert session.get_one(Project, project).stage == Stage.RECRUITING


def test_a_state_that_the_table_does_not_lead_to_is_refused(school: School) -> None:
    project, db = school.propose(), school.db
    with db.read() as session:
        row = session.get_one(Project, project)
    with pytest.raises(ConflictError, match="P1 is proposed and cannot become paused"):
        move(db, row, Stage.PAUSED)


def test_a_row_is_written_only_while_its_columns_are_as_expected(school: School) -> None:
    project, db = school.propose(), school.db
    early = (Stage.PROPOSED, Stage.RECRUITING)

    def write(outcome: str | None, *, now: str | None, stages: tuple[Stage, ...] = early) -> bool:
        expected = {"id": project, "outcome": now, "stage": stages}
        with db.write() as session:
            written = transition.write_if(session, Project, expected, outcome=outcome)
            return written is not None and written.outcome == outcome

    assert not write("negative", now="positive")
    assert not write("negative", now=None, stages=(Stage.ACTIVE, Stage.PAUSED))
    assert write("negative", now=None)
    assert not write("positive", now=None)
    assert write(None, now="negative", stages=(Stage.PROPOSED,))
    with db.read() as session:
        assert session.get_one(Project, project).outcome is None
