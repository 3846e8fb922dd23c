"""Cards: messages that show how a project, a request for GPU time, or a run stands, and are edited in place."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import discord
from discord import ui

from bot import text
from bot.buttons import Button
from broker import allocations
from broker.allocations import AllocationState, AllocationView
from broker.runs import RunState, RunView
from projects.pipeline import ENDED, ProjectView, ReleasePolicy, Stage

# Okabe–Ito, as in the charts.
GREY, BLUE, SKY, GREEN, ORANGE, VERMILION = 0x8A8F98, 0x0072B2, 0x56B4E9, 0x009E73, 0xE69F00, 0xD55E00

STAGES = {
    Stage.PROPOSED: ("🌱", SKY),
    Stage.RECRUITING: ("🤝", SKY),
    Stage.SCOPED: ("📐", ORANGE),
    Stage.ACTIVE: ("🏛️", BLUE),
    Stage.PAUSED: ("⏸️", ORANGE),
    Stage.COMPLETED: ("🏁", GREEN),
    Stage.STOPPED: ("⏹️", GREY),
}
REQUESTS = {
    AllocationState.REQUESTED: ("🙋", ORANGE),
    AllocationState.APPROVED: ("✅", GREEN),
    AllocationState.DECLINED: ("🚫", VERMILION),
    AllocationState.WITHDRAWN: ("↩️", GREY),
    AllocationState.EXHAUSTED: ("🪫", ORANGE),
    AllocationState.EXPIRED: ("⌛", GREY),
    AllocationState.REVOKED: ("🚫", VERMILION),
    AllocationState.RENEWED: ("♻️", GREY),
}
DECIDED = frozenset(AllocationState) - {
    AllocationState.EXHAUSTED,
    AllocationState.EXPIRED,
    AllocationState.RENEWED,
}
RUNS = {
    RunState.QUEUED: ("⏳", GREY),
    RunState.STARTING: ("🛫", SKY),
    RunState.RUNNING: ("▶️", BLUE),
    RunState.STOPPING: ("✋", ORANGE),
    RunState.PAUSED: ("⏸️", GREY),
    RunState.FINISHED: ("🏁", GREEN),
    RunState.FAILED: ("❌", VERMILION),
    RunState.CANCELLED: ("✋", GREY),
    RunState.TIMED_OUT: ("⏱️", ORANGE),
}


class Card(ui.LayoutView):
    """A Components V2 message: one container. `marker` is its last line of text, by which it is found again."""

    def __init__(self, *parts: ui.Item[Any], colour: int, marker: str) -> None:
        super().__init__(timeout=None)
        self.marker = marker
        self.add_item(ui.Container(*parts, accent_colour=colour))

    @property
    def digest(self) -> str:
        """A digest of all that the card shows; its picture counts by name."""
        components: list[dict[str, Any]] = self.to_components()  # type: ignore[no-untyped-call]
        return hashlib.sha256(json.dumps(components, sort_keys=True).encode()).hexdigest()


def project_card(
    project: ProjectView,
    requests: Sequence[AllocationView],
    runs: Sequence[RunView],
    *,
    channel_id: str | None,
    buttons: bool = True,
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
    parts = [_texts(lines, marker)]
    if buttons and project.stage not in ENDED:
        parts.append(ui.ActionRow(Button("join", project.id)))
    return Card(*parts, colour=colour, marker=marker)


def review_card(request: AllocationView) -> Card:
    """A request for GPU time: with buttons while it is open, with the decision once there is one."""
    emoji, colour = REQUESTS[request.state]
    asked = text.gpu_hours(request.seconds)
    lines = [
        f"### {emoji} {asked} for {text.line(request.project, 160)}",
        f"{text.line(request.requested_by, 60)} asks for {asked} of {text.code(request.pool, 60)} "
        f"({text.line(request.gpu_type, 60)}) until {request.until:%Y-%m-%d}.",
        text.quote(request.justification, 1500),
    ]
    if request.state != AllocationState.REQUESTED:
        granted = request.state == AllocationState.APPROVED
        what = f": {text.gpu_hours(request.account.granted)}" if granted else ""
        sponsor = f", given by {text.line(request.sponsor, 80)}" if request.sponsor else ""
        by = f" by {text.line(request.decided_by or 'policy', 60)}" if request.state in DECIDED else ""
        lines += [f"**{request.state.capitalize()}{by}**{what}{sponsor}", text.quote(request.reason, 1000)]
    elif request.endorsed_by is not None:
        lines.append(f"Endorsed by {text.line(request.endorsed_by, 60)}; a second reviewer decides.")
    marker = f"-# P{request.project_id} · allocation {request.id}"
    parts = [_texts(lines, marker)]
    if request.state == AllocationState.REQUESTED:
        parts.append(ui.ActionRow(Button("approve", request.id), Button("decline", request.id)))
    return Card(*parts, colour=colour, marker=marker)


def run_card(run: RunView, *, picture: str = "") -> Card:
    """A run as it goes; `picture` is the name of the attached file that shows its loss curve."""
    emoji, colour = RUNS[run.state]
    lines = [
        f"### {emoji} Run {run.id} · {text.line(run.recipe, 60)} · {run.state}",
        f"{text.line(run.requested_by, 60)} on {text.count(run.gpus, 'GPU')} of {text.code(run.pool, 60)}"
        + (f", given by {text.line(run.sponsor, 80)}" if run.sponsor else ""),
    ]
    if run.overrides:
        changed = ", ".join(f"{name}={value}" for name, value in run.overrides.items())
        lines.append(f"With {text.line(changed, 200)}")
    if run.reason:
        lines.append(text.quote(run.reason, 400))
    share = f" ({run.step * 100 // run.total_steps} %)" if run.total_steps else ""
    lines.append(f"{text.bar(run.step, run.total_steps)} step {run.step:,} of {run.total_steps:,}{share}")
    lines += _measures(run)
    hours, account = allocations.in_hours, run.account
    reserved = f", {hours(account.reserved)} reserved" if account.reserved else ""
    lines.append(
        f"**GPU-hours** {hours(run.spent)} by this run; of the allocation's {hours(account.granted)}: "
        f"{hours(account.spent)} used{reserved}, {hours(account.left)} left"
    )
    if run.checkpoints:
        newest = run.checkpoints[-1]
        lines.append(f"**Newest checkpoint** [step {newest.step}]({newest.url})")
    if run.delayed:
        lines.append(run.delayed)
    marker = f"-# P{run.project_id} · run {run.id}"
    parts: list[ui.Item[Any]] = []
    if picture:
        parts.append(ui.MediaGallery(discord.MediaGalleryItem(f"attachment://{picture}", description=_alt(run))))
    return Card(_texts(lines, marker), *parts, colour=colour, marker=marker)


def _measures(run: RunView) -> list[str]:
    losses = [
        f"**{name}** {value:.3f}"
        for name, value in (("Loss", run.loss), ("held-out", run.held_out), ("unigram entropy", run.unigram_entropy))
        if value is not None
    ]
    lines = [" · ".join(losses) + " nats per token"] if losses else []
    if run.rate:
        eta = "" if run.eta is None else f" · **ETA** {text.duration(run.eta)}"
        lines.append(f"**Speed** {run.rate:,.0f} tokens/s{eta}")
    return lines


def _alt(run: RunView) -> str:
    held_out = "" if run.held_out is None else f", {run.held_out:.2f} on held-out documents"
    loss = "" if run.loss is None else f", now {run.loss:.2f} nats per token"
    return f"The loss of run {run.id} over its tokens{loss}{held_out}, at step {run.step} of {run.total_steps}."


def _request_line(request: AllocationView) -> str:
    hours, account = allocations.in_hours, request.account
    said = f"**Allocation {request.id}** {text.code(request.pool, 40)}, {request.state}"
    if request.state == AllocationState.APPROVED:
        return f"{said}: {hours(account.left)} of {text.gpu_hours(account.granted)} left"
    return f"{said}: {text.gpu_hours(request.seconds)}"


def _run_line(run: RunView) -> str:
    return f"**Run {run.id}** {text.code(run.recipe, 40)}, {run.state}, step {run.step:,} of {run.total_steps:,}"


def _texts(lines: Sequence[str], marker: str) -> ui.Item[Any]:
    said = text.bounded("\n".join(lines), text.CARD - text.length(marker) - 1)
    return ui.TextDisplay(f"{said}\n{marker}")
