"""Which project, allocation or run a command is about, and what is suggested while somebody types."""

from typing import TypeVar

import discord
from discord.app_commands import Choice

from bot import outbox, text
from bot.app import Interaction
from broker import allocations, pools
from projects import pipeline
from projects.errors import NotFoundError

MOST_CHOICES = 25
T = TypeVar("T", int, str)


async def project_of(interaction: Interaction, named: int | None) -> int:
    """The project that was named, or the one whose channel or thread this is; raises NotFoundError."""
    project_id = named if named is not None else await _project_here(interaction)
    if project_id is None:
        raise NotFoundError("Use this in a project's channel or thread, or name the project in the option “project”.")
    await interaction.client.read(pipeline.view, project_id)
    return project_id


async def _project_here(interaction: Interaction) -> int | None:
    channel = interaction.channel
    if channel is None:
        return None
    ids = [channel.id]
    if isinstance(channel, discord.Thread):
        ids.append(channel.parent_id)
    return await interaction.client.read(outbox.project_in, ids)


async def projects(interaction: Interaction, typed: str) -> list[Choice[int]]:
    """The newest projects whose number or title fits."""
    views = await interaction.client.read(pipeline.views, limit=100)
    return _choices([(f"{view.id} · {view.title}", view.id) for view in views], typed)


async def pool_names(interaction: Interaction, typed: str) -> list[Choice[str]]:
    """The pools whose name fits."""
    names = await interaction.client.read(pools.names)
    return _choices([(name, name) for name in names if len(name) <= 100], typed)


async def allocation_ids(interaction: Interaction, typed: str) -> list[Choice[int]]:
    """The allocations of the project that the command is about."""
    project_id = await project_meant(interaction)
    if project_id is None:
        return []
    views = await interaction.client.read(allocations.of_project, project_id)
    named = [(f"{v.id} · {text.gpu_hours(v.seconds)} of {v.pool}, {v.state}", v.id) for v in views]
    return _choices(named, typed)


async def project_meant(interaction: Interaction) -> int | None:
    """The project that the command is about, as far as it is typed."""
    named = getattr(interaction.namespace, "project", None)
    return named if isinstance(named, int) else await _project_here(interaction)


def _choices(named: list[tuple[str, T]], typed: str) -> list[Choice[T]]:
    fitting = [(name, value) for name, value in named if typed.casefold() in name.casefold()]
    return [Choice(name=text.bounded(name, 100), value=value) for name, value in fitting[:MOST_CHOICES]]
