"""The buttons of a project's card."""

from collections.abc import Mapping

from bot import errors, text
from bot.app import Interaction, actor
from bot.buttons import Press
from projects import pipeline


async def join(interaction: Interaction, project_id: int) -> None:
    """Make who presses it a member of the project."""
    app = interaction.client
    await interaction.response.defer(ephemeral=True, thinking=True)
    await app.write(pipeline.join, actor(interaction), project_id, min_people=app.settings.min_people)
    project = await app.read(pipeline.view, project_id)
    await errors.reply(interaction, f"Welcome! You are in **{text.line(project.title, 160)}**.")


PRESSES: Mapping[str, Press] = {"join": join}
