"""The lease of the one sender a server has: a second bot process waits until it is let go or runs out."""

from datetime import timedelta

from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlmodel import col

from bot.tables import DiscordLease
from projects.db import transition
from projects.db.columns import utcnow


class LostLeaseError(Exception):
    """Another process sends to this server now."""


def hold(session: Session, guild_id: str, holder: str, seconds: float) -> bool:
    """Take or renew the lease; False where another process holds it."""
    until = utcnow() + timedelta(seconds=seconds)
    own = (col(DiscordLease.holder) == holder) | (col(DiscordLease.until) < utcnow())
    free = (col(DiscordLease.guild_id) == guild_id, own)
    if transition.write_where(session, DiscordLease, *free, holder=holder, until=until) is not None:
        return True
    if session.get(DiscordLease, guild_id) is not None:
        return False
    try:
        with session.begin_nested():
            session.add(DiscordLease(guild_id=guild_id, holder=holder, until=until))
    except IntegrityError:  # another process was first by a moment
        return False
    return True


def require(session: Session, guild_id: str, holder: str) -> None:
    """Raise LostLeaseError unless the holder's lease still runs."""
    lease = session.get(DiscordLease, guild_id)
    if lease is None or lease.holder != holder or lease.until < utcnow():
        raise LostLeaseError


def let_go(session: Session, guild_id: str, holder: str) -> None:
    """Give the lease back, so that the next process need not wait."""
    session.execute(
        delete(DiscordLease).where(col(DiscordLease.guild_id) == guild_id, col(DiscordLease.holder) == holder)
    )
