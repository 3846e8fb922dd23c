"""`/stoa setup`: a bot that knows no channel starts all the same, adopts, makes, and makes nothing twice."""

from dataclasses import replace
from typing import Any

import aiohttp
from sqlalchemy.orm import Session

from bot.commands.stoa.setup import NEW, NEXT
from bot.server import Server
from broker.allocations import pools
from projects import bans, lifecycle, policies, updates
from projects.people import Actor, LabRole
from sandbox.discord import permissions
from tests.bot.conftest import Lab
from tests.bot.test_delivery import activate, propose, told
from tests.patience import PATIENCE, until

NOTHING = {
    f"{name}_ID": "0"
    for name in (
        "PROPOSALS_CHANNEL",
        "REVIEW_CHANNEL",
        "ANNOUNCEMENTS_CHANNEL",
        "RECORD_CHANNEL",
        "REVIEWER_ROLE",
        "MODERATOR_ROLE",
    )
}
WITHOUT = permissions.BOT & ~permissions.MANAGE_CHANNELS & ~permissions.MANAGE_ROLES


def spend_the_budget(session: Session, admin: Actor) -> None:
    """Leave an admin nothing of today's budget."""
    policies.change(session, None, "most_admin_acts_a_day", "1", "They do too much.")
    pools.add_pool(session, name="spare", gpu_type="CPU", gpus=1, actor=admin)


async def overwrite(lab: Lab, method: str, **body: object) -> None:
    """Change what everyone may do in the category of the projects, as an admin of the server would."""
    info = lab.guild.info
    path = f"/api/v10/channels/{info['categories']['Projects']}/permissions/{info['guild_id']}"
    headers = {"Authorization": f"Bot {info['bot_token']}"}
    async with aiohttp.request(method, info["discord"] + path, json=body or None, headers=headers) as answer:
        assert answer.status == 204


async def test_a_server_is_set_up_once_and_again(lab: Lab) -> None:
    await lab.start_bot(**NOTHING)
    ada, grace, omar = lab.person("Ada"), lab.person("Grace"), lab.person("Omar")
    roles = lab.guild.info["roles"]
    await until(lambda: "An admin can fix that with /stoa setup." in lab.log)
    refused = await grace.command("project list")
    assert refused.ephemeral
    assert "no channel or role is chosen for proposals, review, announcements" in refused.text
    assert "An admin can fix that with /stoa setup." in refused.text
    assert "Only the admins can set up" in (await grace.command("stoa setup")).text

    before = [channel.id for channel in await lab.guild.channels()]
    await lab.guild.set_permissions("Stoa", WITHOUT)
    lacking = await omar.command("stoa setup")
    assert "grant the bot's role Manage Channels, Manage Roles, in" in lacking.text
    assert "Administrator" not in lacking.text
    await lab.guild.set_permissions("Stoa", permissions.BOT)
    everyone = await omar.command("stoa setup", admins="@everyone")
    assert "@\u200beveryone cannot be chosen" in everyone.text
    assert [channel.id for channel in await lab.guild.channels()] == before

    twice = await omar.command("stoa setup", record="compute-review", review="compute-review")
    assert "compute-review cannot be the channel for both review and the lab's record" in twice.text
    await overwrite(lab, "PUT", type=0, deny=permissions.SEND_MESSAGES)
    shut = await omar.command("stoa setup", category="Lab", projects="Projects")
    assert "Send Messages in the category Projects, under its Permissions" in shut.text
    await overwrite(lab, "DELETE")
    lab.call(spend_the_budget, replace(lab.actor("Omar"), roles=frozenset({LabRole.ADMIN})))
    spent = await omar.command("stoa setup", category="Lab", projects="Projects")
    assert "One person may make 1 changes of pools, grants, " in spent.text
    assert [channel.id for channel in await lab.guild.channels()] == before
    lab.call(policies.change, None, "most_admin_acts_a_day", "100", "They have to set the server up.")

    given: dict[str, Any] = {"proposals": "proposals", "announcements": "announcements", "reviewers": "reviewer"}
    await lab.guild.fault(r"POST /guilds/\d+/roles", status=403)
    broken_off = await omar.command("stoa setup", category="Lab", projects="Projects", **given)
    assert broken_off.text.startswith("Discord does not let the bot make “Stoa moderator”")
    assert "no channel or role is chosen for" in (await grace.command("project list")).text
    await lab.guild.fault(r"POST /guilds/\d+/roles", status=502, cut=True)
    unsure = await omar.command("stoa setup", category="Lab", projects="Projects", **given)
    assert unsure.text == "Discord did not say whether it has made “Stoa moderator”: use /stoa setup again."
    done = await omar.command("stoa setup", category="Lab", projects="Projects", **given)
    assert done.text.startswith("Stoa is set up.")
    assert f"- reviewers: <@&{roles['reviewer']}> (adopted)" in done.text
    after = await lab.guild.channels()
    made = [channel for channel in after if channel.id not in before]
    assert [channel.name for channel in made] == [NEW["review"].name, NEW["record"].name]
    assert {channel.parent_id for channel in made} == {lab.guild.info["categories"]["Lab"]}
    assert f"- the lab's record: <#{made[1].id}> (adopted)" in done.text, "made by the one that broke off"
    assert done.text.count("(new)") == 1, "the admins' role; the moderators' was made"
    told = await lab.guild.wait_for(made[1].id, lambda m: "sets this server up" in m.text)
    assert "**Omar**" in told.text

    heads = lab.heads()
    again = await omar.command("stoa setup")
    assert again.text.startswith("Stoa is already set up: nothing was changed.")
    assert "(" not in again.text
    assert ([c.id for c in await lab.guild.channels()], lab.heads()) == ([c.id for c in after], heads)

    # From now on it works, without a restart and after one.
    assert "Project 1 is proposed" in (await lab.propose()).text
    await lab.guild.wait_for("proposals", lambda m: "P1 · project" in m.text)
    await lab.guild.set_roles("Grace", [NEW["admin_role"].name])
    assert "Ada" in (await lab.guild.wait_for("proposals", lambda m: m.thread_id is not None)).text
    lab.kill_bot()
    await omar.delete_channel("announcements")
    await lab.start_bot(**NOTHING)
    await until(lambda: "the channel for announcements was deleted" in lab.log)
    gone = await ada.command("project list")
    assert "the channel for announcements was deleted" in gone.text
    mended = await grace.command("stoa setup")
    assert "- announcements: <#" in mended.text
    assert mended.text.count("(new)") == 1
    assert "dream" in (await ada.command("project list")).text


async def test_with_roles_chosen_it_needs_no_manage_roles(lab: Lab) -> None:
    """The channels where only the bot may post are made with Manage Channels alone."""
    await lab.start_bot(**NOTHING)
    roles: dict[str, Any] = {"reviewers": "reviewer", "moderators": "admin", "admins": "admin"}
    await lab.guild.set_permissions("Stoa", permissions.BOT & ~permissions.MANAGE_ROLES)
    lacking = await lab.person("Omar").command("stoa setup", reviewers="reviewer")
    assert "grant the bot's role Manage Roles, in" in lacking.text
    before = {channel.id for channel in await lab.guild.channels()}
    done = await lab.person("Omar").command("stoa setup", **roles)
    assert done.text.startswith("Stoa is set up.")
    ungranted = "To let Stoa mention reviewers and followers, grant the bot's role Manage Roles, under Roles."
    assert done.text.endswith(f"\n{ungranted}\n{NEXT}")
    made = {channel.name: channel for channel in await lab.guild.channels() if channel.id not in before}
    quiet = [name for name in made if made[name].raw["permission_overwrites"]]
    assert sorted(quiet) == [NEW["announcements"].name, NEW["record"].name]
    for name in quiet:
        denied = {int(overwrite["deny"]) for overwrite in made[name].raw["permission_overwrites"]}
        assert denied == {0, permissions.SEND_MESSAGES}


async def test_a_deleted_channel_is_told_of_and_open_requests_follow_to_the_next(lab: Lab) -> None:
    await lab.start_bot()
    ada, omar, rosa = lab.person("Ada"), lab.person("Omar"), lab.person("Rosa")
    channel = await lab.activate()
    await lab.approved(channel)
    await lab.request(channel)
    await lab.review_card(2)
    await omar.delete_channel("announcements")
    notice = await lab.guild.wait_for("compute-review", lambda m: "announcements was deleted" in m.text)
    assert "/stoa setup chooses another" in notice.text
    gone = await ada.command("project list")
    assert "the channel for announcements was deleted. An admin can fix that with /stoa setup." in gone.text
    await omar.delete_channel("compute-review")
    await lab.guild.wait_for("public-record", lambda m: "the reviews was deleted" in m.text)
    made = await omar.command("stoa setup", category="Lab", reviewers="reviewer")
    assert made.text.count("(new)") >= 2
    card = await lab.review_card(2)
    assert card.button_labels == ["Approve", "Approve part", "Ask", "Decline"]
    decided = [m for m in await lab.guild.messages("compute-review") if m.text.endswith("allocation 1")]
    assert decided == []

    # Another channel takes its place: what waits there leads to it.
    await omar.command("stoa setup", review="general")
    there = await lab.guild.wait_for("general", lambda m: m.text.endswith("allocation 2"))
    await lab.guild.wait_for("compute-review", lambda m: m.id == card.id and "card is now in <#" in m.text)
    await rosa.submit(await rosa.press(there, "Approve"), {"Core-hours": "1", "Reason": "Go."})
    await lab.guild.wait_for("general", lambda m: m.id == there.id and "Approved by Rosa" in m.text)
    assert "dream" in (await ada.command("project list")).text
    await omar.delete_role("reviewer")
    told = await lab.guild.wait_for("general", lambda m: "The role of the reviewers was deleted" in m.text)
    assert "/stoa setup chooses another" in told.text
    gone = await ada.command("project list")
    assert "the reviewers' role was deleted. An admin can fix that with /stoa setup." in gone.text
    made = await omar.command("stoa setup")
    assert [line.partition(":")[0] for line in made.text.splitlines() if "(new)" in line] == ["- reviewers"]
    assert "dream" in (await ada.command("project list")).text
    await omar.delete_channel("public-record")
    await lab.guild.wait_for("general", lambda m: "the public record was deleted" in m.text)
    assert "Traceback" not in lab.log


async def test_what_is_told_while_a_channel_is_gone_waits_for_the_next(lab: Lab) -> None:
    """Neither the lab's entries nor a project without a channel are lost; the notice of it holds nobody up."""
    await lab.start_bot()
    omar = lab.person("Omar")
    one, two = propose(lab, "One stays a proposal"), propose(lab, "Two is completed")
    activate(lab, two)
    thread = (await lab.guild.wait_for("proposals", lambda m: "P1 · project" in m.text and m.thread_id)).thread_id or ""
    await lab.guild.wait_for("p2-two-is-completed", lambda m: "record 4" in m.text)
    review = lab.guild.info["channels"]["compute-review"]
    await lab.guild.fault(rf"POST /channels/{review}/messages$", delay=PATIENCE)
    await omar.delete_channel("announcements")
    await until(lambda: "the channel for announcements was deleted" in lab.log)
    lab.call(lifecycle.join, lab.actor("Rosa"), one, min_people=9)
    await lab.guild.wait_for(thread, lambda m: "record 2" in m.text)
    assert await lab.guild.messages("compute-review") == []
    await lab.guild.clear_faults()
    notice = await lab.guild.wait_for("compute-review", lambda m: True)
    assert "announcements was deleted: its posts wait" in notice.text

    await omar.delete_channel("public-record")
    await omar.delete_channel("proposals")
    lab.give(two)
    lab.call(lifecycle.complete, lab.actor("Ada"), two, outcome="result", learnt="It goes on.")
    lab.call(bans.ban, None, lab.actor("Grace"), "Spam.")
    lab.call(lifecycle.join, lab.actor("Omar"), one, min_people=9)
    for stream in ("lab", "project:1", "project:2"):
        await until(lab.logged(f"stream={stream}"))
    before = lab.sent()
    await omar.command("stoa setup")
    await lab.guild.wait_for("announcements", lambda m: "It goes on." in m.text)
    first = await lab.guild.wait_for("public-record", lambda m: True)
    assert "record 3" in first.text
    card = await lab.guild.wait_for("proposals", lambda m: "P1 · project" in m.text and m.thread_id)
    await lab.guild.wait_for(card.thread_id or "", lambda m: "**Omar**" in m.text and "record 3" in m.text)
    assert before == {"lab": 2, "project:1": 2, "project:2": 4}
    assert "Two is completed" not in "".join(m.text for m in await lab.guild.messages("proposals"))

    # Where another channel takes the place of one that stands, its cards lead there.
    await omar.command("stoa setup", proposals="general")
    there = await lab.guild.wait_for("general", lambda m: "P1 · project" in m.text)
    await lab.guild.wait_for("proposals", lambda m: m.id == card.id and "card is now in <#" in m.text)
    assert (await (await lab.guild.join("Zoe")).press(there, "Follow")).ephemeral
    await lab.guild.wait_for("general", lambda m: m.id == there.id and "**Followers** 1" in m.text)
    lab.call(updates.post_update, lab.actor("Ada"), one, "Exams.")
    moved = await lab.guild.wait_for("general", lambda m: m.thread_id is not None)
    await lab.guild.wait_for(moved.thread_id or "", lambda m: "Exams." in m.text)
    assert await told(lab, one) == [3, 4, 5]
    assert "Traceback" not in lab.log
    assert "the lease went to another process" not in lab.log


async def test_a_bot_that_is_invited_again_registers_its_commands_again(lab: Lab) -> None:
    await lab.start_bot()
    await lab.guild.invite_bot_again()
    await lab.guild.wait_for_bot("run")
    await until(lambda: lab.log.count("commands registered") >= 2)
    assert "is proposed" in (await lab.propose()).text
    await lab.guild.wait_for("proposals", lambda m: "P1 · project" in m.text)
    lab.kill_bot()
    await lab.guild.invite_bot_again()
    await lab.start_bot()
    await until(lambda: lab.log.count("commands registered") >= 3)
    assert "dream" in (await lab.person("Grace").command("project list")).text
    assert "Traceback" not in lab.log


def test_lab_roles_are_those_of_the_servers_roles_and_an_id_of_0_is_nobodys() -> None:
    server = Server(1, 2, 3, 4, 5, reviewer_role=8, moderator_role=9, admin_role=0)
    assert server.lab_roles([7, 8, 9]) == {LabRole.REVIEWER, LabRole.MODERATOR}
    assert server.lab_roles([0]) == set()
    both = replace(server, admin_role=9)
    assert both.lab_roles([9]) == {LabRole.MODERATOR, LabRole.ADMIN}
