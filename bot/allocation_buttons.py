"""The buttons of a request's card, for reviewers."""

from collections.abc import Mapping

from bot.allocation_forms import ApproveForm, DeclineForm
from bot.app import Interaction, actor
from bot.buttons import Press
from broker import allocations, reviews


async def approve(interaction: Interaction, allocation_id: int) -> None:
    """Open the form by which a reviewer grants a request."""
    await _check_may_decide(interaction, allocation_id)
    request = await interaction.client.read(allocations.view, allocation_id)
    await interaction.response.send_modal(ApproveForm(request.id, request.seconds))


async def decline(interaction: Interaction, allocation_id: int) -> None:
    """Open the form by which a reviewer refuses a request."""
    await _check_may_decide(interaction, allocation_id)
    await interaction.response.send_modal(DeclineForm(allocation_id))


async def _check_may_decide(interaction: Interaction, allocation_id: int) -> None:
    """Raise the domain's refusal before a form is opened that could not be sent."""
    app = interaction.client
    role = app.server.reviewer_role
    await app.read(reviews.check_may_decide, actor(interaction), allocation_id, reviewer_role_id=role)


PRESSES: Mapping[str, Press] = {"approve": approve, "decline": decline}
