"""The forms about compute: a request, a request to change an allocation, and a reviewer's approval of either."""

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

import discord
from discord import ui

from bot import kept_forms, text
from bot.app import Interaction, actor
from bot.buttons import Button
from bot.cards.review_card import changed
from bot.commands.allocation.endorser import roles_now
from bot.commands.form import Form, choice, long, short
from broker.allocations import allocations, requests, units
from broker.allocations.allocations import AllocationState
from broker.allocations.change_requests import ChangeState
from broker.allocations.units import Amount, Unit
from broker.reviews import changes, reviews
from projects.errors import AwayError
from projects.text import LONG, USUAL

DECIDE = (
    "**Next** The reviewers decide; their decision and its reason are posted in the project's channel. Until then, "
    "`/allocation withdraw` takes it back."
)
ENDORSED = "Endorsed; a grant of this size needs a second reviewer, who decides now."


class RequestForm(Form):
    """A request for compute of one of some pools, each with the most that it can give.

    `renews` is the allocation to replace, `corrects` the open request that this one takes the place of.
    """

    def __init__(
        self, project_id: int, pools: Mapping[str, Amount], renews: int | None = None, corrects: int | None = None
    ) -> None:
        self.project_id, self.pools, self.renews, self.corrects = project_id, list(pools), renews, corrects
        gives = {name: unit.hours(most) for name, (unit, most) in pools.items()}
        self.pool = choice([(f"{name} · can give {most}", name) for name, most in gives.items()])
        self.hours = short(
            placeholder="such as 1.5" + (f"; the pool can give {gives[self.pools[0]]}" if len(pools) == 1 else "")
        )
        self.until = short(placeholder="such as 2030-12-31, 31 Dec or in 3 months")
        self.justification = long(LONG, "What it is for, and how you estimated the amount. Everyone can read it.")
        hours = units.heading({unit for unit, _ in pools.values()})
        fields: dict[str, ui.Item[Any]] = {"Pool": self.pool} if len(pools) > 1 else {}
        fields |= {hours: self.hours, "Until": self.until, "Justification": self.justification}
        super().__init__("Ask for compute", fields)

    async def send(self, interaction: Interaction) -> str:
        """Make the request."""
        allocation_id = await interaction.client.write(
            requests.request,
            actor(interaction),
            str(interaction.id),
            project_id=self.project_id,
            pool=next(iter(self.pool.values), self.pools[0]),
            hours=self.hours.value,
            until=self.until.value,
            justification=self.justification.value,
            renews=self.renews,
            corrects=self.corrects,
        )
        view = await interaction.client.read(allocations.view, allocation_id)
        what = f"{view.unit.hours(view.seconds)} of {text.code(view.pool, 60)} until {text.when(view.until, 'D')}"
        earlier = self.corrects
        instead = "" if earlier is None else f" It takes the place of allocation {earlier}, which is withdrawn."
        if view.starter:
            self.then = [Button("launch_run", allocation_id, label="Launch a run", style=discord.ButtonStyle.success)]
            return (
                f"Allocation {allocation_id} is yours at once, the starter grant of your project: {what}.{instead}\n"
                "**Next** Launch a run, with this button or `/run launch`."
            )
        with suppress(AwayError):  # the request stands without the button
            self.then = [Button("edit_form", await self._to_correct(interaction, allocation_id), label="Edit")]
        return f"Allocation {allocation_id} is requested: {what}.{instead}\n{DECIDE}"

    async def _to_correct(self, interaction: Interaction, allocation_id: int) -> int:
        """Keep this form, as it was filled in, to correct the request that it made; returns its number."""
        arguments, keywords = self.made_with
        kept = kept_forms.encoded([RequestForm, arguments, {**keywords, "corrects": allocation_id}, self.written()])
        return await interaction.client.write(kept_forms.keep, interaction.user.id, kept)


class ChangeForm(Form):
    """A request for more hours of an allocation, or for a later end than `until`."""

    def __init__(self, allocation_id: int, unit: Unit, until: datetime) -> None:
        self.allocation_id, self.unit = allocation_id, unit
        self.hours = short(placeholder="Empty for no more hours", required=False)
        self.until = short(placeholder=f"Later than {until:%Y-%m-%d}; empty for the same end", required=False)
        self.justification = long(LONG, "Results so far, and what more is for. Everyone can read it.")
        fields = {f"{units.heading([unit])} more": self.hours, "Until": self.until, "Justification": self.justification}
        super().__init__(f"Change allocation {allocation_id}", fields)

    async def send(self, interaction: Interaction) -> str:
        """Make the request."""
        number = await interaction.client.write(
            changes.request,
            actor(interaction),
            str(interaction.id),
            self.allocation_id,
            justification=self.justification.value,
            hours=self.hours.value,
            until=self.until.value,
        )
        wants = changed(await interaction.client.read(changes.view, number), self.unit)
        return f"The change is asked for: {wants}.\n{DECIDE}"


class ApproveForm(Form):
    """A reviewer's approval of a request: of the hours asked for, or of fewer, which the reviewer fills in."""

    def __init__(self, allocation_id: int, unit: Unit, seconds: int, *, part: bool = False) -> None:
        self.allocation_id = allocation_id
        asked = text.exact_hours(seconds)
        self.hours = short(placeholder=f"Less than the {asked} asked for") if part else short(default=asked)
        self.reason = long(USUAL, "Everyone can read it.")
        title = "Approve part of it" if part else "Approve compute"
        super().__init__(title, {units.heading([unit]): self.hours, "Reason": self.reason})

    async def send(self, interaction: Interaction) -> str:
        """Grant the hours."""
        app = interaction.client
        state = await app.write(
            reviews.approve,
            actor(interaction),
            self.allocation_id,
            hours=self.hours.value,
            reason=self.reason.value,
            roles_now=await roles_now(interaction, reviews.endorser, self.allocation_id),
        )
        if state == AllocationState.REQUESTED:
            return ENDORSED
        return "Approved; the decision and its reason are posted in the project's channel."


class ApproveChangeForm(Form):
    """A reviewer's approval of a change; fewer hours than were asked for can be granted."""

    def __init__(self, change_id: int, unit: Unit, seconds: int) -> None:
        self.change_id = change_id
        self.hours, self.reason = short(default=text.exact_hours(seconds)), long(USUAL, "Everyone can read it.")
        hours = {f"{units.heading([unit])} more": self.hours} if seconds else {}
        super().__init__("Approve the change", hours | {"Reason": self.reason})

    async def send(self, interaction: Interaction) -> str:
        """Grant the hours."""
        app = interaction.client
        state = await app.write(
            changes.approve,
            actor(interaction),
            self.change_id,
            hours=self.hours.value,
            reason=self.reason.value,
            roles_now=await roles_now(interaction, changes.endorser, self.change_id),
        )
        if state == ChangeState.REQUESTED:
            return ENDORSED
        return "Approved; the decision and its reason are posted in the project's channel."
