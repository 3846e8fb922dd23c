"""A project's card."""

from collections.abc import Sequence

import discord
from discord import ui

from bot import text
from bot.buttons import Button
from bot.card import BLUE, GREEN, GREY, ORANGE, SKY, Card, texts
from broker import allocations
from broker.allocations import AllocationState, AllocationView
from broker.runs import RunView
from projects.pipeline import ENDED, ProjectView, ReleasePolicy, Stage

STAGES = {
    Stage.PROPOSED: ("🌱", SKY),
    Stage.RECRUITING: ("🤝", SKY),
    Stage.SCOPED: ("📐", ORANGE),
    Stage.ACTIVE: ("🏛️", BLUE),
    Stage.PAUSED: ("⏸️", ORANGE),
    Stage.COMPLETED: ("🏁", GREEN),
    Stage.STOPPED: ("⏹️", GREY),
}


def project_card(
    project: ProjectView,
    requests: Sequence[AllocationView],
    runs: Sequence[RunView],
    *,
    channel_id: str | None,
) -> Card:
    """What the project is about, who is in it, and where it stands."""
    emoji, colour = STAGES[project.stage]
    home = f" · told in <#{channel_id}>" if channel_id else ""
    lines = [
        f"## {text.line(project.title, 160)}",
        f"{emoji} **{project.stage.capitalize()}** · led by {text.line(project.lead.name, 60)}{home}",
    ]
    if project.stage_reason:
        lines.append(text.quote(project.stage_reason, 400))
    if project.outcome:
        lines += [f"**Outcome: {project.outcome}**", text.quote(project.learnt, 500)]
    for label, said, most in (
        ("Question", project.question, 500),
        ("Why it matters", project.why, 350),
        ("Who is needed", project.needs, 220),
        ("Goal", project.goal, 330),
        ("Plan", project.plan, 400),
        ("Compute", project.compute, 150),
        ("To be released", project.release, 150),
    ):
        if said:
            lines += [f"**{label}**", text.quote(said, most)]
    if project.goal:
        held = ", held back until reviewers release them" if project.release_policy == ReleasePolicy.HELD else ""
        lines.append(f"**Models** {project.licence}{held}")
    names = ", ".join(text.line(member.name, 60) + (" (lead)" if member.lead else "") for member in project.members)
    following = f" · {text.count(project.followers, 'follower')}" if project.followers else ""
    lines.append(f"**People ({len(project.members)})** {text.bounded(names, 300)}{following}")
    lines += [_request_line(request) for request in requests[:3]]
    lines += [_run_line(run) for run in runs[:4]]
    marker = f"-# P{project.id} · project"
    parts = [texts(lines, marker)]
    if project.stage not in ENDED:
        join = Button("join", project.id, style=discord.ButtonStyle.success)
        parts.append(ui.ActionRow(join, Button("follow", project.id)))
    return Card(*parts, colour=colour, marker=marker)


def _request_line(request: AllocationView) -> str:
    hours, account = allocations.in_hours, request.account
    said = f"**Allocation {request.id}** {text.code(request.pool, 40)}, {request.state}"
    if request.state == AllocationState.APPROVED:
        return f"{said}: {hours(account.left)} of {text.gpu_hours(account.granted)} left"
    return f"{said}: {text.gpu_hours(request.seconds)}"


def _run_line(run: RunView) -> str:
    return f"**Run {run.id}** {text.code(run.recipe, 40)}, {run.state}, step {run.step:,} of {run.total_steps:,}"
