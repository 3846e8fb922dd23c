"""What Discord suggests while somebody types an option; run/autocomplete.py has the options of `/run`."""

from collections.abc import Sequence
from typing import TypeVar

from discord.app_commands import Choice

from bot import text
from bot.app import Interaction, actor
from bot.commands import context
from broker import catalogue
from broker.allocations import allocations, pools
from broker.allocations.allocations import AllocationState, AllocationView
from broker.catalogue import CatalogueState
from broker.reports import cluster
from broker.reports.cluster import PoolOffer
from broker.reviews import changes
from broker.runs import preparing
from projects import policies, projects
from projects.people import LabRole
from projects.policies import Policies
from projects.record import record

MOST_CHOICES = 25
LONGEST = 100
"""The most characters that Discord takes in a choice."""
T = TypeVar("T", int, str)


async def listed_projects(interaction: Interaction, typed: str) -> list[Choice[int]]:
    """The newest projects whose number or title fits."""
    return _choices(await interaction.client.read(projects.search, typed), typed)


async def open_projects(interaction: Interaction, typed: str) -> list[Choice[int]]:
    """The newest projects that have not ended."""
    return _choices(await interaction.client.read(projects.search, typed, open_only=True), typed)


async def hidden_projects(interaction: Interaction, typed: str) -> list[Choice[int]]:
    """The hidden projects, for moderators."""
    if LabRole.MODERATOR not in actor(interaction).roles:
        return []
    return _choices(await interaction.client.read(projects.search, typed, hidden=True), typed)


async def entry_numbers(interaction: Interaction, typed: str) -> list[Choice[int]]:
    """The newest entries of the record that the command is about, for admins, without those that are blanked."""
    project_id = await context.project_so_far(interaction)
    if project_id is None or LabRole.ADMIN not in actor(interaction).roles:
        return []
    entries = await interaction.client.read(
        record.newest, record.project_stream(project_id) if project_id else record.LAB
    )
    return _choices([(f"{e.number} · {e.kind}", e.number) for e in entries if e.payload is not None], typed)


async def pool_names(interaction: Interaction, typed: str) -> list[Choice[str]]:
    """The pools whose name or type fits, each with its type, what of it is free, and its price."""
    offers = [pool for pool in await interaction.client.read(cluster.offers) if len(pool.name) <= LONGEST]
    return _choices([(_offered(pool), pool.name) for pool in offers], typed)


def _offered(pool: PoolOffer) -> str:
    has = f"{pool.free:,} of {pool.unit.count(pool.gpus)} free"
    return text.bounded(f"{pool.name} · {pool.gpu_type}, {has}, price {pool.price_weight:g}", LONGEST)


async def limit_names(_: Interaction, typed: str) -> list[Choice[str]]:
    """The limits whose name fits."""
    return _choices([(policies.label(name), name) for name in Policies.model_fields], typed)


async def grant_numbers(interaction: Interaction, typed: str) -> list[Choice[int]]:
    """The grants whose number, sponsor or pool fits."""
    grants = await interaction.client.read(pools.grants)
    return _choices([(f"{g.id} · {g.sponsor}, {g.pool}, until {g.until:%Y-%m-%d}", g.id) for g in grants], typed)


async def proposed_entries(interaction: Interaction, typed: str) -> list[Choice[str]]:
    """The entries of the catalogue that wait for a decision."""
    return await _entries(interaction, typed, CatalogueState.PROPOSED)


async def accepted_entries(interaction: Interaction, typed: str) -> list[Choice[str]]:
    """The accepted entries of the catalogue."""
    return await _entries(interaction, typed, CatalogueState.ACCEPTED)


async def preparable_recipes(interaction: Interaction, typed: str) -> list[Choice[str]]:
    """The accepted recipes whose data is not prepared yet."""
    names = await interaction.client.read(preparing.preparable)
    return _choices([(name, name) for name in names], typed)


async def programs(interaction: Interaction, typed: str) -> list[Choice[str]]:
    """The programs that can be run."""
    names = await interaction.client.read(catalogue.programs)
    return _choices([(name, name) for name in names], typed)


async def pairs(interaction: Interaction, typed: str) -> list[Choice[str]]:
    """The pairs of the catalogue that a study can ask."""
    names = await interaction.client.read(catalogue.accepted_pairs)
    return _choices([(name, name) for name in names], typed)


async def _entries(interaction: Interaction, typed: str, state: CatalogueState) -> list[Choice[str]]:
    entries = await interaction.client.read(catalogue.entries)
    return _choices([(entry.name, entry.name) for entry in entries if entry.state is state], typed)


async def allocation_ids(interaction: Interaction, typed: str) -> list[Choice[int]]:
    """The allocations of the project that the command is about."""
    return _allocations(await _of_project_so_far(interaction), typed)


async def live_allocations(interaction: Interaction, typed: str) -> list[Choice[int]]:
    """The allocations that were granted and have not ended."""
    return live(await _so_far_or_led(interaction), typed)


def live(views: Sequence[AllocationView], typed: str) -> list[Choice[int]]:
    """A choice for each of the allocations that was granted and has not ended."""
    return _allocations([view for view in views if view.state in allocations.LIVE], typed)


async def open_requests(interaction: Interaction, typed: str) -> list[Choice[int]]:
    """The allocations with an open request, for themselves or for a change."""
    views = await _so_far_or_led(interaction)
    waiting = {view.id for view in views if view.state == AllocationState.REQUESTED}
    waiting |= await interaction.client.read(changes.allocations_with_open, {view.id for view in views})
    return _allocations([view for view in views if view.id in waiting], typed)


async def _so_far_or_led(interaction: Interaction) -> Sequence[AllocationView]:
    """The allocations of the project that the command is about, else of all projects that the user leads."""
    if await context.project_so_far(interaction) is None:
        return await interaction.client.read(allocations.of_lead, interaction.user.id)
    return await _of_project_so_far(interaction)


async def _of_project_so_far(interaction: Interaction) -> Sequence[AllocationView]:
    project_id = await context.project_so_far(interaction)
    return () if project_id is None else await interaction.client.read(allocations.of_project, project_id)


def _allocations(views: Sequence[AllocationView], typed: str) -> list[Choice[int]]:
    return _choices([(f"{v.id} · {v.unit.hours(v.size)} of {v.pool}, {v.standing}", v.id) for v in views], typed)


def _choices(named: Sequence[tuple[str, T]], typed: str) -> list[Choice[T]]:
    fitting = [(name, value) for name, value in named if typed.casefold() in name.casefold()]
    return [Choice(name=text.bounded(name, 100), value=value) for name, value in fitting[:MOST_CHOICES]]
