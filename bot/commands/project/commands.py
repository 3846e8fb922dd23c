"""`/project …`: propose, show and list projects, and what their people do with them, from the first join to the end."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import discord
from discord import app_commands
from discord.app_commands import Choice

from bot import errors, text
from bot.app import Interaction, acknowledge, actor
from bot.cards.project_card import project_card
from bot.commands import autocomplete, context
from bot.commands.last_question import LastQuestion
from bot.commands.project import buttons
from bot.commands.project.forms import HandoverForm, NeedsForm, ScopeForm, UpdateForm
from bot.commands.reason_form import ReasonForm
from bot.delivery import card_updates
from projects import lifecycle, membership, moderation, projects
from projects.projects import Stage
from projects.rights import Act

project = app_commands.Group(name="project", description="Research projects, from proposal to announcement")

REMOVED = "They are removed; the project's record says so.\n**Next** `/project needs` says who is needed now."
APPOINTED = (
    "The project has its new lead; its record says so.\n"
    "**Next** `/stoa help` in its channel or thread shows them what they can do."
)

Command = TypeVar("Command", bound=Callable[..., Any])


def of_project(command: Command) -> Command:
    """Describe the option “project”, which names another project than the channel's, and suggest open projects."""
    return app_commands.autocomplete(project=autocomplete.open_projects)(_described(command))


def of_any_project(command: Command) -> Command:
    """Describe the option “project”, and suggest ended projects too."""
    return app_commands.autocomplete(project=autocomplete.listed_projects)(_described(command))


def _described(command: Command) -> Command:
    return app_commands.describe(project="The project, where this is not its channel or thread")(command)


@project.command(description="Propose a research project")
async def propose(interaction: Interaction) -> None:
    """Open the form of a proposal."""
    await buttons.propose(interaction, 0)


@project.command(name="scope", description="Say what your project will do: goal, plan, compute, release")
@app_commands.describe(
    checkpoints="open: public as they come; held: private until reviewers release them",
    licence="The licence of the models",
)
@app_commands.choices(
    checkpoints=[Choice(name=policy, value=policy) for policy in projects.ReleasePolicy],
    licence=[Choice(name=licence, value=licence) for licence in projects.LICENCES],
)
@of_project
async def scope(
    interaction: Interaction,
    project: int | None = None,
    checkpoints: str = projects.ReleasePolicy.OPEN,
    licence: str = projects.LICENCES[0],
) -> None:
    """Open the form of the scope for the lead."""
    project_id = await context.project_of(interaction, project)
    await interaction.client.read(lifecycle.check_may_scope, actor(interaction), project_id)
    await interaction.response.send_modal(ScopeForm(project_id, checkpoints, licence))


@project.command(name="join", description="Work on a project")
@of_project
async def join(interaction: Interaction, project: int | None = None) -> None:
    """Make the user a newcomer or a contributor."""
    await _act(interaction, project, buttons.joined)


@project.command(name="follow", description="Follow a project: it counts you among its followers")
@of_project
async def follow(interaction: Interaction, project: int | None = None) -> None:
    """Make the user a follower."""
    await _act(interaction, project, buttons.followed)


@project.command(name="leave", description="Leave a project that you work on, or follow it no longer")
@of_any_project
async def leave(interaction: Interaction, project: int | None = None) -> None:
    """End the user's membership."""
    await _act(interaction, project, _left)


@project.command(name="confirm", description="Confirm a newcomer to your project as a contributor")
@app_commands.describe(person="Who has joined")
@of_project
async def confirm(interaction: Interaction, person: discord.User, project: int | None = None) -> None:
    """Confirm the newcomer."""
    await acknowledge(interaction)
    project_id, who = await context.project_of(interaction, project), str(person.id)
    name = await interaction.client.write(membership.confirm, actor(interaction), project_id, who=who)
    await errors.reply(interaction, await buttons.now_contributes(interaction, project_id, name))


@project.command(name="remove", description="Remove a newcomer or contributor from your project, with a reason")
@app_commands.describe(person="The person to remove; their runs stay with the project")
@of_project
async def remove(interaction: Interaction, person: discord.User, project: int | None = None) -> None:
    """Open the form of the reason."""
    project_id, who = await context.project_of(interaction, project), str(person.id)
    await interaction.client.read(membership.check_may_remove, actor(interaction), project_id, who=who)
    act, done = functools.partial(membership.remove, who=who), REMOVED
    await interaction.response.send_modal(ReasonForm(f"Remove {person.display_name}", act, project_id, done))


@project.command(name="appoint", description="Appoint another lead, if the project's own is banned or gone: for admins")
@app_commands.describe(person="The new lead: a contributor or newcomer")
@of_project
async def appoint(interaction: Interaction, person: discord.User, project: int | None = None) -> None:
    """Open the form of the reason."""
    project_id, to = await context.project_of(interaction, project), str(person.id)
    await interaction.client.read(membership.check_may_appoint, actor(interaction), project_id, to=to)
    act, done = functools.partial(membership.appoint_lead, to=to), APPOINTED
    await interaction.response.send_modal(ReasonForm(f"Appoint {person.display_name}", act, project_id, done))


@project.command(name="update", description="Tell everyone how your project is going")
@of_project
async def update(interaction: Interaction, project: int | None = None) -> None:
    """Open the form of an update."""
    project_id = await context.project_of(interaction, project)
    await interaction.client.read(lifecycle.check_may, actor(interaction), project_id, Act.POST_UPDATE)
    await interaction.response.send_modal(UpdateForm(project_id))


@project.command(name="needs", description="Say who your project is looking for")
@of_project
async def needs(interaction: Interaction, project: int | None = None) -> None:
    """Open the form with what the project says now."""
    project_id = await context.project_of(interaction, project)
    view = await interaction.client.read(lifecycle.check_may, actor(interaction), project_id, Act.CHANGE_NEEDS)
    await interaction.response.send_modal(NeedsForm(project_id, view.needs))


@project.command(name="handover", description="Offer the lead of your project to one of its contributors")
@app_commands.describe(person="The contributor to offer it to; they accept or decline")
@of_project
async def handover(interaction: Interaction, person: discord.User, project: int | None = None) -> None:
    """Open the form of the offer."""
    project_id, to = await context.project_of(interaction, project), str(person.id)
    await interaction.client.read(membership.check_may_offer, actor(interaction), project_id, to=to)
    await interaction.response.send_modal(HandoverForm(project_id, to, person.display_name))


@project.command(name="pause", description="Pause your project: nothing more is launched in it for now")
@of_project
async def pause(interaction: Interaction, project: int | None = None) -> None:
    """Open the form of the reason."""
    project_id = await context.project_of(interaction, project)
    await interaction.client.read(lifecycle.check_may, actor(interaction), project_id, Act.PAUSE, to=Stage.PAUSED)
    done = "The project is paused; /project resume ends the pause."
    await interaction.response.send_modal(ReasonForm("Pause the project", lifecycle.pause, project_id, done))


@project.command(name="resume", description="Resume your paused project")
@of_project
async def resume(interaction: Interaction, project: int | None = None) -> None:
    """Resume the project."""
    await _act(interaction, project, _resumed)


@project.command(name="complete", description="End your project with its outcome and what was learnt")
@of_project
async def complete(interaction: Interaction, project: int | None = None) -> None:
    """Ask the lead whether the project shall end; the form of the outcome comes then."""
    await _ask(interaction, project, buttons.COMPLETE)


@project.command(name="stop", description="End a project for good, without an outcome: for its lead and moderators")
@of_project
async def stop(interaction: Interaction, project: int | None = None) -> None:
    """Ask whether the project shall end; the form of the reason comes then."""
    await _ask(interaction, project, buttons.STOP)


@project.command(name="release", description="Open the held checkpoints of a project to everyone: for reviewers")
@of_any_project
async def release(interaction: Interaction, project: int | None = None) -> None:
    """Ask whether the checkpoints shall be public; the form of the reason comes then."""
    await _ask(interaction, project, buttons.RELEASE)


@project.command(name="open", description="Give a project its channel: for moderators")
@of_project
async def open_channel(interaction: Interaction, project: int | None = None) -> None:
    """Open the project's channel."""
    await _act(interaction, project, _opened)


@project.command(name="hide", description="Take a project out of lists and suggestions: for moderators")
@of_any_project
async def hide(interaction: Interaction, project: int | None = None) -> None:
    """Open the form of the reason."""
    project_id = await context.project_of(interaction, project)
    await interaction.client.read(lifecycle.check_may, actor(interaction), project_id, Act.HIDE)
    done = "The project is no longer in any list; /project unhide shows it again, by its number."
    await interaction.response.send_modal(ReasonForm("Hide the project", moderation.hide, project_id, done))


@project.command(name="unhide", description="Show a hidden project again: for moderators")
@app_commands.describe(project="The project, where this is not its channel or thread")
@app_commands.autocomplete(project=autocomplete.hidden_projects)
async def unhide(interaction: Interaction, project: int | None = None) -> None:
    """Open the form of the reason."""
    project_id = await context.project_of(interaction, project)
    await interaction.client.read(lifecycle.check_may, actor(interaction), project_id, Act.UNHIDE)
    form = ReasonForm("Show the project", moderation.unhide, project_id, "The project is in the lists again.")
    await interaction.response.send_modal(form)


@project.command(name="show", description="Show a project: its question, people, compute and runs")
@of_any_project
async def show(interaction: Interaction, project: int | None = None) -> None:
    """Show the project's card."""
    await acknowledge(interaction)
    app = interaction.client
    project_id = await context.project_of(interaction, project)
    view, requests, newest, channel_id = await app.read(card_updates.card_contents, project_id)
    card = project_card(view, requests, newest, channel_id=channel_id, min_people=app.settings.min_people)
    await errors.again(lambda: interaction.edit_original_response(view=card))


@project.command(name="list", description="List the newest projects")
@app_commands.describe(stage="Only projects in this stage")
@app_commands.choices(stage=[Choice(name=stage, value=stage) for stage in Stage])
async def list_projects(interaction: Interaction, stage: str | None = None) -> None:
    """List the projects."""
    await acknowledge(interaction)
    views = await interaction.client.read(projects.views, stage=stage)
    there_are = await interaction.client.read(projects.count, stage=stage)
    lines = [
        f"**{view.id}** {text.line(view.title, 160)} · {view.stage} · {text.line(view.lead.name, 60)}" for view in views
    ]
    none = f"No project is {stage} now." if stage else "There is no project yet: /project propose begins one."
    await errors.reply(interaction, text.listed(lines, of=there_are) or none)


async def _act(interaction: Interaction, named: int | None, act: buttons.Answering) -> None:
    """Acknowledge the command, act, and answer."""
    await acknowledge(interaction)
    project_id = await context.project_of(interaction, named)
    await errors.reply(interaction, await act(interaction, project_id))


async def _ask(interaction: Interaction, named: int | None, question: LastQuestion) -> None:
    """Acknowledge the command, and ask once more."""
    await acknowledge(interaction)
    await question.ask(interaction, await context.project_of(interaction, named))


async def _left(interaction: Interaction, project_id: int) -> str:
    await interaction.client.write(membership.leave, actor(interaction), project_id)
    return "You have left the project. You are welcome back at any time: /project join."


async def _resumed(interaction: Interaction, project_id: int) -> str:
    await interaction.client.write(lifecycle.resume, actor(interaction), project_id)
    return f"The project is resumed.\n{await buttons.comes(interaction, project_id)}"


async def _opened(interaction: Interaction, project_id: int) -> str:
    await interaction.client.write(moderation.open_channel, actor(interaction), project_id)
    return "The project's channel opens in a moment.\n**Next** The lead asks for compute there: `/allocation request`."
