"""Buttons that outlive a restart: what they are about stands in their id, the state is read anew at each press."""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Self

import discord
from discord import ui

from bot import errors
from bot.app import Interaction
from projects.errors import ConflictError

Press = Callable[[Interaction, int], Awaitable[None]]

_presses: dict[str, Press] = {}


class Button(ui.DynamicItem[ui.Button[Any]], template=r"(?P<act>[a-z_]+):(?P<id>[0-9]{1,18})"):
    """A button that does the act of its name with the project, request or run of its number."""

    def __init__(
        self,
        act: str,
        number: int,
        *,
        label: str = "",
        style: discord.ButtonStyle = discord.ButtonStyle.secondary,
    ) -> None:
        super().__init__(ui.Button(label=label or act.capitalize(), style=style, custom_id=f"{act}:{number}"))
        self.act, self.number = act, number

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str]
    ) -> Self:
        """The button that was pressed."""
        return cls(match["act"], int(match["id"]))

    async def callback(self, interaction: discord.Interaction[Any]) -> Any:
        """Do it, or say why not."""
        try:
            if self.act not in _presses:
                raise ConflictError("This button is of an earlier version of Stoa; the newest card has its successor.")
            await _presses[self.act](interaction, self.number)
        except Exception as error:
            await errors.answer(interaction, error)


def register(presses: Mapping[str, Press]) -> None:
    """Say what buttons are pressed for, by the names of their acts."""
    _presses.update(presses)
