"""Feeds: each takes one stream of the record to Discord, its entries as posts in order, then its cards."""

from collections.abc import Sequence

from bot.app import App
from bot.cards.card import Card
from bot.cards.project_card import project_card
from bot.cards.run_card import run_card
from bot.cards.sweep_card import sweep_card
from bot.delivery import follower_roles, gatherings, mentions, outbox, post_buttons, posts
from bot.delivery.card_updates import CardUpdater
from bot.delivery.channels import ProjectChannels, thread_name
from bot.delivery.checkpoint_indexes import PUBLISHED, CheckpointIndexes
from bot.delivery.done_buttons import DoneButtons
from bot.delivery.entry_text import Payload
from bot.delivery.posts import Destination, PostContext
from bot.delivery.sender import Sender
from bot.delivery.tombstones import Tombstones
from bot.delivery.welcomes import Welcomes
from bot.renderer import Renderer
from broker.allocations import awards
from broker.plots import panels_of
from broker.reviews import inventory
from broker.runs import programs, runs, sweeps
from broker.runs.runs import RunKind, RunView
from projects import projects
from projects.projects import ProjectView
from projects.record import record
from projects.record.record import EntryView

MOST_RUNS = 1000
ENDS_PROJECT = frozenset({"project.completed", "project.stopped"})
MOST_POSTS = 8
"""The most posts of a feed in one turn; then the other feeds that wait have theirs."""


class LabFeed:
    """The feed of the lab's own stream, posted in the channel of the public record, with the welcomes for newcomers."""

    def __init__(self, app: App, sender: Sender) -> None:
        self.app, self.sender = app, sender
        self.tombstones = Tombstones(app, sender, record.LAB)
        self.welcomes = Welcomes(app, sender)

    @property
    def behind(self) -> bool:
        """Whether a post may still show an entry that was blanked."""
        return self.tombstones.behind

    @property
    def due(self) -> bool:
        """Whether such a post may be edited now, or a welcome has to be."""
        return self.tombstones.due or self.welcomes.due

    async def catch_up(self) -> bool:
        """Post some of the new entries, then blank a post; returns whether more entries wait."""
        server = self.app.server
        channels = {Destination.RECORD: str(server.record), Destination.REVIEW: str(server.review)}
        entries = await self.app.read(outbox.unposted, record.LAB, MOST_POSTS + 1)
        for entry in entries[:MOST_POSTS]:
            mention = await mentions.of(self.app, [entry])
            for destination in posts.destinations(entry, has_channel=True):
                said = posts.render(entry, destination, mention=mention)
                key = f"entry:{entry.id}:{destination}"
                await self.sender.post(key, channels[destination], said, mention=mention)
                mention = None
            await self.app.write(outbox.posted, entry)
            self.tombstones.note(entry)
        await self.tombstones.refresh()
        await self.welcomes.refresh()
        return len(entries) > MOST_POSTS


class ProjectFeed:
    """The feed of a project's stream, with the cards of the project, of its requests and of its runs."""

    def __init__(self, app: App, sender: Sender, renderer: Renderer, project_id: int) -> None:
        self.app, self.sender, self.renderer = app, sender, renderer
        self.project_id = project_id
        self.channels = ProjectChannels(app, project_id)
        self.tombstones = Tombstones(app, sender, record.project_stream(project_id))
        self.cards = CardUpdater(app, sender, renderer, project_id)
        self.indexes = CheckpointIndexes(app, sender, project_id)
        self.done_buttons = DoneButtons(app, sender, project_id)

    @property
    def behind(self) -> bool:
        """Whether a card or index does not show the present state yet, or a post may still show a blanked entry."""
        return self.cards.behind or self.tombstones.behind or self.indexes.behind

    @property
    def due(self) -> bool:
        """Whether the feed should run now, as such a card or post may be edited."""
        return self.cards.due or self.tombstones.due or self.indexes.due or self.done_buttons.due

    async def catch_up(self) -> bool:
        """Post some of the new entries, then blank a post and bring the cards up to date.

        Returns whether more entries wait.
        """
        stream = record.project_stream(self.project_id)
        entries = await self.app.read(outbox.unposted, stream)
        for _ in range(MOST_POSTS):
            if not entries:
                break
            told = await self.app.read(gatherings.next_post, entries)
            await self._post(told)
            await self.app.write(outbox.posted, told[-1])
            for entry in told:
                self.tombstones.note(entry)
                self.cards.note(entry)
                self.done_buttons.note(entry)
            entries = entries[len(told) :] or await self.app.read(outbox.unposted, stream)
        await self.tombstones.refresh()
        await self.indexes.refresh()
        await self.cards.refresh()
        await self.done_buttons.refresh()
        return bool(entries)

    async def _post(self, entries: Sequence[EntryView]) -> None:
        """Post an entry, or several that share a post, wherever it belongs."""
        entry = entries[0]
        channel_id, closed = await self.channels.find(f"project:{self.project_id}")
        project = await self.app.read(projects.view, self.project_id)
        if entry.kind in record.TOMBSTONES:
            await self.channels.relabel(project)
        if entry.kind in posts.OPENS_CHANNEL and project.has_channel:
            channel_id = await self.channels.channel(project)
        ran: Sequence[RunView] = ()
        sponsors: Sequence[str] = ()
        announces = False
        if entry.kind == "project.completed":
            ran = await self.app.read(runs.of_project, self.project_id, kind=RunKind.TRAIN, limit=MOST_RUNS)
            sponsors = await self.app.read(inventory.sponsors, self.project_id)
            announces = await self.app.read(awards.has_granted, self.project_id)
        context = PostContext(project, channel_id, ran, sponsors)
        has_channel = channel_id is not None or closed
        person = await mentions.of(self.app, entries)
        followers = await mentions.of_followers(self.app, entries)
        where = posts.destinations(entry, has_channel=has_channel, announces=announces)
        theirs = where[-1] if person is None or len(where) > 1 else None
        for destination in where:
            target = await self._channel(destination, entry, context)
            if target is None:
                continue
            about = _live(entry.payload or {})
            if entry.kind == PUBLISHED and destination is Destination.RUN and about is not None:
                await self.indexes.tell(entry, *about, target)
                continue
            mention = (followers if destination is theirs else None) or person
            if len(entries) > 1:
                key, said = gatherings.key(entries, destination), gatherings.render(entries, mention)
            else:
                key, said = f"entry:{entry.id}:{destination}", posts.render(entry, destination, context, mention)
            pictures = await self._pictures(entry) if len(entries) == 1 else []
            sent = await self.sender.post(key, target, said, post_buttons.of(entries), mention, pictures=pictures)
            if sent is not None and mention is person:
                person = None  # the next posts of the entry do not mention them again
            if sent is None and destination is Destination.CHANNEL:
                await self.channels.deleted(f"project:{self.project_id}")
        if entry.kind in ENDS_PROJECT:
            await self.app.write(follower_roles.let_end, self.project_id)

    async def _pictures(self, entry: EntryView) -> Sequence[bytes]:
        """The figure of a study, or the pictures that a program has left, which an entry says has finished."""
        told = entry.payload or {}
        if entry.kind != "run.finished":
            return []
        if "study" in told and told.get("results"):
            panels = (await self.app.read(panels_of.measured, told["study"])).panels
            return [] if panels is None else [await self.renderer.panels(panels)]
        if "program" not in told:
            return []
        return await self.app.read(programs.pictures, self.app.settings, told["program"], told["attempt"])

    async def _channel(self, destination: Destination, entry: EntryView, context: PostContext) -> str | None:
        """The id of the channel or thread of a destination; None where a person has deleted it."""
        server = self.app.server
        if destination is Destination.ANNOUNCEMENTS:
            return str(server.announcements)
        if destination is Destination.CHANNEL:
            return context.channel_id
        about = _live(entry.payload or {})
        if destination is Destination.RUN and about is not None:
            return await self._live_thread(*about, context)
        thread_id = await self._proposal_thread(context.project)
        if about is not None and thread_id is not None:
            await self.sender.send_card(f"{about[0]}:{about[1]}", thread_id, await self._live_card(*about))
        return thread_id

    async def _live_card(self, subject: str, number: int) -> Card:
        """The card of a run, or of a sweep, which its runs share."""
        if subject == "sweep":
            return sweep_card(await self.app.read(sweeps.view, number))
        return run_card(await self.app.read(runs.view, number))

    async def _live_thread(self, subject: str, number: int, context: PostContext) -> str | None:
        """The thread under the card of a run or sweep; the proposal's for one from before the project had a channel."""
        key = f"{subject}:{number}"
        thread_id, gone = await self.channels.find(key)
        if thread_id is not None or gone or context.channel_id is None:
            return thread_id
        message_id = await self.sender.send_card(key, context.channel_id, await self._live_card(subject, number))
        if message_id is None:
            await self.channels.deleted(key)
            return None
        row = await self.app.read(outbox.message, key)
        if row is not None and row.channel_id != context.channel_id:  # a thread cannot be opened in a thread
            return await self._proposal_thread(context.project)
        return await self.channels.thread(key, context.channel_id, message_id, f"{subject.capitalize()} {number}")

    async def _proposal_thread(self, project: ProjectView) -> str | None:
        """The thread under the project's card."""
        await self.cards.move(project.id)
        key, proposals = f"{outbox.PROPOSAL}{project.id}", str(self.app.server.proposals)
        thread_id, gone = await self.channels.find(key)
        if thread_id is not None or gone:
            return thread_id
        card = project_card(project, (), (), channel_id=None, min_people=self.app.settings.min_people)
        message_id = await self.sender.send_card(f"project:{project.id}", proposals, card)
        if message_id is None:
            await self.channels.deleted(key)
            return None
        return await self.channels.thread(key, proposals, message_id, thread_name(project))


def _live(payload: Payload) -> tuple[str, int] | None:
    """The sweep, or else the run, that an entry is about."""
    about = [(subject, payload[subject]) for subject in ("sweep", "run") if payload.get(subject) is not None]
    return about[0] if about else None
