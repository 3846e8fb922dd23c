"""What the bot keeps: which messages and rooms on Discord stand for what, how far each stream is told, who sends."""

from datetime import datetime

from sqlmodel import Field

from projects.db.columns import Base, foreign_key, integer, timestamp, utcnow


class DiscordMessage(Base, table=True):
    """A message that the bot means to send once; while `message_id` is None the intent is open.

    `key` names what it stands for: `entry:12:channel`, `project:3`, `allocation:5`, `run:7`. `digest` and `picture`
    tell what a card shows now. `gone` means that a person has deleted it, which stands.
    """

    __tablename__ = "discord_messages"

    key: str = Field(primary_key=True)
    channel_id: str
    nonce: str
    intended_at: datetime = timestamp(default=utcnow)
    message_id: str | None = None
    digest: str = ""
    picture: str = ""
    gone: bool = False


class DiscordRoom(Base, table=True):
    """A channel or thread of a project: `proposal:3` and `run:7` are threads, `project:3` is its channel.

    `mark` stands in the topic of a channel, so that one made just before a crash is found again.
    """

    __tablename__ = "discord_rooms"

    key: str = Field(primary_key=True)
    project_id: int = foreign_key("projects.id", index=True)
    channel_id: str | None = Field(default=None, unique=True)
    mark: str = ""
    gone: bool = False


class DiscordCursor(Base, table=True):
    """The number of the last entry of a stream that has been posted everywhere it belongs."""

    __tablename__ = "discord_cursors"

    stream: str = Field(foreign_key="streams.key", primary_key=True)
    number: int = integer(default=0)


class DiscordLease(Base, table=True):
    """Which bot process may send to a server, and until when."""

    __tablename__ = "discord_leases"

    guild_id: str = Field(primary_key=True)
    holder: str
    until: datetime = timestamp()


class DiscordCommands(Base, table=True):
    """The digest of the commands that an application has last registered in a server."""

    __tablename__ = "discord_commands"

    application_id: str = Field(primary_key=True)
    guild_id: str = Field(primary_key=True)
    digest: str


class DiscordPlace(Base, table=True):
    """The channel, category or role that stands for something in a server, as its admins have chosen."""

    __tablename__ = "discord_places"

    guild_id: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    discord_id: str
