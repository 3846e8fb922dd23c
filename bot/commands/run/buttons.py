"""The handlers of the buttons on the cards of runs and sweeps, and on the offer of a launch."""

from collections.abc import Mapping

from sqlalchemy.orm import Session

from bot import errors, text
from bot.app import Interaction, acknowledge, actor
from bot.buttons import Handler
from bot.commands import ending_text, last_question
from bot.commands.last_question import LastQuestion, Told
from bot.commands.run import answers, comparison_answers, sweep_answers
from bot.commands.run.forms import LaunchForm, SampleForm
from broker import catalogue
from broker.allocations import allocations
from broker.allocations.units import Unit
from broker.reports import endings, run_plan, sweep_plan
from broker.runs import comparison, control, generation, logs, runs, sweep_control
from broker.runs.kinds.kind import kind_of
from broker.runs.runs import RunState
from projects import lifecycle
from projects.people import Actor
from projects.rights import Act


async def pause(interaction: Interaction, run_id: int) -> None:
    """Pause the run, which gives back what it holds until it is resumed."""
    await acknowledge(interaction)
    await interaction.client.write(control.pause, actor(interaction), run_id)
    run = await interaction.client.read(runs.view, run_id)
    how = "is paused" if run.state == RunState.PAUSED else "writes a checkpoint and pauses"
    await errors.reply(interaction, f"Run {run_id} {how}; /run resume continues it.")


async def resume(
    interaction: Interaction,
    run_id: int,
    gpus: int | None = None,
    time_limit: str | None = None,
    allocation: int | None = None,
) -> None:
    """Resume the run, as it was by default, and say what that costs."""
    await acknowledge(interaction)
    app, who = interaction.client, actor(interaction)
    receipt = await app.write(control.resume, who, run_id, gpus, time_limit, allocation)
    await errors.reply(interaction, answers.resumed(receipt, await app.read(runs.load, run_id)))


async def compare(interaction: Interaction, run_id: int) -> None:
    """Compare the run with the newest others of its project."""
    await acknowledge(interaction)
    async with interaction.client.dear_turn():
        views = await interaction.client.read(comparison.nearest, run_id)
        card, picture = await comparison_answers.comparison(interaction, views)
    await answers.show(interaction, card, picture)


async def config(interaction: Interaction, run_id: int) -> None:
    """Attach the configuration of the run."""
    await acknowledge(interaction)
    async with interaction.client.dear_turn():
        run = await interaction.client.read(runs.load, run_id)
    await answers.attach(interaction, answers.configured(run), f"run-{run_id}.yml", run.config)


async def sample(interaction: Interaction, run_id: int) -> None:
    """Open the form of a prompt."""
    await interaction.client.read(generation.check_may_generate, actor(interaction), run_id)
    await interaction.response.send_modal(SampleForm(run_id))


async def log(interaction: Interaction, run_id: int) -> None:
    """Show the attempts of the run and the end of its log."""
    await acknowledge(interaction)
    app = interaction.client
    async with app.dear_turn():
        found = await app.read(logs.read, app.settings, run_id)
    await errors.reply(interaction, answers.logged(found))


async def rerun(interaction: Interaction, run_id: int, name: str = "", tags: str = "") -> None:
    """Offer the same run once more with its cost; the button launches it."""
    await acknowledge(interaction)
    who, request_id = actor(interaction), str(interaction.id)
    preview = await interaction.client.write(run_plan.plan_rerun, who, request_id, run_id, name, tags)
    await answers.show(interaction, answers.offer(preview))


async def launch_run(interaction: Interaction, allocation_id: int) -> None:
    """Open the form of a run that draws on the allocation."""
    project_id, unit, recipes = await interaction.client.read(_to_launch, actor(interaction), allocation_id)
    await interaction.response.send_modal(LaunchForm(project_id, allocation_id, unit, recipes))


def _to_launch(session: Session, who: Actor, allocation_id: int) -> tuple[int, Unit, list[str]]:
    """The project of an allocation, its unit, and the recipes; raises unless the actor may launch runs there."""
    allocation = allocations.view(session, allocation_id)
    lifecycle.check_may(session, who, allocation.project_id, Act.USE_COMPUTE)
    return allocation.project_id, allocation.unit, catalogue.recipes(session)


async def launch(interaction: Interaction, plan_id: int) -> None:
    """Launch the run that was offered."""
    await interaction.response.defer()
    receipt = await interaction.client.write(run_plan.confirm, actor(interaction), plan_id)
    await answers.show(interaction, answers.launched(receipt))


async def launch_sweep(interaction: Interaction, plan_id: int) -> None:
    """Launch the sweep that was offered."""
    await interaction.response.defer()
    receipt = await interaction.client.write(sweep_plan.confirm, actor(interaction), plan_id)
    await answers.show(interaction, sweep_answers.launched(receipt))


async def pause_sweep(interaction: Interaction, sweep_id: int) -> None:
    """Pause all runs of the sweep that wait or run."""
    await acknowledge(interaction)
    count = await interaction.client.write(sweep_control.pause, actor(interaction), sweep_id)
    said = f"{text.count(count, 'run')} of sweep {sweep_id}: asked to pause, running ones after a checkpoint."
    await errors.reply(interaction, f"{said} /run resume continues them.")


async def resume_sweep(interaction: Interaction, sweep_id: int) -> None:
    """Resume all paused runs of the sweep as they were."""
    await acknowledge(interaction)
    receipt = await interaction.client.write(sweep_control.resume, actor(interaction), sweep_id)
    await errors.reply(interaction, f"Sweep {sweep_id} goes on. {sweep_answers.told(receipt)}\n{sweep_answers.GOES_ON}")


async def discard(interaction: Interaction, plan_id: int) -> None:
    """Discard an offer."""
    await interaction.response.defer()
    await interaction.client.write(run_plan.discard, actor(interaction), plan_id)
    await answers.show(interaction, answers.discarded())


async def _cancel(interaction: Interaction, run_id: int) -> None:
    await interaction.response.defer()
    await interaction.client.write(control.cancel, actor(interaction), run_id)
    run = await interaction.client.read(runs.load, run_id)
    await last_question.answer(interaction, f"Run {run_id} has been asked to stop; {kind_of(run).again}.")


async def _cancel_sweep(interaction: Interaction, sweep_id: int) -> None:
    await interaction.response.defer()
    count = await interaction.client.write(sweep_control.cancel, actor(interaction), sweep_id)
    said = f"{text.count(count, 'run')} of sweep {sweep_id}: asked to stop; /run rerun launches one of them again."
    await last_question.answer(interaction, said)


def _told_of_run(session: Session, who: Actor, run_id: int) -> Told:
    ending = endings.of_run(session, who, run_id)
    return Told(ending_text.of_runs(ending), ending_text.about(ending))


def _told_of_sweep(session: Session, who: Actor, sweep_id: int) -> Told:
    ending = endings.of_sweep(session, who, sweep_id)
    return Told(f"Sweep {sweep_id} ends. {ending_text.of_runs(ending)}", ending_text.about(ending))


CANCEL = LastQuestion("cancel_run", "Cancel run {}", _told_of_run, _cancel)
CANCEL_SWEEP = LastQuestion("cancel_sweep", "Cancel sweep {}", _told_of_sweep, _cancel_sweep)

HANDLERS: Mapping[str, Handler] = {
    "pause": pause,
    "resume": resume,
    "compare": compare,
    "config": config,
    "sample": sample,
    "log": log,
    "rerun": rerun,
    "launch_run": launch_run,
    "launch": launch,
    "launch_sweep": launch_sweep,
    "pause_sweep": pause_sweep,
    "resume_sweep": resume_sweep,
    "discard": discard,
}
