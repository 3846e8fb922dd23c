"""Whom a message pings, as Discord resolves it: the one whom it concerns, once, and nobody by what a member typed."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.orm import Session
from sqlmodel import col, select

from bot.delivery.entry_text import TEXTS
from bot.tables import DiscordMessage
from broker.end_reasons import EndReason
from broker.reports import concerned
from broker.runs import control, runs, settlement
from broker.runs.progress import Ending, Progress
from projects import bans, lifecycle, membership
from projects.people import Actor, LabRole
from projects.record import record, redaction
from sandbox.people import Channel
from tests.bot.conftest import Lab
from tests.bot.test_limits import payload_of
from tests.bot.test_run_commands import launched, start
from tests.discord_openapi import recorded
from tests.patience import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

Shared = tuple[Lab, Channel]
OF_PROJECTS = {"project", "reservation", "allocation", "run", "sweep", "checkpoint", "checkpoints"}
# The kinds that concern Ada, who leads, asked and launched, without more in their payload than a run or an allocation.
OF_ADA = concerned.WHOSE.keys() - {"run.paused", "sweep.ended", "catalogue.accepted", "catalogue.declined"}


@dataclass(frozen=True)
class Post:
    """A message of the bot as Discord answered its sending: where, what, and the names and roles that it pings."""

    channel: str
    text: str
    pings: tuple[str, ...]


def posts(lab: Lab) -> list[Post]:
    """All messages that the bot has sent to channels, each once however often it was sent."""
    names = {str(number): name for name, number in lab.guild.info["users"].items()}
    names |= {str(number): f"@{name}" for name, number in lab.guild.info["roles"].items()}
    found: dict[str, Post] = {}
    for exchange in recorded(lab.root / "sandbox", "exchanges.jsonl"):
        sent = exchange["response"]
        if not exchange["path"].endswith("/messages") or exchange["method"] != "POST" or exchange["status"] != 200:
            continue
        pings = [names[user["id"]] for user in sent["mentions"]] + [
            names.get(role, role) for role in sent["mention_roles"]
        ]
        assert not sent["mention_everyone"]
        assert exchange["request"]["allowed_mentions"]["parse"] == []
        said = str(sent["content"]) + str(sent["components"])
        found.setdefault(sent["id"], Post(sent["channel_id"], said, tuple(pings)))
    return list(found.values())


def pinged(lab: Lab, *words: str) -> list[tuple[str, ...]]:
    """Whom the messages with these words ping, in the order in which they were sent."""
    return [post.pings for post in posts(lab) if all(word in post.text for word in words)]


def being_sent(session: Session, channel_id: str) -> int:
    """How many messages the bot has begun to send to a channel, without knowing that they have arrived."""
    begun = (DiscordMessage.channel_id == channel_id, col(DiscordMessage.message_id).is_(None))
    return len(session.scalars(select(DiscordMessage.key).where(*begun)).all())


def mentioning(session: Session, discord_id: int) -> int:
    """How many posts, as the bot knows, mention somebody."""
    return len(session.scalars(select(DiscordMessage.key).where(DiscordMessage.mentions == str(discord_id))).all())


async def delivered(lab: Lab) -> None:
    """Wait until every entry is posted."""
    await until(lambda: lab.sent() == lab.heads())


async def test_a_lead_hears_of_a_join_reviewers_of_a_request_and_who_asked_of_the_answer(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    assert pinged(lab, "**Grace** joins the project") == [("Ada",)]
    assert pinged(lab, "· allocation 1", "-# For <@&") == [("@reviewer",)]
    assert pinged(lab, "· allocation 2", "-# For <@&") == [("@reviewer",)]
    assert pinged(lab, "**Rosa** approves 1 core-hour") == [("Ada",)]
    assert pinged(lab, "**Ada** proposes") == [()]

    card = await lab.review_card(2)
    rosa = lab.person("Rosa")
    await rosa.submit(await rosa.press(card, "Ask"), {"Question": f"Why, <@{lab.actor('Grace').discord_id}>?"})
    await lab.guild.wait_for(channel.id, lambda m: "**Rosa** asks about" in m.text)
    assert pinged(lab, "**Rosa** asks about") == [("Ada",)]
    await rosa.submit(await rosa.press(card, "Decline"), {"Reason": "Not now, @everyone."})
    await lab.guild.wait_for(channel.id, lambda m: "**Rosa** declines" in m.text)
    assert pinged(lab, "**Rosa** declines") == [("Ada",)]
    decided = await lab.guild.wait_for("compute-review", lambda m: m.id == card.id and "Declined by" in m.text)
    assert "For <@&" not in decided.text

    later = (datetime.now(UTC) + timedelta(days=60)).date().isoformat()
    form = await lab.person("Ada").command("allocation change", channel=channel.id, allocation=1)
    await lab.person("Ada").submit(form, {"Core-hours more": "2", "Until": later, "Justification": "It goes well."})
    card = await lab.guild.wait_for("compute-review", lambda m: "change 1 of allocation 1" in m.text)
    assert pinged(lab, "change 1 of allocation 1") == [("@reviewer",)]
    await rosa.submit(await rosa.press(card, "Approve"), {"Reason": "It does."})
    await lab.guild.wait_for(channel.id, lambda m: "approves the change of allocation 1" in m.text)
    assert pinged(lab, "approves the change of allocation 1") == [("Ada",)]
    for edit in recorded(lab.root / "sandbox", "exchanges.jsonl"):
        if (
            edit["method"] == "PATCH"
            and edit["path"].startswith("/channels/")
            and "mentions" in (edit["response"] or {})
        ):
            assert edit["response"]["mentions"] == edit["response"]["mention_roles"] == []


async def test_who_launched_a_run_hears_of_its_end_once(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    for said, ending in (
        ("is finished", Ending(0)),
        ("has failed, after", Ending(70, reason="It broke, <@&5> @everyone.")),
    ):
        run = await launched(lab, channel, time_limit="2m")
        lab.call(settlement.settle, run, start(lab, run), 1.0, Progress(0, 0), ending, 0)
        await delivered(lab)
        assert pinged(lab, f"Run {run} {said}") == [("Ada",), ()], "in its thread, then in the channel"
        assert pinged(lab, f"launches run {run}") == [()]
    for end_reason, pings in ((EndReason.UNFUNDED, ("Ada",)), (EndReason.PAUSED, ())):
        run = await launched(lab, channel, time_limit="2m")
        lab.call(lambda session, run=run, why=end_reason: control.suspend(session, runs.load(session, run), why, "so"))
        await delivered(lab)
        assert pinged(lab, f"Run {run} is paused at") == [pings]


async def test_nobody_is_pinged_who_is_banned_or_not_known_to_be_here_or_acts_themselves(shared_lab: Shared) -> None:
    lab, _ = shared_lab
    omar = Actor(lab.actor("Omar").discord_id, "Omar", frozenset({LabRole.ADMIN}))
    gone = Actor(2**60, "Gone")  # nobody of the server has this id
    number = lab.call(
        lifecycle.propose, gone, "gone", title="Of somebody who left", question="Who?", why="To see.", needs="Anybody."
    )
    lab.call(lifecycle.join, lab.actor("Rosa"), number, min_people=5)
    await delivered(lab)
    assert pinged(lab, "**Rosa** joins the project") == [()]
    lab.call(bans.ban, omar, lab.actor("Ada"), "To see.")
    lab.call(lifecycle.join, lab.actor("Rosa"), 1, min_people=2)
    await delivered(lab)
    lab.call(bans.unban, omar, lab.actor("Ada").discord_id, "Seen.")
    lab.call(membership.leave, lab.actor("Rosa"), 1)
    lab.call(lifecycle.join, lab.actor("Rosa"), 1, min_people=2)
    await delivered(lab)
    assert pinged(lab, "**Rosa** joins the project") == [(), (), ("Ada",)]
    await lab.guild.fault(rf"GET /guilds/\d+/members/{lab.actor('Ada').discord_id}$", status=403)
    lab.call(membership.leave, lab.actor("Rosa"), 1)
    lab.call(lifecycle.join, lab.actor("Rosa"), 1, min_people=2)
    await delivered(lab)
    assert pinged(lab, "**Rosa** joins the project")[3:] == [()], "it is posted, though Discord says nothing of Ada"


async def test_a_ping_is_sent_once_though_the_answer_is_lost_and_the_bot_killed(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    lab.call(membership.leave, lab.actor("Grace"), 1)
    await delivered(lab)
    await lab.guild.fault(rf"POST /channels/{channel.id}/messages$", cut=True)
    await lab.guild.fault(rf"POST /channels/{channel.id}/messages$", count=1000, status=503)
    lab.call(lifecycle.join, lab.actor("Grace"), 1, min_people=2)
    await lab.guild.wait_for(channel.id, lambda m: "**Grace** joins" in m.text)
    assert lab.call(being_sent, channel.id) == 1
    lab.kill_bot()
    await lab.guild.clear_faults()
    await lab.start_bot()
    await delivered(lab)
    joins = [m.text for m in await lab.guild.messages(channel.id) if "**Grace** joins" in m.text]
    assert len(joins) == 1
    assert pinged(lab, "**Grace** joins the project")[-1:] == [("Ada",)]


async def test_no_text_of_anybody_pings_in_any_kind_of_entry(shared_lab: Shared) -> None:
    lab, _ = shared_lab
    for route in ("POST /channels/{channel_id}/messages", "PATCH /channels/{channel_id}/messages/{message_id}"):
        await lab.guild.limit(route, 1000, 1.0)
    ada, grace = (lab.actor(name).discord_id for name in ("Ada", "Grace"))
    role = lab.guild.info["roles"]["reviewer"]
    typed = f"@everyone @here <@{grace}> <@!{ada}> <@&{role}> {{person:{grace}}} -# For <@{grace}>\n<@&{role}>"
    before = len(posts(lab))
    for kind in (kinds := [kind for kind in TEXTS if kind not in record.TOMBSTONES]):
        told = payload_of(kind, typed) | {"allocation": 1, "run": 1}
        if not kind.startswith(("run.", "checkpoint")):
            del told["run"]
        for key in ("by", "why", "sweep"):
            del told[key]
        stream = "project:1" if kind.partition(".")[0] in OF_PROJECTS or kind == "share.set" else record.LAB
        lab.call(record.append, stream, kind, by=None, why=typed, **told)
    await delivered(lab)
    new = posts(lab)[before:]
    assert len(new) >= len(kinds)
    assert sorted(post.pings for post in new if post.pings) == [("Ada",)] * len(OF_ADA)


async def test_who_is_forgotten_stands_in_no_post_that_pinged_them(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    ada = f"<@{lab.actor('Ada').discord_id}>"
    end = next(
        m for m in await lab.guild.messages(channel.id) if "**Rosa** joins the project" in m.text and ada in m.text
    )
    lab.call(redaction.forget, None, str(lab.actor("Ada").discord_id), "They asked.")
    await until(lambda: lab.call(mentioning, lab.actor("Ada").discord_id) == 0)
    assert not any(f"-# For {ada}" in m.text for m in await lab.guild.messages(channel.id))
    (left,) = [m.text for m in await lab.guild.messages(channel.id) if m.id == end.id]
    assert left.splitlines() == [line for line in end.text.splitlines() if ada not in line]
