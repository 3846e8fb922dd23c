"""`/project …`: propose, scope, complete, show and list."""

from discord import app_commands
from discord.app_commands import Choice

from bot import errors, lookup, outbox, text
from bot.app import Interaction, actor
from bot.project_card import project_card
from bot.project_forms import CompleteForm, ProposeForm, ScopeForm
from broker import allocations, runs
from projects import pipeline

project = app_commands.Group(name="project", description="Research projects, from proposal to announcement")


@project.command(description="Propose a research project")
async def propose(interaction: Interaction) -> None:
    """Open the form of a proposal."""
    await interaction.response.send_modal(ProposeForm())


@project.command(name="scope", description="Say what your project will do: goal, plan, compute, release")
@app_commands.describe(
    project="The project, where this is not its channel or thread",
    checkpoints="open: public as they come; held: private until reviewers release them",
    licence="The licence of the models",
)
@app_commands.choices(
    checkpoints=[Choice(name=policy, value=policy) for policy in pipeline.ReleasePolicy],
    licence=[Choice(name=licence, value=licence) for licence in pipeline.LICENCES],
)
@app_commands.autocomplete(project=lookup.projects)
async def scope(
    interaction: Interaction,
    project: int | None = None,
    checkpoints: str = pipeline.ReleasePolicy.OPEN,
    licence: str = pipeline.LICENCES[0],
) -> None:
    """Open the form of the scope for the lead."""
    project_id = await lookup.project_of(interaction, project)
    await interaction.client.read(pipeline.check_lead, actor(interaction), project_id)
    await interaction.response.send_modal(ScopeForm(project_id, checkpoints, licence))


@project.command(name="complete", description="End your project with its outcome and what was learnt")
@app_commands.describe(project="The project, where this is not its channel or thread")
@app_commands.autocomplete(project=lookup.projects)
async def complete(interaction: Interaction, project: int | None = None) -> None:
    """Open the form of the outcome for the lead."""
    project_id = await lookup.project_of(interaction, project)
    await interaction.client.read(pipeline.check_lead, actor(interaction), project_id)
    await interaction.response.send_modal(CompleteForm(project_id))


@project.command(name="show", description="Show a project: its question, people, compute and runs")
@app_commands.describe(project="The project, where this is not its channel or thread")
@app_commands.autocomplete(project=lookup.projects)
async def show(interaction: Interaction, project: int | None = None) -> None:
    """Show the project's card."""
    app = interaction.client
    project_id = await lookup.project_of(interaction, project)
    view = await app.read(pipeline.view, project_id)
    requests = await app.read(allocations.of_project, project_id)
    newest = await app.read(runs.of_project, project_id, kind="train", limit=4)
    rooms = await app.read(outbox.rooms, project_id)
    room = rooms.get(f"project:{project_id}")
    card = project_card(view, requests, newest, channel_id=room.channel_id if room else None, buttons=False)
    await interaction.response.send_message(view=card, ephemeral=True)


@project.command(name="list", description="List the newest projects")
async def list_projects(interaction: Interaction) -> None:
    """List them."""
    views = await interaction.client.read(pipeline.views)
    lines = [
        f"**{view.id}** {text.line(view.title, 160)} · {view.stage} · {text.line(view.lead.name, 60)}" for view in views
    ]
    await errors.reply(interaction, "\n".join(lines) or "There is no project yet: /project propose begins one.")
