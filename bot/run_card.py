"""The card of a run."""

from typing import Any

import discord
from discord import ui

from bot import text
from bot.card import BLUE, GREEN, GREY, ORANGE, SKY, VERMILION, Card, texts
from bot.run_buttons import buttons
from broker import allocations
from broker.runs import RunState, RunView

RUNS = {
    RunState.QUEUED: ("⏳", GREY),
    RunState.STARTING: ("🛫", SKY),
    RunState.RUNNING: ("▶️", BLUE),
    RunState.STOPPING: ("✋", ORANGE),
    RunState.PAUSED: ("⏸️", GREY),
    RunState.FINISHED: ("🏁", GREEN),
    RunState.FAILED: ("❌", VERMILION),
    RunState.CANCELLED: ("✋", GREY),
    RunState.TIMED_OUT: ("⏱️", ORANGE),
}


def run_card(run: RunView, *, picture: str = "") -> Card:
    """A run as it goes; `picture` is the name of the attached file that shows its loss curve."""
    emoji, colour = RUNS[run.state]
    lines = [
        f"### {emoji} Run {run.id} · {text.line(run.recipe, 60)} · {run.state}",
        f"{text.line(run.requested_by, 60)} on {text.count(run.gpus, 'GPU')} of {text.code(run.pool, 60)}"
        + (f", given by {text.line(run.sponsor, 80)}" if run.sponsor else ""),
    ]
    if run.overrides:
        changed = ", ".join(f"{name}={value}" for name, value in run.overrides.items())
        lines.append(f"With {text.line(changed, 200)}")
    if run.reason:
        lines.append(text.quote(run.reason, 400))
    share = f" ({run.step * 100 // run.total_steps} %)" if run.total_steps else ""
    lines.append(f"{text.bar(run.step, run.total_steps)} step {run.step:,} of {run.total_steps:,}{share}")
    lines += _measures(run)
    hours, account = allocations.in_hours, run.account
    reserved = f", {hours(account.reserved)} reserved" if account.reserved else ""
    lines.append(
        f"**GPU-hours** {hours(run.spent)} by this run; of the allocation's {hours(account.granted)}: "
        f"{hours(account.spent)} used{reserved}, {hours(account.left)} left"
    )
    if run.checkpoints:
        newest = run.checkpoints[-1]
        lines.append(f"**Newest checkpoint** [step {newest.step}]({newest.url})")
    if run.delayed:
        lines.append(run.delayed)
    marker = f"-# P{run.project_id} · run {run.id}"
    parts: list[ui.Item[Any]] = []
    if picture:
        parts.append(ui.MediaGallery(discord.MediaGalleryItem(f"attachment://{picture}", description=_alt(run))))
    row = buttons(run)
    if row is not None:
        parts.append(row)
    return Card(texts(lines, marker), *parts, colour=colour, marker=marker)


def _measures(run: RunView) -> list[str]:
    losses = [
        f"**{name}** {value:.3f}"
        for name, value in (("Loss", run.loss), ("held-out", run.held_out), ("unigram entropy", run.unigram_entropy))
        if value is not None
    ]
    lines = [" · ".join(losses) + " nats per token"] if losses else []
    if run.rate:
        eta = "" if run.eta is None else f" · **ETA** {text.duration(run.eta)}"
        lines.append(f"**Speed** {run.rate:,.0f} tokens/s{eta}")
    return lines


def _alt(run: RunView) -> str:
    held_out = "" if run.held_out is None else f", {run.held_out:.2f} on held-out documents"
    loss = "" if run.loss is None else f", now {run.loss:.2f} nats per token"
    return f"The loss of run {run.id} over its tokens{loss}{held_out}, at step {run.step} of {run.total_steps}."
