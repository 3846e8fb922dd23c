"""The lists of pools, grants, shares and limits that admins see, with buttons which open the forms to change them."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import discord
from discord import ui
from sqlalchemy.orm import Session

from bot import errors, text
from bot.app import Interaction, acknowledge, actor
from bot.buttons import Button, Handler
from bot.cards import card
from bot.commands import context
from bot.commands.last_question import LastQuestion, Told
from bot.commands.reason_form import BlankingForm
from bot.commands.stoa import help_text
from bot.commands.stoa.forms import (
    AddGrantForm,
    AddPoolForm,
    ChangeGrantForm,
    ChangeLimitForm,
    ChangePoolForm,
    SetAsideForm,
    SetShareForm,
)
from broker.allocations import pools, sponsor_shares
from broker.allocations.pools import GrantView
from broker.allocations.reservations import ReservationView
from broker.allocations.shares import ShareView
from broker.allocations.sponsor_shares import SponsorView
from broker.publishing import forgetting
from broker.reports.cluster import PoolStatus
from projects import policies, rights
from projects.errors import NotFoundError, OverError
from projects.people import Actor
from projects.policies import Policies
from projects.record import record
from projects.record.record import EntryView
from projects.rights import Act


def pools_view(listed: Sequence[PoolStatus]) -> ui.LayoutView:
    """The list of pools, each with its use."""
    lines = [
        f"{text.code(pool.name, 60)} {pool.unit.count(pool.gpus)}, {text.line(pool.gpu_type, 60)}"
        f"{text.nodes(pool.nodes, pool.gpus)}{text.memory(pool.memory_gib, pool.host_memory_gib, pool.unit)}\n"
        f"-# {pool.busy} busy, {pool.working} running, {pool.waiting} waiting · {pool.runner}, weight "
        f"{pool.price_weight:g} · {pool.unit.hours(pool.left)} of its grants left · "
        f"{text.preemption(pool.preempt_after)}"
        for pool in listed
    ]
    return _view("Pools", lines, {"pool_add": "Add a pool", "pool_change": "Change one"})


def grants_view(listed: Sequence[GrantView], spent: Mapping[int, int]) -> ui.LayoutView:
    """The list of grants: hours allocated, spent, reserved for second halves, and left of each."""
    lines = [
        f"**{grant.id}** {text.line(grant.sponsor, 80)} · {text.code(grant.pool, 60)} until "
        f"{text.when(grant.until, 'D')}\n"
        f"-# {grant.unit.hours(grant.seconds)}: {grant.unit.hours(grant.granted)} granted, "
        f"{grant.unit.hours(spent.get(grant.id, 0))} of them spent, {grant.unit.hours(grant.committed)} kept for "
        f"second halves, {grant.unit.hours(grant.left)} left"
        for grant in listed
    ]
    return _view("Grants", lines, {"grant_add": "Add a grant", "grant_change": "Change one"})


def shares_view(listed: Sequence[ShareView], aside: Sequence[SponsorView]) -> ui.LayoutView:
    """The list of projects whose share is another than the usual one, and of what sponsors have set aside."""
    lines = [f"**P{share.project_id}** {text.line(share.project, 80)} · {share.share:g}" for share in listed]
    lines.append("-# Every other project has 1.")
    lines += [
        f"**{text.line(one.sponsor, 80)}** {one.share:.4g} of what it gives is first for "
        f"{', '.join(f'P{number}' for number in one.projects)}"
        for one in aside
    ]
    return _view("Shares", lines, {"share_set": "Set one", "share_set_aside": "Set a sponsor's"})


def limits_view(now: Policies) -> ui.LayoutView:
    """The list of policies, each with its value."""
    lines = [
        f"**{policies.label(name)}** {policies.said_as(getattr(now, name))}\n-# {field.description}"
        for name, field in Policies.model_fields.items()
    ]
    return _view("Limits", lines, {"limit_change": "Change one"})


def reservation_line(one: ReservationView) -> str:
    """A reservation in the list of all."""
    return (
        f"**{one.id}** {text.code(one.pool, 60)} {one.unit.count(one.gpus)} for P{one.project_id} "
        f"{text.period(one.begins_at, one.ends_at)}\n"
        f"-# by {text.line(one.by or 'an operator', 80)}"
    )


def is_reserved(one: ReservationView) -> str:
    """The answer to who has made a reservation."""
    when = text.period(one.begins_at, one.ends_at)
    what = f"{one.unit.count(one.gpus)} of {text.code(one.pool, 60)} for P{one.project_id} {when}"
    return f"Reservation {one.id} is made: {what}. Runs that are under way are left alone; the record says so."


def _view(title: str, lines: Sequence[str], labels: Mapping[str, str]) -> ui.LayoutView:
    head = f"## {title}"
    room = text.CARD - text.length(head) - 1
    hint = "-# The command's option finds each of them." if text.length("\n".join(lines)) > room else ""
    said = f"{head}\n{text.listed(lines, end=hint, most=room) or 'There is none yet.'}"
    view = ui.LayoutView(timeout=None)
    buttons = [Button(act, 0, label=label) for act, label in labels.items()]
    view.add_item(ui.Container(ui.TextDisplay(said), ui.ActionRow(*buttons), accent_colour=card.BLUE))
    return view


def require(interaction: Interaction, act: Act) -> None:
    """Raise ForbiddenError unless the user may do this in the lab."""
    rights.require_admin(actor(interaction), act)


async def show_help(interaction: Interaction, _: int) -> None:
    """Show what the user can do first in this channel, with the topics."""
    await acknowledge(interaction)
    here, commands = await _standing(interaction)
    review, manages = interaction.client.server.review, interaction.permissions.manage_guild
    page = help_text.start(commands, here, review=review, manages=manages)
    await errors.again(lambda: interaction.edit_original_response(view=page))


async def show_topic(interaction: Interaction, number: int) -> None:
    """Show all that the user can do of a topic, in place of what the help showed before."""
    await interaction.response.defer()
    here, commands = await _standing(interaction)
    page = help_text.of_topic(commands, here, number, review=interaction.client.server.review)
    await errors.again(lambda: interaction.edit_original_response(view=page))


async def _standing(interaction: Interaction) -> tuple[help_text.Standing, Sequence[Any]]:
    """The user's roles in this channel, and the commands that there are."""
    app = interaction.client
    project_id, least = await context.project_here(interaction), app.settings.min_people
    here = await app.read(help_text.standing, actor(interaction), project_id, min_people=least)
    return here, app.tree.get_commands(guild=discord.Object(app.server.guild))


async def add_pool(interaction: Interaction, _: int) -> None:
    """Open the form of a new pool."""
    require(interaction, Act.MANAGE_COMPUTE)
    await interaction.response.send_modal(AddPoolForm())


async def change_pool(interaction: Interaction, _: int) -> None:
    """Open the form of a change to a pool."""
    require(interaction, Act.MANAGE_COMPUTE)
    await interaction.response.send_modal(ChangePoolForm(await _pool_names(interaction)))


async def add_grant(interaction: Interaction, _: int) -> None:
    """Open the form of a new grant."""
    require(interaction, Act.MANAGE_COMPUTE)
    await interaction.response.send_modal(AddGrantForm(await _pool_names(interaction)))


async def change_grant(interaction: Interaction, _: int) -> None:
    """Open the form of a change to a grant."""
    require(interaction, Act.MANAGE_COMPUTE)
    listed = await interaction.client.read(pools.grants)
    if not listed:
        raise NotFoundError("There is no grant yet; add one first.")
    await interaction.response.send_modal(ChangeGrantForm(listed))


async def set_share(interaction: Interaction, _: int) -> None:
    """Open the form of a share."""
    require(interaction, Act.SET_SHARES)
    await interaction.response.send_modal(SetShareForm())


async def set_aside(interaction: Interaction, _: int) -> None:
    """Open the form of what a sponsor sets aside."""
    require(interaction, Act.SET_SHARES)
    names = await interaction.client.read(sponsor_shares.sponsors)
    if not names:
        raise NotFoundError("There is no grant yet; add one first.")
    await interaction.response.send_modal(SetAsideForm(names))


async def change_limit(interaction: Interaction, _: int) -> None:
    """Open the form of a change to a limit."""
    require(interaction, Act.CHANGE_POLICIES)
    await interaction.response.send_modal(ChangeLimitForm())


def _told_of_blanking(session: Session, who: Actor, entry_id: int) -> Told:
    rights.require_admin(who, Act.REDACT)
    entry = _entry(session, entry_id)
    if entry.payload is None:
        raise OverError(f"Entry {entry.number} of “{entry.stream}” is already blank.")
    by = f" by **{text.line(entry.payload['by']['name'], 60)}**" if entry.payload.get("by") else ""
    of = f"{text.code(entry.kind, 60)}{by} of {text.day(entry.payload['at'])}"
    said = (
        f"Entry {entry.number} of {entry.stream}, {of}, is blanked: in the record, on cards and in its posts. "
        "A tombstone says that it was, and why."
    )
    return Told(said, said)


def _entry(session: Session, entry_id: int) -> EntryView:
    entry = record.load(session, entry_id)
    if entry is None:
        raise NotFoundError("There is no such entry any more.")
    return entry


async def _blank(interaction: Interaction, entry_id: int) -> None:
    entry = await interaction.client.read(_entry, entry_id)

    def done(repositories: Sequence[str]) -> str:
        said = f"Entry {entry.number} is blanked; its posts will follow."
        return " ".join(filter(None, (said, forgetting.told(repositories))))

    act = functools.partial(forgetting.redact, number=entry.number)
    title = f"Blank entry {entry.number} of {entry.stream}"
    await interaction.response.send_modal(BlankingForm(title, act, entry.stream, done))


BLANK = LastQuestion("blank_entry", "Blank the entry", _told_of_blanking, _blank)


async def _pool_names(interaction: Interaction) -> Sequence[str]:
    names = [name for name in await interaction.client.read(pools.names) if len(name) <= 100]
    if not names:
        raise NotFoundError("There is no pool yet; add one first.")
    return names


HANDLERS: Mapping[str, Handler] = {
    "help": show_help,
    "help_topic": show_topic,
    "pool_add": add_pool,
    "pool_change": change_pool,
    "grant_add": add_grant,
    "grant_change": change_grant,
    "share_set": set_share,
    "share_set_aside": set_aside,
    "limit_change": change_limit,
}
