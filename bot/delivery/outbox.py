"""What the delivery keeps in the database: intents before a message is sent, its id after, rooms, and cursors."""

import secrets
from collections.abc import Mapping, Sequence

from sqlalchemy import String, cast, delete, literal, or_
from sqlalchemy.orm import Session
from sqlmodel import col, select

from bot.delivery.posts import Place
from bot.tables import DiscordCursor, DiscordMessage, DiscordRoom
from projects import moderation
from projects.db.columns import utcnow
from projects.record import record
from projects.record.record import Entry, Payload, Stream, Told

TOMBSTONE = "tombstone"
"""The digest of a post that shows that its entry was blanked."""

PROPOSAL = "proposal:"


def message(session: Session, key: str) -> DiscordMessage | None:
    """What is known of a message, if it was ever meant to be sent."""
    return session.get(DiscordMessage, key)


def intend(session: Session, key: str, channel_id: str) -> DiscordMessage:
    """Note that a message is about to be sent, with the nonce by which Discord knows a repeat."""
    row = DiscordMessage(key=key, channel_id=channel_id, nonce=secrets.token_hex(12), intended_at=utcnow())
    session.add(row)
    return row


def intend_again(session: Session, key: str) -> DiscordMessage:
    """Begin an open intent anew, once it is certain that its message was not sent."""
    row = session.get_one(DiscordMessage, key)
    row.nonce, row.intended_at = secrets.token_hex(12), utcnow()
    return row


def sent(session: Session, key: str, message_id: str, digest: str = "", picture: str = "") -> None:
    """Close an intent, or note what a card shows after an edit."""
    row = session.get_one(DiscordMessage, key)
    row.message_id, row.digest, row.picture = message_id, digest, picture


def readable(session: Session, stream: str) -> Sequence[tuple[Told, DiscordMessage]]:
    """The entries of a stream that were blanked, each with a post that does not show it yet."""
    begins = literal("entry:") + cast(col(Entry.id), String)
    tells = or_(*(col(DiscordMessage.key) == begins + f":{place}" for place in Place))
    shows = (
        col(DiscordMessage.message_id).is_not(None)
        & ~col(DiscordMessage.gone)
        & (col(DiscordMessage.digest) != TOMBSTONE)
    )
    rows = session.execute(
        select(Entry, DiscordMessage)
        .join(Payload, col(Payload.entry_id) == Entry.id)
        .join(DiscordMessage, tells)
        .where(Entry.stream == stream, col(Payload.body).is_(None), shows)
        .order_by(col(Entry.number), col(DiscordMessage.key))
    )
    return [(Told(entry.id, stream, entry.number, entry.kind, entry.hash, None), row) for entry, row in rows]


def message_gone(session: Session, key: str) -> None:
    """Note that a person has deleted the message or its channel: it is not sent again."""
    row = session.get(DiscordMessage, key)
    if row is not None:
        row.gone = True


def forget(session: Session, key: str, room: str = "") -> None:
    """Let a message, the room that hangs on it and the runs' cards there stand for nothing, so that others follow."""
    session.execute(delete(DiscordMessage).where(col(DiscordMessage.key) == key))
    stood = session.get(DiscordRoom, room)
    if stood is not None:
        cards = col(DiscordMessage.key).startswith("run:") & (col(DiscordMessage.channel_id) == stood.channel_id)
        session.execute(delete(DiscordMessage).where(cards))
        session.delete(stood)


def rooms(session: Session, project_id: int) -> Mapping[str, DiscordRoom]:
    """The project's channel and threads by their keys."""
    rows = session.scalars(select(DiscordRoom).where(DiscordRoom.project_id == project_id))
    return {row.key: row for row in rows}


def project_in(session: Session, channel_ids: Sequence[int]) -> int | None:
    """The project that one of these channels or threads belongs to."""
    wanted = [str(channel_id) for channel_id in channel_ids]
    return session.scalars(
        select(DiscordRoom.project_id).where(col(DiscordRoom.channel_id).in_(wanted)).limit(1)
    ).first()


def room_in(session: Session, channel_id: str) -> str | None:
    """The key of the room that a channel or thread is, if it is one of a project."""
    return session.scalars(select(DiscordRoom.key).where(DiscordRoom.channel_id == channel_id)).one_or_none()


def plan_room(session: Session, key: str, project_id: int) -> DiscordRoom:
    """Note that a channel is about to be made, with the mark by which it is found again."""
    row = DiscordRoom(key=key, project_id=project_id, mark=f"stoa-{secrets.token_hex(6)}")
    session.add(row)
    return row


def open_room(session: Session, key: str, project_id: int, channel_id: str) -> None:
    """Note a channel or thread that stands."""
    row = session.get(DiscordRoom, key)
    if row is None:
        row = DiscordRoom(key=key, project_id=project_id, mark="")
        session.add(row)
    row.channel_id = channel_id


def room_gone(session: Session, key: str, project_id: int) -> None:
    """Note that a person has deleted a channel or thread, or what it would hang on; a channel's end is recorded."""
    row = session.get(DiscordRoom, key)
    if key == f"project:{project_id}" and (row is None or not row.gone):
        moderation.channel_deleted(session, project_id)
    if row is None:
        row = DiscordRoom(key=key, project_id=project_id, mark="")
        session.add(row)
    row.gone = True


def untold(session: Session, stream: str, limit: int = 50) -> Sequence[Told]:
    """The next entries of a stream that have not been posted."""
    row = session.get(DiscordCursor, stream)
    return record.since(session, stream, 0 if row is None else row.number, limit)


def cursors(session: Session) -> Mapping[str, int]:
    """How far each stream has been posted."""
    return {row.stream: row.number for row in session.scalars(select(DiscordCursor))}


def due(session: Session) -> Sequence[str]:
    """The streams with entries that have not been posted."""
    behind = or_(col(DiscordCursor.number).is_(None), col(DiscordCursor.number) < Stream.head)
    query = select(Stream.key).outerjoin(DiscordCursor, col(DiscordCursor.stream) == Stream.key)
    return session.scalars(query.where(Stream.head > 0, behind).order_by(col(Stream.key))).all()


def told(session: Session, entry: Told) -> None:
    """Move the cursor of the entry's stream behind it."""
    row = session.get(DiscordCursor, entry.stream)
    if row is None:
        row = DiscordCursor(stream=entry.stream)
        session.add(row)
    row.number = entry.number
