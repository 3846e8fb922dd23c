"""What the amounts of an entry count in: the GPUs, or the cores, of the one pool that it concerns."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker.allocations.allocations import Allocation
from broker.allocations.pools import Pool
from broker.allocations.units import Unit
from broker.runs.runs import Run
from projects.record.record import EntryView

Payload = Mapping[str, Any]


def noted(session: Session, entries: Sequence[EntryView]) -> Sequence[EntryView]:
    """The entries, where the payload of each that concerns a pool says as its `unit` what that pool counts."""
    payloads = [entry.payload for entry in entries if entry.payload is not None]
    if not payloads:
        return entries

    def all_of(field: str) -> set[Any]:
        return {payload[field] for payload in payloads if payload.get(field) is not None}

    queries = {
        "pool": select(Pool.name, Pool.gpu_type).where(col(Pool.name).in_(all_of("pool"))),
        "allocation": select(Allocation.id, Pool.gpu_type)
        .join(Pool, col(Pool.id) == Allocation.pool_id)
        .where(col(Allocation.id).in_(all_of("allocation"))),
        "run": select(Run.id, Pool.gpu_type)
        .join(Pool, col(Pool.id) == Run.pool_id)
        .where(col(Run.id).in_(all_of("run"))),
        "sweep": select(Run.sweep_id, Pool.gpu_type)
        .join(Pool, col(Pool.id) == Run.pool_id)
        .where(col(Run.sweep_id).in_(all_of("sweep")))
        .distinct(),
    }
    types: dict[tuple[str, Any], str] = {
        (field, of): gpu_type
        for field, query in queries.items()
        if all_of(field)
        for of, gpu_type in session.execute(query)
    }
    return [
        entry if entry.payload is None else replace(entry, payload=entry.payload | _unit(entry.payload, types))
        for entry in entries
    ]


def _unit(payload: Payload, types: Mapping[tuple[str, Any], str]) -> dict[str, Any]:
    """The field `unit` of a payload; none where no pool is known."""
    found = [
        types[of] for field in ("pool", "allocation", "run", "sweep") if (of := (field, payload.get(field))) in types
    ]
    return {"unit": Unit.of(found[0]).value} if found else {}
