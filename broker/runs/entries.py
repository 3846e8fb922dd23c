"""Entries of the record about runs."""

from typing import Any

from sqlalchemy.orm import Session

from broker.runs.kinds.kind import kind_of
from broker.runs.runs import Run
from projects import people
from projects.people import Person
from projects.record import record

MEASURES = frozenset({"evaluation", "study", "program"})
"""What entries are about that measure something on checkpoints of a run, by the key of its number."""
NOT_TRAINED = MEASURES | {"sample", "prepares", "baseline"}
"""The keys of entries about a run that does not train."""


def tell(session: Session, run: Run, kind: str, *, by: Person | None = None, why: str = "", **told: object) -> None:
    """Append an entry about the run to its project's record, with what its kind says of it."""
    about: dict[str, Any] = {"run": run.id, "attempt": run.token, **kind_of(run).about(session, run)}
    if names := people.marked(session, why):
        told["named"] = [{"id": discord_id, "name": name} for discord_id, name in names.items()]
        why = people.spelt(why, names)
    record.append(session, record.project_stream(run.project_id), kind, by=by, why=why, **about, **told)
