"""Forms. Discord checks that required fields are filled and none is too long; the domain checks everything else.

What was written is never lost: where a form fails, its author gets the text back.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import discord
from discord import ui

from bot import errors, kept_forms, text
from bot.app import Interaction, acknowledge, take, taken
from bot.buttons import Button, Handler, row
from projects import cleaning
from projects.errors import AwayError, ConflictError, InvalidError, OverError

MOST = 4000
MOST_OPTIONS = 25
"""The options that Discord lets a select have."""
HOUR_SECONDS, DAY_SECONDS = 3600.0, 86400.0
CLOSED = (
    "This form is closed, and nothing has changed: it was already sent, was opened long ago, or Stoa has restarted "
    "since. Use the command or the button again"
)
OUTDATED = (
    "These buttons no longer work, and nothing has changed: they are old, or Stoa has restarted since. Use the "
    "command again."
)


class Input(ui.TextInput[Any]):
    """A field of text, whose value is what can be seen of what was typed."""

    @property
    def value(self) -> str:
        """What was typed."""
        return cleaning.visible(super().value)


def short(default: str = "", placeholder: str = "", most: int = MOST, *, required: bool = True) -> Input:
    """A field of one line."""
    return Input(required=required, max_length=most, default=default or None, placeholder=placeholder or None)


def long(most: int, placeholder: str = "", default: str = "", *, required: bool = True) -> Input:
    """A field of several lines, for at most `most` characters, which is the domain's limit."""
    style, most = discord.TextStyle.paragraph, max(most, text.length(default))
    return Input(
        style=style, required=required, max_length=most, default=default or None, placeholder=placeholder or None
    )


def choice(options: Sequence[tuple[str, str]]) -> ui.Select[Any]:
    """A select for one of the options, each given as label and value; the command's own option finds the others."""
    shown = [discord.SelectOption(label=text.bounded(name, 100), value=value) for name, value in options[:MOST_OPTIONS]]
    few = f"{MOST_OPTIONS} of {len(options):,}; the command's option finds the others"
    return ui.Select(options=shown, placeholder=few if len(options) > MOST_OPTIONS else None)


class Form(ui.Modal):
    """A form that is acknowledged privately at once, and answered once `send` has done its work.

    `then` are the buttons under the answer, for what comes next.
    """

    then: Sequence[Button] = ()
    made_with: tuple[Sequence[Any], Mapping[str, Any]]

    def __new__(cls, *arguments: Any, **keywords: Any) -> Self:
        """A form that knows what it was made with, so that it can be made again."""
        form = super().__new__(cls)
        form.made_with = (arguments, keywords)
        return form

    def __init__(self, title: str, fields: Mapping[str, ui.Item[Any]]) -> None:
        super().__init__(title=text.bounded(title, 45), timeout=HOUR_SECONDS)
        self.fields = fields
        for label, component in fields.items():
            self.add_item(ui.Label(text=label, component=component))

    async def on_submit(self, interaction: discord.Interaction[Any]) -> None:
        """Acknowledge the form, do its work, and answer."""
        take(interaction)
        await acknowledge(interaction)
        await self.answer(interaction)

    async def on_error(self, interaction: discord.Interaction[Any], error: Exception, /, *_: Any) -> None:
        """Answer an error as everywhere else, and give the author back what they wrote, if it was more than a line."""
        typed = {
            label: field for label, field in self.fields.items() if isinstance(field, ui.TextInput) and field.value
        }
        away = isinstance(error, AwayError)
        prose = away or any(field.style is discord.TextStyle.paragraph for field in typed.values())
        written = "\n\n".join(f"{label}\n{field.value}" for label, field in typed.items()) if prose else ""
        mendable = isinstance(error, (InvalidError, ConflictError)) and not isinstance(error, OverError)
        label = "Open the form again" if away else "Edit and resend" if mendable else ""
        offer = None if not label else Again(self, label) if away else await self._kept(interaction, label)
        await errors.answer(interaction, error, written, offer)

    async def _kept(self, interaction: discord.Interaction[Any], label: str) -> ui.View:
        """The button that opens this form again as it was filled in, after a restart too where the form can be kept."""
        try:
            kept = kept_forms.encoded([type(self), *self.made_with, self.written()])
            number = await interaction.client.write(kept_forms.keep, interaction.user.id, kept)
        except (TypeError, AwayError):
            return Again(self, label)
        return row([Button("edit_form", number, label=label, style=discord.ButtonStyle.primary)])

    def written(self) -> dict[str, Any]:
        """What was written and chosen, by the labels of the fields."""
        fields = self.fields.items()
        chosen = {label: list(field.values) for label, field in fields if isinstance(field, ui.Select)}
        return chosen | {label: field.value for label, field in fields if isinstance(field, ui.TextInput)}

    def fill(self, written: Mapping[str, Any]) -> None:
        """Let the form open with what was written and chosen, also where a field has become shorter meanwhile."""
        for label, field in self.fields.items():
            if isinstance(field, ui.TextInput) and label in written:
                said = text.bounded(written[label], MOST)
                field.default, field.max_length = said or None, max(field.max_length or MOST, text.length(said))
            elif isinstance(field, ui.Select):
                for option in field.options:
                    option.default = option.value in written.get(label, ())

    async def answer(self, interaction: Interaction) -> None:
        """Do the form's work, and answer with the result."""
        said = await self.send(interaction)
        await errors.reply(interaction, said, offer=row(self.then) if self.then else None)

    async def send(self, interaction: Interaction) -> str:
        """Do what the form is for, and return the answer; a form that answers with a card overrides `answer`."""
        raise NotImplementedError


class Again(ui.View):
    """The button that opens a form again, for a day, with what was written and chosen in it, while the database is away
    and for a form that cannot be kept there; a restart ends it."""

    def __init__(self, form: Form, label: str) -> None:
        super().__init__(timeout=DAY_SECONDS)
        self.form = form
        form.timeout = DAY_SECONDS + HOUR_SECONDS  # a form that has timed out cannot be opened again
        self.open_again.label = label
        form.fill(form.written())

    async def interaction_check(self, interaction: discord.Interaction[Any], /) -> bool:
        """Take the press."""
        take(interaction)
        return True

    @ui.button(style=discord.ButtonStyle.primary)
    async def open_again(self, interaction: discord.Interaction[Any], _: ui.Button[Any]) -> None:
        """Open the form."""
        await interaction.response.send_modal(self.form)


async def edit(interaction: Interaction, number: int) -> None:
    """Open a kept form with what was written in it."""
    kept = await interaction.client.read(kept_forms.load, interaction.user.id, number)
    try:
        kind, arguments, keywords, written = kept
        form = kind(*arguments, **keywords)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConflictError(kept_forms.OUTDATED) from error
    form.fill(written)
    await interaction.response.send_modal(form)


async def answer_closed(interaction: Interaction) -> None:
    """Answer a form or a button that the bot no longer has, and give the form's author back what they wrote."""
    if taken(interaction):
        return
    if interaction.type is discord.InteractionType.component:
        await errors.reply(interaction, OUTDATED)
    elif interaction.type is discord.InteractionType.modal_submit:
        written = "\n\n".join(_typed(interaction.data))
        await errors.reply(interaction, f"{CLOSED}{'; what you wrote is attached' if written else ''}.", written)


def _typed(data: Any) -> Iterator[str]:
    """The texts that were typed, at any depth of the data that Discord sends of a form."""
    if isinstance(data, list):
        for item in data:
            yield from _typed(item)
    elif isinstance(data, dict):
        if data.get("type") == discord.ComponentType.text_input.value and data.get("value"):
            yield str(data["value"])
        yield from _typed([data.get("components"), data.get("component")])


HANDLERS: Mapping[str, Handler] = {"edit_form": edit}
