"""Buttons that outlive a restart: what they are about stands in their id, the state is read anew at each press."""

import re
from typing import Any, Self

import discord
from discord import ui

from bot import errors, text
from bot.app import Interaction, actor
from bot.forms import ApproveForm, DeclineForm
from broker import allocations
from projects import pipeline


class Join(ui.DynamicItem[ui.Button[Any]], template=r"join:(?P<id>[0-9]{1,18})"):
    """Makes who presses it a member of the project."""

    def __init__(self, project_id: int) -> None:
        super().__init__(ui.Button(label="Join", style=discord.ButtonStyle.success, custom_id=f"join:{project_id}"))
        self.project_id = project_id

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str]
    ) -> Self:
        """The button that was pressed."""
        return cls(int(match["id"]))

    async def callback(self, interaction: discord.Interaction[Any]) -> Any:
        """Join."""
        app = interaction.client
        try:
            await interaction.response.defer(ephemeral=True, thinking=True)
            await app.write(pipeline.join, actor(interaction), self.project_id, min_people=app.settings.min_people)
            project = await app.read(pipeline.view, self.project_id)
            await errors.reply(interaction, f"Welcome! You are in **{text.line(project.title, 160)}**.")
        except Exception as error:
            await errors.answer(interaction, error)


class Approve(ui.DynamicItem[ui.Button[Any]], template=r"approve:(?P<id>[0-9]{1,18})"):
    """Opens the form by which a reviewer grants a request."""

    def __init__(self, allocation_id: int) -> None:
        label = ui.Button[Any](label="Approve", style=discord.ButtonStyle.success, custom_id=f"approve:{allocation_id}")
        super().__init__(label)
        self.allocation_id = allocation_id

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str]
    ) -> Self:
        """The button that was pressed."""
        return cls(int(match["id"]))

    async def callback(self, interaction: discord.Interaction[Any]) -> Any:
        """Show the form, or say why not."""
        try:
            await check_may_decide(interaction, self.allocation_id)
            request = await interaction.client.read(allocations.view, self.allocation_id)
            await interaction.response.send_modal(ApproveForm(request.id, request.seconds))
        except Exception as error:
            await errors.answer(interaction, error)


class Decline(ui.DynamicItem[ui.Button[Any]], template=r"decline:(?P<id>[0-9]{1,18})"):
    """Opens the form by which a reviewer refuses a request."""

    def __init__(self, allocation_id: int) -> None:
        label = ui.Button[Any](label="Decline", style=discord.ButtonStyle.danger, custom_id=f"decline:{allocation_id}")
        super().__init__(label)
        self.allocation_id = allocation_id

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str]
    ) -> Self:
        """The button that was pressed."""
        return cls(int(match["id"]))

    async def callback(self, interaction: discord.Interaction[Any]) -> Any:
        """Show the form, or say why not."""
        try:
            await check_may_decide(interaction, self.allocation_id)
            await interaction.response.send_modal(DeclineForm(self.allocation_id))
        except Exception as error:
            await errors.answer(interaction, error)


async def check_may_decide(interaction: Interaction, allocation_id: int) -> None:
    """Raise the domain's refusal before a form is opened that could not be sent."""
    app = interaction.client
    role = app.settings.reviewer_role_id
    await app.read(allocations.check_may_decide, actor(interaction), allocation_id, reviewer_role_id=role)
