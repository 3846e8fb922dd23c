"""The card of a request for compute, and the card of a request to change an allocation."""

from collections.abc import Sequence
from typing import Any

import discord
from discord import ui

from bot import text
from bot.buttons import Button
from bot.cards.card import GREEN, GREY, ORANGE, VERMILION, Card, texts
from bot.mention import Mention, ended
from broker.allocations import units
from broker.allocations.allocations import LIVE, AllocationState, AllocationView
from broker.allocations.change_requests import ChangeState
from broker.allocations.units import Unit, in_hours
from broker.reports.review_context import ReviewContext
from broker.reviews.changes import ChangeView

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
OVER = frozenset({AllocationState.EXPIRED, AllocationState.REVOKED, AllocationState.RENEWED})
DECIDED = frozenset(AllocationState) - {
    AllocationState.EXHAUSTED,
    AllocationState.EXPIRED,
    AllocationState.RENEWED,
}
SUCCESS, DANGER = discord.ButtonStyle.success, discord.ButtonStyle.danger


def review_card(
    request: AllocationView, context: ReviewContext | None = None, reviewers: Mention | None = None
) -> Card:
    """The card of a request for compute, with what reviewers need while it is open, then the decision.

    While it is open, it mentions the `reviewers`.
    """
    emoji, colour = REQUESTS[request.state]
    asked = request.unit.hours(request.seconds)
    renewal = f", in place of allocation {request.renews}" if request.renews else ""
    asks = "asks for" if request.state == AllocationState.REQUESTED else "asked for"
    does = "used by" if request.state in OVER else "for"
    lines = [
        f"### {emoji} {request.unit.hours(request.size)} {does} {text.line(request.project, 160)}",
        f"{text.line(request.requested_by, 60)} {asks} {asked} of {text.code(request.pool, 60)} "
        f"({text.line(request.gpu_type, 60)}) until {text.when(request.until, 'D')}{renewal}.",
        text.quote(request.justification, 1200),
    ]
    buttons: list[Button] = []
    mention: Mention | None = None
    if request.state == AllocationState.REQUESTED:
        lines += _for_reviewers(context, request.unit, request.endorsed_by)
        mention = reviewers
        buttons = [
            Button("approve", request.id, style=SUCCESS),
            Button("approve_part", request.id, label="Approve part"),
            Button("ask", request.id, label="Ask"),
            Button("decline", request.id, style=DANGER),
        ]
    else:
        granted = request.state == AllocationState.APPROVED
        what = f": {request.unit.hours(request.account.granted)}" if granted else ""
        sponsor = f", sponsored by {text.line(request.sponsor, 80)}" if request.sponsor else ""
        by = text.line(request.decided_by or "policy", 60)
        decided = f" by {by}**" if request.state in DECIDED else f"**, approved by {by}"
        lines += [f"**{request.standing.capitalize()}{decided}{what}{sponsor}", text.quote(request.reason, 800)]
    if request.state in LIVE:
        if request.half_until is not None:
            half = request.unit.hours(request.account.committed)
            lines.append(f"**Second half** {half}, to be released on a report by {text.when(request.half_until, 'D')}")
            buttons.append(Button("release_half", request.id, label="Release second half", style=SUCCESS))
        if request.report:
            lines += ["**Report**", text.quote(request.report, 600)]
        buttons.append(Button("revoke", request.id, style=DANGER))
    return _card(lines, f"-# P{request.project_id} · allocation {request.id}", colour, buttons, mention)


def change_card(
    change: ChangeView,
    request: AllocationView,
    context: ReviewContext | None = None,
    reviewers: Mention | None = None,
) -> Card:
    """The card of a request to change an allocation, with what reviewers need while it is open, then the decision.

    While it is open, it mentions the `reviewers`.
    """
    state = AllocationState(change.state.value)
    emoji, colour = REQUESTS[state]
    asked, account = changed(change, request.unit), request.account
    asks = "asks for" if change.state == ChangeState.REQUESTED else "asked for"
    lines = [
        f"### {emoji} {asked} for {text.line(request.project, 160)}",
        f"{text.line(change.requested_by, 60)} {asks} it on allocation {request.id}, {text.code(request.pool, 60)} "
        f"until {text.when(request.until, 'D')}.",
        text.quote(change.justification, 1200),
        f"**The allocation** {in_hours(account.left)} of {request.unit.hours(account.granted)} left",
    ]
    buttons: list[Button] = []
    mention: Mention | None = None
    if change.state == ChangeState.REQUESTED:
        lines += _for_reviewers(context, request.unit, change.endorsed_by)
        mention = reviewers
        buttons = [
            Button("approve_change", change.id, label="Approve", style=SUCCESS),
            Button("decline_change", change.id, label="Decline", style=DANGER),
        ]
    else:
        del lines[-1]
        by = text.line(change.decided_by or "policy", 60)
        lines += [f"**{change.state.capitalize()} by {by}**", text.quote(change.reason, 800)]
    marker = f"-# P{request.project_id} · change {change.id} of allocation {request.id}"
    return _card(lines, marker, colour, buttons, mention)


def changed(change: ChangeView, unit: Unit) -> str:
    """What a change asks for: “2 GPU-hours more and an end on 2030-01-01”."""
    wants = [f"{unit.hours(change.seconds)} more"] if change.seconds else []
    wants += [f"an end on {text.when(change.until, 'D')}"] if change.until else []
    return " and ".join(wants)


def _for_reviewers(context: ReviewContext | None, unit: Unit, endorsed_by: str | None) -> Sequence[str]:
    """What a reviewer should know, one line each."""
    if context is None:
        return []
    before = f" of {text.count(context.grants, 'allocation')}" if context.grants else "; this would be its first"
    reserved = units.hours(context.reserved)
    running = f", with {reserved} reserved for its running runs" if any(context.reserved.values()) else ""
    lines = [f"**The project** has used {units.hours(context.spent)}{before}{running}."]
    standing = context.standing
    if standing.of > 1 and standing.usage:
        lines.append(f"**Recently** {standing.used:.0%} of what all projects used; its share is {standing.share:.0%}.")
    lines.append(f"**The pool** can give {unit.hours(context.available)}.")
    within = f"**Within {text.count(context.days, 'day')}**"
    may = f"One reviewer may grant {in_hours(context.one_reviewer)} of that."
    asked = context.with_this - context.recent
    if context.person is not None and asked:
        theirs, who = context.person, text.line(context.person.person or "", 60)
        elsewhere = f" and asks for {in_hours(theirs.asked)} in other ones" if theirs.asked else ""
        lines.append(
            f"{within} {who} was granted {units.alike(theirs.granted, context.units)} in all projects{elsewhere}; with "
            f"this it would be {in_hours(theirs.seconds + asked)}. This sum decides, as the project's own would be "
            f"{in_hours(context.with_this)}. {may}"
        )
    elif context.recent and asked:
        lines.append(
            f"{within} the project was granted {units.alike(context.recent, context.units)}; with this it would be "
            f"{in_hours(context.with_this)}. {may}"
        )
    if endorsed_by is not None:
        lines.append(f"Endorsed by {text.line(endorsed_by, 60)}; a second reviewer decides.")
    else:
        needed = "Two reviewers decide" if context.reviewers > 1 else "One reviewer decides"
        lines.append(f"**Decision** {needed}{', and it comes in two halves' if context.halves else ''}.")
    for remark in context.remarks[-4:]:
        does = "asks" if remark.question else "answers"
        lines += [f"**{text.line(remark.by, 60)}** {does}", text.quote(remark.said, 300)]
    return lines


def _card(lines: Sequence[str], marker: str, colour: int, buttons: Sequence[Button], mention: Mention | None) -> Card:
    row: list[ui.Item[Any]] = [ui.ActionRow(*buttons)] if buttons else []
    return Card(texts(lines, ended(marker, mention)), *row, colour=colour, marker=marker, mention=mention)
