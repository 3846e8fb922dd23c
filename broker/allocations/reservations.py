"""Reservations: GPUs of a pool that admins keep for one project over a period, in public."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache

import sqlalchemy
from sqlalchemy import BindParameter, ColumnElement, Executable, Row, bindparam
from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker.allocations import pools
from broker.allocations.pools import Pool
from broker.allocations.units import Unit
from broker.runners import registry
from projects import parse, people, projects, quotas, rights, text
from projects.db.columns import Base, UtcDateTime, foreign_key, integer, row_id, timestamp, utcnow
from projects.errors import ConflictError, InvalidError, NotFoundError
from projects.people import Actor, Person
from projects.projects import ENDED, Project
from projects.record import record
from projects.rights import Act

LONGEST = timedelta(days=90)
FARTHEST = timedelta(days=365)


class Reservation(Base, table=True):
    """GPUs of a pool for a project, from `begins_at` to before `ends_at` unless it is cancelled.

    `reserved_by` is None where the operator made it.
    """

    __tablename__ = "reservations"

    id: int = row_id()
    pool_id: int = foreign_key("pools.id", index=True)
    project_id: int = foreign_key("projects.id")
    gpus: int = integer()
    begins_at: datetime = timestamp()
    ends_at: datetime = timestamp()
    reserved_by: int | None = foreign_key("people.id", default=None)
    cancelled_at: datetime | None = timestamp(default=None)


@dataclass(frozen=True)
class ReservationView:
    """A reservation that is not over, as people read it; `by` is who made it, the operator where it is empty."""

    id: int
    pool: str
    unit: Unit
    project_id: int
    gpus: int
    begins_at: datetime
    ends_at: datetime
    by: str

    @property
    def period(self) -> str:
        """From when until when, in UTC."""
        return period(self.begins_at, self.ends_at)


def period(begins_at: datetime, ends_at: datetime) -> str:
    """A period in words, such as “from 12 December 2030 09:00 UTC until 13 December 2030 09:00 UTC”."""
    return f"from {_moment(begins_at)} until {_moment(ends_at)}"


def add(
    session: Session,
    actor: Actor | None,
    pool: str,
    *,
    project_id: int,
    gpus: str,
    begins: str,
    ends: str,
    reason: str,
) -> ReservationView:
    """Reserve GPUs of a pool for a project, from and until moments as `parse.moment` reads them.

    `actor` None is the operator. Raises ForbiddenError for all but admins who are not in the project, NotFoundError for
    an unknown pool or project, InvalidError, and ConflictError where other reservations leave too few GPUs, or where
    the pool's runner has a queue of its own.
    """
    rights.require_admin(actor, Act.MANAGE_COMPUTE)
    because = text.prose("The reason", reason, most=text.USUAL)
    begins_at, ends_at = parse.moment(begins), parse.moment(ends)
    _check_period(begins_at, ends_at)
    project = projects.load(session, project_id)
    rights.require_outsider(session, actor, project, "reserves compute for")
    if project.stage in ENDED:
        raise ConflictError(f"P{project_id} is {project.stage}; nothing is reserved for it.")
    row = pools.named(session, pool)
    session.refresh(row, with_for_update={"key_share": True})
    count = _count(gpus, row)
    if queue := registry.named(row.runner).queue:
        raise ConflictError(f"{queue} decides which {row.unit.plural} of “{row.name}” are whose; reserve them there.")
    reserved = most_reserved(session, row.id, begins_at, ends_at)
    if reserved + count > row.gpus:
        free = row.gpus - reserved
        raise ConflictError(
            f"Of the {row.unit.count(row.gpus)} of “{row.name}”, {reserved:,} are reserved in that time; at most "
            f"{free:,} are left."
        )
    quotas.check_admin(session, actor)
    by = people.author(session, actor)
    made = Reservation(
        pool_id=row.id,
        project_id=project_id,
        gpus=count,
        begins_at=begins_at,
        ends_at=ends_at,
        reserved_by=None if by is None else by.id,
    )
    session.add(made)
    session.flush()
    _tell(session, "reservation.added", made, row.name, by, because)
    return _view(made, row, by)


def cancel(session: Session, actor: Actor | None, reservation_id: int, reason: str) -> ReservationView:
    """Cancel a reservation that is not over, so that its GPUs are everybody's.

    `actor` None is the operator. Raises ForbiddenError for all but admins, NotFoundError, and ConflictError for one
    that is over or cancelled.
    """
    rights.require_admin(actor, Act.MANAGE_COMPUTE)
    because = text.prose("The reason", reason, most=text.USUAL)
    row = session.get(Reservation, reservation_id)
    if row is None:
        raise NotFoundError(f"There is no reservation {reservation_id}.")
    pool = session.get_one(Pool, row.pool_id, with_for_update={"key_share": True}, populate_existing=True)
    session.refresh(row)
    if row.cancelled_at is not None or row.ends_at <= utcnow():
        raise ConflictError(f"Reservation {reservation_id} is over.")
    quotas.check_admin(session, actor)
    by = people.author(session, actor)
    row.cancelled_at = utcnow()
    session.flush()
    _tell(session, "reservation.cancelled", row, pool.name, by, because)
    return _view(row, pool, by)


def every(session: Session) -> Sequence[ReservationView]:
    """The reservations that are not over, the earliest first."""
    rows = session.execute(
        select(Reservation, Pool, Person)
        .join(Pool, col(Pool.id) == Reservation.pool_id)
        .outerjoin(Person, col(Person.id) == Reservation.reserved_by)
        .where(_open(utcnow()))
        .order_by(col(Reservation.begins_at), col(Reservation.id))
    )
    return [_view(row, pool, by) for row, pool, by in rows]


def open_at(session: Session, now: datetime) -> Sequence[Row[tuple[int, int, int, int, datetime, datetime]]]:
    """The reservations that are not over, in the order of their numbers, without those of projects that have ended."""
    return session.execute(_standing(), {"now": now}).all()


@cache
def _standing() -> Executable:
    """Made once, since each round of the scheduler asks."""
    return (
        sqlalchemy.select(
            col(Reservation.id),
            col(Reservation.pool_id),
            col(Reservation.project_id),
            col(Reservation.gpus),
            col(Reservation.begins_at),
            col(Reservation.ends_at),
        )
        .join(Project, col(Project.id) == Reservation.project_id)
        .where(_open(bindparam("now", type_=UtcDateTime)), col(Project.stage).not_in(ENDED))
        .order_by(col(Reservation.id))
    )


def most_reserved(session: Session, pool_id: int, begins_at: datetime, ends_at: datetime) -> int:
    """The most GPUs of a pool that are reserved at one moment of a period."""
    during = (col(Reservation.begins_at) < ends_at, col(Reservation.ends_at) > begins_at)
    rows = session.scalars(select(Reservation).where(Reservation.pool_id == pool_id, _open(utcnow()), *during)).all()
    moments = {begins_at, *(row.begins_at for row in rows if row.begins_at > begins_at)}
    return max(sum(row.gpus for row in rows if row.begins_at <= at < row.ends_at) for at in moments)


def _open(now: datetime | BindParameter[datetime]) -> ColumnElement[bool]:
    return (col(Reservation.ends_at) > now) & col(Reservation.cancelled_at).is_(None)


def _view(row: Reservation, pool: Pool, by: Person | None) -> ReservationView:
    name = "" if by is None else by.name
    return ReservationView(row.id, pool.name, pool.unit, row.project_id, row.gpus, row.begins_at, row.ends_at, name)


def _tell(session: Session, kind: str, row: Reservation, pool: str, by: Person | None, why: str) -> None:
    record.append(
        session,
        record.project_stream(row.project_id),
        kind,
        by=by,
        why=why,
        reservation=row.id,
        pool=pool,
        gpus=row.gpus,
        begins=row.begins_at.isoformat(),
        ends=row.ends_at.isoformat(),
    )


def _check_period(begins_at: datetime, ends_at: datetime) -> None:
    now = utcnow()
    if begins_at < now - timedelta(minutes=1):
        raise InvalidError(f"A reservation begins in the future; {_moment(begins_at)} has passed.")
    if ends_at <= begins_at:
        raise InvalidError(f"A reservation ends after it begins; {_moment(ends_at)} is not after {_moment(begins_at)}.")
    if ends_at - begins_at > LONGEST or begins_at - now > FARTHEST:
        raise InvalidError(f"A reservation begins within {FARTHEST.days} days and lasts {LONGEST.days} days at most.")


def _count(value: str, pool: Pool) -> int:
    typed = value.strip()
    if not re.fullmatch(r"\d{1,9}", typed, re.ASCII) or not 1 <= int(typed) <= pool.gpus:
        raise InvalidError(
            f"The {pool.unit.plural} are a whole number from 1 to {pool.gpus:,}, as many as “{pool.name}” has; "
            f"“{typed[:20]}” is not."
        )
    return int(typed)


def _moment(at: datetime) -> str:
    return f"{at.day} {at:%B %Y %H:%M} UTC"
