"""Everything that a person does to runs: offered and launched, paused and resumed, forked, looked at, compared."""

import asyncio
import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from bot import text
from bot.commands.run import answers
from broker import catalogue, configs
from broker.allocations import corpora, pools
from broker.end_reasons import EndReason
from broker.publications import Publication, Repository
from broker.reports import run_plan, why
from broker.reports.run_plan import RunPlan
from broker.runners.processes import Process
from broker.runs import attempts, control, folders, leases, results, runs, settlement
from broker.runs.progress import Checkpoint, Ending, Progress, Result
from broker.runs.runs import RunKind, RunState
from broker.runs.series import Measured
from projects import membership
from projects.db.columns import utcnow
from projects.record import record, redaction
from projects.settings import Settings
from sandbox.people import Answer, Channel, Message
from tests.bot.conftest import Lab, has
from tests.patience import PATIENCE, until
from tests.trainer.conftest import write_config
from trainer import contract
from trainer.config import dump, load
from trainer.data import prepare, show

pytestmark = pytest.mark.asyncio(loop_scope="module")

Shared = tuple[Lab, Channel]


def progress(first: int, last: int, checkpoints: tuple[int, ...] = (), at: float = 9.0) -> Progress:
    """What a trainer reports from one step to another."""
    points = [Measured("loss", step, step * 1000, at - step / 10) for step in range(first, last + 1)]
    points += [Measured("tokens_per_second", last, last * 1000, 500.0), Measured("held_out", last, last * 1000, 6.5)]
    kept = [Checkpoint(step, f"/nowhere/attempt-1/checkpoints/step{step}") for step in checkpoints]
    return Progress(0, 0, step=last, tokens=last * 1000, unigram_entropy=7.25, points=points, checkpoints=kept)


def publish(session: Session, run: int, step: int) -> None:
    """A checkpoint is on the Hub."""
    session.add(Repository(run_id=run, name="lab/ours", private=False))
    session.get_one(Publication, (run, step)).url = f"https://hub.example.org/lab/ours/tree/step{step}"


PICTURE = b"\x89PNG\r\n\x1a\n"
PROGRAM = """\
repository: https://example.org/autoencoder
commit: 0123456789abcdef0123456789abcdef01234567
command: [python, train.py, "{checkpoint}", "{latents}"]
parameters: {latents: {type: integer, default: 8, least: 1, most: 64}}
time_limit: 6m
"""


def start(lab: Lab, run: int, *devices: int) -> int:
    """The token of an attempt of the run that runs."""
    token: int = lab.call(attempts.admit, run, devices or (0,))
    lab.call(leases.claim, run, token, host="here", lease_seconds=600)
    lab.call(leases.started, run, token, Process("here", "boot", 1, 1), [], lease_seconds=600)
    return token


async def launched(lab: Lab, channel: Channel, **options: object) -> int:
    """The number of a run that Ada has launched and confirmed."""
    answer = await lab.launch(channel, **options)
    assert "is queued" in answer.text
    return int(answer.text.split("Run ")[1].split()[0])


async def card_of(lab: Lab, channel: Channel, run: int, *words: str) -> Message:
    """The run's card once it has these words and buttons."""
    card = await lab.guild.wait_for(
        channel.id,
        lambda m: (
            m.text.endswith(f"· run {run}")
            and bool(m.thread_id)
            and all(w in m.text or w in m.button_labels for w in words)
        ),
    )
    # The bot knows the thread as the run's a moment after everybody sees it.
    await lab.guild.wait_for(card.thread_id or "", lambda m: True)
    return card


def said(answer: Answer) -> str:
    """The words of one private answer."""
    assert answer.ephemeral
    assert answer.kind == "message"
    assert not answer.followups
    return answer.text.replace("\\", "")


async def test_a_launch_is_offered_with_its_cost_and_confirmed_once(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    ada = lab.person("Ada")
    given: dict[str, Any] = {"recipe": "demo", "time_limit": "10m", "gpus": 2, "steps": 40, "override": "seed=7"}
    given |= {"evaluate": "heldout, arc_easy every 4"}
    heads = lab.heads()
    offer = await ada.command("run launch", channel=channel.id, dataset="python-docs", **given)
    assert offer.message is not None
    assert offer.ephemeral
    for words in (
        "Launch demo on 2 cores of `local`?",
        "With steps=40, seed=7",
        "**Cost** 0.333 core-hours at most, in 10 min",
        "allocation 1 has 1 core-hour left, and 0.667 should this run take all its time",
        "place 1 of 1. Nothing holds it up. It starts at once.",
        "81.9k tokens in 40 steps",
        "MiB of memory for each core",
        "**Evaluation** One in 4 checkpoints is given `heldout`, `arc_easy`, in runs of their own, which cost extra",
    ):
        assert words in offer.text.replace("\\", "")
    assert offer.message.button_labels == ["Launch", "Cancel"]
    assert lab.heads() == heads

    cancelled = await ada.press(offer.message, "Cancel")
    assert cancelled.kind == "update"
    assert "Not launched" in cancelled.text
    assert cancelled.message is not None
    assert cancelled.message.buttons == []
    assert lab.heads() == heads

    offer = await ada.command("run launch", channel=channel.id, **given)
    assert offer.message is not None
    lab.kill_bot()
    await lab.start_bot()
    # The answer is lost, the run is not.
    await lab.guild.fault(r"PATCH /webhooks/", delay=PATIENCE)
    lost = asyncio.create_task(ada.press(offer.message, "Launch"))
    await until(lambda: lab.call(runs.of_project, 1))
    lab.kill_bot()
    await lab.guild.clear_faults()
    await lab.start_bot()
    assert not lost.done()
    lost.cancel()
    again = await ada.press(offer.message, "Launch")
    assert again.text.startswith("### 🚀 Run 1 is queued\nIt will cost 0.333 core-hours at most")
    assert "The allocation has 1 core-hour left, and 0.667 should its queued runs take all their time." in again.text
    offer = await ada.command("run launch", channel=channel.id, recipe="demo", time_limit="1m")
    for words in (
        "has 1 core-hour left, and 0.65 should this run and those queued take all their time",
        "place 2 of 2. It waits for cores: 1 needed, 0 free on “local”. It starts within 10 min at the latest.",
    ):
        assert words in offer.text
    run = lab.call(runs.load, 1)
    assert (run.gpus, run.overrides) == (2, {"steps": "40", "seed": "7"})
    assert await lab_runs(lab) == [1]


async def lab_runs(lab: Lab) -> list[int]:
    """The numbers of all runs of the project."""
    return [view.id for view in reversed(lab.call(runs.of_project, 1))]


async def test_an_offer_does_not_outlive_its_hour_or_its_place(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    ada = lab.person("Ada")
    before = await lab_runs(lab)
    offer = await ada.command("run launch", channel=channel.id, recipe="demo", time_limit="10m")
    assert offer.message is not None
    plan = int(str(offer.message.buttons[0].custom_id).partition(":")[2])
    with pytest.raises(Exception, match="Only the one who asked"):
        lab.call(run_plan.confirm, lab.actor("Grace"), plan)

    def age(session: Session) -> None:
        session.get_one(RunPlan, plan).created_at = utcnow() - timedelta(hours=2)

    lab.call(age)
    old = said(await ada.press(offer.message, "Launch"))
    assert old == "This offer is more than an hour old; run the command again to see what it costs now."
    lab.call(run_plan.discard, lab.actor("Ada"), plan)
    gone = "This offer was cancelled; type the command again."
    assert said(await ada.press(offer.message, "Launch")) == gone
    assert said(await ada.press(offer.message, "Cancel")) == gone

    offer = await lab.person("Grace").command("run launch", channel=channel.id, recipe="demo", time_limit="10m")
    lab.call(membership.leave, lab.actor("Grace"), 1)
    assert offer.message is not None
    left = said(await lab.person("Grace").press(offer.message, "Launch"))
    assert left.startswith("Only members of “Do small models dream?” can do this")
    assert await lab_runs(lab) == before


async def test_what_is_typed_is_judged_while_it_is_typed(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    ada = lab.person("Ada")

    async def shown(option: str, typed: str, **others: object) -> list[str]:
        found = await ada.complete("run launch", option, typed, channel=channel.id, **others)
        return [name for name, _ in found]

    given: dict[str, object] = {"recipe": "demo", "time_limit": "30m"}
    assert await shown("gpus", "", **given) == [
        "1 core · ✓ 0.5 core-hours at most; 1 left",
        "2 cores · ✓ 1 core-hour at most; 1 left",
    ]
    assert await shown("gpus", "-3", **given) == ["-3 cores · ✗ The pool “local” has 2 cores; ask for 1 to 2."]
    assert (await shown("time_limit", "", recipe="demo"))[0].startswith("15m · ✓ 0.25 core-hours at most")
    assert (await shown("time_limit", "soon", recipe="demo"))[0].startswith("soon · ✗ A time limit is written like")
    assert (await shown("steps", "", **given))[0].startswith("200 steps, as the recipe has it · ✓")
    assert await shown("override", "seed=1, le", **given) == ["seed=1, learning_rate= · the recipe has 0.005"]
    assert (await shown("override", "batch=7", **given))[0].startswith("batch=7 · ✗ ")
    unknown = ["✗ There is no recipe “nonsense”; the recipes are: demo."]
    assert await shown("override", "", recipe="nonsense") == unknown
    assert await shown("override", "") == ["✗ Name the recipe first, in the option “recipe”."]
    assert await shown("dataset", "docs", **given) == ["python-docs · demo"]
    assert await shown("recipe", "", dataset="python-stdlib") == ["demo"]
    assert await shown("steps", "7", recipe="nonsense") == unknown
    for option, typed, own in (
        ("steps", "-5", "-5 steps · ✗ steps must be a number greater"),
        ("time_limit", "banana", "banana · ✗ A time limit is written like"),
        ("override", "seed=", "seed= · ✗ An override is written like"),
        ("override", "magic=1", "magic=1 · ✗ 'magic' may not be overridden"),
        ("override", "seed=1", "seed=1 · ✗ The pool “local” has 2 cores"),
    ):
        assert (await shown(option, typed, **given | {"gpus": 9}))[0].startswith(own), "its own fault before another's"
    [(nowhere, value)] = await ada.complete("run launch", "gpus", "", recipe="demo")
    assert (nowhere[:21], value) == ("✗ Name the project in", 1)
    assert await shown("allocation", "") == ["1 · 1 core-hour of local, approved"], "what is asked for is not there yet"
    prepare = await ada.complete("catalogue prepare", "time_limit", "", channel=channel.id, recipe="demo")
    assert prepare[0] == ("15m · 0.25 core-hours at most", "15m")
    wrong = await ada.command("run launch", channel=channel.id, recipe="demo", time_limit="5m", dataset="pile")
    assert said(wrong) == "There is no dataset “pile”; there are: python-docs, python-stdlib."
    wrong = await ada.command("run launch", channel=channel.id, recipe="demo", time_limit="5m", override="magic=1")
    assert said(wrong).startswith("'magic' may not be overridden; what may be is steps, learning_rate,")


async def test_what_a_run_has_read_is_shown_and_searched(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    ada = lab.person("Ada")
    run = await launched(lab, channel, time_limit="10m")
    token = start(lab, run)
    lab.call(leases.renew, run, token, 20.0, progress(1, 3), lease_seconds=600)
    elsewhere = f"The data of run {run} are on the host “here”, where this command cannot look"
    assert said(await ada.command("run data", run=run, step=3)).startswith(elsewhere)
    assert (
        said(await ada.command("run data", run=run, step=4)) == f"Run {run} has done steps 1 to 3; 4 is none of them."
    )
    folder = lab.root / "runs" / str(run) / f"attempt-{token}"
    folder.mkdir(parents=True)
    (folder.parent / "owner").write_text(lab.call(runs.load, run).request_id)
    config = write_config(folder / "tiny.yml")
    (folder / "config.yml").write_text(dump(load(config)))
    assert "are not kept here" in said(await ada.command("run seen", run=run, text="a line of text"))
    prepare.prepare(load(config).data, folder / "data", None, print, 1)
    (folder / "metrics.jsonl").write_text('{"step": 3, "tokens": 768, "loss": 6.0}\n')

    read = show.look(folder, 3).rows
    first = await ada.command("run data", run=run, step=3)
    assert first.ephemeral
    assert first.text.startswith(f"**Run {run}, step 3** read 8 rows of 32 tokens. Page 1 of 2:\n**1.** `")
    assert first.text.count("PSF-2.0") == 4
    assert f"\n-# `/run data run:{run} step:3 page:2` shows the next. The data are kept with the run: " in first.text
    second = said(await ada.command("run data", run=run, step=3, page=2))
    assert f"**8.** `{read[7].documents[0].document}`" in second
    assert "page:3" not in second
    none = said(await ada.command("run data", run=run, step=3, page=3))
    assert none == "The rows of a step fill 2 pages; page 3 is none of them."

    whole = next(row.text for row in read if len(row.documents) == 1 and len(row.text.split()) > 8)
    line = max(whole.splitlines(), key=len).strip()
    seen = said(await ada.command("run seen", run=run, text=line))
    assert seen.startswith(f"The data of run {run} have “")
    (folder / "metrics.jsonl").unlink()
    assert said(await ada.command("run seen", run=run, text=line)) == seen, "the lab knows how far the run has come"
    assert re.search(r"PSF-2\.0: steps? (1, |2, |1, 2, )?3\b", seen)
    unread = said(await ada.command("run seen", run=run, text="@everyone 🦓🦓🦓🦓🦓🦓🦓🦓🦓🦓"))
    assert unread.startswith(f"The data of run {run} have nothing like “@\u200beveryone")
    short = said(await ada.command("run seen", run=run, text="the the the "))
    assert short == "A text to search for has 12 to 1,000 characters; this has 11."
    assert said(await ada.command("run data", run=404, step=1)) == "There is no run 404."
    lab.call(settlement.settle, run, token, 30.0, Progress(0, 0), Ending(0, ""), 3)


async def test_a_run_is_paused_resumed_extended_and_looked_at(shared_lab: Shared, tmp_path: Path) -> None:
    lab, channel = shared_lab
    ada, omar = lab.person("Ada"), lab.person("Omar")
    run = await launched(lab, channel, time_limit="10m")
    card = await card_of(lab, channel, run, "queued", "Pause")
    assert card.button_labels == ["Pause", "Config"]
    thread = card.thread_id or ""
    place = said(await ada.command("run why", channel=thread))
    assert f"**Run {run}** of Do small models dream? is queued." in place
    assert "**Place**" in place
    assert place.endswith(("It starts at once.", "at the latest."))
    assert "by fair-share" in place
    assert "not been tried yet" in said(await ada.command("run log", run=run))

    assert said(await ada.press(card, "Pause")) == f"Run {run} is paused; /run resume continues it."
    assert "only one that waits or runs can be paused" in said(await ada.command("run pause", run=run))
    paused_by = f"**Run {run}** of Do small models dream? is paused. It was paused by Ada; /run resume continues it."
    assert said(await ada.command("run why", run=run)) == paused_by
    card = await card_of(lab, channel, run, "paused", "Resume")
    refused = said(await omar.press(card, "Resume"))
    assert refused.startswith("Only members of")
    paused = await ada.complete("run resume", "run", "")
    assert paused == [(f"{run} · demo, paused", run)]
    assert run not in [value for _, value in await ada.complete("run pause", "run", "")]
    offered = await ada.complete("run resume", "gpus", "", channel=thread)
    assert offered == [("1 core, as before", 1), ("2 cores", 2)]
    assert await ada.complete("run resume", "gpus", "", run=404) == []
    longer = await ada.complete("run resume", "time_limit", "", channel=thread, gpus=2)
    assert longer[0] == ("15m · 0.5 core-hours at most", "15m")
    assert await ada.complete("run resume", "time_limit", "soon", channel=thread) == [
        ("soon · ✗ A time limit is written like 45m, 2h or 1h30m, from one minute to 720 hours.", "soon")
    ]
    on = await ada.complete("run resume", "allocation", "", run=run)
    assert on == [("1 · 1 core-hour of local, approved", 1)], "the run's project is meant, wherever this is typed"
    for gpus in (-1, 3):
        wrong = await ada.command("run resume", run=run, gpus=gpus)
        assert said(wrong) == "The pool “local” has 2 cores; ask for 1 to 2."
    await lab.guild.fault(r"PATCH /channels/\d+/messages/", count=100, status=503)
    resumed = said(await ada.command("run resume", channel=thread, gpus=2))
    assert resumed.startswith(f"Run {run} is queued. It will cost 0.333 core-hours at most")
    assert resumed.endswith(f"\n{answers.GOES_ON}")
    stale = said(await ada.press(card, "Resume"))
    assert stale == f"Run {run} is queued; only a paused run can be resumed."
    await lab.guild.clear_faults()
    assert (await ada.complete("run extend", "time", "2m", run=run))[0] == ("2m · 0.067 core-hours at most", "2m")
    extended = said(await ada.command("run extend", run=run, time="2m"))
    assert extended.startswith(
        f"Run {run} may take 2 min longer: from here on it costs 0.4 core-hours at most. The allocation"
    )
    assert "written like 45m" in said(await ada.command("run extend", run=run, time="-2m"))

    config = await ada.command("run config", channel=thread)
    assert config.ephemeral
    assert config.message is not None
    assert config.message.attachments[0].filename == f"run-{run}.yml"
    assert "learning_rate: 0.005" in config.message.attachments[0].path.read_text()

    token = start(lab, run, 0, 1)
    assert "lies on another machine" in said(await ada.command("run log", run=run))
    folder = lab.root / "runs" / str(run) / f"attempt-{token}"
    folder.mkdir(parents=True)
    (folder.parent / "owner").write_text(lab.call(runs.load, run).request_id)
    written = [f"step {n} loss {9 - n / 100:.2f}" for n in range(5000)]
    (folder / "trainer.log").write_text("\n".join([*written, f"```@everyone {lab.root}/runs", "  the last"]))
    log = await ada.command("run log", run=run)
    assert log.ephemeral
    assert f"**{token}** running" in log.text
    assert "step 4999 loss" in log.text
    assert log.text.endswith("ˋˋˋ@everyone …/runs\n  the last\n```")
    assert text.length(log.text) <= text.MESSAGE

    lab.call(leases.renew, run, token, 20.0, progress(1, 10), lease_seconds=600)
    card = await card_of(lab, channel, run, "running", "Compare")
    assert card.button_labels == ["Pause", "Compare", "Config"]
    assert said(await ada.press(card, "Pause")).startswith(f"Run {run} writes a checkpoint and pauses")
    lab.call(settlement.settle, run, token, 30.0, Progress(0, 0), Ending(75, "it was asked to stop"), 3)
    assert lab.call(runs.view, run).state == RunState.PAUSED
    paused_log = (await ada.command("run log", run=run)).text
    assert f"**{token}** ended · 0.017 core-hours · on here · paused by Ada\n" in paused_log
    assert "is queued" in said(await ada.command("run resume", run=run))
    waits = lab.call(why.why, run).reason
    shown = await ada.command("run show", run=run)
    assert shown.message is not None
    assert len(shown.message.attachments) == 1
    assert waits in said(shown), "a run that waits again says why, under its curve"
    assert (
        await ada.agree(await ada.command("run cancel", run=run))
    ).text == f"Run {run} has been asked to stop; /run rerun launches it again."
    assert said(await ada.command("run cancel", run=run)) == f"Run {run} is already cancelled."
    assert said(await ada.command("run show", run=404)) == "There is no run 404."
    assert said(await ada.command("run show")) == "Use this in a run's thread, or name the run in the option “run”."


async def test_a_run_is_forked_sampled_run_again_and_compared(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    ada = lab.person("Ada")
    for other in await lab_runs(lab):
        if lab.call(runs.view, other).state == RunState.QUEUED:
            await ada.agree(await ada.command("run cancel", run=other))
    first = await launched(lab, channel, time_limit="2m", override="steps=40")
    assert (
        said(await ada.command("run sample", run=first))
        == f"Run {first} has no checkpoint on this disk to sample from."
    )
    token = start(lab, first)
    lab.call(leases.renew, first, token, 20.0, progress(1, 20, (0, 16)), lease_seconds=600)

    nowhere = "✗ Name the run in the option “run”, or use this in its thread."
    for option, sent in (("step", 0), ("gpus", 1), ("override", "✗"), ("time_limit", "✗")):
        assert await ada.complete("run fork", option, "", channel=channel.id) == [(nowhere, sent)]
    steps = await ada.complete("run fork", "step", "", channel=channel.id, run=first)
    assert steps == [(f"step 16 of run {first}", 16), (f"step 0 of run {first}", 0)]
    for command in ("run fork", "run sample"):
        assert [value for _, value in await ada.complete(command, "run", "")] == [first], "alone with a checkpoint"
    thread = (await card_of(lab, channel, first)).thread_id or ""
    here: dict[str, Any] = {"channel": thread, "step": 16}
    given = await ada.complete("run fork", "gpus", "", channel=channel.id, run=first, step=16)
    assert given[0][0].startswith("1 core · ✓ 0.033 core-hours at most")
    assert await ada.complete("run fork", "gpus", "", **here) == given
    [(expected, limit), *_] = await ada.complete("run fork", "time_limit", "", **here)
    assert expected.startswith("3m, a quarter more than expected · ✓ 0.05 core-hours at most, about 0.027; 0.9")
    assert limit == "3m"
    assert (await ada.complete("run fork", "override", "le", **here))[0][0].startswith("learning_rate= · the recipe")
    unknown = said(await ada.command("run fork", run=first, step=7))
    assert unknown == f"Run {first} has no checkpoint of step 7 here or open on the Hub; it has: 0, 16."
    offer = await ada.command("run fork", run=first, step=16, override="seed=9", gpus=2)
    assert f"Launch a fork of run {first} from step 16 on 2 cores" in offer.text
    assert "49.2k tokens in the 24 steps from 16 to 40" in offer.text
    assert "**Expected** about " in offer.text
    assert "measured 500 tokens per second" in offer.text
    [(expected, limit), *_] = await ada.complete(
        "run launch", "time_limit", "", channel=channel.id, recipe="demo", steps=40
    )
    assert expected.startswith("4m, a quarter more than expected · ✓ 0.067 core-hours at most")
    assert limit == "4m"
    assert offer.message is not None
    forked = await ada.press(offer.message, "Launch")
    second = int(forked.text.split("Run ")[1].split()[0])
    row = lab.call(runs.load, second)
    assert (row.parent_id, row.fork_step, row.overrides) == (first, 16, {"steps": "40", "seed": "9"})
    offer = await ada.command("run rerun", run=first)
    assert "With steps=40" in offer.text

    alone = said(await ada.command("run compare", runs=f"{first}"))
    assert alone == "A comparison needs at least two runs, such as 3 5."
    assert "at most 6 runs" in said(await ada.command("run compare", runs="1 2 3 4 5 6 7")).lower()
    assert "by their numbers" in said(await ada.command("run compare", runs="all of them"))
    lab.call(leases.renew, second, start(lab, second, 1), 5.0, progress(17, 30, at=8.5), lease_seconds=600)
    suggested = await ada.complete("run compare", "runs", f"{first} ", channel=channel.id)
    assert f"{first} {second}" in [value for _, value in suggested]
    for run, step, accuracy in ((first, 16, 0.25), (second, 30, 0.5)):
        lab.call(results.save, second, run, [Result(step, "arc_easy", "acc", accuracy, 0.01)])
    compared = await ada.command("run compare", runs=f"{first}, {second}")
    assert compared.ephemeral
    assert compared.message is not None
    assert f"### 📈 Runs {first}, {second} of `demo`\n" in compared.text
    assert re.search(rf"\*\*{second}\*\* `seed 9, fork of {first}` · loss \*\*\d\.\d{{3}}\*\* · 30k", compared.text)
    assert re.search(
        rf"\*\*{first}\*\* `demo` · loss \*\*7\.\d{{3}}\*\* · held-out \*\*6\.500\*\* · 20k tokens", compared.text
    )
    after = "Losses after 20k tokens, which all compared runs have reached, smoothed (median + EMA); held-out after the"
    assert f"{after} same, unsmoothed." in compared.text
    assert re.search(rf"```\n +run {first} +run {second}\n(.*\n)*seed +\d+ +9\n(.*\n)*```", compared.text)
    evaluated = f"`arc_easy` acc: run {first} **0.2500** at step 16 · run {second} **0.5000** at step 30"
    assert evaluated in compared.text.replace("\\", "")
    [picture] = compared.message.attachments
    assert picture.path.read_bytes().startswith(b"\x89PNG")
    assert f"run {second} (seed 9, fork of {first}) at " in (picture.description or "")

    await ada.command("run evaluate", tasks="arc_easy", model="org/tiny@step16 @step20", channel=channel.id)
    model = lab.call(runs.of_project, 1, kind=RunKind.BASELINE)[0].id
    measured = [Result(step, "arc_easy", "acc", step / 100, 0.01) for step in (16, 20)]
    lab.call(results.save, model, model, measured)
    await ada.agree(await ada.command("run cancel", run=model))
    suggested = await ada.complete("run compare", "runs", f"{first} tiny", channel=channel.id)
    assert f"{first} {model}" in [value for _, value in suggested]
    alone = said(await ada.command("run compare", runs=f"{model} {model + 1}"))
    assert alone == f"There is no run {model + 1}."
    beside = await ada.command("run compare", runs=f"{first} {model}")
    assert beside.message is not None
    assert f"### 📈 Runs {first}, {model} of `demo`\n" in beside.text
    assert f"**{model}** `org/tiny@\u200bstep16 @\u200bstep20` · a model of the Hub" in beside.text
    evaluated = f"`arc_easy` acc: run {first} **0.2500** at step 16 · run {model} **0.2000** at step 20"
    assert evaluated in beside.text.replace("\\", "")
    [overlaid] = beside.message.attachments
    assert overlaid.path.read_bytes().startswith(b"\x89PNG")
    assert (overlaid.description or "").endswith(", beside 1 model of the Hub.")
    await ada.press(compared.message, "Post in channel")
    posted = await lab.guild.wait_for(
        compared.message.channel_id, lambda m: "### 📈 Runs" in m.text and not m.ephemeral
    )
    assert (posted.text, posted.attachments[0].filename) == (compared.text, picture.filename)
    assert not [button for button in posted.buttons if button.label == "Post in channel"]
    reading = await ada.command("run compare", channel="public-record", runs=f"{first}, {second}")
    assert reading.message is not None
    refused = await ada.press(reading.message, "Post in channel")
    assert "You may not write in this channel" in str([refused.text, refused.followups])
    listed = (await ada.command("run list", channel=channel.id)).text
    assert re.search(rf"\*\*{first}\*\* .* · loss 7\.\d{{3}} · held-out 6\.500 at step 20 · .*<#\d+>", listed)
    shown = await ada.command("run show", run=first, panel="tokens_per_second", log_tokens=True)
    assert shown.message is not None
    [picture] = shown.message.attachments
    assert picture.filename == f"run-{first}.png"
    assert "```" not in shown.text, "nothing is published that one could load"
    lab.call(publish, first, 16)
    lab.call(
        leases.renew, first, token, 20.5, Progress(0, 0, points=[Measured("mfu", 20, 20_000, 0.413)]), lease_seconds=600
    )
    source = {"weight": 1, "held_out": {"tokens": 100, "bytes": 400}}
    (lab.root / "how.json").write_text(json.dumps({"data": {"sources": [source]}}))
    lab.call(lambda session: setattr(session.get_one(Publication, (first, 16)), "folder", str(lab.root)))
    usual = await ada.command("run show", run=first)
    assert usual.message is not None
    in_bits = "**Held-out** perplexity 665.1 per token, 2.3444 bits per byte, at step 20\n"
    assert f"{in_bits}**MFU** 41.3% · **Seed** 1234\n" in usual.text
    commits = "**Commit of the code** not recorded · **Commit on the Hub** of step 16: not recorded"
    assert f"{commits}\n```\nfrom transformers" in usual.text
    assert 'AutoModelForCausalLM.from_pretrained("lab/ours", revision="step16")\n' in usual.text
    assert usual.message.attachments[0].path.read_bytes() != picture.path.read_bytes()
    card = await card_of(lab, channel, first, "Compare")
    pressed = await ada.press(card, "Compare")
    assert pressed.ephemeral
    assert f"**{second}** `" in pressed.text

    form = await ada.command("run sample", run=first)
    assert form.kind == "modal"
    assert (
        said(await ada.submit(form, {"Prompt": ""}, force=True))
        == "The prompt is empty: please write a sentence or two."
    )
    form = await ada.command("run sample", run=first)
    queued = said(await ada.submit(form, {"Prompt": "def hello(@everyone):"}))
    assert "0.167 core-hours at most" in queued
    sample = lab.call(runs.of_project, 1, kind=RunKind.SAMPLE)[0]
    assert lab.call(runs.load, sample.id).prompt == "def hello(@everyone):"
    asked = await lab.guild.wait_for(thread, lambda m: f"asks for sample 1 of run {first}, which" in m.text)
    assert "```\ndef hello" in asked.text
    assert "@everyone" not in asked.text
    lab.call(settlement.settle, first, token, 21.0, Progress(0, 0), Ending(0), 3)
    writes = start(lab, sample.id)
    ending = Ending(0, sample="    return 42", sample_step=1200)
    lab.call(settlement.settle, sample.id, writes, 2.0, Progress(0, 0), ending, 3)
    done = await lab.guild.wait_for(channel.id, lambda m: "return 42" in m.text)
    drawn = f"✍️ **Sample 1 of run {first}** · step 1,200 · temperature 0.8 · seed 0"
    prompt, written = "```\ndef hello(@\u200beveryone):\n```", "```\n    return 42\n```"
    assert f"{drawn}\nThe prompt:\n{prompt}\nThe model continues:\n{written}" in done.text
    await ada.submit(await ada.command("run sample", run=first), {"Prompt": "def hello():"})
    other = lab.call(runs.of_project, 1, kind=RunKind.SAMPLE)[0].id
    lab.call(control.stop_all, lab.call(runs.load, other).allocation_id, EndReason.UNFUNDED, "Nothing is left.")
    assert said(await ada.command("run resume", run=other)).endswith(answers.GOES_ON_WITHOUT_CARD)
    cancelled = await ada.agree(await ada.command("run cancel", run=other))
    assert cancelled.text == f"Run {other} has been asked to stop; /run sample asks for another."
    assert "Traceback" not in lab.log


async def test_checkpoints_are_evaluated_and_the_results_stay_on_the_card(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    ada = lab.person("Ada")
    run = await launched(lab, channel, name="Evaluated")
    refused = said(await ada.command("run evaluate", run=run, tasks="heldout"))
    assert refused == f"Run {run} has no checkpoint here or open on the Hub to read."
    token = start(lab, run)
    lab.call(leases.renew, run, token, 1.0, progress(1, 20, (16, 20)), lease_seconds=600)
    lab.call(settlement.settle, run, token, 2.0, Progress(0, 0), Ending(0), 3)

    refused = said(await ada.command("run evaluate", run=run, tasks="heldout", steps="17"))
    assert refused == f"Run {run} has no checkpoint of step 17 here or open on the Hub; the nearest are 16, 20."
    offered = await ada.complete("run evaluate", "steps", "", run=run)
    assert [value for _, value in offered] == ["last", "all", "20", "16"]
    tasks = [name for name, _ in await ada.complete("run evaluate", "tasks", "heldout, arc_e", run=run)]
    assert tasks[:2] == ["heldout, arc_easy", "heldout, arc_es"]
    refused = said(await ada.command("run evaluate", run=run, tasks="hellaswagg"))
    assert refused.startswith("There is no task “hellaswagg”; do you mean hellaswag or")
    queued = said(await ada.command("run evaluate", run=run, tasks="heldout, arc_easy", steps="all", time_limit="6m"))
    evaluation = lab.call(runs.of_project, 1, kind=RunKind.EVALUATE)[0]
    assert queued.startswith(f"Run {evaluation.id}, an evaluation of run {run}, is queued; its results are posted")
    assert "It will cost 0.1 core-hours at most. The allocation has" in queued
    card = await card_of(lab, channel, run, "has finished")
    thread = card.thread_id or ""
    it = f"evaluation 1 of run {run} (run {evaluation.id})"
    launch_of_it = f"launches {it}: `heldout`, `arc_easy` on steps 16, 20, in at most 6 min."
    await lab.guild.wait_for(thread, lambda m: launch_of_it in m.text)

    token = start(lab, evaluation.id)
    results = [
        Result(step, task, metric, value, stderr)
        for task, metric, stderr in (("heldout_docs", "bits_per_byte", None), ("arc_easy", "acc", 0.02))
        for step, value in ((16, 0.625), (20, 0.5))
    ]
    lab.call(leases.renew, evaluation.id, token, 1.0, Progress(0, 0, results=results), lease_seconds=600)
    lab.call(settlement.settle, evaluation.id, token, 2.0, Progress(0, 0), Ending(0), 3)
    for place in (thread, channel.id):
        post = await lab.guild.wait_for(place, lambda m: f"📐 **E{it[1:]}**" in m.text)
        assert "arc_easy acc: 0.6250 ±0.0200 at step 16, 0.5000 ±0.0200 at step 20" in post.text
        assert "heldout_docs bits_per_byte: 0.6250 at step 16, 0.5000 at step 20" in post.text
    assert (f"run {evaluation.id} (an evaluation of run {run})", evaluation.id) in [
        (name.partition(":")[0], number) for name, number in await ada.complete("study show", "study", "arc")
    ]
    newest = "**Evaluations** `arc_easy` acc **0.5000** ±0.0200 at step 20 · `heldout_docs` bits_per_byte **0.5000**"
    await lab.guild.wait_for(channel.id, lambda m: newest in m.text.replace("\\", ""))
    shown = await ada.command("run show", run=run)
    assert shown.message is not None
    assert newest in shown.text.replace("\\", "")
    of_it = (await ada.command("run show", run=evaluation.id)).text
    assert f"Run {evaluation.id} has finished" in of_it
    assert f"an evaluation of run {run}" in of_it
    drawn = await ada.command("study show", study=evaluation.id)
    assert drawn.message is not None
    assert "arc_easy acc: 0.625 at step 16 → 0.5 at step 20 (2 steps)" in drawn.text
    assert [file.filename for file in drawn.message.attachments] == [f"study-{evaluation.id}.png"]
    refused = said(await ada.command("study show", study=run))
    assert refused == f"Run {run} has measured nothing on the checkpoints of another run."

    refused = said(await ada.command("run evaluate", run=run, tasks="arc_easy", model="org/tiny@main"))
    assert refused == "Name a run with steps, or a model of the Hub at a revision, not both."
    refused = said(await ada.command("run evaluate", run=run, tasks="arc_easy", allocation=1))
    assert refused.startswith("An evaluation of a run is paid as the run was")
    refused = said(await ada.command("run evaluate", tasks="arc_easy", model="tiny", channel=channel.id))
    assert refused.startswith("“tiny” names no model of the Hub at a revision; write ORG/NAME@\u200bREVISION, such as")
    queued = said(await ada.command("run evaluate", tasks="arc_easy", model="org/tiny@main", channel=channel.id))
    baseline = lab.call(runs.of_project, 1, kind=RunKind.BASELINE)[0].id
    assert queued.startswith(
        f"Run {baseline} will evaluate `org/tiny@\u200bmain`; its results are posted in its thread"
    )
    token = start(lab, baseline)
    card = await card_of(lab, channel, baseline, "is running")
    assert "evaluates **org/tiny@\u200bmain** · by Ada on 1 core" in card.text.replace("\\", "")
    lab.call(
        leases.renew,
        baseline,
        token,
        1.0,
        Progress(0, 0, results=[Result(0, "arc_easy", "acc", 0.75, 0.02)]),
        lease_seconds=600,
    )
    lab.call(settlement.settle, baseline, token, 2.0, Progress(0, 0), Ending(0), 3)
    post = await lab.guild.wait_for(card.thread_id or "", lambda m: f"📐 **Run {baseline}**" in m.text)
    assert "`org/tiny@\u200bmain` on `arc_easy`, after 0.001 core-hours" in post.text
    assert "arc_easy acc: 0.7500 ±0.0200\n" in post.text
    its_card = (await ada.command("run show", run=baseline)).text.replace("\\", "")
    assert "**Evaluations** `arc_easy` acc **0.7500** ±0.0200\n" in its_card
    assert said(await ada.command("run config", run=baseline)) == (
        f"**Run {baseline}** evaluates org/tiny@\u200bmain; what it does is in the file."
    )
    names = await ada.complete("study start", "analyses", "weights, ind", run=run)
    assert names == [("weights, induction", "weights, induction")]
    queued = said(await ada.command("study start", run=run, analyses="weights, induction", time_limit="6m"))
    assert f", a study of run {run}, is queued" in queued
    studied = f"launches study 1 of run {run} (run {baseline + 1}): `weights`, `induction` on steps 16, 20"
    await lab.guild.wait_for(thread, lambda m: studied in m.text)
    form = await ada.command("catalogue propose", what="pairs")
    answer = await ada.submit(form, {"Name": "verbs", "Pairs": "pairs: [{preferred: are, other: is}]"})
    assert answer.text == "`verbs` are proposed; an admin decides."
    lab.call(catalogue.accept, None, "verbs", reason="It asks for agreement.")
    assert await ada.complete("study start", "pairs", "ver", run=run) == [("verbs", "verbs")]
    asked: dict[str, Any] = {"run": run, "analyses": "paired_prompts", "pairs": "verbs", "time_limit": "6m"}
    assert "is queued" in said(await ada.command("study start", **asked))
    study = baseline + 2
    studied = f"launches study 2 of run {run} (run {study}): `paired_prompts`, with the pairs `verbs` on"
    await lab.guild.wait_for(thread, lambda m: studied in m.text)
    token = start(lab, study)
    results = [Result(step, "paired_prompts", "preferred", value, 0.1) for step, value in ((16, 0.5), (20, 0.75))]
    lab.call(leases.renew, study, token, 1.0, Progress(0, 0, results=results), lease_seconds=600)
    lab.call(settlement.settle, study, token, 2.0, Progress(0, 0), Ending(0), 3)
    for place in (thread, channel.id):
        post = await lab.guild.wait_for(place, lambda m: f"📐 **Study 2 of run {run} (run {study})**" in m.text)
        assert "paired_prompts/verbs preferred: 0.5000 ±0.1000 at step 16" in post.text.replace("\\", "")
        assert [file.path.read_bytes()[:8] for file in post.attachments] == [PICTURE]
    again = await ada.command("run config", run=evaluation.id)
    assert again.ephemeral
    assert said(await ada.command("run pause", run=evaluation.id)) == (
        f"Run {evaluation.id} is an evaluation of run {run}, and its results are saved as they come; let it end, or "
        "cancel it."
    )

    asked = {"run": run, "name": "autoencoder", "parameters": "latents=32"}
    refused = said(await ada.command("run program", **asked))
    assert refused.startswith("There is no program “autoencoder”; there are none yet")
    form = await ada.command("catalogue propose", what="program")
    answer = await ada.submit(form, {"Name": "autoencoder", "Program": PROGRAM})
    assert answer.text == "`autoencoder` is proposed; an operator tries it, and then an admin decides."
    described = lab.call(catalogue.proposed_program, "autoencoder")
    lab.call(catalogue.tried, "autoencoder", described, 3)
    lab.call(catalogue.accept, None, "autoencoder", reason="It is well known.")
    assert await ada.complete("run program", "name", "auto") == [("autoencoder", "autoencoder")]
    refused = said(await ada.command("run program", **asked | {"parameters": "latents=many"}))
    assert refused == "latents is a whole number from 1 to 64, not 'many'."
    queued = said(await ada.command("run program", **asked))
    program = lab.call(runs.of_project, 1, kind=RunKind.PROGRAM)[0]
    assert queued.startswith(f"Run {program.id}, a program on run {run}, is queued; its results are posted in the")
    about = f"launches program 1 of run {run} (run {program.id}): `autoencoder` with latents=32 on step 20, in at most"
    await lab.guild.wait_for(thread, lambda m: about in m.text)
    token = start(lab, program.id)
    results = [Result(step, "metrics", "unexplained", 1 / step) for step in (1, 2)]
    lab.call(leases.renew, program.id, token, 1.0, Progress(0, 0, results=results), lease_seconds=600)
    pictures = lab.call(own_folder, program.id, lab.root) / f"attempt-{token}" / "pictures"
    pictures.mkdir(parents=True)
    (pictures / "1.png").write_bytes(PICTURE)
    (pictures / "2.png").symlink_to(lab.root / "bot.log")
    lab.call(settlement.settle, program.id, token, 2.0, Progress(0, 0), Ending(0, sample="layer: 1"), 3)
    for place in (thread, channel.id):
        post = await lab.guild.wait_for(place, lambda m: f"📐 **Program 1 of run {run} (run {program.id})**" in m.text)
        assert "metrics unexplained: 0.5000 at step 2" in post.text
        assert "layer: 1" in post.text
        assert [file.path.read_bytes() for file in post.attachments] == [PICTURE]
    told = next(e for e in lab.call(record.since, "project:1", 0) if (e.payload or {}).get("text") == "layer: 1")
    lab.call(redaction.redact, None, "project:1", told.number, "It was private.")
    blanked = await lab.guild.wait_for(channel.id, lambda m: m.id == post.id and not m.attachments)
    assert "layer: 1" not in blanked.text
    shown = await ada.command("study show", study=program.id)
    assert shown.message is not None
    assert f"Run {program.id} is a program on run {run}" in shown.text
    assert "Traceback" not in lab.log


def own_folder(session: Session, run: int, home: Path) -> Path:
    """The folder of a run below the bot's home."""
    settings = Settings(_env_file=None, home=home)
    return folders.own(settings, run, runs.load(session, run).request_id)


async def test_an_offer_says_how_often_the_run_reads_its_corpus(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    counted = contract.Measured(files=1, bytes=1000, documents=10, text_bytes=900, tokens=3000)
    asked = {"kind": contract.CorpusKind.TEXT, "path": "/data/x.jsonl", "licence": "", "measured": counted}
    lab.call(corpora.add, pool="local", name="pile-deduplicated", **asked)
    small: dict[str, Any] = {"recipe": "pythia-14m-deduped", "time_limit": "1m"}
    ada = lab.person("Ada")
    sizes = "batch=1, micro_batch=1, sequence_length=64"
    few = await ada.command("run launch", channel=channel.id, override=f"{sizes}, steps=10", **small)
    many = await ada.command("run launch", channel=channel.id, override=f"{sizes}, steps=10000", **small)
    assert "**Data** reads 0.213 epochs of pile-deduplicated (3.0 k tokens)" in few.text
    assert "lose their value" not in few.text
    assert "reads 213 epochs of pile-deduplicated" in many.text
    assert "⚠️ **Data** It reads pile-deduplicated more than 4 times: repeated data lose their value" in many.text
    for offer in (few, many):
        assert offer.message is not None
        await ada.press(offer.message, "Cancel")


async def test_an_offer_says_what_is_copied_from_the_store_first(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    counted = contract.Measured(files=1, bytes=1_200_000_000, documents=10, text_bytes=900)
    lab.call(pools.add_pool, name="far", gpu_type="cpu", gpus=1)
    body = configs.built_in()["demo"].replace("python-docs", "songs").replace("builtin: songs", "corpus: songs")
    asked = {"kind": contract.CorpusKind.TEXT, "path": "/data/x.jsonl", "licence": "PSF-2.0", "measured": counted}
    lab.call(corpora.add, pool="far", name="songs", **asked)
    lab.call(catalogue.propose_recipe, None, "songs", name="of-songs", body=body)
    lab.call(catalogue.accept, None, "of-songs", reason="Fine.")
    small: dict[str, Any] = {"recipe": "of-songs", "time_limit": "1m"}
    ada = lab.person("Ada")
    refused = await ada.command("run launch", channel=channel.id, **small)
    assert refused.text.replace("\\", "") == (
        "“of-songs” needs songs, which the pool “local” lacks; the pool “far” has all, and an operator shares it with "
        "`stoa corpus push songs --pool far`."
    )
    lab.call(corpora.is_stored, lab.call(corpora.named, pool="far", name="songs"), pool="far", sha256="0" * 64)
    await lab.guild.wait_for("public-record", lambda m: "`songs` of `far` is in the store: pools that" in m.text)
    listed = (await ada.command("catalogue corpora", pool="far")).text
    assert listed.endswith("PSF-2.0 · in the store, for pools that lack it")
    offer = await ada.command("run launch", channel=channel.id, **small)
    sweep = await ada.command("run sweep", channel=channel.id, points="seed=1..2", **small)
    for offered in (offer, sweep):
        assert "**Data** copied from the store first: songs, 1.2 GB" in offered.text
        assert offered.message is not None
        await ada.press(offered.message, "Cancel")


async def test_a_run_is_called_by_its_name_wherever_it_is_shown(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    ada = lab.person("Ada")
    given = {"name": "**Wide** @everyone 🧪", "tags": "#Rope, tiny"}
    run = await launched(lab, channel, time_limit="1m", **given)
    card = await card_of(lab, channel, run, "“\\*\\*Wide\\*\\* @\u200beveryone 🧪” waits for its turn", "`rope` `tiny`")
    await lab.guild.wait_for(
        card.thread_id or "", has(f"launches run {run} “\\*\\*Wide\\*\\* @\u200beveryone 🧪”, tagged `rope` `tiny`: ")
    )
    renamed = said(await ada.command("run name", channel=card.thread_id or "", name="Narrow", tags="tiny"))
    assert renamed == f"Run {run} is now called “Narrow” and tagged `tiny`."
    changes = f"**Ada** changes the name or tags of run {run}, which is now called “Narrow” and tagged `tiny`."
    await lab.guild.wait_for(card.thread_id or "", has(changes))
    await card_of(lab, channel, run, f"Run {run} “Narrow” waits for its turn")
    assert f"Run {run} “Narrow” " in (await ada.command("run show", run=run)).text
    listed = [said(await ada.command("run list", channel=channel.id, tag=tag)) for tag in ("tiny", "rope")]
    assert f"{run} “Narrow” `demo`".replace("`", "") in listed[0].replace("*", "").replace("`", "")
    assert listed[1] == "No run has the tag `rope`."
    assert await ada.complete("run list", "tag", "ti", channel=channel.id) == [("tiny", "tiny")]
    assert (f"{run} · Narrow · demo, queued", run) in await ada.complete("run show", "run", "narr", channel=channel.id)
    nameless = said(await ada.command("run name", run=run, name="-"))
    assert nameless == f"Run {run} now has no name and is tagged `tiny`."
    assert said(await ada.command("run name", run=run, tags="-")) == f"Run {run} now has no name and no tags."
    long = said(await ada.command("run name", run=run, name="🧪" * 61))
    assert long == "The name has 61 characters; at most 60 fit."


async def test_an_offer_warns_of_a_time_limit_that_ends_before_a_checkpoint(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    ada = lab.person("Ada")
    run = await launched(lab, channel, time_limit="2m", override="steps=40")
    token = start(lab, run)
    slow = [Measured("tokens_per_second", 2, 2 * 16 * 128, 10.0)]
    lab.call(
        leases.renew, run, token, 20.0, Progress(1, 1, step=2, tokens=2 * 16 * 128, points=slow), lease_seconds=600
    )
    warning = "⚠️ **Time limit** It is expected to end the run before its first checkpoint after step 0"
    too_short, enough = [
        await ada.command("run launch", channel=channel.id, recipe="demo", time_limit=limit) for limit in ("1m", "9m")
    ]
    assert f"{warning}, which is due at step 1, after about 4 min" in too_short.text
    assert "**Time limit** It is" not in enough.text
    for offer in (too_short, enough):
        assert offer.message is not None
        await ada.press(offer.message, "Cancel")
