"""The role of a project's followers: made, given and taken as people choose, mentioned by news, gone after the end."""

import asyncio
from datetime import timedelta

import aiohttp
import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from bot.delivery.follower_roles import AT_ONCE, MOST_ROLES
from bot.tables import DiscordRole
from broker.runs import settlement
from broker.runs.progress import Ending, Progress
from projects import lifecycle, membership, projects, updates
from projects.db.columns import utcnow
from projects.people import Actor
from projects.projects import Outcome
from sandbox.discord import permissions
from sandbox.people import Channel
from tests.bot.conftest import BOT, Lab
from tests.bot.test_mentions import delivered, pinged
from tests.bot.test_run_commands import launched, start
from tests.discord_openapi import recorded
from tests.patience import PATIENCE, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

Shared = tuple[Lab, Channel]
ROLE = "P1 followers"


@pytest.fixture(scope="module")
def bot_code() -> str:
    """A bot that tries again after a quarter of a minute, instead of a whole one, what Discord has refused."""
    return f"from bot.delivery import follower_roles; follower_roles.REFUSED_SECONDS = 15.0; {BOT}"


async def held_by(lab: Lab, *names: str, role: str = ROLE, gone: bool = False) -> None:
    """Wait until just these hold the role of a project, or until it is `gone`."""
    async with asyncio.timeout(PATIENCE):
        while (held := await lab.guild.holders(role)) is None or gone or sorted(held) != sorted(names):
            if gone and held is None:
                return
            await asyncio.sleep(0.05)


def end_week(session: Session) -> None:
    """Let the week after the end of every project be over."""
    session.execute(update(DiscordRole).values(ends_at=utcnow() - timedelta(seconds=1)))


def is_gone(session: Session, project: int) -> bool:
    """Whether the bot knows that a project's role was deleted."""
    return session.get_one(DiscordRole, project).gone


def has_role(session: Session, project: int) -> bool:
    """Whether the bot has made the role of a project."""
    return session.get(DiscordRole, project) is not None


def ends(session: Session, project: int) -> bool:
    """Whether a project's role is to be deleted."""
    return session.get_one(DiscordRole, project).ends_at is not None


def looked_for_roles(lab: Lab) -> int:
    """How often the bot has asked for the roles of the server."""
    asked = recorded(lab.root / "sandbox", "exchanges.jsonl")
    return sum(one["method"] == "GET" and one["path"].endswith("/roles") for one in asked)


async def make_roles(lab: Lab, *names: str) -> None:
    """Make roles that the bot does not know."""
    roles = f"{lab.guild.info['discord']}/api/v10/guilds/{lab.guild.info['guild_id']}/roles"
    headers = {"Authorization": f"Bot {lab.guild.info['bot_token']}"}
    async with aiohttp.ClientSession(headers=headers) as http:
        for name in names:
            async with http.post(roles, json={"name": name, "permissions": "0"}) as made:
                assert made.status == 200


async def test_news_mention_followers_and_whoever_wants_all_and_nobody_who_wants_none(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    ada, omar = lab.person("Ada"), lab.person("Omar")
    await held_by(lab)  # it came with the channel
    lab.call(updates.post_update, lab.actor("Ada"), 1, "Nobody follows yet.")
    await delivered(lab)
    await lab.guild.set_permissions("Stoa", permissions.BOT & ~permissions.MENTION_EVERYONE)
    followed = await omar.command("project follow", channel=channel.id)
    lacks = "until an admin grants the bot's role Mention @everyone, @here, and All Roles."
    assert followed.text.endswith(f"Its news mention nobody {lacks}")
    await lab.guild.set_permissions("Stoa", permissions.BOT)
    await omar.command("project leave", channel=channel.id)
    followed = await omar.command("project follow", channel=channel.id)
    assert followed.text.endswith("/project join lets you contribute.")
    await held_by(lab, "Omar")
    lab.call(updates.post_update, lab.actor("Ada"), 1, "Somebody follows.")
    await delivered(lab)
    role = (await lab.guild.call("GET", "/guild"))["roles"][ROLE]
    assert pinged(lab, "**Ada** reports:") == [(), (role,)]

    shown = await ada.command("stoa notify")
    assert shown.ephemeral
    assert shown.text.startswith("“mine” is set. You are mentioned in what concerns you: the ends of your runs")
    assert (await ada.command("stoa notify", what="all")).text.startswith("“all” is set. You are mentioned in what")
    await held_by(lab, "Ada", "Omar")
    await lab.guild.set_roles("Ada", [])
    await ada.command("stoa notify", what="all")
    await held_by(lab, "Ada", "Omar")
    heads = lab.heads()
    assert (await omar.command("stoa notify", what="none")).text.startswith(
        "“none” is set. Nothing mentions you, except requests"
    )
    assert lab.heads() == heads, "the record does not tell of it"
    await held_by(lab, "Ada")
    await lab.guild.set_permissions("Stoa", permissions.BOT & ~permissions.MANAGE_ROLES)
    assert (await ada.command("stoa notify", what="none")).text.startswith("“none” is set.")
    rosa = lab.person("Rosa")
    followed = await rosa.command("project follow", channel=channel.id)
    assert followed.text.endswith("Its news mention nobody until an admin grants the bot's role Manage Roles.")
    await rosa.command("project leave", channel=channel.id)
    lab.call(updates.post_update, lab.actor("Ada"), 1, "Her role cannot be taken.")
    await delivered(lab)
    assert pinged(lab, "Her role cannot be taken.") == [()]
    assert await lab.guild.holders(ROLE) == ["Ada"]
    await lab.guild.set_permissions("Stoa", permissions.BOT)
    await held_by(lab)
    await omar.command("stoa notify", what="mine")
    await ada.command("stoa notify", what="mine")
    await held_by(lab, "Omar")
    pings: list[list[tuple[str, ...]]] = []
    for _ in range(2):
        run = await launched(lab, channel, time_limit="2m")
        await delivered(lab)
        if not pings:
            await omar.delete_channel(next(one.id for one in await lab.guild.channels() if one.name == f"Run {run}"))
        lab.call(settlement.settle, run, start(lab, run), 1.0, Progress(0, 0), Ending(0), 0)
        await delivered(lab)
        pings += [pinged(lab, f"Run {run} is finished")]
    assert pings == [[(role,)], [("Ada",), ()]], "the first run of a project is news"
    await omar.command("project leave", channel=channel.id)
    await held_by(lab)


async def test_the_end_mentions_the_role_which_is_deleted_a_week_later(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    await lab.person("Omar").command("project follow", channel=channel.id)
    await held_by(lab, "Omar")
    role = (await lab.guild.call("GET", "/guild"))["roles"][ROLE]
    lab.call(lifecycle.complete, lab.actor("Ada"), 1, outcome=Outcome.RESULT, learnt="It does, <@&5>.")
    await delivered(lab)
    assert pinged(lab, "has completed the project") == [()]
    assert pinged(lab, "This project is completed") == [(role,)]
    await make_roles(lab, ROLE)  # as Discord makes two where an answer is lost
    lab.call(end_week)
    await held_by(lab, role=ROLE, gone=True)


async def test_a_role_that_is_refused_holds_up_no_other_and_one_made_at_the_end_is_deleted_too(
    shared_lab: Shared,
) -> None:
    lab, _ = shared_lab
    grace, omar = lab.actor("Grace"), lab.person("Omar")
    for title in ("Of refused roles", "Of a role that comes late"):
        lab.call(lifecycle.propose, grace, title, title=title, question="Who?", why="To see.", needs="Anybody.")
    await delivered(lab)
    await lab.guild.fault(r"POST /guilds/\d+/roles$", cut=True, status=503)
    await lab.guild.fault(r"GET /guilds/\d+/members/90\d\d$", count=1000, status=403)
    for number in range(AT_ONCE + 1):
        lab.call(membership.follow, Actor(9000 + number, f"Follower {number}"), 2)
    await omar.command("project follow", channel="general", project=2)
    await until(lambda: lab.call(has_role, 2))
    await lab.guild.fault(r"POST /guilds/\d+/roles$", delay=600)
    looks = looked_for_roles(lab)
    await omar.command("project follow", channel="general", project=3)
    await until(lambda: looked_for_roles(lab) > looks)
    lab.call(lifecycle.stop, grace, 3, reason="It is over before its role is made.")
    await delivered(lab)
    await lab.guild.clear_faults()
    await held_by(lab, "Omar", role="P3 followers")
    assert lab.call(ends, 3)


async def test_a_role_that_was_deleted_or_has_no_room_is_not_made_and_who_follows_hears_so(shared_lab: Shared) -> None:
    lab, _ = shared_lab
    grace, omar = map(lab.person, ("Grace", "Omar"))
    for title in ("Of a role that is deleted", "Of a role that has no room"):
        await lab.propose(Title=title)
    await omar.command("project follow", channel="general", project=4)
    await held_by(lab, "Omar", role="P4 followers")
    await omar.delete_role("P4 followers")
    answer = await grace.command("project follow", channel="general", project=4)
    assert answer.text.endswith("Its news mention nobody, as its role was deleted.")
    lab.call(updates.post_update, lab.actor("Ada"), 4, "Nobody is told.")
    await until(lambda: lab.call(is_gone, 4))
    await delivered(lab)
    assert pinged(lab, "Nobody is told.") == [()]
    assert await lab.guild.holders("P4 followers") is None

    await lab.guild.enforce_limits(False)
    there = (await lab.guild.call("GET", "/guild"))["roles"]
    await make_roles(lab, *(f"Role {number}" for number in range(MOST_ROLES - len(there))))
    for person in (omar, grace):
        answer = await person.command("project follow", channel="general", project=5)
        assert answer.text.startswith("You now follow **Of a role that has no room**; ")
        assert answer.text.endswith("for now: with 200 roles in the server, the bot makes no more.")
    assert lab.call(projects.view, 5).followers == 2
    assert "P5 followers" not in (await lab.guild.call("GET", "/guild"))["roles"]
