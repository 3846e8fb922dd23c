"""A project's channel and threads, each made once."""

from typing import Final, Literal

import discord
import structlog

from bot import text
from bot.app import App
from bot.delivery import outbox
from bot.delivery.sender import DELETED, UNKNOWN_CHANNEL
from bot.rate_limit import once
from bot.tables import DiscordRoom
from projects.projects import ProjectView

CATEGORY = "Projects"
MOST_IN_CATEGORY = 50
DAY: Final = 1440
WEEK: Final = 10080
"""Minutes without a post after which Discord puts a thread away, until the next one: a server has 1,000 in use."""
THREAD_EXISTS = 160004

log = structlog.get_logger()


class Rooms:
    """Makes the rooms of one project, or finds them."""

    def __init__(self, app: App, project_id: int) -> None:
        self.app = app
        self.project_id = project_id

    async def find(self, key: str) -> tuple[str | None, bool]:
        """The room's id, if it stands, and whether a person has deleted it."""
        rooms = await self.app.read(outbox.rooms, self.project_id)
        room = rooms.get(key)
        return (None, False) if room is None else (None if room.gone else room.channel_id, room.gone)

    async def thread(self, key: str, channel_id: str, message_id: str, name: str) -> str | None:
        """The thread that hangs on a message; None where a person has deleted the message first."""
        thread_id, gone = await self.find(key)
        if thread_id is not None or gone:
            return thread_id
        quiet: Literal[1440, 10080] = WEEK if key.startswith(outbox.PROPOSAL) else DAY
        channel = self.app.get_partial_messageable(int(channel_id), guild_id=self.app.server.guild)
        message = channel.get_partial_message(int(message_id))
        try:
            await message.create_thread(name=text.bounded(name, 100), auto_archive_duration=quiet)
        except discord.NotFound as error:
            if error.code not in DELETED or (error.code == UNKNOWN_CHANNEL and key.startswith(outbox.PROPOSAL)):
                raise
            await self.gone(key)
            return None
        except discord.HTTPException as error:
            if error.code != THREAD_EXISTS:
                raise
        # A thread made from a message has the message's id.
        await self.app.write(outbox.open_room, key, self.project_id, message_id)
        return message_id

    async def channel(self, project: ProjectView) -> str | None:
        """The project's public channel; None where a person has deleted it."""
        key = f"project:{project.id}"
        rooms = await self.app.read(outbox.rooms, project.id)
        room = rooms.get(key)
        if room is not None and (room.gone or room.channel_id is not None):
            return None if room.gone else room.channel_id
        guild = self.app.get_guild(self.app.server.guild) or await self.app.fetch_guild(self.app.server.guild)
        made: discord.abc.GuildChannel | None = None
        if room is None:
            room = await self.app.write(outbox.plan_room, key, project.id)
        else:
            for channel in await guild.fetch_channels():
                if isinstance(channel, discord.TextChannel) and room.mark in (channel.topic or ""):
                    made = channel
        if made is None:
            chosen = self.app.server.projects_category
            category = discord.utils.get(guild.categories, **({"id": chosen} if chosen else {"name": CATEGORY}))
            if category is not None and len(category.channels) >= MOST_IN_CATEGORY:
                category = None
            with once():  # by its mark it is found, if it was made
                topic = _topic(project, room.mark)
                made = await guild.create_text_channel(project.slug, topic=topic, category=category)
        await self.app.write(outbox.open_room, key, project.id, str(made.id))
        return str(made.id)

    async def relabel(self, project: ProjectView) -> None:
        """Bring the names of the project's channel and of its thread, and the topic, to the present state."""
        rooms = await self.app.read(outbox.rooms, project.id)
        room = rooms.get(f"project:{project.id}")
        channel = await self._fetch(room)
        if room is not None and isinstance(channel, discord.TextChannel):
            topic, shown = _topic(project, room.mark), channel.topic or ""
            if room.mark in shown and shown != topic:  # what an admin has put in its place stays
                await channel.edit(name=project.slug, topic=topic)
        thread, name = await self._fetch(rooms.get(f"{outbox.PROPOSAL}{project.id}")), thread_name(project)
        if isinstance(thread, discord.Thread) and thread.name != name:
            try:
                await thread.edit(name=name, archived=False)
            except discord.Forbidden:
                if not thread.locked:
                    raise
                log.warning("a locked thread keeps a name that was taken out of the record", thread=thread.id)

    async def _fetch(self, room: DiscordRoom | None) -> object:
        """The channel or thread that a room is, as Discord has it; None where there is none."""
        if room is None or room.gone or room.channel_id is None:
            return None
        try:
            return await self.app.fetch_channel(int(room.channel_id))
        except discord.NotFound as error:
            if error.code not in DELETED:
                raise
            return None

    async def gone(self, key: str) -> None:
        """Note that a person has deleted a room: nothing is sent there any more."""
        log.warning("a person has deleted this channel or thread; nothing more is posted there", key=key)
        await self.app.write(outbox.room_gone, key, self.project_id)


def thread_name(project: ProjectView) -> str:
    """What the thread under a proposal is called."""
    return text.bounded(f"P{project.id} · {project.title}", 100)


def _topic(project: ProjectView, mark: str) -> str:
    return f"{text.line(project.title, 200)}: {text.line(project.question, 700)} · P{project.id} ({mark})"
