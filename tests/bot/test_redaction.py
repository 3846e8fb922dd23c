"""What was blanked in the record is blanked in Discord: its posts are edited, and nothing is posted anew."""

import re
from collections.abc import Callable
from typing import Any

from sqlalchemy.orm import Session
from sqlmodel import select

from bot import kept_forms
from bot.delivery import posts
from bot.tables import DiscordForm
from projects import lifecycle, membership, policies, projects, updates
from projects.people import Actor
from projects.record import redaction
from sandbox.discord import permissions
from sandbox.discord.components import walk
from sandbox.people import Answer, Message
from tests.bot.conftest import AGED, BOT, Lab, has
from tests.bot.test_delivery import activate, propose
from tests.patience import until

# Half a minute cannot be waited for either: this bot takes a wait of more than six seconds for a refusal.
IMPATIENT = (
    "from discord.http import HTTPClient;"
    f"HTTPClient.max_ratelimit_timeout = property(lambda self: 6.0, lambda self, _: None); {AGED}"
)


def forgets(word: str, message_id: str) -> Callable[[Message], bool]:
    """Whether it is this message, and without the word."""
    return lambda message: message.id == message_id and word not in message.text


def card_with_thread(project: int) -> Callable[[Message], bool]:
    """Whether a message is the card of a proposal that has its thread."""
    return lambda message: f"P{project} ·" in message.text and message.thread_id is not None


def redact(session: Session, stream: str, number: int) -> None:
    redaction.redact(session, None, stream, number, "It was private.")


async def test_the_posts_of_a_blanked_entry_become_tombstones(lab: Lab) -> None:
    await lab.start_bot()
    propose(lab)
    activate(lab, 1)
    card = await lab.guild.wait_for("proposals", lambda m: m.thread_id is not None)
    first = await lab.guild.wait_for(card.id, lambda m: "record 1 " in m.text and "Who falls?" in m.text)
    channel = await lab.guild.wait_for_channel(lambda c: c.name == "p1-crash-course")
    assert "Crash course: Who falls?" in (channel.topic or "")
    await lab.guild.wait_for(channel.id, lambda m: "record 4 " in m.text)
    lab.call(redact, "project:1", 1)
    blanked = await lab.guild.wait_for(card.id, lambda m: m.id == first.id and posts.BLANKED in m.text)
    assert blanked.text.splitlines()[-1] == first.text.splitlines()[-1], "it can still be cited"
    assert "Who falls?" not in blanked.text
    told = await lab.guild.wait_for(channel.id, lambda m: "Entry 1 of this record was blanked" in m.text)
    assert "It was private." in told.text
    texts = [m.text for m in await lab.guild.messages(card.id)]
    assert sum("record 1 " in text for text in texts) == 1
    names = {c.id: (c.name, c.topic) for c in await lab.guild.channels()}
    assert names[channel.id][0] == "p1-removed"
    assert re.fullmatch(r"\\\[removed\\\]: \\\[removed\\\] · P1 \(stoa-[0-9a-f]{12}\)", names[channel.id][1] or "")
    assert names[card.id][0] == "P1 · [removed]"


async def test_many_old_posts_are_blanked_as_discord_takes_the_edits_and_nothing_waits_for_them(lab: Lab) -> None:
    """It takes few of those of an hour and more; the others stay due while posts go on, over a crash too."""
    await lab.start_bot(IMPATIENT)
    propose(lab)
    for number in range(3):
        lab.call(updates.change_needs, lab.actor("Ada"), 1, f"{number} nets.")
    card = await lab.guild.wait_for("proposals", lambda m: m.thread_id is not None)
    await lab.guild.wait_for(card.id, lambda m: "record 4 " in m.text)
    await lab.guild.count_as_old(0)
    await lab.guild.limit("old edit", 2, 300.0)

    async def blanked() -> list[int]:
        told = [m.text for m in await lab.guild.messages(card.id) if m.text.startswith(posts.BLANKED)]
        return sorted(int(text.partition("record ")[2].split()[0]) for text in told)

    lab.call(redaction.forget, None, lab.guild.info["users"]["Ada"], "They asked.")
    lab.call(lifecycle.join, lab.actor("Grace"), 1, min_people=9)
    await lab.guild.wait_for(card.id, lambda m: "record 6 " in m.text)
    assert len(await blanked()) < 4
    await until(lambda: lab.sent()["project:1"] == 6)
    lab.kill_bot()
    await lab.guild.limit("old edit", 2, 8.0)
    await lab.start_bot(IMPATIENT)
    for number in (1, 2, 3, 4):
        await lab.guild.wait_for(card.id, has(f"record {number} ", posts.BLANKED))
    assert await blanked() == [1, 2, 3, 4]
    assert "posting waits" not in lab.log


async def test_an_archived_thread_is_opened_for_it_and_a_locked_one_is_left_to_the_moderators(lab: Lab) -> None:
    await lab.start_bot()
    projects = [propose(lab, "One sleeps"), propose(lab, "Two is locked")]
    one, two = [(await lab.guild.wait_for("proposals", card_with_thread(n))).id for n in projects]
    for thread in (one, two):
        await lab.guild.wait_for(thread, lambda m: "record 1 " in m.text)
    await lab.guild.set_permissions("Stoa", permissions.BOT & ~permissions.MANAGE_THREADS)
    activate(lab, 1)
    await lab.guild.wait_for("p1-one-sleeps", lambda m: "record 4 " in m.text)
    await lab.person("Omar").set_thread(one, archived=True)
    await lab.person("Omar").set_thread(two, archived=True, locked=True)
    for number in projects:
        lab.call(redact, f"project:{number}", 1)
    activate(lab, 2)
    await lab.guild.wait_for(one, lambda m: "record 1 " in m.text and posts.BLANKED in m.text)
    await lab.guild.wait_for_channel(lambda c: c.name == "p2-removed")
    await lab.guild.wait_for("p2-removed", lambda m: "record 5 " in m.text)
    notice = await lab.guild.wait_for("compute-review", lambda m: f"can still be read in <#{two}>" in m.text)
    assert "P2 · record 1 " in notice.text
    assert len(await lab.guild.messages(two)) == 1
    assert "posting waits" not in lab.log
    await lab.person("Omar").set_thread(two, locked=False)
    lab.kill_bot()
    await lab.start_bot()
    await lab.guild.wait_for(two, lambda m: "record 1 " in m.text and posts.BLANKED in m.text)
    assert len(await lab.guild.messages("compute-review")) == 1


async def test_who_is_forgotten_is_named_on_no_card_however_old(lab: Lab) -> None:
    """Also where the bot ends before it has come to the card of a run that is none of the newest."""
    # So many runs as a bot keeps in mind would each have to be launched and ended.
    few = f"from bot.delivery import run_card_updates; run_card_updates.RUNS_KEPT = 1; {BOT}"
    await lab.start_bot(few)
    channel = await lab.activate()
    await lab.approved(channel)
    cards = []
    for run in (1, 2):
        await lab.launch(channel)
        await lab.guild.wait_for(channel.id, has(f"-# P1 · run {run}"))
        asked = await lab.person("Ada").command("run cancel", channel=channel.id, run=run)
        await lab.person("Ada").agree(asked)
        cards.append(await lab.guild.wait_for(channel.id, has(f"Run {run} was cancelled")))
    assert all("by Ada" in card.text for card in cards)
    await lab.guild.fault(rf"PATCH /channels/{channel.id}/messages/{cards[0].id}$", count=1000, status=503)
    lab.call(redaction.forget, None, lab.guild.info["users"]["Ada"], "They asked.")
    await until(lambda: lab.sent()["project:1"] == lab.heads()["project:1"])
    lab.kill_bot()
    await lab.guild.clear_faults()
    await lab.start_bot(few)
    for card in cards:
        now = await lab.guild.wait_for(channel.id, has(f"by {redaction.NAMELESS}", message_id=card.id))
        assert "Ada" not in now.text


async def test_a_long_post_and_the_labs_own_are_blanked_too(lab: Lab) -> None:
    await lab.start_bot()
    lab.call(propose_at_length, lab.actor("Ada"))
    card = await lab.guild.wait_for("proposals", lambda m: m.thread_id is not None)
    await lab.guild.wait_for(card.id, lambda m: "record 1 " in m.text and m.text.count("long") > 300)
    await lab.guild.wait_for("public-record", lambda m: "The Library" in m.text)
    lab.call(redact, "project:1", 1)
    lab.call(redact, "lab", 2)
    await lab.guild.wait_for(card.id, lambda m: "record 1 " in m.text and m.text.startswith(posts.BLANKED))
    await lab.guild.wait_for("public-record", lambda m: "record 2 " in m.text and m.text.startswith(posts.BLANKED))
    assert not any("The Library" in m.text for m in await lab.guild.messages("public-record"))


def propose_at_length(session: Session, actor: Actor) -> None:
    said = {"title": "At length", "question": "long " * 190, "why": "long " * 190, "needs": "long " * 90}
    lifecycle.propose(session, actor, "at-length", **said)


def propose_of_two(session: Session, grace: Actor) -> None:
    """Somebody else's projects about Grace, who follows two of them."""
    for limit in ("most_open_proposals", "most_proposals_a_day"):
        policies.change(session, None, limit, "50", "To see.")
    for number in range(11):
        said = {"title": f"Does Grace fall ({number})?", "question": "q", "why": "w", "needs": "n"}
        project = lifecycle.propose(session, Actor(99, "Emmy"), f"about-{number}", **said)
        if number < 2:
            membership.follow(session, grace, project)
    updates.post_update(session, Actor(99, "Emmy"), 2, "Grace is of help.")


def select_of(answer: Answer) -> list[str]:
    """The values of the select in an answer."""
    return [option["value"] for part in walk(answer.components) for option in part.get("options", ())]


def ids_of_select(answer: Answer) -> list[str]:
    """The ids by which the selects of an answer are known."""
    return [part["custom_id"] for part in walk(answer.components) if "options" in part]


async def test_an_admin_bans_and_blanks_from_discord_and_nobody_else_does(lab: Lab) -> None:
    await lab.start_bot(ADMIN_ROLE_ID=str(lab.guild.info["roles"]["admin"]))
    propose(lab)
    card = await lab.guild.wait_for("proposals", lambda m: m.thread_id is not None)
    omar, grace = lab.person("Omar"), lab.person("Grace")

    async def because(command: str, why: str, **given: Any) -> Answer:
        return await omar.submit(await omar.command(command, **given), {"Reason": why})

    async def forgotten(person: str) -> str:
        shown = await because("stoa forget", "They asked.", person=person)
        assert shown.message is not None
        assert shown.text.endswith("**This cannot be undone.**")
        done = await omar.press(shown.message, "Forget the person")
        return (await lab.guild.wait_for_answer(done, lambda answer: "blanked; their" in answer.text)).text

    refused = await grace.command("stoa redact", channel=card.id, number=1)
    assert "Only the admins" in refused.text
    assert refused.ephemeral
    assert await grace.complete("stoa redact", "number", "", channel=card.id) == []
    assert await omar.complete("stoa redact", "number", "prop", channel=card.id) == [("1 · project.proposed", 1)]
    assert await omar.complete("stoa redact", "number", "grant", project=0) == [("2 · grant.added", 2)]
    nothing = await omar.command("stoa redact", channel=card.id, number=99)
    assert "There is no entry 99" in nothing.text, "it is said before a form opens"
    asked, again = [await omar.command("stoa redact", channel=card.id, number=1) for _ in range(2)]
    assert asked.text.startswith("Entry 1 of project:1, `project.proposed` by **Ada** of <t:")
    done = await omar.submit(await omar.agree(asked), {"Reason": "It was private."})
    assert (await omar.agree(again)).text == "Entry 1 of “project:1” is already blank."
    assert await omar.complete("stoa redact", "number", "prop", channel=card.id) == []
    assert "Entry 1 is blanked" in done.text
    await lab.guild.wait_for(card.id, lambda m: "record 1 " in m.text and posts.BLANKED in m.text)
    await because("stoa ban", "Spam.", person="Ada")
    await lab.guild.wait_for("public-record", lambda m: "Ada is banned" in m.text)
    refused = await lab.person("Ada").command("project scope", channel=card.id)
    assert "you are banned: Spam." in refused.text
    await because("stoa unban", "A mistake.", person="Ada")
    await lab.guild.wait_for("public-record", lambda m: "Ada can take part again" in m.text)
    assert "entries are blanked" in await forgotten("Ada")
    await lab.guild.wait_for("public-record", lambda m: "were blanked" in m.text)
    for message in [m for m in await lab.guild.messages("public-record") if "Ada" in m.text]:
        await lab.guild.wait_for("public-record", forgets("Ada", message.id))
    assert not any("Ada" in m.text for m in await lab.guild.messages("public-record"))

    lab.call(propose_of_two, lab.actor("Grace"))
    lab.call(kept_forms.keep, int(lab.guild.info["users"]["Grace"]), {})
    shown = await because("stoa forget", "They asked.", person="Grace")
    assert "2 entries refer to the person" in shown.text
    assert "23 other texts may name the person" in shown.text
    assert "Chosen to be changed: **0 of 23**. Nothing has been changed yet." in shown.text
    assert "Page 1 of 3" in shown.text
    assert shown.message is not None
    page = await omar.press(shown.message, "Next")
    assert "**9** " in page.text
    assert ids_of_select(page) != ids_of_select(shown), "a late choice from the first page chooses nothing of this one"
    page = await omar.choose(shown.message, "Texts to change", *select_of(page)[:2])
    assert "**2 of 23**" in page.text
    page = await omar.press(shown.message, "All")
    assert "**23 of 23**" in page.text
    page = await omar.press(shown.message, "None")
    assert "**0 of 23**" in page.text
    page = await omar.press(shown.message, "Previous")
    first = select_of(page)[0]
    page = await omar.choose(shown.message, "Texts to change", first)
    assert "☑ **1** title of project 2: Does Grace fall (0)?" in page.text
    done = await omar.press(shown.message, "Forget the person")
    done = await lab.guild.wait_for_answer(done, lambda answer: "blanked" in answer.text)
    assert "2 entries are blanked" in done.text
    assert lab.call(lambda session: session.scalars(select(DiscordForm)).all()) == []
    titles = [lab.call(projects.load, number).title for number in (2, 3)]
    assert titles == ["Does a former member fall (0)?", "Does Grace fall (1)?"]
    assert "0 entries are blanked" in await forgotten("Grace")

    form = await omar.command("stoa ban", person="Grace")
    await omar.command("stoa setup", admins="reviewer")
    too_late = await omar.submit(form, {"Reason": "I was an admin as I opened this."})
    assert "Only the admins" in too_late.text
