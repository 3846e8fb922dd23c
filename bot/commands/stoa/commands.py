"""`/stoa …`: setup, help, and what only admins do; the domain decides who may."""

import functools
from collections.abc import Mapping

import discord
from discord import app_commands
from discord.app_commands import Choice

from bot import errors, text
from bot.app import Interaction, acknowledge, actor
from bot.commands import autocomplete, context
from bot.commands.reason_form import ReasonForm
from bot.commands.stoa import buttons
from bot.commands.stoa import setup as setting_up
from bot.commands.stoa.forget import ForgetForm
from bot.commands.stoa.forms import (
    AddGrantForm,
    ChangeGrantForm,
    ChangeLimitForm,
    ChangePoolForm,
    SetShareForm,
)
from bot.delivery import follower_roles
from broker.allocations import pools, reservations, shares, sponsor_shares
from broker.reports import cluster
from broker.reviews import inventory
from projects import bans, notify, policies, projects, rights
from projects.errors import ConflictError, InvalidError, NotFoundError
from projects.people import Actor, Notify
from projects.record import record, redaction
from projects.rights import Act

stoa = app_commands.Group(name="stoa", description="The lab itself: what you can do here, and what its admins do")


@stoa.command(name="setup", description="Choose Stoa's channels and roles; what is missing is created")
@app_commands.describe(
    proposals="Where projects are proposed",
    review="Where requests for compute are decided",
    announcements="Where results are announced",
    record="Where the lab's own record is posted",
    reviewers="Who decides requests for compute",
    moderators="Who opens channels, and stops or hides projects",
    admins="Who manages the lab",
    general="Where newcomers are welcomed; by default the channel named general",
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
    general: discord.TextChannel | None = None,
    category: discord.CategoryChannel | None = None,
    projects: discord.CategoryChannel | None = None,
) -> None:
    """Adopt the channels and roles that were given, and create those that are missing."""
    app, who = interaction.client, actor(interaction)
    # Members who manage the server may choose its admins: before there are admins, nobody else could.
    if not interaction.permissions.manage_guild:
        rights.require_admin(who, Act.SET_UP)
    await acknowledge(interaction)
    guild = app.get_guild(app.server.guild)
    if guild is None or guild.unavailable:
        raise ConflictError("Discord has not shown this server to the bot yet; try again in a minute.")
    given = {
        "proposals": proposals,
        "review": review,
        "announcements": announcements,
        "record": record,
        "general": general,
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
    """Show the commands that the table of rights allows the user in this channel."""
    await buttons.show_help(interaction, 0)


NOTIFY: Mapping[Notify, str] = {
    Notify.ALL: "You are mentioned in what concerns you, and in the news of all projects that you work on or follow.",
    Notify.MINE: (
        "You are mentioned in what concerns you: the ends of your runs, what is decided about your requests, who joins "
        "a project that you lead, and the news of projects that you follow."
    ),
    Notify.NONE: "Nothing mentions you, except requests for compute while you hold the reviewers' role.",
}


@stoa.command(name="notify", description="Choose when you are mentioned; leave empty to see your setting")
@app_commands.describe(what="all: also news of projects you work on; mine: what concerns you; none: nothing")
@app_commands.choices(what=[Choice(name=each, value=each) for each in Notify])
async def choose_mentions(interaction: Interaction, what: str | None = None) -> None:
    """Set what mentions the user, and answer with what does."""
    await acknowledge(interaction)
    app, who = interaction.client, actor(interaction)
    if what is not None:
        await app.write(notify.choose, who, Notify(what))
        await app.write(follower_roles.give_again, who.discord_id)
    chosen = await app.read(notify.chosen, who)
    other = ", ".join(f"“{each}”" for each in Notify if each != chosen)
    said = f"“{chosen}” is set. {NOTIFY[chosen]} `/stoa notify` changes that to {other}."
    await errors.reply(interaction, said)


@stoa.command(name="pools", description="Admins: list the pools with their use; add or change one")
@app_commands.describe(pool="One to change at once, where there are many")
@app_commands.autocomplete(pool=autocomplete.pool_names)
async def list_pools(interaction: Interaction, pool: str | None = None) -> None:
    """List the pools, or open the form to change one."""
    buttons.require(interaction, Act.MANAGE_COMPUTE)
    if pool is not None:
        await interaction.client.read(pools.named, pool)
        await interaction.response.send_modal(ChangePoolForm([pool]))
        return
    await acknowledge(interaction)
    listed = await interaction.client.read(cluster.status)
    await errors.again(lambda: interaction.edit_original_response(view=buttons.pools_view(listed)))


@stoa.command(name="grants", description="Admins: list what sponsors give, with its use; add or change a grant")
@app_commands.describe(
    grant="One to change at once, where there are many", pool="One to add a grant of at once, where there are many"
)
@app_commands.autocomplete(grant=autocomplete.grant_numbers)
@app_commands.autocomplete(pool=autocomplete.pool_names)
async def list_grants(interaction: Interaction, grant: int | None = None, pool: str | None = None) -> None:
    """List the grants, or open the form to change one or to add one."""
    buttons.require(interaction, Act.MANAGE_COMPUTE)
    if grant is not None:
        named = [one for one in await interaction.client.read(pools.grants) if one.id == grant]
        if not named:
            raise NotFoundError(f"There is no grant {grant}.")
        await interaction.response.send_modal(ChangeGrantForm(named))
        return
    if pool is not None:
        await interaction.client.read(pools.named, pool)
        await interaction.response.send_modal(AddGrantForm([pool]))
        return
    await acknowledge(interaction)
    listed = await interaction.client.read(pools.grants)
    spent = await interaction.client.read(inventory.spent_by_grant)
    await errors.again(lambda: interaction.edit_original_response(view=buttons.grants_view(listed, spent)))


@stoa.command(name="shares", description="Admins: list the shares of projects and sponsors in fair-share; set one")
@app_commands.describe(project="One to set the share of at once")
@app_commands.autocomplete(project=autocomplete.open_projects)
async def list_shares(interaction: Interaction, project: int | None = None) -> None:
    """List the shares, or open the form to set one."""
    buttons.require(interaction, Act.SET_SHARES)
    if project is not None:
        await interaction.client.read(projects.load, project)
        await interaction.response.send_modal(SetShareForm(project))
        return
    await acknowledge(interaction)
    listed = await interaction.client.read(shares.listed)
    aside = await interaction.client.read(sponsor_shares.listed)
    await errors.again(lambda: interaction.edit_original_response(view=buttons.shares_view(listed, aside)))


@stoa.command(
    name="reserve", description="Admins: list what is reserved; reserve GPUs or cores for a project, or cancel that"
)
@app_commands.describe(
    pool="The pool, to reserve a part of it",
    project="The project that gets them",
    gpus="How many GPUs, or cores of a CPU pool",
    begins="From when, in UTC, such as 2030-12-31 09:00",
    ends="Until when, in UTC",
    cancel="The number of a reservation to cancel",
)
@app_commands.autocomplete(pool=autocomplete.pool_names)
@app_commands.autocomplete(project=autocomplete.open_projects)
async def reserve(
    interaction: Interaction,
    pool: str | None = None,
    project: int | None = None,
    gpus: int | None = None,
    begins: str | None = None,
    ends: str | None = None,
    cancel: int | None = None,
) -> None:
    """List the reservations, or open the form of the reason for a new one or for cancelling one."""
    buttons.require(interaction, Act.MANAGE_COMPUTE)
    asked = [value for value in (pool, project, gpus, begins, ends) if value is not None]
    if cancel is not None and not asked:
        done = f"Reservation {cancel} is cancelled; the record says so."
        title = f"Cancel reservation {cancel}"
        await interaction.response.send_modal(ReasonForm(title, reservations.cancel, cancel, done))
    elif cancel is None and pool and project and gpus is not None and begins and ends:
        act = functools.partial(reservations.add, project_id=project, gpus=str(gpus), begins=begins, ends=ends)
        await interaction.response.send_modal(ReasonForm("Reserve a part of a pool", act, pool, buttons.is_reserved))
    elif cancel is None and not asked:
        await acknowledge(interaction)
        listed = await interaction.client.read(reservations.every)
        lines = [buttons.reservation_line(one) for one in listed]
        await errors.reply(interaction, text.listed(lines) or "Nothing is reserved.")
    else:
        raise InvalidError(
            "A reservation takes a pool, a project, GPUs or cores, and when it begins and ends; cancel goes alone."
        )


@stoa.command(name="limits", description="Admins: list the limits by which the lab is run; change one")
@app_commands.describe(limit="One to change at once")
@app_commands.autocomplete(limit=autocomplete.limit_names)
async def list_limits(interaction: Interaction, limit: str | None = None) -> None:
    """List the limits, or open the form to change one."""
    buttons.require(interaction, Act.CHANGE_POLICIES)
    if limit is not None:
        await interaction.response.send_modal(ChangeLimitForm([policies.named(limit)]))
        return
    await acknowledge(interaction)
    now = await interaction.client.read(policies.current)
    await errors.again(lambda: interaction.edit_original_response(view=buttons.limits_view(now)))


@stoa.command(name="ban", description="Let somebody do nothing but read")
@app_commands.describe(person="Who")
async def ban(interaction: Interaction, person: discord.User) -> None:
    """Open the form of the reason."""
    buttons.require(interaction, Act.BAN)
    who = Actor(person.id, person.display_name)
    done = "They can read, and do nothing else; the record says so. /stoa unban ends that."
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
@app_commands.autocomplete(number=autocomplete.entry_numbers, project=autocomplete.listed_projects)
async def redact(interaction: Interaction, number: int, project: int | None = None) -> None:
    """Ask whether the entry shall be blanked; the form of the reason, which must not repeat it, comes then."""
    buttons.require(interaction, Act.REDACT)
    await acknowledge(interaction)
    stream = record.LAB if project == 0 else record.project_stream(await context.project_of(interaction, project))
    entry = await interaction.client.read(redaction.named, stream, number)
    await buttons.BLANK.ask(interaction, entry.id)


@stoa.command(name="forget", description="Blank a person's name, and every entry that names them")
@app_commands.describe(person="Who")
async def forget(interaction: Interaction, person: discord.User) -> None:
    """Open the form of the reason, which must not name the person."""
    buttons.require(interaction, Act.REDACT)
    await interaction.response.send_modal(ForgetForm(str(person.id)))
