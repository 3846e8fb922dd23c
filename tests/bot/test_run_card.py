"""A run as its project's channel sees it: one card edited in place, a thread, milestones, and the announcement."""

import re
from dataclasses import replace

import psutil
from PIL import Image
from sqlalchemy.orm import Session

from broker import publications
from broker.runners.processes import Process
from broker.runs import attempts, entries, leases, runs, settlement
from broker.runs.progress import Ending, Progress, Spike
from broker.runs.series import Measured
from projects import lifecycle
from tests.bot.conftest import Lab
from tests.patience import PATIENCE

STEPS = 40
URL = "http://127.0.0.1:9/stoa/p1-run-1/tree/step"


def progress(first: int, last: int) -> Progress:
    """What a trainer reports from one step to another."""
    points = [Measured("loss", step, step * 1000, 9 - step / 10) for step in range(first, last + 1)]
    points += [Measured("grad_norm", step, step * 1000, 1.5) for step in range(first, last + 1)]
    points += [Measured("tokens_per_second", last, last * 1000, 500.0), Measured("held_out", last, last * 1000, 6.5)]
    return Progress(0, 0, step=last, tokens=last * 1000, unigram_entropy=7.25, points=points)


async def test_the_card_follows_the_run(lab: Lab) -> None:
    await lab.start_bot()
    channel = await lab.activate()
    await lab.approved(channel)
    await lab.launch(channel, override=f"steps={STEPS}")
    card = await lab.guild.wait_for(channel.id, lambda m: m.text.endswith("-# P1 · run 1") and m.thread_id is not None)
    thread = card.thread_id or ""
    used = {c.parent_id: c.raw["thread_metadata"] for c in await lab.guild.channels() if c.is_thread}
    proposals = lab.guild.info["channels"]["proposals"]
    minutes = [used[parent]["auto_archive_duration"] for parent in (proposals, channel.id)]
    assert minutes == [7 * 24 * 60, 24 * 60], "the threads of runs, of which there are many, are put away sooner"

    token = lab.call(attempts.admit, 1, [0])
    lab.call(leases.claim, 1, token, host="here", lease_seconds=60)
    lab.call(leases.started, 1, token, Process("here", "boot", 1, 1), [], lease_seconds=60)
    lab.call(leases.renew, 1, token, 0.5, Progress(0, 0, phase="building the *model*"), lease_seconds=60)
    now = await lab.guild.wait_for(channel.id, lambda m: m.id == card.id and "Now" in m.text)
    assert re.search(r"⚙️ \*\*Now\*\* building the \\\*model\\\* · began <t:[0-9]+:R>\n", now.text)
    assert lab.call(runs.load, 1).thread_url.endswith(f"/{thread}")
    shown = await lab.person("Ada").command("run show", run=1)
    assert "⚙️ **Now** building the" in shown.text
    lab.call(leases.renew, 1, token, 20.0, progress(1, 10), lease_seconds=60)
    now = await lab.guild.wait_for(
        channel.id, lambda m: m.id == card.id and "step 10 of 40" in m.text and m.attachments != []
    )
    assert "running" in now.text
    assert "Now" not in now.text
    assert "**Loss** 8.000 · **held-out** 6.500 at step 10\n" in now.text
    assert "7.250 (unigram entropy) is what guessing by frequency alone gives" in now.text
    assert "**Speed** 500 tokens/s · **ETA** 1 min" in now.text
    assert "0.006 used" in now.text
    first_picture = now.attachments[0]
    assert Image.open(first_picture.path).size == (1000, 800)  # with the second panel
    assert first_picture.path.read_bytes().startswith(b"\x89PNG")
    assert "step 10 of 40" in (first_picture.description or "")

    for step, first, final in ((1, True, False), (16, False, False), (STEPS, False, True)):
        if step == STEPS:
            rest = replace(progress(11, STEPS), spikes=[Spike(30, 12.5, 6.1), Spike(31, 11.5, 6.1)])
            lab.call(leases.renew, 1, token, 60.0, rest, lease_seconds=60)
        lab.call(publish, step, first=first, final=final)
    lab.call(settlement.settle, 1, token, 62.0, Progress(0, 0), Ending(0), 3)
    done = await lab.guild.wait_for(
        channel.id, lambda m: m.id == card.id and "finished" in m.text and m.attachments[0].url != first_picture.url
    )
    assert f"[step {STEPS}]({URL}{STEPS})" in done.text
    assert "step 40 of 40 (100%)" in done.text
    assert "**Took**" in done.text
    assert "📈 The loss last spiked at step 31, to 11.500." in done.text
    assert len(done.attachments) == 1

    sample = lab.call(attempts.admit, 2, [0])
    lab.call(leases.claim, 2, sample, host="here", lease_seconds=60)
    lab.call(leases.started, 2, sample, Process("here", "boot", 2, 1), [], lease_seconds=60)
    ending = Ending(0, sample="def hello(@everyone):\n    **pass**")
    lab.call(settlement.settle, 2, sample, 2.0, Progress(0, 0), ending, 3)
    said = await lab.guild.wait_for(channel.id, lambda m: "def hello" in m.text)
    assert "@everyone" not in said.text
    assert "```\ndef hello(@\u200beveryone):\n    **pass**\n```" in said.text

    in_channel = [m.text for m in await lab.guild.messages(channel.id)]
    assert [text.endswith("· run 1") for text in in_channel if URL in text] == [True], "the card links the newest"
    in_thread = " ".join(m.text for m in await lab.guild.messages(thread))
    assert all(f"({URL}{step})" in in_thread for step in (1, 16, STEPS))
    assert in_thread.count("📈 Run 1: the loss jumped to **12.500** at step 30, from about 6.100.") == 1
    assert (in_thread.count("jumped"), sum("jumped" in text for text in in_channel)) == (1, 0)
    assert sum("· run 1" in text for text in in_channel) == 1

    lab.call(lifecycle.complete, lab.actor("Ada"), 1, outcome="negative result", learnt="It does not.")
    told = await lab.guild.wait_for("announcements", lambda m: "It does not." in m.text)
    assert "negative result" in told.text
    assert "Ada (lead), Grace" in told.text
    assert "**Compute** sponsored by The Library" in told.text
    assert f"{URL}{STEPS}" in told.text
    closed = await lab.guild.wait_for("proposals", lambda m: "Completed" in m.text)
    assert closed.buttons == []
    assert "Traceback" not in lab.log

    assert lab.bot is not None
    drawing = psutil.Process(lab.bot.pid).children(recursive=True)
    assert drawing
    lab.kill_bot()
    assert psutil.wait_procs(drawing, timeout=PATIENCE)[1] == []


def publish(session: Session, step: int, *, first: bool, final: bool) -> None:
    """Note a published checkpoint of run 1, as the publisher does."""
    publications.add(session, 1, step, f"/tmp/step{step}")
    session.get_one(publications.Publication, (1, step)).url = f"{URL}{step}"
    run = runs.load(session, 1)
    entries.tell(session, run, "checkpoint.published", step=step, url=f"{URL}{step}", first=first, final=final)
