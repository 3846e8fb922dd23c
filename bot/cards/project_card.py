"""The card of a project."""

from collections.abc import Sequence

import discord
from discord import ui

from bot import text
from bot.buttons import Button
from bot.cards import next_step
from bot.cards.card import BLUE, GREEN, GREY, ORANGE, SKY, Card, sections
from bot.cards.review_card import REQUESTS
from bot.cards.run_card import RUNS
from broker.allocations.allocations import LIVE, AllocationState, AllocationView
from broker.allocations.units import in_hours
from broker.runs.runs import ACTIVE, RunView
from projects.projects import ENDED, ProjectView, ReleasePolicy, Stage

OPEN = (*LIVE, AllocationState.REQUESTED)
STAGES = {
    Stage.PROPOSED: ("🌱", SKY, "Proposed"),
    Stage.RECRUITING: ("🤝", SKY, "Looking for people"),
    Stage.SCOPED: ("📐", ORANGE, "Scope written, looking for people"),
    Stage.ACTIVE: ("🏛️", BLUE, "Active"),
    Stage.PAUSED: ("⏸️", ORANGE, "Paused"),
    Stage.COMPLETED: ("🏁", GREEN, "Completed"),
    Stage.STOPPED: ("⏹️", GREY, "Stopped"),
}


def project_card(
    project: ProjectView,
    requests: Sequence[AllocationView],
    runs: Sequence[RunView],
    *,
    channel_id: str | None,
    min_people: int,
) -> Card:
    """The card of a project: its stage, question, scope, people, newest requests and runs, and what comes next.

    `min_people` is how many people it takes to begin.
    """
    emoji, colour, stage = STAGES[project.stage]
    home = f" · in <#{channel_id}>" if channel_id else ""
    head = [
        f"## {text.line(project.title, 160)}",
        f"{emoji} **{stage}**{home}",
        text.quote(project.stage_reason, 400) if project.stage_reason else "",
    ]
    if project.outcome:
        head += [f"**Outcome: {project.outcome}**", text.quote(project.learnt, 500)]
    asks = _quoted(("Question", project.question, 500), ("Why it matters", project.why, 350))
    scope = _quoted(
        ("Goal", project.goal, 330),
        ("Plan", project.plan, 400),
        ("Compute", project.compute, 150),
        ("To be released", project.release, 150),
    )
    if project.goal:
        held = ", held back until reviewers release them" if project.release_policy == ReleasePolicy.HELD else ""
        scope.append(f"**Models** {project.licence}{held}")
    people = _quoted(("Who is needed", project.needs, 220)) if project.stage not in ENDED else []
    people.append(_people(project))
    # First the allocations that can be used or wait for a decision, then the newest of the others.
    standing = sorted(requests, key=lambda request: request.state not in OPEN)
    compute = [_request_line(request) for request in standing[:3]] + [_run_line(run) for run in runs[:4]]
    marker = f"-# P{project.id} · project"
    comes = next_step.of_project(project, requests, runs, min_people=min_people)
    parts = sections([head, asks, scope, people, compute, [comes]], marker)
    if project.stage not in ENDED:
        join = Button("join", project.id, style=discord.ButtonStyle.success)
        parts.append(ui.ActionRow(join, Button("follow", project.id)))
    return Card(*parts, colour=colour, marker=marker)


def _people(project: ProjectView) -> str:
    """The lead, the contributors with the newcomers, and the number of followers."""
    others = [
        f"{text.line(member.name, 60)}{' (newcomer)' if member.newcomer else ''}"
        for member in project.members
        if not member.lead
    ]
    roles = [f"**Lead** {text.line(project.lead.name, 60)}"]
    if others:
        roles.append(f"**Contributors ({len(others)})** {text.bounded(', '.join(others), 300)}")
    if project.followers:
        roles.append(f"**Followers** {project.followers}")
    return " · ".join(roles)


def _quoted(*about: tuple[str, str, int]) -> list[str]:
    """A heading and a block quote for each text that is not empty, cut to the number beside it."""
    return [line for label, said, most in about if said for line in (f"**{label}**", text.quote(said, most))]


def _request_line(request: AllocationView) -> str:
    account = request.account
    said = f"{REQUESTS[request.state][0]} **Allocation {request.id}** on {text.code(request.pool, 40)}"
    if request.state == AllocationState.APPROVED:
        return f"{said}: {in_hours(account.left)} of {request.unit.hours(account.granted)} left"
    if request.state == AllocationState.REQUESTED:
        return f"{said}: {request.unit.hours(request.seconds)} asked for, waiting for the reviewers"
    return f"{said}: {request.standing}"


def _run_line(run: RunView) -> str:
    emoji, _, word = RUNS[run.state]
    loss = "" if run.loss is None or run.state in ACTIVE else f", loss {run.loss:.3f}"
    sweep = "" if run.sweep_id is None else f" of sweep {run.sweep_id}"
    name = f" {text.run_name(run.name)}" if run.name else ""
    return f"{emoji} **Run {run.id}**{name}{sweep} {text.code(run.recipe, 40)} {word}{loss}"
