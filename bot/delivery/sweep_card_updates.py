"""Keeps the cards of one project's sweeps up to date."""

from sqlalchemy.orm import Session
from sqlmodel import col, select

from bot.cards.card import Card
from bot.cards.sweep_card import moved_sweep_card, sweep_card
from bot.delivery.live_card_updates import LiveCardUpdater
from broker.plots.curve import Comparison
from broker.plots.curves_of_sweep import curves_of
from broker.runs import sweeps
from broker.runs.runs import ACTIVE, Sweep
from broker.runs.sweeps import SweepView
from projects.record import record, redaction

SWEEPS_KEPT = 10
"""Sweeps whose cards are checked after a start."""
MUCH = 0.01
"""The share of all steps by which a sweep must advance between two edits for much to have changed."""


class SweepCardUpdater(LiveCardUpdater[SweepView]):
    """Updates the cards of one project's sweeps."""

    subject = "sweep"

    async def newest(self) -> list[int]:
        """The newest sweeps; all of a project in which a text was blanked."""
        return await self.app.read(_newest, self.project_id)

    async def in_motion(self) -> set[int]:
        """The sweeps with an active run."""
        return await self.app.read(sweeps.in_motion, self.project_id)

    async def view(self, number: int) -> SweepView | None:
        """The sweep."""
        return await self.app.read(sweeps.view, number)

    def is_active(self, view: SweepView) -> bool:
        """Whether one of its runs is active."""
        return any(run.state in ACTIVE for run in view.runs)

    def has_changed(self, view: SweepView, shown: SweepView) -> bool:
        """Whether one of its runs is in another state or attempt."""
        return [(run.state, run.attempt) for run in view.runs] != [(run.state, run.attempt) for run in shown.runs]

    def has_advanced(self, view: SweepView, shown: SweepView) -> bool:
        """Whether its runs have done many steps together."""
        done = sum(run.step for run in view.runs) - sum(run.step for run in shown.runs)
        return done >= MUCH * sum(run.total_steps for run in view.runs)

    async def card(
        self, view: SweepView, *, picture: str, thread_id: str, number: int, drawn: SweepView | None
    ) -> Card:
        """The card of the sweep."""
        return sweep_card(view, picture=picture, thread_id=thread_id, number=number, drawn=drawn)

    def moved_card(self, view: SweepView, url: str, number: int) -> Card:
        """The card that links to its successor."""
        return moved_sweep_card(view, url, number)

    async def picture_of(self, view: SweepView) -> Comparison | None:
        """The losses of its runs."""
        return await self.app.read(curves_of, view)


def _newest(session: Session, project_id: int) -> list[int]:
    query = select(Sweep.id).where(Sweep.project_id == project_id).order_by(col(Sweep.id).desc())
    if not redaction.happened(session, record.project_stream(project_id)):
        query = query.limit(SWEEPS_KEPT)
    return list(session.scalars(query))
