"""The story: what Ada, Grace and Rosa do on Discord, and what must come of it. Each step returns what it has seen."""

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from sqlmodel import select

from broker.allocations import allocations
from broker.runs import results, runs, series
from broker.runs.runs import RunKind, RunState, RunView
from demo.stage import Stage
from projects import projects
from projects.db.columns import utcnow
from projects.projects import Project
from projects.record import record, verification
from sandbox.patience import PATIENCE
from sandbox.people import Answer, Message

CLEARLY = 0.5  # nats per token by which the held-out loss must end below the unigram entropy


class StoryError(Exception):
    """Something did not come out as the story tells it."""


Act = Callable[[Stage, Console], Awaitable[str]]


def expect(truth: bool, otherwise: str) -> None:
    """Raise StoryError with what is wrong."""
    if not truth:
        raise StoryError(otherwise)


async def propose(stage: Stage, console: Console) -> str:
    """Ada proposes a project by its form; the proposal appears with a Join button and a thread."""
    ada = stage.person("Ada")
    form = await ada.command("project propose", channel="general")
    expect(form.kind == "modal", f"/project propose should open a form, not: {form.text or form.kind}")
    answer = await ada.submit(
        form,
        {
            "Title": "How early do small models learn to close brackets?",
            "Research question": "At which step does a small model first prefer a closing bracket?",
            "Why it matters": "What is learnt in the very first steps is seldom kept, so nobody can look at it.",
            "Who is needed": "Somebody who reads loss curves, and somebody who knows Python's grammar.",
        },
    )
    _private(answer)
    card = await stage.guild.wait_for("proposals", lambda m: "close brackets" in m.text and "Join" in m.button_labels)
    with stage.database.read() as session:
        stage.project_id = session.scalars(select(Project.id)).one()
    threads = [
        channel for channel in await stage.guild.channels() if channel.is_thread and channel.id == card.thread_id
    ]
    if not threads:
        await stage.guild.wait_for_channel(lambda c: c.is_thread and c.id == card.id)
    return "the proposal stands in #proposals with a Join button and a thread"


async def join(stage: Stage, console: Console) -> str:
    """Grace joins by the button."""
    card = await stage.guild.wait_for("proposals", lambda m: "Join" in m.button_labels)
    answer = await stage.person("Grace").press(card, "Join")
    await stage.guild.wait_for("proposals", lambda m: m.id == card.id and "Grace" in m.text)
    return answer.text


async def confirm(stage: Stage, console: Console) -> str:
    """Ada confirms Grace by the button under the post of her joining; until then Grace could start and stop nothing."""
    card = await stage.guild.wait_for("proposals", lambda m: "Join" in m.button_labels)
    post = await stage.guild.wait_for(card.thread_id or card.id, lambda m: "Confirm" in m.button_labels)
    answer = await stage.person("Ada").press(post, "Confirm")
    _private(answer)
    await stage.guild.wait_for("proposals", lambda m: m.id == card.id and "(newcomer)" not in m.text)
    return answer.text


async def scope(stage: Stage, console: Console) -> str:
    """Ada writes the scope; with two people the project gets its channel, and the proposal links to it."""
    ada = stage.person("Ada")
    with stage.database.read() as session:
        slug = projects.view(session, stage.project_id).slug
    card = await stage.guild.wait_for("proposals", lambda m: "Join" in m.button_labels)
    form = await ada.command("project scope", channel=card.id)
    await ada.submit(
        form,
        {
            "Goal": "A curve of bracket errors over the first hundred steps, for two data orders.",
            "Plan": "One run of the demo recipe with every early checkpoint kept, then look at the samples.",
            "Estimate of compute": "Less than one core-hour.",
            "What will be released": "All checkpoints, the metrics, and the order of the data.",
        },
    )
    channel = await stage.guild.wait_for_channel(lambda c: c.name == slug)
    stage.channel = channel.id
    await stage.guild.wait_for("proposals", lambda m: m.id == card.id and f"<#{channel.id}>" in m.text)
    return f"#{slug} is open, and the proposal links to it"


async def request(stage: Stage, console: Console) -> str:
    """Ada asks for compute; a review card with buttons appears."""
    ada = stage.person("Ada")
    form = await ada.command("allocation request", channel=stage.channel, pool="laptop")
    until = (utcnow() + timedelta(days=30)).date().isoformat()
    answer = await ada.submit(
        form,
        {"Core-hours": "2", "Until": until, "Justification": "One run of some minutes on two cores, and room to err."},
    )
    _private(answer)
    await _review_card(stage)
    with stage.database.read() as session:
        stage.allocation_id = allocations.of_project(session, stage.project_id)[0].id
    return answer.text


async def approve_own(stage: Stage, console: Console) -> str:
    """Ada presses Approve on her own request and is refused, privately, with the reason."""
    answer = await stage.person("Ada").press(await _review_card(stage), "Approve")
    _private(answer)
    with stage.database.read() as session:
        state = allocations.view(session, stage.allocation_id).state
    expect(state == "requested", f"the request became {state} by its own asker's click")
    return f"refused: {answer.text}"


async def approve(stage: Stage, console: Console) -> str:
    """Rosa, a reviewer, approves fewer hours with a reason; the decision is posted in the project's channel."""
    rosa = stage.person("Rosa")
    form = await rosa.press(await _review_card(stage), "Approve")
    expect(form.kind == "modal", f"Approve should open a form for a reviewer, not: {form.text or form.kind}")
    await rosa.submit(form, {"Core-hours": "1", "Reason": "One hour is plenty for this recipe; ask again for more."})
    decision = await stage.guild.wait_for(stage.channel, lambda m: "One hour is plenty" in m.text)
    return _one_line(decision)


async def launch(stage: Stage, console: Console) -> str:
    """Ada sees what a run with a time limit and one override costs and what is left, and launches it by the button."""
    ada = stage.person("Ada")
    offer = await ada.command(
        "run launch", channel=stage.channel, recipe="demo", time_limit="25m", gpus=2, override=stage.override
    )
    _private(offer)
    expect("core-hours at most" in offer.text and "left" in offer.text, f"the offer names no cost: {offer.text}")
    expect(offer.message is not None and "Launch" in offer.message.button_labels, "the offer has no button Launch")
    answer = await ada.press(offer.message or "", "Launch")
    expect(answer.ephemeral and "is queued" in answer.text, f"the run was not launched: {answer.text}")
    with stage.database.read() as session:
        stage.run_id = runs.of_project(session, stage.project_id, kind=RunKind.TRAIN)[0].id
    return answer.text


async def train(stage: Stage, console: Console) -> str:
    """The trainer trains; the run's card follows."""
    with _bar(console) as progress:
        task = progress.add_task("queued", total=None)
        seen, until = "", 0.0
        while (run := stage.run()).state not in runs.ENDED:
            loss = "" if run.loss is None else f"loss {run.loss:.2f}"
            progress.update(task, total=run.total_steps, completed=run.step, description=f"{run.state} {loss}")
            if seen != (stands := f"{run.state} at step {run.step}"):
                seen, until = stands, time.monotonic() + PATIENCE
            expect(time.monotonic() < until, f"the run is {stands} since {PATIENCE:g} s")
            await asyncio.sleep(0.5)
    expect(run.state == RunState.FINISHED, f"the run {run.state}: {run.reason}")
    with stage.database.read() as session:
        held_out = series.read(session, run.id, "held_out")
    entropy = run.unigram_entropy or 0.0
    first, last = held_out[0].value, held_out[-1].value
    expect(last < entropy - CLEARLY, f"the held-out loss {last:.2f} is not clearly below the entropy {entropy:.2f}")
    return f"held-out loss {first:.2f} → {last:.2f} nats a token; unigram entropy {entropy:.2f}"


async def card(stage: Stage, console: Console) -> str:
    """The run's card is one message, edited in place, with the curve as a picture."""
    found = await stage.guild.wait_for(
        stage.channel, lambda m: bool(m.attachments) and "finished" in m.text.lower() and m.edits > 0
    )
    pictures = [m for m in await stage.guild.messages(stage.channel) if m.attachments]
    expect(len(pictures) == 1, f"{len(pictures)} messages in the channel carry a picture, not one")
    return f"one message, edited {found.edits} times, its curve in {found.attachments[0].path}"


async def checkpoints(stage: Stage, console: Console) -> str:
    """Every checkpoint is a branch, with its link in the run's thread; the run's card links the last one."""
    until = time.monotonic() + PATIENCE
    while True:
        run = stage.run()
        if run.checkpoints and run.checkpoints[-1].step == run.total_steps:
            break
        expect(time.monotonic() < until, f"the last checkpoint is not published: {[c.step for c in run.checkpoints]}")
        await asyncio.sleep(0.5)
    steps = [checkpoint.step for checkpoint in run.checkpoints]
    expect(steps[:4] == [0, 1, 2, 4], f"the schedule should begin 0, 1, 2, 4, not {steps[:4]}")
    stage.repo = run.checkpoints[0].url.removeprefix(stage.guild.info["hub"] + "/").rsplit("/tree/", 1)[0]
    stage.branches = [f"step{step}" for step in steps]
    last = run.checkpoints[-1].url
    run_card = await stage.guild.wait_for(stage.channel, lambda m: bool(m.attachments) and last in m.text)
    thread = run_card.thread_id or run_card.id
    await stage.guild.wait_for(thread, lambda m: last in m.text)
    told = [m.text for m in await stage.guild.messages(thread)]
    for checkpoint in run.checkpoints:
        expect(
            sum(f"({checkpoint.url})" in text for text in told) == 1,
            f"the thread should link step {checkpoint.step} once",
        )
    return f"{len(steps)} branches of {stage.repo}: {', '.join(map(str, steps))}"


async def open_checkpoints(stage: Stage, console: Console) -> str:
    """transformers opens each branch, with the trainer's own logits."""
    environment = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    environment |= {"HOME": str(stage.home), "HF_HOME": str(stage.home / "hf"), "HF_ENDPOINT": stage.guild.info["hub"]}
    command = [sys.executable, "-m", "demo.verify", stage.repo, *stage.branches]
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    errors = asyncio.create_task(process.stderr.read())
    said = ""
    with _bar(console) as progress:
        task = progress.add_task("loading transformers", total=len(stage.branches))
        async for line in process.stdout:
            said = line.decode().strip()
            branch, told, _ = said.partition(": ")
            if told:
                progress.update(task, advance=1, description=f"opened {branch}")
    err = await errors
    expect(await process.wait() == 0, err.decode().strip().splitlines()[-1] if err else "demo.verify failed")
    return said


async def sample(stage: Stage, console: Console) -> str:
    """A short text sampled from the last checkpoint is posted, and was charged like a run."""
    until = time.monotonic() + PATIENCE
    while True:
        with stage.database.read() as session:
            samples = runs.of_project(session, stage.project_id, kind=RunKind.SAMPLE)
        if samples and samples[0].state in runs.ENDED:
            break
        expect(time.monotonic() < until, "no sample was drawn")
        await asyncio.sleep(0.5)
    expect(samples[0].state == RunState.FINISHED, f"the sample {samples[0].state}: {samples[0].reason}")
    expect(samples[0].spent > 0, "the sample was not charged")
    post = await stage.guild.wait_for(stage.channel, lambda m: f"**Sample 1 of run {stage.run_id}**" in m.text)
    return f"{samples[0].spent} core-seconds; {_one_line(post)}"


async def evaluate(stage: Stage, console: Console) -> str:
    """Ada has the first and the last checkpoint evaluated on what the run kept out of its training: a run of its own,
    whose results are posted and stay on the card of the run."""
    first, last = (stage.run().checkpoints[number].step for number in (0, -1))
    picture = (await stage.guild.wait_for(stage.channel, lambda m: bool(m.attachments))).attachments[0].path
    answer = await stage.person("Ada").command(
        "run evaluate",
        channel=stage.channel,
        run=stage.run_id,
        tasks="heldout",
        steps=f"{first} {last}",
        time_limit="15m",
    )
    _private(answer)
    expect("is queued" in answer.text, f"the evaluation was not launched: {answer.text}")
    evaluation = await _ended(stage, RunKind.EVALUATE)
    scored = next(scored for scored in stage.run().evaluations if scored.metric == "bits_per_byte")
    before, after = scored.values[first][0], scored.values[last][0]
    expect(after < before, f"{scored.task} went from {before:.2f} to {after:.2f} bits per byte")
    title = f"**Evaluation 1 of run {stage.run_id} "
    await stage.guild.wait_for(stage.channel, lambda m: title in m.text)
    await stage.guild.wait_for(
        stage.channel,
        lambda m: "**Evaluations**" in m.text and bool(m.attachments) and m.attachments[0].path != picture,
    )
    return f"{scored.task}: {before:.2f} → {after:.2f} bits per byte; {evaluation.spent} core-seconds"


async def study(stage: Stage, console: Console) -> str:
    """Ada asks all checkpoints which bracket they prefer to close with: a study, whose numbers answer the project's
    question."""
    answer = await stage.person("Ada").command(
        "study start", channel=stage.channel, run=stage.run_id, analyses="paired_prompts", time_limit="15m"
    )
    _private(answer)
    expect("is queued" in answer.text, f"the study was not launched: {answer.text}")
    done = await _ended(stage, RunKind.STUDY)
    with stage.database.read() as session:
        measured = results.measured_by(session, done.id)
    shares = next(scored.values for scored in measured if scored.metric == "preferred")
    stage.study = {step: (share, stderr or 0.0) for step, (share, stderr) in shares.items()}
    expect(list(stage.study) == [link.step for link in stage.run().checkpoints], f"it measured {list(stage.study)}")
    title = f"**Study 1 of run {stage.run_id} "
    await stage.guild.wait_for(stage.channel, lambda m: title in m.text)
    shown = await stage.person("Ada").command("study show", channel=stage.channel, study=done.id)
    expect(shown.message is not None and bool(shown.message.attachments), "the study has no picture")
    assert shown.message is not None
    stage.figure = str(shown.message.attachments[0].path)
    return f"{_learnt(stage)} Its picture is {stage.figure}"


def _learnt(stage: Stage) -> str:
    """The answer to the project's question: the step from which on more than half of the pairs, by two standard errors,
    have their right bracket preferred."""
    beyond: list[int] = []
    for step, (share, stderr) in stage.study.items():
        beyond = [*beyond, step] if share - 2 * stderr > 0.5 else []
    last, (share, _) = max(stage.study.items())
    ends = f"at step {last} it prefers the right one in {share:.0%} of the pairs"
    if not beyond:
        return f"Up to step {last} this model does not tell closing brackets apart: {ends}."
    return f"It tells closing brackets apart from step {min(beyond)} on: {ends}."


async def _ended(stage: Stage, kind: RunKind) -> RunView:
    """The only run of a kind, once it has finished."""
    until = time.monotonic() + PATIENCE
    while True:
        with stage.database.read() as session:
            [run] = runs.of_project(session, stage.project_id, kind=kind)
        if run.state in runs.ENDED:
            break
        expect(time.monotonic() < until, f"run {run.id} is {run.state} since {PATIENCE:g} s")
        await asyncio.sleep(0.5)
    expect(run.state == RunState.FINISHED, f"run {run.id} {run.state}: {run.reason}")
    return run


async def ledger(stage: Stage, console: Console) -> str:
    """The ledger adds up."""
    answer = await stage.person("Grace").command(
        "allocation show", channel=stage.channel, allocation=stage.allocation_id
    )
    _private(answer)
    with stage.database.read() as session:
        account = allocations.view(session, stage.allocation_id).account
    expect(account.reserved == 0, f"{account.reserved} core-seconds are still reserved")
    expect(account.spent > 0, "nothing was spent")
    return f"granted {account.granted:,}, reserved 0, spent {account.spent:,}, left {account.left:,} core-seconds"


async def complete(stage: Stage, console: Console) -> str:
    """Ada completes the project with its outcome; the whole server is told, with its people and its checkpoints, and
    what is left of the allocation returns to its grant."""
    ada = stage.person("Ada")
    form = await ada.agree(await ada.command("project complete", channel=stage.channel))
    learnt = _learnt(stage) if stage.study else "No study was made of the checkpoints."
    await ada.submit(form, {"Outcome": "Negative result", "What was learnt": learnt})
    told = await stage.guild.wait_for("announcements", lambda m: learnt in m.text)
    for word in ("Ada", "Grace", stage.repo):
        expect(word in told.text, f"the announcement does not name {word}")
    await stage.guild.wait_for(stage.channel, lambda m: "is no longer needed and returns" in m.text)
    return _one_line(told)


async def verify(stage: Stage, console: Console) -> str:
    """The chains of the record are whole, and every entry has been posted."""
    with stage.database.read() as session:
        verdicts = [verification.verify(session, stream) for stream in record.streams(session)]
    broken = [verdict for verdict in verdicts if not verdict.ok]
    expect(not broken, f"a chain is broken: {broken}")
    until = time.monotonic() + PATIENCE
    for verdict in verdicts:
        whose = "Lab" if verdict.stream == record.LAB else f"P{stage.project_id}"
        while not await _is_posted(stage, f"{whose} · record {verdict.entries} ·"):
            expect(time.monotonic() < until, f"entry {verdict.entries} of {verdict.stream} was not posted")
            await asyncio.sleep(0.5)
    return f"{sum(verdict.entries for verdict in verdicts)} entries in {len(verdicts)} chains, all whole"


async def _is_posted(stage: Stage, marker: str) -> bool:
    """Whether a message in any channel has this marker of an entry."""
    channels = await stage.guild.channels()
    told = [message.text for channel in channels for message in await stage.guild.messages(channel.id)]
    return any(marker in text for text in told)


STORY: tuple[tuple[str, Act], ...] = (
    ("Ada proposes a project", propose),
    ("Grace joins by the button", join),
    ("Ada confirms her", confirm),
    ("the scope opens the project's channel", scope),
    ("Ada asks for compute", request),
    ("Ada may not approve her own request", approve_own),
    ("Rosa approves fewer hours", approve),
    ("Ada launches a run", launch),
    ("the trainer trains", train),
    ("the run's card followed", card),
    ("the checkpoints are on the Hub", checkpoints),
    ("transformers opens them with the trainer's logits", open_checkpoints),
    ("a sample is posted", sample),
    ("the first and the last checkpoint are evaluated", evaluate),
    ("a study asks all checkpoints which bracket closes", study),
    ("the ledger adds up", ledger),
    ("the project is completed and announced", complete),
    ("the record is whole", verify),
)


def _bar(console: Console) -> Progress:
    """A bar with its count, the time taken and the time left, in a terminal alone."""
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    left = (TextColumn("· left"), TimeRemainingColumn())
    return Progress(*columns, *left, console=console, transient=True, disable=not console.is_terminal)


async def _review_card(stage: Stage) -> Message:
    return await stage.guild.wait_for("compute-review", lambda m: "Approve" in m.button_labels)


def _private(answer: Answer) -> None:
    expect(answer.kind == "message" and answer.ephemeral, f"a private answer was expected, not {answer.kind}")


def _one_line(message: Message) -> str:
    line = " ".join(message.text.split())
    return line if len(line) < 160 else f"{line[:159]}…"
