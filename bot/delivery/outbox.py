"""What the delivery keeps in the database: sent and intended messages, channels and threads, and cursors.

A message's row is committed as an intent before the message is sent, and completed with Discord's id afterwards.
"""

import secrets
from collections.abc import Mapping, Sequence

from sqlalchemy import String, cast, delete, literal, or_
from sqlalchemy.orm import Session
from sqlmodel import col, select

from bot.delivery.posts import Destination
from bot.tables import DiscordChannel, DiscordCursor, DiscordMessage
from broker.reports import entry_units
from broker.runs import runs
from projects import moderation, projects
from projects.db.columns import utcnow
from projects.record import record
from projects.record.record import Entry, EntryView, Payload, Stream

TOMBSTONE = "tombstone"
"""The digest of a post which says that its entry was blanked."""

PROPOSAL = "proposal:"
"""What the keys of the threads under proposals begin with."""


def message(session: Session, key: str) -> DiscordMessage | None:
    """The row of a message; None where nobody has ever intended to send it."""
    return session.get(DiscordMessage, key)


def intend(session: Session, key: str, channel_id: str, mentions: str | None = None) -> DiscordMessage:
    """Note that a message is about to be sent, with the nonce by which Discord recognises a repeat."""
    nonce = secrets.token_hex(12)
    row = DiscordMessage(key=key, channel_id=channel_id, nonce=nonce, intended_at=utcnow(), mentions=mentions)
    session.add(row)
    return row


def intend_again(session: Session, key: str) -> DiscordMessage:
    """Give an open intent a new nonce and time, once it is certain that its message was not sent."""
    row = session.get_one(DiscordMessage, key)
    row.nonce, row.intended_at = secrets.token_hex(12), utcnow()
    return row


def sent(session: Session, key: str, message_id: str, digest: str = "", picture: str = "") -> None:
    """Complete an intent with the message's id, or note what a card shows after an edit."""
    row = session.get_one(DiscordMessage, key)
    row.message_id, row.digest, row.picture = message_id, digest, picture


def unblanked_posts(session: Session, stream: str) -> Sequence[tuple[EntryView, DiscordMessage]]:
    """The blanked entries of a stream, each with a post that may still show what it said."""
    prefix = literal("entry:") + cast(col(Entry.id), String)
    is_post = or_(*(col(DiscordMessage.key) == prefix + f":{destination}" for destination in Destination))
    shows = (
        col(DiscordMessage.message_id).is_not(None)
        & ~col(DiscordMessage.gone)
        & (col(DiscordMessage.digest) != TOMBSTONE)
    )
    rows = session.execute(
        select(Entry, DiscordMessage)
        .join(Payload, col(Payload.entry_id) == Entry.id)
        .join(DiscordMessage, is_post)
        .where(Entry.stream == stream, col(Payload.body).is_(None), shows)
        .order_by(col(Entry.number), col(DiscordMessage.key))
    )
    return [(EntryView(entry.id, stream, entry.number, entry.kind, entry.hash, None), row) for entry, row in rows]


def pin_of(key: str) -> str:
    """The key of the row that says that a message was pinned."""
    return f"pin:{key}"


def pinned(session: Session, row: DiscordMessage) -> None:
    """Note that a message was pinned."""
    note = DiscordMessage(key=pin_of(row.key), channel_id=row.channel_id, nonce="", message_id=row.message_id)
    session.merge(note)


def message_gone(session: Session, key: str) -> None:
    """Note that a person has deleted a message or its channel: the message is not sent again."""
    row = session.get(DiscordMessage, key)
    if row is not None:
        row.gone = True


def forget(session: Session, key: str, thread: str = "") -> None:
    """Delete the rows of a message, of the thread under it and of the live cards there, so that new ones are made."""
    session.execute(delete(DiscordMessage).where(col(DiscordMessage.key).in_([key, pin_of(key)])))
    row = session.get(DiscordChannel, thread)
    if row is not None:
        live = col(DiscordMessage.key).startswith("run:") | col(DiscordMessage.key).startswith("sweep:")
        session.execute(delete(DiscordMessage).where(live, col(DiscordMessage.channel_id) == row.channel_id))
        session.delete(row)


def channels_of(session: Session, project_id: int) -> Mapping[str, DiscordChannel]:
    """The project's channel and threads, by their keys."""
    rows = session.scalars(select(DiscordChannel).where(DiscordChannel.project_id == project_id))
    return {row.key: row for row in rows}


def project_of_channel(session: Session, channel_ids: Sequence[int]) -> int | None:
    """The project that one of these channels or threads belongs to."""
    wanted = [str(channel_id) for channel_id in channel_ids]
    return session.scalars(
        select(DiscordChannel.project_id).where(col(DiscordChannel.channel_id).in_(wanted)).limit(1)
    ).first()


def run_of_thread(session: Session, thread_id: str) -> int | None:
    """The run whose card has this thread."""
    key = key_of_channel(session, thread_id) or ""
    return int(key.removeprefix("run:")) if key.startswith("run:") else None


def sweep_of_thread(session: Session, thread_id: str) -> int | None:
    """The sweep whose card has this thread."""
    key = key_of_channel(session, thread_id) or ""
    return int(key.removeprefix("sweep:")) if key.startswith("sweep:") else None


def key_of_channel(session: Session, channel_id: str) -> str | None:
    """The key of a channel or thread, if it belongs to a project."""
    return session.scalars(select(DiscordChannel.key).where(DiscordChannel.channel_id == channel_id)).one_or_none()


def plan_channel(session: Session, key: str, project_id: int) -> DiscordChannel:
    """Note that a channel is about to be created, with the mark in its topic by which it is found again."""
    row = DiscordChannel(key=key, project_id=project_id, mark=f"stoa-{secrets.token_hex(6)}")
    session.add(row)
    return row


def open_channel(session: Session, key: str, project_id: int, channel_id: str, url: str = "") -> None:
    """Note a channel or thread that was created, and its address, which the model cards of a project's runs link."""
    _link(session, key, project_id, url)
    row = session.get(DiscordChannel, key)
    if row is None:
        row = DiscordChannel(key=key, project_id=project_id, mark="")
        session.add(row)
    row.channel_id = channel_id


def _link(session: Session, key: str, project_id: int, url: str) -> None:
    """Have the model cards of a project's runs link its channel, or those of a run its thread, at this address."""
    if key == f"project:{project_id}":
        projects.lock(session, project_id).channel_url = url
    elif key.startswith("run:"):
        runs.load(session, int(key.removeprefix("run:"))).thread_url = url


def channel_gone(session: Session, key: str, project_id: int) -> None:
    """Note that a person has deleted a channel or thread, or the message under which a thread would be opened.

    The deletion of a project's own channel is entered in the record.
    """
    _link(session, key, project_id, "")
    row = session.get(DiscordChannel, key)
    if key == f"project:{project_id}" and (row is None or not row.gone):
        moderation.channel_deleted(session, project_id)
    if row is None:
        row = DiscordChannel(key=key, project_id=project_id, mark="")
        session.add(row)
    row.gone = True


def unposted(session: Session, stream: str, limit: int = 50) -> Sequence[EntryView]:
    """The next entries of a stream that have not been posted yet, the oldest first, with their units."""
    row = session.get(DiscordCursor, stream)
    return entry_units.noted(session, record.since(session, stream, 0 if row is None else row.number, limit))


def cursors(session: Session) -> Mapping[str, int]:
    """The number of the last posted entry of each stream."""
    return {row.stream: row.number for row in session.scalars(select(DiscordCursor))}


def streams_behind(session: Session) -> Sequence[str]:
    """The streams with entries that have not been posted yet."""
    behind = or_(col(DiscordCursor.number).is_(None), col(DiscordCursor.number) < Stream.head)
    query = select(Stream.key).outerjoin(DiscordCursor, col(DiscordCursor.stream) == Stream.key)
    return session.scalars(query.where(Stream.head > 0, behind).order_by(col(Stream.key))).all()


def posted(session: Session, entry: EntryView) -> None:
    """Note that an entry was posted: move the cursor of its stream to it."""
    row = session.get(DiscordCursor, entry.stream)
    if row is None:
        row = DiscordCursor(stream=entry.stream)
        session.add(row)
    row.number = entry.number
