"""The mention in an entry's posts: the person it concerns, while they are in the server, or the project's followers."""

from collections.abc import Sequence

import discord
import structlog

from bot.app import App
from bot.delivery import follower_roles
from bot.mention import Mention
from broker.reports import concerned
from projects.record.record import EntryView

log = structlog.get_logger()


async def of(app: App, entries: Sequence[EntryView]) -> Mention | None:
    """The mention in a post of these entries. Where several share it, it is of the first person concerned."""
    asked: set[int] = set()
    for entry in entries:
        who = await app.read(concerned.person, entry) if entry.kind in concerned.WHOSE else None
        if who is None or who in asked:
            continue
        if await _is_here(app, who):
            return Mention(who)
        asked.add(who)
    return None


async def of_followers(app: App, entries: Sequence[EntryView]) -> Mention | None:
    """The mention of the project's followers, where an entry is news for them; entries that share a post are none."""
    entry = entries[0]
    if entry.kind not in concerned.NEWS or entry.project_id is None or not await app.read(concerned.is_news, entry):
        return None
    return await follower_roles.mention(app, entry.project_id)


async def _is_here(app: App, discord_id: int) -> bool:
    """Whether somebody is a member of the server; Discord is asked, as the bot is not told of all members.

    A post does not wait for its mention: where Discord refuses to say, they count as away.
    """
    guild = app.get_guild(app.server.guild)
    if guild is None:
        return False
    try:
        await guild.fetch_member(discord_id)
    except discord.HTTPException as error:
        if not isinstance(error, discord.NotFound):
            log.warning("a post mentions nobody, as Discord does not say who is in the server", reason=str(error))
        return False
    return True
