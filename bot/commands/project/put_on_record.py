"""“Put on record”, in the menu of every message: makes a finding an entry of a project's record."""

from typing import Any

import discord
from discord import app_commands, ui

from bot import errors, text
from bot.app import Interaction, acknowledge, actor
from bot.commands import context
from bot.commands.form import Form, short
from projects import findings
from projects.errors import InvalidError
from projects.findings import Message, RecordedMessage
from projects.people import Actor

MOST_OPTIONS = 25
"""The most projects that Discord lists in a form."""


@app_commands.context_menu(name="Put on record")
async def put_on_record(interaction: Interaction, message: discord.Message) -> None:
    """Put the message on the record of the channel's project, or ask for the project in a form."""
    app = interaction.client
    if app.user is not None and message.author.id == app.user.id:
        raise InvalidError("This is Stoa's own message; what it says is already on record.")
    earlier = await app.read(findings.find, message.id)
    if earlier is not None:
        await errors.reply(interaction, _told(earlier))
        return
    project_id = await context.project_here(interaction)
    if project_id is None:
        choices = await app.read(findings.projects_of, actor(interaction))
        await interaction.response.send_modal(ProjectForm(_said(message), choices))
        return
    await acknowledge(interaction)
    placed = await app.write(findings.put_on_record, actor(interaction), project_id, _said(message))
    await errors.reply(interaction, _told(placed))


class ProjectForm(Form):
    """The project whose record a message belongs to, for channels of no project.

    A list holds 25 projects; who works on more may give the number of another.
    """

    def __init__(self, said: Message, choices: list[tuple[int, str]]) -> None:
        self.said = said
        more = len(choices) > MOST_OPTIONS
        options = [
            discord.SelectOption(label=text.bounded(f"{number} · {title}", 100), value=str(number))
            for number, title in choices[:MOST_OPTIONS]
        ]
        label = f"Your {MOST_OPTIONS} newest projects" if more else "The project whose record it belongs to"
        self.project: ui.Select[Any] = ui.Select(
            placeholder="One of your projects", options=options, min_values=0 if more else 1, required=not more
        )
        fields: dict[str, ui.Item[Any]] = {label: self.project}
        self.number = short(placeholder=f"Of your {len(choices):,} projects", required=False)
        if more:
            fields["Or the number of another"] = self.number
        super().__init__("Put on record", fields)

    async def send(self, interaction: Interaction) -> str:
        """Put the message on the record."""
        chosen, typed = next(iter(self.project.values), ""), self.number.value.strip()
        if not (chosen or typed):
            raise InvalidError("Choose the project whose record it belongs to.")
        if chosen and typed and chosen != typed:
            raise InvalidError(f"Choose project {chosen}, or type the number {typed[:20]}, not both.")
        number = context.whole_number(chosen or typed)
        if number is None:
            raise InvalidError(f"“{typed[:20]}” is no project's number, such as {self.project.options[0].value}.")
        app = interaction.client
        return _told(await app.write(findings.put_on_record, actor(interaction), number, self.said))


def _said(message: discord.Message) -> Message:
    author = Actor(message.author.id, message.author.display_name)
    return Message(message.id, author, message.content, message.created_at, message.jump_url)


def _told(placed: RecordedMessage) -> str:
    if placed.new:
        return f"It is entry {placed.number} of project {placed.project_id}'s record; its post follows."
    return f"This message is already on record: entry {placed.number} of project {placed.project_id}."
