"""Rows as the driver has them, for a round of the scheduler, which reads thousands of them every few seconds.

To make SQLAlchemy's own rows takes almost as long as the database takes to find them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Executable
from sqlalchemy.orm import Session

from projects.db.columns import UtcDateTime

Reader = Callable[[Any], Any]
"""Reads a time of a plain row: UTC with zone, or None."""


def plain(session: Session, statement: Executable, parameters: Mapping[str, Any] | None = None) -> Sequence[Any]:
    """All rows of a statement, as tuples; their times are the driver's, which `times` reads."""
    session.flush()
    with session.connection().execute(statement, parameters) as result:
        assert result.cursor is not None
        return result.cursor.fetchall()


def times(session: Session) -> Reader:
    """What reads a time of a plain row, which may be None: UTC with zone."""
    return UtcDateTime().result_processor(session.connection().dialect, None)
