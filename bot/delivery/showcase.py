"""The cards of one project and of its requests, brought to the present state; those of its runs are apart."""

from sqlalchemy.orm import Session

from bot.app import App
from bot.cards.card import Card
from bot.cards.project_card import project_card
from bot.cards.studio import Studio
from bot.delivery import cadence, outbox, review_desk
from bot.delivery.cadence import OldMessageError
from bot.delivery.run_showcase import RunShowcase
from bot.delivery.sender import Sender
from broker import allocations, runs
from broker.runs import RunView
from projects import pipeline, redaction
from projects.pipeline import ProjectView
from projects.record import Told

RUNS_SHOWN = 4


class Showcase:
    """`behind` says that a card does not show the present state yet, so that it must be refreshed again."""

    def __init__(self, app: App, sender: Sender, studio: Studio, project_id: int) -> None:
        self.app, self.sender = app, sender
        self.project_id = project_id
        self._cards_stale = True
        self._runs = RunShowcase(app, sender, studio, project_id)

    @property
    def behind(self) -> bool:
        """Whether a card waits for its turn."""
        return self._cards_stale or self._runs.behind

    def note(self, entry: Told) -> None:
        """Remember which cards an entry makes stale."""
        self._cards_stale = True
        if entry.kind in redaction.KINDS:
            self._runs.note_all()
        run_id = (entry.payload or {}).get("run")
        if run_id is not None:
            self._runs.note(run_id)

    async def refresh(self) -> None:
        """Bring the cards up to date whose turn has come."""
        server = self.app.server
        if self._cards_stale:
            done = True
            project, requests, newest, channel_id = await self.app.read(self._look)
            card = project_card(project, requests, newest, channel_id=channel_id)
            done &= await self._show(f"project:{project.id}", str(server.proposals), card)
            for key, card in (await review_desk.cards(self.app, project.id, requests)).items():
                done &= await self._show(key, str(server.review), card)
            self._cards_stale = not done
        await self._runs.refresh()

    def _look(
        self, session: Session
    ) -> tuple[ProjectView, list[allocations.AllocationView], list[RunView], str | None]:
        room = outbox.rooms(session, self.project_id).get(f"project:{self.project_id}")
        return (
            pipeline.view(session, self.project_id),
            list(allocations.of_project(session, self.project_id)),
            list(runs.of_project(session, self.project_id, kind="train", limit=RUNS_SHOWN)),
            None if room is None or room.gone else room.channel_id,
        )

    async def _show(self, key: str, channel_id: str, card: Card) -> bool:
        """Bring a card to the present state; False where it must wait for its turn."""
        row = await self.app.read(outbox.message, key)
        if row is not None and (row.gone or row.digest == card.digest):
            return True
        if row is None or row.message_id is None:
            await self.sender.place(key, channel_id, card)
            return True
        age, pace = cadence.age(row.message_id), self.sender.cadence
        if not pace.turn(key, row.channel_id, age=age):
            return False
        pace.edited(key, row.channel_id, age=age)
        try:
            await self.sender.change(row, card, row.picture, None)
        except OldMessageError as error:
            pace.refused(row.channel_id, error.retry_after)
            return False
        return True
