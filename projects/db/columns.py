"""The base class and the column types of every table.

SQLModel takes a column's type from its annotation: `str`, `bool` and `str | None` need no more. The helpers here give
the types that it would guess wrong. As for `sqlmodel.Field`, a column without a default must be given.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from pydantic_core import PydanticUndefined
from sqlalchemy import JSON, BigInteger, DateTime, Dialect, Double, Integer, MetaData
from sqlalchemy.orm import registry
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, SQLModel

NAMING = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

WORDS: dict[Any, Any] = {"words": True}
"""The `info` of a column that holds what somebody has written or who did something: where redaction looks for names."""

REQUIRED: Any = PydanticUndefined
"""The default of a column that has none."""

# Millions of GPU-hours in seconds do not fit 32 bits; SQLite numbers rows by itself only as INTEGER.
WHOLE = BigInteger().with_variant(Integer, "sqlite")


class Base(SQLModel, registry=registry(metadata=MetaData(naming_convention=NAMING))):
    """What all tables share."""


def utcnow() -> datetime:
    """The current time, UTC with zone."""
    return datetime.now(UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """A time with zone, kept as naive UTC: SQLite would drop the offset and PostgreSQL would turn it."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Turn a time with zone to naive UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone was given to the database")
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give the time back with its zone."""
        return None if value is None else value.replace(tzinfo=UTC)


def row_id() -> Any:
    """The number of a row, which the database gives it when it is inserted."""
    return Field(default=None, primary_key=True, sa_type=WHOLE)


def integer(default: int | None = REQUIRED, *, primary_key: bool = False) -> Any:
    """A whole number of 64 bits."""
    return Field(default=default, primary_key=primary_key, sa_type=WHOLE)


def foreign_key(column: str, default: int | None = REQUIRED, *, primary_key: bool = False, index: bool = False) -> Any:
    """The number of a row of another table: `column` is its primary key, such as "runs.id"."""
    return Field(default=default, foreign_key=column, primary_key=primary_key, index=index, sa_type=WHOLE)


def number(default: float | None = REQUIRED) -> Any:
    """A floating-point number of 64 bits."""
    return Field(default=default, sa_type=Double)


def words(default: str | None = REQUIRED) -> Any:
    """A text that somebody has written or that may name somebody: see `WORDS`."""
    return Field(default=default, sa_column_kwargs={"info": WORDS})


def timestamp(default: Callable[[], datetime] | None = REQUIRED) -> Any:
    """A time with zone; `default` is None for one that may be missing, or what makes one, such as `utcnow`."""
    if callable(default):
        return Field(default_factory=default, sa_type=UtcDateTime)
    return Field(default=default, sa_type=UtcDateTime)


def json_object(default: Callable[[], dict[str, Any]] | None = None) -> Any:
    """A mapping, kept as JSON; `default` is what makes one, such as `dict`."""
    return Field(sa_type=JSON) if default is None else Field(default_factory=default, sa_type=JSON)
