"""`/admin …`: ban and unban people, blank entries of the record; who may is decided in the domain."""

import discord
from discord import app_commands

from bot import errors, lookup
from bot.app import Interaction, actor
from projects import limits, record, redaction
from projects.people import Actor

admin = app_commands.Group(name="admin", description="What only the admins of the lab may do")

WHY = "The reason, which everyone can read"


@admin.command(name="ban", description="Let somebody do nothing but read")
@app_commands.describe(person="Who", why=WHY)
async def ban(interaction: Interaction, person: discord.User, why: str) -> None:
    """Put them on the ban list."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    who, role = Actor(person.id, person.display_name), interaction.client.server.admin_role
    await interaction.client.write(limits.ban, actor(interaction), who, why, admin_role_id=role)
    await errors.reply(interaction, "They can read, and do nothing else; the record says so.")


@admin.command(name="unban", description="Let a banned person take part again")
@app_commands.describe(person="Who", why=WHY)
async def unban(interaction: Interaction, person: discord.User, why: str) -> None:
    """Take them off the ban list."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    role = interaction.client.server.admin_role
    await interaction.client.write(limits.unban, actor(interaction), person.id, why, admin_role_id=role)
    await errors.reply(interaction, "They can take part again; the record says so.")


@admin.command(name="redact", description="Blank what an entry of the record tells; its posts become tombstones")
@app_commands.describe(
    number="The entry's number, as its post ends with",
    why=WHY + ": say nothing of what is blanked",
    project="The project, where this is not its channel or one of its threads; 0 for the lab's own record",
)
@app_commands.autocomplete(project=lookup.projects)
async def redact(interaction: Interaction, number: int, why: str, project: int | None = None) -> None:
    """Blank one entry."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    stream = record.LAB if project == 0 else record.project_stream(await lookup.project_of(interaction, project))
    role = interaction.client.server.admin_role
    await interaction.client.write(redaction.redact, actor(interaction), stream, number, why, admin_role_id=role)
    await errors.reply(interaction, f"Entry {number} is blanked; its posts will follow.")


@admin.command(name="forget", description="Blank a person's name, and every entry that names them")
@app_commands.describe(person="Who", why=WHY + ": do not name them")
async def forget(interaction: Interaction, person: discord.User, why: str) -> None:
    """Blank all that names them."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    role = interaction.client.server.admin_role
    count = await interaction.client.write(
        redaction.forget, actor(interaction), str(person.id), why, admin_role_id=role
    )
    await errors.reply(interaction, f"{count} entries are blanked; their posts will follow.")
