"""The card of a sweep: a table of its runs, with the picture of their losses."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import discord
from discord import ui

from bot import text
from bot.buttons import Button
from bot.cards import next_step
from bot.cards.card import GREEN, GREY, Card, sections
from bot.cards.run_card import PAUSABLE, RUNS, waits_for
from broker.allocations.units import heading, in_hours
from broker.reports.why import Why
from broker.runs.runs import ENDED, RunState, RunView
from broker.runs.sweeps import SweepView

TABLE = 2900
"""The most characters of the table."""
GROUPS = 8
"""The most means over seeds."""


def sweep_card(
    sweep: SweepView,
    *,
    picture: str = "",
    why: Why | None = None,
    thread_id: str = "",
    number: int = 1,
    drawn: SweepView | None = None,
) -> Card:
    """The card of a sweep.

    `picture` is the name of the attached file with the losses, which shows the sweep as it was in `drawn`. `why` says
    what its first queued run waits for. A successor card, `number` 2 and on, links to the thread `thread_id`.
    """
    marker = _marker(sweep, number)
    blocks: list[Sequence[str] | ui.Item[Any]] = [_head(sweep, why), [table(sweep)], _over_seeds(sweep)]
    if picture:
        described = discord.MediaGalleryItem(f"attachment://{picture}", description=alt(drawn or sweep))
        blocks.append(ui.MediaGallery(described))
    blocks += [_costs(sweep, thread_id), [next_step.of_sweep(sweep)]]
    row = _buttons(sweep)
    colour = GREEN if sweep.state == RunState.FINISHED else RUNS[sweep.state][1]
    return Card(*sections(blocks, marker), *([row] if row.children else []), colour=colour, marker=marker)


def moved_sweep_card(sweep: SweepView, url: str, number: int = 1) -> Card:
    """What an old card is turned into once a newer one has succeeded it: a link to the newer card."""
    lines = [
        f"### ⏩ Sweep {sweep.id} · {text.line(sweep.recipe, 60)}",
        f"This sweep has [a newer card]({url}); its posts stay in the thread of this one.",
    ]
    marker = _marker(sweep, number)
    return Card(*sections([lines], marker), colour=GREY, marker=marker)


def table(sweep: SweepView) -> str:
    """A line for each run: its state, number, point, step and losses, with the best one marked."""
    best = sweep.best
    columns = f"-# run · {text.line(' · '.join(sweep.swept), 200)} · step of {sweep.runs[0].total_steps:,} · loss"
    if len({run.total_steps for run in sweep.runs}) > 1:
        columns = columns.replace(f" of {sweep.runs[0].total_steps:,}", "")
    if any(run.held_out is not None for run in sweep.runs):
        columns += " · held-out"
    rows = [_row(sweep, run, best) for run in sweep.runs]
    return f"{columns}\n{text.listed(rows, most=TABLE)}"


def alt(sweep: SweepView) -> str:
    """What the picture shows, in words."""
    best = sweep.best
    leads = "" if best is None else f"; run {best.id} ({sweep.named(best)}) is the best"
    measured = sum(run.loss is not None for run in sweep.runs)
    return text.bounded(
        f"The losses of {measured} of the {len(sweep.runs)} runs of sweep {sweep.id} over their tokens, nats per "
        f"token{leads}.",
        1000,
    )


def _row(sweep: SweepView, run: RunView, best: RunView | None) -> str:
    losses = "".join(f" · {value:.3f}" for value in (run.loss, run.held_out) if value is not None)
    mark = " 🏆" if best is not None and run.id == best.id else ""
    return f"{RUNS[run.state][0]} **{run.id}** {text.code(sweep.point(run), 60)} · {run.step:,}{losses}{mark}"


def _head(sweep: SweepView, why: Why | None) -> Sequence[str]:
    over = sweep.state == RunState.FINISHED
    emoji, _, word = RUNS[sweep.state]
    first = sweep.runs[0]
    sponsor = f", sponsored by {text.line(first.sponsor, 80)}" if first.sponsor else ""
    shared = ", ".join(f"{name}={value}" for name, value in sweep.overrides.items())
    counts = Counter(run.state for run in sweep.runs)
    return [
        f"### {emoji} Sweep {sweep.id} {'is over' if over else word}",
        f"**{text.line(sweep.recipe, 60)}** · {len(sweep.runs)} runs by {text.line(sweep.requested_by, 60)}, each on "
        f"{text.gpus(sweep.gpus, first.nodes, sweep.unit)} of {text.code(first.pool, 60)}{sponsor}",
        f"-# {text.line(f'all with {shared}', 200)}" if shared else "",
        " · ".join(f"{counts[state]} {state}" for state in RunState if counts[state]),
        waits_for(why) if why is not None else "",
    ]


def _over_seeds(sweep: SweepView) -> Sequence[str]:
    """The mean loss of each point over its seeds, the lowest first; empty unless seeds are swept beside others."""
    means = sweep.over_seeds()
    if not means:
        return []
    lines = [
        f"{text.code(each.point, 60)} **{each.mean:.3f}** ± {each.deviation:.3f} ({each.seeds} seeds)"
        for each in means[:GROUPS]
    ]
    return [f"**Over seeds** {means[0].measure}, mean ± standard deviation", *lines]


def _costs(sweep: SweepView, thread_id: str) -> Sequence[str]:
    account, most = sweep.account, sum(run.gpus * run.time_limit for run in sweep.runs)
    balance = (
        ""
        if sweep.state in ENDED
        else f" · its allocation of {in_hours(account.granted)}: {in_hours(account.spent)} used, "
        f"{in_hours(account.left)} left"
    )
    lines = [f"**{heading([sweep.unit])}** {in_hours(sweep.spent)} of {in_hours(most)} at most by this sweep{balance}"]
    best = sweep.best
    if best is not None:
        newest = best.checkpoints[-1] if best.checkpoints else None
        link = "" if newest is None else f" · checkpoint of [step {newest.step}]({newest.url})"
        so_far = "" if sweep.state in ENDED else " so far"
        lines.append(f"🏆 **Best{so_far}** run {best.id}, {text.line(sweep.named(best), 200)}{link}")
    if thread_id:
        lines.append(f"This card continues an older one; the sweep's posts are in <#{thread_id}>.")
    return lines


def _buttons(sweep: SweepView) -> ui.ActionRow[Any]:
    """The buttons that fit the states of its runs."""
    row: ui.ActionRow[Any] = ui.ActionRow()
    states = {run.state for run in sweep.runs}
    if states & PAUSABLE:
        row.add_item(Button("pause_sweep", sweep.id, label="Pause all"))
    if RunState.PAUSED in states:
        row.add_item(Button("resume_sweep", sweep.id, label="Resume all", style=discord.ButtonStyle.success))
    return row


def _marker(sweep: SweepView, number: int) -> str:
    """The marker, which differs between the cards of a sweep, so that one is never taken for another."""
    return f"-# P{sweep.project_id} · sweep {sweep.id}{f' · card {number}' if number > 1 else ''}"
