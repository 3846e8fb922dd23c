"""Which project, allocation or run a command is about, and what is suggested while somebody types."""

from collections.abc import Sequence
from typing import TypeVar

import discord
from discord.app_commands import Choice

from bot import text
from bot.app import Interaction, actor
from bot.delivery import outbox
from broker import catalogue
from broker.allocations import allocations, pools
from broker.allocations.allocations import AllocationState, AllocationView
from broker.catalogue import CatalogueState
from broker.reviews import changes
from broker.reviews.changes import ChangeState
from broker.runs import preparing
from projects import projects
from projects.errors import NotFoundError
from projects.people import LabRole
from projects.record import record

MOST_CHOICES = 25
T = TypeVar("T", int, str)


async def project_of(interaction: Interaction, named: int | None) -> int:
    """The project that was named, or the one whose channel or thread this is; raises NotFoundError."""
    project_id = named if named is not None else await project_here(interaction)
    if project_id is None:
        raise NotFoundError("Use this in a project's channel or thread, or name the project in the option “project”.")
    await interaction.client.read(projects.load, project_id)
    return project_id


async def project_here(interaction: Interaction) -> int | None:
    """The project whose channel or thread this is, if it is one."""
    channel = interaction.channel
    if channel is None:
        return None
    ids = [channel.id]
    if isinstance(channel, discord.Thread):
        ids.append(channel.parent_id)
    return await interaction.client.read(outbox.project_in, ids)


async def listed_projects(interaction: Interaction, typed: str) -> list[Choice[int]]:
    """The newest projects whose number or title fits."""
    return _choices(await interaction.client.read(projects.search, typed), typed)


async def open_projects(interaction: Interaction, typed: str) -> list[Choice[int]]:
    """Those of them that have not ended."""
    return _choices(await interaction.client.read(projects.search, typed, open_only=True), typed)


async def hidden_projects(interaction: Interaction, typed: str) -> list[Choice[int]]:
    """Those that are in no list, for moderators."""
    if LabRole.MODERATOR not in actor(interaction).roles:
        return []
    return _choices(await interaction.client.read(projects.search, typed, hidden=True), typed)


async def entry_numbers(interaction: Interaction, typed: str) -> list[Choice[int]]:
    """The newest entries of the record that the command is about, for admins; those that are blank are left out."""
    project_id = await project_meant(interaction)
    if project_id is None or LabRole.ADMIN not in actor(interaction).roles:
        return []
    entries = await interaction.client.read(
        record.newest, record.project_stream(project_id) if project_id else record.LAB
    )
    return _choices([(f"{e.number} · {e.kind}", e.number) for e in entries if e.payload is not None], typed)


async def pool_names(interaction: Interaction, typed: str) -> list[Choice[str]]:
    """The pools whose name fits."""
    names = await interaction.client.read(pools.names)
    return _choices([(name, name) for name in names if len(name) <= 100], typed)


async def grant_numbers(interaction: Interaction, typed: str) -> list[Choice[int]]:
    """The grants of which number, sponsor or pool fits, those of older pools too."""
    grants = await interaction.client.read(pools.grants)
    return _choices([(f"{g.id} · {g.sponsor}, {g.pool}, until {g.until:%Y-%m-%d}", g.id) for g in grants], typed)


async def proposed_entries(interaction: Interaction, typed: str) -> list[Choice[str]]:
    """The entries of the catalogue that wait for a decision."""
    return await _entries(interaction, typed, CatalogueState.PROPOSED)


async def accepted_entries(interaction: Interaction, typed: str) -> list[Choice[str]]:
    """The accepted entries of the catalogue."""
    return await _entries(interaction, typed, CatalogueState.ACCEPTED)


async def preparable_recipes(interaction: Interaction, typed: str) -> list[Choice[str]]:
    """The accepted recipes whose data nobody has prepared."""
    names = await interaction.client.read(preparing.preparable)
    return _choices([(name, name) for name in names], typed)


async def _entries(interaction: Interaction, typed: str, state: CatalogueState) -> list[Choice[str]]:
    entries = await interaction.client.read(catalogue.entries)
    return _choices([(entry.name, entry.name) for entry in entries if entry.state is state], typed)


async def allocation_ids(interaction: Interaction, typed: str) -> list[Choice[int]]:
    """The allocations of the project that the command is about."""
    return _allocations(await _of_project_meant(interaction), typed)


async def live_allocations(interaction: Interaction, typed: str) -> list[Choice[int]]:
    """Those that were granted and have not ended."""
    return live(await _meant_or_led(interaction), typed)


def live(views: Sequence[AllocationView], typed: str) -> list[Choice[int]]:
    """Those of some allocations that were granted and have not ended."""
    return _allocations([view for view in views if view.state in allocations.LIVE], typed)


async def open_requests(interaction: Interaction, typed: str) -> list[Choice[int]]:
    """Those that are asked for, or of which a change is."""
    views = await _meant_or_led(interaction)
    waiting = {view.id for view in views if view.state == AllocationState.REQUESTED}
    for project_id in {view.project_id for view in views}:
        asked = await interaction.client.read(changes.of_project, project_id)
        waiting |= {change.allocation_id for change in asked if change.state == ChangeState.REQUESTED}
    return _allocations([view for view in views if view.id in waiting], typed)


async def _meant_or_led(interaction: Interaction) -> Sequence[AllocationView]:
    """The allocations of the project that the command is about; of all that its user leads, where it is about none."""
    if await project_meant(interaction) is None:
        return await interaction.client.read(allocations.of_lead, interaction.user.id)
    return await _of_project_meant(interaction)


async def _of_project_meant(interaction: Interaction) -> Sequence[AllocationView]:
    project_id = await project_meant(interaction)
    return () if project_id is None else await interaction.client.read(allocations.of_project, project_id)


def _allocations(views: Sequence[AllocationView], typed: str) -> list[Choice[int]]:
    return _choices([(f"{v.id} · {text.gpu_hours(v.size)} of {v.pool}, {v.standing}", v.id) for v in views], typed)


async def project_meant(interaction: Interaction) -> int | None:
    """The project that the command is about, as far as it is typed."""
    named = getattr(interaction.namespace, "project", None)
    return named if isinstance(named, int) else await project_here(interaction)


def _choices(named: Sequence[tuple[str, T]], typed: str) -> list[Choice[T]]:
    fitting = [(name, value) for name, value in named if typed.casefold() in name.casefold()]
    return [Choice(name=text.bounded(name, 100), value=value) for name, value in fitting[:MOST_CHOICES]]
