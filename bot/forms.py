"""Forms. None of their fields is required and none checks anything: the domain judges what was typed, in its words."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import discord
from discord import ui

from bot import errors, text
from bot.app import Interaction, actor
from broker import allocations, reviews
from broker.allocations import AllocationState
from projects import pipeline
from projects.pipeline import Outcome

Input = ui.TextInput[Any]


def short(default: str = "", placeholder: str = "") -> Input:
    """A field of one line."""
    return ui.TextInput(required=False, max_length=4000, default=default or None, placeholder=placeholder or None)


def long(placeholder: str = "") -> Input:
    """A field of several lines."""
    style = discord.TextStyle.paragraph
    return ui.TextInput(style=style, required=False, max_length=4000, placeholder=placeholder or None)


class Form(ui.Modal):
    """A form whose sending is answered privately: first at once, then with what came of it."""

    def __init__(self, title: str, fields: Mapping[str, ui.Item[Any]]) -> None:
        super().__init__(title=text.bounded(title, 45), timeout=3600)
        for label, component in fields.items():
            self.add_item(ui.Label(text=label, component=component))

    async def on_submit(self, interaction: discord.Interaction[Any]) -> None:
        """Acknowledge, change the state, say so."""
        await interaction.response.defer(ephemeral=True, thinking=True)
        await errors.reply(interaction, await self.send(interaction))

    async def on_error(self, interaction: discord.Interaction[Any], error: Exception, /, *_: Any) -> None:
        """Answer like everything else."""
        await errors.answer(interaction, error)

    @abstractmethod
    async def send(self, interaction: Interaction) -> str:
        """Do what the form is for and return what to say."""


class ProposeForm(Form):
    """A new project."""

    def __init__(self) -> None:
        self.title_field, self.question, self.why, self.needs = short(), long(), long(), long()
        super().__init__(
            "Propose a project",
            {
                "Title": self.title_field,
                "Research question": self.question,
                "Why it matters": self.why,
                "Who is needed": self.needs,
            },
        )

    async def send(self, interaction: Interaction) -> str:
        """Propose it."""
        app = interaction.client
        project_id = await app.write(
            pipeline.propose,
            actor(interaction),
            str(interaction.id),
            title=self.title_field.value,
            question=self.question.value,
            why=self.why.value,
            needs=self.needs.value,
        )
        return f"Project {project_id} is proposed: it appears in <#{app.settings.proposals_channel_id}> in a moment."


class ScopeForm(Form):
    """What a project will do; how it releases was chosen with the command."""

    def __init__(self, project_id: int, release_policy: str, licence: str) -> None:
        self.project_id, self.release_policy, self.licence = project_id, release_policy, licence
        self.goal, self.plan, self.compute, self.release = long(), long(), long(), long()
        super().__init__(
            "The scope of the project",
            {
                "Goal": self.goal,
                "Plan": self.plan,
                "Estimate of compute": self.compute,
                "What will be released": self.release,
            },
        )

    async def send(self, interaction: Interaction) -> str:
        """Write it down."""
        app = interaction.client
        await app.write(
            pipeline.scope,
            actor(interaction),
            self.project_id,
            goal=self.goal.value,
            plan=self.plan.value,
            compute=self.compute.value,
            release=self.release.value,
            release_policy=self.release_policy,
            licence=self.licence,
            min_people=app.settings.min_people,
        )
        project = await app.read(pipeline.view, self.project_id)
        if project.stage == pipeline.Stage.ACTIVE:
            channel = "its channel opens in a moment" if project.has_channel else "a moderator opens its channel"
            return f"The scope is written, and the project is active: {channel}."
        missing = app.settings.min_people - len(project.members)
        return f"The scope is written. With {text.count(missing, 'more person', 'more people')} the project starts."


class CompleteForm(Form):
    """How a project ended."""

    def __init__(self, project_id: int) -> None:
        self.project_id = project_id
        options = [discord.SelectOption(label=outcome.capitalize(), value=outcome) for outcome in Outcome]
        self.outcome: ui.Select[Any] = ui.Select(options=options)
        self.learnt = long("A negative result is a result: what would you tell those who try next?")
        super().__init__("Complete the project", {"Outcome": self.outcome, "What was learnt": self.learnt})

    async def send(self, interaction: Interaction) -> str:
        """Complete it."""
        app = interaction.client
        outcome = next(iter(self.outcome.values), "")
        await app.write(
            pipeline.complete, actor(interaction), self.project_id, outcome=outcome, learnt=self.learnt.value
        )
        return f"The project is completed; <#{app.settings.announcements_channel_id}> tells everyone. Thank you!"


class RequestForm(Form):
    """A request for GPU time."""

    def __init__(self, project_id: int, pool: str) -> None:
        self.project_id, self.pool = project_id, pool
        self.hours, self.until = short(placeholder="1.5"), short(placeholder="YYYY-MM-DD")
        self.justification = long()
        super().__init__(
            "Ask for GPU time", {"GPU-hours": self.hours, "Until": self.until, "Justification": self.justification}
        )

    async def send(self, interaction: Interaction) -> str:
        """Ask for it."""
        allocation_id = await interaction.client.write(
            allocations.request,
            actor(interaction),
            str(interaction.id),
            project_id=self.project_id,
            pool=self.pool,
            hours=self.hours.value,
            until=self.until.value,
            justification=self.justification.value,
        )
        return f"Allocation {allocation_id} is asked for; the reviewers' decision is posted in the project's channel."


class ApproveForm(Form):
    """A reviewer's approval, in full or in part."""

    def __init__(self, allocation_id: int, seconds: int) -> None:
        self.allocation_id = allocation_id
        self.hours, self.reason = short(default=text.exact_hours(seconds)), long()
        super().__init__("Approve GPU time", {"GPU-hours": self.hours, "Reason": self.reason})

    async def send(self, interaction: Interaction) -> str:
        """Grant it."""
        app = interaction.client
        state = await app.write(
            reviews.approve,
            actor(interaction),
            self.allocation_id,
            hours=self.hours.value,
            reason=self.reason.value,
            reviewer_role_id=app.settings.reviewer_role_id,
        )
        if state == AllocationState.REQUESTED:
            return "Endorsed; a grant of this size needs a second reviewer, who decides now."
        return "Approved; the decision and its reason are posted in the project's channel."


class DeclineForm(Form):
    """A reviewer's refusal."""

    def __init__(self, allocation_id: int) -> None:
        self.allocation_id = allocation_id
        self.reason = long()
        super().__init__("Decline GPU time", {"Reason": self.reason})

    async def send(self, interaction: Interaction) -> str:
        """Refuse it."""
        app = interaction.client
        await app.write(
            reviews.decline,
            actor(interaction),
            self.allocation_id,
            reason=self.reason.value,
            reviewer_role_id=app.settings.reviewer_role_id,
        )
        return "Declined; the decision and its reason are posted in the project's channel."
