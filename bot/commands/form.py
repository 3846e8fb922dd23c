"""Forms. None of their fields is required and none checks anything: the domain judges what was typed, in its words."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import discord
from discord import ui

from bot import errors, text
from bot.app import Interaction

Input = ui.TextInput[Any]


def short(default: str = "", placeholder: str = "") -> Input:
    """A field of one line."""
    return ui.TextInput(required=False, max_length=4000, default=default or None, placeholder=placeholder or None)


def long(placeholder: str = "", default: str = "") -> Input:
    """A field of several lines."""
    style = discord.TextStyle.paragraph
    return ui.TextInput(
        style=style, required=False, max_length=4000, default=default or None, placeholder=placeholder or None
    )


class Form(ui.Modal):
    """A form whose sending is answered privately: first at once, then with what came of it."""

    def __init__(self, title: str, fields: Mapping[str, ui.Item[Any]]) -> None:
        super().__init__(title=text.bounded(title, 45), timeout=3600)
        for label, component in fields.items():
            self.add_item(ui.Label(text=label, component=component))

    async def on_submit(self, interaction: discord.Interaction[Any]) -> None:
        """Acknowledge, change the state, say so."""
        await interaction.response.defer(ephemeral=True, thinking=True)
        await errors.reply(interaction, await self.send(interaction))

    async def on_error(self, interaction: discord.Interaction[Any], error: Exception, /, *_: Any) -> None:
        """Answer like everything else."""
        await errors.answer(interaction, error)

    @abstractmethod
    async def send(self, interaction: Interaction) -> str:
        """Do what the form is for and return what to say."""
