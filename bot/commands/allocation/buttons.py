"""The buttons of a request's card, for reviewers, and of the post with a reviewer's question, for the requester.

Each opens a form, after the domain has checked that the member may do what the form is for.
"""

from collections.abc import Mapping

from sqlalchemy.orm import Session

from bot import text
from bot.app import Interaction, actor
from bot.buttons import Handler
from bot.commands import ending_text
from bot.commands.allocation.forms import ApproveChangeForm, ApproveForm, RequestForm
from bot.commands.last_question import LastQuestion, Told
from bot.commands.reason_form import AnswerForm, QuestionForm, ReasonForm
from broker.allocations import allocations, pools, requests
from broker.reports import endings, review_context
from broker.reviews import changes, reviews
from projects.errors import NotFoundError
from projects.people import Actor

DECLINED = "Declined; the decision and its reason are posted in the project's channel."


async def request(interaction: Interaction, project_id: int) -> None:
    """Open the form of a request for compute of any pool."""
    app = interaction.client
    await app.read(requests.check_may_request, actor(interaction), project_id)
    most = await app.read(pools.most_by_name)
    if not most:
        raise NotFoundError("There is no pool yet: an admin adds one with /stoa pools.")
    await interaction.response.send_modal(RequestForm(project_id, most))


async def approve(interaction: Interaction, allocation_id: int) -> None:
    """Grant a request, in full unless the reviewer says otherwise."""
    await _approve(interaction, allocation_id, part=False)


async def approve_part(interaction: Interaction, allocation_id: int) -> None:
    """Grant fewer hours than were asked for."""
    await _approve(interaction, allocation_id, part=True)


async def _approve(interaction: Interaction, allocation_id: int, *, part: bool) -> None:
    app = interaction.client
    await app.read(reviews.check_may_approve, actor(interaction), allocation_id)
    request = await app.read(allocations.view, allocation_id)
    await interaction.response.send_modal(ApproveForm(request.id, request.unit, request.seconds, part=part))


async def decline(interaction: Interaction, allocation_id: int) -> None:
    """Refuse a request."""
    await interaction.client.read(reviews.check_may_decide, actor(interaction), allocation_id)
    form = ReasonForm("Decline compute", reviews.decline, allocation_id, DECLINED)
    await interaction.response.send_modal(form)


async def ask(interaction: Interaction, allocation_id: int) -> None:
    """Ask who made a request."""
    await interaction.client.read(reviews.check_may_decide, actor(interaction), allocation_id)
    done = "Asked in the project's channel, with a button for the answer; this card will show it."
    form = QuestionForm("Ask about the request", reviews.ask, allocation_id, done)
    await interaction.response.send_modal(form)


async def answer(interaction: Interaction, allocation_id: int) -> None:
    """Answer a reviewer's question; the form shows the last one."""
    await interaction.client.read(reviews.check_may_answer, actor(interaction), allocation_id)
    remarks = (await interaction.client.read(review_context.of_request, allocation_id)).remarks
    asked = [remark.said for remark in remarks if remark.question]
    done = "Answered; the reviewers see it on the request's card."
    form = AnswerForm("Answer the reviewers", reviews.answer, allocation_id, done)
    form.said.placeholder = text.bounded(asked[-1], 100) if asked else None
    await interaction.response.send_modal(form)


async def _revoke(interaction: Interaction, allocation_id: int) -> None:
    done = "Revoked: its runs write a checkpoint and stop, and what is left returns to the sponsor's grant."
    title = f"Revoke allocation {allocation_id}"
    await interaction.response.send_modal(ReasonForm(title, reviews.revoke, allocation_id, done))


def _told_of(session: Session, who: Actor, allocation_id: int) -> Told:
    ending = endings.of_allocation(session, who, allocation_id)
    return Told(ending_text.of_allocation(allocation_id, ending), ending_text.about(ending))


REVOKE = LastQuestion("revoke", "Revoke allocation {}", _told_of, _revoke)


async def release_half(interaction: Interaction, allocation_id: int) -> None:
    """Grant the second half of an allocation."""
    await interaction.client.read(reviews.check_may_release_half, actor(interaction), allocation_id)
    done = "Released; the project's channel says so."
    form = ReasonForm("Release the second half", reviews.release_half, allocation_id, done)
    await interaction.response.send_modal(form)


async def approve_change(interaction: Interaction, change_id: int) -> None:
    """Grant a change."""
    app = interaction.client
    await app.read(changes.check_may_approve, actor(interaction), change_id)
    change = await app.read(changes.view, change_id)
    unit = (await app.read(allocations.view, change.allocation_id)).unit
    await interaction.response.send_modal(ApproveChangeForm(change.id, unit, change.seconds))


async def decline_change(interaction: Interaction, change_id: int) -> None:
    """Refuse a change."""
    await interaction.client.read(changes.check_may_decide, actor(interaction), change_id)
    form = ReasonForm("Decline the change", changes.decline, change_id, DECLINED)
    await interaction.response.send_modal(form)


HANDLERS: Mapping[str, Handler] = {
    "request": request,
    "approve": approve,
    "approve_part": approve_part,
    "decline": decline,
    "ask": ask,
    "answer": answer,
    "revoke": REVOKE.ask,
    "release_half": release_half,
    "approve_change": approve_change,
    "decline_change": decline_change,
}
