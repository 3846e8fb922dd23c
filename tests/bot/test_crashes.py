"""Killed at random moments between intent and confirmation while Discord fails: each entry is there once, in order."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from projects import lifecycle, updates
from sandbox.discord import permissions
from tests.bot.conftest import Lab
from tests.bot.test_delivery import POST, activate, cards, forget_nonces, open_intents, propose, told
from tests.patience import until

ANY_EDIT = r"PATCH /channels/\d+/messages/\d+$"
KILLS = 3
UPDATES = 3

Fault = Callable[[Lab], Awaitable[object]]
FAULTS: list[Fault] = [
    lambda lab: lab.guild.fault(POST, cut=True),
    lambda lab: lab.guild.fault(POST, cut=True, delay=0.2),
    lambda lab: lab.guild.fault(POST, count=2, status=503),
    lambda lab: lab.guild.fault(POST, status=500),
    lambda lab: lab.guild.fault(POST, status=429, retry_after=0.2),
    lambda lab: lab.guild.fault(POST, status=403),
    lambda lab: lab.guild.fault(ANY_EDIT, cut=True),
    lambda lab: lab.guild.drop_gateway(),
    lambda lab: lab.guild.drop_gateway(forget=True),
]


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_whatever_fails_and_whenever_it_dies(lab: Lab, seed: int) -> None:
    chance = random.Random(seed)
    await lab.guild.enforce_limits(False)  # the bot keeps them; without them it dies faster
    projects = [propose(lab, f"Fall {n}") for n in range(2)]
    for number in projects:
        activate(lab, number)
    for kill in range(KILLS):
        for fault in chance.sample(FAULTS, 2):
            await fault(lab)
        lab.spawn_bot()
        for number in projects:
            for update in range(UPDATES):
                lab.call(updates.post_update, lab.actor("Ada"), number, f"After {kill} falls, step {update}.")
        await until(lambda: bool(open_intents(lab)))
        await asyncio.sleep(chance.uniform(0, 0.3))
        await until(lambda: bool(open_intents(lab)))
        await asyncio.sleep(chance.uniform(0, 0.02))
        lab.kill_bot()
        if chance.random() < 0.5:
            lab.call(forget_nonces)
    await lab.guild.clear_faults()
    await lab.start_bot()
    await lab.guild.drop_gateway()
    await until(lambda: lab.sent() == lab.heads() and not open_intents(lab))
    for number in projects:
        heard = await told(lab, number)
        # The entry that opens the channel is told there and in the proposal's thread.
        assert heard == [1, 2, 3, 4, *range(4, 5 + KILLS * UPDATES)]
        assert await cards(lab, number) == 1


async def test_a_history_that_cannot_be_read_is_not_taken_for_empty(lab: Lab) -> None:
    """Without the permission Discord shows a channel as empty: a post in doubt waits, and the admins are told."""
    await lab.start_bot()
    propose(lab)
    thread = (await lab.guild.wait_for("proposals", lambda m: m.thread_id is not None)).thread_id or ""
    await lab.guild.wait_for(thread, lambda m: "record 1" in m.text)
    there = rf"POST /channels/{thread}/messages$"
    await lab.guild.fault(there, cut=True)
    await lab.guild.fault(there, count=1000, status=503)
    lab.call(lifecycle.join, lab.actor("Grace"), 1, min_people=2)
    await lab.guild.wait_for(thread, lambda m: "record 2" in m.text)
    roles = {"@everyone": permissions.EVERYONE, "Stoa": permissions.BOT}
    for role, bits in roles.items():
        await lab.guild.set_permissions(role, bits & ~permissions.READ_MESSAGE_HISTORY)
    lab.call(forget_nonces)
    await lab.guild.clear_faults()
    notice = await lab.guild.wait_for("compute-review", lambda m: "waits at record 2" in m.text)
    assert f"lacks a permission in <#{thread}>" in notice.text
    assert await told(lab, 1) == [1, 2]
    for role, bits in roles.items():
        await lab.guild.set_permissions(role, bits)
    await until(lambda: lab.sent() == lab.heads())
    await lab.guild.wait_for("compute-review", lambda m: m.id == notice.id and "✅" in m.text)
    assert await told(lab, 1) == [1, 2]


async def test_an_answer_too_late_is_no_second_act(lab: Lab) -> None:
    """A person whose answer never came asks again; what the first request did stands once."""
    await lab.start_bot()
    await lab.guild.fault(r"POST /interactions/", delay=3.3)
    form = await lab.person("Ada").command("project propose")
    assert form.kind == "none"
    await lab.propose()
    await lab.guild.wait_for("proposals", lambda m: m.thread_id is not None)
    card = await lab.guild.wait_for("proposals", lambda m: any(b.label == "Join" for b in m.buttons))
    await lab.guild.fault(r"POST /interactions/", delay=3.3)
    assert (await lab.person("Grace").press(card, "Join")).kind == "none"
    await until(lambda: lab.sent().get("project:1") == lab.heads()["project:1"])
    again = await lab.person("Grace").press(card, "Join")
    assert again.kind != "none"
    await until(lambda: lab.log.count("an answer came too late") == 2)
    await lab.guild.fault(r"POST /interactions/", delay=3.3)
    assert await lab.person("Ada").complete("project show", "project", "dream") == []
    assert len(await lab.person("Ada").complete("project show", "project", "dream")) == 1
    assert "Traceback" not in lab.log
