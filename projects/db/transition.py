"""Guarded writes: a row changes only while it is still as its writer read it, so that one of two writers wins.

Every change of state goes through `move`, by the table of transitions beside each model. Other writes that two
processes may make at once go through `write_as_seen`, `write_if` or `write_where`.
"""

from collections.abc import Mapping, Sequence, Set
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import BindParameter, ColumnElement, bindparam, inspect, update
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.sql.dml import ReturningUpdate

from projects.errors import ConflictError, OverError

M = TypeVar("M")
Table = Mapping[Any, Set[Any]]
"""A table of transitions: for each state, the states that may follow it."""


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
    """Change the column `state` of a row to `to`, and write `values` with it.

    Raises ConflictError if the table does not allow the transition, or if the state or a column in `seen` no longer has
    the value that the given row has. `name` is how the error's sentence calls the row, such as "Run 7".
    """
    check(row, to, table, name=name, state=state)
    write_as_seen(session, row, {state: to, **(values or {})}, (state, *seen), name=name)


def check(row: object, to: str, table: Table, *, name: str, state: str = "state") -> None:
    """Raise ConflictError unless the table allows the transition from the row's state to `to`."""
    now = getattr(row, state)
    if to not in table[now]:
        error = ConflictError if table[now] else OverError
        raise error(f"{name} is {now} and cannot become {to}.")


def write_as_seen(
    session: Session, row: object, values: Mapping[str, object], seen: Sequence[str], *, name: str
) -> None:
    """Write `values` to a row; raises ConflictError if a column in `seen` no longer has the value the given row has."""
    session.flush()
    mapper = inspect(row, raiseerr=True).mapper
    keys = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
    if write_if(session, type(row), {key: getattr(row, key) for key in (*keys, *seen)}, **values) is None:
        raise ConflictError(f"{name} has just changed; look again.")


def write_if(session: Session, model: type[M], expected: Mapping[str, object], **values: object) -> M | None:
    """Write `values` to the one row whose columns are as expected, where a tuple means any of its values.

    Returns the new row, or None if no row is so.
    """
    several = tuple(name for name, value in expected.items() if isinstance(value, tuple))
    parameters = {f"expected_{name}": value for name, value in expected.items()}
    parameters |= {f"new_{name}": value for name, value in values.items()}
    return run(session, _guarded_by(inspect(model, raiseerr=True), tuple(expected), several, tuple(values)), parameters)


@cache
def _guarded_by(
    mapper: Mapper[Any], expected: tuple[str, ...], several: tuple[str, ...], written: tuple[str, ...]
) -> ReturningUpdate[Any]:
    """What `write_if` writes, for any values: made once, as making it takes longer than writing."""
    conditions: list[ColumnElement[bool]] = []
    for name in expected:
        column = mapper.columns[name]
        value: BindParameter[Any] = bindparam(f"expected_{name}", expanding=name in several)
        if name in several:
            conditions.append(column.in_(value))
        else:
            conditions.append(column.is_not_distinct_from(value) if column.nullable else column == value)
    return guarded(mapper.class_, *conditions, **{name: bindparam(f"new_{name}") for name in written})


def write_where(session: Session, model: type[M], *conditions: ColumnElement[bool], **values: object) -> M | None:
    """Write `values` to the one row that meets the conditions; returns the new row, or None if no row meets them."""
    return run(session, guarded(model, *conditions, **values))


def guarded(model: type[M], *conditions: ColumnElement[bool], **values: object) -> ReturningUpdate[M]:
    """What `write_where` writes, for `run`; an act that is frequent makes it once, with parameters.

    A single UPDATE tests and writes, so that no other writer comes between.
    """
    return (
        update(model)
        .where(*conditions)
        .values(**values)
        .returning(model)
        .execution_options(populate_existing=True, synchronize_session=False)
    )


def run(session: Session, write: ReturningUpdate[M], parameters: Mapping[str, object] | None = None) -> M | None:
    """Write as `write` says; returns the new row, or None if no row meets its conditions."""
    session.flush()
    return session.scalars(write, parameters).one_or_none()
