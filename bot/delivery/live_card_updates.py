"""Keeps the live cards of one project's runs, or of its sweeps, up to date, each with the picture of its losses.

A card is edited more often while much changes. Where Discord refuses to edit a card because its message is old, a
successor is posted, with the key `run:7:2` and so on, and the old card keeps a line that links to it.
"""

import asyncio
import functools
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Generic, TypeVar

import structlog
from sqlalchemy import or_
from sqlalchemy.orm import Session
from sqlmodel import col, select

from bot.app import App
from bot.cards.card import Card
from bot.delivery import edit_budget, outbox
from bot.delivery.edit_budget import BUSY, CALM, OLD, OLD_AGE, OldMessageError
from bot.delivery.sender import Sender
from bot.renderer import Renderer
from bot.tables import DiscordMessage
from broker.plots.curve import Comparison, Curve
from broker.runs.runs import RunView
from broker.runs.sweeps import SweepView

MOST_STALE = 25
"""The most cards that wait to be updated at once."""
QUICK = 0.5
"""Seconds for which an edit waits for its picture; a picture that takes longer comes with a later edit."""
V = TypeVar("V", RunView, SweepView)

log = structlog.get_logger()


@dataclass(frozen=True)
class Drawing(Generic[V]):
    """A picture that is being drawn, with the run or sweep as it was when the drawing began."""

    view: V
    name: str
    task: asyncio.Task[bytes | None]


class LiveCardUpdater(ABC, Generic[V]):
    """Updates the live cards of one project, of what `subject` names: its runs or its sweeps, known by their numbers.

    `behind` says that a card does not show the present state yet; `due` that the turn of a card has come.
    """

    subject: ClassVar[str]

    def __init__(self, app: App, sender: Sender, renderer: Renderer, project_id: int) -> None:
        self.app, self.sender, self.renderer = app, sender, renderer
        self.project_id = project_id
        self._begun = False
        self._stale: set[int] = set()
        self._later: list[int] = []
        # For each card that must wait, what asks whether its turn has come.
        self._waiting: defaultdict[int, list[Callable[[], bool]]] = defaultdict(list)
        # Until when a card rests that showed the present state already.
        self._rests: dict[int, float] = {}
        self._shown: dict[int, V] = {}
        self._drawn: dict[int, float] = {}
        self._drawings: dict[int, Drawing[V]] = {}
        self._pictured: dict[int, V] = {}

    @abstractmethod
    async def newest(self) -> list[int]:
        """The numbers whose cards may be out of date after a start, the newest first."""

    @abstractmethod
    async def in_motion(self) -> set[int]:
        """The numbers of what changes by itself at present."""

    @abstractmethod
    async def view(self, number: int) -> V | None:
        """What the card shows; None for what has no card."""

    @abstractmethod
    def is_active(self, view: V) -> bool:
        """Whether it changes by itself."""

    @abstractmethod
    def has_changed(self, view: V, shown: V) -> bool:
        """Whether it is in another state than the card shows."""

    @abstractmethod
    def has_advanced(self, view: V, shown: V) -> bool:
        """Whether much has changed since the card was edited."""

    @abstractmethod
    async def card(self, view: V, *, picture: str, thread_id: str, number: int, drawn: V | None) -> Card:
        """The card, which is the `number`-th one; arguments as in `run_card`."""

    @abstractmethod
    def moved_card(self, view: V, url: str, number: int) -> Card:
        """The card that links to its successor."""

    @abstractmethod
    async def picture_of(self, view: V) -> Curve | Comparison | None:
        """What the picture shows; None while there is too little to draw."""

    @property
    def behind(self) -> bool:
        """Whether a card waits for its turn."""
        return bool(self._stale or self._later)

    @property
    def due(self) -> bool:
        """Whether the turn of a card has come; a card that waits keeps its place in the queue by this question."""
        more = bool(self._later) and len(self._stale) < MOST_STALE
        return more or any(self._is_due(number) for number in self._stale)

    def note(self, number: int) -> None:
        """Remember that a card is out of date."""
        self._stale.add(number)
        self._waiting.pop(number, None)
        self._rests.pop(number, None)

    def note_all(self) -> None:
        """Remember that any card may be out of date."""
        self._begun = False
        self._rests.clear()

    async def refresh(self) -> None:
        """Update the cards whose turn has come, the one that has waited longest first."""
        if not self._begun:  # a crash may have left any card out of date
            self._later = await self.newest()
            self._begun = True
        while self._later and len(self._stale) < MOST_STALE:
            self._stale.add(self._later.pop(0))
        budget = self.sender.budget
        due = await self.in_motion() | {number for number in self._stale if self._is_due(number)}
        for number in sorted(due, key=lambda number: (budget.edited_at(self._key(number)), number)):
            self._waiting.pop(number, None)
            if self._rested(number) and await self._update(number):
                self._stale.discard(number)
                self._forget(number)

    def _key(self, number: int) -> str:
        return f"{self.subject}:{number}"

    def _forget(self, number: int) -> None:
        """Forget what has ended, once its card shows that; should it change again, it is read again."""
        for known in (self._shown, self._drawn, self._pictured, self._rests):
            known.pop(number, None)

    def _rested(self, number: int) -> bool:
        """Whether enough time has passed since a card was edited, or needed no edit."""
        return self.sender.budget.rested(self._key(number)) and time.monotonic() >= self._rests.get(number, 0.0)

    def _is_due(self, number: int) -> bool:
        """Whether a card may be edited now, as far as is known without reading it."""
        return self._rested(number) and (number not in self._waiting or any(ask() for ask in self._waiting[number]))

    async def _update(self, number: int) -> bool:
        """Update a card; False where it must be updated again later."""
        view = await self.view(number)
        if view is None:
            return True
        key = self._key(number)
        cards, thread_id = await self.app.read(_cards, self.project_id, key)
        if not cards or cards[-1].gone or cards[0].message_id is None:
            return True
        row = cards[-1]
        if row.message_id is None:
            return await self._post_successor(view, len(cards), row.channel_id, thread_id)
        linked = await self._link_old_cards(view, cards)
        age = edit_budget.age(row.message_id)
        budget = self.sender.budget
        if not self._turn(view, key, row.channel_id, age, self._pause(view, age)):
            return False
        self._waiting.pop(number, None)
        drawing = self._drawings.get(number)
        name, picture = await self._picture(view, row.picture)
        drawn, posts = self._pictured.get(number), thread_id if len(cards) > 1 else ""
        card = await self.card(view, picture=name, thread_id=posts, number=len(cards), drawn=drawn)
        if row.digest == card.digest:
            budget.leave(key, row.channel_id, age=age)
            if number not in self._drawings:
                self._rests[number] = time.monotonic() + BUSY
        elif not await self._edit(key, row, card, name, picture, age):
            if self.is_active(view):
                await self._post_successor(view, len(cards) + 1, row.channel_id, thread_id)
            return False
        else:
            self._shown[number] = view
        if picture is not None:
            self._drawn[number] = time.monotonic()
        newest_drawn = number not in self._drawings and (drawing is None or drawing.view == view)
        return linked and not self.is_active(view) and newest_drawn

    async def _edit(
        self, key: str, row: DiscordMessage, card: Card, name: str, picture: bytes | None, age: float
    ) -> bool:
        """Edit a card; False where Discord refuses because its message is old."""
        self.sender.budget.edited(key, row.channel_id, age=age)
        try:
            await self.sender.edit_card(row, card, name, picture)
        except OldMessageError as error:
            log.info("Discord refuses to edit an old card now", key=row.key, seconds=error.retry_after)
            self.sender.budget.refused(row.channel_id, error.retry_after)
            return False
        return True

    async def _post_successor(self, view: V, number: int, channel_id: str, thread_id: str) -> bool:
        """Post the successor of a card that Discord refuses to edit; always False, as it has no picture yet."""
        self._drawn.pop(view.id, None)
        card = await self.card(view, picture="", thread_id=thread_id, number=number, drawn=None)
        await self.sender.send_card(f"{self._key(view.id)}:{number}", channel_id, card)
        return False

    async def _link_old_cards(self, view: V, cards: list[DiscordMessage]) -> bool:
        """Turn each card but the newest into a link to its successor; False while one still waits for its turn."""
        due = []
        for number, (row, successor) in enumerate(pairwise(cards), start=1):
            url = f"https://discord.com/channels/{self.app.server.guild}/{successor.channel_id}/{successor.message_id}"
            card = self.moved_card(view, url, number)
            if not row.gone and row.message_id is not None and row.digest != card.digest:
                due.append((row, card))
        for row, card in due[:1]:
            key = f"{row.key}:moved"
            if not self._turn(view, key, row.channel_id, OLD_AGE, BUSY):
                return False
            return await self._edit(key, row, card, "", None, OLD_AGE) and len(due) == 1
        return True

    def _turn(self, view: V, key: str, channel_id: str, age: float, pause: float) -> bool:
        """Whether a card may be edited now; otherwise it joins the queue."""
        is_turn = functools.partial(self.sender.budget.turn, key, channel_id, age=age, pause=pause)
        if is_turn():
            return True
        self._waiting[view.id].append(is_turn)
        return False

    def _pause(self, view: V, age: float) -> float:
        """The least seconds between the last edit of a card and the next one."""
        shown, drawing = self._shown.get(view.id), self._drawings.get(view.id)
        if shown is None or self.has_changed(view, shown):
            return BUSY
        if age >= OLD_AGE:
            return OLD
        drawn = drawing is not None and drawing.task.done()
        return BUSY if drawn or self.has_advanced(view, shown) or not self.is_active(view) else CALM

    async def _picture(self, view: V, shown: str) -> tuple[str, bytes | None]:
        """The file name of the picture to show, where the card shows `shown` now, and the PNG if it is a new one."""
        if view.id not in self._drawings:
            waited = time.monotonic() - self._drawn.get(view.id, float("-inf"))
            if waited < self.app.settings.picture_seconds and self.is_active(view):
                return shown, None
            curve = await self.picture_of(view)
            if curve is None:
                return shown, None
            name = f"{self.subject}-{view.id}-{curve.digest}.png"
            if name == shown:
                self._pictured[view.id] = view
                return shown, None
            self._drawings[view.id] = Drawing(view, name, asyncio.create_task(self._draw(view.id, curve)))
        drawing = self._drawings[view.id]
        await asyncio.wait({drawing.task}, timeout=QUICK)
        if not drawing.task.done():
            return shown, None
        del self._drawings[view.id]
        picture = drawing.task.result()
        if picture is None:
            return shown, None
        self._pictured[view.id] = drawing.view
        return drawing.name, picture

    async def _draw(self, number: int, curve: Curve | Comparison) -> bytes | None:
        try:
            if isinstance(curve, Curve):
                return await self.renderer.draw(curve)
            picture, _ = await self.renderer.compare(curve)
            return picture
        except Exception as error:  # the card is updated without a new picture
            log.error("a picture could not be drawn", key=self._key(number), exc_info=error)
            return None


def _cards(session: Session, project_id: int, key: str) -> tuple[list[DiscordMessage], str]:
    """The rows of a card and its successors, the newest last, and the id of the thread under the first one."""
    own = or_(col(DiscordMessage.key) == key, col(DiscordMessage.key).startswith(f"{key}:"))
    rows = sorted(session.scalars(select(DiscordMessage).where(own)), key=lambda row: (len(row.key), row.key))
    thread = outbox.channels_of(session, project_id).get(key)
    return rows, thread.channel_id or "" if thread is not None and not thread.gone else ""
