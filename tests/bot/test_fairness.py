"""Fairness: a crowd, a noisy project or somebody who asks for much holds nobody else up."""

import asyncio
import re
from collections.abc import Sequence

from sqlalchemy.orm import Session

from bot.turns import Turns
from broker.runners.processes import Process
from broker.runs import attempts, leases
from broker.runs.progress import Progress
from broker.runs.series import Measured
from projects import lifecycle, membership, updates
from projects.people import Actor
from projects.record import record, redaction
from sandbox.people import Message
from tests.bot.conftest import BOT, Lab, has
from tests.bot.test_delivery import forget_nonces, open_intents, propose
from tests.patience import until

ONE_PLACE = f"from bot.delivery import loop; loop.MOST_FEEDS = 1; {BOT}"


def crowd(session: Session, project_id: int, numbers: range, *, leave: bool = False) -> None:
    """So many people follow the project, or leave it, in one transaction."""
    for number in numbers:
        who = Actor(10_000 + number, f"Person {number}")
        (membership.leave if leave else membership.follow)(session, who, project_id)


def markers(messages: Sequence[Message]) -> list[str]:
    """The numbers of the record that a thread's messages end with, in the order of posting."""
    ends = [message.text.splitlines()[-1] for message in sorted(messages, key=lambda m: int(m.id))]
    return [found[1] for end in ends if (found := re.search(r"· record ([\d–]+) ·", end))]


async def thread_of(lab: Lab, number: int) -> str:
    """The thread under a proposal's card."""
    card = await lab.guild.wait_for("proposals", lambda m: f"P{number} ·" in m.text and m.thread_id is not None)
    thread = card.thread_id or ""
    # The bot knows the thread as the project's a moment after everybody sees it.
    await lab.guild.wait_for(thread, lambda m: True)
    return thread


async def test_a_crowd_that_comes_and_goes_shares_posts(lab: Lab) -> None:
    """What a project tells does not wait for it, nothing is told twice, and one of them can be blanked."""
    number = propose(lab)
    lab.call(crowd, number, range(20))
    lab.call(updates.post_update, lab.actor("Ada"), number, "It goes on.")
    lab.call(crowd, number, range(20), leave=True)
    await lab.start_bot()
    thread = await thread_of(lab, number)
    await lab.guild.wait_for(thread, lambda m: "record 38–42" in m.text)
    assert markers(await lab.guild.messages(thread)) == ["1", "2–16", "17–21", "22", "23–37", "38–42"]
    shared = await lab.guild.wait_for(thread, lambda m: "record 2–16" in m.text)
    assert [f"**Person {n}** follows the project" in shared.text for n in range(16)] == [True] * 15 + [False]

    lab.call(redaction.redact, None, f"project:{number}", 5, "A slip.")
    blanked = await lab.guild.wait_for(thread, lambda m: m.id == shared.id and "blanked" in m.text)
    assert [f"**Person {n}**" in blanked.text for n in (2, 3, 4)] == [True, False, True]
    await lab.guild.wait_for(thread, lambda m: "record 43 ·" in m.text)

    await lab.guild.fault(rf"POST /channels/{thread}/messages$", cut=True)
    lab.call(crowd, number, range(5))
    await lab.guild.wait_for(thread, lambda m: "record 44–48" in m.text, every=0.02)
    lab.kill_bot()
    assert len(open_intents(lab)) == 1
    lab.call(forget_nonces)
    lab.call(crowd, number, range(5, 8))
    await lab.start_bot()
    await lab.guild.wait_for(thread, lambda m: "record 51 ·" in m.text)
    # A post is seen a moment before the bot has noted it.
    await until(lambda: not open_intents(lab), "the note of the last post")
    assert markers(await lab.guild.messages(thread))[-5:] == ["43", "44–48", "49", "50", "51"]


async def test_a_noisy_project_gives_its_place_to_the_others(lab: Lab) -> None:
    """With a single place to post from, another project's news comes before the noisy one has told everything."""
    noisy, quiet = propose(lab, "Noise"), propose(lab, "Quiet")

    def make_noise(session: Session) -> None:
        for _ in range(24):
            record.append(session, record.project_stream(noisy), "project.resumed", by=None)

    lab.call(make_noise)
    lab.call(updates.post_update, lab.actor("Ada"), quiet, "It goes on.")
    await lab.start_bot(code=ONE_PLACE)
    threads = [await thread_of(lab, number) for number in (noisy, quiet)]
    last = await lab.guild.wait_for(threads[0], has("record 25 ·"))
    news = await lab.guild.wait_for(threads[1], has("It goes on."))
    assert int(news.id) < int(last.id)


async def test_only_a_project_that_was_granted_gpu_time_is_announced(lab: Lab) -> None:
    await lab.start_bot()
    abandoned, granted = propose(lab, "Never began"), propose(lab, "Had an hour")
    lab.give(granted)
    thread = await thread_of(lab, abandoned)
    asked = await lab.person("Ada").command("project complete", channel=thread)
    form = await lab.person("Ada").agree(asked)
    answer = await lab.person("Ada").submit(form, {"Outcome": "abandoned", "What was learnt": "To begin is hard."})
    assert answer.text == "The project is completed; its channel or thread says so. Thank you!"
    await lab.guild.wait_for(thread, lambda m: "To begin is hard." in m.text)
    lab.call(lifecycle.complete, lab.actor("Ada"), granted, outcome="abandoned", learnt="An hour is short.")
    await lab.guild.wait_for("announcements", lambda m: "An hour is short." in m.text)
    assert len(await lab.guild.messages("announcements")) == 1


def trained(lab: Lab, run: int, device: int) -> None:
    """The run has a curve."""
    points = [Measured("loss", step, step * 1000, 9.0 - step / 10) for step in range(1, 20)]
    token = lab.call(attempts.admit, run, (device,))
    lab.call(leases.claim, run, token, host="here", lease_seconds=600)
    lab.call(leases.started, run, token, Process("here", "boot", run, 1), [], lease_seconds=600)
    lab.call(leases.renew, run, token, 5.0, Progress(0, 0, step=19, tokens=19_000, points=points), lease_seconds=600)


async def test_who_asks_for_many_pictures_makes_nobody_wait(lab: Lab) -> None:
    await lab.start_bot()
    channel = await lab.activate()
    await lab.approved(channel)
    for number, limit in enumerate(("5m", "6m")):
        await lab.launch(channel, time_limit=limit)
        trained(lab, number + 1, number)
    asked = [asyncio.create_task(lab.person("Grace").command("run compare", runs="1 2")) for _ in range(6)]
    await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
    shown = await lab.person("Ada").command("run show", run=1)
    waiting = sum(not task.done() for task in asked)
    assert shown.message is not None
    assert len(shown.message.attachments) == 1
    assert waiting > 0, "the others' pictures are still to be drawn"
    answers = await asyncio.gather(*asked)
    assert all(answer.message is not None and answer.message.attachments for answer in answers)


async def test_turns_go_round_among_people() -> None:
    turns, order = Turns(at_once=1), list[str]()

    async def work(person: int, name: str) -> None:
        async with turns.take(person):
            order.append(name)
            await asyncio.sleep(0)

    names = [(1, "a1"), (1, "a2"), (1, "a3"), (1, "a4"), (2, "b1"), (2, "b2"), (3, "c1")]
    await asyncio.gather(*(work(person, name) for person, name in names))
    assert order == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]


async def test_a_turn_that_nobody_waits_for_any_more_goes_to_the_next() -> None:
    turns = Turns(at_once=2, each=1)
    reached: list[int] = []

    async def work(number: int, until_: asyncio.Event) -> None:
        async with turns.take(1):
            reached.append(number)
            await until_.wait()

    done = asyncio.Event()
    tasks = [asyncio.create_task(work(number, done)) for number in range(4)]
    await until(lambda: reached == [0])
    tasks[1].cancel()  # while it waits
    tasks[0].cancel()  # while it works
    await until(lambda: reached == [0, 2])
    done.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert reached == [0, 2, 3]
    async with turns.take(2), turns.take(3):
        pass
