"""The buttons of a project's card, and of the post that offers its lead."""

from collections.abc import Awaitable, Callable, Mapping

from bot import errors, text
from bot.app import Interaction, actor
from bot.buttons import Press
from projects import lifecycle, membership, projects

Answering = Callable[[Interaction, int], Awaitable[str]]


async def joined(interaction: Interaction, project_id: int) -> str:
    """Make who asks a contributor; what to say."""
    app = interaction.client
    await app.write(lifecycle.join, actor(interaction), project_id, min_people=app.settings.min_people)
    project = await app.read(projects.view, project_id)
    return f"Welcome! You are in **{text.line(project.title, 160)}**."


async def followed(interaction: Interaction, project_id: int) -> str:
    """Make who asks a follower; what to say."""
    await interaction.client.write(membership.follow, actor(interaction), project_id)
    project = await interaction.client.read(projects.view, project_id)
    return f"You follow **{text.line(project.title, 160)}** now; /project leave ends that, /project join does more."


async def accepted(interaction: Interaction, project_id: int) -> str:
    """Make who asks the lead, to whom it is offered; what to say."""
    await interaction.client.write(membership.accept_lead, actor(interaction), project_id)
    project = await interaction.client.read(projects.view, project_id)
    return f"You lead **{text.line(project.title, 160)}** from now on. Thank you!"


async def declined(interaction: Interaction, project_id: int) -> str:
    """End the offer of the lead; what to say."""
    await interaction.client.write(membership.decline_lead, actor(interaction), project_id)
    return "The offer is ended; the lead stays where it is."


def press(act: Answering) -> Press:
    """A button that acknowledges, acts and says so."""

    async def pressed(interaction: Interaction, number: int) -> None:
        await interaction.response.defer(ephemeral=True, thinking=True)
        await errors.reply(interaction, await act(interaction, number))

    return pressed


PRESSES: Mapping[str, Press] = {
    "join": press(joined),
    "follow": press(followed),
    "accept_lead": press(accepted),
    "decline_lead": press(declined),
}
