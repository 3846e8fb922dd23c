"""Buttons that outlive a restart: their id says what they do to what, and each press reads the present state."""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Self

import discord
from discord import ui

from bot import errors
from bot.app import Interaction, take
from projects.errors import ConflictError

Handler = Callable[[Interaction, int], Awaitable[None]]
"""Handles a press of a button, given the number in its id."""

_handlers: dict[str, Handler] = {}
"""The handler of each act."""


class Button(ui.DynamicItem[ui.Button[Any]], template=r"(?P<act>[a-z_]+):(?P<id>[0-9]{1,18})"):
    """A button that does `act` to the project, request or run with the number `number`."""

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
        """Make the button that was pressed from its id."""
        return cls(match["act"], int(match["id"]))

    async def callback(self, interaction: discord.Interaction[Any]) -> Any:
        """Call the handler of the button's act, and answer any error."""
        take(interaction)
        try:
            if self.act not in _handlers:
                raise ConflictError("This button is from an earlier version of Stoa: use the one on the newest card.")
            await _handlers[self.act](interaction, self.number)
        except Exception as error:
            await errors.answer(interaction, error)


def row(buttons: Sequence[Button]) -> ui.View:
    """Buttons under a private answer that is plain text."""
    view = ui.View(timeout=None)
    for button in buttons:
        view.add_item(button)
    return view


def register(handlers: Mapping[str, Handler]) -> None:
    """Let these functions handle the presses of buttons, by the names of their acts."""
    _handlers.update(handlers)
