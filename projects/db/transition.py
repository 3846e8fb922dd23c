"""Guarded writes: a row is changed only where it is still as its writer has seen it, so that of two at once one wins.

States move here, by the table of transitions beside each model; so does whatever else two processes may write at once.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, inspect, update
from sqlalchemy.orm import Session

from projects.errors import ConflictError

M = TypeVar("M")
Table = Mapping[Any, Set[Any]]
"""Of each state, the states that a row may have next."""


def move(
    session: Session,
    row: object,
    to: str,
    table: Table,
    values: Mapping[str, object] | None = None,
    *,
    name: str,
    state: str = "state",
    seen: Sequence[str] = (),
) -> None:
    """Bring the column `state` of a row to `to`, and write `values` with it; raises ConflictError.

    The table must lead there, and the state and the columns in `seen` must still be as the row in hand has them. `name`
    is what a sentence calls the row.
    """
    check(row, to, table, name=name, state=state)
    write_as_seen(session, row, {state: to, **(values or {})}, (state, *seen), name=name)


def check(row: object, to: str, table: Table, *, name: str, state: str = "state") -> None:
    """Raise ConflictError unless the table leads from the row's state to `to`."""
    now = getattr(row, state)
    if to not in table[now]:
        raise ConflictError(f"{name} is {now} and cannot become {to}.")


def write_as_seen(
    session: Session, row: object, values: Mapping[str, object], seen: Sequence[str], *, name: str
) -> None:
    """Write `values` to a row whose columns in `seen` are still as in hand; raises ConflictError."""
    session.flush()
    model, mapper = type(row), inspect(row, raiseerr=True).mapper
    keys = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
    conditions = [getattr(model, key) == getattr(row, key) for key in (*keys, *seen)]
    if write_where(session, model, *conditions, **values) is None:
        raise ConflictError(f"{name} has just changed; look again.")


def write_where(session: Session, model: type[M], *conditions: ColumnElement[bool], **values: object) -> M | None:
    """Write `values` to the one row that meets the conditions, and return it as it is now; None without such a row.

    One statement tests and writes, so that nobody comes between.
    """
    session.flush()
    return session.scalars(
        update(model)
        .where(*conditions)
        .values(**values)
        .returning(model)
        .execution_options(populate_existing=True, synchronize_session=False)
    ).one_or_none()
