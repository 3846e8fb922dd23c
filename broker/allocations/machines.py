"""Donated machines: the tokens by which the lab's API knows them. A machine may take runs of one pool, and no more."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session
from sqlmodel import Field, col, select

from broker.allocations import pools
from broker.allocations.pools import Pool
from broker.runners import registry
from projects import text
from projects.db.columns import Base, foreign_key, row_id, timestamp, utcnow
from projects.errors import ConflictError, InvalidError, NotFoundError
from projects.record import record

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}"


class Machine(Base, table=True):
    """A donated machine. Of its token only the SHA-256 is kept: nobody guesses 32 random bytes."""

    __tablename__ = "machines"

    id: int = row_id()
    name: str = Field(unique=True)
    pool_id: int = foreign_key("pools.id")
    token: str = Field(unique=True)
    created_at: datetime = timestamp(default=utcnow)
    revoked_at: datetime | None = timestamp(default=None)


@dataclass(frozen=True)
class MachineView:
    """A donated machine as the API and lists see it."""

    name: str
    pool: str
    token: str
    created_at: datetime
    revoked_at: datetime | None


def admit(session: Session, name: str, pool: str) -> str:
    """A new token for a machine that may take runs of a pool; one that it had is no longer good.

    Raises InvalidError, NotFoundError, and ConflictError for a machine of another pool.
    """
    if not re.fullmatch(NAME, name, re.ASCII):
        raise InvalidError("A machine's name has up to 60 letters, digits, dots, dashes and underscores.")
    of = pools.named(session, pool)
    if not registry.named(of.runner).lent:
        lends = ", ".join(runner for runner, known in registry.RUNNERS.items() if known.lent)
        raise InvalidError(f"No donated machine takes runs of “{pool}”; add a pool with the runner {lends}.")
    token = secrets.token_urlsafe(32)
    machine = session.scalars(select(Machine).where(Machine.name == name).with_for_update()).one_or_none()
    if machine is None:
        machine = Machine(name=name, pool_id=of.id, token=_hashed(token))
        session.add(machine)
    elif machine.pool_id != of.id:
        raise ConflictError(f"“{name}” is a machine of another pool; choose another name.")
    machine.token, machine.created_at, machine.revoked_at = _hashed(token), utcnow(), None
    session.flush()
    record.append(session, record.LAB, "machine.admitted", by=None, machine=name, pool=of.name)
    return token


def revoke(session: Session, name: str, reason: str) -> bool:
    """Let a machine do nothing more, in the midst of a run too; False where it may do nothing already.

    Raises NotFoundError.
    """
    because = text.prose("The reason", reason, most=text.USUAL)
    machine = session.scalars(select(Machine).where(Machine.name == name).with_for_update()).one_or_none()
    if machine is None:
        listed = ", ".join(view.name for view in every(session)) or "none yet"
        raise NotFoundError(f"There is no machine “{name[:60]}”; the machines are: {listed}.")
    if machine.revoked_at is not None:
        return False
    machine.revoked_at = utcnow()
    record.append(session, record.LAB, "machine.revoked", by=None, why=because, machine=name)
    return True


def every(session: Session) -> Sequence[MachineView]:
    """All donated machines, by name."""
    query = select(Machine, Pool.name).join(Pool, col(Pool.id) == Machine.pool_id).order_by(col(Machine.name))
    return [
        MachineView(row.name, pool, row.token, row.created_at, row.revoked_at) for row, pool in session.execute(query)
    ]


def with_token(session: Session, token: str) -> MachineView | None:
    """The machine that a token belongs to; None for an unknown token, or if the machine was revoked."""
    return with_hash(session, _hashed(token))


def with_hash(session: Session, hashed: str) -> MachineView | None:
    """The machine whose token has this SHA-256; None if there is none, or if it was revoked."""
    for machine in every(session):
        if hmac.compare_digest(machine.token, hashed):
            return machine if machine.revoked_at is None else None
    return None


def _hashed(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
