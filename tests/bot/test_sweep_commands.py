"""A sweep on Discord: offered with all its runs, launched by one button, followed on one card, stopped as a whole."""

import asyncio
from typing import Any

import pytest

from bot import text
from broker.runners.processes import Process
from broker.runs import attempts, leases, runs, settlement, sweeps
from broker.runs.progress import Ending, Progress
from broker.runs.runs import RunState
from broker.runs.series import Measured
from sandbox.people import Answer, Channel, Message
from tests.bot.conftest import Lab
from tests.patience import PATIENCE, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

Shared = tuple[Lab, Channel]
POINTS = "learning_rate=1e-3,3e-3 seed=1..2"


def progress(last: int, floor: float) -> Progress:
    points = [Measured("loss", step, step * 1000, floor + 3 / step) for step in range(1, last + 1)]
    return Progress(0, 0, step=last, tokens=last * 1000, points=points)


def start(lab: Lab, run: int, device: int = 0) -> int:
    """The token of an attempt of the run that runs."""
    token: int = lab.call(attempts.admit, run, (device,))
    lab.call(leases.claim, run, token, host="here", lease_seconds=600)
    lab.call(leases.started, run, token, Process("here", "boot", 1, 1), [], lease_seconds=600)
    return token


def said(answer: Answer) -> str:
    """The words of one private answer."""
    assert answer.ephemeral
    assert answer.kind == "message"
    return answer.text.replace("\\", "")


async def offered(lab: Lab, channel: Channel, person: str = "Ada", **options: object) -> Answer:
    given: dict[str, Any] = {"recipe": "demo", "points": POINTS, "time_limit": "5m"} | options
    return await lab.person(person).command("run sweep", channel=channel.id, **given)


async def card_of(lab: Lab, channel: Channel, sweep: int, *words: str) -> Message:
    """The sweep's card once it has these words and buttons."""
    card = await lab.guild.wait_for(
        channel.id,
        lambda m: (
            m.text.endswith(f"· sweep {sweep}")
            and bool(m.thread_id)
            and all(word in m.text.replace("\\", "") or word in m.button_labels for word in words)
        ),
    )
    # The bot knows the thread as the sweep's a moment after everybody sees it.
    await lab.guild.wait_for(card.thread_id or "", lambda m: True)
    return card


async def test_a_sweep_is_offered_launched_once_and_followed_on_one_card(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    ada = lab.person("Ada")
    heads = lab.heads()
    offer = await offered(lab, channel, steps=40, name="Warm-up", tags="rope")
    assert offer.message is not None
    assert offer.ephemeral
    for words in (
        "Launch a sweep of 4 runs of demo, each on 1 core of `local`?",
        "All with steps=40",
        "The first is called “Warm-up: 1e-3 · 1”",
        "Tagged `rope`",
        "-# learning_rate · seed · core-hours at most · starts at the latest",
        "1. `1e-3 · 1` · 0.083 · at once",
        "4. `3e-3 · 2` · 0.083 · in 5 min",
        "**Cost** 0.333 core-hours at most: 4 × 0.083, each in 5 min",
        "allocation 1 has 1 core-hour left, and 0.667 should these runs take all their time",
    ):
        assert words in offer.text.replace("\\", "")
    assert offer.message.button_labels == ["Launch 4 runs", "Cancel"]
    assert lab.heads() == heads
    cancelled = await ada.press(offer.message, "Cancel")
    assert "Not launched" in cancelled.text
    assert lab.heads() == heads

    offer = await offered(lab, channel, steps=40)
    assert offer.message is not None
    # The answer is lost, the sweep is not; a second press launches no other.
    await lab.guild.fault(r"PATCH /webhooks/", delay=PATIENCE)
    lost = asyncio.create_task(ada.press(offer.message, "Launch 4 runs"))
    await until(lambda: lab.call(runs.of_project, 1))
    lab.kill_bot()
    await lab.guild.clear_faults()
    await lab.start_bot()
    lost.cancel()
    again = await ada.press(offer.message, "Launch 4 runs")
    assert again.text.startswith("### 🚀 Sweep 1 is queued: runs 1 to 4\nAll together cost 0.333 core-hours at most.")
    assert len(lab.call(runs.of_project, 1)) == 4

    card = await card_of(lab, channel, 1, "Sweep 1 waits for its turn", "4 queued", "Pause all")
    assert "**2** `1e-3 · 2` · 0" in card.text
    thread = card.thread_id or ""
    launched = await lab.guild.wait_for(thread, lambda m: "launches sweep 1: 4 runs of recipe `demo`" in m.text)
    assert "over `learning_rate=1e-3,3e-3 seed=1..2`, all with steps=40, each on 1 core" in launched.text.replace(
        "\\", ""
    )
    queued = await lab.guild.wait_for(thread, lambda m: "Run 4 of sweep 1 is queued" in m.text)
    assert "Run 1 of sweep 1 is queued, with learning_rate=1e-3, seed=1, steps=40." in queued.text.replace("\\", "")

    tokens = {run: start(lab, run, run - 1) for run in (1, 2)}
    for run, floor in ((1, 3.0), (2, 2.5)):
        lab.call(leases.renew, run, tokens[run], 20.0, progress(20, floor), lease_seconds=600)
    card = await card_of(lab, channel, 1, "Sweep 1 is running", "2 queued · 2 running")
    best = "run 2 (learning_rate=1e-3 seed=2) is the best"
    card = await lab.guild.wait_for(
        channel.id, lambda m: m.id == card.id and any(best in (one.description or "") for one in m.attachments)
    )
    assert card.attachments[0].path.read_bytes().startswith(b"\x89PNG")
    for words in ("▶️ **1** `1e-3 · 1` · 20 · 3.150", "▶️ **2** `1e-3 · 2` · 20 · 2.650 🏆", "of 0.333 at most"):
        assert words in card.text

    lab.call(settlement.settle, 1, tokens[1], 30.0, Progress(0, 0), Ending(70, "the loss is not finite"), 1)
    lab.call(settlement.settle, 2, tokens[2], 30.0, Progress(0, 0), Ending(0), 3)
    failed = await lab.guild.wait_for(channel.id, lambda m: "has failed" in m.text and "of sweep 1" in m.text)
    assert failed.text.startswith("❌ Run 1 of sweep 1 has failed")
    await lab.guild.wait_for(thread, lambda m: "Run 2 of sweep 1 is finished" in m.text)

    shown = await ada.command("run show", run=2)
    assert "of sweep 1" in shown.text
    shown = await ada.command("run show", channel=thread)
    assert shown.text.endswith("· sweep 1")
    assert shown.message is not None
    assert [picture.filename for picture in shown.message.attachments] == ["sweep-1.png"]
    assert (await ada.command("run compare", runs="sweep 1")).text.endswith("· sweep 1")
    listed = (await ada.command("run list", channel=channel.id)).text.splitlines()
    [second] = [line for line in listed if line.startswith("**2** `demo` · finished · step 20 of 40 · loss 2.650 · ")]
    assert second.endswith(f" core-hours · Ada · sweep 1 · <#{thread}>")
    assert "of sweep 1" not in said(await ada.command("run why", run=3))

    assert "asked to stop" in (await ada.agree(await ada.command("run cancel", channel=thread))).text
    ended = await lab.guild.wait_for(channel.id, lambda m: "Sweep 1 is over" in m.text and "record" in m.text)
    assert "2 cancelled, 1 failed, 1 finished" in ended.text
    assert "The best is run 2, learning_rate=1e-3 seed=2, with a loss of **2.650**." in ended.text.replace("\\", "")
    card = await card_of(lab, channel, 1, "Sweep 1 is over")
    assert card.button_labels == []
    messages = await lab.guild.messages(channel.id)
    of_runs = [m.text for m in messages if "un 1" in m.text or "un 2" in m.text or "un 3" in m.text or "un 4" in m.text]
    assert len(of_runs) <= 3, "the channel hears of a failure, of the end, and has one card"
    assert "Traceback" not in lab.log


async def test_a_sweep_is_paused_and_resumed_by_its_buttons_and_by_command(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    ada = lab.person("Ada")
    offer = await offered(lab, channel, points="seed=1..3")
    assert offer.message is not None
    launched = await ada.press(offer.message, "Launch 3 runs")
    sweep = int(launched.text.split("Sweep ")[1].split()[0])
    card = await card_of(lab, channel, sweep, "Pause all")
    assert said(await lab.person("Omar").press(card, "Pause all")).startswith("Only members of")
    paused = said(await ada.press(card, "Pause all"))
    assert paused.startswith(f"3 runs of sweep {sweep}: asked to pause")
    card = await card_of(lab, channel, sweep, "is paused", "3 paused", "Resume all")
    resumed = said(await ada.press(card, "Resume all"))
    assert resumed.startswith(f"Sweep {sweep} goes on. All together cost 0.25 core-hours at most")
    assert said(await ada.command("run resume", sweep=sweep)).endswith("no paused run; only those can be resumed.")
    assert "Name a run or a sweep" in said(await ada.command("run pause", sweep=sweep, run=1))
    assert said(await ada.command("run pause", sweep=sweep)).startswith("3 runs of")
    assert "resume as they were" in said(await ada.command("run resume", sweep=sweep, gpus=2))
    one = said(await ada.command("run resume", run=lab.call(sweeps.view, sweep).runs[0].id))
    assert one.endswith("**Next** `/run show` shows how it goes; `/run why` says what it waits for."), "it has no card"
    found = await ada.complete("run cancel", "sweep", "", channel=channel.id)
    assert found[0] == (f"{sweep} · demo, seed=1..3 (3 not ended)", sweep)
    cancel = await ada.command("run cancel", sweep=sweep)
    assert said(cancel).startswith(f"Sweep {sweep} ends. Runs ")
    assert said(cancel).endswith(" end at once.\n**This cannot be undone.**")
    assert (await ada.agree(cancel)).text == (
        f"3 runs of sweep {sweep}: asked to stop; /run rerun launches one of them again."
    )
    assert said(await ada.command("run cancel", sweep=sweep)) == f"Sweep {sweep} has no run left to cancel."
    assert said(await ada.command("run cancel", sweep=404)) == "There is no sweep 404."
    assert said(await ada.command("run compare", runs="sweep 404")) == "There is no sweep 404."
    assert lab.call(sweeps.view, sweep).state == RunState.FINISHED


async def test_points_are_judged_while_they_are_typed_and_bad_ones_launch_nothing(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    ada = lab.person("Ada")

    async def shown(typed: str, **others: object) -> list[str]:
        given: dict[str, object] = {"recipe": "demo", "time_limit": "5m"} | others
        return [name for name, _ in await ada.complete("run sweep", "points", typed, channel=channel.id, **given)]

    assert await shown("le") == ["learning_rate= · the recipe has 0.005"]
    assert await shown("seed=1..2 wa") == ["seed=1..2 warmup= · the recipe has 0.1"]
    assert (await shown("seed=1..2"))[0].startswith("seed=1..2 · ✓ 2 runs, 0.167 core-hours at most")
    assert (await shown("seed=7"))[0].startswith("seed=7 · ✗ A sweep has at least two points")
    assert (await shown("magic=1,2"))[0].startswith("magic=1,2 · ✗ The point magic=1: 'magic' may not be")
    heads, before = lab.heads(), len(lab.call(runs.of_project, 1))
    for points, sentence in (
        ("x" * 4000, "The sweep has 4,000 characters; at most 1,000 fit."),
        ("seed=1..10000", "The sweep has 10,000 points; at most 24 runs may be launched at once."),
        ("🧪=1,2", "The point 🧪=1: '🧪' may not be overridden"),
        ("seed=1,-1", "The point seed=-1: seed must be"),
        ("learning_rate=nan,1", "The point learning_rate=nan: learning_rate must be"),
        ("seed=1,1", "Two points are the same run: seed=1 and seed=1."),
        ("seed=1 seed=2", "“seed” is given twice"),
    ):
        answer = said(await offered(lab, channel, points=points))
        assert answer.startswith(sentence)
        assert text.length(answer) <= text.MESSAGE
    mention = said(await offered(lab, channel, points="@everyone=1,2"))
    assert "@everyone" not in mention
    assert (lab.heads(), len(lab.call(runs.of_project, 1))) == (heads, before)
    offer = await offered(lab, channel, "Grace", points="seed=1..2")
    assert offer.message is not None
    assert "Launch a sweep of 2 runs" in offer.text
