"""The forms of every act that needs nothing but some words, which everyone can read."""

from collections.abc import Callable
from typing import ClassVar

from bot.app import Interaction, actor
from bot.commands.form import Form, long
from projects.text import LONG, USUAL


class ReasonForm(Form):
    """Does `act` with what the number names; `done` is the answer, `roles` are ids that the domain asks for."""

    label: ClassVar = "Reason"
    parameter: ClassVar = "reason"
    most: ClassVar = USUAL

    def __init__(self, title: str, act: Callable[..., object], number: int, done: str, **roles: int) -> None:
        self.act, self.number, self.done, self.roles = act, number, done, roles
        self.said = long(self.most, "Everyone can read it.")
        super().__init__(title, {self.label: self.said})

    async def send(self, interaction: Interaction) -> str:
        """Do it."""
        said = {self.parameter: self.said.value}
        await interaction.client.write(self.act, actor(interaction), self.number, **said, **self.roles)
        return self.done


class QuestionForm(ReasonForm):
    """A question to who asked for something."""

    label, parameter = "Question", "question"


class AnswerForm(ReasonForm):
    """The answer to one."""

    label, parameter = "Answer", "said"


class ReportForm(ReasonForm):
    """What has come of something."""

    label, parameter, most = "Report", "said", LONG
