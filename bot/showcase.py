"""The cards of one project, of its requests and of its runs, brought to the present state."""

import time

import structlog
from sqlalchemy.orm import Session

from bot import outbox, review_desk
from bot.app import App
from bot.card import Card
from bot.project_card import project_card
from bot.run_card import run_card
from bot.sender import Sender
from bot.studio import Curve, Studio
from broker import allocations, runs, series
from broker.runs import ACTIVE, RunView
from projects import pipeline
from projects.pipeline import ProjectView
from projects.record import Told

EDIT_SECONDS = 3.0
RUNS_SHOWN = 4
RUNS_KEPT = 25

log = structlog.get_logger()


class Showcase:
    """`behind` says that a card does not show the present state yet, so that it must be refreshed again."""

    def __init__(self, app: App, sender: Sender, studio: Studio, project_id: int) -> None:
        self.app, self.sender, self.studio = app, sender, studio
        self.project_id = project_id
        self._begun = False
        self._cards_stale = True
        self._stale_runs: set[int] = set()
        self._edited: dict[str, float] = {}
        self._drawn: dict[int, float] = {}

    @property
    def behind(self) -> bool:
        """Whether a card waits for its turn."""
        return self._cards_stale or bool(self._stale_runs)

    def note(self, entry: Told) -> None:
        """Remember which cards an entry makes stale."""
        self._cards_stale = True
        run_id = (entry.payload or {}).get("run")
        if run_id is not None:
            self._stale_runs.add(run_id)

    async def refresh(self) -> None:
        """Bring the cards up to date whose turn has come."""
        server = self.app.server
        if not self._begun:  # a crash may have left any card behind its run
            newest = await self.app.read(runs.of_project, self.project_id, limit=RUNS_KEPT)
            self._stale_runs |= {run.parent_id if run.kind == "sample" and run.parent_id else run.id for run in newest}
            self._begun = True
        if self._cards_stale:
            done = True
            project, requests, newest, channel_id = await self.app.read(self._look)
            card = project_card(project, requests, newest, channel_id=channel_id)
            done &= await self._show(f"project:{project.id}", str(server.proposals), card)
            for key, card in (await review_desk.cards(self.app, project.id, requests)).items():
                done &= await self._show(key, str(server.review), card)
            self._cards_stale = not done
        moving = (await self.app.read(runs.in_motion)).get(self.project_id, set())
        for run_id in sorted(self._stale_runs | moving):
            run = await self.app.read(runs.view, run_id)
            if run.kind == "sample" or await self._show_run(run):
                self._stale_runs.discard(run_id)

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
        if not self._may_edit(key):
            return False
        await self.sender.change(row, card, row.picture, None)
        return True

    async def _show_run(self, run: RunView) -> bool:
        """Bring a run's card and picture to the present state; False where it must wait for its turn."""
        key = f"run:{run.id}"
        row = await self.app.read(outbox.message, key)
        if row is None or row.message_id is None or row.gone:
            return True
        if not self._may_look(key):
            return False
        name, picture = await self._picture_due(run, row.picture)
        card = run_card(run, picture=name)
        if row.digest != card.digest:
            self._edited[key] = time.monotonic()
            await self.sender.change(row, card, name, picture)
        if picture is not None:
            self._drawn[run.id] = time.monotonic()
        return run.state not in ACTIVE

    async def _picture_due(self, run: RunView, shown: str) -> tuple[str, bytes | None]:
        """The name of the picture to show, and its bytes where it is a new one."""
        waited = time.monotonic() - self._drawn.get(run.id, float("-inf"))
        if waited < self.app.settings.picture_seconds and run.state in ACTIVE:
            return shown, None
        curve = await self.app.read(_curve, run)
        name = f"run-{run.id}-{curve.digest}.png"
        if len(curve.loss) < 2 or name == shown:
            return shown, None
        try:
            return name, await self.studio.draw(curve)
        except Exception as error:  # what the card says matters more than its picture
            log.error("a picture could not be drawn", run=run.id, exc_info=error)
            return shown, None

    def _may_look(self, key: str) -> bool:
        pause = max(EDIT_SECONDS, self.app.settings.tick_seconds)
        return time.monotonic() - self._edited.get(key, float("-inf")) >= pause

    def _may_edit(self, key: str) -> bool:
        may = self._may_look(key)
        if may:
            self._edited[key] = time.monotonic()
        return may


def _curve(session: Session, run: RunView) -> Curve:
    loss = [(point.tokens, point.value) for point in series.read(session, run.id, "loss")]
    held_out = [(point.tokens, point.value) for point in series.read(session, run.id, "held_out")]
    per_step = run.tokens / run.step if run.step else 0.0
    return Curve(
        title=f"Run {run.id} · {run.recipe}",
        loss=loss,
        held_out=held_out,
        checkpoints=[round(link.step * per_step) for link in run.checkpoints],
        unigram_entropy=run.unigram_entropy,
    )
