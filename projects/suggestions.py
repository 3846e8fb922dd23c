"""What is suggested while somebody types: numbers and names alone, since each key that is pressed asks again."""

from collections.abc import Sequence

from sqlalchemy import String, cast
from sqlalchemy.orm import Session
from sqlmodel import col, select

from projects.lifecycle import ENDED, Project

MOST = 25


def projects(
    session: Session, typed: str, *, open_only: bool = False, hidden: bool = False
) -> Sequence[tuple[str, int]]:
    """The newest projects that fit, as “3 · title” and number; either those that a moderator has hidden or the rest."""
    name = cast(col(Project.id), String) + " · " + Project.title
    # SQLite ignores the case of ASCII letters alone; what is typed as it is written fits in any case.
    fits = name.icontains(typed, autoescape=True) | name.contains(typed, autoescape=True)
    query = select(name, Project.id).where(col(Project.hidden).is_(hidden), fits)
    if open_only:
        query = query.where(col(Project.stage).not_in(ENDED))
    return [(shown, number) for shown, number in session.execute(query.order_by(col(Project.id).desc()).limit(MOST))]
