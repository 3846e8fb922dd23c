"""Each sort of component, answer and form as the page shows it, from a small bot on stock discord.py."""

from typing import Any

import discord
import pytest
from discord import ui
from playwright.async_api import Browser, expect

from tests.page.conftest import DESKTOP, PHONE, Visit
from tests.sandbox import bot as bots

pytestmark = [pytest.mark.asyncio(loop_scope="package")]


class Sheet(ui.LayoutView):
    """What the bot's own cards do not have."""

    def __init__(self) -> None:
        super().__init__(timeout=None)
        thumbnail = ui.Thumbnail[Any]("attachment://small.png", description="A small picture")
        places: ui.ChannelSelect[Any] = ui.ChannelSelect(placeholder="Where")
        several: ui.Select[Any] = ui.Select(
            placeholder="Several",
            max_values=2,
            options=[discord.SelectOption(label=name, description=f"The {name} one") for name in ("red", "green")],
        )
        several.callback = self.chosen  # type: ignore[method-assign]
        self.several = several
        link: ui.Button[Any] = ui.Button(label="The paper", url="https://example.org/paper")
        self.add_item(
            ui.Container(
                ui.Section("# Heading\n-# small print\n> a quote\n1. one\n2. two", accessory=thumbnail),
                ui.Section("A question", accessory=ui.Button(label="Answer it " + "in many words " * 4)),
                ui.Separator(spacing=discord.SeparatorSpacing.large),
                ui.TextDisplay(
                    "**bold** *slanted* __under__ ~~gone~~ ||hidden|| `code` [a link](https://example.org) a_b_c"
                    " <t:99999999999999>"
                ),
                ui.ActionRow(several),
                ui.ActionRow(places),
                ui.ActionRow(link),
                accent_colour=0xE69F00,
            )
        )

    async def chosen(self, interaction: discord.Interaction) -> None:
        await interaction.response.send_message(" and ".join(sorted(self.several.values)), ephemeral=True)


async def test_cards_and_selects(bot: tuple[bots.Bot, dict[str, Any]], browser: Browser) -> None:
    client, info = bot
    channel = client.text_channel("general")
    sheet = await channel.send(view=Sheet(), file=bots.picture("small.png"))
    board = await channel.send("Choose one", view=bots.Board())
    visit = await Visit.begin(browser, info["discord"], PHONE, "light")
    page, keys = visit.page, visit.page.keyboard
    await page.goto(f"{info['discord']}/#{channel.id}")
    card = page.locator(f"#m{sheet.id} .card")
    await expect(card.get_by_role("heading")).to_have_text("Heading")
    await expect(card.get_by_role("img")).to_have_attribute("alt", "A small picture")
    await expect(card).to_have_css("border-left-color", "rgb(230, 159, 0)")
    await expect(card.get_by_role("link", name="a link")).to_have_attribute("rel", "noopener noreferrer")
    await expect(card.locator("p").last).to_contain_text("a_b_c <t:99999999999999>")  # which no clock can say
    for tag, words in (("b", "bold"), ("i", "slanted"), ("u", "under"), ("s", "gone"), ("small", "small print")):
        await expect(card.locator(tag).first).to_have_text(words)

    await card.locator("summary").filter(has_text="Several").click()
    await visit.look("components")
    for name in ("red", "green"):
        await card.get_by_label(name).check()
    await card.get_by_role("button", name="Choose", exact=True).click()
    await visit.answered("green and red")

    menu = page.locator(f"#m{board.id}")
    await expect(menu.get_by_role("button", name="Rest")).to_be_disabled()
    await menu.locator("summary").focus()
    await keys.press("Enter")
    await keys.press("Tab")
    await keys.press("Enter")
    await expect(menu).to_contain_text("picked A")
    await menu.get_by_role("button", name="Work").click()
    await visit.answered("worked")
    await sheet.delete()
    await expect(card).to_have_count(0)
    await visit.end()


async def test_answers_and_forms(bot: tuple[bots.Bot, dict[str, Any]], browser: Browser) -> None:
    client, info = bot
    visit = await Visit.begin(browser, info["discord"], DESKTOP, "dark")
    page = visit.page
    await visit.channel("general")
    await visit.type("slow", seconds="3000")
    private = page.locator(".private")
    await expect(private).to_contain_text("is thinking")
    client.hurry.set()
    await expect(private.first).to_contain_text("Done")
    await expect(private.last.get_by_role("img").last).to_be_visible()
    await visit.look("answers")
    await visit.answered("And a file")
    await visit.answered("Done")

    await visit.type("slow", answer=("fa", "false"))
    await expect(page.locator("#hint")).to_contain_text("did not answer in time")
    await page.keyboard.press("Escape")

    await page.locator("#line").fill("")
    await visit.type("project scope", goal="ab", hours="5", lead=("ro", "Rosa"))
    await expect(page.locator("#hint")).to_contain_text("between 3 and 20 characters")
    await page.locator("#option-goal").fill("abc")
    await page.locator("#option-hours").fill("500")
    await page.keyboard.press("Enter")
    await expect(page.locator("#hint")).to_contain_text("at most 100")
    await page.locator("#option-hours").fill("50")
    await page.keyboard.press("Enter")
    await expect(page.locator(".message").last).to_contain_text("abc 50 Rosa(reviewer) -")

    await visit.type("project propose")
    dialog = page.get_by_role("dialog")
    await dialog.get_by_role("button", name="Submit").click()
    await expect(dialog.get_by_role("alert")).to_contain_text("“Title” is required")
    await dialog.get_by_label("Title").fill("Sleep")
    await dialog.get_by_label("Field").select_option("d")
    await dialog.get_by_label("Note").fill("x < y")
    await page.keyboard.press("Control+Enter")
    await visit.answered("Sleep|d|x < y")
    await visit.end()
