"""`/run …`: launch, show, list and cancel."""

from discord import app_commands

from bot import errors, lookup, text
from bot.app import Interaction, actor
from bot.run_card import run_card
from broker import control, launching, runs
from broker.launching import Receipt

run = app_commands.Group(name="run", description="Runs of the shared trainer")


@run.command(name="launch", description="Launch a run of a recipe on your project's allocation")
@app_commands.describe(
    recipe="What to train",
    time_limit="The longest it may take, such as 45m, 2h or 1h30m",
    gpus="How many GPUs; 1 where not given",
    override="Changes to the recipe, such as steps=100, seed=7",
    allocation="The allocation to draw on; the newest approved one otherwise",
    project="The project, where this is not its channel or one of its threads",
)
@app_commands.autocomplete(recipe=lookup.recipe_names)
@app_commands.autocomplete(allocation=lookup.allocation_ids, project=lookup.projects)
async def launch(
    interaction: Interaction,
    recipe: str,
    time_limit: str,
    gpus: int = 1,
    override: str = "",
    allocation: int | None = None,
    project: int | None = None,
) -> None:
    """Queue the run and say what it costs."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    project_id = await lookup.project_of(interaction, project)
    receipt = await interaction.client.write(
        launching.launch,
        actor(interaction),
        str(interaction.id),
        project_id=project_id,
        recipe=recipe,
        time_limit=time_limit,
        gpus=gpus,
        overrides=override,
        allocation_id=allocation,
    )
    await errors.reply(interaction, _told(receipt))


@run.command(name="show", description="Show how a run stands")
@app_commands.describe(run="Its number")
@app_commands.autocomplete(run=lookup.run_ids)
async def show(interaction: Interaction, run: int) -> None:
    """Show the run's card."""
    view = await interaction.client.read(runs.view, run)
    await interaction.response.send_message(view=run_card(view), ephemeral=True)


@run.command(name="list", description="List the newest runs of a project")
@app_commands.describe(project="The project, where this is not its channel or one of its threads")
@app_commands.autocomplete(project=lookup.projects)
async def list_runs(interaction: Interaction, project: int | None = None) -> None:
    """List them."""
    project_id = await lookup.project_of(interaction, project)
    views = await interaction.client.read(runs.of_project, project_id, kind="train", limit=15)
    lines = [
        f"**{view.id}** {text.code(view.recipe, 60)} · {view.state} · step {view.step:,} of {view.total_steps:,} · "
        f"{text.line(view.requested_by, 60)}"
        for view in views
    ]
    await errors.reply(interaction, "\n".join(lines) or "No run yet: /run launch starts one.")


@run.command(name="cancel", description="Stop a run; a running one writes a checkpoint first")
@app_commands.describe(run="Its number")
@app_commands.autocomplete(run=lookup.run_ids)
async def cancel(interaction: Interaction, run: int) -> None:
    """Ask it to stop."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    await interaction.client.write(control.cancel, actor(interaction), run)
    await errors.reply(interaction, f"Run {run} is asked to stop.")


def _told(receipt: Receipt) -> str:
    def amount(seconds: int) -> str:
        return f"{seconds:,} GPU-seconds ({text.gpu_hours(seconds)})"

    expected = "" if receipt.expected is None else f", about {amount(receipt.expected)} as {receipt.basis}"
    return (
        f"Run {receipt.run_id} is queued. It will cost {amount(receipt.cost)} at most{expected}. "
        f"The allocation has {amount(receipt.left)} left."
    )
