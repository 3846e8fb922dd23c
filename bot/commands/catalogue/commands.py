"""`/catalogue …`: recipes, datasets, programs and pairs, which members propose and admins accept; and preparing
data."""

from collections.abc import Callable
from typing import Literal

import discord
from discord import app_commands

from bot import errors, text
from bot.app import Interaction, acknowledge, actor
from bot.commands import autocomplete, context
from bot.commands.catalogue import forms, listing
from bot.commands.catalogue.forms import DatasetForm, PairsForm, ProgramForm, RecipeForm
from bot.commands.form import Form
from bot.commands.reason_form import ReasonForm
from bot.commands.run import answers as run_answers
from bot.commands.run import autocomplete as run_autocomplete
from broker import catalogue, configs
from broker.allocations import corpora, pools
from broker.allocations.corpora import Corpus
from broker.catalogue import CatalogueState
from broker.runs import launching
from projects.errors import InvalidError

catalogue_group = app_commands.Group(name="catalogue", description="Recipes, datasets and programs of runs")


@catalogue_group.command(name="list", description="List recipes with their size, data and cost, and what is proposed")
@app_commands.describe(state="Only what was proposed and is in this state", page="Which page; the first by default")
async def list_entries(
    interaction: Interaction,
    state: Literal["proposed", "accepted", "declined", "retired"] | None = None,
    page: app_commands.Range[int, 1, 1000] = 1,
) -> None:
    """List the entries, and the built-in recipes that can be launched."""
    await acknowledge(interaction)
    items = await interaction.client.read(listing.items, state)
    await run_answers.show(interaction, listing.card(items, page))


@catalogue_group.command(name="corpora", description="List the corpora and tokenizers that lie on pools")
@app_commands.describe(pool="Only what lies on this pool")
@app_commands.autocomplete(pool=autocomplete.pool_names)
async def list_corpora(interaction: Interaction, pool: str | None = None) -> None:
    """List what recipes can name, by pool and name."""
    await acknowledge(interaction)
    if pool is not None:
        await interaction.client.read(pools.named, pool)
    found = await interaction.client.read(corpora.every)
    lines = [_corpus(where, each) for where, each in found if pool in (None, where)]
    nothing = "There are none yet. An operator registers corpora with `stoa corpus add`."
    await errors.reply(interaction, text.listed(lines) or nothing)


@catalogue_group.command(name="propose", description="Propose a recipe, dataset, program or pairs; an admin decides")
@app_commands.describe(
    what="A recipe, a dataset of the Hub, a program (somebody's code), or pairs that studies ask a model",
    file="The recipe, program or pairs as a YAML file; without it, a form asks for it",
    name="Its name, with a file; the file's own otherwise",
)
async def propose(
    interaction: Interaction,
    what: Literal["recipe", "dataset", "program", "pairs"],
    file: discord.Attachment | None = None,
    name: str | None = None,
) -> None:
    """Propose what is in the file, or open the form."""
    if file is None:
        shown: dict[str, Callable[[], Form]] = {
            "recipe": RecipeForm,
            "dataset": DatasetForm,
            "program": ProgramForm,
            "pairs": PairsForm,
        }
        await interaction.response.send_modal(shown[what]())
        return
    if what == "dataset":
        raise InvalidError(
            "A file is a recipe, a program or pairs; a dataset is named in a form, which comes without a file."
        )
    # Four bytes a character at most; what is longer need not be fetched to be refused.
    if file.size > 4 * configs.LONGEST_RECIPE:
        has = "pairs have" if what == "pairs" else f"a {what} has"
        raise InvalidError(f"The file has {file.size:,} bytes; {has} at most {configs.LONGEST_RECIPE:,}.")
    await acknowledge(interaction)
    body = (await file.read()).decode("utf-8", errors="replace")
    called = name or file.filename.rpartition(".")[0] or file.filename
    propose = {
        "recipe": catalogue.propose_recipe,
        "program": catalogue.propose_program,
        "pairs": catalogue.propose_pairs,
    }
    await interaction.client.write(propose[what], actor(interaction), str(interaction.id), name=called, body=body)
    await errors.reply(interaction, forms.proposed(called, what))


@catalogue_group.command(name="accept", description="Admins: let everyone use a proposed entry")
@app_commands.describe(name="The entry")
@app_commands.autocomplete(name=autocomplete.proposed_entries)
async def accept(interaction: Interaction, name: str) -> None:
    """Open the form of the reason."""
    done = (
        f"{text.code(name, 60)} is accepted: everyone can use it.\n"
        "**Next** `/run launch` takes it, as `recipe:` or as `dataset:`; `/run program` runs a program, and "
        "`/study start` asks pairs."
    )
    await _decide(interaction, name, CatalogueState.ACCEPTED, ("Accept", catalogue.accept, done))


@catalogue_group.command(name="decline", description="Admins: refuse a proposed entry; its name is free again")
@app_commands.describe(name="The entry")
@app_commands.autocomplete(name=autocomplete.proposed_entries)
async def decline(interaction: Interaction, name: str) -> None:
    """Open the form of the reason."""
    done = f"{text.code(name, 60)} is declined."
    await _decide(interaction, name, CatalogueState.DECLINED, ("Decline", catalogue.decline, done))


@catalogue_group.command(name="retire", description="Admins: retire an accepted entry; its runs go on")
@app_commands.describe(name="The entry")
@app_commands.autocomplete(name=autocomplete.accepted_entries)
async def retire(interaction: Interaction, name: str) -> None:
    """Open the form of the reason."""
    done = f"{text.code(name, 60)} is retired: no new run can use it."
    await _decide(interaction, name, CatalogueState.RETIRED, ("Retire", catalogue.retire, done))


async def _decide(
    interaction: Interaction, name: str, to: CatalogueState, how: tuple[str, Callable[..., object], str]
) -> None:
    verb, act, done = how
    await interaction.client.read(catalogue.check_may_decide, actor(interaction), name, to)
    await interaction.response.send_modal(ReasonForm(f"{verb} {name}", act, name, done))


@catalogue_group.command(name="prepare", description="Prepare a recipe's data once, by a run on one device")
@app_commands.describe(
    recipe="The recipe",
    time_limit="Its time limit, such as 45m, 2h or 1h30m",
    gpus="How many GPUs or cores, one process on each; above one node, whole nodes; 1 by default",
    allocation="The allocation to draw on; the newest approved one otherwise",
    project="The project, where this is not its channel or one of its threads",
)
@app_commands.autocomplete(recipe=autocomplete.preparable_recipes, time_limit=run_autocomplete.durations)
@app_commands.autocomplete(allocation=autocomplete.live_allocations, project=autocomplete.open_projects)
async def prepare(
    interaction: Interaction,
    recipe: str,
    time_limit: str,
    gpus: int = 1,
    allocation: int | None = None,
    project: int | None = None,
) -> None:
    """Queue the run that prepares the data."""
    await acknowledge(interaction)
    project_id = await context.project_of(interaction, project)
    receipt = await interaction.client.write(
        launching.prepare,
        actor(interaction),
        str(interaction.id),
        project_id=project_id,
        recipe=recipe,
        time_limit=time_limit,
        gpus=gpus,
        allocation_id=allocation,
    )
    await errors.reply(
        interaction,
        f"Run {receipt.run_id} will prepare the data of {text.code(recipe, 60)}. It will cost "
        f"{receipt.unit.hours(receipt.cost)} at most. {run_answers.remains(receipt)}\n"
        "**Next** Once it has finished, every run of the recipe reads what it has prepared: `/run launch`.",
    )


def _corpus(pool: str, corpus: Corpus) -> str:
    licences = text.line(corpus.licences, 160)
    holds = text.contents(corpus.documents, corpus.tokens, corpus.bytes)
    stored = " · in the store, for pools that lack it" if corpus.stored else ""
    return f"📚 {text.code(corpus.name, 64)} on {text.code(pool, 40)} · {corpus.kind}\n-# {holds} · {licences}{stored}"
