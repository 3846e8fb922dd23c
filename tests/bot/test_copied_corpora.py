"""From a click in Discord to losses, on a pool that lacks the corpus: it is copied from the store, also for a pause and
a fork."""

import asyncio
import os
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich import filesize

from broker.allocations import corpora, requests
from broker.reviews import reviews
from broker.runs import attempts
from broker.runs.runs import RunState
from sandbox.people import Answer, Channel
from tests.bot.conftest import Lab, has
from tests.broker import lab as brokers
from tests.broker.copying import HAS, LACKS, add, losses, propose, push, songs, supervised, trained
from tests.broker.lab import settings
from tests.broker.supervised import attempt
from tests.patience import PATIENCE, until

STEPS, EARLY, FORKED = 150, 16, 24
"""The steps of a run, a step of which it has a checkpoint, and the last step of a fork from there."""
SETTINGS = "batch=2, micro_batch=2, sequence_length=32"


async def test_a_run_on_a_copy_is_launched_paused_resumed_and_forked_and_has_the_losses_of_the_original(
    lab: Lab, tmp_path: Path
) -> None:
    store = f"file://{tmp_path}/store"
    here, there = settings(tmp_path / "here", store=store), settings(tmp_path / "there", store=store)
    await lab.start_bot(TICK_SECONDS="0.5", PICTURE_SECONDS="60")  # it waits for trainers most of the time
    channel = await lab.activate()
    beside = brokers.Lab(lab.db)
    funded = {pool: fund(lab, beside, pool) for pool in (HAS, LACKS)}
    add(beside, HAS, songs(tmp_path / "data"))
    propose(beside)
    ada = lab.person("Ada")
    asked: dict[str, Any] = {"channel": channel.id, "recipe": "ours", "steps": STEPS, "override": SETTINGS}
    asked |= {"time_limit": "30m"}
    refused = await ada.command("run launch", allocation=funded[LACKS], **asked)
    assert "an operator shares it with `stoa corpus push songs --pool has`" in refused.text.replace("\\", "")
    assert push(beside, here).returncode == 0

    offer = await ada.command("run launch", allocation=funded[LACKS], **asked)
    size = filesize.decimal(lab.call(corpora.named, pool=HAS, name="songs").bytes)
    assert f"**Data** copied from the store first: songs, {size}" in offer.text
    copied = await launched(lab, offer)
    offer = await ada.command("run launch", allocation=funded[HAS], **asked)
    assert "copied from the store" not in offer.text
    original = await launched(lab, offer)

    with supervised(beside, there, copied, forks=True) as (supervisor, token, first):
        await until(lambda: (first / "metrics.jsonl").exists() and len(losses(first)) >= EARLY, "some steps")
        await until(lambda: attempts.process_of(attempt(beside, copied, token)), "a word of the trainer's process")
        process = attempts.process_of(attempt(beside, copied, token))
        assert process is not None
        os.killpg(process.pid, signal.SIGSTOP)  # or it might come to its end before it hears of the pause
        await ada.command("run pause", run=copied, channel=channel.id)
        await until(lambda: is_asked(process.pid), "the supervisor's signal")
        os.killpg(process.pid, signal.SIGCONT)
        assert await asyncio.to_thread(supervisor.wait, PATIENCE) == 0
    paused = beside.run(copied)
    assert (paused.state, paused.step < STEPS) == (RunState.PAUSED, True)
    await ada.command("run resume", run=copied, channel=channel.id)
    second = await asyncio.to_thread(trained, beside, there, copied)
    expected = losses(await asyncio.to_thread(trained, beside, here, original))
    assert [step for step, _ in expected] == [*range(1, STEPS + 1)]
    assert losses(first) + losses(second) == expected, "to the last bit"
    assert losses(second)[0][0] == paused.step + 1
    assert not here.corpora_dir.exists()
    assert len(list(there.corpora_dir.glob("songs-*"))) == 1
    loss = f"**Loss** {expected[-1][1]:.3f}"
    await lab.guild.wait_for(channel.id, has(f"· run {copied}", "has finished", loss))

    found = []
    for run, conf in ((copied, there), (original, here)):
        forked = await fork(lab, channel, run)
        found.append(losses(await asyncio.to_thread(trained, beside, conf, forked)))
    assert [step for step, _ in found[0]] == [*range(EARLY + 1, FORKED + 1)]
    assert found[0] == found[1], "to the last bit"


def fund(lab: Lab, beside: brokers.Lab, pool: str) -> int:
    """A new pool, and an allocation of it of the project's."""
    beside.pool(pool)
    until = (datetime.now(UTC) + timedelta(days=30)).date().isoformat()
    asked = {"pool": pool, "hours": "10", "until": until, "justification": "To see."}
    number = int(lab.call(requests.request, lab.actor("Ada"), pool, project_id=1, **asked))
    lab.call(reviews.approve, lab.actor("Rosa"), number, hours="10", reason="Fine.")
    return number


async def launched(lab: Lab, offer: Answer) -> int:
    """The run that Ada launches as she is offered it."""
    assert offer.message is not None
    assert "Launch" in offer.message.button_labels, offer.text
    answer = await lab.person("Ada").press(offer.message, "Launch")
    assert "is queued" in answer.text, answer.text
    return int(answer.text.split("Run ")[1].split()[0])


async def fork(lab: Lab, channel: Channel, run: int) -> int:
    """A fork of a run at its early checkpoint, with other data than those that came then."""
    changes: dict[str, Any] = {"step": EARLY, "override": f"steps={FORKED}, seed=9", "time_limit": "10m"}
    return await launched(lab, await lab.person("Ada").command("run fork", run=run, channel=channel.id, **changes))


def is_asked(pid: int) -> bool:
    """Whether a stopped process has been sent a SIGTERM."""
    [pending] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("ShdPnd")]
    return bool(int(pending.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
