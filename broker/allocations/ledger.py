"""The ledger: append-only movements of whole GPU-seconds on allocations and on the grants they draw on.

At every moment `granted = reserved + spent + left` for an allocation, and `seconds = drawn + committed + left` for a
grant, whose `drawn` and `committed` are the sums over its allocations. A movement and the balances that it changes are
written in one transaction, and the guard in each UPDATE keeps every part of a balance from falling below zero. A
transaction takes an allocation's balance before its grant, so that no two can deadlock.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cache

from sqlalchemy import BigInteger, CheckConstraint, UniqueConstraint, bindparam, func
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import ReturningUpdate
from sqlmodel import col, select

from broker.allocations.pools import GRANT_LEFT, Grant, GrantMovement, GrantRow
from broker.allocations.units import in_hours
from projects.db import transition
from projects.db.columns import Base, foreign_key, integer, row_id, timestamp, utcnow
from projects.errors import ConflictError, InvalidError


def too_much(needed: int, left: int) -> tuple[str, str]:
    """The GPU-seconds needed and the fewer left, both in GPU-hours, rounded so that the two never read alike."""
    return in_hours(-(-needed * 10 // 36) * 3.6), in_hours(left * 10 // 36 * 3.6)


class Movement(StrEnum):
    """The kinds of movement on an allocation; only an adjustment may be negative."""

    GRANT = "grant"
    RESERVE = "reserve"
    CHARGE = "charge"
    RELEASE = "release"
    REFUND = "refund"
    ADJUST = "adjust"


class LedgerRow(Base, table=True):
    """One movement on an allocation. `period` numbers an attempt's charges, so that none is written twice."""

    __tablename__ = "ledger"
    __table_args__ = (
        UniqueConstraint("run_id", "token", "movement", "period"),
        CheckConstraint("seconds > 0 OR (movement = 'adjust' AND seconds <> 0)", name="positive"),
    )

    id: int = row_id()
    allocation_id: int = foreign_key("allocations.id")
    movement: str
    seconds: int = integer()
    run_id: int | None = integer(default=None)
    token: int | None = integer(default=None)
    period: int = integer(default=0)
    at: datetime = timestamp(default=utcnow)
    why: str = ""


class Balance(Base, table=True):
    """The sums of an allocation's movements, in GPU-seconds. `committed` is a second half that is not granted yet."""

    __tablename__ = "balances"
    __table_args__ = (
        CheckConstraint("reserved >= 0", name="reserved"),
        CheckConstraint("spent >= 0", name="spent"),
        CheckConstraint("committed >= 0", name="committed"),
        CheckConstraint("granted - reserved - spent >= 0", name="left"),
    )

    allocation_id: int = foreign_key("allocations.id", primary_key=True)
    grant_id: int | None = foreign_key("grants.id", default=None)
    granted: int = integer(default=0)
    reserved: int = integer(default=0)
    spent: int = integer(default=0)
    committed: int = integer(default=0)


BALANCE_LEFT = col(Balance.granted) - Balance.reserved - Balance.spent
"""`Account.left` as a column of a query."""


@dataclass(frozen=True)
class Account:
    """A balance as people read it, in GPU-seconds."""

    granted: int
    reserved: int
    spent: int
    committed: int = 0

    @property
    def left(self) -> int:
        """GPU-seconds that can still be reserved."""
        return self.granted - self.reserved - self.spent


def grant(session: Session, allocation_id: int, grant_id: int, seconds: int, *, committed: int = 0) -> None:
    """Open an allocation's balance with `seconds` of a grant, and commit the grant to `committed` more.

    Raises ConflictError, with nothing written, if the grant has ended or has less left.
    """
    _draw(session, allocation_id, grant_id, seconds, committed)
    session.add(Balance(allocation_id=allocation_id, grant_id=grant_id, granted=seconds, committed=committed))
    session.add(LedgerRow(allocation_id=allocation_id, movement=Movement.GRANT, seconds=seconds))
    session.flush()


def top_up(session: Session, allocation_id: int, seconds: int, *, committed: int = 0) -> None:
    """Grant an allocation more out of its grant; raises ConflictError if the grant has less left."""
    grant_id = _locked(session, allocation_id)
    _move(session, allocation_id, Movement.GRANT, seconds, granted=seconds, committed=committed)
    _draw(session, allocation_id, grant_id, seconds, committed)


def release_half(session: Session, allocation_id: int) -> int:
    """Grant an allocation's committed second half; returns its GPU-seconds, 0 without one."""
    grant_id = _locked(session, allocation_id)
    seconds = account(session, allocation_id).committed
    if seconds:
        _move(session, allocation_id, Movement.GRANT, seconds, granted=seconds, committed=-seconds)
        _move_grant(session, grant_id, allocation_id, GrantMovement.FULFIL, seconds, drawn=seconds, committed=-seconds)
    return seconds


def lapse_half(session: Session, allocation_id: int) -> int:
    """Return an allocation's committed second half to the grant; returns its GPU-seconds, 0 without one."""
    grant_id = _locked(session, allocation_id)
    seconds = account(session, allocation_id).committed
    if seconds:
        _change(session, allocation_id, committed=-seconds)
        _move_grant(session, grant_id, allocation_id, GrantMovement.LAPSE, seconds, committed=-seconds)
    return seconds


def give_back(session: Session, allocation_id: int, why: str) -> int:
    """Return to the grant what an allocation has neither spent nor reserved; returns the GPU-seconds."""
    grant_id = _locked(session, allocation_id)
    seconds = account(session, allocation_id).left
    if seconds:
        _move(session, allocation_id, Movement.ADJUST, -seconds, granted=-seconds, why=why)
        _move_grant(session, grant_id, allocation_id, GrantMovement.RETURN, seconds, drawn=-seconds)
    return seconds


def adjust(session: Session, allocation_id: int, seconds: int, why: str) -> None:
    """An operator's correction of an allocation: `seconds` more out of the grant, or back to it if negative.

    Raises ConflictError if the giving side has less left.
    """
    if seconds == 0:
        raise InvalidError("An adjustment of 0 seconds changes nothing; give more or fewer.")
    grant_id = _locked(session, allocation_id)
    _move(session, allocation_id, Movement.ADJUST, seconds, granted=seconds, why=why)
    if seconds > 0:
        _draw(session, allocation_id, grant_id, seconds, 0)
    else:
        _move_grant(session, grant_id, allocation_id, GrantMovement.RETURN, -seconds, drawn=seconds)


def reserve(session: Session, allocation_id: int, run_id: int, token: int, seconds: int, period: int = 0) -> None:
    """Reserve `seconds` for an attempt, once a period; raises ConflictError if the allocation has less left."""
    _move(session, allocation_id, Movement.RESERVE, seconds, run_id, token, period, reserved=seconds)


def charge(session: Session, allocation_id: int, run_id: int, token: int, period: int, seconds: int) -> None:
    """Charge an attempt `seconds` of its reservation; raises ConflictError if it has fewer reserved."""
    _locked(session, allocation_id)
    held = outstanding(session, run_id, token)
    if seconds > held:
        raise ConflictError(f"The attempt has {held:,} s reserved; {seconds:,} cannot be charged.")
    _move(session, allocation_id, Movement.CHARGE, seconds, run_id, token, period, reserved=-seconds, spent=seconds)


def release(session: Session, allocation_id: int, run_id: int, token: int) -> None:
    """Release the rest of an attempt's reservation."""
    _locked(session, allocation_id)
    rest = outstanding(session, run_id, token)
    if rest:
        _move(session, allocation_id, Movement.RELEASE, rest, run_id, token, reserved=-rest)


def refund(session: Session, allocation_id: int, run_id: int, token: int, seconds: int, why: str) -> None:
    """Refund `seconds` of the charges of an attempt, at most once an attempt.

    Raises ConflictError if the attempt was refunded already or was charged less.
    """
    if seconds < 1:
        raise InvalidError("A refund gives at least one second back.")
    _locked(session, allocation_id)
    sums = totals(session, allocation_id=allocation_id, run_id=run_id, token=token)
    if sums[Movement.REFUND]:
        raise ConflictError(f"Attempt {token} of run {run_id} was already refunded.")
    if seconds > sums[Movement.CHARGE]:
        raise ConflictError(
            f"Attempt {token} of run {run_id} was charged {sums[Movement.CHARGE]:,} s; {seconds:,} cannot be refunded."
        )
    _move(session, allocation_id, Movement.REFUND, seconds, run_id, token, spent=-seconds, why=why)


def outstanding(session: Session, run_id: int, token: int) -> int:
    """GPU-seconds that an attempt has reserved and neither spent nor released."""
    sums = totals(session, run_id=run_id, token=token)
    return sums[Movement.RESERVE] - sums[Movement.CHARGE] - sums[Movement.RELEASE]


def account(session: Session, allocation_id: int) -> Account:
    """An allocation's balance; all zero before its approval."""
    return account_of(session.get(Balance, allocation_id, populate_existing=True))


def account_of(balance: Balance | None) -> Account:
    """A balance as people read it; all zero for None, the balance of an allocation before its approval."""
    if balance is None:
        return Account(0, 0, 0)
    return Account(balance.granted, balance.reserved, balance.spent, balance.committed)


def totals(
    session: Session, *, allocation_id: int | None = None, run_id: int | None = None, token: int | None = None
) -> Mapping[Movement, int]:
    """The sum of each kind of movement over an allocation, a run, or one attempt of a run, in GPU-seconds."""
    query = select(LedgerRow.movement, func.sum(col(LedgerRow.seconds))).group_by(col(LedgerRow.movement))
    for column, wanted in (
        (col(LedgerRow.allocation_id), allocation_id),
        (col(LedgerRow.run_id), run_id),
        (col(LedgerRow.token), token),
    ):
        if wanted is not None:
            query = query.where(column == wanted)
    sums = {Movement(movement): int(seconds) for movement, seconds in session.execute(query)}
    return dict.fromkeys(Movement, 0) | sums


def _locked(session: Session, allocation_id: int) -> int:
    """The id of the grant that an allocation draws on, with the balance locked, so that its sums stay true."""
    grant_id = session.scalars(
        select(col(Balance.grant_id)).where(Balance.allocation_id == allocation_id).with_for_update(key_share=True)
    ).one_or_none()
    if grant_id is None:
        raise ConflictError(f"Allocation {allocation_id} has no granted hours yet.")
    return grant_id


def _move(
    session: Session,
    allocation_id: int,
    movement: Movement,
    seconds: int,
    run_id: int | None = None,
    token: int | None = None,
    period: int = 0,
    *,
    granted: int = 0,
    reserved: int = 0,
    spent: int = 0,
    committed: int = 0,
    why: str = "",
) -> None:
    """Write a movement and the change of the balance that it makes; raises ConflictError if too little is left."""
    if not _change(session, allocation_id, granted, reserved, spent, committed):
        needed, left = too_much(abs(seconds), account(session, allocation_id).left)
        raise ConflictError(f"{needed} hours are needed; the allocation has {left} left.")
    session.add(
        LedgerRow(
            allocation_id=allocation_id,
            movement=movement,
            seconds=seconds,
            run_id=run_id,
            token=token,
            period=period,
            why=why,
        )
    )
    session.flush()


def _change(
    session: Session, allocation_id: int, granted: int = 0, reserved: int = 0, spent: int = 0, committed: int = 0
) -> bool:
    """Change an allocation's balance; returns False, with nothing written, if a part of it would fall below zero."""
    asked = {"allocation": allocation_id, "granting": granted, "reserving": reserved, "spending": spent}
    return transition.run(session, _changed(), asked | {"committing": committed}) is not None


@cache
def _changed() -> ReturningUpdate[Balance]:
    """The change of a balance; made once, as that takes longer than writing."""
    more = {name: bindparam(name, type_=BigInteger) for name in ("granting", "reserving", "spending", "committing")}
    return transition.guarded(
        Balance,
        col(Balance.allocation_id) == bindparam("allocation"),
        col(Balance.reserved) + more["reserving"] >= 0,
        col(Balance.spent) + more["spending"] >= 0,
        col(Balance.committed) + more["committing"] >= 0,
        BALANCE_LEFT + (more["granting"] - more["reserving"] - more["spending"]) >= 0,
        granted=Balance.granted + more["granting"],
        reserved=Balance.reserved + more["reserving"],
        spent=Balance.spent + more["spending"],
        committed=Balance.committed + more["committing"],
    )


def _draw(session: Session, allocation_id: int, grant_id: int, seconds: int, committed: int) -> None:
    """Draw `seconds` of a running grant for an allocation and commit more to it; raises ConflictError."""
    running = select(Grant.id).where(Grant.id == grant_id, Grant.until > utcnow()).exists()
    if not session.scalar(select(running)):
        raise ConflictError("The sponsor's grant has ended; no more of it can be granted.")
    _change_grant(session, grant_id, drawn=seconds, committed=committed)
    for movement, amount in ((GrantMovement.DRAW, seconds), (GrantMovement.COMMIT, committed)):
        if amount:
            session.add(GrantRow(grant_id=grant_id, allocation_id=allocation_id, movement=movement, seconds=amount))
    session.flush()


def _move_grant(
    session: Session,
    grant_id: int,
    allocation_id: int,
    movement: GrantMovement,
    seconds: int,
    *,
    drawn: int = 0,
    committed: int = 0,
) -> None:
    _change_grant(session, grant_id, drawn=drawn, committed=committed)
    session.add(GrantRow(grant_id=grant_id, allocation_id=allocation_id, movement=movement, seconds=seconds))
    session.flush()


def _change_grant(session: Session, grant_id: int, *, drawn: int = 0, committed: int = 0) -> None:
    """Change a grant's balance; raises ConflictError if a part of it would fall below zero."""
    changed = transition.write_where(
        session,
        Grant,
        col(Grant.id) == grant_id,
        col(Grant.drawn) + drawn >= 0,
        col(Grant.committed) + committed >= 0,
        GRANT_LEFT - (drawn + committed) >= 0,
        drawn=Grant.drawn + drawn,
        committed=Grant.committed + committed,
    )
    if changed is None:
        free = session.scalar(select(GRANT_LEFT).where(Grant.id == grant_id)) or 0
        needed, left = too_much(drawn + committed, free)
        raise ConflictError(f"{needed} hours are needed; the sponsor's grant has {left} left.")
