"""`/stoa …`: setting the server up, and what only admins do; who may is decided in the domain."""

import functools

import discord
from discord import app_commands

from bot import errors, text
from bot.app import Interaction, actor
from bot.commands import lookup
from bot.commands.reason_form import BlankingForm, ReasonForm
from bot.commands.stoa import buttons, help_text
from bot.commands.stoa import setup as setting_up
from bot.commands.stoa.forms import AddGrantForm, ChangeGrantForm, ChangePoolForm
from broker.allocations import pools
from broker.reports import cluster
from broker.reviews import inventory
from projects import bans, policies, rights
from projects.errors import ConflictError, NotFoundError
from projects.people import Actor
from projects.record import record, redaction
from projects.rights import Act

stoa = app_commands.Group(name="stoa", description="The lab itself: what you can do here, and what its admins do")


@stoa.command(name="setup", description="Say which channels and roles stand for what; what is missing is made")
@app_commands.describe(
    proposals="Where projects are proposed",
    review="Where requests for GPU time are decided",
    announcements="Where results are announced",
    record="Where the lab's own record is posted",
    reviewers="Who decides requests for GPU time",
    moderators="Who opens channels, and stops or hides projects",
    admins="Who manages the lab",
    category="Where the lab's new channels go",
    projects="The category of the projects' channels",
)
async def setup(
    interaction: Interaction,
    proposals: discord.TextChannel | None = None,
    review: discord.TextChannel | None = None,
    announcements: discord.TextChannel | None = None,
    record: discord.TextChannel | None = None,
    reviewers: discord.Role | None = None,
    moderators: discord.Role | None = None,
    admins: discord.Role | None = None,
    category: discord.CategoryChannel | None = None,
    projects: discord.CategoryChannel | None = None,
) -> None:
    """Adopt what was given, make what is missing."""
    app, who = interaction.client, actor(interaction)
    # Whoever manages the server may name its admins; nobody else could, before there are any.
    if not interaction.permissions.manage_guild:
        rights.require_admin(who, Act.SET_UP)
    await interaction.response.defer(ephemeral=True, thinking=True)
    guild = app.get_guild(app.server.guild)
    if guild is None or guild.unavailable:
        raise ConflictError("Discord has not shown this server to the bot yet; try again in a minute.")
    given = {
        "proposals": proposals,
        "review": review,
        "announcements": announcements,
        "record": record,
        "reviewer_role": reviewers,
        "moderator_role": moderators,
        "admin_role": admins,
        "lab_category": category,
        "projects_category": projects,
    }
    chosen = {name: target for name, target in given.items() if target is not None}
    await errors.reply(interaction, await setting_up.set_up(app, guild, who, chosen))


@stoa.command(name="help", description="Show what you can do here")
async def help_here(interaction: Interaction) -> None:
    """Show it by the table of rights, for who asks and where they ask."""
    app, who = interaction.client, actor(interaction)
    project_id = await lookup.project_here(interaction)
    standing = await app.read(help_text.standing, who, project_id)
    tree = app.tree.get_commands(guild=discord.Object(app.server.guild))
    manages = interaction.permissions.manage_guild
    first, *others = help_text.pages(tree, standing, review=app.server.review, manages=manages)
    await interaction.response.send_message(view=first, ephemeral=True)
    for page in others:
        await interaction.followup.send(view=page, ephemeral=True)


@stoa.command(name="pools", description="Admins: list the pools of GPUs with their use; add or change one")
@app_commands.describe(pool="One to change at once, where there are many")
@app_commands.autocomplete(pool=lookup.pool_names)
async def list_pools(interaction: Interaction, pool: str | None = None) -> None:
    """List them, or open the form of a change to one."""
    buttons.require(interaction, Act.MANAGE_COMPUTE)
    if pool is not None:
        await interaction.client.read(pools.named, pool)
        await interaction.response.send_modal(ChangePoolForm([pool]))
        return
    listed = await interaction.client.read(cluster.status)
    await interaction.response.send_message(view=buttons.pools_view(listed), ephemeral=True)


@stoa.command(name="grants", description="Admins: list what sponsors give, with its use; add or change a grant")
@app_commands.describe(
    grant="One to change at once, where there are many", pool="One to add a grant of at once, where there are many"
)
@app_commands.autocomplete(grant=lookup.grant_numbers)
@app_commands.autocomplete(pool=lookup.pool_names)
async def list_grants(interaction: Interaction, grant: int | None = None, pool: str | None = None) -> None:
    """List them, or open the form of a change to one, or of a new one."""
    buttons.require(interaction, Act.MANAGE_COMPUTE)
    listed = await interaction.client.read(pools.grants)
    if grant is not None:
        named = [one for one in listed if one.id == grant]
        if not named:
            raise NotFoundError(f"There is no grant {grant}.")
        await interaction.response.send_modal(ChangeGrantForm(named))
        return
    if pool is not None:
        await interaction.client.read(pools.named, pool)
        await interaction.response.send_modal(AddGrantForm([pool]))
        return
    spent = await interaction.client.read(inventory.spent_by_grant)
    await interaction.response.send_message(view=buttons.grants_view(listed, spent), ephemeral=True)


@stoa.command(name="limits", description="Admins: list the limits by which the lab is run; change one")
async def list_limits(interaction: Interaction) -> None:
    """List them."""
    buttons.require(interaction, Act.CHANGE_POLICIES)
    now = await interaction.client.read(policies.current)
    await interaction.response.send_message(view=buttons.limits_view(now), ephemeral=True)


@stoa.command(name="ban", description="Let somebody do nothing but read")
@app_commands.describe(person="Who")
async def ban(interaction: Interaction, person: discord.User) -> None:
    """Open the form of the reason."""
    buttons.require(interaction, Act.BAN)
    who, done = Actor(person.id, person.display_name), "They can read, and do nothing else; the record says so."
    await interaction.response.send_modal(ReasonForm(f"Ban {person.display_name}", bans.ban, who, done))


@stoa.command(name="unban", description="Let a banned person take part again")
@app_commands.describe(person="Who")
async def unban(interaction: Interaction, person: discord.User) -> None:
    """Open the form of the reason."""
    buttons.require(interaction, Act.BAN)
    done = "They can take part again; the record says so."
    await interaction.response.send_modal(ReasonForm(f"Unban {person.display_name}", bans.unban, person.id, done))


@stoa.command(name="redact", description="Blank what an entry of the record tells; its posts become tombstones")
@app_commands.describe(
    number="The entry's number, as its post ends with",
    project="The project, where this is not its channel or one of its threads; 0 for the lab's own record",
)
@app_commands.autocomplete(number=lookup.entry_numbers, project=lookup.listed_projects)
async def redact(interaction: Interaction, number: int, project: int | None = None) -> None:
    """Open the form of the reason, which is to say nothing of what is blanked."""
    buttons.require(interaction, Act.REDACT)
    stream = record.LAB if project == 0 else record.project_stream(await lookup.project_of(interaction, project))
    await interaction.client.read(redaction.named, stream, number)
    done = f"Entry {number} is blanked; its posts will follow."
    act = functools.partial(redaction.redact, number=number)
    await interaction.response.send_modal(BlankingForm(f"Blank entry {number} of {stream}", act, stream, done))


@stoa.command(name="forget", description="Blank a person's name, and every entry that names them")
@app_commands.describe(person="Who")
async def forget(interaction: Interaction, person: discord.User) -> None:
    """Open the form of the reason, which is not to name them."""
    buttons.require(interaction, Act.REDACT)

    def done(count: int) -> str:
        return f"{text.count(count, 'entry is', 'entries are')} blanked; their posts will follow."

    await interaction.response.send_modal(BlankingForm("Forget a person", redaction.forget, str(person.id), done))
