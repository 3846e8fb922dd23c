"""A project's channel and threads on Discord: each is created once, and found again after a crash."""

from typing import Final, Literal

import discord
import structlog

from bot import text
from bot.app import App
from bot.delivery import outbox
from bot.delivery.sender import DELETED, UNKNOWN_CHANNEL
from bot.rate_limit import once
from bot.tables import DiscordChannel
from projects.projects import ProjectView

CATEGORY = "Projects"
MOST_IN_CATEGORY = 50
DAY: Final = 1440
WEEK: Final = 10080
"""Minutes without a post after which Discord archives a thread: a server has at most 1,000 active ones."""
THREAD_EXISTS = 160004

log = structlog.get_logger()


class ProjectChannels:
    """The channel and the threads of one project, by their keys: `project:3`, `proposal:3`, `run:7`, `sweep:2`."""

    def __init__(self, app: App, project_id: int) -> None:
        self.app = app
        self.project_id = project_id

    async def find(self, key: str) -> tuple[str | None, bool]:
        """The id of a channel or thread, if it exists, and whether a person has deleted it."""
        row = (await self.app.read(outbox.channels_of, self.project_id)).get(key)
        return (None, False) if row is None else (None if row.gone else row.channel_id, row.gone)

    async def thread(self, key: str, channel_id: str, message_id: str, name: str) -> str | None:
        """The id of the thread under a message, opened if need be; None where a person has deleted either."""
        thread_id, gone = await self.find(key)
        if thread_id is not None or gone:
            return thread_id
        archive_after: Literal[1440, 10080] = WEEK if key.startswith(outbox.PROPOSAL) else DAY
        channel = self.app.get_partial_messageable(int(channel_id), guild_id=self.app.server.guild)
        message = channel.get_partial_message(int(message_id))
        try:
            await message.create_thread(name=text.bounded(name, 100), auto_archive_duration=archive_after)
        except discord.NotFound as error:
            if error.code not in DELETED or (error.code == UNKNOWN_CHANNEL and key.startswith(outbox.PROPOSAL)):
                raise
            await self.deleted(key)
            return None
        except discord.HTTPException as error:
            if error.code != THREAD_EXISTS:
                raise
        # A thread that was opened from a message has the message's id.
        url = _url(self.app.server.guild, message_id)
        await self.app.write(outbox.open_channel, key, self.project_id, message_id, url)
        return message_id

    async def channel(self, project: ProjectView) -> str | None:
        """The id of the project's own channel, created if need be; None where a person has deleted it."""
        key = f"project:{project.id}"
        row = (await self.app.read(outbox.channels_of, project.id)).get(key)
        if row is not None and (row.gone or row.channel_id is not None):
            return None if row.gone else row.channel_id
        guild = self.app.get_guild(self.app.server.guild) or await self.app.fetch_guild(self.app.server.guild)
        created: discord.abc.GuildChannel | None = None
        if row is None:
            row = await self.app.write(outbox.plan_channel, key, project.id)
        else:
            for channel in await guild.fetch_channels():
                if isinstance(channel, discord.TextChannel) and row.mark in (channel.topic or ""):
                    created = channel
        if created is None:
            chosen = self.app.server.projects_category
            category = discord.utils.get(guild.categories, **({"id": chosen} if chosen else {"name": CATEGORY}))
            if category is not None and len(category.channels) >= MOST_IN_CATEGORY:
                category = None
            with once():  # should Discord fail after creating the channel, the next try finds it by its mark
                topic = _topic(project, row.mark)
                created = await guild.create_text_channel(project.slug, topic=topic, category=category)
        await self.app.write(outbox.open_channel, key, project.id, str(created.id), _url(guild.id, created.id))
        return str(created.id)

    async def relabel(self, project: ProjectView) -> None:
        """Bring the name and topic of the project's channel, and the name of its proposal's thread, up to date."""
        rows = await self.app.read(outbox.channels_of, project.id)
        row = rows.get(f"project:{project.id}")
        channel = await self._fetch(row)
        if row is not None and isinstance(channel, discord.TextChannel):
            topic, shown = _topic(project, row.mark), channel.topic or ""
            if row.mark in shown and shown != topic:  # a topic without the mark is an admin's own, and stays
                await channel.edit(name=project.slug, topic=topic)
        thread, name = await self._fetch(rows.get(f"{outbox.PROPOSAL}{project.id}")), thread_name(project)
        if isinstance(thread, discord.Thread) and thread.name != name:
            try:
                await thread.edit(name=name, archived=False)
            except discord.Forbidden:
                if not thread.locked:
                    raise
                log.warning("a locked thread keeps a title that was blanked in the record", thread=thread.id)

    async def _fetch(self, row: DiscordChannel | None) -> object:
        """The channel or thread of a row, as Discord has it; None where there is none."""
        if row is None or row.gone or row.channel_id is None:
            return None
        try:
            return await self.app.fetch_channel(int(row.channel_id))
        except discord.NotFound as error:
            if error.code not in DELETED:
                raise
            return None

    async def deleted(self, key: str) -> None:
        """Note that a person has deleted a channel or thread: nothing is sent there any more."""
        log.warning("a person has deleted this channel or thread; nothing more is posted there", key=key)
        await self.app.write(outbox.channel_gone, key, self.project_id)


def _url(guild: int, channel: int | str) -> str:
    return f"https://discord.com/channels/{guild}/{channel}"


def thread_name(project: ProjectView) -> str:
    """The name of the thread under a proposal."""
    return text.bounded(f"P{project.id} · {project.title}", 100)


def _topic(project: ProjectView, mark: str) -> str:
    return f"{text.line(project.title, 200)}: {text.line(project.question, 700)} · P{project.id} ({mark})"
