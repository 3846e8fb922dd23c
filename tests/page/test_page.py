"""The sandbox's page in a real Chromium: the main job by clicks and keys, with the real bot behind it."""

import math
import random
import re
from datetime import UTC, datetime, timedelta

import pytest
from PIL import Image
from playwright.async_api import Browser, Locator, expect

from broker.runners.processes import Process
from broker.runs import attempts, leases, settlement
from broker.runs.progress import Ending, Progress
from broker.runs.series import Measured
from tests.bot.conftest import PROPOSAL, ROOT, SCOPE, Lab
from tests.bot.test_checkpoint_indexes import publish
from tests.page.conftest import DESKTOP, PHONE, SCREENSHOTS, Visit

pytestmark = [pytest.mark.asyncio(loop_scope="package")]


async def test_from_a_proposal_to_a_resumed_run(lab: Lab, browser: Browser) -> None:
    visit = await Visit.begin(browser, lab.guild.info["discord"], DESKTOP, "light")
    page = visit.page
    card = page.locator(".card")

    await visit.channel("general")
    await visit.type("project propose")
    await visit.fill(PROPOSAL)
    await visit.answered("Project 1")
    await visit.channel("proposals")
    await expect(card).to_contain_text("Do small models dream?")

    await page.get_by_role("button", name="Join as a newcomer").click()
    await visit.fill({"Your name": "Noor"})
    await expect(page.locator("#who option:checked")).to_have_text("Noor, a newcomer")
    await card.get_by_role("button", name="Join", exact=True).click()
    await visit.answered("Do small models dream?")
    await expect(card).to_contain_text("Lead Ada · Contributors (1) Noor")
    await visit.look("proposal")

    await visit.be("Ada")
    await visit.type("project scope", project=("dream", "1 · Do small models dream?"))
    await visit.fill(SCOPE)
    channel = page.locator("#channels a").filter(has_text="p1-do-small-models-dream")
    await expect(channel).to_be_visible()
    await expect(card.get_by_role("link", name="#p1-do-small-models-dream")).to_be_visible()
    await card.get_by_role("link", name="#p1-do-small-models-dream").click()
    await expect(page.locator("#name")).to_have_text("#p1-do-small-models-dream")
    await expect(card.filter(has_text="Welcome to Do small models dream?")).to_be_visible()
    await visit.look("welcome")
    await visit.type("stoa help")
    await expect(page.locator(".private")).to_contain_text("What you can do in")
    await visit.look("help")
    await visit.answered("What you can do in")

    await be_refused_and_ask_again(visit)
    await visit.be("Rosa")
    await visit.channel("compute-review")
    await expect(card.get_by_role("button", name="Approve", exact=True)).to_be_visible()
    await visit.look("review")
    await card.get_by_role("button", name="Approve", exact=True).click()
    await visit.fill({"Core-hours": "1", "Reason": "A good start."})
    await expect(card).to_contain_text("Approved by Rosa")

    await visit.be("Ada")
    await visit.channel("p1-")
    await launch(visit, "steps=40")
    run = page.locator(".message:not(.private) .card").filter(has_text="P1 · run 1")
    await expect(run).to_contain_text("queued")
    await watch_the_curve_grow(lab, visit)
    await launch(visit, "steps=40, seed=2")
    await read_the_lists(lab, visit)
    await compare_pause_and_resume(lab, visit)
    await visit.end()


async def be_refused_and_ask_again(visit: Visit) -> None:
    """A form that is refused opens again with what was written in it."""
    page, dialog = visit.page, visit.page.get_by_role("dialog")
    await visit.type("allocation request", pool="local")
    await visit.fill({"Core-hours": "2", "Until": "yesterday", "Justification": "Five sizes, one seed each."})
    refused = page.locator(".private").last
    await expect(refused.get_by_role("button", name="Edit and resend")).to_be_visible()
    await visit.look("refused")
    await refused.get_by_role("button", name="Edit and resend").press("Enter")
    await expect(dialog.get_by_label("Justification")).to_have_value("Five sizes, one seed each.")
    await visit.look("again")
    day = (datetime.now(UTC) + timedelta(days=30)).date().isoformat()
    await visit.fill({"Until": day})
    await visit.answered("core-hours of local")


async def launch(visit: Visit, override: str) -> None:
    """Launch a run of the demo recipe, and confirm the offer."""
    await visit.type("run launch", recipe=("de", "demo"), time_limit="10m", override=override)
    answer = visit.page.locator(".private").last
    await expect(answer).to_contain_text("core")
    confirm = answer.get_by_role("button", name="Launch", exact=True)
    await expect(confirm).to_be_visible()
    await visit.look("launch")
    await confirm.click()
    await expect(answer.get_by_role("heading")).to_contain_text("is queued")
    await expect(visit.page.locator("#hint")).to_be_empty()
    await answer.get_by_role("button", name="Dismiss message").click()


async def watch_the_curve_grow(lab: Lab, visit: Visit) -> None:
    """The run's card changes in its place, and what one reads stays where it is."""
    page = visit.page
    run = page.locator(".message:not(.private) .card").filter(has_text="P1 · run 1")
    token = train(lab, 1)
    picture = run.get_by_role("img")
    await expect(run).to_contain_text("step 10 of 40")
    await expect(picture).to_have_attribute("alt", expected("at step 10 of 40"))
    drawn = await picture.evaluate("image => image.complete && image.naturalWidth > 0 && image.src")
    assert drawn

    # What one looks at stays in its place while the card below changes, and so does the focus.
    await page.evaluate("document.getElementById('messages').scrollTop = 0")
    top = page.locator(".message").first
    before = await top.bounding_box()
    pause = run.get_by_role("button", name="Pause")
    await pause.evaluate("button => button.focus({ preventScroll: true })")
    lab.call(leases.renew, 1, token, 40.0, progress(1, 11, 30), lease_seconds=60)
    await expect(run).to_contain_text("step 30 of 40")
    await expect(picture).to_have_attribute("alt", expected("at step 30 of 40"))
    assert await top.bounding_box() == before
    await expect(pause).to_be_focused()
    assert await picture.get_attribute("src") not in drawn
    await run.scroll_into_view_if_needed()
    await visit.look("run")
    if SCREENSHOTS:
        await make_the_readmes_pictures(visit, run)
    await page.locator("#skip").focus()
    await visit.tab_through()


async def make_the_readmes_pictures(visit: Visit, card: Locator) -> None:
    """The page, and the card of a run as wide as on a phone, both on dark."""
    page = visit.page
    await page.emulate_media(color_scheme="dark")
    await card.evaluate("card => card.closest('.message').scrollIntoView()")
    await page.screenshot(path=ROOT / "docs" / "page.png", animations="disabled", scale="css")
    await page.set_viewport_size({"width": 450, "height": 1100})
    picture = ROOT / "docs" / "run-card.png"
    await card.screenshot(path=picture, animations="disabled")
    Image.open(picture).quantize(64).save(picture, optimize=True)  # a third of the size, and looks the same
    await page.set_viewport_size({"width": DESKTOP[0], "height": DESKTOP[1]})
    await page.emulate_media(color_scheme=visit.scheme)


async def read_the_lists(lab: Lab, visit: Visit) -> None:
    """The runs of the project, and the checkpoints of one of them in its thread."""
    page = visit.page
    await visit.type("run list")
    await page.get_by_role("button", name="Run", exact=True).press("Enter")
    await expect(page.locator(".private").last).to_contain_text("2 demo · queued")
    await visit.look("list")
    await visit.answered("2 demo · queued")
    lab.call(publish, 1, 10, 20, 30)
    await page.locator("#messages a.thread").filter(has_text="Run 1").click()
    await expect(page.locator(".message").filter(has_text="Checkpoints of run 1")).to_contain_text("step 30")
    await visit.look("checkpoints")
    await visit.channel("p1-")


def train(lab: Lab, run: int) -> int:
    """Start a run as the worker does and report its first ten steps; the attempt's token."""
    token: int = lab.call(attempts.admit, run, [run - 1])
    lab.call(leases.claim, run, token, host="here", lease_seconds=60)
    lab.call(leases.started, run, token, Process("here", "boot", run, 1), [], lease_seconds=60)
    lab.call(leases.renew, run, token, 20.0, progress(run, 1, 10), lease_seconds=60)
    return token


def progress(run: int, first: int, last: int) -> Progress:
    """What a trainer reports from one step to another, with a loss that falls as losses do."""
    points: list[Measured] = []
    for step in range(first, last + 1):
        noise, tokens = random.Random(1000 * run + step), step * 1000
        loss = 3.5 + run / 4 + 5 * math.exp(-step / 12)
        points += [Measured("loss", step, tokens, loss + noise.gauss(0, 0.12))]
        points += [Measured("grad_norm", step, tokens, 0.6 + math.exp(-step / 5) + noise.random() / 5)]
        if step % 5 == 0:
            points += [Measured("held_out", step, tokens, loss + 0.15)]
    points += [Measured("tokens_per_second", last, last * 1000, 500.0)]
    return Progress(0, 0, step=last, tokens=last * 1000, unigram_entropy=7.25, points=points)


def expected(words: str) -> re.Pattern[str]:
    return re.compile(re.escape(words))


async def compare_pause_and_resume(lab: Lab, visit: Visit) -> None:
    """By the buttons of the cards, with clicks and with keys."""
    page = visit.page
    cards = page.locator(".message:not(.private) .card")
    first, second = cards.filter(has_text="P1 · run 1"), cards.filter(has_text="P1 · run 2")
    token = train(lab, 2)
    await expect(second).to_contain_text("step 10 of 40")
    await first.get_by_role("button", name="Compare").click()
    overlay = page.locator(".private").last
    await expect(overlay.get_by_role("img").last).to_have_attribute("alt", re.compile("un 1"))
    await visit.look("compare")
    await overlay.get_by_role("button", name="Dismiss message").click()

    await second.get_by_role("button", name="Pause").press("Enter")
    await visit.answered("pauses")
    lab.call(settlement.settle, 2, token, 21.0, Progress(0, 0), Ending(75), 3)
    resume = second.get_by_role("button", name="Resume")
    await expect(resume).to_be_visible()
    await visit.look("paused")
    await resume.press("Enter")
    await visit.answered("Run 2")
    await expect(second).to_contain_text("queued")


async def test_the_keyboard_is_enough_on_a_phone(lab: Lab, browser: Browser) -> None:
    await lab.person("Grace").say(
        "general", "Good morning <b>all</b>, see **this** and `x`: <img src=x onerror=alert(1)>"
    )
    visit = await Visit.begin(browser, lab.guild.info["discord"], PHONE, "dark")
    page, keys = visit.page, visit.page.keyboard
    focused = page.locator(":focus")

    await keys.press("Tab")
    await expect(focused).to_have_text("Skip to the command bar")
    await keys.press("Enter")
    await expect(focused).to_have_attribute("id", "line")

    for _ in range(12):  # back to the button of the channel list
        await keys.press("Shift+Tab")
        if await page.evaluate("document.activeElement.id") == "open":  # nothing is focused while it is drawn anew
            break
    await keys.press("Enter")
    await expect(page.locator("#channels a:focus")).to_contain_text("proposals")
    await visit.look("channels")
    await keys.press("Escape")
    await expect(focused).to_have_attribute("id", "open")
    await keys.press("Enter")
    await expect(page.locator("#channels a:focus")).to_contain_text("proposals")
    while "general" not in (await focused.text_content() or ""):
        await keys.press("ArrowDown")
    await keys.press("Enter")
    await expect(page.locator("#name")).to_have_text("#general")
    await expect(page.locator("#side")).to_be_hidden()

    said = page.locator(".message .body").first
    await expect(said).to_contain_text("<b>all</b>")
    await expect(said).to_contain_text("<img src=x")
    await expect(said.locator("b")).to_have_text("this")
    await expect(said.locator("img")).to_have_count(0)

    await keys.press("/")
    await expect(page.locator("#choices li").first).to_be_visible()
    await visit.look("commands")
    await keys.type("allocation req")
    await expect(page.locator("#choices li").first).to_contain_text("/allocation request")
    await keys.press("Enter")
    await expect(page.locator("#choices li").first).to_contain_text("local")
    await keys.press("ArrowDown")
    await keys.press("Enter")
    await expect(page.locator("#option-pool")).to_have_value(re.compile("^local · CPU"))
    await page.locator("#option-pool").fill("")
    await keys.press("Enter")
    await expect(page.locator("#hint")).to_contain_text("required")
    await keys.press("Escape")
    await keys.press("Escape")
    await expect(focused).to_have_attribute("id", "line")

    await page.locator("#line").fill("")
    await keys.type("/project propose")
    await expect(page.locator("#choices li").first).to_contain_text("/project propose")
    await keys.press("Enter")
    await expect(page.get_by_role("dialog").get_by_label("Title")).to_be_focused()
    await visit.look("form")
    for _ in range(12):  # the focus stays in the form
        await keys.press("Tab")
        assert await page.evaluate(
            "document.activeElement === document.body || !!document.activeElement.closest('dialog')"
        )
    await keys.press("Escape")
    await expect(page.get_by_role("dialog")).to_have_count(0)
    await expect(focused).to_have_attribute("id", "line")

    await keys.type("/project list")
    await expect(page.locator("#choices li").first).to_contain_text("/project list")
    await keys.press("Enter")
    await expect(page.get_by_role("button", name="+ stage")).to_be_visible()  # which may be left out
    await keys.press("Enter")
    answer = page.locator(".private")
    await expect(answer).to_contain_text("Only you can see this")
    await expect(page.locator("#said")).not_to_be_empty()

    await page.locator("#who").focus()
    await visit.be("Grace")
    await expect(answer).to_have_count(0)  # it was for Ada alone
    await page.locator("#line").fill("Thank you")
    await keys.press("Enter")
    await expect(page.locator(".message").last).to_contain_text("Thank you")
    await visit.look("general")
    await visit.end()
