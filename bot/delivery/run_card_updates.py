"""Keeps the cards of one project's runs up to date, but for those of sweeps, which share the card of their sweep."""

import time

from sqlalchemy.orm import Session
from sqlmodel import col, select

from bot.app import App
from bot.cards.card import Card
from bot.cards.run_card import moved_card, run_card
from bot.delivery.live_card_updates import LiveCardUpdater
from bot.delivery.sender import Sender
from bot.renderer import Renderer
from broker.plots.curve import Curve
from broker.plots.curve_of_run import curve_of
from broker.reports import why
from broker.reports.why import Why
from broker.runs import runs
from broker.runs.kinds.kind import kind_of, named
from broker.runs.runs import ACTIVE, Run, RunKind, RunState, RunView
from projects.record import record, redaction

RUNS_KEPT = 25
"""Runs whose cards are checked after a start."""
WHY_SECONDS = 60.0
"""Seconds for which the reason that a run waits is shown before it is asked for again."""
MUCH = 0.01
"""The share of its steps by which a run must advance between two edits for much to have changed."""


class RunCardUpdater(LiveCardUpdater[RunView]):
    """Updates the cards of one project's runs."""

    subject = "run"

    def __init__(self, app: App, sender: Sender, renderer: Renderer, project_id: int) -> None:
        super().__init__(app, sender, renderer, project_id)
        self._reasons: dict[int, tuple[float, Why]] = {}

    async def newest(self) -> list[int]:
        """The runs whose cards may be out of date; all runs of a project in which a text was blanked."""
        return await self.app.read(_newest, self.project_id)

    async def in_motion(self) -> set[int]:
        """The active runs with cards of their own."""
        return await self.app.read(_active, self.project_id)

    async def view(self, number: int) -> RunView | None:
        """The run; None where it has no card of its own."""
        run = await self.app.read(runs.view, number)
        return run if named(run.kind).has_card and run.sweep_id is None else None

    def is_active(self, view: RunView) -> bool:
        """Whether the run is queued, starting, running or stopping."""
        return view.state in ACTIVE

    def has_changed(self, view: RunView, shown: RunView) -> bool:
        """Whether the run is in another state or attempt, is called otherwise, or has another checkpoint or result."""
        return _told(shown) != _told(view)

    def has_advanced(self, view: RunView, shown: RunView) -> bool:
        """Whether the run has done many steps."""
        return view.step - shown.step >= MUCH * view.total_steps

    async def card(self, view: RunView, *, picture: str, thread_id: str, number: int, drawn: RunView | None) -> Card:
        """The card of the run."""
        waits = await self._why(view)
        return run_card(view, picture=picture, why=waits, thread_id=thread_id, number=number, drawn=drawn)

    def moved_card(self, view: RunView, url: str, number: int) -> Card:
        """The card that links to its successor."""
        return moved_card(view, url, number)

    async def picture_of(self, view: RunView) -> Curve | None:
        """The run's curve, once it has two points."""
        curve = await self.app.read(curve_of, view)
        return curve if len(curve.loss) > 1 else None

    async def _why(self, run: RunView) -> Why | None:
        """What a queued run waits for; kept for `WHY_SECONDS`, as a plan of the whole queue is made to answer it."""
        if run.state != RunState.QUEUED:
            self._reasons.pop(run.id, None)
            return None
        asked, known = self._reasons.get(run.id, (float("-inf"), None))
        if known is None or time.monotonic() - asked >= WHY_SECONDS:
            known = await self.app.read(why.why, run.id)
            self._reasons[run.id] = (time.monotonic(), known)
        return known


def _told(run: RunView) -> tuple[object, ...]:
    """What of a run is shown soon once it changes."""
    return run.state, run.attempt, run.checkpoints, run.name, run.tags, run.evaluations


def _active(session: Session, project_id: int) -> set[int]:
    shown = [kind for kind in RunKind if named(kind).has_card]
    moving = select(Run.id).where(Run.project_id == project_id, col(Run.state).in_(ACTIVE), col(Run.kind).in_(shown))
    return set(session.scalars(moving.where(col(Run.sweep_id).is_(None))))


def _newest(session: Session, project_id: int) -> list[int]:
    """The runs whose cards may be out of date, the newest first; all runs of a project in which a text was blanked."""
    query = select(Run).where(Run.project_id == project_id).order_by(col(Run.id).desc())
    if not redaction.happened(session, record.project_stream(project_id)):
        query = query.limit(RUNS_KEPT)
    found = session.scalars(query)
    return list(dict.fromkeys(run.id if kind_of(run).has_card else run.parent_id or run.id for run in found))
