"""Keeps the cards of one project and of its requests up to date, and has those of its runs and sweeps updated."""

import functools
from collections.abc import Callable, Sequence

import discord
import structlog
from sqlalchemy.orm import Session

from bot.app import App
from bot.cards.card import Card
from bot.cards.project_card import project_card
from bot.cards.welcome_card import project_welcome
from bot.delivery import edit_budget, outbox, review_card_updates
from bot.delivery.edit_budget import BUSY, OLD, OLD_AGE, OldMessageError
from bot.delivery.run_card_updates import RunCardUpdater
from bot.delivery.sender import UNKNOWN_CHANNEL, Sender
from bot.delivery.sweep_card_updates import SweepCardUpdater
from bot.renderer import Renderer
from broker.allocations import allocations
from broker.allocations.allocations import AllocationView
from broker.runs import runs
from broker.runs.runs import RunKind, RunView
from projects import projects
from projects.projects import ENDED, ProjectRole, ProjectView
from projects.record import record
from projects.record.record import EntryView

RUNS_SHOWN = 4
IsTurn = Callable[[], bool]

log = structlog.get_logger()


def is_urgent(entry: EntryView) -> bool:
    """Whether the cards show an entry, such as a decision, before the news of runs and of followers."""
    payload = entry.payload or {}
    return (
        not payload.keys() & {"run", "sweep"}
        and entry.kind != "project.followed"
        and payload.get("role") != ProjectRole.FOLLOWER
    )


def card_contents(
    session: Session, project_id: int
) -> tuple[ProjectView, Sequence[AllocationView], Sequence[RunView], str | None]:
    """What a project's card shows: the project, its requests, its newest runs, and its channel unless deleted."""
    channel = outbox.channels_of(session, project_id).get(f"project:{project_id}")
    return (
        projects.view(session, project_id),
        allocations.of_project(session, project_id),
        runs.of_project(session, project_id, kind=RunKind.TRAIN, limit=RUNS_SHOWN),
        None if channel is None or channel.gone else channel.channel_id,
    )


class CardUpdater:
    """Updates the cards of one project.

    `behind` says that a card does not show the present state yet; `due` that the turn of a card has come.
    """

    def __init__(self, app: App, sender: Sender, renderer: Renderer, project_id: int) -> None:
        self.app, self.sender = app, sender
        self.project_id = project_id
        self._cards_stale = True
        self._urgent = False
        self._waiting: list[IsTurn] = []
        self._channels = _channels(app)
        self._runs = RunCardUpdater(app, sender, renderer, project_id)
        self._sweeps = SweepCardUpdater(app, sender, renderer, project_id)

    @property
    def behind(self) -> bool:
        """Whether a card waits for its turn."""
        live = self._runs.behind or self._sweeps.behind
        return self._cards_stale or bool(self._waiting) or live or self._channels != _channels(self.app)

    @property
    def due(self) -> bool:
        """Whether the turn of a card has come; a card that waits keeps its place in the queue by this question."""
        return self._cards_due or self._runs.due or self._sweeps.due

    @property
    def _cards_due(self) -> bool:
        moved = self._channels != _channels(self.app)
        return self._cards_stale or moved or any(is_turn() for is_turn in self._waiting)

    def note(self, entry: EntryView) -> None:
        """Remember which cards an entry makes stale."""
        self._cards_stale = True
        self._urgent |= is_urgent(entry)
        if entry.kind in record.TOMBSTONES:
            self._runs.note_all()
            self._sweeps.note_all()
        payload = entry.payload or {}
        if (sweep_id := payload.get("sweep")) is not None:
            self._sweeps.note(sweep_id)
        elif (run_id := payload.get("run")) is not None:
            self._runs.note(run_id)

    async def refresh(self) -> None:
        """Update the cards whose turn has come."""
        server = self.app.server
        if self._cards_due:
            urgent, channels = self._urgent, _channels(self.app)
            project, requests, newest, channel_id = await self.app.read(card_contents, self.project_id)
            if project.stage not in ENDED:
                await self.move(project.id)
            least = self.app.settings.min_people
            card = project_card(project, requests, newest, channel_id=channel_id, min_people=least)
            waiting = [await self._update(f"project:{project.id}", str(server.proposals), card, urgent=urgent)]
            if channel_id is not None:
                waiting.append(await self._welcome(project, requests, newest, channel_id))
            review_cards = await review_card_updates.cards(self.app, project.id, requests)
            for key, (card, is_open) in review_cards.items():
                if is_open:
                    await self._move(key, str(server.review), "This request's card is now")
                waiting.append(await self._update(key, str(server.review), card, urgent=urgent or not is_open))
            self._cards_stale, self._channels = False, channels
            self._waiting = [is_turn for is_turn in waiting if is_turn is not None]
            self._urgent = urgent and bool(self._waiting)
        await self._runs.refresh()
        await self._sweeps.refresh()

    async def _welcome(
        self, project: ProjectView, requests: Sequence[AllocationView], newest: Sequence[RunView], channel_id: str
    ) -> IsTurn | None:
        """Keep the welcome that is pinned in the project's channel up to date; returns what `_update` does."""
        key = f"welcome:project:{project.id}"
        if project.stage in ENDED and await self.app.read(outbox.message, key) is None:
            return None
        card = project_welcome(project, requests, newest, min_people=self.app.settings.min_people)
        is_turn = await self._update(key, channel_id, card, urgent=False)
        await self.sender.pin(key)
        return is_turn

    async def move(self, project_id: int) -> None:
        """Forget the project's card and thread if `/stoa setup` has chosen another channel, so that they move there."""
        thread, proposals = f"{outbox.PROPOSAL}{project_id}", str(self.app.server.proposals)
        await self._move(f"project:{project_id}", proposals, "This project's card is now", thread)

    async def _move(self, key: str, channel_id: str, said: str, thread: str = "") -> None:
        """Forget a card that is in another channel than `channel_id`, so that it is posted there next."""
        row = await self.app.read(outbox.message, key)
        if row is None or row.channel_id == channel_id:
            return
        if row.gone and self.app.get_channel(int(row.channel_id)) is not None:
            return  # the card itself was deleted, and not its channel
        await self.app.write(outbox.forget, key, thread)
        if row.message_id is not None and not row.gone:
            try:
                await self.sender.rewrite(row, f"➡️ {said} in <#{channel_id}>.")
            except discord.DiscordException as error:
                log.warning("a card that has moved cannot be edited", key=key, reason=str(error))

    async def _update(self, key: str, channel_id: str, card: Card, *, urgent: bool) -> IsTurn | None:
        """Post or edit a card; where it must wait, return what asks whether its turn has come."""
        row = await self.app.read(outbox.message, key)
        if row is not None and (row.gone or row.digest == card.digest):
            return None
        if row is None or row.message_id is None:
            try:
                await self.sender.send_card(key, channel_id, card)
            except discord.NotFound as error:  # the channel was deleted: the card waits for the next one
                if error.code != UNKNOWN_CHANNEL:
                    raise
            return None
        age, budget = edit_budget.age(row.message_id), self.sender.budget
        pause = OLD if age >= OLD_AGE and not urgent else BUSY
        is_turn = functools.partial(budget.turn, key, row.channel_id, age=age, pause=pause, urgent=urgent)
        if not is_turn():
            return is_turn
        budget.edited(key, row.channel_id, age=age)
        try:
            await self.sender.edit_card(row, card, row.picture, None)
        except OldMessageError as error:
            budget.refused(row.channel_id, error.retry_after)
            return is_turn
        return None


def _channels(app: App) -> tuple[int, int]:
    """The channels that the cards are in, which the admins may change."""
    return app.server.proposals, app.server.review
