"""Forms with one field of text, such as the reason of an act, which everyone can read."""

from collections.abc import Callable
from typing import Any, ClassVar

from bot.app import Interaction, actor
from bot.commands.form import Form, long
from projects.text import LONG, USUAL

Done = str | Callable[[Any], str]


class ReasonForm(Form):
    """Calls `act` with `about` and the reason. `done` is the answer, or makes it from what `act` returns."""

    label: ClassVar = "Reason"
    parameter: ClassVar = "reason"
    hint: ClassVar = "Everyone can read it."
    most: ClassVar = USUAL

    def __init__(self, title: str, act: Callable[..., object], about: object, done: Done) -> None:
        self.act, self.about, self.done = act, about, done
        self.said = long(self.most, self.hint)
        super().__init__(title, {self.label: self.said})

    async def send(self, interaction: Interaction) -> str:
        """Call the act with the reason."""
        app, said = interaction.client, {self.parameter: self.said.value}
        result = await app.write(self.act, actor(interaction), self.about, **said)
        return self.done if isinstance(self.done, str) else self.done(result)


class BlankingForm(ReasonForm):
    """The reason why an entry or a person is blanked."""

    hint = "Everyone can read it: say nothing of what is blanked, and name nobody."


class QuestionForm(ReasonForm):
    """A reviewer's question to the person who made a request."""

    label, parameter = "Question", "question"


class AnswerForm(ReasonForm):
    """The answer to a reviewer's question."""

    label, parameter = "Answer", "said"


class ReportForm(ReasonForm):
    """A report on what was done with an allocation."""

    label, parameter, most = "Report", "said", LONG
