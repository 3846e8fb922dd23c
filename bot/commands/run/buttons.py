"""What the buttons of a run's card do, and those of an offer to launch one."""

from collections.abc import Mapping

from bot import errors
from bot.app import Interaction, actor
from bot.buttons import Press
from bot.commands.run import answers
from bot.commands.run.forms import SampleForm
from broker.reports import run_plan
from broker.runs import comparison, control, generation, runs
from broker.runs.runs import RunState


async def pause(interaction: Interaction, run_id: int) -> None:
    """Take the run from its GPUs until it is resumed."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    await interaction.client.write(control.pause, actor(interaction), run_id)
    run = await interaction.client.read(runs.view, run_id)
    how = "is paused" if run.state == RunState.PAUSED else "writes a checkpoint and pauses"
    await errors.reply(interaction, f"Run {run_id} {how}; /run resume lets it go on.")


async def resume(interaction: Interaction, run_id: int) -> None:
    """Let the run go on as it was."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    receipt = await interaction.client.write(control.resume, actor(interaction), run_id)
    await errors.reply(interaction, answers.told(receipt))


async def compare(interaction: Interaction, run_id: int) -> None:
    """Show the run over the newest others of its project."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    views = await interaction.client.read(comparison.nearest, run_id)
    card, picture = await answers.comparison(interaction, views)
    await answers.show(interaction, card, picture)


async def config(interaction: Interaction, run_id: int) -> None:
    """Show the configuration that the run trains by."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    run = await interaction.client.read(runs.load, run_id)
    await answers.attach(interaction, answers.configured(run), f"run-{run_id}.yml", run.config)


async def sample(interaction: Interaction, run_id: int) -> None:
    """Open the form of a prompt."""
    await interaction.client.read(generation.check_may_generate, actor(interaction), run_id)
    await interaction.response.send_modal(SampleForm(run_id))


async def launch(interaction: Interaction, plan_id: int) -> None:
    """Launch what was offered."""
    await interaction.response.defer()
    receipt = await interaction.client.write(run_plan.confirm, actor(interaction), plan_id)
    await answers.show(interaction, answers.launched(receipt))


async def discard(interaction: Interaction, plan_id: int) -> None:
    """Let an offer go."""
    await interaction.response.defer()
    await interaction.client.write(run_plan.discard, actor(interaction), plan_id)
    await answers.show(interaction, answers.discarded())


PRESSES: Mapping[str, Press] = {
    "pause": pause,
    "resume": resume,
    "compare": compare,
    "config": config,
    "sample": sample,
    "launch": launch,
    "discard": discard,
}
