"""The tables of the bot: its messages and channels on Discord, how far each stream is posted, who may send, and
forms to be mended."""

from datetime import datetime
from typing import Any

from sqlmodel import Field

from projects.db.columns import Base, foreign_key, integer, json_object, row_id, timestamp, utcnow


class DiscordMessage(Base, table=True):
    """A message that the bot sends once; while `message_id` is None, the intent to send it is open.

    `key` says what it shows: the post `entry:12:channel`, the post `entries:project:3:4-9:channel` that the entries 4
    to 9 share, the index `checkpoints:project:3:run:7:12` of a run's checkpoints from entry 12 on, the card
    `project:3`, `allocation:5`, `change:4`, `run:7` or `sweep:2`, or the welcome `welcome:project:3` or
    `welcome:proposals`. The row `pin:welcome:proposals` says that the message was pinned.
    `mentions` is the Discord id of the person that a post pings. `digest` and `picture` tell what a card shows now.
    `gone` means that a person has deleted the message, so that it is not sent again.
    """

    __tablename__ = "discord_messages"

    key: str = Field(primary_key=True)
    channel_id: str
    nonce: str
    intended_at: datetime = timestamp(default=utcnow)
    message_id: str | None = None
    mentions: str | None = Field(default=None, index=True)
    digest: str = ""
    picture: str = ""
    gone: bool = False


class DiscordChannel(Base, table=True):
    """A channel or thread of a project: `project:3` is its channel; `proposal:3`, `run:7` and `sweep:2` are threads.

    `mark` is in the topic of the channel, by which it is found again if a crash follows its creation. `gone` means
    that a person has deleted the channel or thread, so that nothing is posted there any more.
    """

    __tablename__ = "discord_rooms"

    key: str = Field(primary_key=True)
    project_id: int = foreign_key("projects.id", index=True)
    channel_id: str | None = Field(default=None, unique=True)
    mark: str = ""
    gone: bool = False


class DiscordCursor(Base, table=True):
    """The number of the last entry of a stream that was posted in all of its channels."""

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
    """The digest of the commands that an application last registered in a server."""

    __tablename__ = "discord_commands"

    application_id: str = Field(primary_key=True)
    guild_id: str = Field(primary_key=True)
    digest: str


class DiscordPurpose(Base, table=True):
    """The channel, category or role that a server's admins have chosen for a purpose, such as `proposals`."""

    __tablename__ = "discord_places"

    guild_id: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    discord_id: str


class DiscordRole(Base, table=True):
    """The role of a project that its news mention.

    It is deleted at `ends_at`, once the project has ended. `gone`: it was deleted, and none is made again.
    """

    __tablename__ = "discord_roles"

    project_id: int = foreign_key("projects.id", primary_key=True)
    role_id: str
    ends_at: datetime | None = timestamp(default=None)
    gone: bool = False


class DiscordRoleHolder(Base, table=True):
    """Somebody, by their Discord id, who has been given the role of a project by the bot."""

    __tablename__ = "discord_role_holders"

    project_id: int = foreign_key("discord_roles.project_id", primary_key=True)
    discord_id: str = Field(primary_key=True)


class DiscordForm(Base, table=True):
    """A form that was refused, as `bot.kept_forms` encodes it, and the Discord id of the person who filled it in.

    It is deleted a day after `at`.
    """

    __tablename__ = "discord_forms"

    id: int = row_id()
    discord_id: str
    form: dict[str, Any] = json_object()
    at: datetime = timestamp(default=utcnow)
