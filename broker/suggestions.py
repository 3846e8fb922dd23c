"""What is suggested while somebody types: numbers and names alone, since each key that is pressed asks again."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, String, cast, select
from sqlalchemy.orm import Session

from broker.runs import Run
from projects.pipeline import ENDED, Project

MOST = 25


def projects(session: Session, typed: str, *, open_only: bool = False) -> Sequence[tuple[str, int]]:
    """The newest projects that fit, as “3 · title” and number; none that a moderator has hidden."""
    name = cast(Project.id, String) + " · " + Project.title
    query = select(name, Project.id).where(Project.hidden.is_(False), _fits(name, typed))
    if open_only:
        query = query.where(Project.stage.not_in(ENDED))
    return [(shown, number) for shown, number in session.execute(query.order_by(Project.id.desc()).limit(MOST))]


def runs(session: Session, project_id: int, typed: str) -> Sequence[tuple[str, int]]:
    """The newest training runs of a project that fit, as “7 · recipe, state” and number."""
    name = cast(Run.id, String) + " · " + Run.recipe + ", " + Run.state
    query = select(name, Run.id).where(Run.project_id == project_id, Run.kind == "train", _fits(name, typed))
    return [(shown, number) for shown, number in session.execute(query.order_by(Run.id.desc()).limit(MOST))]


def _fits(name: ColumnElement[str], typed: str) -> ColumnElement[bool]:
    # SQLite ignores the case of ASCII letters alone; what is typed as it is written fits in any case.
    return name.icontains(typed, autoescape=True) | name.contains(typed, autoescape=True)
