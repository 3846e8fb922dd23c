"""Whom the post of an entry mentions: the one person whom the entry concerns, while they are in the server."""

from collections.abc import Sequence

import discord

from bot.app import App
from bot.mention import Mention
from broker.reports import concerned
from projects.record.record import EntryView


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


async def _is_here(app: App, discord_id: int) -> bool:
    """Whether somebody is a member of the server; Discord is asked, as the bot is not told of all members."""
    guild = app.get_guild(app.server.guild)
    if guild is None:
        return False
    try:
        await guild.fetch_member(discord_id)
    except discord.NotFound:
        return False
    return True
