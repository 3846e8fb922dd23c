"""A feed takes one stream of the record to Discord: its entries as posts in order, then its cards as they stand."""

from collections.abc import Sequence

from bot.app import App
from bot.cards.project_card import project_card
from bot.cards.run_card import run_card
from bot.delivery import outbox, post_buttons, posts
from bot.delivery.card_updates import CardUpdater
from bot.delivery.channels import Rooms, thread_name
from bot.delivery.posts import Place, Scene
from bot.delivery.sender import Sender
from bot.delivery.tombstones import Tombstones
from bot.plots.renderer import Renderer
from broker.reviews import inventory
from broker.runs import runs
from broker.runs.runs import RunKind, RunView
from projects import projects
from projects.projects import ProjectView
from projects.record import record, redaction
from projects.record.record import Told

MOST_RUNS = 1000


class LabFeed:
    """The lab's own stream, in the channel of the public record."""

    def __init__(self, app: App, sender: Sender) -> None:
        self.app, self.sender = app, sender
        self.tombstones = Tombstones(app, sender, record.LAB)

    @property
    def behind(self) -> bool:
        """Whether a post may still show what was blanked."""
        return self.tombstones.behind

    @property
    def due(self) -> bool:
        """Whether such a post may be looked at again."""
        return self.tombstones.due

    async def catch_up(self) -> None:
        """Post what is new."""
        server = self.app.server
        rooms = {Place.RECORD: str(server.record), Place.REVIEW: str(server.review)}
        while entries := await self.app.read(outbox.untold, record.LAB):
            for entry in entries:
                for place in posts.places(entry, has_channel=True):
                    said = posts.render(entry, place)
                    await self.sender.post(f"entry:{entry.id}:{place}", rooms[place], said)
                await self.app.write(outbox.told, entry)
                self.tombstones.note(entry)
        await self.tombstones.refresh()


class ProjectFeed:
    """The stream of a project, and the cards of the project, of its requests and of its runs.

    `behind` says that a card does not show the present state yet, or a post what was blanked; `due` that the feed must
    come again for one.
    """

    def __init__(self, app: App, sender: Sender, renderer: Renderer, project_id: int) -> None:
        self.app, self.sender = app, sender
        self.project_id = project_id
        self.rooms = Rooms(app, project_id)
        self.tombstones = Tombstones(app, sender, record.project_stream(project_id))
        self.cards = CardUpdater(app, sender, renderer, project_id)

    @property
    def behind(self) -> bool:
        """Whether a card waits for its turn, or a post may still show what was blanked."""
        return self.cards.behind or self.tombstones.behind

    @property
    def due(self) -> bool:
        """Whether the turn of such a card has come, or such a post may be looked at again."""
        return self.cards.due or self.tombstones.due

    async def catch_up(self) -> None:
        """Post what is new, then bring the cards up to date."""
        stream = record.project_stream(self.project_id)
        while entries := await self.app.read(outbox.untold, stream):
            for entry in entries:
                await self._tell(entry)
                await self.app.write(outbox.told, entry)
                self.tombstones.note(entry)
                self.cards.note(entry)
        await self.tombstones.refresh()
        await self.cards.refresh()

    async def _tell(self, entry: Told) -> None:
        channel_id, closed = await self.rooms.find(f"project:{self.project_id}")
        project = await self.app.read(projects.view, self.project_id)
        if entry.kind in redaction.KINDS:
            await self.rooms.relabel(project)
        if entry.kind in posts.OPENINGS and project.has_channel:
            channel_id = await self.rooms.channel(project)
        ran: Sequence[RunView] = ()
        sponsors: Sequence[str] = ()
        if entry.kind == "project.completed":
            ran = await self.app.read(runs.of_project, self.project_id, kind=RunKind.TRAIN, limit=MOST_RUNS)
            sponsors = await self.app.read(inventory.sponsors, self.project_id)
        scene = Scene(project, channel_id, ran, sponsors)
        for place in posts.places(entry, has_channel=channel_id is not None or closed):
            room = await self._room(place, entry, scene)
            if room is None:
                continue
            said = posts.render(entry, place, scene)
            sent = await self.sender.post(f"entry:{entry.id}:{place}", room, said, post_buttons.of(entry))
            if sent is None and place is Place.CHANNEL:
                await self.rooms.gone(f"project:{self.project_id}")

    async def _room(self, place: Place, entry: Told, scene: Scene) -> str | None:
        """The id of the channel or thread that a place is; None where a person has deleted it."""
        server = self.app.server
        if place is Place.ANNOUNCEMENTS:
            return str(server.announcements)
        if place is Place.CHANNEL:
            return scene.channel_id
        run_id = (entry.payload or {}).get("run")
        if place is Place.RUN and run_id is not None:
            return await self._run_thread(run_id, scene)
        thread_id = await self._proposal_thread(scene.project)
        if run_id is not None and thread_id is not None:
            await self.sender.place(f"run:{run_id}", thread_id, run_card(await self.app.read(runs.view, run_id)))
        return thread_id

    async def _run_thread(self, run_id: int, scene: Scene) -> str | None:
        """The thread under the run's card; of a run from before the project had its channel, the proposal's."""
        key = f"run:{run_id}"
        thread_id, gone = await self.rooms.find(key)
        if thread_id is not None or gone or scene.channel_id is None:
            return thread_id
        message_id = await self.sender.place(key, scene.channel_id, run_card(await self.app.read(runs.view, run_id)))
        if message_id is None:
            await self.rooms.gone(key)
            return None
        row = await self.app.read(outbox.message, key)
        if row is not None and row.channel_id != scene.channel_id:  # no thread hangs in a thread
            return await self._proposal_thread(scene.project)
        return await self.rooms.thread(key, scene.channel_id, message_id, f"Run {run_id}")

    async def _proposal_thread(self, project: ProjectView) -> str | None:
        await self.cards.follow(project.id)
        key, proposals = f"{outbox.PROPOSAL}{project.id}", str(self.app.server.proposals)
        thread_id, gone = await self.rooms.find(key)
        if thread_id is not None or gone:
            return thread_id
        card = project_card(project, (), (), channel_id=None)
        message_id = await self.sender.place(f"project:{project.id}", proposals, card)
        if message_id is None:
            await self.rooms.gone(key)
            return None
        return await self.rooms.thread(key, proposals, message_id, thread_name(project))
