"""What the bot keeps: which messages and rooms on Discord stand for what, how far each stream is told, who sends."""

from datetime import datetime

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from projects.db.database import Base, utcnow


class DiscordMessage(Base):
    """A message that the bot means to send once; while `message_id` is None the intent is open.

    `key` names what it stands for: `entry:12:channel`, `project:3`, `allocation:5`, `run:7`. `digest` and `picture`
    tell what a card shows now. `gone` means that a person has deleted it, which stands.
    """

    __tablename__ = "discord_messages"

    key: Mapped[str] = mapped_column(primary_key=True)
    channel_id: Mapped[str]
    nonce: Mapped[str]
    intended_at: Mapped[datetime] = mapped_column(default=utcnow)
    message_id: Mapped[str | None]
    digest: Mapped[str] = mapped_column(default="")
    picture: Mapped[str] = mapped_column(default="")
    gone: Mapped[bool] = mapped_column(default=False)


class DiscordRoom(Base):
    """A channel or thread of a project: `proposal:3` and `run:7` are threads, `project:3` is its channel.

    `mark` stands in the topic of a channel, so that one made just before a crash is found again.
    """

    __tablename__ = "discord_rooms"

    key: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"), index=True)
    channel_id: Mapped[str | None] = mapped_column(unique=True)
    mark: Mapped[str] = mapped_column(default="")
    gone: Mapped[bool] = mapped_column(default=False)


class DiscordCursor(Base):
    """The number of the last entry of a stream that has been posted everywhere it belongs."""

    __tablename__ = "discord_cursors"

    stream: Mapped[str] = mapped_column(ForeignKey("streams.key"), primary_key=True)
    number: Mapped[int] = mapped_column(default=0)


class DiscordLease(Base):
    """Which bot process may send to a server, and until when."""

    __tablename__ = "discord_leases"

    guild_id: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[str]
    until: Mapped[datetime]


class DiscordCommands(Base):
    """The digest of the commands that an application has last registered in a server."""

    __tablename__ = "discord_commands"

    application_id: Mapped[str] = mapped_column(primary_key=True)
    guild_id: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str]


class DiscordPlace(Base):
    """The channel, category or role that stands for something in a server, as its admins have chosen."""

    __tablename__ = "discord_places"

    guild_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    discord_id: Mapped[str]
