"""The cards of one project and of its requests, brought to the present state; those of its runs are apart."""

import functools
from collections.abc import Callable, Sequence

import discord
import structlog
from sqlalchemy.orm import Session

from bot.app import App
from bot.cards.card import Card
from bot.cards.project_card import project_card
from bot.delivery import edit_budget, outbox, review_card_updates
from bot.delivery.edit_budget import BUSY, OLD, OLD_AGE, OldMessageError
from bot.delivery.run_card_updates import RunCardUpdater
from bot.delivery.sender import UNKNOWN_CHANNEL, Sender
from bot.plots.renderer import Renderer
from broker.allocations import allocations
from broker.allocations.allocations import AllocationView
from broker.runs import runs
from broker.runs.runs import RunKind, RunView
from projects import projects
from projects.projects import ENDED, ProjectView
from projects.record import redaction
from projects.record.record import Told

RUNS_SHOWN = 4
Ask = Callable[[], bool]

log = structlog.get_logger()


def goes_first(entry: Told) -> bool:
    """Whether what an entry changes, such as a decision, is shown on cards before what is new of runs."""
    return "run" not in (entry.payload or {})


def look(
    session: Session, project_id: int
) -> tuple[ProjectView, Sequence[AllocationView], Sequence[RunView], str | None]:
    """What a project's card tells of: the project, its requests, its newest runs, and its channel while it stands."""
    room = outbox.rooms(session, project_id).get(f"project:{project_id}")
    return (
        projects.view(session, project_id),
        allocations.of_project(session, project_id),
        runs.of_project(session, project_id, kind=RunKind.TRAIN, limit=RUNS_SHOWN),
        None if room is None or room.gone else room.channel_id,
    )


class CardUpdater:
    """`behind` says that a card does not show the present state yet, `due` that its turn to be refreshed has come."""

    def __init__(self, app: App, sender: Sender, renderer: Renderer, project_id: int) -> None:
        self.app, self.sender = app, sender
        self.project_id = project_id
        self._cards_stale = True
        self._urgent = False
        self._waiting: list[Ask] = []
        self._places = _places(app)
        self._runs = RunCardUpdater(app, sender, renderer, project_id)

    @property
    def behind(self) -> bool:
        """Whether a card waits for its turn."""
        return self._cards_stale or bool(self._waiting) or self._runs.behind or self._places != _places(self.app)

    @property
    def due(self) -> bool:
        """Whether the turn of a card has come; those that wait stand in line by this question."""
        return self._cards_due or self._runs.due

    @property
    def _cards_due(self) -> bool:
        return self._cards_stale or self._places != _places(self.app) or any(ask() for ask in self._waiting)

    def note(self, entry: Told) -> None:
        """Remember which cards an entry makes stale."""
        self._cards_stale = True
        self._urgent |= goes_first(entry)
        if entry.kind in redaction.KINDS:
            self._runs.note_all()
        run_id = (entry.payload or {}).get("run")
        if run_id is not None:
            self._runs.note(run_id)

    async def refresh(self) -> None:
        """Bring the cards up to date whose turn has come."""
        server = self.app.server
        if self._cards_due:
            urgent, places = self._urgent, _places(self.app)
            project, requests, newest, channel_id = await self.app.read(look, self.project_id)
            if project.stage not in ENDED:
                await self.follow(project.id)
            card = project_card(project, requests, newest, channel_id=channel_id)
            asks = [await self._show(f"project:{project.id}", str(server.proposals), card, urgent=urgent)]
            desk = await review_card_updates.cards(self.app, project.id, requests)
            for key, (card, is_open) in desk.items():
                if is_open:
                    await self._follow(key, str(server.review), "This request is decided")
                asks.append(await self._show(key, str(server.review), card, urgent=urgent or not is_open))
            self._cards_stale, self._places = False, places
            self._waiting = [ask for ask in asks if ask is not None]
            self._urgent = urgent and bool(self._waiting)
        await self._runs.refresh()

    async def follow(self, project_id: int) -> None:
        """Let the project's card and thread be made anew, if the proposals now have another channel."""
        thread, proposals = f"{outbox.PROPOSAL}{project_id}", str(self.app.server.proposals)
        await self._follow(f"project:{project_id}", proposals, "This project is told of", thread)

    async def _follow(self, key: str, channel_id: str, said: str, thread: str = "") -> None:
        """Forget a card that stands in another channel than the present one, so that it is posted there."""
        row = await self.app.read(outbox.message, key)
        if row is None or row.channel_id == channel_id:
            return
        if row.gone and self.app.get_channel(int(row.channel_id)) is not None:  # the card itself was deleted
            return
        await self.app.write(outbox.forget, key, thread)
        if row.message_id is not None and not row.gone:
            try:
                await self.sender.rewrite(row, f"➡️ {said} in <#{channel_id}> now.")
            except discord.DiscordException as error:
                log.warning("a card that has moved cannot be changed", key=key, reason=str(error))

    async def _show(self, key: str, channel_id: str, card: Card, *, urgent: bool) -> Ask | None:
        """Bring a card to the present state; where it must wait, what asks anew whether its turn has come."""
        row = await self.app.read(outbox.message, key)
        if row is not None and (row.gone or row.digest == card.digest):
            return None
        if row is None or row.message_id is None:
            try:
                await self.sender.place(key, channel_id, card)
            except discord.NotFound as error:  # it comes where the next such channel is
                if error.code != UNKNOWN_CHANNEL:
                    raise
            return None
        age, budget = edit_budget.age(row.message_id), self.sender.budget
        pause = OLD if age >= OLD_AGE and not urgent else BUSY
        ask = functools.partial(budget.turn, key, row.channel_id, age=age, pause=pause, urgent=urgent)
        if not ask():
            return ask
        budget.edited(key, row.channel_id, age=age)
        try:
            await self.sender.change(row, card, row.picture, None)
        except OldMessageError as error:
            budget.refused(row.channel_id, error.retry_after)
            return ask
        return None


def _places(app: App) -> tuple[int, int]:
    """The channels that the cards stand in, which the admins may exchange."""
    return app.server.proposals, app.server.review
