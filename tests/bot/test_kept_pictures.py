"""A run's card keeps its picture while only its text is edited, and draws one anew that its message has lost."""

from typing import Any

import aiohttp

from broker.runners.processes import Process
from broker.runs import attempts, leases, settlement
from broker.runs.progress import Ending, Progress
from sandbox.people import Channel, Message
from tests.bot.conftest import Lab
from tests.bot.test_run_card import progress
from tests.discord_openapi import recorded


async def drawn(lab: Lab) -> tuple[Channel, Message]:
    """A running run's card with a picture."""
    channel = await lab.activate()
    await lab.approved(channel)
    await lab.launch(channel, override="steps=40")
    card = await lab.guild.wait_for(channel.id, lambda m: m.text.endswith("-# P1 · run 1") and m.thread_id is not None)
    token = lab.call(attempts.admit, 1, [0])
    lab.call(leases.claim, 1, token, host="here", lease_seconds=60)
    lab.call(leases.started, 1, token, Process("here", "boot", 1, 1), [], lease_seconds=60)
    lab.call(leases.renew, 1, token, 20.0, progress(1, 10), lease_seconds=60)
    return channel, await lab.guild.wait_for(channel.id, lambda m: m.id == card.id and m.attachments != [])


def edits(lab: Lab, card: Message) -> list[dict[str, Any]]:
    """The requests that edited a card, the oldest first."""
    entries = recorded(lab.root / "sandbox", "exchanges.jsonl")
    return [e["request"] for e in entries if (e["method"], e["path"].rpartition("/")[2]) == ("PATCH", card.id)]


async def test_an_edit_of_its_text_lists_the_picture_by_its_id(lab: Lab) -> None:
    """Also after a restart, when the bot looks the id up in the message; a plain list of attachments lacks it."""
    await lab.start_bot(PICTURE_SECONDS="600")
    channel, card = await drawn(lab)
    lab.call(leases.renew, 1, 1, 40.0, progress(11, 20), lease_seconds=60)
    now = await lab.guild.wait_for(channel.id, lambda m: m.id == card.id and "step 20 of 40" in m.text)
    [picture] = now.attachments
    assert picture.url == card.attachments[0].url
    attachment_id = picture.url.split("/")[-2]
    kept = [{"id": int(attachment_id), "filename": picture.filename}]
    assert edits(lab, card)[-1]["attachments"] == kept

    lab.kill_bot()
    lab.call(settlement.settle, 1, 1, 62.0, Progress(0, 0), Ending(70, reason="It broke."), 0)
    await lab.start_bot()
    done = await lab.guild.wait_for(channel.id, lambda m: m.id == card.id and "has failed" in m.text)
    assert done.attachments != []


async def test_a_picture_that_its_message_has_lost_is_drawn_again(lab: Lab) -> None:
    await lab.start_bot()
    channel, card = await drawn(lab)
    lab.kill_bot()
    info = lab.guild.info
    path = f"{info['discord']}/api/v10/channels/{channel.id}/messages/{card.id}"
    bare: dict[str, Any] = {"components": [{"type": 10, "content": "Somebody else's edit"}], "attachments": []}
    bare["allowed_mentions"] = {"parse": []}
    headers = {"Authorization": f"Bot {info['bot_token']}"}
    async with aiohttp.request("PATCH", path, json=bare, headers=headers) as answer:
        assert answer.status == 200
    lab.call(settlement.settle, 1, 1, 62.0, Progress(0, 0), Ending(70, reason="It broke."), 0)
    await lab.start_bot()
    again = await lab.guild.wait_for(
        channel.id, lambda m: m.id == card.id and "has failed" in m.text and m.attachments != []
    )
    assert again.attachments[0].filename == card.attachments[0].filename
    assert again.attachments[0].url != card.attachments[0].url
