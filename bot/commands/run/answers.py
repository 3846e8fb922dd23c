"""Private answers about runs: offers of a launch, receipts, waits, configurations and logs."""

import io
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import discord
from discord import ui
from rich import filesize

from bot import errors, text
from bot.app import Interaction
from bot.buttons import Button
from bot.cards.card import BLUE, GREEN, GREY, Card, sections, texts
from bot.tables import DiscordChannel
from broker.allocations.units import in_hours
from broker.reports.run_plan import Preview
from broker.reports.why import Why
from broker.runs import runs
from broker.runs.kinds.kind import kind_of
from broker.runs.launching import Quote, Receipt
from broker.runs.logs import Log
from broker.runs.readings import OFTEN
from broker.runs.runs import RunView
from projects.db.columns import utcnow
from projects.errors import ConflictError

GOES_ON = "**Next** Its card in the channel or thread shows how it goes; `/run why` says what it waits for."
GOES_ON_WITHOUT_CARD = "**Next** `/run show` shows how it goes; `/run why` says what it waits for."
ATTEMPTS_SHOWN = 6
READINGS_SHOWN = 3
TASKS_SHOWN = 6
CODE = 1900


async def show(interaction: Interaction, card: Card, *files: discord.File) -> None:
    """Complete a deferred answer with a card and the pictures that it shows."""

    async def send() -> None:
        for file in files:
            file.reset()
        await interaction.edit_original_response(view=card, attachments=list(files))

    await errors.again(send)


async def attach(interaction: Interaction, said: str, name: str, content: str) -> None:
    """Complete a deferred answer with a text file."""
    file = discord.File(io.BytesIO(content.encode()), name)
    await interaction.edit_original_response(content=text.bounded(said, text.MESSAGE), attachments=[file])


def offer(preview: Preview) -> Card:
    """The offer of a launch: what it would do and cost, with the buttons that launch or discard it."""
    quote, run, unit = preview.quote, preview.quote.run, preview.quote.pool.unit
    what = text.line(run.recipe, 60)
    if run.parent_id is not None:
        what = f"a fork of run {run.parent_id} from step {run.fork_step:,}"
    first = run.fork_step or 0
    steps = text.count(run.total_steps - first, "step")
    if first:
        steps = f"the {steps} from {first:,} to {run.total_steps:,}"
    asks = [
        f"### 🚀 Launch {what} on {text.gpus(run.gpus, quote.nodes, unit)} of {text.code(quote.pool.name, 60)}?",
        f"With {text.line(', '.join(f'{k}={v}' for k, v in run.overrides.items()), 300)}" if run.overrides else "",
        " · ".join(filter(None, (text.run_name(run.name), text.tags(run.tags.split())))),
        f"{short(quote.parameters)} parameters · {short(quote.tokens)} tokens in {steps} · "
        f"about {quote.memory_needed} of memory for each {unit.value}",
        *(f"**Stage {stage.number}** {text.line(str(stage), 200)}" for stage in quote.stages),
        *_reads(quote),
        *copies(quote),
        *_evaluated(quote),
        *_afresh(quote),
    ]
    known = "not known" if quote.expected is None else f"about {unit.hours(quote.expected)}"
    costs = [
        f"**Cost** {unit.hours(quote.cost)} at most, in {text.duration(run.time_limit)}",
        f"**Expected** {known}: {text.line(quote.basis, 200)}",
        f"**Left** allocation {run.allocation_id} has {unit.hours(quote.left)} left, and "
        f"{in_hours(max(0, quote.left - quote.promised - quote.cost))} should this run "
        f"{'and those queued take all their' if quote.promised else 'take all its'} time",
        _too_short(quote, first),
    ]
    queue = [
        f"**Queue** place {preview.queue.position} of {preview.queue.length}. "
        f"{text.local_times(text.line(preview.queue.reason, 300))} "
        f"{starts(preview.queue.expected)}",
    ]
    row: ui.ActionRow[Any] = ui.ActionRow(
        Button("launch", preview.plan_id, style=discord.ButtonStyle.success),
        Button("discard", preview.plan_id, label="Cancel"),
    )
    marker = "-# Nothing is queued or charged before you press Launch."
    return Card(*sections([asks, costs, queue], marker), row, colour=BLUE, marker=marker)


def _reads(quote: Quote) -> list[str]:
    """What the run reads of its pool's corpora, and a warning where it reads one of them too often."""
    if not quote.reads:
        return []
    listed = [text.line(str(reading), 120) for reading in quote.reads[:READINGS_SHOWN]]
    others = len(quote.reads) - len(listed)
    said = [f"**Data** reads {', '.join(listed)}{f' and of {others} more corpora less often' if others else ''}"]
    often = [reading for reading in quote.reads if reading.is_often]
    if often:
        what = text.line(often[0].corpus, 64) if len(often) == 1 else f"{len(often)} corpora"
        said.append(f"⚠️ **Data** It reads {what} more than {OFTEN:g} times: repeated data lose their value")
    return said


def _evaluated(quote: Quote) -> list[str]:
    """Which of its checkpoints are evaluated as they come, and who pays."""
    if quote.evaluated is None:
        return []
    tasks = ", ".join(text.code(task, 60) for task in quote.evaluated.tasks[:TASKS_SHOWN])
    more = len(quote.evaluated.tasks) - TASKS_SHOWN
    also = f" and {more} more" if more > 0 else ""
    which = text.each_checkpoint(quote.evaluated.every)
    return [f"**Evaluation** {which} is given {tasks}{also}, in runs of their own, which cost extra"]


def _afresh(quote: Quote) -> list[str]:
    """A warning where a fork goes on without its parent's optimizer state."""
    if not quote.is_afresh:
        return []
    return [f"⚠️ **Optimizer** Step {quote.run.fork_step:,} is on the Hub without its state, so Adam begins afresh"]


def copies(quote: Quote) -> list[str]:
    """What is copied to the pool before the run begins."""
    if not quote.copies:
        return []
    listed = [text.line(name, 64) for name in quote.copies]
    names = ", ".join(listed[:READINGS_SHOWN])
    if others := len(listed) - READINGS_SHOWN if len(listed) > READINGS_SHOWN else 0:
        names += f" and {others} more"
    return [f"**Data** copied from the store first: {names}, {filesize.decimal(sum(quote.copies.values()))}"]


def _too_short(quote: Quote, first: int) -> str:
    """A warning where the time limit is expected to end a run from step `first` before it writes a checkpoint."""
    if not quote.too_short:
        return ""
    return (
        f"⚠️ **Time limit** It is expected to end the run before its first checkpoint after step {first:,}, which is "
        f"due at step {quote.saves_at:,}, after about {text.duration(quote.saves_after or 0)}"
    )


def launched(receipt: Receipt) -> Card:
    """The card that replaces an offer once it is launched."""
    marker = f"-# run {receipt.run_id}"
    head, _, costs = told(receipt).partition(". ")
    return Card(texts([f"### 🚀 {head}", costs, GOES_ON], marker), colour=GREEN, marker=marker)


def resumed(receipt: Receipt, run: runs.Run) -> str:
    """The answer to whoever resumes a run. A run of a sweep, and a sample, has no card of its own."""
    has_card = run.sweep_id is None and kind_of(run).has_card
    return f"{told(receipt)}\n{GOES_ON if has_card else GOES_ON_WITHOUT_CARD}"


def reads(receipt: Receipt, what: str, run_id: int) -> str:
    """The answer to whoever launches an evaluation or a study of a run, or a program on it."""
    stay = "" if what == "a program" else " and stay on its card"
    return (
        f"Run {receipt.run_id}, {what} {'on' if what == 'a program' else 'of'} run {run_id}, is queued; its results "
        f"are posted in the thread of run {run_id}{stay}. It will cost {receipt.unit.hours(receipt.cost)} at most. "
        f"{remains(receipt)}"
    )


def evaluates(receipt: Receipt, model: str) -> str:
    """The answer to whoever has a model of the Hub evaluated."""
    return (
        f"Run {receipt.run_id} will evaluate {text.code(model, 120)}; its results are posted in its thread and stay on "
        f"its card. It will cost {receipt.unit.hours(receipt.cost)} at most. {remains(receipt)}"
    )


def discarded() -> Card:
    """The card that replaces an offer once it is discarded."""
    marker = "-# Nothing was queued or charged."
    return Card(texts(["### ✋ Not launched"], marker), colour=GREY, marker=marker)


def told(receipt: Receipt) -> str:
    """What a queued run may cost, and what its allocation has left."""
    expected = "" if receipt.expected is None else f", about {receipt.unit.hours(receipt.expected)} as {receipt.basis}"
    cost = f"{receipt.unit.hours(receipt.cost)} at most{expected}"
    return f"Run {receipt.run_id} is queued. It will cost {cost}. {remains(receipt)}"


def remains(receipt: Receipt) -> str:
    """What the allocation has left now, and after all of its queued runs, which have reserved nothing yet."""
    after = in_hours(max(0, receipt.left - receipt.promised))
    then = f", and {after} should its queued runs take all their time" if receipt.promised else ""
    return f"The allocation has {receipt.unit.hours(receipt.left)} left{then}."


def listed(run: RunView, threads: Mapping[str, DiscordChannel]) -> str:
    """A run in the list of a project's newest: its state, losses and hours, and a link to its thread or its sweep's."""
    losses = [] if run.loss is None else [f"loss {run.loss:.3f}"]
    losses += [] if run.held_out is None else [f"held-out {run.held_out:.3f} at step {run.held_out_step:,}"]
    sweep = [] if run.sweep_id is None else [f"sweep {run.sweep_id}"]
    thread = threads.get(f"run:{run.id}" if run.sweep_id is None else f"sweep:{run.sweep_id}")
    link = [f"<#{thread.channel_id}>"] if thread is not None and thread.channel_id and not thread.gone else []
    steps = f"step {run.step:,} of {run.total_steps:,}"
    about = [run.state, steps, *losses, run.unit.hours(run.spent), text.line(run.requested_by, 60), *sweep, *link]
    tags = [text.tags(run.tags)] if run.tags else []
    named = " ".join(filter(None, (f"**{run.id}**", text.run_name(run.name), text.code(run.recipe, 60))))
    return f"{named} · {' · '.join([*about, *tags])}"


def named(run: runs.Run) -> str:
    """What a run is called now."""
    return f"Run {run.id} {text.named_now(run.name, run.tags.split())}."


def waits(why: Why) -> str:
    """Why a run is in its state, and when a queued one starts."""
    then = f"was {why.state} at the decision of {text.when(why.decided_at)}" if why.decided_at else f"is {why.state}"
    reason = text.local_times(text.escape(why.reason))
    lines = [f"**Run {why.run_id}** of {text.line(why.project, 100)} {then}. {reason}".rstrip()]
    if why.position is not None:
        lines.append(f"**Place** {why.position} of {why.length} on {text.code(why.pool, 60)}")
    if why.factors is not None:
        project, group = why.factors.project, why.factors.group
        if group is not None:
            sponsor = text.line(why.factors.sponsor, 60)
            whose = f"the projects of {sponsor}" if sponsor else "the projects that are no sponsor's own"
            lines.append(
                f"**Group** {whose} recently used {group.used:.0%} of this pool's time; their share of it is "
                f"{group.share:.0%}: the group that has used less of its share goes first"
            )
        lines.append(
            f"**Turn** its project is number {project.rank} of {project.of} by fair-share, where who has used less of "
            f"its share goes first: it recently used {project.used:.0%} of what all projects used, and its share is "
            f"{project.share:.0%}. The run {'has' if why.decided_at is None else 'had'} waited "
            f"{text.duration(why.factors.age)}"
        )
        if why.decided_at is None:
            lines.append(starts(why.expected))
        elif why.expected is not None:
            lines.append(f"It was expected to start by {text.when(why.expected)}.")
    return "\n".join(lines)


def configured(run: runs.Run) -> str:
    """The text above the attached configuration. Raises ConflictError where the run has none."""
    if not run.config:
        raise ConflictError(f"{kind_of(run).what_it_is(run)}, whose configuration it uses.")
    if not kind_of(run).reads_corpora:
        what = text.line(kind_of(run).what_it_is(run).removeprefix(f"Run {run.id} "), 200)
        return f"**Run {run.id}** {what}; what it does is in the file."
    changed = text.line(", ".join(f"{name}={value}" for name, value in run.overrides.items()), 300)
    asked = f" with {changed}" if changed else ""
    return f"**Run {run.id}** · recipe {text.code(run.recipe, 60)}{asked}. Every default is spelt out in the file."


def logged(log: Log) -> str:
    """A run's attempts and the last lines of its log."""
    if not log.attempts:
        return f"Run {log.run_id} has not been tried yet; /run why says what it waits for."
    lines = [f"**Attempts of run {log.run_id}**"]
    lines += [
        f"**{tried.token}** {tried.state} · {log.unit.hours(tried.spent)}"
        + (f" · on {text.line(tried.host, 60)}" if tried.host else "")
        + (f" · {text.local_times(text.line(tried.reason, 160))}" if tried.reason else "")
        for tried in log.attempts[-ATTEMPTS_SHOWN:]
    ]
    if log.lines is None and log.store:
        lines.append(f"Its log lies on another machine than the bot, and {text.line(log.store, 160)}; ask again later.")
        return "\n".join(lines)
    if log.lines is None:
        lines.append("Its log lies on another machine than the bot, or is tidied away; this is all that is recorded.")
        return "\n".join(lines)
    lines.append(f"**The last lines of attempt {log.of_attempt}'s log**")
    said = "\n".join(lines)
    return f"{said}\n{_block(log.lines, CODE - text.length(said))}"


def short(number: int) -> str:
    """A large number with three significant figures: 1.31M, 410k, 950."""
    for size, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def starts(expected: datetime | None) -> str:
    """A sentence that says when a queued run starts at the latest: if all runs before it use all their time."""
    if expected is None:
        return "Its start time is unknown."
    seconds = (expected - utcnow()).total_seconds()
    if seconds < 1:
        return "It starts at once."
    return f"It starts within {'a minute' if seconds < 60 else text.duration(seconds)} at the latest."


def _block(lines: Sequence[str], most: int) -> str:
    """As many of the last lines as fit in `most` characters, as a block of code."""
    kept: list[str] = []
    room = most - len("```\n\n```")
    for line in reversed(lines):
        shown = text.bounded(line.replace("```", "ˋˋˋ"), 200)
        room -= text.length(shown) + 1
        if room < 0:
            break
        kept.append(shown)
    return "```\n" + "\n".join(reversed(kept)) + "\n```" if kept else "It is empty."
