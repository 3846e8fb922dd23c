"""Which project or run a command is about: the one that its options name, else the one whose channel it is used in."""

from typing import Any

import discord
from discord import app_commands

from bot.app import Interaction
from bot.delivery import outbox
from projects import projects
from projects.errors import InvalidError, NotFoundError

LARGEST = 2**53
"""The largest whole number that Discord can send."""


async def project_of(interaction: Interaction, named: int | None) -> int:
    """The number of the project that the command is about. Raises NotFoundError where there is no such project."""
    project_id = named if named is not None else await project_here(interaction)
    if project_id is None:
        raise NotFoundError("Use this in a project's channel or thread, or name the project in the option “project”.")
    await interaction.client.read(projects.load, project_id)
    return project_id


async def project_here(interaction: Interaction) -> int | None:
    """The number of the project whose channel or thread the command is used in; None elsewhere."""
    channel = interaction.channel
    if channel is None:
        return None
    ids = [channel.id]
    if isinstance(channel, discord.Thread):
        ids.append(channel.parent_id)
    return await interaction.client.read(outbox.project_of_channel, ids)


async def project_so_far(interaction: Interaction) -> int | None:
    """The number of the project that a command is about, as far as it is typed."""
    named = option(interaction, "project")
    return named if isinstance(named, int) else await project_here(interaction)


async def run_of(interaction: Interaction, named: int | None) -> int:
    """The number of the run that the command is about. Raises NotFoundError where none is named in no run's thread."""
    if named is not None:
        return named
    found = await _run_here(interaction)
    if found is None:
        raise NotFoundError("Use this in a run's thread, or name the run in the option “run”.")
    return found


async def sweep_of(interaction: Interaction, run: int | None, named: int | None) -> int | None:
    """The number of the sweep that the command is about as a whole; None where it is about a run.

    That is the sweep that is named, or the one in whose thread no run is named. Raises InvalidError where both are.
    """
    if named is not None and run is not None:
        raise InvalidError("Name a run or a sweep, not both.")
    if named is not None or run is not None or not isinstance(interaction.channel, discord.Thread):
        return named
    return await interaction.client.read(outbox.sweep_of_thread, str(interaction.channel.id))


async def run_so_far(interaction: Interaction) -> int | None:
    """The number of the run that a command is about, as far as it is typed; None for a command about no run."""
    if not is_about_a_run(interaction):
        return None
    named = number_option(interaction, "run")
    return named if named is not None else await _run_here(interaction)


def is_about_a_run(interaction: Interaction) -> bool:
    """Whether the command has an option that names a run."""
    command = interaction.command
    return isinstance(command, app_commands.Command) and command.get_parameter("run") is not None


def option(interaction: Interaction, name: str) -> Any:
    """The value of an option of the command, as far as it is typed; None where it is not."""
    return getattr(interaction.namespace, name, None)


def number_option(interaction: Interaction, name: str) -> int | None:
    """The whole number in an option, as far as it is typed; None where there is none."""
    return whole_number(option(interaction, name))


def text_option(interaction: Interaction, name: str) -> str:
    """The text in an option, as far as it is typed; empty where there is none."""
    return str(option(interaction, name) or "").strip()


def whole_number(value: object) -> int | None:
    """The whole number that was typed; None where something else was."""
    try:
        number = int(str(value).strip().replace(",", ""))
    except ValueError:
        return None
    return number if abs(number) <= LARGEST else None


async def _run_here(interaction: Interaction) -> int | None:
    if not isinstance(interaction.channel, discord.Thread):
        return None
    return await interaction.client.read(outbox.run_of_thread, str(interaction.channel.id))
