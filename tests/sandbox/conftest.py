"""A running sandbox, its people and a stock discord.py bot; every exchange is judged when a test ends."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from huggingface_hub import set_client_factory
from huggingface_hub.utils._http import default_client_factory

from sandbox.__main__ import describe
from sandbox.discord import server as discord_server
from sandbox.discord.wire import Server
from sandbox.people import Guild
from tests.absent import absent
from tests.discord_openapi import DESCRIPTION_ENV, DiscordJudge, find_description
from tests.sandbox import bot as bots


@pytest.fixture(autouse=True)
def stock_hub_client() -> None:
    """The Hub's client is as it comes: the broker's tests in the same process have set another for all of it."""
    set_client_factory(default_client_factory)


@pytest.fixture(scope="session")
def judge() -> DiscordJudge:
    if find_description() is None:
        absent("Discord's API description", f"not at {DESCRIPTION_ENV} nor in ../shared/discord")
    return DiscordJudge()


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[Server]:
    runner, server = await discord_server.start(tmp_path)
    try:
        yield server
    finally:
        await discord_server.stop(runner, server)


@pytest.fixture
def info(sandbox: Server) -> dict[str, Any]:
    return describe(sandbox, None, "")


@pytest.fixture
async def guild(info: dict[str, Any]) -> AsyncIterator[Guild]:
    async with Guild(info) as guild:
        yield guild


@pytest.fixture
async def bot(info: dict[str, Any]) -> AsyncIterator[bots.Bot]:
    bot = await bots.start(info)
    try:
        yield bot
    finally:
        await bot.close()


Rest = Callable[..., Awaitable[tuple[int, Any]]]


@pytest.fixture
async def rest(info: dict[str, Any]) -> AsyncIterator[Rest]:
    """A bare client of the bot's API: `await rest("POST", "/channels/1/messages", {...})` gives (status, body)."""
    async with aiohttp.ClientSession(headers={"Authorization": f"Bot {info['bot_token']}"}) as session:

        async def request(method: str, path: str, body: Any = None, **options: Any) -> tuple[int, Any]:
            url = f"{info['discord']}/api/v10{path}"
            async with session.request(method, url, json=body, **options) as response:
                assert response.status == 204 or response.headers["Content-Type"] == "application/json"
                return response.status, await response.json() if response.status != 204 else None

        yield request
