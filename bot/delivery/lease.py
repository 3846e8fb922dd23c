"""The lease that lets one bot process at a time send to a server; a second process waits until the lease is free."""

from datetime import timedelta

from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlmodel import col

from bot.tables import DiscordLease
from projects.db import transition
from projects.db.columns import utcnow


class LostLeaseError(Exception):
    """The lease has passed to another process, which now sends to this server."""


def hold(session: Session, guild_id: str, holder: str, seconds: float) -> bool:
    """Take or renew the lease for `seconds` from now; False where another process holds it."""
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
    """Raise LostLeaseError unless `holder` holds a lease that has not run out."""
    lease = session.get(DiscordLease, guild_id)
    if lease is None or lease.holder != holder or lease.until < utcnow():
        raise LostLeaseError


def release(session: Session, guild_id: str, holder: str) -> None:
    """Give the lease back, so that the next process need not wait until it runs out."""
    session.execute(
        delete(DiscordLease).where(col(DiscordLease.guild_id) == guild_id, col(DiscordLease.holder) == holder)
    )
