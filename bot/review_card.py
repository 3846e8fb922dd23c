"""The card of a request for GPU time."""

import discord
from discord import ui

from bot import text
from bot.buttons import Button
from bot.card import GREEN, GREY, ORANGE, VERMILION, Card, texts
from broker.allocations import AllocationState, AllocationView

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
    parts = [texts(lines, marker)]
    if request.state == AllocationState.REQUESTED:
        parts.append(
            ui.ActionRow(
                Button("approve", request.id, style=discord.ButtonStyle.success),
                Button("decline", request.id, style=discord.ButtonStyle.danger),
            )
        )
    return Card(*parts, colour=colour, marker=marker)
