"""A real Chromium before the page of a lab whose bot is real."""

import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Locator, Page, Request, async_playwright, expect

from broker.plots import canvas
from sandbox.__main__ import describe
from sandbox.discord import server as discord_server
from tests.absent import absent
from tests.bot.conftest import ROOT, Lab, judge, wire_problems
from tests.discord_openapi import DiscordJudge
from tests.patience import PATIENCE
from tests.sandbox import bot as bots

__all__ = ["judge"]

ARTIFACTS = ROOT / "var" / "page"
SCREENSHOTS = "STOA_SCREENSHOTS" in os.environ
DESKTOP, PHONE = (1280, 920), (390, 844)
Scheme = Literal["light", "dark"]
SCHEMES: tuple[Scheme, Scheme] = ("light", "dark")
LOOKS = (Path(__file__).parent / "looks.js").read_text()
SMALLEST = canvas.SMALL * canvas.DPI / 72
"""The size of the smallest text in a loss curve, in its pixels: points × dots per inch, 72 points to the inch."""
REACHABLE = """[...document.querySelectorAll('a[href], button:enabled, input, select, textarea, summary')]
    .filter(it => it.checkVisibility({ checkVisibilityCSS: true }))"""
KEY = "it => [it.tagName, it.id, it.dataset.id, it.getAttribute('href'), it.textContent].join(' ')"
"""What an element is still known by after it was drawn anew."""
DRAWN = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

expect.set_options(timeout=PATIENCE * 1000)


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def browser() -> AsyncIterator[Browser]:
    """Debian's Chromium, with a folder of its own that is empty."""
    chromium = shutil.which("chromium")
    if chromium is None:
        absent("the page in a browser", "chromium is not installed")
    async with async_playwright() as playwright:
        opened = await playwright.chromium.launch(executable_path=chromium, args=OPTIONS)
        yield opened
        await opened.close()


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def lab(judge: DiscordJudge | None) -> AsyncIterator[Lab]:
    """A lab with a running bot and nothing proposed yet; what went over the wire is judged at its end."""
    with tempfile.TemporaryDirectory() as folder:
        made = Lab(Path(folder))
        await made.open()
        try:
            await made.start_bot()
            yield made
        finally:
            await made.close()
        assert wire_problems(made, judge) == []


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def bot(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[bots.Bot, dict[str, Any]]]:
    """A small bot on stock discord.py in a sandbox of its own, with how to reach that."""
    runner, server = await discord_server.start(tmp_path_factory.mktemp("sandbox"))
    info = describe(server, None, "")
    started = await bots.start(info)
    try:
        yield started, info
    finally:
        await started.close()
        await discord_server.stop(runner, server)


class Visit:
    """Somebody before the page: what they do by clicks and keys, and what they or the browser complain of meanwhile."""

    def __init__(self, page: Page, url: str, scheme: Scheme) -> None:
        self.page = page
        self.url = url
        self.scheme = scheme
        self.complaints: list[str] = []
        self.elsewhere: list[str] = []
        self.faults: list[str] = []
        page.on(
            "console", lambda said: self.complaints.append(said.text) if said.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._requested)

    def _requested(self, request: Request) -> None:
        if not request.url.startswith(self.url):
            self.elsewhere.append(request.url)

    @classmethod
    async def begin(
        cls, browser: Browser, url: str, size: tuple[int, int], scheme: Scheme, *, moving: bool = False
    ) -> "Visit":
        """Come to the page; somebody to whom nothing may move, as each frame is drawn by the CPU, but for `moving`."""
        width, height = size
        context = await browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            device_scale_factor=2 if SCREENSHOTS else 1,
            reduced_motion="no-preference" if moving else "reduce",
        )
        context.set_default_timeout(PATIENCE * 1000)
        visit = cls(await context.new_page(), url, scheme)
        await visit.page.goto(visit.url)
        await expect(visit.page.locator("#name")).not_to_be_empty()
        return visit

    async def end(self) -> None:
        """Close the page, which must have had no fault, nothing to complain of and no request but to its server."""
        await self.page.context.close()
        assert self.complaints == []
        assert self.elsewhere == []
        assert self.faults == []

    async def look(self, name: str) -> None:
        """Look at the page at this width and at a phone's, in both themes: what is hard to read or to use is a fault.

        With STOA_SCREENSHOTS, keep a picture of each.
        """
        size = self.page.viewport_size
        assert size is not None
        await self.page.mouse.move(0, 0)  # or what is under it looks otherwise
        for width, height in dict.fromkeys(((size["width"], size["height"]), PHONE)):
            await self.page.set_viewport_size({"width": width, "height": height})
            for scheme in SCHEMES:
                await self.page.emulate_media(color_scheme=scheme)
                await self.page.evaluate(DRAWN)
                if SCREENSHOTS:
                    ARTIFACTS.mkdir(parents=True, exist_ok=True)
                    path = ARTIFACTS / f"{name}-{width}-{scheme}.png"
                    await self.page.screenshot(path=path, animations="disabled", scale="css")
                faults = await self.page.evaluate(LOOKS, {"smallest": SMALLEST})
                self.faults += [f"{name} at {width} pixels, {scheme}: {fault}" for fault in faults]
        await self.page.set_viewport_size(size)
        await self.page.emulate_media(color_scheme=self.scheme)

    async def tab_through(self) -> None:
        """Press Tab until everything on the page that takes a click has had the focus."""
        await self.page.evaluate(
            f"window.had = new Set(); document.addEventListener('focusin', it => had.add(({KEY})(it.target)))"
        )
        for _ in range(await self.page.evaluate(f"{REACHABLE}.length") + 5):
            await self.page.keyboard.press("Tab")
        missed = await self.page.evaluate(f"{REACHABLE}.map({KEY}).filter(it => !had.has(it))")
        assert missed == []

    async def be(self, name: str) -> None:
        """Switch who one is."""
        page = self.page
        label = await page.locator("#who option").filter(has_text=f"{name},").text_content()
        # The page is read anew for them: a new stream is the last of it.
        async with page.expect_request("**/sandbox/page/stream?*"):
            await page.select_option("#who", label=label)

    async def channel(self, name: str) -> None:
        """Open a channel of the list."""
        await self.page.locator("#channels a").filter(has_text=name).first.click()
        await expect(self.page.locator("#name")).to_contain_text(name)

    async def type(self, words: str, **options: str | tuple[str, str]) -> None:
        """Type a command into the bar with keys alone, and run it.

        An option is typed out, or begun and then taken from what is suggested: ("de", "demo").
        """
        page = self.page
        await page.locator("#line").focus()
        await page.keyboard.type(f"/{words}")
        await expect(page.locator("#choices li[aria-selected=true]")).to_contain_text(f"/{words}")
        await page.keyboard.press("Enter")
        for name, value in options.items():
            field = page.locator(f"#option-{name}")
            if not await field.is_visible():
                await page.get_by_role("button", name=f"+ {name}", exact=True).press("Enter")
            await field.focus()
            if isinstance(value, str):
                await page.keyboard.type(value)
            else:
                await self._take(field, *value)
        if options:
            await page.get_by_role("button", name="Run", exact=True).press("Enter")

    async def _take(self, field: Locator, typed: str, suggested: str) -> None:
        """Type into an option until what is wanted is suggested, and take it; a slow bot is asked again."""
        marked = self.page.locator("#choices li[aria-selected=true] span")
        ends = time.monotonic() + PATIENCE
        while True:
            await field.fill("")
            await self.page.keyboard.type(typed)
            try:
                await expect(marked).to_have_text(suggested, timeout=4000)
                break
            except AssertionError:
                if time.monotonic() > ends:
                    raise
        await self.page.keyboard.press("Enter")
        await expect(field).to_have_value(suggested)

    async def fill(self, values: dict[str, str]) -> None:
        """Fill in the open form and send it."""
        dialog = self.page.get_by_role("dialog")
        for label, value in values.items():
            await dialog.get_by_label(label).fill(value)
        await dialog.get_by_role("button", name="Submit").click()
        await expect(dialog).to_have_count(0)

    async def answered(self, words: str) -> None:
        """Wait for a private answer with these words, and dismiss it."""
        answer = self.page.locator(".private").filter(has_text=words).last
        await expect(answer).to_contain_text("Only you can see this")
        await answer.get_by_role("button", name="Dismiss message").click()
        await expect(answer).to_have_count(0)
