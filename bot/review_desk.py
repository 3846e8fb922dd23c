"""What stands in the reviewers' channel: a card for each request of a project, and for each change of one."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy.orm import Session

from bot.app import App
from bot.card import Card
from bot.review_card import change_card, review_card
from broker import allocations, changes, dossier
from broker.allocations import AllocationState, AllocationView
from broker.changes import ChangeState, ChangeView
from broker.dossier import Dossier


@dataclass(frozen=True)
class _Desk:
    """A project's requests and changes; only what is open has a dossier, since that moves with every run."""

    requests: Mapping[int, tuple[AllocationView, Dossier | None]]
    changes: Mapping[int, tuple[ChangeView, Dossier | None]]


async def cards(app: App, project_id: int) -> Mapping[str, Card]:
    """The cards as they should be now, by the keys of their messages."""
    desk = await app.read(_look, project_id)
    shown = {f"allocation:{number}": review_card(*request) for number, request in desk.requests.items()}
    for number, (change, known) in desk.changes.items():
        request, _ = desk.requests[change.allocation_id]
        shown[f"change:{number}"] = change_card(change, request, known)
    return shown


def _look(session: Session, project_id: int) -> _Desk:
    requests = allocations.of_project(session, project_id)
    asked = changes.of_project(session, project_id)
    return _Desk(
        {
            view.id: (view, dossier.of_request(session, view.id) if view.state == AllocationState.REQUESTED else None)
            for view in requests
        },
        {
            view.id: (view, dossier.of_change(session, view.id) if view.state == ChangeState.REQUESTED else None)
            for view in asked
        },
    )
