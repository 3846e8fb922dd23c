"""What stands behind the page: who may ask, who is told what, and that nothing foreign gets in."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import discord
import pytest

from sandbox.discord.messages import LOADING
from sandbox.people import Guild
from tests.patience import PATIENCE
from tests.sandbox import bot as bots


@pytest.fixture
async def http(info: dict[str, Any]) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(base_url=info["discord"]) as session:
        yield session


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "{own}"}, 200),
        ({"Origin": "http://elsewhere.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Host": "elsewhere.example"}, 403),
        ({"Host": "127.0.0.1.elsewhere.example"}, 403),
    ],
)
async def test_only_its_own_page_and_programs_here_are_answered(
    http: aiohttp.ClientSession, info: dict[str, Any], guild: Guild, headers: dict[str, str], status: int
) -> None:
    headers = {name: value.format(own=info["discord"]) for name, value in headers.items()}
    for path in ("/", "/sandbox/page", "/sandbox/guild"):
        async with http.get(path, headers=headers) as response:
            assert response.status == status
    async with http.post("/sandbox/members", json={"name": "Mallory"}, headers=headers) as response:
        assert response.status == status
    assert ("Mallory" in (await guild.call("GET", "/guild"))["users"]) == (status == 200)


async def test_the_files_of_the_page_and_no_others(http: aiohttp.ClientSession) -> None:
    for path, kind in (("/", "text/html"), ("/page/app.js", "text/javascript"), ("/page/style.css", "text/css")):
        async with http.get(path) as response:
            assert (response.status, response.content_type) == (200, kind)
            policy = response.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
    for path in ("/page/..%2fpage.py", "/page/%2e%2e%2fstate.py", "/page/none.js", "/page/.."):
        async with http.get(path) as response:
            assert response.status == 404 or "import" not in await response.text()


async def test_each_person_is_told_what_they_may_see(
    http: aiohttp.ClientSession, guild: Guild, bot: bots.Bot, info: dict[str, Any]
) -> None:
    async with (
        http.get("/sandbox/page/stream", params={"user": "Ada"}) as ada,
        http.get("/sandbox/page/stream", params={"user": "Grace"}) as grace,
    ):
        said = await guild.person("Ada").say("general", "<b>hello</b>")
        card = await guild.wait_for("general", lambda m: m.id == said.id)
        first = await told(ada)
        assert (first["kind"], first["message"]["id"]) == ("message", card.id)
        assert first["message"]["content"] == "<b>hello</b>"
        assert not first["message"]["private"]
        assert (await told(grace)) == first

        await guild.person("Ada").command("slow")
        thinking, done, file = [await told(ada) for _ in range(3)]
        assert thinking["message"]["private"]
        assert thinking["message"]["flags"] & LOADING
        assert (done["message"]["id"], done["message"]["content"]) == (thinking["message"]["id"], "Done")
        assert file["message"]["content"] == "And a file"
        await guild.person("Omar").delete("general", said)
        for reader in (ada, grace):
            event = await told(reader)
            assert (event["kind"], event["id"]) == ("gone", said.id)

        await guild.join("Noor")
        for reader in (ada, grace):
            assert (await told(reader))["kind"] == "guild"

        home = bot.guilds[0]
        sees = discord.PermissionOverwrite(view_channel=True)
        shown: dict[discord.Role | discord.Member | discord.Object, discord.PermissionOverwrite] = {
            home.default_role: discord.PermissionOverwrite(view_channel=False),
            home.me: sees,
        }
        shown[await home.fetch_member(int(info["users"]["Ada"]))] = sees
        secret = await home.create_text_channel("for-ada", overwrites=shown)
        for reader in (ada, grace):
            assert (await told(reader))["kind"] == "guild"
        for channel in (secret, bot.text_channel("general")):
            await channel.send(channel.name)
        assert [(await told(ada))["message"]["content"] for _ in range(2)] == ["for-ada", "general"]
        assert (await told(grace))["message"]["content"] == "general"
    for name, status in (("Ada", 200), ("Grace", 400)):
        async with http.get("/sandbox/page/channels/for-ada", params={"user": name}) as response:
            assert response.status == status
    async with http.get("/sandbox/page", params={"user": "Grace"}) as response:
        view = await response.json()
    assert {"name": "Noor", "about": "a newcomer"}.items() <= view["people"][-1].items()
    writes = {channel["name"]: channel["writes"] for channel in view["channels"]}
    assert "for-ada" not in writes
    assert writes["general"]
    assert not writes["announcements"]


async def told(stream: aiohttp.ClientResponse) -> dict[str, Any]:
    """The next event of a stream."""
    async with asyncio.timeout(PATIENCE):
        async for line in stream.content:
            if line.startswith(b"data: "):
                event: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
                return event
    raise AssertionError("the stream ended")
