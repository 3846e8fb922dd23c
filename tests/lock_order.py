"""Whether every transaction locks rows in the one order that `docs/locking.md` states, as PostgreSQL sees it."""

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, event

ORDER = (
    ("projects",),
    ("allocations", "launch_drafts", "catalogue_entries", "policies"),
    ("pools",),
    ("hosts",),
    ("runs",),
    ("repositories",),
    ("people",),
    ("balances",),
    ("grants",),
    ("streams",),
)
"""The tables whose rows are locked, first to last."""
BELOW = {
    "memberships": "projects",
    "lead_offers": "projects",
    "project_shares": "projects",
    "allocation_changes": "allocations",
    "corpora": "pools",
    "machines": "pools",
    "reservations": "pools",
    "host_pools": "hosts",
    "attempts": "runs",
    "publications": "runs",
    "points": "runs",
    "checkpoint_results": "runs",
    "evaluation_plans": "runs",
    "payloads": "streams",
    "authorships": "streams",
}
"""Tables whose rows may be locked at any time after the row that they belong to, and else at its place."""
ANYWHERE = ("redaction.py",)
"""May change rows of any table: where PostgreSQL ends it for a deadlock, the admin repeats it."""
RANK = {table: rank for rank, tables in enumerate(ORDER) for table in tables}
RANK |= {table: RANK[owner] for table, owner in BELOW.items()}

_LOCKS = re.compile(
    r"\s*(?:UPDATE (?P<update>\w+)|DELETE FROM (?P<delete>\w+)|"
    r"SELECT .*?\bFROM (?P<select>\w+).*FOR (?:NO KEY )?UPDATE)",
    re.DOTALL,
)
_INSERTS = re.compile(r"\s*INSERT INTO (\w+)")


@contextmanager
def held() -> Iterator[None]:
    """Raise AssertionError in the end where a transaction on PostgreSQL has locked a row out of order."""
    found: list[str] = []

    def begin(connection: Connection) -> None:
        connection.info.update(locked=[], inserted=set(), wrong=[], migrates=False)

    def executed(connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        if connection.dialect.name != "postgresql" or "locked" not in connection.info:
            return
        info = connection.info
        if "alembic_version" in statement:
            info["migrates"] = True
        if insert := _INSERTS.match(statement):
            info["inserted"].add(insert[1])
        lock = _LOCKS.match(statement)
        table = lock and (lock["update"] or lock["delete"] or lock["select"])
        # Nobody else can wait for a row that this transaction has inserted.
        known = {*info["locked"], *info["inserted"]}
        if table is None or table in known or BELOW.get(table) in known:
            return
        after = [other for other in info["locked"] if RANK.get(other, -1) > RANK.get(table, len(ORDER))]
        if after and not any(name in _caller() for name in ANYWHERE):
            info["wrong"].append(f"{table} after {', '.join(after)}, by {_caller()}")
        info["locked"].append(table)

    def commit(connection: Connection) -> None:
        if not connection.info.get("migrates"):
            found.extend(connection.info.get("wrong", ()))

    listeners = (("begin", begin), ("after_cursor_execute", executed), ("commit", commit))
    for name, listener in listeners:
        event.listen(Engine, name, listener)
    try:
        yield
    finally:
        for name, listener in listeners:
            event.remove(Engine, name, listener)
    assert not found, "Rows were locked out of order (docs/locking.md): " + "; ".join(sorted(set(found)))


def _caller() -> str:
    """The functions of ours that a statement comes from, outermost first."""
    frames = [f for f in traceback.extract_stack() if re.search(r"/(projects|broker)/(?!db/)", f.filename)]
    return " > ".join(f"{frame.filename.rsplit('/', 1)[1]}:{frame.lineno} {frame.name}" for frame in frames[-6:])
