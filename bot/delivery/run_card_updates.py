"""Keeps the cards of one project's runs up to date, each with the picture of its loss curve.

A card is edited more often while much changes. Where Discord refuses to edit a card because its message is old, a
successor is posted, with the key `run:7:2` and so on, and the old card keeps a line that links to it.
"""

import asyncio
import functools
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import structlog
from sqlalchemy import or_
from sqlalchemy.orm import Session
from sqlmodel import col, select

from bot.app import App
from bot.cards.card import Card
from bot.cards.run_card import moved_card, run_card
from bot.delivery import edit_budget, outbox
from bot.delivery.edit_budget import BUSY, CALM, OLD, OLD_AGE, OldMessageError
from bot.delivery.sender import Sender
from bot.plots.curve import Curve
from bot.plots.curve_of_run import curve_of
from bot.plots.renderer import Renderer
from bot.tables import DiscordMessage
from broker.reports import why
from broker.reports.why import Why
from broker.runs import runs
from broker.runs.runs import ACTIVE, Run, RunKind, RunState, RunView
from projects.record import record, redaction

RUNS_KEPT = 25
"""Runs whose cards are checked after a start, and the most that wait to be updated at once."""
WHY_SECONDS = 60.0
"""Seconds for which the reason that a run waits is shown before it is asked for again."""
MUCH = 0.01
"""The share of its steps by which a run must advance between two edits for much to have changed."""
QUICK = 0.5
"""Seconds for which an edit waits for its picture; a picture that takes longer comes with a later edit."""

log = structlog.get_logger()


@dataclass(frozen=True)
class Drawing:
    """A picture that is being drawn, with the run as it was when the drawing began."""

    run: RunView
    name: str
    task: asyncio.Task[bytes | None]


class RunCardUpdater:
    """Updates the cards of one project's runs.

    `behind` says that a card does not show the present state yet; `due` that the turn of a card has come.
    """

    def __init__(self, app: App, sender: Sender, renderer: Renderer, project_id: int) -> None:
        self.app, self.sender, self.renderer = app, sender, renderer
        self.project_id = project_id
        self._begun = False
        self._stale: set[int] = set()
        self._later: list[int] = []
        # For each run whose card must wait, what asks whether its turn has come.
        self._waiting: defaultdict[int, list[Callable[[], bool]]] = defaultdict(list)
        self._shown: dict[int, RunView] = {}
        self._drawn: dict[int, float] = {}
        self._drawings: dict[int, Drawing] = {}
        self._pictured: dict[int, RunView] = {}
        self._reasons: dict[int, tuple[float, Why]] = {}

    @property
    def behind(self) -> bool:
        """Whether a card waits for its turn."""
        return bool(self._stale or self._later)

    @property
    def due(self) -> bool:
        """Whether the turn of a card has come; a card that waits keeps its place in the queue by this question."""
        more = bool(self._later) and len(self._stale) < RUNS_KEPT
        return more or any(self._is_due(run_id) for run_id in self._stale)

    def note(self, run_id: int) -> None:
        """Remember that a run's card is out of date."""
        self._stale.add(run_id)
        self._waiting.pop(run_id, None)

    def note_all(self) -> None:
        """Remember that any card may be out of date."""
        self._begun = False

    async def refresh(self) -> None:
        """Update the cards whose turn has come, the one that has waited longest first."""
        if not self._begun:  # a crash may have left any card out of date
            self._later = await self.app.read(_newest, self.project_id)
            self._begun = True
        while self._later and len(self._stale) < RUNS_KEPT:
            self._stale.add(self._later.pop(0))
        active = (await self.app.read(runs.in_motion)).get(self.project_id, set())
        budget = self.sender.budget
        due = active | {run_id for run_id in self._stale if self._is_due(run_id)}
        for run_id in sorted(due, key=lambda run_id: (budget.edited_at(f"run:{run_id}"), run_id)):
            self._waiting.pop(run_id, None)
            if budget.rested(f"run:{run_id}") and await self._update(run_id):
                self._stale.discard(run_id)
                self._forget(run_id)

    def _forget(self, run_id: int) -> None:
        """Forget what is known of a run whose card shows its end; should the run change again, it is read again."""
        for known in (self._shown, self._drawn, self._pictured):
            known.pop(run_id, None)

    def _is_due(self, run_id: int) -> bool:
        """Whether a card may be edited now, as far as is known without reading it."""
        rested = self.sender.budget.rested(f"run:{run_id}")
        return rested and (run_id not in self._waiting or any(ask() for ask in self._waiting[run_id]))

    async def _update(self, run_id: int) -> bool:
        """Update a run's card; False where the card must be updated again later."""
        run = await self.app.read(runs.view, run_id)
        cards, thread_id = await self.app.read(_cards, run)
        if run.kind == RunKind.SAMPLE or not cards or cards[-1].gone or cards[0].message_id is None:
            return True
        row = cards[-1]
        if row.message_id is None:
            return await self._post_successor(run, len(cards), row.channel_id, thread_id)
        linked = await self._link_old_cards(run, cards)
        age = edit_budget.age(row.message_id)
        budget, key = self.sender.budget, f"run:{run_id}"
        if not self._turn(run, key, row.channel_id, age, self._pause(run, age)):
            return False
        self._waiting.pop(run_id, None)
        drawing = self._drawings.get(run_id)
        name, picture = await self._picture(run, row.picture)
        why, number = await self._why(run), len(cards)
        drawn, posts = self._pictured.get(run_id), thread_id if number > 1 else ""
        card = run_card(run, picture=name, why=why, thread_id=posts, number=number, drawn=drawn)
        if row.digest == card.digest:
            budget.leave(key, row.channel_id, age=age)
        elif not await self._edit(key, row, card, name, picture, age):
            if run.state in ACTIVE:
                await self._post_successor(run, number + 1, row.channel_id, thread_id)
            return False
        else:
            self._shown[run.id] = run
        if picture is not None:
            self._drawn[run.id] = time.monotonic()
        newest_drawn = run.id not in self._drawings and (drawing is None or drawing.run == run)
        return linked and run.state not in ACTIVE and newest_drawn

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

    async def _post_successor(self, run: RunView, number: int, channel_id: str, thread_id: str) -> bool:
        """Post the successor of a card that Discord refuses to edit; always False, as it has no picture yet."""
        self._drawn.pop(run.id, None)
        card = run_card(run, why=await self._why(run), thread_id=thread_id, number=number)
        await self.sender.send_card(f"run:{run.id}:{number}", channel_id, card)
        return False

    async def _link_old_cards(self, run: RunView, cards: list[DiscordMessage]) -> bool:
        """Turn each card but the newest into a link to its successor; False while one still waits for its turn."""
        due = []
        for number, (row, successor) in enumerate(pairwise(cards), start=1):
            url = f"https://discord.com/channels/{self.app.server.guild}/{successor.channel_id}/{successor.message_id}"
            card = moved_card(run, url, number)
            if not row.gone and row.message_id is not None and row.digest != card.digest:
                due.append((row, card))
        for row, card in due[:1]:
            key = f"{row.key}:moved"
            if not self._turn(run, key, row.channel_id, OLD_AGE, BUSY):
                return False
            return await self._edit(key, row, card, "", None, OLD_AGE) and len(due) == 1
        return True

    def _turn(self, run: RunView, key: str, channel_id: str, age: float, pause: float) -> bool:
        """Whether a card of a run may be edited now; otherwise it joins the queue."""
        is_turn = functools.partial(self.sender.budget.turn, key, channel_id, age=age, pause=pause)
        if is_turn():
            return True
        self._waiting[run.id].append(is_turn)
        return False

    def _pause(self, run: RunView, age: float) -> float:
        """The least seconds between the last edit of a run's card and the next one."""
        shown, drawing = self._shown.get(run.id), self._drawings.get(run.id)
        if shown is None or (shown.state, shown.attempt, shown.checkpoints) != (
            run.state,
            run.attempt,
            run.checkpoints,
        ):
            return BUSY
        if age >= OLD_AGE:
            return OLD
        drawn = drawing is not None and drawing.task.done()
        much = run.step - shown.step >= MUCH * run.total_steps
        return BUSY if drawn or much or run.state not in ACTIVE else CALM

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

    async def _picture(self, run: RunView, shown: str) -> tuple[str, bytes | None]:
        """The file name of the picture to show, where the card shows `shown` now, and the PNG if it is a new one."""
        if run.id not in self._drawings:
            waited = time.monotonic() - self._drawn.get(run.id, float("-inf"))
            if waited < self.app.settings.picture_seconds and run.state in ACTIVE:
                return shown, None
            curve = await self.app.read(curve_of, run)
            name = f"run-{run.id}-{curve.digest}.png"
            if name == shown:
                self._pictured[run.id] = run
            if len(curve.loss) < 2 or name == shown:
                return shown, None
            self._drawings[run.id] = Drawing(run, name, asyncio.create_task(self._draw(run.id, curve)))
        drawing = self._drawings[run.id]
        await asyncio.wait({drawing.task}, timeout=QUICK)
        if not drawing.task.done():
            return shown, None
        del self._drawings[run.id]
        picture = drawing.task.result()
        if picture is None:
            return shown, None
        self._pictured[run.id] = drawing.run
        return drawing.name, picture

    async def _draw(self, run_id: int, curve: Curve) -> bytes | None:
        try:
            return await self.renderer.draw(curve)
        except Exception as error:  # the card is updated without a new picture
            log.error("a picture could not be drawn", run=run_id, exc_info=error)
            return None


def _newest(session: Session, project_id: int) -> list[int]:
    """The runs whose cards may be out of date, the newest first; all runs of a project in which a text was blanked."""
    query = select(Run).where(Run.project_id == project_id).order_by(col(Run.id).desc())
    if not redaction.happened(session, record.project_stream(project_id)):
        query = query.limit(RUNS_KEPT)
    found = session.scalars(query)
    return list(
        dict.fromkeys(run.parent_id if run.kind == RunKind.SAMPLE and run.parent_id else run.id for run in found)
    )


def _cards(session: Session, run: RunView) -> tuple[list[DiscordMessage], str]:
    """The rows of a run's card and its successors, the newest last, and the id of the thread under the first one."""
    key = f"run:{run.id}"
    own = or_(col(DiscordMessage.key) == key, col(DiscordMessage.key).startswith(f"{key}:"))
    rows = sorted(session.scalars(select(DiscordMessage).where(own)), key=lambda row: (len(row.key), row.key))
    thread = outbox.channels_of(session, run.project_id).get(key)
    return rows, thread.channel_id or "" if thread is not None and not thread.gone else ""
