"""The pace of the bot's requests: below Discord's limit over all routes, and never before a person's answer."""

import asyncio
from pathlib import Path

import aiohttp

from bot.rate_limit import RateLimit
from sandbox.__main__ import describe
from sandbox.discord import server as discord_server


async def test_a_crowd_of_requests_meets_no_global_limit(tmp_path: Path) -> None:
    """What would be refused all at once goes through in turn, while an interaction's answer does not wait."""
    runner, server = await discord_server.start(tmp_path)
    info = describe(server, None, "")
    api, headers = f"{info['discord']}/api/v10", {"Authorization": f"Bot {info['bot_token']}"}
    addresses = [f"{api}/channels/{channel}" for channel in info["channels"].values()]
    server.rates.limits |= {"GET /channels/{channel_id}": (1000, 1.0), "global": (10, 2.0)}

    async def crowd(trace: list[aiohttp.TraceConfig]) -> tuple[list[int], bool]:
        """How a crowd of requests was answered, and whether an interaction's answer went before some of them."""
        async with aiohttp.ClientSession(headers=headers, trace_configs=trace) as session:

            async def get(number: int) -> int:
                async with session.get(addresses[number % len(addresses)]) as answer:
                    return answer.status

            asked = [asyncio.ensure_future(get(number)) for number in range(15)]
            await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            async with session.post(f"{api}/interactions/1/token/callback", json={"type": 5}) as late:
                assert late.status == 404
            before_some = not all(task.done() for task in asked)
            return await asyncio.gather(*asked), before_some

    try:
        assert 429 in (await crowd([]))[0]
        await asyncio.sleep(2.0)  # the window is over
        statuses, before_some = await crowd([RateLimit(a_second=4.0).trace])
        assert set(statuses) == {200}
        assert before_some
    finally:
        await discord_server.stop(runner, server)


async def test_refusals_slow_the_bot_down_before_discord_shuts_it_out(tmp_path: Path) -> None:
    runner, server = await discord_server.start(tmp_path)
    server.rates.limits["invalid"] = (5, 600.0)
    url = f"{server.world.base_url}/api/v10/users/@me"
    try:
        async with aiohttp.ClientSession(trace_configs=[RateLimit(most_invalid=4).trace]) as session:
            answers = [(await session.get(url)).status for _ in range(4)]
            assert answers == [401] * 4
            waiting = asyncio.ensure_future(session.get(url))
            done, _ = await asyncio.wait([waiting], timeout=0.5)
            assert not done
            assert server.rates.shut_out() is None
            waiting.cancel()
    finally:
        await discord_server.stop(runner, server)
