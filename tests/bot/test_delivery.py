"""Delivery: each entry is posted once and in order, whenever the bot is killed and whatever fails on the way."""

import asyncio
import re
from datetime import timedelta
from functools import partial

from sqlalchemy import update
from sqlalchemy.orm import Session
from sqlmodel import col, select

import broker.runs.runs  # noqa: F401 - the tables that others refer to
from bot.delivery import notices
from bot.delivery.loop import Backoff
from bot.tables import DiscordMessage
from projects import lifecycle, projects
from projects.db.columns import utcnow
from projects.record import verification
from projects.record.record import Payload
from tests.bot.conftest import BOT, Lab, has
from tests.patience import PATIENCE, until

POST = r"POST /channels/\d+/messages$"
# Two minutes cannot be waited for: this bot takes every nonce for forgotten after a second.
FORGETFUL = (
    f"from datetime import timedelta; from bot.delivery import sender; sender.NONCE_GOOD_FOR = timedelta(0, 1); {BOT}"
)
# The whole process stands still, as on a machine that is paused, before it posts where a file "paused" says.
PAUSED = f"""
import os, time, discord
from pathlib import Path
place, file = discord.Client.get_partial_messageable, Path(os.environ["STOA_HOME"]) / "paused"
def paused(self, channel_id, **options):
    while file.exists() and file.read_text() == str(channel_id):
        time.sleep(0.1)
    return place(self, channel_id, **options)
discord.Client.get_partial_messageable = paused
{BOT}"""


def propose(lab: Lab, title: str = "Crash course") -> int:
    """Ada proposes a project, beside the bot."""
    request_id = f"test-{title}"
    said = {"title": title, "question": "Who falls?", "why": "To stand up.", "needs": "A net."}
    number: int = lab.call(lifecycle.propose, lab.actor("Ada"), request_id, **said)
    return number


def activate(lab: Lab, project_id: int) -> None:
    """Grace joins and Ada writes the scope, beside the bot."""
    lab.call(lifecycle.join, lab.actor("Grace"), project_id, min_people=2)
    said = {"goal": "Stand.", "plan": "Fall, then stand.", "compute": "Little.", "release": "All."}
    lab.call(lifecycle.scope, lab.actor("Ada"), project_id, **said, min_people=2)


def sent_at_least(lab: Lab, number: int) -> bool:
    return sum(lab.sent().values()) >= number


def refused_more_than(lab: Lab, times: int) -> bool:
    return lab.refused() > times


def open_intents(lab: Lab) -> list[str]:
    """The keys of the messages that were meant to be sent and are not known to have been."""
    with lab.db.read() as session:
        return list(session.scalars(select(DiscordMessage.key).where(col(DiscordMessage.message_id).is_(None))))


def standing_notices(lab: Lab) -> list[str]:
    """The keys of the notices that are not known to say that posting goes on."""
    with lab.db.read() as session:
        notice = col(DiscordMessage.key).startswith(notices.WAITS)
        return list(session.scalars(select(DiscordMessage.key).where(notice, DiscordMessage.digest != notices.OVER)))


def redraw(session: Session, key: str) -> None:
    """Have a card drawn anew, as after a release that has changed its look."""
    session.execute(update(DiscordMessage).where(col(DiscordMessage.key) == key).values(digest=""))


def forget_nonces(session: Session) -> None:
    """Make all open intents older than Discord remembers a nonce."""
    past = utcnow() - timedelta(minutes=10)
    session.execute(
        update(DiscordMessage)
        .where(col(DiscordMessage.message_id).is_(None))
        .values(intended_at=past, nonce="forgotten")
    )


async def told(lab: Lab, project_id: int) -> list[int]:
    """The numbers of the project's entries as they stand in its thread and channel, in the order of posting."""
    found: list[tuple[int, int]] = []
    for channel in await lab.guild.channels():
        for message in await lab.guild.messages(channel.id):
            match = re.fullmatch(rf"-# P{project_id} · record (\d+) · [0-9a-f]{{8}}", message.text.splitlines()[-1])
            if match and channel.name != "announcements":
                found.append((int(message.id), int(match[1])))
    return [number for _, number in sorted(found)]


async def cards(lab: Lab, project_id: int) -> int:
    """How many cards of the project there are."""
    messages = await lab.guild.messages("proposals")
    return sum(m.text.endswith(f"-# P{project_id} · project") for m in messages)


async def test_killed_between_the_post_and_its_commit(lab: Lab) -> None:
    """The connection is cut once the post is made, and the bot dies before it tries again: the nonce is the same."""
    await lab.start_bot()
    await lab.guild.wait_for("public-record", lambda m: "record 2" in m.text)
    await lab.guild.fault(POST, cut=True)
    propose(lab)
    await lab.guild.wait_for("proposals", lambda m: True, every=0.02)
    lab.kill_bot()
    assert open_intents(lab) == ["project:1"]
    await lab.start_bot()
    card = await lab.guild.wait_for("proposals", lambda m: m.thread_id is not None)
    await lab.guild.wait_for(card.id, lambda m: "record 1" in m.text)

    await lab.guild.fault(POST, cut=True)
    lab.call(lifecycle.join, lab.actor("Grace"), 1, min_people=2)
    await lab.guild.wait_for(card.id, lambda m: "record 2" in m.text, every=0.02)
    lab.kill_bot()
    assert len(open_intents(lab)) == 1
    await lab.start_bot()
    await lab.guild.wait_for("proposals", lambda m: "**Contributors (1)** Grace" in m.text)
    assert await cards(lab, 1) == 1
    assert await told(lab, 1) == [1, 2]


async def test_an_old_intent_is_settled_in_the_channel(lab: Lab) -> None:
    """Where the nonce is forgotten, the post is found by its marker; where there is none, it is sent."""
    await lab.start_bot()
    propose(lab)
    thread = (await lab.guild.wait_for("proposals", lambda m: m.thread_id is not None)).thread_id or ""
    await lab.guild.wait_for(thread, lambda m: "record 1" in m.text)

    await lab.guild.fault(rf"POST /channels/{thread}/messages$", cut=True)
    lab.call(lifecycle.join, lab.actor("Grace"), 1, min_people=2)
    await lab.guild.wait_for(thread, lambda m: "record 2" in m.text, every=0.02)
    lab.kill_bot()
    lab.call(forget_nonces)
    await lab.start_bot()
    await until(lambda: not open_intents(lab))

    await lab.guild.fault(POST, count=1000, status=503)
    lab.call(lifecycle.join, lab.actor("Rosa"), 1, min_people=2)
    await until(lambda: open_intents(lab))
    lab.kill_bot()
    await lab.guild.clear_faults()
    lab.call(forget_nonces)
    await lab.start_bot()
    await until(lambda: not open_intents(lab))
    assert await told(lab, 1) == [1, 2, 3]


async def test_a_channel_is_made_once(lab: Lab) -> None:
    """Killed while the channel is made: it is found again by the mark in its topic; a thread by its message.

    So it is where Discord makes the channel and answers with an error all the same.
    """
    await lab.guild.fault(r"POST /channels/\d+/messages/\d+/threads$", cut=True)
    lab.spawn_bot()
    propose(lab)
    await lab.guild.wait_for_channel(lambda c: c.is_thread)
    lab.kill_bot()
    activate(lab, 1)
    await lab.guild.fault(r"POST /guilds/\d+/channels$", cut=True)
    lab.spawn_bot()
    await lab.guild.wait_for_channel(lambda c: c.name == "p1-crash-course")
    lab.kill_bot()
    lab.spawn_bot()
    await lab.guild.wait_for("p1-crash-course", lambda m: "record 4" in m.text)
    names = [channel.name for channel in await lab.guild.channels()]
    assert names.count("p1-crash-course") == 1
    assert [channel.is_thread for channel in await lab.guild.channels()].count(True) == 1
    assert await told(lab, 1) == [1, 2, 3, 4, 4]

    await lab.guild.fault(r"POST /guilds/\d+/channels$", status=502, cut=True)
    activate(lab, propose(lab, "Failing course"))
    await lab.guild.wait_for("p2-failing-course", lambda m: "record 4" in m.text)
    assert [channel.name for channel in await lab.guild.channels()].count("p2-failing-course") == 1


async def test_killed_again_and_again(lab: Lab) -> None:
    """Nothing is missing, nothing is there twice, and the order holds."""
    projects = [propose(lab, f"Crash course {n}") for n in range(3)]
    for number in projects:
        activate(lab, number)
    for _ in range(3):
        enough = min(sum(lab.sent().values()) + 3, sum(lab.heads().values()))
        lab.spawn_bot()
        await until(partial(sent_at_least, lab, enough))
        lab.kill_bot()
    await lab.guild.fault(POST, count=2, cut=True)
    await lab.guild.fault(r"PATCH /channels/", count=1, cut=True)
    await lab.start_bot()
    for number in projects:
        await lab.guild.wait_for(f"p{number}-crash-course-{number - 1}", lambda m: "record 4" in m.text)
        await lab.guild.wait_for("proposals", has(f"P{number} ·", "Active"))
        assert await told(lab, number) == [1, 2, 3, 4, 4]
        assert await cards(lab, number) == 1
    lab_posts = [m.text.splitlines()[-1] for m in await lab.guild.messages("public-record")]
    assert [line[:17] for line in lab_posts] == ["-# Lab · record 1", "-# Lab · record 2"]


async def test_a_second_bot_waits(lab: Lab) -> None:
    await lab.start_bot()
    first = lab.bot
    assert first is not None
    second = lab.spawn_bot(HOME=str(lab.root / "second"))
    await until(lambda: "another process delivers to this server" in lab.log)
    propose(lab)
    await lab.guild.wait_for("proposals", lambda m: m.thread_id is not None)
    first.kill()
    first.wait()
    lab.call(lifecycle.join, lab.actor("Grace"), 1, min_people=2)
    await lab.guild.wait_for("proposals", lambda m: "**Contributors (1)** Grace" in m.text)
    assert second.poll() is None
    assert await told(lab, 1) == [1, 2]


async def test_a_bot_that_was_paused_does_not_post_what_the_next_has_posted(lab: Lab) -> None:
    await lab.start_bot(code=PAUSED)
    propose(lab)
    thread = (await lab.guild.wait_for("proposals", lambda m: m.thread_id is not None)).thread_id or ""
    await until(lambda: lab.sent().get("project:1") == 1)
    (lab.root / "paused").write_text(thread)
    lab.call(lifecycle.join, lab.actor("Grace"), 1, min_people=2)
    await until(lambda: open_intents(lab))
    lab.spawn_bot("second.log", code=FORGETFUL, HOME=str(lab.root / "second"))
    await lab.guild.wait_for(thread, lambda m: "record 2" in m.text)
    (lab.root / "paused").unlink()
    await until(lambda: "another process delivers to this server" in lab.log)
    lab.call(lifecycle.join, lab.actor("Rosa"), 1, min_people=2)
    await lab.guild.wait_for(thread, lambda m: "record 3" in m.text)
    assert await told(lab, 1) == [1, 2, 3]


async def test_what_a_person_deletes_stays_deleted_and_stops_nothing_else(lab: Lab) -> None:
    await lab.start_bot()
    one, two = propose(lab, "One is deleted"), propose(lab, "Two lives on")
    activate(lab, one)
    activate(lab, two)
    await lab.guild.wait_for("p1-one-is-deleted", lambda m: "record 4" in m.text)
    await lab.guild.wait_for("p2-two-lives-on", lambda m: "record 4" in m.text)
    room = next(c for c in await lab.guild.channels() if c.name == "p1-one-is-deleted")
    assert re.search(r"Who falls\? · P1 \(stoa-[0-9a-f]{12}\)$", room.topic or "")
    assert f"<#{room.id}>" in (await lab.person("Ada").command("project show", project=one)).text
    assert lab.call(projects.view, one).channel_url.endswith(f"/{room.id}")
    await lab.person("Omar").delete_channel("p1-one-is-deleted")
    card = await lab.guild.wait_for("proposals", lambda m: m.text.endswith("P1 · project"))
    await lab.person("Omar").delete("proposals", card)
    for number in (one, two):
        lab.call(lifecycle.join, lab.actor("Rosa"), number, min_people=2)
    lab.give(one)
    lab.call(lifecycle.complete, lab.actor("Ada"), one, outcome="result", learnt="It goes on.")
    announced = await lab.guild.wait_for("announcements", lambda m: "One is deleted" in m.text)
    assert "It goes on." in announced.text
    await lab.guild.wait_for("p2-two-lives-on", lambda m: "record 5" in m.text)
    for channel in ("compute-review", "public-record"):
        post = await lab.guild.wait_for(channel, lambda m: "was deleted" in m.text)
        assert "The channel of **P1 · One is deleted** was deleted" in post.text
    await until(lambda: {"entry", "project"} <= set(re.findall(r"it is not sent again.*key=(\w+)", lab.log)))
    assert f"<#{room.id}>" not in (await lab.person("Ada").command("project show", project=one)).text
    assert lab.call(projects.view, one).channel_url == ""
    assert await cards(lab, one) == 0
    assert "p1-one-is-deleted" not in [channel.name for channel in await lab.guild.channels()]


async def test_a_blanked_entry_is_told_without_its_words(lab: Lab) -> None:
    propose(lab)
    lab.call(
        lambda session: session.execute(update(Payload).where(col(Payload.entry_id) > 2).values(body=None, salt=None))
    )
    await lab.start_bot()
    thread = (await lab.guild.wait_for("proposals", lambda m: m.thread_id is not None)).thread_id or ""
    post = await lab.guild.wait_for(thread, lambda m: "record 1" in m.text)
    assert "blanked" in post.text
    assert "Who falls?" not in post.text
    assert lab.call(verification.verify, "project:1").ok


async def test_a_missing_permission_is_waited_for(lab: Lab) -> None:
    """The admins are told once, wherever it is missing, and told again when it is there; nothing else waits."""
    await lab.start_bot()
    one, two = propose(lab, "One is locked"), propose(lab, "Two is open")
    for number in (one, two):
        activate(lab, number)
    channel = await lab.guild.wait_for_channel(lambda c: c.name == "p1-one-is-locked")
    await lab.guild.wait_for(channel.id, lambda m: "record 4" in m.text)
    await lab.guild.fault(rf"POST /channels/{channel.id}/messages$", count=1000, status=403)
    for number in (one, two):
        lab.call(lifecycle.join, lab.actor("Rosa"), number, min_people=2)
    notice = await lab.guild.wait_for("compute-review", lambda m: "waits at record 5" in m.text)
    assert f"the bot lacks a permission in <#{channel.id}>" in notice.text
    await lab.guild.wait_for("p2-two-is-open", lambda m: "record 5" in m.text)
    await until(lambda: lab.log.count("posting waits") >= 1)
    lab.kill_bot()
    await lab.start_bot()
    await until(lambda: lab.log.count("posting waits") >= 2)
    await lab.guild.clear_faults()
    await lab.guild.wait_for(channel.id, lambda m: "record 5" in m.text)
    await lab.guild.wait_for("compute-review", lambda m: m.id == notice.id and "✅" in m.text)
    assert len(await lab.guild.messages("compute-review")) == 1
    assert await told(lab, one) == [1, 2, 3, 4, 4, 5]

    # Of a card alone, again and again at the same entry: each outage is told of once.
    for count in (2, 3):
        await until(lambda: not standing_notices(lab))
        lab.kill_bot()
        lab.call(redraw, f"project:{one}")
        proposals = lab.guild.info["channels"]["proposals"]
        await lab.guild.fault(rf"PATCH /channels/{proposals}/", count=1000, status=403)
        await lab.start_bot()
        notice = await lab.guild.wait_for("compute-review", lambda m: "waits at record 6" in m.text)
        refused = lab.refused()
        await until(partial(refused_more_than, lab, refused))
        said = await lab.guild.messages("compute-review")
        assert [m.text[0] for m in said] == ["✅"] * (count - 1) + ["⚠"]
        await lab.guild.clear_faults()
        if count == 3:  # the connection breaks as the notice is changed
            await lab.guild.fault(rf"PATCH /channels/{lab.guild.info['channels']['compute-review']}/", cut=True)
        await lab.guild.wait_for("compute-review", has("✅", message_id=notice.id))
    await until(lambda: "a notice to the admins cannot be changed" in lab.log)


def test_a_feed_that_fails_for_days_is_still_tried_again() -> None:
    backoff = Backoff()
    for _ in range(5000):
        backoff.note("project:1", "Discord answers 503")
    assert backoff.count == 5000
    assert not backoff.over


async def test_it_says_what_is_missing(lab: Lab) -> None:
    """A wrong token, channel or role ends the bot with one sentence."""
    cases: dict[str, dict[str, str]] = {
        "Discord refuses the token": {"DISCORD_TOKEN": "wrong"},
        "STOA_REVIEW_CHANNEL_ID names no text channel": {"REVIEW_CHANNEL_ID": "5"},
        "STOA_REVIEWER_ROLE_ID names no role": {"REVIEWER_ROLE_ID": "5"},
        "The bot is not in the server 5": {"GUILD_ID": "5"},
        "Discord cannot be reached": {"DISCORD_API": "http://127.0.0.1:9"},
    }
    started = [lab.spawn_bot(f"{n}.log", **changes) for n, changes in enumerate(cases.values())]
    for number, (sentence, process) in enumerate(zip(cases, started, strict=True)):
        assert await asyncio.to_thread(process.wait, PATIENCE) == 1
        said = (lab.root / f"{number}.log").read_text()
        assert sentence in said
        assert "Traceback" not in said


async def test_each_newcomer_of_a_crowd_is_confirmed_from_the_post_that_they_share(lab: Lab) -> None:
    propose(lab)
    crowd = [await lab.guild.join(name) for name in ("Emmy", "Kurt", "Lise", "Mary", "Noor", "Otto")]
    lab.guild.info["users"] |= (await lab.guild.call("GET", "/guild"))["users"]
    for person in crowd:
        lab.call(lifecycle.join, lab.actor(person.name), 1, min_people=99)
    await lab.start_bot()
    card = await lab.guild.wait_for("proposals", lambda m: m.thread_id is not None)
    post = await lab.guild.wait_for(card.id, has("**Emmy** joins the project", "**Otto** joins the project"))
    assert post.button_labels == [f"Confirm {name}" for name in ("Emmy", "Kurt", "Lise", "Mary", "Noor")]
    confirmed = (await lab.person("Ada").press(post, "Confirm Lise")).text
    assert confirmed.startswith("Lise is now a contributor.\n**Next** The project gets its own channel once ")
    await lab.guild.wait_for(card.id, has("**Ada** confirms **Lise** as a contributor."))
