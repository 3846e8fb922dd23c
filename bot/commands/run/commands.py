"""`/run …`: launch, look at, pause and go on, fork, sample from and compare runs."""

import io

import discord
from discord import app_commands

from bot import errors, text
from bot.app import Interaction, actor
from bot.cards.run_card import run_card
from bot.commands import lookup
from bot.commands.run import answers, buttons, suggestions
from bot.plots.curve_of_run import curve_of
from broker.reports import run_plan, why
from broker.runs import comparison, control, launching, logs, runs
from broker.runs.launching import Order
from broker.runs.runs import RunKind, RunState

run = app_commands.Group(name="run", description="Runs of the shared trainer")

RUN = "Its number, where this is not its thread"
PROJECT = "The project, where this is not its channel or one of its threads"
OVERRIDE = "Changes to the recipe, such as learning_rate=0.001, seed=7"
TIME_LIMIT = "The longest it may take, such as 45m, 2h or 1h30m"


@run.command(name="launch", description="See what a run of a recipe would cost, then launch it")
@app_commands.describe(
    recipe="What to train",
    time_limit=TIME_LIMIT,
    gpus="How many GPUs; 1 where not given",
    steps="How many steps; as the recipe has it where not given",
    override=OVERRIDE,
    dataset="A dataset of the catalogue that the recipe must train on",
    allocation="The allocation to draw on; the newest approved one otherwise",
    project=PROJECT,
)
@app_commands.autocomplete(recipe=suggestions.recipes, time_limit=suggestions.time_limits)
@app_commands.autocomplete(override=suggestions.overrides, dataset=suggestions.datasets)
@app_commands.autocomplete(gpus=suggestions.gpus, steps=suggestions.steps)
@app_commands.autocomplete(allocation=lookup.live_allocations, project=lookup.open_projects)
async def launch(
    interaction: Interaction,
    recipe: str,
    time_limit: str,
    gpus: int = 1,
    steps: int | None = None,
    override: str = "",
    dataset: str = "",
    allocation: int | None = None,
    project: int | None = None,
) -> None:
    """Offer the run with its cost; the button launches it."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    project_id = await lookup.project_of(interaction, project)
    overrides = suggestions.with_steps(override, steps)
    order = Order(project_id, recipe, time_limit, gpus, overrides, allocation, dataset=dataset)
    preview = await interaction.client.write(run_plan.plan_run, actor(interaction), str(interaction.id), order)
    await answers.show(interaction, answers.offer(preview))


@run.command(name="fork", description="Launch a run that goes on from a checkpoint of another")
@app_commands.describe(
    step="The step of the checkpoint",
    run="The run to fork, where this is not its thread",
    override=OVERRIDE,
    time_limit=f"{TIME_LIMIT}; as the run's where not given",
    gpus="How many GPUs; as the run's where not given",
    allocation="The allocation to draw on",
)
@app_commands.autocomplete(step=suggestions.kept_steps, run=suggestions.kept_run)
@app_commands.autocomplete(gpus=suggestions.gpus, allocation=suggestions.allocations_of_run)
@app_commands.autocomplete(time_limit=suggestions.time_limits, override=suggestions.overrides)
async def fork(
    interaction: Interaction,
    step: int,
    run: int | None = None,
    override: str = "",
    time_limit: str | None = None,
    gpus: int | None = None,
    allocation: int | None = None,
) -> None:
    """Offer the fork with its cost; the button launches it."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    preview = await interaction.client.write(
        run_plan.plan_fork,
        actor(interaction),
        str(interaction.id),
        await suggestions.run_of(interaction, run),
        step,
        overrides=override,
        time_limit=time_limit,
        gpus=gpus,
        allocation_id=allocation,
    )
    await answers.show(interaction, answers.offer(preview))


@run.command(name="rerun", description="Launch a run anew, as it was")
@app_commands.describe(run=RUN)
@app_commands.autocomplete(run=suggestions.any_run)
async def rerun(interaction: Interaction, run: int | None = None) -> None:
    """Offer it with its cost; the button launches it."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    run_id = await suggestions.run_of(interaction, run)
    preview = await interaction.client.write(run_plan.plan_rerun, actor(interaction), str(interaction.id), run_id)
    await answers.show(interaction, answers.offer(preview))


@run.command(name="show", description="Show how a run stands")
@app_commands.describe(run=RUN)
@app_commands.autocomplete(run=suggestions.any_run)
async def show(interaction: Interaction, run: int | None = None) -> None:
    """Show the run's card."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    app = interaction.client
    view = await app.read(runs.view, await suggestions.run_of(interaction, run))
    waits = await app.read(why.why, view.id) if view.state == RunState.QUEUED else None
    curve = await app.read(curve_of, view)
    if len(curve.loss) < 2:
        await answers.show(interaction, run_card(view, why=waits))
        return
    name = f"run-{view.id}.png"
    picture = discord.File(io.BytesIO(await app.renderer.draw(curve)), name)
    await answers.show(interaction, run_card(view, picture=name, why=waits), picture)


@run.command(name="list", description="List the newest runs of a project")
@app_commands.describe(project=PROJECT)
@app_commands.autocomplete(project=lookup.projects)
async def list_runs(interaction: Interaction, project: int | None = None) -> None:
    """List them."""
    project_id = await lookup.project_of(interaction, project)
    views = await interaction.client.read(runs.of_project, project_id, kind=RunKind.TRAIN, limit=15)
    lines = [
        f"**{view.id}** {text.code(view.recipe, 60)} · {view.state} · step {view.step:,} of {view.total_steps:,} · "
        f"{text.line(view.requested_by, 60)}"
        for view in views
    ]
    await errors.reply(interaction, text.listed(lines) or "No run yet: /run launch starts one.")


@run.command(name="pause", description="Take a run from its GPUs for a while; a running one writes a checkpoint first")
@app_commands.describe(run=RUN)
@app_commands.autocomplete(run=suggestions.pausable_run)
async def pause(interaction: Interaction, run: int | None = None) -> None:
    """Ask it to pause."""
    await buttons.pause(interaction, await suggestions.run_of(interaction, run))


@run.command(name="resume", description="Let a paused run go on, also on another number of GPUs")
@app_commands.describe(
    run=RUN,
    gpus="How many GPUs; as before where not given",
    time_limit="What it may take from here on; what is left of its old limit where not given",
    allocation="The allocation to draw on; as before where not given",
)
@app_commands.autocomplete(run=suggestions.paused_run, gpus=suggestions.gpus_to_resume)
@app_commands.autocomplete(allocation=suggestions.allocations_of_run)
@app_commands.autocomplete(time_limit=suggestions.durations)
async def resume(
    interaction: Interaction,
    run: int | None = None,
    gpus: int | None = None,
    time_limit: str | None = None,
    allocation: int | None = None,
) -> None:
    """Queue it again and say what it costs."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    run_id = await suggestions.run_of(interaction, run)
    receipt = await interaction.client.write(control.resume, actor(interaction), run_id, gpus, time_limit, allocation)
    await errors.reply(interaction, answers.told(receipt))


@run.command(name="extend", description="Let a run take longer")
@app_commands.describe(time="How much longer, such as 30m or 2h", run=RUN)
@app_commands.autocomplete(time=suggestions.durations)
@app_commands.autocomplete(run=suggestions.unended_run)
async def extend(interaction: Interaction, time: str, run: int | None = None) -> None:
    """Give it more time."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    run_id = await suggestions.run_of(interaction, run)
    receipt = await interaction.client.write(control.extend, actor(interaction), run_id, time)
    more = text.duration(launching.parse_time_limit(time))
    await errors.reply(
        interaction,
        f"Run {run_id} may take {more} longer: from here on it costs {text.gpu_hours(receipt.cost)} at most. "
        f"{answers.remains(receipt)}",
    )


@run.command(name="cancel", description="Stop a run for good; a running one writes a checkpoint first")
@app_commands.describe(run=RUN)
@app_commands.autocomplete(run=suggestions.unended_run)
async def cancel(interaction: Interaction, run: int | None = None) -> None:
    """Ask it to stop."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    run_id = await suggestions.run_of(interaction, run)
    await interaction.client.write(control.cancel, actor(interaction), run_id)
    await errors.reply(interaction, f"Run {run_id} is asked to stop.")


@run.command(name="why", description="Say why a run waits, its place in the queue and when it is expected to start")
@app_commands.describe(run=RUN)
@app_commands.autocomplete(run=suggestions.any_run)
async def why_waits(interaction: Interaction, run: int | None = None) -> None:
    """Say it."""
    run_id = await suggestions.run_of(interaction, run)
    await errors.reply(interaction, answers.waits(await interaction.client.read(why.why, run_id)))


@run.command(name="config", description="Show the configuration that a run trains by, every default spelt out")
@app_commands.describe(run=RUN)
@app_commands.autocomplete(run=suggestions.any_run)
async def config(interaction: Interaction, run: int | None = None) -> None:
    """Attach it."""
    await buttons.config(interaction, await suggestions.run_of(interaction, run))


@run.command(name="log", description="Show a run's attempts and the last lines that its trainer wrote")
@app_commands.describe(run=RUN)
@app_commands.autocomplete(run=suggestions.any_run)
async def log(interaction: Interaction, run: int | None = None) -> None:
    """Show them."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    app = interaction.client
    found = await app.read(logs.read, app.settings, await suggestions.run_of(interaction, run))
    await errors.reply(interaction, answers.logged(found))


@run.command(name="sample", description="Let the last checkpoint of a run continue a text of yours")
@app_commands.describe(run=RUN)
@app_commands.autocomplete(run=suggestions.kept_run)
async def sample(interaction: Interaction, run: int | None = None) -> None:
    """Open the form."""
    await buttons.sample(interaction, await suggestions.run_of(interaction, run))


@run.command(name="compare", description="Overlay the loss curves of up to six runs")
@app_commands.describe(runs="Their numbers, such as 3 5 8")
@app_commands.autocomplete(runs=suggestions.numbers)
async def compare(interaction: Interaction, runs: str) -> None:
    """Draw them."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    views = await interaction.client.read(comparison.named, runs)
    card, picture = await answers.comparison(interaction, views)
    await answers.show(interaction, card, picture)
