"""Limits of Discord's beside its buckets: edits of old messages, the gateway's, and the network in front of it."""

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from sandbox.discord.wire import Server
from sandbox.people import Guild
from tests.discord_openapi import DiscordJudge
from tests.sandbox.conftest import Rest


async def test_old_messages_bear_few_edits(
    rest: Rest, guild: Guild, info: dict[str, Any], judge: DiscordJudge, tmp_path: Path
) -> None:
    path = f"/channels/{info['channels']['general']}/messages"
    ids = [(await rest("POST", path, {"content": "a card"}))[1]["id"] for _ in range(2)]
    await guild.count_as_old(0.0)
    await guild.limit("old edit", 2, 60.0)
    answers = [await rest("PATCH", f"{path}/{ids[n % 2]}", {"content": f"{n}"}) for n in range(3)]
    assert [status for status, _ in answers] == [200, 200, 429]
    refusal = answers[2][1]
    assert refusal["code"] == 30046
    assert 0 < refusal["retry_after"] <= 60
    assert [m.text for m in await guild.messages("general")] == ["0", "1"]
    await guild.count_as_old(3600.0)
    assert (await rest("PATCH", f"{path}/{ids[0]}", {"content": "young again"}))[0] == 200
    assert judge.judge_recorded(tmp_path) == []


@pytest.mark.parametrize("invalid", [{"Authorization": "Bot wrong"}, {}])
async def test_too_many_refusals_shut_an_address_out(
    sandbox: Server, guild: Guild, info: dict[str, Any], invalid: dict[str, str]
) -> None:
    """Only what the bot is to blame for counts, and even what would be allowed is refused then, in another form."""
    await guild.limit("invalid", 3, 60.0)
    headers = {"Authorization": f"Bot {info['bot_token']}"}
    url = f"{info['discord']}/api/v10/users/@me"
    async with aiohttp.ClientSession() as session:
        statuses = [(await session.get(url, headers=headers | invalid)).status for _ in range(3)]
        assert statuses == [401] * 3 if invalid else [200] * 3
        answer = await session.get(url, headers=headers)
    if invalid:
        assert (answer.status, answer.headers.get("Via"), answer.content_type) == (429, None, "text/plain")
        assert sandbox.rates.shut_out() is not None
    else:
        assert answer.status == 200


async def test_a_gateway_connection_bears_120_events_a_minute(info: dict[str, Any]) -> None:
    async with aiohttp.ClientSession() as session, session.ws_connect(info["gateway"]) as socket:
        await socket.receive()
        for _ in range(120):
            await socket.send_json({"op": 1, "d": None})
        assert {json.loads((await socket.receive()).data)["op"] for _ in range(120)} == {11}
        await socket.send_json({"op": 1, "d": None})
        await socket.receive()
        assert socket.close_code == 4008
