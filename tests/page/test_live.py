"""What comes, changes and goes while one reads, and a server that goes away, from a small bot on stock discord.py."""

import asyncio
from typing import Any

import pytest
from playwright.async_api import Browser, Route, expect

from tests.page.conftest import DESKTOP, Visit
from tests.sandbox import bot as bots

pytestmark = [pytest.mark.asyncio(loop_scope="package"), pytest.mark.timeout(120)]


async def test_what_comes_while_a_channel_is_read(bot: tuple[bots.Bot, dict[str, Any]], browser: Browser) -> None:
    client, info = bot
    channel = client.text_channel("announcements")
    edited, deleted = await channel.send("an early word"), await channel.send("a word too much")
    visit = await Visit.begin(browser, info["discord"], DESKTOP, "light")
    page = visit.page
    words = page.locator(".message .body")
    await visit.channel("general")
    general = await client.text_channel("general").send("in general", view=bots.Board())
    await expect(page.locator(f"#m{general.id}")).to_be_visible()

    read, answer = asyncio.Event(), asyncio.Event()

    async def held(route: Route) -> None:
        response = await route.fetch()
        read.set()
        await answer.wait()
        await route.fulfill(response=response)

    await page.route("**/sandbox/page/channels/*", held)
    await visit.channel("announcements")
    await expect(page.locator(".message")).to_have_count(0)  # the head says another channel than theirs
    await read.wait()
    await edited.edit(content="a later word")
    await deleted.delete()
    await channel.send("come meanwhile")
    await expect(words.filter(has_text="come meanwhile")).to_be_visible()
    answer.set()
    await expect(page.locator("#messages")).to_have_attribute("data-channel", str(channel.id))  # it is read
    await expect(words).to_have_text(["a later word", "come meanwhile"])

    # So too where it is read again, in the place of what is shown.
    read.clear()
    answer.clear()
    await visit.be("Grace")
    await read.wait()
    await channel.send("and again")
    await expect(words.filter(has_text="and again")).to_be_visible()
    answer.set()
    await expect(words).to_have_text(["a later word", "come meanwhile", "and again"])
    await visit.end()
