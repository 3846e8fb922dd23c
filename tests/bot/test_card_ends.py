"""How each card ends, in each state of what it shows: with what comes next, or with who decides."""

import re
from collections.abc import Iterator
from dataclasses import replace

import discord
import pytest
from discord import app_commands, ui

from bot.buttons import Button
from bot.cards import welcome_card
from bot.cards.card import Card
from bot.cards.project_card import project_card
from bot.cards.review_card import change_card, review_card
from bot.cards.run_card import run_card
from bot.cards.sweep_card import sweep_card
from bot.commands.allocation.commands import allocation
from bot.commands.catalogue.commands import catalogue_group
from bot.commands.project.commands import project as project_group
from bot.commands.run.commands import run as run_group
from bot.commands.stoa.commands import stoa
from broker.allocations.allocations import AllocationState
from broker.allocations.change_requests import ChangeState
from broker.runs.runs import RunKind, RunState
from projects.projects import ENDED, Stage
from tests.bot.test_limits import change, context, project, request, run, sweep

GROUPS: dict[str, app_commands.Group] = {
    group.name: group for group in (allocation, catalogue_group, project_group, run_group, stoa)
}


def cards() -> Iterator[tuple[str, Card, str]]:
    """Each card with its name and the beginning of its last line before the marker; nothing where nothing follows."""
    for stage in Stage:
        shown = replace(project("demo"), stage=stage)
        comes = "" if stage in ENDED else "**Next** "
        yield f"project, {stage}", project_card(shown, [], [], channel_id=None, min_people=2), comes
        yield f"welcome, {stage}", welcome_card.project_welcome(shown, [], [], min_people=2), comes
    yield "welcome of the proposals", welcome_card.proposals_welcome(min_people=2), "**Next** "
    yield "welcome of the lab", welcome_card.general_welcome(proposals=7), "**Next** "
    for state in RunState:
        yield f"run, {state}", run_card(replace(run("demo"), state=state)), "**Next** "
        yield f"sweep, {state}", sweep_card(sweep("demo", state)), "**Next** "
    for kind, state, comes in (
        (RunKind.PREPARE, RunState.FINISHED, "**Next** "),
        (RunKind.PREPARE, RunState.FAILED, ""),
        (RunKind.SAMPLE, RunState.FINISHED, ""),
        (RunKind.BASELINE, RunState.FINISHED, "**Next** "),
    ):
        yield f"{kind}, {state}", run_card(replace(run("demo"), kind=kind, state=state)), comes
    asks = replace(context("Why?"), remarks=[])
    asked = replace(request("demo"), state=AllocationState.REQUESTED, endorsed_by=None)
    yield "request", review_card(asked, asks), "**Decision** "
    yield (
        "change",
        change_card(replace(change("demo", ChangeState.REQUESTED), endorsed_by=None), asked, asks),
        ("**Decision** "),
    )


@pytest.mark.parametrize(("card", "comes"), [pytest.param(card, comes, id=name) for name, card, comes in cards()])
async def test_a_card_ends_with_what_comes_next(card: Card, comes: str) -> None:
    said = "\n".join(item.content for item in card.walk_children() if isinstance(item, ui.TextDisplay))
    *_, last, marker = said.splitlines()
    assert marker == card.marker
    assert last.startswith(comes) if comes else "**Next**" not in said
    for group, name in re.findall(r"`/(\w+) (\w+)`", last):
        assert GROUPS[group].get_command(name) is not None
    buttons = [item for item in card.walk_children() if isinstance(item, Button)]
    if "button" in last or comes == "**Decision** ":
        assert buttons
    if "The button below resumes" in last:
        assert [button.item.style for button in buttons].count(discord.ButtonStyle.success) == 1
