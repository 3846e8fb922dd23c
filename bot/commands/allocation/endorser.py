"""The roles of the reviewer who has endorsed a request, asked of Discord before the second reviewer decides.

Without privileged intents the bot is not told when a member loses a role or leaves, so it asks at that moment.
"""

from collections.abc import Callable

import discord
from sqlalchemy.orm import Session

from bot.app import Interaction
from broker.allocations.endorsements import RolesNow


async def roles_now(
    interaction: Interaction, endorser_of: Callable[[Session, int], str | None], number: int
) -> RolesNow:
    """The lab roles of the endorser of the request or change with this number; empty where nobody has endorsed it."""
    app = interaction.client
    endorser = await app.read(endorser_of, number)
    if endorser is None or interaction.guild is None:
        return {}
    try:
        member = await interaction.guild.fetch_member(int(endorser))
    except discord.NotFound:  # they have left the server
        return {endorser: frozenset()}
    return {endorser: app.server.lab_roles(role.id for role in member.roles)}
