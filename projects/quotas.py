"""Quotas: what one person, and all people of one project together, may do in a day of what everybody gets to read."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import Executable, Integer, bindparam, func, union_all
from sqlalchemy.orm import Mapped, Session
from sqlmodel import col, select

from projects import people, policies
from projects.db.columns import utcnow
from projects.errors import ConflictError
from projects.people import Actor, Person
from projects.projects import Project, Stage
from projects.record import record
from projects.record.record import Authorship, Payload, Stream

DAY = timedelta(days=1)
T = TypeVar("T")

_UNBEGUN = (Stage.PROPOSED, Stage.RECRUITING, Stage.SCOPED)


class QuotaKind(StrEnum):
    """What a quota counts."""

    PROPOSAL = "proposal"
    MEMBERSHIP = "membership"
    UPDATE = "update"
    PROJECT_CHANGE = "project change"
    REQUEST = "request"
    QUESTION = "question"
    LAUNCH = "launch"
    RUN_CHANGE = "run change"
    CATALOGUE = "catalogue"
    ADMIN = "admin"


@dataclass(frozen=True)
class Quota:
    """A budget of acts: the policy that says how many a day, the acts in words, and the entries that tell of them.

    Only acts that begin something count: whoever has joined may leave, and a lead who has paused may resume.
    """

    policy: str
    words: str
    entries: Collection[str]


QUOTAS: Mapping[QuotaKind, Quota] = {
    QuotaKind.PROPOSAL: Quota("most_proposals_a_day", "propose {most} projects", ("project.proposed",)),
    QuotaKind.MEMBERSHIP: Quota(
        "most_memberships_a_day", "join or follow {most} times", ("project.joined", "project.followed")
    ),
    QuotaKind.UPDATE: Quota(
        "most_updates_a_day",
        "post {most} updates, reports, findings and calls for people",
        ("project.update", "project.finding", "project.needs_changed", "allocation.reported"),
    ),
    QuotaKind.PROJECT_CHANGE: Quota(
        "most_project_changes_a_day",
        "make {most} pauses of projects and offers of their lead",
        ("project.paused", "project.lead_offered", "project.hidden"),
    ),
    QuotaKind.REQUEST: Quota(
        "most_requests_a_day",
        "make {most} requests for compute",
        ("allocation.requested", "allocation.change_requested"),
    ),
    QuotaKind.QUESTION: Quota(
        "most_questions_a_day",
        "post {most} questions and answers on requests",
        ("allocation.asked", "allocation.answered"),
    ),
    QuotaKind.LAUNCH: Quota("most_launches_a_day", "make {most} launches", ("run.queued", "run.forked")),
    QuotaKind.RUN_CHANGE: Quota(
        "most_run_changes_a_day",
        "make {most} pauses, extensions and names of runs",
        ("run.paused", "run.stopping", "run.extended", "run.named"),
    ),
    QuotaKind.CATALOGUE: Quota(
        "most_catalogue_proposals_a_day", "make {most} proposals for the catalogue", ("catalogue.proposed",)
    ),
    QuotaKind.ADMIN: Quota(
        "most_admin_acts_a_day",
        "make {most} changes of pools, grants, shares, reservations, leads, lifted bans, policies, the catalogue and "
        "the server's setup",
        (
            *("pool.added", "pool.changed", "grant.added", "grant.changed", "policy.changed", "server.set_up"),
            *("catalogue.accepted", "catalogue.declined", "catalogue.retired", "share.set", "share.set_aside"),
            *("reservation.added", "reservation.cancelled", "project.lead_appointed", "person.unbanned"),
        ),
    ),
}


def check(session: Session, actor: Actor, kind: QuotaKind, project_id: int | None = None, *, acts: int = 1) -> None:
    """Raise ForbiddenError where the actor is banned, and ConflictError where a quota has less than `acts` left.

    The quota is the actor's, and with `project_id` that of the project too, as `check_project` says.
    """
    person = people.ensure(session, actor)
    session.flush()
    # Locked, so that of two acts at the same moment only one can be the last that the quota allows.
    session.refresh(person, with_for_update={"key_share": True})
    limits = policies.current(session)
    if kind is QuotaKind.PROPOSAL:
        _check_open_proposals(session, person, limits.most_open_proposals)
    quota = QUOTAS[kind]
    most = getattr(limits, quota.policy)
    _check(session, quota, most, acts, col(Authorship.person_id), person.id, "One person may {} a day")
    if project_id is not None:
        check_project(session, kind, project_id, acts=acts)


def check_admin(session: Session, actor: Actor | None) -> None:
    """Raise ConflictError where an admin has used up the budget of acts that post to the whole server.

    It bounds what a compromised account or a bot in a loop does. Reviews, bans, cancelling and forgetting have no
    budget, and neither has the operator, whose `actor` is None.
    """
    if actor is not None:
        check(session, actor, QuotaKind.ADMIN)


def change_policy(session: Session, actor: Actor, name: str, value: str, reason: str) -> policies.Policies:
    """Change one policy as `policies.change` does, out of the admin's budget."""
    return policies.change(session, actor, name, value, reason, budget=lambda: check_admin(session, actor))


def check_project(session: Session, kind: QuotaKind, project_id: int, *, acts: int = 1) -> None:
    """Raise ConflictError where all people together have less than `acts` left of the project's quota.

    That quota is a multiple of one person's. This locks the project's stream, so that two acts at the same moment take
    turns: of what the transaction still has to lock, the stream is the last.
    """
    stream = record.project_stream(project_id)
    session.execute(select(Stream.key).where(Stream.key == stream).with_for_update())
    limits = policies.current(session)
    quota = QUOTAS[kind]
    most = getattr(limits, quota.policy) * limits.project_factor
    whose = "All people together may {} a day in one project"
    _check(session, quota, most, acts, col(Authorship.stream), stream, whose)


def _check_open_proposals(session: Session, person: Person, most: int) -> None:
    led = (col(Project.lead_id) == person.id) & col(Project.stage).in_(_UNBEGUN)
    unbegun = session.scalar(select(func.count()).select_from(Project).where(led)) or 0
    if unbegun >= most:
        raise ConflictError(
            f"{unbegun} of your proposals are not active yet, and one person may have {most} of them open; scope one, "
            "or complete it as abandoned."
        )


def _check(session: Session, quota: Quota, most: int, acts: int, column: Mapped[T], whose: T, sentence: str) -> None:
    """Raise ConflictError unless so many acts of a quota are possible now; `whose` entries count, by their `column`."""
    said = sentence.format(quota.words.format(most=f"{most:,}"))
    if acts > most:
        raise ConflictError(f"{said}; this would be {acts:,} at once.")
    again = _next(session, quota, most, acts, column, whose)
    if again is not None:
        raise ConflictError(f"{said}; the next {'one' if acts == 1 else f'{acts:,}'} can be at {again}.")


def _next(session: Session, quota: Quota, most: int, acts: int, column: Mapped[T], whose: T) -> str | None:
    """When the next `acts` of a quota are possible; None where they are possible now.

    Of each kind, only the newest `most` entries are read, in the order of an index, so that the record's length does
    not matter.
    """
    asked = {"whose": whose, "most": most, "later": most - acts}
    body = session.execute(_bodies(tuple(quota.entries), column), asked).scalar_one_or_none()
    if body is None:
        return None
    again = datetime.fromisoformat(json.loads(body)["at"]) + DAY
    return f"{again:%Y-%m-%d %H:%M} UTC" if again > utcnow() else None


@cache
def _bodies(kinds: tuple[str, ...], column: Mapped[Any]) -> Executable:
    """The oldest entry that keeps the next acts from being possible; made once, as that takes longer than an answer."""
    newest = [
        select(Authorship.entry_id)
        .where(column == bindparam("whose"), col(Authorship.kind) == kind)
        .order_by(col(Authorship.entry_id).desc())
        .limit(bindparam("most", type_=Integer))
        .subquery()
        for kind in kinds
    ]
    told = union_all(*(select(each.c.entry_id) for each in newest)).subquery()
    return (
        select(col(Payload.body))
        .join(told, col(Payload.entry_id) == told.c.entry_id)
        .order_by(told.c.entry_id.desc())
        .offset(bindparam("later", type_=Integer))
        .limit(1)
    )
