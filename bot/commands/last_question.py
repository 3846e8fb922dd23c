"""Asks once more before an act that cannot be undone: a private answer tells what it does, with a red button for it."""

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import discord
from discord import ui
from sqlalchemy.orm import Session

from bot import errors, text
from bot.app import Interaction, acknowledge, actor, take
from bot.buttons import Button, Handler
from projects.errors import ConflictError
from projects.people import Actor

NO_WAY_BACK = "**This cannot be undone.**"
CHANGED = "Nothing has been done yet: something changed after you were asked, so please read once more."

_questions: dict[str, "LastQuestion"] = {}
"""The question before each act."""


class Told(NamedTuple):
    """What an act would do, in a few sentences, and what it is `about`: where that changes, people are asked again.

    GPU-hours, say, change all the time while runs go on.
    """

    said: str
    about: str


class LastQuestion:
    """The question before an act, which is about a project, run or the like with a number.

    `tells` only reads: it returns what the act would do now, and raises the errors of the act. `do` does the act or
    opens its form. `label` names the act on the red button; “{}” in it stands for the number.
    """

    def __init__(self, act: str, label: str, tells: Callable[[Session, Actor, int], Told], do: Handler) -> None:
        self.act, self.label, self.tells, self.do = act, label, tells, do
        _questions[act] = self

    async def ask(self, interaction: Interaction, number: int) -> None:
        """Say privately what the act would do, with the button that does it."""
        await acknowledge(interaction)
        told = await interaction.client.read(self.tells, actor(interaction), number)
        await errors.reply(interaction, _asked(told.said), offer=self.buttons(number, told))

    def buttons(self, number: int, told: Told) -> ui.View:
        """The buttons under the question."""
        view = ui.View(timeout=None)
        view.add_item(DoIt(self.act, number, _digest(told.about), self.label.format(number)))
        view.add_item(Button("keep", number, label="Keep it"))
        return view


class DoIt(ui.DynamicItem[ui.Button[Any]], template=r"do:(?P<act>[a-z_]+):(?P<id>[0-9]{1,19}):(?P<told>[0-9a-f]{8})"):
    """The red button, which outlives a restart. Its id holds a digest of what the question was about.

    Where the act would now do something else, a press asks again.
    """

    def __init__(self, act: str, number: int, told: str, label: str = "") -> None:
        style, name = discord.ButtonStyle.danger, f"do:{act}:{number}:{told}"
        super().__init__(ui.Button(label=label or act, style=style, custom_id=name))
        self.act, self.number, self.told = act, number, told

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str]
    ) -> Self:
        """Make the button that was pressed from its id."""
        return cls(match["act"], int(match["id"]), match["told"])

    async def callback(self, interaction: discord.Interaction[Any]) -> Any:
        """Do the act where it still does what was told."""
        take(interaction)
        try:
            if self.act not in _questions:
                raise ConflictError("This button is from an earlier version of Stoa: use the command again.")
            question = _questions[self.act]
            told = await interaction.client.read(question.tells, actor(interaction), self.number)
            if _digest(told.about) == self.told:
                await question.do(interaction, self.number)
                return
            again = text.bounded(f"{CHANGED}\n{_asked(told.said)}", text.MESSAGE)
            await interaction.response.edit_message(content=again, view=question.buttons(self.number, told))
        except Exception as error:
            await errors.answer(interaction, error)


async def answer(interaction: Interaction, said: str) -> None:
    """Let the answer to a press take the place of the question; the press was deferred."""
    await errors.again(lambda: interaction.edit_original_response(content=text.bounded(said, text.MESSAGE), view=None))


async def keep(interaction: Interaction, _: int) -> None:
    """Take the question back."""
    await interaction.response.edit_message(content="Nothing has changed.", view=None)


def _asked(told: str) -> str:
    return f"{told}\n{NO_WAY_BACK}"


def _digest(about: str) -> str:
    return hashlib.sha256(about.encode()).hexdigest()[:8]


HANDLERS: Mapping[str, Handler] = {"keep": keep}
