"""Buttons under the posts of those kinds of entries that ask somebody for an answer."""

from collections.abc import Mapping, Sequence

import discord

from bot import text
from bot.buttons import Button
from bot.delivery.entry_text.run import trains
from projects.projects import ProjectRole
from projects.record.record import EntryView

MOST_IN_A_ROW, LONGEST_LABEL = 5, 80

# By kind of entry: the act, label and style of each button. The act's number is the run's or the allocation's, else the
# project's; that of a newcomer's joining is the entry's own.
BUTTONS: Mapping[str, Sequence[tuple[str, str, discord.ButtonStyle]]] = {
    "project.lead_offered": (
        ("accept_lead", "Accept", discord.ButtonStyle.success),
        ("decline_lead", "Decline", discord.ButtonStyle.secondary),
    ),
    "project.joined": (("confirm", "Confirm", discord.ButtonStyle.success),),
    "project.proposed": (("scope", "Write the scope", discord.ButtonStyle.secondary),),
    "project.activated": (("request", "Ask for compute", discord.ButtonStyle.primary),),
    "project.channel_opened": (("request", "Ask for compute", discord.ButtonStyle.primary),),
    "allocation.asked": (("answer", "Answer", discord.ButtonStyle.primary),),
    "allocation.approved": (("launch_run", "Launch a run", discord.ButtonStyle.success),),
    "run.failed": (
        ("log", "Log", discord.ButtonStyle.secondary),
        ("rerun", "Rerun", discord.ButtonStyle.secondary),
    ),
}


def of(entries: Sequence[EntryView]) -> Sequence[Button]:
    """The buttons under a post of these entries; where several share it, one for each newcomer, as many as fit."""
    if len(entries) == 1:
        return _of(entries[0])
    joined = {entry.payload["by"]["id"]: entry for entry in entries if entry.kind == "project.joined" and entry.payload}
    return [
        Button(button.act, button.number, label=text.bounded(f"Confirm {entry.payload['by']['name']}", LONGEST_LABEL))
        for entry in joined.values()
        if entry.payload is not None
        for button in _of(entry)
    ][:MOST_IN_A_ROW]


def _of(entry: EntryView) -> Sequence[Button]:
    """The buttons of one entry; none where the entry was blanked."""
    if entry.payload is None or entry.project_id is None:
        return ()
    if entry.kind == "run.failed" and not trains(entry.payload):
        return ()
    number = entry.payload.get("run", entry.payload.get("allocation", entry.project_id))
    if entry.kind == "project.joined":
        if entry.payload.get("role") != ProjectRole.NEWCOMER:
            return ()
        number = entry.id
    return [Button(act, number, label=label, style=style) for act, label, style in BUTTONS.get(entry.kind, ())]
