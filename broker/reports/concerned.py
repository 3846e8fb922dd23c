"""Who is concerned by an entry of the record: who launched the run, asked, or leads the project; or its followers."""

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker.allocations.allocations import Allocation
from broker.allocations.change_requests import AllocationChange
from broker.catalogue import CatalogueEntry
from broker.end_reasons import EndReason
from broker.runs.entries import MEASURES, NOT_TRAINED
from broker.runs.runs import Run, RunKind, RunState, Sweep
from projects import notify
from projects.people import Person
from projects.projects import Project
from projects.record.record import Entry, EntryView, Payload

WANT_OF_HOURS = frozenset({EndReason.UNFUNDED, EndReason.ALLOCATION_EXPIRED, EndReason.ALLOCATION_REVOKED})


def person(session: Session, entry: EntryView) -> int | None:
    """The Discord id of the person that an entry concerns; None where it concerns nobody in particular.

    Nobody is concerned by their own act, nor is who is banned, was forgotten, or wants no mention.
    """
    whose = WHOSE.get(entry.kind)
    if whose is None or entry.payload is None:
        return None
    person_id = whose(session, entry)
    found = None if person_id is None else session.get(Person, person_id)
    if found is None or not notify.mentionable(found):
        return None
    by = entry.payload.get("by") or {}
    return None if by.get("id") == found.discord_id else int(found.discord_id)


def _launcher(session: Session, entry: EntryView) -> int | None:
    """Who launched the run that an entry tells the end of, or asked for what reads its checkpoints."""
    told = entry.payload or {}
    if "sample" in told:  # the lab itself takes one, without a prompt, at the end of each run
        return _asked(session, Run, told["sample"]) if "prompt" in told else None
    for kind in MEASURES:
        if kind in told:
            return _asked(session, Run, told[kind])
    run = session.get(Run, told["run"]) if "run" in told else None
    return run.requested_by if run is not None and _is_told(session, run, entry) else None


def _is_told(session: Session, run: Run, entry: EntryView) -> bool:
    """Whether the end of a run is told to who launched it: of a sweep's runs, the first one that goes wrong in a way.

    The end of the sweep tells of the others. Runs that have been resumed no longer count.
    """
    if run.sweep_id is None:
        return True
    if entry.kind == "run.finished":
        return False
    like_it = (
        select(Entry.number, col(Payload.body))
        .join(Payload, col(Payload.entry_id) == Entry.id)
        .where(Entry.stream == entry.stream, Entry.kind == entry.kind)
        .where(col(Payload.body).contains(f'"sweep":{run.sweep_id}'))
        .order_by(col(Entry.number))
    )
    newest: dict[int, int] = {}
    for number, body in session.execute(like_it):
        told = json.loads(body or "{}")
        if (
            told.get("sweep") == run.sweep_id
            and not told.keys() & {"sample", *MEASURES}
            and (entry.kind != "run.paused" or _wants_hours(told))
        ):
            newest[told["run"]] = number
    same = select(Run.id).where(col(Run.id).in_(newest), Run.state == run.state)
    return all(newest[run_id] >= entry.number for run_id in session.scalars(same))


def _wants_hours(told: Mapping[str, Any]) -> bool:
    return told.get("end_reason") in WANT_OF_HOURS


def _paused(session: Session, entry: EntryView) -> int | None:
    return _launcher(session, entry) if _wants_hours(entry.payload or {}) else None


def _sweeper(session: Session, entry: EntryView) -> int | None:
    return _asked(session, Sweep, (entry.payload or {}).get("sweep"))


def _requester(session: Session, entry: EntryView) -> int | None:
    """Who asked for the GPU time, or for its change."""
    told = entry.payload or {}
    if "change" in told:
        return _asked(session, AllocationChange, told["change"])
    return _asked(session, Allocation, told.get("allocation"))


Asked = TypeVar("Asked", Run, Sweep, Allocation, AllocationChange)


def _asked(session: Session, table: type[Asked], row: int | None) -> int | None:
    """Who asked for what a row is about."""
    found = None if row is None else session.get(table, row)
    return None if found is None else found.requested_by


def _proposer(session: Session, entry: EntryView) -> int | None:
    number = (entry.payload or {}).get("entry")
    found = None if number is None else session.get(CatalogueEntry, number)
    return None if found is None else found.proposed_by


def _lead(session: Session, entry: EntryView) -> int | None:
    found = session.get(Project, entry.project_id)
    return None if found is None else found.lead_id


def is_news(session: Session, entry: EntryView) -> bool:
    """Whether an entry is news for a project's followers: that it begins, reports, has its first run, or ends."""
    if entry.kind == "run.finished":
        told = entry.payload or {}
        of_other_kind = told.keys() & {"sweep", *NOT_TRAINED}
        return not of_other_kind and _is_first(session, entry, told.get("run"))
    return entry.payload is not None and entry.kind in NEWS


def _is_first(session: Session, entry: EntryView, run_id: int | None) -> bool:
    """Whether a run is the first of its project, beside its sweeps, that has trained to its end."""
    trained = (Run.project_id == entry.project_id, Run.kind == RunKind.TRAIN, Run.state == RunState.FINISHED)
    first = (
        select(Run.id).where(*trained, col(Run.sweep_id).is_(None)).order_by(col(Run.ended_at), col(Run.id)).limit(1)
    )
    return session.scalars(first).first() == run_id


NEWS = frozenset({"project.activated", "project.update", "project.completed", "project.stopped", "run.finished"})

WHOSE: Mapping[str, Callable[[Session, EntryView], int | None]] = {
    **dict.fromkeys(("run.failed", "run.finished", "run.timed_out"), _launcher),
    "run.paused": _paused,
    "sweep.ended": _sweeper,
    **dict.fromkeys(
        (
            "allocation.approved",
            "allocation.declined",
            "allocation.asked",
            "allocation.changed",
            "allocation.change_declined",
            "allocation.half_released",
            "allocation.revoked",
        ),
        _requester,
    ),
    **dict.fromkeys(("catalogue.accepted", "catalogue.declined"), _proposer),
    "project.joined": _lead,
}
"""By the kind of an entry, the function that finds the `people.id` of the person it concerns."""
