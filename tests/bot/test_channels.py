"""When a project gets its channel, and where it is told of until then."""

from bot.delivery import posts
from bot.delivery.posts import Destination
from broker.runners.processes import Process
from broker.runs import attempts, leases, settlement
from broker.runs.progress import Ending, Progress
from projects import lifecycle, membership, moderation, policies, updates
from projects.people import Actor, LabRole
from projects.record import redaction
from projects.record.record import EntryView
from sandbox.discord import permissions
from tests.bot.conftest import SCOPE, Lab, has
from tests.bot.test_checkpoint_indexes import publish
from tests.bot.test_run_card import progress as steps
from tests.patience import PATIENCE, until


async def test_by_policy_the_channel_waits_for_a_moderator(lab: Lab) -> None:
    lab.call(policies.change, None, "channel_policy", "moderator", "Too many channels.")
    await lab.start_bot()
    await lab.propose()
    card = await lab.guild.wait_for("proposals", lambda m: m.thread_id is not None)
    thread = card.thread_id or ""
    await lab.guild.wait_for(thread, lambda m: "record 1" in m.text)
    lab.call(lifecycle.join, lab.actor("Grace"), 1, min_people=2)
    form = await lab.person("Ada").command("project scope", channel=thread, checkpoints="held", licence="MIT")
    answer = await lab.person("Ada").submit(form, SCOPE)
    assert "a moderator opens its channel" in answer.text
    scoped = await lab.guild.wait_for(thread, lambda m: "record 3" in m.text)
    assert "Checkpoints are held back until reviewers release them; the models' licence is MIT." in scoped.text
    lab.confirm(1, "Grace")
    lab.call(updates.post_update, lab.actor("Grace"), 1, "We begin.")
    await lab.guild.wait_for(thread, lambda m: "We begin." in m.text and "record 6" in m.text)
    assert not [c.name for c in await lab.guild.channels() if c.name.startswith("p1-")]

    omar = lab.actor("Omar")
    moderator = Actor(omar.discord_id, omar.name, frozenset({LabRole.MODERATOR}))
    lab.call(moderation.open_channel, moderator, 1)
    channel = await lab.guild.wait_for_channel(lambda c: c.name.startswith("p1-"))
    await lab.guild.wait_for(channel.id, lambda m: "Omar** has opened this channel" in m.text)
    await lab.guild.wait_for(thread, lambda m: f"its own channel, <#{channel.id}>" in m.text)
    lab.call(lifecycle.pause, lab.actor("Ada"), 1, reason="Exams.")
    await lab.guild.wait_for(channel.id, lambda m: "pauses the project" in m.text and "Exams." in m.text)
    await lab.guild.wait_for("proposals", lambda m: "Paused" in m.text and "held back" in m.text)


async def test_a_hidden_project_is_not_suggested(lab: Lab) -> None:
    await lab.start_bot()
    await lab.propose()
    await lab.guild.wait_for("proposals", lambda m: m.thread_id is not None)
    lab.call(membership.follow, lab.actor("Rosa"), 1)
    await lab.guild.wait_for("proposals", lambda m: "**Followers** 1" in m.text)
    omar = Actor(99, "Omar", frozenset({LabRole.MODERATOR}))
    before = await lab.person("Grace").command("project list")
    lab.call(moderation.hide, omar, 1, reason="Spam.")
    after = await lab.person("Grace").command("project list")
    assert ("dream" in before.text, "no project yet" in after.text) == (True, True)


def test_a_run_of_a_project_without_a_channel_is_told_in_its_thread() -> None:
    told = EntryView(1, "project:1", 3, "run.started", "0" * 64, {"run": 1, "attempt": 1, "by": None})
    assert posts.destinations(told, has_channel=False) == [Destination.PROPOSAL]
    assert posts.destinations(told, has_channel=True) == [Destination.RUN]


async def test_a_run_before_the_channel_has_its_card_in_the_proposals_thread(lab: Lab) -> None:
    """A starter grant may be used at once; the card stays where it is once the project has its channel.

    It goes on where the thread is archived, and rests where a moderator has locked it, which holds nothing else up.
    """
    await lab.start_bot()
    await lab.propose()
    thread = (await lab.guild.wait_for("proposals", lambda m: m.thread_id is not None)).thread_id or ""
    await lab.guild.wait_for(thread, lambda m: "record 1" in m.text)
    project = next(c for c in await lab.guild.channels() if c.id == thread)
    assert "yours at once" in (await lab.request(project, "1")).text
    await lab.launch(project, override="steps=400")
    card = await lab.guild.wait_for(thread, lambda m: m.text.endswith("-# P1 · run 1"))
    assert "Pause" in card.button_labels
    token = lab.call(attempts.admit, 1, [0])
    lab.call(leases.claim, 1, token, host="here", lease_seconds=60)
    lab.call(leases.started, 1, token, Process("here", "boot", 1, 1), [], lease_seconds=60)
    lab.call(leases.renew, 1, token, 20.0, steps(1, 10), lease_seconds=60)
    await lab.guild.wait_for(thread, lambda m: m.id == card.id and "step 10 of" in m.text and m.attachments != [])

    lab.call(lifecycle.join, lab.actor("Grace"), 1, min_people=2)
    form = await lab.person("Ada").command("project scope", channel=thread)
    await lab.person("Ada").submit(form, SCOPE)
    channel = await lab.guild.wait_for_channel(lambda c: c.name.startswith("p1-"))
    await lab.guild.wait_for(channel.id, lambda m: "record" in m.text)
    omar = lab.person("Omar")
    await omar.set_thread(thread, archived=True)
    lab.call(leases.renew, 1, token, 21.0, steps(11, 20), lease_seconds=60)
    await lab.guild.wait_for(thread, lambda m: m.id == card.id and "step 20 of" in m.text)
    lab.call(settlement.settle, 1, token, 20.0, Progress(0, 0), Ending(70, reason="It broke."), 0)
    for place in (thread, channel.id):
        await lab.guild.wait_for(place, lambda m: "It broke." in m.text and "record" in m.text)
    await lab.guild.wait_for(thread, lambda m: m.id == card.id and "has failed" in m.text)
    rooms = [(c.name, c.is_thread) for c in await lab.guild.channels()]
    assert [is_thread for name, is_thread in rooms if "Run" in name] == []

    await lab.guild.set_permissions("Stoa", permissions.BOT & ~permissions.MANAGE_THREADS)
    await omar.set_thread(thread, archived=True, locked=True)
    lab.call(redaction.forget, None, lab.guild.info["users"]["Ada"], "They asked.")
    await until(lambda: "a moderator has locked the thread" in lab.log)
    lab.call(lifecycle.join, lab.actor("Rosa"), 1, min_people=2)
    await lab.guild.wait_for(channel.id, lambda m: "Rosa" in m.text and "joins the project" in m.text)
    assert "posting waits" not in lab.log
    assert "Traceback" not in lab.log


async def test_an_index_in_a_thread_that_is_gone_holds_up_no_card_of_the_project(lab: Lab) -> None:
    """A run from before the project had a channel is told in the proposal's thread, which goes with the lab's own."""
    await lab.start_bot()
    await lab.propose()
    thread = (await lab.guild.wait_for("proposals", lambda m: m.thread_id is not None)).thread_id or ""
    await lab.guild.wait_for(thread, has("record 1"))
    project = next(c for c in await lab.guild.channels() if c.id == thread)
    await lab.request(project, "1")
    await lab.launch(project)
    await lab.guild.wait_for(thread, lambda m: m.text.endswith("-# P1 · run 1"))
    lab.call(lifecycle.join, lab.actor("Grace"), 1, min_people=2)
    form = await lab.person("Ada").command("project scope", channel=thread)
    await lab.person("Ada").submit(form, SCOPE)
    channel = await lab.guild.wait_for_channel(lambda c: c.name.startswith("p1-"))
    await lab.guild.wait_for(channel.id, lambda m: m.text.endswith("P1 · welcome"))
    lab.call(publish, 1, 1)
    index = await lab.guild.wait_for(thread, has("[step 1]"))
    await lab.guild.fault(rf"PATCH /channels/{thread}/messages/{index.id}$", delay=PATIENCE)
    lab.call(publish, 1, 2)
    await until(lambda: lab.sent()["project:1"] == lab.heads()["project:1"])
    await lab.person("Omar").delete_channel("proposals")
    await lab.guild.clear_faults()
    await until(lab.logged("key=checkpoints:project:1:run:1:"))
    lab.call(lifecycle.join, lab.actor("Rosa"), 1, min_people=2)
    await lab.guild.wait_for(channel.id, lambda m: m.text.endswith("P1 · welcome") and "Rosa" in m.text)
    assert "Traceback" not in lab.log
