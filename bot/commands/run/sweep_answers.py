"""Private answers about sweeps: the offer of a launch, its receipt, and the card with the losses."""

import io
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import discord
from discord import ui
from sqlalchemy.orm import Session

from bot import text
from bot.app import Interaction
from bot.buttons import Button
from bot.cards.card import BLUE, GREEN, Card, sections, texts
from bot.cards.sweep_card import alt, sweep_card
from bot.commands.run import answers
from broker.allocations.units import in_hours
from broker.plots.curves_of_sweep import curves_of
from broker.reports import why
from broker.reports.sweep_plan import SweepPreview
from broker.reports.why import Why
from broker.runs import sweeps
from broker.runs.runs import RunState
from broker.runs.sweeps import SweepQuote, SweepReceipt, SweepView
from projects.db.columns import utcnow

GOES_ON = "**Next** Its card in the channel or thread shows how its runs go; `/run why` says what one waits for."
TABLE = 2400
"""The most characters of the table of an offer."""


async def show(interaction: Interaction, sweep_id: int) -> None:
    """Complete a deferred answer with the card of a sweep and the losses of its runs."""
    app = interaction.client
    async with app.dear_turn():
        view = await app.read(sweeps.view, sweep_id)
        waits = await app.read(_first_wait, view)
        curves = await app.read(curves_of, view)
        drawn = None if curves is None else await app.renderer.compare(curves)
    if drawn is None:
        await answers.show(interaction, sweep_card(view, why=waits))
        return
    name = f"sweep-{sweep_id}.png"
    file = discord.File(io.BytesIO(drawn[0]), name, description=alt(view))
    await answers.show(interaction, sweep_card(view, picture=name, why=waits), file)


def offer(preview: SweepPreview) -> Card:
    """The offer of a sweep: each run with its cost and its start, and the sum, with the buttons that launch or discard
    all of it."""
    quote, first = preview.quote, preview.quote.quotes[0]
    run, many, unit = first.run, len(preview.quote.quotes), quote.unit
    swept = set(quote.swept)
    shared = ", ".join(f"{name}={value}" for name, value in run.overrides.items() if name not in swept)
    memory = max(quote.quotes, key=lambda each: each.memory).memory_needed
    asks = [
        f"### 🚀 Launch a sweep of {many} runs of {text.line(run.recipe, 60)}, each on "
        f"{text.gpus(run.gpus, first.nodes, unit)} of {text.code(first.pool.name, 60)}?",
        f"All with {text.line(shared, 300)}" if shared else "",
        f"The first is called {text.run_name(run.name)}" if run.name else "",
        f"Tagged {text.tags(run.tags.split())}" if run.tags else "",
        f"{answers.short(first.parameters)} parameters · about {memory} of memory for each {unit.value}",
        *answers.copies(first),
    ]
    known = "not known" if quote.expected is None else f"about {unit.hours(quote.expected)}"
    costs = [
        f"**Cost** {unit.hours(quote.cost)} at most: {many} × {in_hours(first.cost)}, each in "
        f"{text.duration(run.time_limit)}",
        f"**Expected** {known}: {text.line(first.basis, 200)}",
        f"**Left** allocation {run.allocation_id} has {unit.hours(quote.left)} left, and "
        f"{in_hours(max(0, quote.left - quote.promised - quote.cost))} should these runs "
        f"{'and those queued ' if quote.promised else ''}take all their time",
        _too_short(quote),
    ]
    queue = [f"**Queue** The first run: {text.line(preview.queue[0].reason, 300)}"]
    row: ui.ActionRow[Any] = ui.ActionRow(
        Button("launch_sweep", preview.plan_id, label=f"Launch {many} runs", style=discord.ButtonStyle.success),
        Button("discard", preview.plan_id, label="Cancel"),
    )
    marker = "-# Nothing is queued or charged before you press Launch."
    return Card(*sections([asks, [_table(preview)], costs, queue], marker), row, colour=BLUE, marker=marker)


def launched(receipt: SweepReceipt) -> Card:
    """The card that replaces an offer once it is launched."""
    marker = f"-# sweep {receipt.sweep_id}"
    runs = f"runs {receipt.run_ids[0]} to {receipt.run_ids[-1]}"
    lines = [f"### 🚀 Sweep {receipt.sweep_id} is queued: {runs}", told(receipt), GOES_ON]
    return Card(texts(lines, marker), colour=GREEN, marker=marker)


def told(receipt: SweepReceipt) -> str:
    """What the runs of a queued sweep may cost together, and what their allocation has left."""
    expected = "" if receipt.expected is None else f", about {receipt.unit.hours(receipt.expected)} as measured"
    after = in_hours(max(0, receipt.left - receipt.promised))
    return (
        f"All together cost {receipt.unit.hours(receipt.cost)} at most{expected}. The allocation has "
        f"{receipt.unit.hours(receipt.left)} left, and {after} should its queued runs take all their time."
    )


def _table(preview: SweepPreview) -> str:
    """A line for each run of an offer: its point, what it costs at most and is expected to, and when it starts."""
    quote = preview.quote
    known = quote.expected is not None
    columns = [f"{quote.unit.in_hours} at most", *(["expected"] if known else []), "starts at the latest"]
    rows = [_row(quote, number, waits) for number, waits in enumerate(preview.queue)]
    head = text.line(" · ".join([*quote.swept, *columns]), 300)
    return f"-# {head}\n{text.listed(rows, most=TABLE)}"


def _row(quote: SweepQuote, number: int, waits: Why) -> str:
    each = quote.quotes[number]
    point = " · ".join(each.run.overrides[field] for field in quote.swept)
    expected = "" if each.expected is None else f" · {in_hours(each.expected)}"
    return f"{number + 1}. {text.code(point, 60)} · {in_hours(each.cost)}{expected} · {_start(waits.expected)}"


def _start(expected: datetime | None) -> str:
    if expected is None:
        return "not known"
    seconds = (expected - utcnow()).total_seconds()
    return "at once" if seconds < 1 else f"in {text.duration(max(seconds, 60))}"


def _too_short(quote: SweepQuote) -> str:
    """A warning where the time limit is expected to end some of the runs before they write a checkpoint."""
    short: Sequence[float] = [each.saves_after or 0 for each in quote.quotes if each.too_short]
    if not short:
        return ""
    return (
        f"⚠️ **Time limit** It is expected to end {text.count(len(short), 'run')} before the first checkpoint, which "
        f"is due after about {text.duration(max(short))}"
    )


def _first_wait(session: Session, sweep: SweepView) -> Why | None:
    """What the first run of a sweep waits for of which none has started; None for any other sweep."""
    return why.why(session, sweep.runs[0].id) if {run.state for run in sweep.runs} == {RunState.QUEUED} else None
