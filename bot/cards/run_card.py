"""The card of a run."""

from collections.abc import Sequence
from typing import Any

import discord
from discord import ui

from bot import text
from bot.buttons import Button
from bot.cards import next_step
from bot.cards.card import BLUE, GREEN, GREY, ORANGE, SKY, VERMILION, Card, sections
from broker.allocations.units import heading, in_hours
from broker.reports.run_details import RunDetails
from broker.reports.why import Why
from broker.runs.kinds.kind import named
from broker.runs.runs import ENDED, RunKind, RunState, RunView

RUNS = {
    RunState.QUEUED: ("⏳", GREY, "waits for its turn"),
    RunState.STARTING: ("🛫", SKY, "is starting"),
    RunState.RUNNING: ("▶️", BLUE, "is running"),
    RunState.STOPPING: ("✋", ORANGE, "is stopping"),
    RunState.PAUSED: ("⏸️", ORANGE, "is paused"),
    RunState.FINISHED: ("🏁", GREEN, "has finished"),
    RunState.FAILED: ("❌", VERMILION, "has failed"),
    RunState.CANCELLED: ("🚫", GREY, "was cancelled"),
    RunState.TIMED_OUT: ("⏱️", ORANGE, "has used up its time limit"),
}
PAUSABLE = frozenset({RunState.QUEUED, RunState.STARTING, RunState.RUNNING})
ROUNDED_SECONDS = 900
MOST_TASKS = 5
"""Tasks whose newest values a card shows."""


def run_card(
    run: RunView,
    *,
    picture: str = "",
    why: Why | None = None,
    thread_id: str = "",
    number: int = 1,
    drawn: RunView | None = None,
    details: RunDetails | None = None,
) -> Card:
    """The card of a run, with its `details` where somebody asks for it.

    `picture` is the name of the attached file with the loss curve, which shows the run as it was in `drawn`. `why` says
    what a queued run waits for. A successor card, `number` 2 and on, links to the thread `thread_id` with the posts.
    """
    marker = _marker(run, number)
    shown: list[ui.Item[Any]] = []
    if picture:
        shown.append(
            ui.MediaGallery(discord.MediaGalleryItem(f"attachment://{picture}", description=_alt(drawn or run)))
        )
    more = [] if details is None else [_made(run, details)]
    comes = next_step.of_run(run)
    evaluated = [_evaluated(run)] if run.evaluations else []
    parts = sections(
        [_head(run, why), _progress(run), *shown, *evaluated, _costs(run, thread_id), *more, [comes]], marker
    )
    row = _buttons(run)
    return Card(*parts, *([row] if row else []), colour=RUNS[run.state][1], marker=marker)


def moved_card(run: RunView, url: str, number: int = 1) -> Card:
    """What an old card is turned into once a newer one has succeeded it: a link to the newer card."""
    lines = [
        f"### ⏩ Run {run.id} · {text.line(run.recipe, 60)}",
        f"This run has [a newer card]({url}); its posts stay in the thread of this one.",
    ]
    marker = _marker(run, number)
    return Card(*sections([lines], marker), colour=GREY, marker=marker)


def _head(run: RunView, why: Why | None) -> Sequence[str]:
    emoji, _, word = RUNS[run.state]
    waits = "queued " if run.state == RunState.QUEUED else ""
    sponsor = f", sponsored by {text.line(run.sponsor, 80)}" if run.sponsor else ""
    about = [f"{name}={value}" for name, value in run.overrides.items()]
    about = [text.line(f"with {', '.join(about)}", 200)] if about else []
    if run.parent_id is not None:
        about.append(f"{named(run.kind).of_parent} run {run.parent_id}")
    if run.sweep_id is not None:
        about.append(f"of sweep {run.sweep_id}")
    if run.attempt > 1:
        about.append(f"attempt {run.attempt}")
    if run.tags:
        about.append(text.tags(run.tags))
    return [
        f"### {emoji} {' '.join(filter(None, (f'Run {run.id}', text.run_name(run.name), word)))}",
        f"{named(run.kind).does}**{text.line(run.recipe, 60)}** · {waits}by {text.line(run.requested_by, 60)} on "
        f"{text.gpus(run.gpus, run.nodes, run.unit)} of {text.code(run.pool, 60)}{sponsor}",
        f"-# {' · '.join(about)}" if about else "",
        waits_for(why) if why is not None and run.state == RunState.QUEUED else "",
        text.local_times(text.quote(run.reason, 400)) if run.reason else "",
    ]


def waits_for(why: Why) -> str:
    """What a run waits for. The expected start is rounded up to a quarter of an hour, to spare edits of the card."""
    place = f" It is number {why.position} of {why.length} in the queue." if why.position is not None else ""
    expected = ""
    if why.expected is not None:
        at = -(-int(why.expected.timestamp()) // ROUNDED_SECONDS) * ROUNDED_SECONDS
        expected = f" It starts by <t:{at}:t> at the latest."
    return f"{text.local_times(text.line(why.reason, 300))}{place}{expected}"


def _progress(run: RunView) -> Sequence[str]:
    share = f" ({run.step * 100 // run.total_steps}%)" if run.total_steps else ""
    stage = f" · stage {run.stage} of {len(run.stages)}" if run.stages else ""
    losses = [] if run.loss is None else [f"**Loss** {run.loss:.3f}"]
    if run.held_out is not None:
        losses.append(f"**held-out** {run.held_out:.3f} at step {run.held_out_step:,}")
    speed = [f"**Speed** {run.rate:,.0f} tokens/s"] if run.rate else []
    if run.eta is not None:
        speed.append(f"**ETA** {text.duration(run.eta)}")
    if run.state in ENDED and run.started_at is not None and run.ended_at is not None:
        speed.append(f"**Took** {text.duration((run.ended_at - run.started_at).total_seconds())}")
    if not named(run.kind).trains:
        return [" · ".join(speed)]
    began = "" if run.phase_at is None else f" · began {text.when(run.phase_at, 'R')}"
    return [
        f"{text.bar(run.step, run.total_steps, 12)} step {run.step:,} of {run.total_steps:,}{share}{stage}",
        f"⚙️ **Now** {text.line(run.phase, 120)}{began}" if run.phase else "",
        " · ".join(losses),
        _explained(run.unigram_entropy) if losses else "",
        _spiked(run),
        " · ".join(speed),
    ]


def _evaluated(run: RunView) -> Sequence[str]:
    """The newest value of each of the first tasks; a model of the Hub may have no step."""
    lines = []
    for scored in run.evaluations[:MOST_TASKS]:
        step = max(scored.values)
        value, stderr = scored.values[step]
        error = "" if stderr is None else f" ±{stderr:.4f}"
        named = f"{text.code(scored.task, 60)} {text.line(scored.metric, 40)}"
        at = f" at step {step:,}" if step or run.kind != RunKind.BASELINE else ""
        lines.append(f"{named} **{value:.4f}**{error}{at}")
    more = " · and more" if len(run.evaluations) > MOST_TASKS else ""
    return [f"**Evaluations** {' · '.join(lines)}{more}"]


def _spiked(run: RunView) -> str:
    """The newest spike of the loss; nothing of one that lies ahead since the run went on from an earlier step."""
    if run.spike is None or run.spike_step is None or run.spike_step > run.step:
        return ""
    return f"📈 The loss last spiked at step {run.spike_step:,}, to {run.spike:.3f}."


def _explained(entropy: float | None) -> str:
    """The unit and the baseline of the losses, for readers who do not know them."""
    known = "" if entropy is None else f" {entropy:.3f} (unigram entropy) is what guessing by frequency alone gives;"
    return f"-# Lower is better;{known} all in nats per token."


def _costs(run: RunView, thread_id: str) -> Sequence[str]:
    account = run.account
    reserved = f", {in_hours(account.reserved)} reserved" if account.reserved else ""
    # The card of an ended run is not updated any more, while other runs draw on the same allocation.
    balance = (
        ""
        if run.state in ENDED
        else f" · its allocation of {in_hours(account.granted)}: {in_hours(account.spent)} used{reserved}, "
        f"{in_hours(account.left)} left"
    )
    lines = [f"**{heading([run.unit])}** {in_hours(run.spent)} by this run{balance}"]
    if run.checkpoints:
        newest = run.checkpoints[-1]
        lines.append(f"**Newest checkpoint** [step {newest.step}]({newest.url})")
    if run.delayed:
        lines.append(text.line(run.delayed, 300))
    if thread_id:
        lines.append(f"This card continues an older one; the run's posts are in <#{thread_id}>.")
    return lines


def _made(run: RunView, details: RunDetails) -> Sequence[str]:
    """What is known of how good the run is, how it was made and how it is loaded."""
    losses = [] if details.perplexity is None else [f"perplexity {details.perplexity:,.1f} per token"]
    losses += [] if details.bits_per_byte is None else [f"{details.bits_per_byte:.4f} bits per byte"]
    made = [] if details.mfu is None else [f"**MFU** {details.mfu:.1%}"]
    if details.loss_scale is not None:
        made.append(f"**Loss scale** {details.loss_scale:,.0f}, {_skipped(details.skipped or 0)}")
    made += [] if details.seed is None else [f"**Seed** {details.seed}"]
    made += [f"**Trainer version** {text.code(details.code_version, 80)}"] if details.code_version else []
    commits = [] if details.code_commit is None else [f"**Commit of the code** {_commit(details.code_commit)}"]
    if details.hub_commit is not None and run.checkpoints:
        commits.append(f"**Commit on the Hub** of step {run.checkpoints[-1].step:,}: {_commit(details.hub_commit)}")
    return [
        f"**Held-out** {', '.join(losses)}, at step {run.held_out_step:,}" if losses else "",
        " · ".join(made),
        " · ".join(commits),
        text.block(details.loading, 600) if details.loading else "",
    ]


def _skipped(steps: int) -> str:
    return f"{text.count(steps, 'step')} overflowed in fp16 and {'was' if steps == 1 else 'were'} skipped"


def _commit(commit: str) -> str:
    return text.code(commit, 64) if commit else "not recorded"


def _buttons(run: RunView) -> ui.ActionRow[Any] | None:
    """The buttons that fit the run's state; None for a run that does not train."""
    if not named(run.kind).trains:
        return None
    row: ui.ActionRow[Any] = ui.ActionRow()
    if run.state in PAUSABLE:
        row.add_item(Button("pause", run.id))
    elif run.state == RunState.PAUSED:
        row.add_item(Button("resume", run.id, style=discord.ButtonStyle.success))
    if run.loss is not None:
        row.add_item(Button("compare", run.id))
    row.add_item(Button("config", run.id))
    if run.checkpoints:
        row.add_item(Button("sample", run.id))
    if run.state == RunState.FAILED:
        row.add_item(Button("log", run.id))
        row.add_item(Button("rerun", run.id))
    return row


def _marker(run: RunView, number: int) -> str:
    """The marker, which differs between the cards of a run, so that one is never taken for another."""
    return f"-# P{run.project_id} · run {run.id}{f' · card {number}' if number > 1 else ''}"


def _alt(run: RunView) -> str:
    held_out = (
        "" if run.held_out is None else f", {run.held_out:.2f} on held-out documents at step {run.held_out_step:,}"
    )
    loss = "" if run.loss is None else f", now {run.loss:.2f} nats per token"
    return f"The loss of run {run.id} over its tokens{loss}{held_out}, at step {run.step} of {run.total_steps}."
