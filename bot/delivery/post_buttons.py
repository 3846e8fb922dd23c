"""Buttons under the posts of those entries that ask somebody for an answer."""

from collections.abc import Mapping, Sequence

import discord

from bot.buttons import Button
from projects.record.record import Told

# By the kind of entry: act, label and style; the number is the project's, or what the payload names.
BUTTONS: Mapping[str, Sequence[tuple[str, str, discord.ButtonStyle]]] = {
    "project.lead_offered": (
        ("accept_lead", "Accept", discord.ButtonStyle.success),
        ("decline_lead", "Decline", discord.ButtonStyle.secondary),
    ),
    "allocation.asked": (("answer", "Answer", discord.ButtonStyle.primary),),
}


def of(entry: Told) -> Sequence[Button]:
    """The buttons under an entry's post; none where it was blanked."""
    if entry.payload is None or entry.project_id is None:
        return ()
    number = entry.payload.get("allocation", entry.project_id)
    return [Button(act, number, label=label, style=style) for act, label, style in BUTTONS.get(entry.kind, ())]
