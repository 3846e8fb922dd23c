"""The base class of every table, and helpers for column types.

SQLModel derives a column's type from its annotation; for `str`, `bool` and `str | None` that type is right. The helpers
here declare the other columns. A column without a default is required, as with `sqlmodel.Field`.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from pydantic_core import PydanticUndefined
from sqlalchemy import JSON, BigInteger, DateTime, Dialect, Double, Integer, MetaData
from sqlalchemy.orm import registry
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, SQLModel

from projects.db import clock

NAMING = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

WORDS: dict[Any, Any] = {"words": True}
"""The `info` of a column whose text somebody wrote or which may name somebody; redaction searches these columns."""

TAGS: dict[Any, Any] = WORDS | {"tags": True}
"""The `info` of a column of tags with spaces between, which redaction takes away whole."""

SENTENCE: dict[Any, Any] = WORDS | {"sentence": True}
"""The `info` of a column whose text Stoa composes, with marks in it that stand for people."""

REQUIRED: Any = PydanticUndefined
"""The default of a column that has none."""

# GPU-seconds of a large grant exceed 32 bits. SQLite assigns row ids only to columns of type INTEGER.
WHOLE = BigInteger().with_variant(Integer, "sqlite")


class Base(SQLModel, registry=registry(metadata=MetaData(naming_convention=NAMING))):
    """The base class of all tables; they share one metadata, whose constraints follow `NAMING`."""


def utcnow() -> datetime:
    """The current time, UTC with zone: the database's, which all hosts share."""
    return clock.now()


class UtcDateTime(TypeDecorator[datetime]):
    """A time with zone, stored as naive UTC, since SQLite drops the offset and PostgreSQL converts it."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert a time with zone to naive UTC; raises ValueError for a time without a zone."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone was given to the database")
        return value.astimezone(UTC).replace(tzinfo=None)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], datetime | None]:
        """What adds the zone, UTC, to a stored time: in one step, as a round of the scheduler reads thousands."""
        return _from_text if dialect.name == "sqlite" else _from_naive


def _from_text(value: str | None) -> datetime | None:
    return None if value is None else datetime.fromisoformat(f"{value}+00:00")


def _from_naive(value: datetime | None) -> datetime | None:
    return None if value is None else value.replace(tzinfo=UTC)


def row_id() -> Any:
    """The primary key of a table whose rows the database numbers on insertion."""
    return Field(default=None, primary_key=True, sa_type=WHOLE)


def integer(default: int | None = REQUIRED, *, primary_key: bool = False) -> Any:
    """A 64-bit integer."""
    return Field(default=default, primary_key=primary_key, sa_type=WHOLE)


def foreign_key(column: str, default: int | None = REQUIRED, *, primary_key: bool = False, index: bool = False) -> Any:
    """A reference to a row of another table; `column` is that table's primary key, such as "runs.id"."""
    return Field(default=default, foreign_key=column, primary_key=primary_key, index=index, sa_type=WHOLE)


def number(default: float | None = REQUIRED) -> Any:
    """A 64-bit floating-point number."""
    return Field(default=default, sa_type=Double)


def words(default: str | None = REQUIRED) -> Any:
    """A text that somebody wrote or that may name somebody; see `WORDS`."""
    return Field(default=default, sa_column_kwargs={"info": WORDS})


def tag_words() -> Any:
    """Tags that somebody typed, with spaces between; see `TAGS`."""
    return Field(default="", sa_column_kwargs={"info": TAGS})


def sentence(default: str | None = REQUIRED) -> Any:
    """A text that Stoa composes and in which marks may stand for people; see `SENTENCE`."""
    return Field(default=default, sa_column_kwargs={"info": SENTENCE})


def timestamp(default: Callable[[], datetime] | None = REQUIRED) -> Any:
    """A time with zone. `default` is None for an optional time, or a factory such as `utcnow`."""
    if callable(default):
        return Field(default_factory=default, sa_type=UtcDateTime)
    return Field(default=default, sa_type=UtcDateTime)


def json_object(default: Callable[[], dict[str, Any]] | None = None) -> Any:
    """A mapping, stored as JSON. `default` is a factory such as `dict`."""
    return Field(sa_type=JSON) if default is None else Field(default_factory=default, sa_type=JSON)
