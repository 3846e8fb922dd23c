"""The forms about a project: its proposal, scope, updates, needs, new lead and outcome."""

from typing import Any

import discord
from discord import ui

from bot import text
from bot.app import Interaction, actor
from bot.buttons import Button
from bot.cards import next_step
from bot.commands.form import Form, long, short
from broker.allocations import awards
from projects import lifecycle, membership, projects, updates
from projects.projects import Outcome
from projects.text import BRIEF, LONG, LONGEST, TITLE, USUAL


class ProposeForm(Form):
    """The proposal of a project."""

    def __init__(self) -> None:
        self.title_field = short(placeholder="A few words that say what it is about", most=TITLE)
        self.question = long(USUAL, "What do you want to find out?")
        self.why = long(USUAL, "What would an answer change, and for which people?")
        self.needs = long(BRIEF, "Who you are looking for, and for what")
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
        """Propose the project."""
        app = interaction.client
        project_id = await app.write(
            lifecycle.propose,
            actor(interaction),
            str(interaction.id),
            title=self.title_field.value,
            question=self.question.value,
            why=self.why.value,
            needs=self.needs.value,
        )
        self.then = [Button("scope", project_id, label="Write the scope", style=discord.ButtonStyle.primary)]
        project = await app.read(projects.view, project_id)
        return (
            f"Project {project_id} is proposed: it appears in <#{app.server.proposals}> in a moment.\n"
            f"{next_step.of_project(project, (), (), min_people=app.settings.min_people)}"
        )


class ScopeForm(Form):
    """The scope of a project; its release policy was chosen with the command."""

    def __init__(self, project_id: int, release_policy: str, licence: str) -> None:
        self.project_id, self.release_policy = project_id, release_policy
        self.goal = long(USUAL, "What will exist at the end that does not exist today?")
        self.plan = long(LONG, "The steps to it, and who does them")
        self.compute = long(BRIEF, "How many hours of which pool, and how you estimated them")
        self.release = long(BRIEF, "Models, data, code, a report: what others can use")
        options = [discord.SelectOption(label=each, default=each == licence) for each in projects.LICENCES]
        self.licence: ui.Select[Any] = ui.Select(placeholder="What others may do with them", options=options)
        super().__init__(
            "The scope of the project",
            {
                "Goal": self.goal,
                "Plan": self.plan,
                "Estimate of compute": self.compute,
                "What will be released": self.release,
                "Licence of the models": self.licence,
            },
        )

    async def send(self, interaction: Interaction) -> str:
        """Write the scope."""
        app = interaction.client
        await app.write(
            lifecycle.scope,
            actor(interaction),
            self.project_id,
            goal=self.goal.value,
            plan=self.plan.value,
            compute=self.compute.value,
            release=self.release.value,
            release_policy=self.release_policy,
            licence=self.licence.values[0],
            min_people=app.settings.min_people,
        )
        project = await app.read(projects.view, self.project_id)
        if project.stage == projects.Stage.ACTIVE:
            channel = "its channel opens in a moment" if project.has_channel else "a moderator opens its channel"
            self.then = [Button("request", project.id, label="Ask for compute", style=discord.ButtonStyle.primary)]
            comes = "**Next** Ask for compute, with this button or `/allocation request`."
            return f"The scope is written, and the project is active: {channel}.\n{comes}"
        comes = next_step.of_project(project, (), (), min_people=app.settings.min_people)
        return f"The scope is written.\n{comes}"


class UpdateForm(Form):
    """An update on how a project goes."""

    def __init__(self, project_id: int) -> None:
        self.project_id = project_id
        self.update = long(LONGEST, "What was done, what was found, what comes next.")
        super().__init__("How the project is going", {"Update": self.update})

    async def send(self, interaction: Interaction) -> str:
        """Post the update."""
        said = self.update.value
        told = await interaction.client.write(updates.post_update, actor(interaction), self.project_id, said)
        return f"Your update is entry {told.number} of the project's record; it is posted in a moment."


class NeedsForm(Form):
    """Which people a project needs."""

    def __init__(self, project_id: int, needs: str) -> None:
        self.project_id = project_id
        self.needs = long(BRIEF, "Empty if nobody else is needed.", default=needs, required=False)
        super().__init__("Who the project is looking for", {"Who is needed": self.needs})

    async def send(self, interaction: Interaction) -> str:
        """Change what the project's card says."""
        await interaction.client.write(updates.change_needs, actor(interaction), self.project_id, self.needs.value)
        return "The project's card says it in a moment."


class HandoverForm(Form):
    """An offer of the lead to the person with the Discord id `to`."""

    def __init__(self, project_id: int, to: str, name: str) -> None:
        self.project_id, self.to, self.name = project_id, to, name
        self.reason = long(USUAL, "Everyone can read it.")
        super().__init__(f"Offer the lead to {name}", {"Reason": self.reason})

    async def send(self, interaction: Interaction) -> str:
        """Offer the lead."""
        await interaction.client.write(
            membership.offer_lead, actor(interaction), self.project_id, to=self.to, reason=self.reason.value
        )
        return (
            f"The lead is offered to {text.line(self.name, 60)}, who accepts or declines it by the buttons of the "
            "post; until then you lead, and its button “Decline” takes the offer back."
        )


class CompleteForm(Form):
    """The outcome of a project."""

    def __init__(self, project_id: int) -> None:
        self.project_id = project_id
        options = [discord.SelectOption(label=outcome.capitalize(), value=outcome) for outcome in Outcome]
        self.outcome: ui.Select[Any] = ui.Select(options=options)
        self.learnt = long(LONG, "A negative result is a result: what would you tell those who try next?")
        super().__init__("Complete the project", {"Outcome": self.outcome, "What was learnt": self.learnt})

    async def send(self, interaction: Interaction) -> str:
        """Complete the project."""
        app = interaction.client
        outcome = next(iter(self.outcome.values), "")
        await app.write(
            lifecycle.complete, actor(interaction), self.project_id, outcome=outcome, learnt=self.learnt.value
        )
        if await app.read(awards.has_granted, self.project_id):
            return f"The project is completed; <#{app.server.announcements}> tells everyone. Thank you!"
        return "The project is completed; its channel or thread says so. Thank you!"
