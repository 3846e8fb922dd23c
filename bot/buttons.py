"""Buttons that outlive a restart: what they are about stands in their id, the state is read anew at each press."""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Self

import discord
from discord import ui

from bot import errors, text
from bot.app import Interaction, actor
from bot.forms import ApproveForm, DeclineForm
from broker import allocations, reviews
from projects import pipeline


class Button(ui.DynamicItem[ui.Button[Any]], template=r"(?P<act>join|approve|decline):(?P<id>[0-9]{1,18})"):
    """A button that does one of `ACTS` with the project or the request of that number."""

    def __init__(self, act: str, number: int) -> None:
        style, self.press = ACTS[act]
        super().__init__(ui.Button(label=act.capitalize(), style=style, custom_id=f"{act}:{number}"))
        self.number = number

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str]
    ) -> Self:
        """The button that was pressed."""
        return cls(match["act"], int(match["id"]))

    async def callback(self, interaction: discord.Interaction[Any]) -> Any:
        """Do it, or say why not."""
        try:
            await self.press(interaction, self.number)
        except Exception as error:
            await errors.answer(interaction, error)


async def _join(interaction: Interaction, project_id: int) -> None:
    """Make who presses it a member of the project."""
    app = interaction.client
    await interaction.response.defer(ephemeral=True, thinking=True)
    await app.write(pipeline.join, actor(interaction), project_id, min_people=app.settings.min_people)
    project = await app.read(pipeline.view, project_id)
    await errors.reply(interaction, f"Welcome! You are in **{text.line(project.title, 160)}**.")


async def _approve(interaction: Interaction, allocation_id: int) -> None:
    """Open the form by which a reviewer grants a request."""
    await _check_may_decide(interaction, allocation_id)
    request = await interaction.client.read(allocations.view, allocation_id)
    await interaction.response.send_modal(ApproveForm(request.id, request.seconds))


async def _decline(interaction: Interaction, allocation_id: int) -> None:
    """Open the form by which a reviewer refuses a request."""
    await _check_may_decide(interaction, allocation_id)
    await interaction.response.send_modal(DeclineForm(allocation_id))


async def _check_may_decide(interaction: Interaction, allocation_id: int) -> None:
    """Raise the domain's refusal before a form is opened that could not be sent."""
    app = interaction.client
    role = app.settings.reviewer_role_id
    await app.read(reviews.check_may_decide, actor(interaction), allocation_id, reviewer_role_id=role)


ACTS: Mapping[str, tuple[discord.ButtonStyle, Callable[[Interaction, int], Awaitable[None]]]] = {
    "join": (discord.ButtonStyle.success, _join),
    "approve": (discord.ButtonStyle.success, _approve),
    "decline": (discord.ButtonStyle.danger, _decline),
}
