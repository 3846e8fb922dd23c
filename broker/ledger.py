"""The ledger: append-only movements of whole GPU-seconds on an allocation, and its balance.

At every moment `granted = reserved + spent + left`. A movement and the balance it changes are written in one
transaction, and the guard in the UPDATE keeps every part of the balance from falling below zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy import CheckConstraint, ForeignKey, UniqueConstraint, func, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from projects.db import Base, utcnow
from projects.errors import ConflictError


class Movement(StrEnum):
    """The kinds of movement."""

    GRANT = "grant"
    RESERVE = "reserve"
    CHARGE = "charge"
    RELEASE = "release"
    REFUND = "refund"


class LedgerRow(Base):
    """One movement. `period` numbers the charges of an attempt, so that none can be written twice."""

    __tablename__ = "ledger"
    __table_args__ = (
        UniqueConstraint("run_id", "token", "movement", "period"),
        CheckConstraint("seconds > 0", name="positive"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    allocation_id: Mapped[int] = mapped_column(ForeignKey("allocations.id"))
    movement: Mapped[str]
    seconds: Mapped[int]
    run_id: Mapped[int | None]
    token: Mapped[int | None]
    period: Mapped[int] = mapped_column(default=0)
    at: Mapped[datetime] = mapped_column(default=utcnow)


class Balance(Base):
    """What the movements of an allocation add up to, in GPU-seconds."""

    __tablename__ = "balances"
    __table_args__ = (
        CheckConstraint("reserved >= 0", name="reserved"),
        CheckConstraint("spent >= 0", name="spent"),
        CheckConstraint("granted - reserved - spent >= 0", name="left"),
    )

    allocation_id: Mapped[int] = mapped_column(ForeignKey("allocations.id"), primary_key=True)
    granted: Mapped[int] = mapped_column(default=0)
    reserved: Mapped[int] = mapped_column(default=0)
    spent: Mapped[int] = mapped_column(default=0)


@dataclass(frozen=True)
class Account:
    """A balance as people read it, in GPU-seconds."""

    granted: int
    reserved: int
    spent: int

    @property
    def left(self) -> int:
        """What can still be reserved."""
        return self.granted - self.reserved - self.spent


def grant(session: Session, allocation_id: int, seconds: int) -> None:
    """Open the account of an allocation with `seconds`."""
    session.add(Balance(allocation_id=allocation_id, granted=seconds))
    session.add(LedgerRow(allocation_id=allocation_id, movement=Movement.GRANT, seconds=seconds))
    session.flush()


def reserve(session: Session, allocation_id: int, run_id: int, token: int, seconds: int, period: int = 0) -> None:
    """Set `seconds` aside for an attempt, each period of it once; raises ConflictError where less is left."""
    _move(session, allocation_id, Movement.RESERVE, seconds, run_id, token, period, reserved=seconds)


def charge(session: Session, allocation_id: int, run_id: int, token: int, period: int, seconds: int) -> None:
    """Turn `seconds` of what an attempt has reserved into spent ones; each period of an attempt once."""
    _move(session, allocation_id, Movement.CHARGE, seconds, run_id, token, period, reserved=-seconds, spent=seconds)


def release(session: Session, allocation_id: int, run_id: int, token: int) -> None:
    """Give back what an attempt has reserved and not spent."""
    rest = outstanding(session, run_id, token)
    if rest:
        _move(session, allocation_id, Movement.RELEASE, rest, run_id, token, reserved=-rest)


def refund(session: Session, allocation_id: int, run_id: int, token: int, seconds: int, why: str) -> None:
    """Give back `seconds` that an attempt was charged for, once; raises ConflictError where it was charged less."""
    charged = totals(session, run_id=run_id, token=token)[Movement.CHARGE]
    if not why or seconds > charged:
        raise ConflictError(
            f"Attempt {token} of run {run_id} was charged {charged:,} GPU-seconds; refund at most that."
        )
    _move(session, allocation_id, Movement.REFUND, seconds, run_id, token, spent=-seconds)


def outstanding(session: Session, run_id: int, token: int) -> int:
    """GPU-seconds that an attempt has reserved and neither spent nor given back."""
    sums = totals(session, run_id=run_id, token=token)
    return sums[Movement.RESERVE] - sums[Movement.CHARGE] - sums[Movement.RELEASE]


def account(session: Session, allocation_id: int) -> Account:
    """The balance of an allocation; all zero before it was approved."""
    balance = session.get(Balance, allocation_id)
    return Account(0, 0, 0) if balance is None else Account(balance.granted, balance.reserved, balance.spent)


def totals(
    session: Session, *, allocation_id: int | None = None, run_id: int | None = None, token: int | None = None
) -> Mapping[Movement, int]:
    """The sum of each kind of movement, over an allocation, a run or one attempt of it."""
    query = select(LedgerRow.movement, func.sum(LedgerRow.seconds)).group_by(LedgerRow.movement)
    for column, wanted in (
        (LedgerRow.allocation_id, allocation_id),
        (LedgerRow.run_id, run_id),
        (LedgerRow.token, token),
    ):
        if wanted is not None:
            query = query.where(column == wanted)
    sums = {Movement(movement): int(seconds) for movement, seconds in session.execute(query)}
    return dict.fromkeys(Movement, 0) | sums


def _move(
    session: Session,
    allocation_id: int,
    movement: Movement,
    seconds: int,
    run_id: int,
    token: int,
    period: int = 0,
    *,
    reserved: int = 0,
    spent: int = 0,
) -> None:
    moved = session.execute(
        update(Balance)
        .where(
            Balance.allocation_id == allocation_id,
            Balance.reserved + reserved >= 0,
            Balance.granted - Balance.reserved - Balance.spent - reserved - spent >= 0,
        )
        .values(reserved=Balance.reserved + reserved, spent=Balance.spent + spent)
        .returning(Balance.allocation_id)
    ).one_or_none()
    if moved is None:
        left = account(session, allocation_id).left
        raise ConflictError(f"The allocation has {left:,} GPU-seconds left; {seconds:,} are needed.")
    session.add(
        LedgerRow(
            allocation_id=allocation_id, movement=movement, seconds=seconds, run_id=run_id, token=token, period=period
        )
    )
    session.flush()
