"""`/study …`: analyses over the checkpoints of a run, and what they and evaluations have measured."""

import io
from collections.abc import Sequence
from typing import Any

import discord
from discord import app_commands, ui
from discord.app_commands import Choice

from bot import errors, text
from bot.app import Interaction, acknowledge, actor
from bot.cards.card import BLUE, Card, sections
from bot.commands import autocomplete, context
from bot.commands.run import answers as run_answers
from bot.commands.run import autocomplete as run_autocomplete
from broker.plots import panels_of
from broker.runs import on_checkpoints, studies
from broker.runs.results import Scored

study_group = app_commands.Group(name="study", description="Analyses over the checkpoints of a run")

MOST_LINES = 1800
"""Characters of the numbers in an answer."""


async def analyses(interaction: Interaction, typed: str) -> list[Choice[str]]:
    """The analyses whose name has the last word that is typed, after those before it."""
    return run_autocomplete.last_word(typed, lambda part: [name for name in studies.ANALYSES if part in name])


@study_group.command(name="start", description="Run analyses over checkpoints of a run")
@app_commands.describe(
    analyses="Their names, such as induction, weights",
    run="The run whose checkpoints they read, where this is not its thread",
    steps="The steps of the checkpoints, such as 10 20 30; all by default, or last",
    time_limit="How long it may take, such as 45m or 2h; 30m by default",
    pairs="Pairs of the catalogue that paired_prompts asks; its own closing brackets by default",
)
@app_commands.autocomplete(analyses=analyses, steps=run_autocomplete.evaluable_steps, pairs=autocomplete.pairs)
@app_commands.autocomplete(time_limit=run_autocomplete.durations)
@app_commands.autocomplete(run=run_autocomplete.any_run)
async def start(
    interaction: Interaction,
    analyses: str,
    run: int | None = None,
    steps: str = on_checkpoints.ALL,
    time_limit: str = "30m",
    pairs: str = "",
) -> None:
    """Queue the study, and say what it will cost at most."""
    await acknowledge(interaction)
    run_id, who = await context.run_of(interaction, run), actor(interaction)
    receipt = await interaction.client.write(
        studies.launch,
        who,
        str(interaction.id),
        run_id,
        analyses=analyses,
        steps=steps,
        time_limit=time_limit,
        pairs=pairs,
    )
    await errors.reply(interaction, run_answers.reads(receipt, "a study", run_id))


async def measuring(interaction: Interaction, typed: str) -> list[Choice[int]]:
    """The newest studies and evaluations, of the project that the command is about or of all."""
    project_id = await context.project_so_far(interaction)
    found = await interaction.client.read(on_checkpoints.newest, project_id)
    named = [(text.bounded(f"{name}: {about}", 100), number) for number, name, about in found]
    return [Choice(name=name, value=number) for name, number in named if typed.strip().lower() in name.lower()][:25]


@study_group.command(name="show", description="Show what a study or an evaluation has measured, step by step")
@app_commands.describe(study="Its number as a run, which its posts have")
@app_commands.autocomplete(study=measuring)
async def show(interaction: Interaction, study: int) -> None:
    """Draw its numbers over the steps, and list them."""
    await acknowledge(interaction)
    app = interaction.client
    async with app.dear_turn():
        found = await app.read(panels_of.measured, study)
        png = None if found.panels is None else await app.renderer.panels(found.panels)
    name, marker = f"study-{study}.png", f"-# run {study}"
    picture: list[ui.Item[Any]] = []
    if png is not None:
        alt = f"What run {study} has measured, over the steps of the checkpoints"
        picture = [ui.MediaGallery(discord.MediaGalleryItem(f"attachment://{name}", description=alt))]
    lines = [f"### 📐 {text.line(found.title, 200)}", text.block(_listed(found.scored), MOST_LINES)]
    card = Card(*sections([lines, *picture], marker), colour=BLUE, marker=marker)
    files = [] if png is None else [discord.File(io.BytesIO(png), name)]
    await run_answers.show(interaction, card, *files)


def _listed(scored: Sequence[Scored]) -> str:
    """A line a number: its value at the first and at the last step, and how many steps there are."""
    lines = []
    for each in scored:
        steps = sorted(each.values)
        first, last = (each.values[step][0] for step in (steps[0], steps[-1]))
        among = f"{first:.4g} at step {steps[0]:,}"
        if len(steps) > 1:
            among += f" → {last:.4g} at step {steps[-1]:,} ({len(steps)} steps)"
        lines.append(f"{each.task} {each.metric}: {among}")
    return "\n".join(lines)
