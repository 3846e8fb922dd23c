"""`/run …`: launch, show, pause, resume, fork, sample from, evaluate and compare runs, and sweeps of them."""

import io
import re

import discord
from discord import app_commands

from bot import errors, text
from bot.app import Interaction, acknowledge, actor
from bot.cards.run_card import run_card
from bot.commands import autocomplete, context
from bot.commands.run import answers, buttons, comparison_answers, data_answers, sweep_answers
from bot.commands.run import autocomplete as run_autocomplete
from bot.delivery import outbox
from broker.plots.curve_of_run import Panel, curve_of
from broker.reports import data_read, run_details, run_plan, sweep_plan, why
from broker.runs import baselines, comparison, control, evaluations, launching, naming, on_checkpoints, programs, runs
from broker.runs.launching import Order
from broker.runs.runs import RunKind, RunState
from projects.errors import InvalidError

run = app_commands.Group(name="run", description="Runs of the shared trainer")

RUN = "Its number, where this is not its thread"
PROJECT = "The project, where this is not its channel or one of its threads"
OVERRIDE = "Changes to the recipe, such as learning_rate=0.001, seed=7"
TIME_LIMIT = "Its time limit, such as 45m, 2h or 1h30m"
NAME = "What to call it, in at most 60 characters"
TAGS = "Up to five words to find it by, such as rope, tiny"
EVALUATE = "Tasks for its checkpoints as they come, such as heldout, arc_easy; or: heldout every 4"
SWEEP = "All runs of this sweep; not needed in the sweep's thread"


@run.command(name="launch", description="See what a run of a recipe would cost, then launch it")
@app_commands.describe(
    recipe="What to train",
    time_limit=TIME_LIMIT,
    gpus="How many GPUs, or cores of a CPU pool; 1 by default",
    steps="How many steps; the recipe's number by default",
    override=OVERRIDE,
    dataset="A dataset of the catalogue that the recipe must train on",
    allocation="The allocation to draw on; the newest approved one otherwise",
    name=NAME,
    tags=TAGS,
    evaluate=EVALUATE,
    project=PROJECT,
)
@app_commands.autocomplete(recipe=run_autocomplete.recipes, time_limit=run_autocomplete.time_limits)
@app_commands.autocomplete(override=run_autocomplete.overrides, dataset=run_autocomplete.datasets)
@app_commands.autocomplete(gpus=run_autocomplete.gpus, steps=run_autocomplete.steps)
@app_commands.autocomplete(allocation=autocomplete.live_allocations, project=autocomplete.open_projects)
@app_commands.autocomplete(evaluate=run_autocomplete.evaluated)
async def launch(
    interaction: Interaction,
    recipe: str,
    time_limit: str,
    gpus: int = 1,
    steps: int | None = None,
    override: str = "",
    dataset: str = "",
    allocation: int | None = None,
    name: str = "",
    tags: str = "",
    evaluate: str = "",
    project: int | None = None,
) -> None:
    """Offer the run with its cost; the button launches it."""
    await acknowledge(interaction)
    project_id = await context.project_of(interaction, project)
    overrides = run_autocomplete.with_steps(override, steps)
    order = Order(
        project_id,
        recipe,
        time_limit,
        gpus,
        overrides,
        allocation,
        dataset=dataset,
        name=name,
        tags=tags,
        evaluate=evaluate,
    )
    preview = await interaction.client.write(run_plan.plan_run, actor(interaction), str(interaction.id), order)
    await answers.show(interaction, answers.offer(preview))


@run.command(name="sweep", description="See what runs over a grid of settings would cost, then launch all of them")
@app_commands.describe(
    recipe="What to train",
    points="Their settings, such as learning_rate=1e-4,3e-4 seed=1..3; or single points, separated by ;",
    time_limit="Each run's time limit, such as 45m, 2h or 1h30m",
    gpus="How many GPUs, or cores of a CPU pool, for each run; 1 by default",
    steps="How many steps of each run; the recipe's number by default",
    override="Changes to the recipe that all runs share, such as batch=32",
    dataset="A dataset of the catalogue that the recipe must train on",
    allocation="The allocation to draw on; the newest approved one otherwise",
    name=f"{NAME}; each run's values are added",
    tags=TAGS,
    project=PROJECT,
)
@app_commands.autocomplete(recipe=run_autocomplete.recipes, time_limit=run_autocomplete.time_limits)
@app_commands.autocomplete(points=run_autocomplete.points, override=run_autocomplete.overrides)
@app_commands.autocomplete(gpus=run_autocomplete.gpus, steps=run_autocomplete.steps)
@app_commands.autocomplete(dataset=run_autocomplete.datasets)
@app_commands.autocomplete(allocation=autocomplete.live_allocations, project=autocomplete.open_projects)
async def sweep(
    interaction: Interaction,
    recipe: str,
    points: str,
    time_limit: str,
    gpus: int = 1,
    steps: int | None = None,
    override: str = "",
    dataset: str = "",
    allocation: int | None = None,
    name: str = "",
    tags: str = "",
    project: int | None = None,
) -> None:
    """Offer the runs with their costs; the button launches all of them."""
    await acknowledge(interaction)
    project_id = await context.project_of(interaction, project)
    overrides = run_autocomplete.with_steps(override, steps)
    order = Order(project_id, recipe, time_limit, gpus, overrides, allocation, dataset=dataset, name=name, tags=tags)
    preview = await interaction.client.write(sweep_plan.plan, actor(interaction), str(interaction.id), order, points)
    await answers.show(interaction, sweep_answers.offer(preview))


@run.command(name="fork", description="Launch a run that continues from another run's checkpoint")
@app_commands.describe(
    step="The step of the checkpoint",
    run="The run to fork, where this is not its thread",
    override=OVERRIDE,
    time_limit=f"{TIME_LIMIT}; the run's own by default",
    gpus="How many GPUs, or cores of a CPU pool; the run's own by default",
    allocation="The allocation to draw on",
    name=NAME,
    tags=TAGS,
)
@app_commands.autocomplete(step=run_autocomplete.kept_steps, run=run_autocomplete.kept_run)
@app_commands.autocomplete(gpus=run_autocomplete.gpus, allocation=run_autocomplete.allocations_of_run)
@app_commands.autocomplete(time_limit=run_autocomplete.time_limits, override=run_autocomplete.overrides)
async def fork(
    interaction: Interaction,
    step: int,
    run: int | None = None,
    override: str = "",
    time_limit: str | None = None,
    gpus: int | None = None,
    allocation: int | None = None,
    name: str = "",
    tags: str = "",
) -> None:
    """Offer the fork with its cost; the button launches it."""
    await acknowledge(interaction)
    preview = await interaction.client.write(
        run_plan.plan_fork,
        actor(interaction),
        str(interaction.id),
        await context.run_of(interaction, run),
        step,
        overrides=override,
        time_limit=time_limit,
        gpus=gpus,
        allocation_id=allocation,
        name=name,
        tags=tags,
    )
    await answers.show(interaction, answers.offer(preview))


@run.command(name="rerun", description="Launch a run again, as it was")
@app_commands.describe(run=RUN, name=NAME, tags=TAGS)
@app_commands.autocomplete(run=run_autocomplete.any_run)
async def rerun(interaction: Interaction, run: int | None = None, name: str = "", tags: str = "") -> None:
    """Offer the new run with its cost; the button launches it."""
    await acknowledge(interaction)
    await buttons.rerun(interaction, await context.run_of(interaction, run), name, tags)


@run.command(name="name", description="Name a run, or give it tags; who launched it and the lead can")
@app_commands.describe(
    run=RUN, name=f"{NAME}; {naming.NOTHING} takes it away", tags=f"{TAGS}; {naming.NOTHING} takes them away"
)
@app_commands.autocomplete(run=run_autocomplete.any_run)
async def rename(
    interaction: Interaction, run: int | None = None, name: str | None = None, tags: str | None = None
) -> None:
    """Change the name, the tags or both; what is left out stays."""
    await acknowledge(interaction)
    run_id, who = await context.run_of(interaction, run), actor(interaction)
    now = await interaction.client.write(naming.rename, who, run_id, name=name, tags=tags)
    await errors.reply(interaction, answers.named(now))


@run.command(name="show", description="Show how a run stands")
@app_commands.describe(
    run=RUN,
    sweep=SWEEP,
    panel="What to plot below the loss; the gradient norm by default",
    log_tokens="Plot tokens on a logarithmic axis, which shows the beginning of a long run",
)
@app_commands.choices(panel=[app_commands.Choice(name=panel.label, value=panel.value) for panel in Panel])
@app_commands.autocomplete(run=run_autocomplete.any_run, sweep=run_autocomplete.sweeps)
async def show(
    interaction: Interaction,
    run: int | None = None,
    sweep: int | None = None,
    panel: str | None = None,
    log_tokens: bool = False,
) -> None:
    """Show the card of the run, or of the sweep."""
    await acknowledge(interaction)
    app = interaction.client
    if sweep_id := await context.sweep_of(interaction, run, sweep):
        await sweep_answers.show(interaction, sweep_id)
        return
    async with app.dear_turn():
        view = await app.read(runs.view, await context.run_of(interaction, run))
        waits = await app.read(why.why, view.id) if view.state == RunState.QUEUED else None
        details = await app.read(run_details.details, view)
        curve = await app.read(curve_of, view, None if panel is None else Panel(panel), log=log_tokens)
        png = await app.renderer.draw(curve) if len(curve.loss) > 1 else None
    if png is None:
        await answers.show(interaction, run_card(view, why=waits, details=details))
        return
    name = f"run-{view.id}.png"
    card = run_card(view, picture=name, why=waits, details=details)
    await answers.show(interaction, card, discord.File(io.BytesIO(png), name))


@run.command(name="list", description="List the newest runs of a project")
@app_commands.describe(project=PROJECT, tag="Only the runs with this tag")
@app_commands.autocomplete(project=autocomplete.listed_projects)
@app_commands.autocomplete(tag=run_autocomplete.tags)
async def list_runs(interaction: Interaction, project: int | None = None, tag: str = "") -> None:
    """List the runs."""
    await acknowledge(interaction)
    project_id = await context.project_of(interaction, project)
    tag = naming.parse_tags(tag)
    views = await interaction.client.read(runs.of_project, project_id, kind=RunKind.TRAIN, tag=tag, limit=15)
    threads = await interaction.client.read(outbox.channels_of, project_id)
    lines = [answers.listed(view, threads) for view in views]
    none = f"No run has the tag {text.code(tag, 20)}." if tag else "No run yet: /run launch starts one."
    await errors.reply(interaction, text.listed(lines) or none)


@run.command(name="pause", description="Pause a run and free what it holds; a running one writes a checkpoint first")
@app_commands.describe(run=RUN, sweep=SWEEP)
@app_commands.autocomplete(run=run_autocomplete.pausable_run, sweep=run_autocomplete.sweeps)
async def pause(interaction: Interaction, run: int | None = None, sweep: int | None = None) -> None:
    """Ask the run, or all runs of the sweep, to pause."""
    await acknowledge(interaction)
    if sweep_id := await context.sweep_of(interaction, run, sweep):
        await buttons.pause_sweep(interaction, sweep_id)
        return
    await buttons.pause(interaction, await context.run_of(interaction, run))


@run.command(name="resume", description="Resume a paused run, on another number of GPUs or cores if you like")
@app_commands.describe(
    run=RUN,
    gpus="How many GPUs, or cores of a CPU pool; as before by default",
    time_limit="Its time limit from here on; what is left of the old one by default",
    allocation="The allocation to draw on; as before by default",
    sweep=f"{SWEEP}; each goes on as it was",
)
@app_commands.autocomplete(run=run_autocomplete.paused_run, gpus=run_autocomplete.gpus_to_resume)
@app_commands.autocomplete(sweep=run_autocomplete.sweeps)
@app_commands.autocomplete(allocation=run_autocomplete.allocations_of_run)
@app_commands.autocomplete(time_limit=run_autocomplete.durations)
async def resume(
    interaction: Interaction,
    run: int | None = None,
    gpus: int | None = None,
    time_limit: str | None = None,
    allocation: int | None = None,
    sweep: int | None = None,
) -> None:
    """Queue the run, or the paused runs of the sweep, again, and say what that costs."""
    await acknowledge(interaction)
    if sweep_id := await context.sweep_of(interaction, run, sweep):
        if (gpus, time_limit, allocation) != (None, None, None):
            raise InvalidError(
                "The runs of a sweep resume as they were: change the GPUs, cores or time of one by its number."
            )
        await buttons.resume_sweep(interaction, sweep_id)
        return
    await buttons.resume(interaction, await context.run_of(interaction, run), gpus, time_limit, allocation)


@run.command(name="extend", description="Give a run more time")
@app_commands.describe(time="How much longer, such as 30m or 2h", run=RUN)
@app_commands.autocomplete(time=run_autocomplete.durations)
@app_commands.autocomplete(run=run_autocomplete.unended_run)
async def extend(interaction: Interaction, time: str, run: int | None = None) -> None:
    """Give the run more time."""
    await acknowledge(interaction)
    run_id = await context.run_of(interaction, run)
    receipt = await interaction.client.write(control.extend, actor(interaction), run_id, time)
    more = text.duration(launching.parse_time_limit(time))
    await errors.reply(
        interaction,
        f"Run {run_id} may take {more} longer: from here on it costs {receipt.unit.hours(receipt.cost)} at most. "
        f"{answers.remains(receipt)}",
    )


@run.command(name="cancel", description="Stop a run for good; a running one writes a checkpoint first")
@app_commands.describe(run=RUN, sweep=SWEEP)
@app_commands.autocomplete(run=run_autocomplete.unended_run, sweep=run_autocomplete.sweeps)
async def cancel(interaction: Interaction, run: int | None = None, sweep: int | None = None) -> None:
    """Ask whether the run, or all runs of the sweep, shall stop."""
    await acknowledge(interaction)
    if sweep_id := await context.sweep_of(interaction, run, sweep):
        await buttons.CANCEL_SWEEP.ask(interaction, sweep_id)
        return
    await buttons.CANCEL.ask(interaction, await context.run_of(interaction, run))


@run.command(name="why", description="Say why a run waits, its place in the queue and when it is expected to start")
@app_commands.describe(run=RUN, at="A moment of the last month, such as 2030-12-31 18:00, in UTC; now by default")
@app_commands.autocomplete(run=run_autocomplete.any_run)
async def why_waits(interaction: Interaction, run: int | None = None, at: str | None = None) -> None:
    """Explain the run's state, now or at an earlier moment."""
    await acknowledge(interaction)
    run_id, app = await context.run_of(interaction, run), interaction.client
    told = await (app.read(why.why, run_id) if at is None else app.read(why.replayed, run_id, why.moment(at)))
    await errors.reply(interaction, answers.waits(told))


@run.command(name="config", description="Show the configuration that a run trains by, every default spelt out")
@app_commands.describe(run=RUN)
@app_commands.autocomplete(run=run_autocomplete.any_run)
async def config(interaction: Interaction, run: int | None = None) -> None:
    """Attach the configuration."""
    await acknowledge(interaction)
    await buttons.config(interaction, await context.run_of(interaction, run))


@run.command(name="log", description="Show a run's attempts and the last lines that its trainer wrote")
@app_commands.describe(run=RUN)
@app_commands.autocomplete(run=run_autocomplete.any_run)
async def log(interaction: Interaction, run: int | None = None) -> None:
    """Show the attempts and the log."""
    await acknowledge(interaction)
    await buttons.log(interaction, await context.run_of(interaction, run))


@run.command(name="data", description="Show what a step of a run read, with source, document and licence")
@app_commands.describe(step="The step, counted from 1", run=RUN, page="Which page of its rows; the first by default")
@app_commands.autocomplete(run=run_autocomplete.any_run)
async def data(
    interaction: Interaction,
    step: app_commands.Range[int, 1],
    run: int | None = None,
    page: app_commands.Range[int, 1] = 1,
) -> None:
    """Show a page of the rows."""
    await acknowledge(interaction)
    app, run_id = interaction.client, await context.run_of(interaction, run)
    place = await app.read(data_read.of_step, app.settings, run_id, step)
    first = data_answers.first_row(place, page)
    async with app.dear_turn():
        found = await data_read.rows(place, step, first, data_answers.ROWS)
    await errors.reply(interaction, data_answers.rows(run_id, place, found, page))


@run.command(name="seen", description="Say at which steps a run read a text, or which passages are nearest to it")
@app_commands.describe(text="What to search for, in whole words; a sentence or a line", run=RUN)
@app_commands.autocomplete(run=run_autocomplete.any_run)
async def seen(
    interaction: Interaction,
    text: app_commands.Range[str, data_read.FEWEST_CHARACTERS, data_read.LONGEST_TEXT],
    run: int | None = None,
) -> None:
    """Search the run's data for the text."""
    await acknowledge(interaction)
    app, run_id = interaction.client, await context.run_of(interaction, run)
    place = await app.read(data_read.of_run, app.settings, run_id)
    async with app.search_turn():
        found = await data_read.search(place, text)
    await errors.reply(interaction, data_answers.passages(place, text, found))


@run.command(name="sample", description="Have a run's last checkpoint continue your text")
@app_commands.describe(run=RUN)
@app_commands.autocomplete(run=run_autocomplete.kept_run)
async def sample(interaction: Interaction, run: int | None = None) -> None:
    """Open the form of a prompt."""
    await buttons.sample(interaction, await context.run_of(interaction, run))


@run.command(
    name="evaluate", description="Run tasks of lm-evaluation-harness on a run's checkpoints or a model of the Hub"
)
@app_commands.describe(
    tasks="Their names, such as heldout, lambada_openai; heldout is bits per byte of each source",
    run=RUN,
    steps="The steps of the checkpoints, such as 10 20 30; last by default, or all",
    time_limit="How long it may take, such as 45m or 2h; 30m by default",
    shots="Examples before each question; each task's own number by default",
    limit="Documents of each task, for a trial; all by default",
    model="In place of a run: a model of the Hub, such as EleutherAI/pythia-14m@step1000 @step2000",
    allocation="For a model: the allocation to draw on; the newest approved one otherwise",
    project="For a model: the project, where this is not its channel or one of its threads",
)
@app_commands.autocomplete(run=run_autocomplete.any_run)
@app_commands.autocomplete(tasks=run_autocomplete.tasks, steps=run_autocomplete.evaluable_steps)
@app_commands.autocomplete(time_limit=run_autocomplete.durations)
@app_commands.autocomplete(allocation=autocomplete.live_allocations, project=autocomplete.open_projects)
async def evaluate(
    interaction: Interaction,
    tasks: str,
    run: int | None = None,
    steps: str = on_checkpoints.LAST,
    time_limit: str = "30m",
    shots: int | None = None,
    limit: int | None = None,
    model: str = "",
    allocation: int | None = None,
    project: int | None = None,
) -> None:
    """Queue the evaluation, and say what it will cost at most."""
    await acknowledge(interaction)
    who = actor(interaction)
    if model.strip():
        if run is not None or steps != on_checkpoints.LAST:
            raise InvalidError("Name a run with steps, or a model of the Hub at a revision, not both.")
        receipt = await interaction.client.write(
            baselines.launch,
            who,
            str(interaction.id),
            await context.project_of(interaction, project),
            model=model,
            tasks=tasks,
            time_limit=time_limit,
            shots=shots,
            limit=limit,
            allocation_id=allocation,
        )
        await errors.reply(interaction, answers.evaluates(receipt, model))
        return
    if allocation is not None or project is not None:
        raise InvalidError("An evaluation of a run is paid as the run was: leave “allocation” and “project” out.")
    run_id = await context.run_of(interaction, run)
    receipt = await interaction.client.write(
        evaluations.launch,
        who,
        str(interaction.id),
        run_id,
        tasks=tasks,
        steps=steps,
        time_limit=time_limit,
        shots=shots,
        limit=limit,
    )
    await errors.reply(interaction, answers.reads(receipt, "an evaluation", run_id))


@run.command(name="program", description="Run an accepted program of somebody on a checkpoint of a run")
@app_commands.describe(
    name="The program; /catalogue list has them",
    run=RUN,
    step="The step of the checkpoint, or several where it reads several; the last one by default",
    parameters="Values in place of its defaults, such as batch_size=8, seed=7",
    time_limit="How long it may take, such as 45m or 2h; the program's own by default",
)
@app_commands.autocomplete(run=run_autocomplete.any_run)
@app_commands.autocomplete(name=autocomplete.programs, step=run_autocomplete.evaluable_steps)
@app_commands.autocomplete(time_limit=run_autocomplete.durations)
async def program(
    interaction: Interaction,
    name: str,
    run: int | None = None,
    step: str = on_checkpoints.LAST,
    parameters: str = "",
    time_limit: str = "",
) -> None:
    """Queue the program, and say what it will cost at most."""
    await acknowledge(interaction)
    run_id, who = await context.run_of(interaction, run), actor(interaction)
    receipt = await interaction.client.write(
        programs.launch,
        who,
        str(interaction.id),
        run_id,
        program=name,
        parameters=parameters,
        step=step,
        time_limit=time_limit,
    )
    await errors.reply(interaction, answers.reads(receipt, "a program", run_id))


@run.command(name="compare", description="Overlay the loss curves of up to six runs, and models of the Hub")
@app_commands.describe(runs="Their numbers, such as 3 5 8, also of evaluated models; or a sweep, such as sweep 2")
@app_commands.autocomplete(runs=run_autocomplete.numbers)
async def compare(interaction: Interaction, runs: str) -> None:
    """Draw the curves."""
    await acknowledge(interaction)
    if named := re.fullmatch(r"\s*sweep\s*#?([0-9]{1,9})\s*", runs, re.IGNORECASE):
        await sweep_answers.show(interaction, int(named[1]))
        return
    async with interaction.client.dear_turn():
        views = await interaction.client.read(comparison.named, runs)
        card, picture = await comparison_answers.comparison(interaction, views)
    await answers.show(interaction, card, picture)
