"""Quotas: how many proposals one person may have open, and how many requests and launches they may make a day."""

import json
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy import func
from sqlalchemy.orm import Session
from sqlmodel import col, select

from projects import people, policies
from projects.db.columns import utcnow
from projects.errors import ConflictError
from projects.people import Actor, Person
from projects.projects import Project, Stage
from projects.record import hash_chain
from projects.record.record import Entry, Payload

DAY = timedelta(days=1)

_UNBEGUN = (Stage.PROPOSED, Stage.RECRUITING, Stage.SCOPED)


class QuotaKind(StrEnum):
    """What a quota counts."""

    PROPOSAL = "proposal"
    REQUEST = "request"
    LAUNCH = "launch"


# A day's requests and launches are counted by the entries that the record holds of them.
_ENTRIES = {
    QuotaKind.REQUEST: ("allocation.requested", "allocation.change_requested"),
    QuotaKind.LAUNCH: ("run.queued", "run.forked"),
}


def check(session: Session, actor: Actor, kind: QuotaKind) -> None:
    """Raise ForbiddenError where the actor is banned, and ConflictError where their quota is used up."""
    person = people.find(session, actor)
    if person is None:
        return
    # Locked, so that of two requests at the same moment only one can be the last that the quota allows.
    session.refresh(person, with_for_update={"key_share": True})
    limits = policies.current(session)
    if kind is QuotaKind.PROPOSAL:
        led = (col(Project.lead_id) == person.id) & col(Project.stage).in_(_UNBEGUN)
        unbegun = session.scalar(select(func.count()).select_from(Project).where(led)) or 0
        if unbegun >= limits.most_open_proposals:
            raise ConflictError(
                f"{unbegun} of your proposals are not active yet, and one person may have "
                f"{limits.most_open_proposals} of them open; scope one, or complete it as abandoned."
            )
        return
    most, what = {
        QuotaKind.REQUEST: (limits.most_requests_a_day, "requests for compute"),
        QuotaKind.LAUNCH: (limits.most_launches_a_day, "launches"),
    }[kind]
    begun = _nth_newest(session, person, kind, most)
    if begun is not None and begun > utcnow() - DAY:
        again = begun + DAY
        raise ConflictError(
            f"One person may make {most} {what} a day; the next one can be at {again:%Y-%m-%d %H:%M} UTC."
        )


def _nth_newest(session: Session, person: Person, kind: QuotaKind, number: int) -> datetime | None:
    """The time of the person's n-th newest request or launch, with n = `number`; None where there are fewer."""
    by = hash_chain.canonical({"by": {"id": person.discord_id}})[1:-2] + ","
    body = session.scalars(
        select(col(Payload.body))
        .join(Entry, col(Entry.id) == Payload.entry_id)
        .where(col(Entry.kind).in_(_ENTRIES[kind]), col(Payload.body).contains(by, autoescape=True))
        .order_by(col(Entry.id).desc())
        .offset(number - 1)
        .limit(1)
    ).one_or_none()
    return None if body is None else datetime.fromisoformat(json.loads(body)["at"])
