"""A feed takes one stream of the record to Discord: its entries as posts in order, then its cards as things stand."""

import time
from collections.abc import Sequence

import structlog
from sqlalchemy.orm import Session

from bot import cards, outbox, posts
from bot.app import App
from bot.cards import Card
from bot.posts import Place, Scene
from bot.rooms import Rooms
from bot.sender import Sender
from bot.studio import Curve, Studio
from broker import allocations, runs, series
from broker.runs import ACTIVE, RunView
from projects import pipeline, record, redaction
from projects.pipeline import ProjectView
from projects.record import Told

EDIT_SECONDS = 3.0
RUNS_SHOWN = 4
RUNS_KEPT = 25

log = structlog.get_logger()


async def blank_posts(app: App, sender: Sender, entry: Told) -> None:
    """Where an entry tells of a redaction, turn the posts of what was blanked into tombstones."""
    if entry.kind not in redaction.KINDS:
        return
    numbers = (entry.payload or {}).get("numbers", ())
    for blanked, rows in await app.read(outbox.posts_of, entry.stream, numbers):
        for row in rows:
            await sender.rewrite(row, f"{posts.BLANKED}\n{posts.marker(blanked)}")


class LabFeed:
    """The lab's own stream, in the channel of the public record."""

    behind = False

    def __init__(self, app: App, sender: Sender) -> None:
        self.app, self.sender = app, sender

    async def catch_up(self) -> None:
        """Post what is new."""
        channel_id = str(self.app.settings.record_channel_id)
        while entries := await self.app.read(outbox.untold, record.LAB):
            for entry in entries:
                await blank_posts(self.app, self.sender, entry)
                said = posts.render(entry, Place.RECORD)
                await self.sender.post(f"entry:{entry.id}:{Place.RECORD}", channel_id, said)
                await self.app.write(outbox.told, entry)


class ProjectFeed:
    """The stream of a project, and the cards of the project, of its requests and of its runs.

    `behind` says that a card does not show the present state yet, so that the feed must come again.
    """

    def __init__(self, app: App, sender: Sender, studio: Studio, project_id: int) -> None:
        self.app, self.sender, self.studio = app, sender, studio
        self.project_id = project_id
        self.rooms = Rooms(app, project_id)
        self._cards_stale = True
        self._stale_runs: set[int] = set()
        self._begun = False
        self._edited: dict[str, float] = {}
        self._drawn: dict[int, float] = {}

    @property
    def behind(self) -> bool:
        """Whether a card waits for its turn."""
        return self._cards_stale or bool(self._stale_runs)

    async def catch_up(self) -> None:
        """Post what is new, then bring the cards up to date."""
        stream = record.project_stream(self.project_id)
        if not self._begun:  # a crash may have left any card behind its run
            newest = await self.app.read(runs.of_project, self.project_id, limit=RUNS_KEPT)
            self._stale_runs |= {run.parent_id if run.kind == "sample" and run.parent_id else run.id for run in newest}
            self._begun = True
        while entries := await self.app.read(outbox.untold, stream):
            for entry in entries:
                await blank_posts(self.app, self.sender, entry)
                await self._tell(entry)
                await self.app.write(outbox.told, entry)
                self._note_stale(entry)
        await self._refresh()

    def _note_stale(self, entry: Told) -> None:
        self._cards_stale = True
        run_id = (entry.payload or {}).get("run")
        if run_id is not None:
            self._stale_runs.add(run_id)

    async def _tell(self, entry: Told) -> None:
        channel_id, closed = await self.rooms.find(f"project:{self.project_id}")
        project = await self.app.read(pipeline.view, self.project_id)
        if entry.kind in posts.OPENINGS and project.has_channel:
            channel_id = await self.rooms.channel(project)
        ran: Sequence[RunView] = ()
        if entry.kind == "project.completed":
            ran = await self.app.read(runs.of_project, self.project_id, kind="train")
        scene = Scene(project, channel_id, ran)
        for place in posts.places(entry, has_channel=channel_id is not None or closed):
            room = await self._room(place, entry, scene)
            if room is None:
                continue
            said = posts.render(entry, place, scene)
            sent = await self.sender.post(f"entry:{entry.id}:{place}", room, said)
            if sent is None and place is Place.CHANNEL:
                await self.rooms.gone(f"project:{self.project_id}")

    async def _room(self, place: Place, entry: Told, scene: Scene) -> str | None:
        """The id of the channel or thread that a place is; None where a person has deleted it."""
        settings = self.app.settings
        if place is Place.ANNOUNCEMENTS:
            return str(settings.announcements_channel_id)
        if place is Place.CHANNEL:
            return scene.channel_id
        if place is Place.RUN:
            run_id = (entry.payload or {})["run"]
            thread_id, gone = await self.rooms.find(f"run:{run_id}")
            if thread_id is not None or gone or scene.channel_id is None:
                return thread_id
            card = cards.run_card(await self.app.read(runs.view, run_id))
            message_id = await self.sender.place(f"run:{run_id}", scene.channel_id, card)
            if message_id is None:
                await self.rooms.gone(f"run:{run_id}")
                return None
            return await self.rooms.thread(f"run:{run_id}", scene.channel_id, message_id, f"Run {run_id}")
        return await self._proposal_thread(scene.project)

    async def _proposal_thread(self, project: ProjectView) -> str | None:
        key, proposals = f"proposal:{project.id}", str(self.app.settings.proposals_channel_id)
        thread_id, gone = await self.rooms.find(key)
        if thread_id is not None or gone:
            return thread_id
        card = cards.project_card(project, (), (), channel_id=None)
        message_id = await self.sender.place(f"project:{project.id}", proposals, card)
        if message_id is None:
            await self.rooms.gone(key)
            return None
        return await self.rooms.thread(key, proposals, message_id, f"P{project.id} · {project.title}")

    async def _refresh(self) -> None:
        settings = self.app.settings
        if self._cards_stale:
            done = True
            project, requests, newest, channel_id = await self.app.read(self._look)
            card = cards.project_card(project, requests, newest, channel_id=channel_id)
            done &= await self._show(f"project:{project.id}", str(settings.proposals_channel_id), card)
            for request in requests:
                card = cards.review_card(request)
                done &= await self._show(f"allocation:{request.id}", str(settings.review_channel_id), card)
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
        card = cards.run_card(run, picture=name)
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
