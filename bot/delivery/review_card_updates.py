"""The cards in the reviewers' channel: one for each request of a project, and one for each change of an allocation."""

from collections.abc import Mapping, Sequence

from sqlalchemy.orm import Session

from bot.app import App
from bot.cards.card import Card
from bot.cards.review_card import change_card, review_card
from bot.mention import Mention
from broker.allocations.allocations import AllocationState, AllocationView
from broker.allocations.change_requests import ChangeState
from broker.reports import review_context
from broker.reports.review_context import ReviewContext
from broker.reviews import changes
from broker.reviews.changes import ChangeView

# By the number of the request or change. Only open ones have a context: it changes with every run, and the card of a
# decided one need not be edited for that.
Contexts = Mapping[int, ReviewContext]


async def cards(app: App, project_id: int, requests: Sequence[AllocationView]) -> Mapping[str, tuple[Card, bool]]:
    """The cards as they should be now, by the keys of their messages, and whether each waits for a decision."""
    asked, of_requests, of_changes = await app.read(_look, project_id, requests)
    about = {request.id: request for request in requests}
    reviewers = Mention.role(app.server.reviewer_role)
    shown = {
        f"allocation:{number}": (review_card(view, of_requests.get(number), reviewers), number in of_requests)
        for number, view in about.items()
    }
    for change in asked:
        if change.allocation_id in about:
            card = change_card(change, about[change.allocation_id], of_changes.get(change.id), reviewers)
            shown[f"change:{change.id}"] = (card, change.id in of_changes)
    return shown


def _look(
    session: Session, project_id: int, requests: Sequence[AllocationView]
) -> tuple[Sequence[ChangeView], Contexts, Contexts]:
    asked = changes.of_project(session, project_id)
    open_requests = [view.id for view in requests if view.state == AllocationState.REQUESTED]
    open_changes = [view.id for view in asked if view.state == ChangeState.REQUESTED]
    return (
        asked,
        review_context.of_requests(session, open_requests),
        review_context.of_changes(session, open_changes),
    )
