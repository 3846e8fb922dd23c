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
