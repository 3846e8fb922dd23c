"""How cards look and how often they are edited: whose turn it is, old messages, and the successor of an old card."""

import asyncio
import re
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import discord
import psutil
import pytest
from discord import ui
from PIL import Image

from bot.cards.project_card import project_card
from bot.cards.review_card import review_card
from bot.cards.run_card import RUNS, moved_card, run_card
from bot.delivery import card_updates, edit_budget, outbox
from bot.delivery.edit_budget import BUSY, FRESH_EDITS, OLD, OLD_AGE, OLD_EDITS, EditBudget
from broker.allocations.allocations import AllocationState
from broker.allocations.ledger import Account
from broker.allocations.period_sums import PeriodSum
from broker.allocations.units import Unit
from broker.plots import comparison_curves
from broker.reports.run_details import RunDetails
from broker.reports.why import Why
from broker.runners.processes import Process
from broker.runs import attempts, control, leases, settlement
from broker.runs.progress import Ending, Progress
from broker.runs.runs import CheckpointLink, RunState
from broker.runs.series import Measured
from projects import membership, projects
from projects.people import Actor
from projects.projects import Member, Stage
from projects.record.record import EntryView
from sandbox.people import Channel, Message
from tests.bot.conftest import AGED, BOT, Lab
from tests.bot.test_limits import context, project, request, run
from tests.patience import PATIENCE, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_an_allocation_tells_what_it_is_of_where_it_stands() -> None:
    asked = replace(
        request("Sizes"), gpu_type="CPU", seconds=7200, account=Account(3600, 0, 1800), reason="One is plenty."
    )
    heads = {
        AllocationState.REQUESTED: "2 core-hours for Sizes",
        AllocationState.APPROVED: "1 core-hour for Sizes",
        AllocationState.EXPIRED: "0.5 core-hours used by Sizes",
    }
    for state, head in heads.items():
        granted = Account(1800, 0, 1800) if state == AllocationState.EXPIRED else asked.account
        card = said(review_card(replace(asked, state=state, account=granted)))
        assert head in card.splitlines()[0]
        assert "asks for 2 core-hours" in card or "asked for 2 core-hours" in card
    assert "**Ended**, approved by Sizes, sponsored by Sizes\n> One is plenty." in card


async def test_a_reviewer_reads_why_a_small_request_takes_two() -> None:
    asked = replace(request("Sizes"), state=AllocationState.REQUESTED, endorsed_by=None)
    hours: dict[str, Any] = {
        "recent": 60 * 3600,
        "with_this": 110 * 3600,
        "one_reviewer": 100 * 3600,
        "days": 30,
        "reviewers": 2,
        "units": [Unit.CORE],
    }
    card = said(review_card(asked, replace(context("Why?"), halves=False, **hours)))
    assert (
        "**Within 30 days** the project was granted 60 core-hours; with this it would be 110. One reviewer may grant "
        "100 of that.\n**Decision** Two reviewers decide." in card
    )
    alone = said(review_card(asked, replace(context("Why?"), halves=False, **hours | {"recent": 0, "reviewers": 1})))
    assert "Within 30 days" not in alone
    assert "**Decision** One reviewer decides." in alone
    both = said(review_card(asked, replace(context("Why?"), halves=False, **hours | {"units": list(Unit)})))
    assert "the project was granted 60 hours of GPUs and cores together; with this it would be 110." in both
    theirs = PeriodSum(project=0, granted=60 * 3600, asked=30 * 3600, person="Ada")
    sliced = hours | {"recent": 0, "with_this": 50 * 3600, "person": theirs}
    card = said(review_card(asked, replace(context("Why?"), halves=False, **sliced)))
    assert (
        "**Within 30 days** Ada was granted 60 core-hours in all projects and asks for 30 in other ones; with this it "
        "would be 140. This sum decides, as the project's own would be 50. One reviewer may grant 100 of that.\n"
        "**Decision** Two reviewers decide." in card
    )


class Clock:
    """A clock that a test turns."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def said(view: ui.LayoutView) -> str:
    return "\n".join(item.content for item in view.walk_children() if isinstance(item, ui.TextDisplay))


async def test_a_card_is_edited_at_once_and_then_rests() -> None:
    clock = Clock()
    budget = EditBudget(clock)
    assert edits(budget, "run:1")
    clock.now += BUSY - 0.1
    assert not edits(budget, "run:1")
    clock.now += 0.2
    assert edits(budget, "run:1")
    clock.now += BUSY + 0.1
    assert not edits(budget, "run:1", pause=10)


async def test_the_cards_of_a_channel_share_its_budget_and_the_longest_waiting_goes_first() -> None:
    clock = Clock()
    budget = EditBudget(clock)
    most, seconds = FRESH_EDITS
    cards = [f"run:{n}" for n in range(3 * most)]
    order = []
    for _ in range(int(6 * seconds)):
        # The one that asks first is not the one that waits longest.
        order += [(clock.now, key) for key in reversed(cards) if edits(budget, key)]
        clock.now += 1.0
    for start in range(int(6 * seconds)):
        within = [key for at, key in order if 1000 + start <= at < 1000 + start + seconds]
        assert len(within) <= most
    edited = [key for _, key in order]
    assert sorted(edited[: len(cards)]) == sorted(cards)
    assert edits(budget, "run:99", channel="another")


async def test_a_card_that_asks_no_more_holds_nobody_up() -> None:
    clock = Clock()
    budget = EditBudget(clock)
    most, seconds = FRESH_EDITS
    for n in range(most):
        assert edits(budget, f"run:{n}")
    assert not edits(budget, "run:gone")
    clock.now += seconds + 1
    assert [edits(budget, f"project:{n}") for n in range(most)] == [True] * most


async def test_old_cards_are_edited_rarely_and_not_at_all_once_refused() -> None:
    clock = Clock()
    budget = EditBudget(clock)
    assert edits(budget, "run:1", age=OLD_AGE)
    assert not edits(budget, "run:2", age=OLD_AGE + 1)
    assert edits(budget, "run:3", age=OLD_AGE - 1)
    clock.now += OLD_EDITS[1]
    assert edits(budget, "run:2", age=OLD_AGE)
    budget.refused("here", 500)
    clock.now += 499
    assert not edits(budget, "run:4", age=OLD_AGE)
    assert edits(budget, "run:3", age=60)
    clock.now += 2
    assert edits(budget, "run:4", age=OLD_AGE)


async def test_a_decision_waits_for_no_line_about_a_run() -> None:
    """However many old cards wait in a channel, one that is urgent is the next; those keep their order."""
    clock = Clock()
    budget = EditBudget(clock)
    assert edits(budget, "run:0", age=OLD_AGE)
    edited = []
    for second in range(int(4 * OLD_EDITS[1])):
        clock.now += 1
        waiting = [(f"project:{n}", False) for n in range(40)]
        waiting += [("allocation:7", True)] if second >= OLD_EDITS[1] / 2 else []
        edited += [key for key, urgent in waiting if edits(budget, key, age=OLD_AGE, pause=OLD, urgent=urgent)]
    assert edited[:3] == ["allocation:7", "project:0", "project:1"]
    told: dict[str, dict[str, Any]] = {
        "run.started": {"run": 1},
        "checkpoint.published": {"run": 1},
        "member.joined": {"by": "Grace"},
    }
    entries = [EntryView(n, "project:1", n, kind, "0" * 64, payload) for n, (kind, payload) in enumerate(told.items())]
    assert [card_updates.is_urgent(entry) for entry in entries] == [False, False, True]


async def test_with_many_cards_in_motion_each_rests_longer() -> None:
    clock = Clock()
    budget = EditBudget(clock)
    count = 0
    for _ in range(60):
        count += sum(edits(budget, f"run:{n}", channel=str(n // 5)) for n in range(200))
        clock.now += 1.0
    assert 10 <= count / 60 <= 30


def edits(
    budget: EditBudget, key: str, *, channel: str = "here", age: float = 0.0, pause: float = BUSY, urgent: bool = False
) -> bool:
    """Edit the card, if it is its turn."""
    if not budget.turn(key, channel, age=age, pause=pause, urgent=urgent):
        return False
    budget.edited(key, channel, age=age)
    return True


async def test_a_runs_card_says_in_plain_words_how_it_stands() -> None:
    shown = run("demo")
    for state, (emoji, colour, word) in RUNS.items():
        card = run_card(replace(shown, state=state))
        assert said(card).startswith(f"### {emoji} Run 1 “demo” {word}\n")
        (container,) = card.children
        assert isinstance(container, ui.Container)
        assert container.accent_colour == colour
    assert len({(emoji, colour) for emoji, colour, _ in RUNS.values()}) == len(RunState)
    started = datetime(2030, 1, 1, 10, tzinfo=UTC)
    ended = replace(shown, started_at=started, ended_at=started.replace(minute=5), state=RunState.FINISHED)
    over = said(run_card(ended))
    assert "**Took** 5 min" in over
    assert re.search(r"\*\*Core-hours\*\* [\d.]+ by this run\n", over), (
        "what others draw of the allocation is not its own"
    )
    fork = replace(shown, parent_id=3, attempt=2)
    assert "forked from run 3 · attempt 2" in said(run_card(fork))
    assert "<#77>" in said(run_card(fork, thread_id="77"))
    assert "(https://there)" in said(moved_card(fork, "https://there"))


async def test_a_shown_run_says_its_commits_or_that_they_were_not_recorded() -> None:
    shown = replace(run("demo"), checkpoints=(CheckpointLink(1200, "https://hub/step1200"),))
    card = said(run_card(shown, details=RunDetails(code_commit="c0ffee", hub_commit="f00d")))
    assert "**Commit of the code** `c0ffee` · **Commit on the Hub** of step 1,200: `f00d`\n" in card
    card = said(run_card(shown, details=RunDetails(code_commit="", hub_commit="")))
    assert "**Commit of the code** not recorded · **Commit on the Hub** of step 1,200: not recorded\n" in card
    assert "Commit" not in said(run_card(shown, details=RunDetails()))
    card = said(run_card(shown, details=RunDetails(loss_scale=32768.0, skipped=1)))
    assert "**Loss scale** 32,768, 1 step overflowed in fp16 and was skipped" in card


async def test_a_runs_card_says_which_of_its_stages_it_is_in() -> None:
    shown = replace(run("demo"), total_steps=10, stages=(4, 10))
    for step, stage in ((0, 1), (3, 1), (4, 2), (10, 2)):
        assert f"step {step} of 10 ({step * 10}%) · stage {stage} of 2\n" in said(run_card(replace(shown, step=step)))
    assert "stage" not in said(run_card(replace(shown, stages=())))


async def test_a_queued_runs_card_says_what_it_waits_for() -> None:
    queued = replace(run("demo"), state=RunState.QUEUED, reason="")

    def told(expected: datetime) -> str:
        waits = Why(
            1, "Title", "local", Unit.GPU, 2, RunState.QUEUED, "It waits for GPUs: 2 needed.", 3, 7, None, expected
        )
        return said(run_card(queued, why=waits))

    first, later = told(datetime(2030, 1, 1, 10, 1, tzinfo=UTC)), told(datetime(2030, 1, 1, 10, 9, tzinfo=UTC))
    assert (
        "It waits for GPUs: 2 needed. It is number 3 of 7 in the queue. It starts by <t:1893492900:t> at the latest."
        in first
    )
    assert first == later


async def test_a_projects_card_tells_all_that_a_reader_asks() -> None:
    shown = project("Why?")
    card = said(
        project_card(
            replace(shown, stage=Stage.ACTIVE), [request("local")], [run("demo")], channel_id="5", min_people=2
        )
    )
    for word in ("Active", "<#5>", "**Question**", "**Who is needed**", "Allocation 1", "Run 1"):
        assert word in card
    people = (Member("1", "Ada", True), Member("2", "Grace", False), Member("3", "Noor", False))
    few = said(project_card(replace(shown, members=people, followers=3), [], [], channel_id=None, min_people=2))
    assert "**Lead** Ada · **Contributors (2)** Grace, Noor · **Followers** 3" in few
    alone = said(project_card(replace(shown, members=people[:1], followers=0), [], [], channel_id=None, min_people=2))
    assert "**Lead** Ada\n-# P1" in alone
    assert "Who is needed" not in said(project_card(shown, [], [], channel_id=None, min_people=2))


async def test_a_projects_card_shows_first_what_can_be_used() -> None:
    states = [AllocationState.DECLINED] * 3 + [AllocationState.REQUESTED, AllocationState.APPROVED]
    requests = [replace(request("local"), id=9 - n, state=state) for n, state in enumerate(states)]
    card = said(project_card(project("Why?"), requests, [], channel_id=None, min_people=2))
    assert re.findall(r"Allocation (\d)", card) == ["6", "5", "9"]


async def test_the_alt_text_tells_of_what_was_drawn() -> None:
    now = replace(run("demo"), step=300, total_steps=400)
    card = run_card(now, picture="curve.png", drawn=replace(now, step=200))
    (gallery,) = [item for item in card.walk_children() if isinstance(item, ui.MediaGallery)]
    assert "at step 200 of 400" in (gallery.items[0].description or "")
    assert "step 300 of 400" in said(card)


async def test_a_card_too_old_to_edit_has_a_successor(shared_lab: tuple[Lab, Channel]) -> None:
    lab, channel = shared_lab
    await lab.launch(channel, override="steps=4000")
    first = await lab.guild.wait_for(channel.id, lambda m: m.text.endswith("-# P1 · run 1"))
    await lab.guild.wait_for(channel.id, lambda m: m.id == first.id and "Nothing holds it up." in m.text)
    token = lab.call(attempts.admit, 1, [0])
    lab.call(leases.claim, 1, token, host="here", lease_seconds=60)
    lab.call(leases.started, 1, token, Process("here", "boot", 1, 1), [], lease_seconds=60)
    lab.call(leases.renew, 1, token, 5.0, progress(1, 100), lease_seconds=60)
    await lab.guild.wait_for(channel.id, lambda m: m.id == first.id and "step 100 of" in m.text)

    # A fresh message is only refused because the bot was too fast: it is edited later.
    await lab.guild.fault(rf"PATCH /channels/{channel.id}/messages/{first.id}$", status=429, retry_after=40)
    lab.call(leases.renew, 1, token, 8.0, progress(101, 150), lease_seconds=60)
    await lab.guild.wait_for(channel.id, lambda m: m.id == first.id and "step 150 of" in m.text)
    assert "Discord asks to wait 40 s" in lab.log

    lab.kill_bot()
    await lab.guild.count_as_old(0)
    await lab.guild.limit("old edit", 0, 300.0)
    lab.call(leases.renew, 1, token, 10.0, progress(151, 200), lease_seconds=60)
    lab.call(membership.follow, lab.actor("Rosa"), 1)
    await lab.start_bot(AGED)
    second = await lab.guild.wait_for(channel.id, lambda m: m.text.endswith("-# P1 · run 1 · card 2"))
    assert "step 200 of" in second.text
    assert f"<#{first.id}>" in second.text
    assert "step 150 of" in (await of(lab, channel, first)).text
    before = [m for m in await lab.guild.messages("proposals") if m.text.endswith("P1 · project")]
    assert "Followers" not in before[0].text

    await lab.guild.count_as_old(3600)
    lab.kill_bot()
    await lab.start_bot(PICTURE_SECONDS="600")
    await lab.guild.wait_for("proposals", lambda m: m.id == before[0].id and "**Followers** 1" in m.text)
    moved = await lab.guild.wait_for(channel.id, lambda m: m.id == first.id and "newer card" in m.text)
    assert moved.text.endswith("-# P1 · run 1")
    assert f"/{channel.id}/{second.id})" in moved.text
    assert moved.attachments == []
    drawn = await lab.guild.wait_for(channel.id, lambda m: m.id == second.id and m.attachments != [])
    lab.call(leases.renew, 1, token, 15.0, progress(201, 300), lease_seconds=60)
    now = await lab.guild.wait_for(channel.id, lambda m: m.id == second.id and "step 300 of" in m.text)
    assert [shown.url for shown in now.attachments] == [shown.url for shown in drawn.attachments]
    assert "at step 200 of" in (now.attachments[0].description or "")
    lab.call(settlement.settle, 1, token, 20.0, Progress(0, 0), Ending(70, reason="It broke."), 0)
    ended = await lab.guild.wait_for(
        channel.id, lambda m: m.id == second.id and "has failed" in m.text and m.attachments != now.attachments
    )
    assert "step 300 of" in ended.text
    assert await of(lab, channel, first) == moved
    with lab.db.read() as session:
        assert outbox.message(session, "run:1:2") is not None
        assert outbox.message(session, "run:1:3") is None
    assert "Traceback" not in lab.log


async def test_a_run_card_that_a_moderator_deletes_stays_deleted(shared_lab: tuple[Lab, Channel]) -> None:
    """The first or its successor: the run goes on, its posts go on in the thread, and no card comes back."""
    lab, channel = shared_lab
    await lab.launch(channel, override="steps=4000")
    card = await lab.guild.wait_for(channel.id, lambda m: m.text.endswith("-# P1 · run 2") and m.thread_id)
    await lab.person("Omar").delete(channel.id, card)
    second = await lab.guild.wait_for(channel.id, lambda m: m.text.endswith("-# P1 · run 1 · card 2"))
    await lab.person("Omar").delete(channel.id, second)
    token = lab.call(attempts.admit, 2, [1])
    lab.call(leases.claim, 2, token, host="here", lease_seconds=60)
    lab.call(leases.started, 2, token, Process("here", "boot", 2, 1), [], lease_seconds=60)
    lab.call(leases.renew, 2, token, 5.0, progress(1, 100), lease_seconds=60)
    lab.call(settlement.settle, 2, token, 20.0, Progress(0, 0), Ending(70, reason="It broke."), 0)
    await lab.guild.wait_for(card.id, lambda m: "It broke." in m.text)
    await lab.guild.wait_for(channel.id, lambda m: "It broke." in m.text)
    await lab.launch(channel, override="steps=4000")
    await lab.guild.wait_for(channel.id, lambda m: m.text.endswith("-# P1 · run 3"))
    compared = (await lab.person("Ada").command("run compare", runs="1 3")).message
    assert compared is not None
    assert "**3** `demo` · no loss yet" in compared.text
    assert Image.open(compared.attachments[0].path).size == (1000, 700 + 3 * comparison_curves.ROW)
    left = [m.text.splitlines()[-1] for m in await lab.guild.messages(channel.id)]
    assert [line for line in left if line.startswith("-# P1 · run")] == ["-# P1 · run 1", "-# P1 · run 3"]
    await until(lambda: is_gone(lab, "run:2"))
    assert not is_gone(lab, "run:1:2")
    assert "Traceback" not in lab.log


async def test_a_picture_that_was_being_drawn_as_its_run_ended_is_not_the_last(
    shared_lab: tuple[Lab, Channel],
) -> None:
    lab, channel = shared_lab
    launched = re.search(r"Run (\d+) is queued", (await lab.launch(channel, override="steps=4000")).text)
    assert launched is not None
    number = int(launched[1])
    card = await lab.guild.wait_for(channel.id, lambda m: m.text.endswith(f"-# P1 · run {number}"))
    token = lab.call(attempts.admit, number, [0])
    lab.call(leases.claim, number, token, host="here", lease_seconds=60)
    lab.call(leases.started, number, token, Process("here", "boot", 3, 1), [], lease_seconds=60)
    assert lab.bot is not None
    drawing = psutil.Process(lab.bot.pid).children(recursive=True)
    for process in drawing:
        process.suspend()
    lab.call(leases.renew, number, token, 5.0, progress(1, 100), lease_seconds=60)
    await lab.guild.wait_for(channel.id, lambda m: m.id == card.id and "step 100 of" in m.text)
    lab.call(settlement.settle, number, token, 20.0, progress(101, 300), Ending(70, reason="It broke."), 0)
    await lab.guild.wait_for(channel.id, lambda m: m.id == card.id and "has failed" in m.text)
    for process in drawing:
        process.resume()
    await lab.guild.wait_for(
        channel.id,
        lambda m: m.id == card.id and m.attachments != [] and "at step 300" in (m.attachments[0].description or ""),
    )


def is_gone(lab: Lab, key: str) -> bool:
    """Whether the bot has noticed that a person has deleted the message."""
    with lab.db.read() as session:
        row = outbox.message(session, key)
        return row is not None and row.gone


async def of(lab: Lab, channel: Channel, message: Message) -> Message:
    """The message as it is now."""
    return next(m for m in await lab.guild.messages(channel.id) if m.id == message.id)


def progress(first: int, last: int) -> Progress:
    points = [Measured("loss", step, step * 1000, 9 - step / 100) for step in range(first, last + 1)]
    return Progress(0, 0, step=last, tokens=last * 1000, points=points)


async def test_the_age_of_a_message_is_in_its_id() -> None:
    id_of_an_hour_ago = discord.utils.time_snowflake(discord.utils.utcnow()) - (3600 * 1000 << 22)
    assert 3590 < edit_budget.age(str(id_of_an_hour_ago)) < 3610


async def test_a_card_that_waits_for_its_turn_costs_nothing_meanwhile(shared_lab: tuple[Lab, Channel]) -> None:
    lab, _ = shared_lab

    def looks() -> int:
        return lab.log.count("looked at")

    lab.kill_bot()
    await lab.guild.count_as_old(0)
    await lab.guild.limit("old edit", 0, 300.0)
    # What a wait costs the bot is seen nowhere outside of it.
    counted = "from bot.delivery import card_updates; look = card_updates.card_contents; "
    counted += "card_updates.card_contents = lambda *given: print('looked at', flush=True) or look(*given); "
    await lab.start_bot(counted + AGED)
    begun = looks()
    lab.call(membership.follow, Actor(77, "Zoe"), 1)
    await until(lambda: looks() > begun)
    before = -1
    async with asyncio.timeout(PATIENCE):
        while before != looks():
            before = looks()
            await asyncio.sleep(2)  # its rounds are a quarter of a second apart
    lab.kill_bot()
    await lab.guild.count_as_old(3600)
    await lab.start_bot()
    with lab.db.read() as session:
        followers = projects.view(session, 1).followers
    await lab.guild.wait_for("proposals", lambda m: f"**Followers** {followers}" in m.text)


async def looks_a_second(lab: Lab) -> float:
    """How often the bot reads runs, over some seconds."""
    began, before = time.monotonic(), lab.log.count("viewed")
    await asyncio.sleep(2 * BUSY)
    return (lab.log.count("viewed") - before) / (time.monotonic() - began)


async def test_the_card_of_a_run_that_waits_is_read_again_once_in_a_while(shared_lab: tuple[Lab, Channel]) -> None:
    lab, channel = shared_lab
    lab.kill_bot()
    counted = "from broker.runs import runs; view = runs.view; "
    counted += "runs.view = lambda *given: print('viewed', flush=True) or view(*given); "
    await lab.start_bot(counted + BOT)
    launched = re.search(r"Run (\d+) is queued", (await lab.launch(channel)).text)
    assert launched
    number = int(launched[1])
    card = await lab.guild.wait_for(channel.id, lambda m: m.text.endswith(f"-# P1 · run {number}"))
    await lab.guild.wait_for(channel.id, lambda m: m.id == card.id and "Nothing holds it up." in m.text)
    async with asyncio.timeout(PATIENCE):
        # Each round, four a second, reads a card that was edited in the last ten seconds.
        while await looks_a_second(lab) > 2 / BUSY:
            pass
    lab.call(control.cancel, lab.actor("Ada"), number)
    await lab.guild.wait_for(channel.id, lambda m: m.id == card.id and "was cancelled" in m.text)
