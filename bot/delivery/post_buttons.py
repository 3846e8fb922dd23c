"""Buttons under the posts of those kinds of entries that ask somebody for an answer."""

from collections.abc import Mapping, Sequence

import discord

from bot.buttons import Button
from projects.projects import ProjectRole
from projects.record.record import EntryView

# By kind of entry: the act, label and style of each button. The act's number is the allocation's, else the project's;
# that of a newcomer's joining is the entry's own.
BUTTONS: Mapping[str, Sequence[tuple[str, str, discord.ButtonStyle]]] = {
    "project.lead_offered": (
        ("accept_lead", "Accept", discord.ButtonStyle.success),
        ("decline_lead", "Decline", discord.ButtonStyle.secondary),
    ),
    "project.joined": (("confirm", "Confirm", discord.ButtonStyle.success),),
    "allocation.asked": (("answer", "Answer", discord.ButtonStyle.primary),),
}


def of(entry: EntryView) -> Sequence[Button]:
    """The buttons under an entry's post; none where the entry was blanked."""
    if entry.payload is None or entry.project_id is None:
        return ()
    number = entry.payload.get("allocation", entry.project_id)
    if entry.kind == "project.joined":
        if entry.payload.get("role") != ProjectRole.NEWCOMER:
            return ()
        number = entry.id
    return [Button(act, number, label=label, style=style) for act, label, style in BUTTONS.get(entry.kind, ())]
