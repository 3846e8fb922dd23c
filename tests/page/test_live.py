"""What comes, changes and goes while one reads, and a server that goes away, from a small bot on stock discord.py."""

import asyncio
from pathlib import Path
from typing import Any

import discord
import pytest
from discord import ui
from playwright.async_api import Browser, Route, expect

from sandbox.__main__ import describe
from sandbox.discord import server as discord_server
from sandbox.page.page import FEED
from tests.page.conftest import DESKTOP, DRAWN, PHONE, Visit
from tests.sandbox import bot as bots

pytestmark = [pytest.mark.asyncio(loop_scope="package")]

TOP = "it => it.getBoundingClientRect().top"
WHOLE = """it => {
    const text = document.createRange();
    text.selectNodeContents(it);
    return text.getBoundingClientRect().width <= it.getBoundingClientRect().width;
}"""


class Slow:
    """Answers to the page that wait until they are let go."""

    def __init__(self) -> None:
        self.made = asyncio.Event()
        self.gone = asyncio.Event()

    async def __call__(self, route: Route) -> None:
        response = await route.fetch()
        self.made.set()
        await self.gone.wait()
        await route.fulfill(response=response)

    def again(self) -> None:
        self.made.clear()
        self.gone.clear()


async def test_what_comes_while_a_channel_is_read(bot: tuple[bots.Bot, dict[str, Any]], browser: Browser) -> None:
    client, info = bot
    channel = client.text_channel("announcements")
    edited, deleted = await channel.send("an early word"), await channel.send("a word too much")
    visit = await Visit.begin(browser, info["discord"], DESKTOP, "light")
    page, slow = visit.page, Slow()
    words = page.locator(".message .body")
    await visit.channel("general")
    await expect(page.locator(".beginning")).to_contain_text("Nothing has been said")
    await client.text_channel("general").send("in general")
    await expect(words).to_have_text("in general")
    await expect(page.locator(".beginning")).to_have_text("This is where #general begins.")

    await page.route("**/sandbox/page/channels/*", slow)
    await visit.channel("announcements")
    await expect(page.locator(".message")).to_have_count(0)  # the head says another channel than theirs
    await slow.made.wait()
    await edited.edit(content="a later word")
    await deleted.delete()
    await channel.send("come meanwhile")
    await expect(words.filter(has_text="come meanwhile")).to_be_visible()
    slow.gone.set()
    await expect(page.locator("#messages")).to_have_attribute("data-channel", str(channel.id))  # it is read
    await expect(words).to_have_text(["a later word", "come meanwhile"])

    # So too where it is read again, in the place of what is shown.
    slow.again()
    await visit.be("Grace")
    await slow.made.wait()
    await channel.send("and again")
    await expect(words.filter(has_text="and again")).to_be_visible()
    slow.gone.set()
    await expect(words).to_have_text(["a later word", "come meanwhile", "and again"])
    await visit.end()


async def test_a_name_that_the_page_learns_later(bot: tuple[bots.Bot, dict[str, Any]], browser: Browser) -> None:
    client, info = bot
    visit = await Visit.begin(browser, info["discord"], DESKTOP, "light")
    page, slow = visit.page, Slow()
    await visit.channel("public-record")
    await page.route("**/sandbox/page?user=*", slow)
    made = await client.guilds[0].create_text_channel("p9-dreams", topic=r"What \*\*models\*\* dream")
    await client.text_channel("public-record").send(f"It lives in <#{made.id}>.")
    await expect(page.locator(".message").last).to_contain_text("It lives in #unknown.")
    slow.gone.set()
    await expect(page.locator(".message").last).to_contain_text("It lives in #p9-dreams.")
    await page.locator(".message").last.get_by_role("link").click()
    await expect(page.locator("#topic")).to_have_text("What **models** dream")
    await visit.end()


def board(*labels: str) -> ui.View:
    """A select and a button for each label."""
    made = ui.View(timeout=None)
    made.add_item(ui.Select(placeholder="Pick", options=[discord.SelectOption(label=name) for name in ("A", "B")]))
    for label in labels:
        made.add_item(ui.Button(label=label))
    return made


async def test_the_focus_and_the_place_outlast_an_edit(bot: tuple[bots.Bot, dict[str, Any]], browser: Browser) -> None:
    client, info = bot
    channel = client.text_channel("compute-review")
    message = await channel.send("as it was", view=board("Pause"))
    visit = await Visit.begin(browser, info["discord"], DESKTOP, "light")
    page = visit.page
    await visit.channel("compute-review")
    shown, focused = page.locator(f"#m{message.id}"), page.locator(":focus")

    await shown.locator("summary").filter(has_text="Pick").press("Enter")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Tab")
    await message.edit(content="changed")
    await expect(shown).to_contain_text("changed")
    await expect(focused).to_have_text("B")  # in the list, which is still open
    await shown.get_by_role("button", name="Pause").focus()
    await message.edit(view=board("Resume"))
    await expect(focused).to_have_text("Resume")
    await message.edit(content="ended", view=None)
    await expect(shown).to_contain_text("ended")
    await expect(page.locator(f"#m{message.id}:focus")).to_be_visible()

    # What one reads stays where it is while a message above it grows, and so does the end of all.
    for lines in (30, 30, 30, 1):
        await channel.send("\n".join(f"line {line}" for line in range(lines)))
    read = page.locator(".message").nth(2)
    await read.evaluate("it => it.scrollIntoView()")
    before = await read.evaluate(TOP)
    await message.edit(content="grown\n" * 20)
    await expect(shown).to_contain_text("grown")
    assert abs(await read.evaluate(TOP) - before) < 1
    await page.evaluate("document.querySelector('#messages').scrollTop = 1e6")
    await expect(page.locator(".message").last).to_be_in_viewport(ratio=1)
    # A page that is asked where it stands lays itself out between a change of size and the frame that tells of it.
    await page.evaluate("setInterval(() => document.querySelector('#messages').scrollTop, 0)")
    for width, height in (PHONE, (PHONE[0], 500), DESKTOP, PHONE, DESKTOP):
        await page.set_viewport_size({"width": width, "height": height})
        await expect(page.locator(".message").last).to_be_in_viewport(ratio=1)
    await visit.end()


async def test_on_a_phone(bot: tuple[bots.Bot, dict[str, Any]], browser: Browser) -> None:
    client, info = bot
    place = await client.guilds[0].create_text_channel("p2-do-emoji-titles-break-the-cards-of-a-project")
    for number in range(3):
        last = await place.send("\n".join(f"{number}.{line}" for line in range(15)))
    thread = await last.create_thread(name="Run 10")
    visit = await Visit.begin(browser, info["discord"], PHONE, "light", moving=True)  # its drawer slides
    page = visit.page

    await page.locator("#open").press("Enter")
    await expect(page.locator("#channels a:focus")).to_contain_text("proposals")
    await page.set_viewport_size({"width": DESKTOP[0], "height": DESKTOP[1]})
    await expect(page.locator("body:not(.drawer)")).to_be_visible()  # a wide window has no drawer, and covers nothing
    await page.locator("#who").focus()
    await expect(page.locator("#who:focus")).to_be_visible()
    await page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    await page.wait_for_function("matchMedia('(max-width: 760px)').matches")
    await page.evaluate(DRAWN)  # which shuts the drawer of the former width
    await page.locator("#open").press("Enter")
    await expect(page.locator("#channels a:focus")).to_contain_text("proposals")
    for _ in range(40):  # what the list covers cannot be reached
        await page.keyboard.press("Tab")
        assert await page.evaluate("!document.activeElement.closest('main')")
    await page.keyboard.press("Escape")
    await page.locator("#open").click()
    await visit.channel("p2-do-emoji")
    await expect(page.locator("#side")).to_be_hidden()
    newest = page.locator(".message").last
    await expect(newest).to_be_in_viewport(ratio=1)
    await page.locator("#line").focus()
    await page.keyboard.type("/project scope")
    await page.keyboard.press("Enter")
    await expect(page.locator("#option-goal")).to_be_focused()
    await expect(newest).to_be_in_viewport(ratio=1)
    await visit.look("bar")
    await page.keyboard.press("Escape")
    await expect(page.locator("#hint")).to_be_empty()

    await page.goto(f"{info['discord']}/#{thread.id}")
    await expect(page.locator("#name")).to_contain_text("Run 10")
    assert await page.locator("#name b").evaluate(WHOLE)
    await visit.look("thread")
    await visit.end()


async def test_a_server_that_goes_away(tmp_path: Path, browser: Browser) -> None:
    runner, server = await discord_server.start(tmp_path)
    visit = await Visit.begin(browser, describe(server, None, "")["discord"], PHONE, "light")
    hint = visit.page.locator("#hint")
    await visit.page.context.set_offline(True)
    await runner.app[FEED].close(runner.app)  # a stream that is open outlasts the network
    await expect(hint).to_contain_text("The server does not answer")
    await visit.page.context.set_offline(False)
    await expect(hint).to_be_empty()
    await discord_server.stop(runner, server)
    await expect(hint).to_contain_text("The server does not answer")
    await visit.page.locator("#line").focus()
    await expect(hint).to_contain_text("The server does not answer")
    assert [said for said in visit.complaints if "ERR_" not in said] == []
    await visit.page.context.close()
