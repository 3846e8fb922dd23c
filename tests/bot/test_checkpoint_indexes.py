"""The checkpoints of a run, or of the runs of a sweep, share a post of their thread, which is edited as they come."""

from typing import Any

import pytest
from sqlalchemy.orm import Session

from bot.delivery import checkpoint_indexes, posts
from bot.delivery.checkpoint_indexes import MOST
from broker.runs import entries, runs
from projects import updates
from projects.record import redaction
from projects.record.record import EntryView
from sandbox.people import Channel, Message
from tests.bot.conftest import AGED, Lab, has
from tests.bot.test_delivery import open_intents
from tests.bot.test_run_commands import card_of, launched
from tests.patience import until
from tests.system.posts import told

pytestmark = pytest.mark.asyncio(loop_scope="module")

Shared = tuple[Lab, Channel]
TITLE = "📦 **Checkpoints of run {} on the Hub**"


def publish(session: Session, run: int, *steps: int, **more: object) -> None:
    """The record tells of published checkpoints, as the publisher does."""
    for step in steps:
        at: dict[str, Any] = {"tokens": 1000 * step, "held_out": "6.500", "held_out_step": step, "held": False} | more
        url = f"https://hub.example.org/lab/p1-run-{run}/tree/step{step}"
        entries.tell(session, runs.load(session, run), "checkpoint.published", step=step, url=url, first=False, **at)


async def indexes(lab: Lab, thread: str, run: int) -> list[Message]:
    """The indexes of a run in its thread, in the order of posting."""
    found = [m for m in await lab.guild.messages(thread) if m.text.startswith(TITLE.format(run))]
    return sorted(found, key=lambda m: int(m.id))


async def test_one_post_of_a_thread_has_a_line_for_each_checkpoint_and_a_full_one_is_followed_by_another(
    shared_lab: Shared,
) -> None:
    lab, channel = shared_lab
    run = await launched(lab, channel)
    thread = (await card_of(lab, channel, run)).thread_id or ""
    lab.call(publish, run, 1)
    lab.call(publish, run, 2, 3, held_out_step=2)
    index = await lab.guild.wait_for(thread, has("[step 3]"))
    before = lab.heads()["project:1"]
    title, *lines = index.text.splitlines()
    hub = f"https://hub.example.org/lab/p1-run-{run}/tree/step"
    assert title == TITLE.format(run)
    assert lines[:3] == [
        f"[step 1]({hub}1) · 1,000 tokens · held-out 6.500 · record {before - 2}",
        f"[step 2]({hub}2) · 2,000 tokens · held-out 6.500 · record {before - 1}",
        f"[step 3]({hub}3) · 3,000 tokens · held-out 6.500 at step 2 · record {before}",
    ]
    assert lines[3].startswith(f"-# P1 · record {before} · ")

    lab.kill_bot()
    lab.call(publish, run, *range(4, MOST + 3))
    lab.call(updates.post_update, lab.actor("Ada"), 1, "It goes on.")
    await lab.start_bot()
    await lab.guild.wait_for(thread, has(f"[step {MOST + 2}]"))
    await lab.guild.wait_for(thread, has(f"[step {MOST}]", "This post is full", message_id=index.id))
    full, rest = await indexes(lab, thread, run)
    assert full.id == index.id, "a restarted bot goes on with the post that is there"
    assert len(told(full.text)) == MOST
    numbers = [number for _, number in [*told(full.text), *told(rest.text)]]
    assert numbers == list(range(before - 2, before + MOST)), "every entry has its line"

    lab.call(redaction.redact, None, "project:1", before, "A slip.")
    await lab.guild.wait_for(thread, has(f"{posts.BLANKED} · record {before}\n", "[step 2]", message_id=index.id))
    assert "[step 3]" not in (await indexes(lab, thread, run))[0].text


async def test_the_checkpoints_after_a_deleted_index_have_a_new_one(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    run = await launched(lab, channel)
    thread = (await card_of(lab, channel, run)).thread_id or ""
    lab.call(publish, run, 1)
    index = await lab.guild.wait_for(thread, has("[step 1]"))
    await lab.person("Omar").delete(thread, index)
    await lab.guild.fault(rf"POST /channels/{thread}/messages$", cut=True)  # it arrives, and its answer is lost
    lab.call(publish, run, 2, 3)
    await lab.guild.wait_for(thread, has("[step 2]", "[step 3]"))
    await until(lambda: not open_intents(lab))
    lab.call(publish, run, 4)
    await lab.guild.wait_for(thread, has("[step 2]", "[step 3]", "[step 4]"))
    (index,) = await indexes(lab, thread, run)
    assert "[step 1]" not in index.text


async def test_an_old_index_is_edited_when_discord_takes_it_and_nothing_waits_for_it(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    run = await launched(lab, channel)
    thread = (await card_of(lab, channel, run)).thread_id or ""
    lab.call(publish, run, 1)
    index = await lab.guild.wait_for(thread, has("[step 1]"))
    lab.kill_bot()
    await lab.guild.count_as_old(0)
    await lab.guild.limit("old edit", 0, 300.0)
    lab.call(publish, run, 2)
    lab.call(updates.post_update, lab.actor("Ada"), 1, "No index waits for me.")
    await lab.start_bot(AGED)
    await lab.guild.wait_for(channel.id, has("No index waits for me."))
    await until(lambda: lab.sent()["project:1"] == lab.heads()["project:1"])
    assert [m.text for m in await indexes(lab, thread, run)] == [index.text]
    lab.kill_bot()
    await lab.guild.count_as_old(3600)
    await lab.start_bot()
    await lab.guild.wait_for(thread, has("[step 1]", "[step 2]", message_id=index.id))
    assert len(await indexes(lab, thread, run)) == 1
    assert "Traceback" not in lab.log


async def test_the_runs_of_a_sweep_share_an_index_which_names_them() -> None:
    entries = [
        EntryView(n, "project:1", n, "checkpoint.published", f"{n:064}", {"run": n, "sweep": 4, "step": 9, "url": "u"})
        for n in (7, 12)
    ]
    shown = checkpoint_indexes.render("checkpoints:project:1:sweep:4:7", entries)
    assert shown.splitlines() == [
        "📦 **Checkpoints of sweep 4 on the Hub**",
        "run 7 · [step 9](u) · record 7",
        "run 12 · [step 9](u) · record 12",
        "-# P1 · record 12 · 00000000",
    ]
