"""The welcomes that are pinned: in a project's channel, where projects are proposed, and where newcomers talk."""

from collections.abc import Sequence
from typing import Any

import discord
from discord import ui

from bot import text
from bot.buttons import Button
from bot.cards import next_step
from bot.cards.card import BLUE, GREY, Card, sections
from broker.allocations.allocations import AllocationState, AllocationView
from broker.runs.runs import RunView
from projects.projects import ENDED, ProjectView

READ = "Everything that happens is posted where anyone can read it."


def project_welcome(
    project: ProjectView, requests: Sequence[AllocationView], runs: Sequence[RunView], *, min_people: int
) -> Card:
    """The welcome in a project's channel: its question, its people, how to help, and what comes next."""
    marker = f"-# P{project.id} · welcome"
    people = ", ".join(f"{text.line(one.name, 60)}{' (lead)' if one.lead else ''}" for one in project.members)
    head = [
        f"## 👋 Welcome to {text.line(project.title, 160)}",
        f"**Question**\n{text.quote(project.question, 600)}" if project.question else "",
        f"**People** {text.bounded(people, 600)}",
    ]
    if project.stage in ENDED:
        return Card(*sections([head, [f"This project is {project.stage}."]], marker), colour=GREY, marker=marker)
    helps = [
        f"**How to help**\n{text.quote(project.needs, 300)}" if project.needs else "**How to help**",
        "Press Join to take part, or Follow to read along. Each run has a thread under its card.",
    ]
    comes = next_step.of_project(project, requests, runs, min_people=min_people)
    parts = sections([head, helps, [comes]], marker)
    parts.append(ui.ActionRow(*_of_project(project, requests)))
    return Card(*parts, colour=BLUE, marker=marker)


def _of_project(project: ProjectView, requests: Sequence[AllocationView]) -> list[ui.Item[Any]]:
    """The buttons of a project's welcome."""
    row: list[ui.Item[Any]] = [
        Button("join", project.id, style=discord.ButtonStyle.success),
        Button("follow", project.id),
    ]
    live = [one.id for one in requests if one.state == AllocationState.APPROVED and one.account.left > 0]
    if live:
        row.append(Button("launch_run", live[0], label="Launch a run"))
    elif not any(one.state == AllocationState.REQUESTED for one in requests):
        row.append(Button("request", project.id, label="Ask for compute"))
    return row


def proposals_welcome(*, min_people: int) -> Card:
    """The welcome for newcomers in the channel of proposals."""
    marker = "-# Lab · welcome to the proposals"
    lines = [
        "## 👋 Welcome: this is where projects begin",
        "Anyone may propose a question that takes the training of a language model to answer. Each proposal has a card "
        "here, with a thread to discuss it.",
        f"A project gets a channel of its own with a scope and {text.count(min_people, 'person', 'people')}. Then its "
        f"lead asks for compute, reviewers decide, and its people launch runs. {READ}",
        "**Next** Join or follow a project by the buttons of its card, or propose your own.",
    ]
    return _of_lab(lines, marker)


def general_welcome(*, proposals: int) -> Card:
    """The welcome for newcomers in the channel where people talk."""
    marker = "-# Lab · welcome to newcomers"
    lines = [
        "## 👋 Welcome to the lab",
        f"We research language models in the open: members propose projects in <#{proposals}>, gather people, ask for "
        f"compute and train models together. {READ}",
        "You need no invitation: read along anywhere, ask anything, join what interests you.",
        f"**Next** Look at what is proposed in <#{proposals}>, or ask what you can do here.",
    ]
    return _of_lab(lines, marker)


def _of_lab(lines: Sequence[str], marker: str) -> Card:
    row: ui.ActionRow[Any] = ui.ActionRow(
        Button("propose", 0, label="Propose a project", style=discord.ButtonStyle.success),
        Button("help", 0, label="What can I do here?"),
    )
    return Card(*sections([lines], marker), row, colour=BLUE, marker=marker)
