"""What people do with projects in Discord, from following one to ending it; each refusal is one private sentence."""

from collections.abc import Awaitable
from typing import Any

import pytest
from sqlalchemy import func, insert
from sqlalchemy.orm import Session
from sqlmodel import col, select

from projects import lifecycle, membership
from projects.projects import Membership, Project, Stage
from projects.record import redaction
from sandbox.people import Answer, Channel
from tests.bot.conftest import SCOPE, Lab

pytestmark = pytest.mark.asyncio(loop_scope="module")

Shared = tuple[Lab, Channel]
WHY = {"Reason": "Exams in June."}
TITLE = "“Do small models dream?”"


async def refused(lab: Lab, acting: Awaitable[Answer], sentence: str) -> None:
    """The answer is that one sentence, for one person, and the record does not grow."""
    heads = lab.heads()
    answer = await acting
    assert (answer.kind, answer.ephemeral, answer.text) == ("message", True, sentence)
    assert lab.heads() == heads


async def test_people_come_and_go(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    ada, grace, rosa = map(lab.person, ("Ada", "Grace", "Rosa"))
    card = await lab.guild.wait_for("proposals", lambda m: m.text.endswith("-# P1 · project"))
    assert card.button_labels == ["Join", "Follow"]

    assert "You now follow **Do small models dream?**;" in (await rosa.press(card, "Follow")).text
    await lab.guild.wait_for("proposals", lambda m: m.id == card.id and "**Followers** 1" in m.text)
    await refused(lab, rosa.press(card, "Follow"), f"You already follow {TITLE}.")
    assert "You are in" in (await rosa.command("project join", channel=channel.id)).text
    lab.confirm(1, "Rosa")
    lead = f"You lead {TITLE}: hand the lead over before you leave."
    await refused(lab, ada.command("project leave", channel=channel.id), lead)

    update = await rosa.command("project update", channel=channel.id)
    assert [field.label for field in update.fields] == ["Update"]
    told = await rosa.submit(update, {"Update": "The *first* curve bends."})
    number = lab.heads()["project:1"]
    assert told.text == f"Your update is entry {number} of the project's record; it is posted in a moment."
    post = await lab.guild.wait_for(channel.id, lambda m: f"record {number} " in m.text)
    assert "📣 **Rosa** reports:\n> The \\*first\\* curve bends." in post.text

    late = await rosa.command("project update", channel=channel.id)
    assert "You have left" in (await rosa.command("project leave", channel=channel.id)).text
    await lab.guild.wait_for(channel.id, lambda m: "👋 **Rosa** leaves the project." in m.text)
    members_only = f"Only members of {TITLE} can do this: join it, and its lead, Ada, confirms you."
    await refused(lab, rosa.submit(late, {"Update": "One more thing."}), members_only)
    await refused(lab, rosa.command("project update", channel=channel.id), members_only)
    await refused(lab, rosa.command("project leave", channel=channel.id), f"You are not in {TITLE}.")

    needs = await ada.command("project needs", channel=channel.id)
    assert needs.fields[0].value == "Somebody who can plot."
    await ada.submit(needs, {"Who is needed": "A statistician."})
    await lab.guild.wait_for("proposals", lambda m: m.id == card.id and "A statistician." in m.text)
    sentence = f"Only the lead of {TITLE}, Ada, can do this."
    await refused(lab, grace.command("project needs", channel=channel.id), sentence)


async def test_the_lead_is_offered_and_accepted(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    ada, grace = lab.person("Ada"), lab.person("Grace")
    outside = f"The lead can only be offered to a contributor of {TITLE}."
    await refused(lab, ada.command("project handover", channel=channel.id, person="Omar"), outside)
    only = f"Only the lead of {TITLE}, Ada, can do this."
    await refused(lab, grace.command("project handover", channel=channel.id, person="Grace"), only)

    form = await ada.command("project handover", channel=channel.id, person="Grace")
    assert form.title == "Offer the lead to Grace"
    assert "The lead is offered to Grace" in (await ada.submit(form, WHY)).text
    offer = await lab.guild.wait_for(channel.id, lambda m: "offers the lead to **Grace**" in m.text)
    assert offer.button_labels == ["Accept", "Decline"]
    assert offer.text.splitlines()[-1].startswith("-# P1 · record")
    theirs = f"The lead of {TITLE} is offered to Grace, who alone can answer."
    await refused(lab, lab.person("Omar").press(offer, "Accept"), theirs)
    await refused(lab, ada.press(offer, "Accept"), theirs)
    assert (await grace.press(offer, "Accept")).text.startswith(
        "You now lead **Do small models dream?**. Thank you!\n**Next** "
    )
    await lab.guild.wait_for(channel.id, lambda m: "**Grace** now leads the project" in m.text)
    await lab.guild.wait_for("proposals", lambda m: "**Lead** Grace" in m.text)
    nobody = f"Nobody is offered the lead of {TITLE} now."
    await refused(lab, grace.press(offer, "Accept"), nobody)

    back = await grace.command("project handover", channel=channel.id, person="Ada")
    await grace.submit(back, {"Reason": "It was hers."})
    second = await lab.guild.wait_for(channel.id, lambda m: "offers the lead to **Ada**" in m.text)
    assert "the lead does not change" in (await ada.press(second, "Decline")).text
    assert (await ada.command("project leave", channel=channel.id)).text.startswith("You have left the project.")
    await refused(lab, ada.press(second, "Accept"), nobody)
    number = int(second.text.rpartition("record ")[2].split()[0])
    lab.call(redaction.redact, None, "project:1", number, "By mistake.")
    blanked = await lab.guild.wait_for(channel.id, lambda m: m.id == second.id and "was blanked" in m.text)
    assert blanked.buttons == []
    lab.call(lifecycle.join, lab.actor("Ada"), 1, min_people=2)
    lab.call(membership.confirm, lab.actor("Grace"), 1, who=str(lab.actor("Ada").discord_id))
    lab.call(membership.offer_lead, lab.actor("Grace"), 1, to=str(lab.actor("Ada").discord_id), reason="Again.")
    lab.call(membership.accept_lead, lab.actor("Ada"), 1)


async def test_a_project_rests_is_moderated_and_ends(shared_lab: Shared) -> None:
    lab, _ = shared_lab
    ada, grace, omar, rosa = map(lab.person, ("Ada", "Grace", "Omar", "Rosa"))
    number = int((await lab.propose(Title="Do large models sleep?")).text.split()[1])
    here: dict[str, Any] = {"channel": "general", "project": number}
    lab.call(lifecycle.join, lab.actor("Grace"), number, min_people=2)
    title = "“Do large models sleep?”"
    early = f"{title} is recruiting and cannot become paused."
    await refused(lab, ada.command("project pause", **here), early)
    early = f"{title} is recruiting; a channel comes with a project's scope."
    await refused(lab, omar.command("project open", **here), early)
    moderators = "Only moderators can do this; the admins assign their role."
    for act in ("open", "hide", "unhide"):
        await refused(lab, ada.command(f"project {act}", **here), moderators)
    scope = await ada.command("project scope", checkpoints="held", licence="MIT", **here)
    await ada.submit(scope, SCOPE | {"Licence of the models": "CC0-1.0"})
    assert "**Models** CC0-1.0" in (await ada.command("project show", **here)).text
    channel = await lab.guild.wait_for_channel(lambda c: c.name.startswith(f"p{number}-"))
    await lab.guild.wait_for(channel.id, lambda m: True)  # the bot knows it as the project's by then

    unsaid = await ada.command("project pause", channel=channel.id)
    await refused(lab, ada.submit(unsaid, {}, force=True), "The reason is empty: please write a sentence or two.")
    pause = await ada.command("project pause", channel=channel.id)
    assert "The project is paused" in (await ada.submit(pause, WHY)).text
    await lab.guild.wait_for(channel.id, lambda m: "**Ada** pauses the project" in m.text and "Exams" in m.text)
    again = f"{title} is paused and cannot become paused."
    await refused(lab, ada.command("project pause", **here), again)
    only = f"Only the lead of {title}, Ada, can do this."
    await refused(lab, grace.command("project resume", **here), only)
    assert (await ada.command("project resume", channel=channel.id)).text.startswith(
        "The project is resumed.\n**Next** "
    )

    members = f"Only a reviewer who is not of {title} can do this; the admins assign the reviewers' role."
    await refused(lab, grace.command("project release", **here), members)
    asked = await rosa.command("project release", **here)
    assert asked.text.startswith(f"All checkpoints that **{title.strip('“”')}** holds back become public under CC0-1.0")
    release, twice = [await rosa.agree(asked) for _ in range(2)]
    assert "the checkpoints become public" in (await rosa.submit(release, {"Reason": "Nothing is wrong."})).text
    await refused(lab, rosa.submit(twice, {"Reason": "Twice."}), f"{title} holds nothing back.")
    await lab.guild.wait_for(channel.id, lambda m: "**Rosa** releases the checkpoints that were held back" in m.text)

    assert await grace.complete("project join", "project", "large") == [(f"{number} · {title.strip('“”')}", number)]
    hide = await omar.command("project hide", **here)
    assert "no longer in any list" in (await omar.submit(hide, {"Reason": "Asked for."})).text
    assert "large models" not in (await grace.command("project list")).text
    assert await grace.complete("project join", "project", "large") == []
    await lab.guild.wait_for(channel.id, lambda m: "**Omar** hides the project from the lists." in m.text)
    assert await omar.complete("project unhide", "project", "large") == [(f"{number} · {title.strip('“”')}", number)]
    assert await grace.complete("project unhide", "project", "large") == []
    unhide = await omar.command("project unhide", **here)
    await omar.submit(unhide, {"Reason": "Asked for, too."})
    await lab.guild.wait_for(channel.id, lambda m: "**Omar** shows the project in the lists again." in m.text)
    assert "large models" in (await grace.command("project list")).text

    late = await ada.command("project update", channel=channel.id)
    stop = await omar.agree(await omar.command("project stop", **here))
    assert stop.title == "Stop the project for good"
    assert "its record stays" in (await omar.submit(stop, {"Reason": "Its lead asked for it."})).text
    card = await lab.guild.wait_for("proposals", lambda m: f"P{number} · project" in m.text and "Stopped" in m.text)
    assert card.buttons == []
    assert await grace.complete("project join", "project", "large") == []
    assert len(await grace.complete("project show", "project", "large")) == 1
    assert "large models" in (await grace.command("project list", stage="stopped")).text
    assert (await grace.command("project list", stage="paused")).text == "No project is paused now."
    await refused(lab, ada.submit(late, {"Update": "!"}), f"{title} is stopped; it takes no more updates.")
    over = f"{title} is stopped; this can no longer be done."
    for act in ("update", "needs", "complete", "stop"):
        await refused(lab, ada.command(f"project {act}", **here), over)
    ended = f"{title} is stopped; nobody can join it now."
    await refused(lab, rosa.command("project join", **here), ended)


async def test_a_long_list_says_how_many_more_there_are(shared_lab: Shared) -> None:
    lab, _ = shared_lab
    words = dict.fromkeys(("question", "why", "needs", "goal", "plan", "compute", "release", "learnt"), "")
    rows = [
        {"request_id": f"list-{n}", "title": f"{n} {'🧪' * 70}", "stage": Stage.COMPLETED, "lead_id": 1} | words
        for n in range(40)
    ]
    lab.call(Session.execute, insert(Project), rows)
    leads = select(Project.id, Project.lead_id).where(Project.stage == Stage.COMPLETED)
    lab.call(Session.execute, insert(Membership).from_select(["project_id", "person_id"], leads))
    shown = (await lab.person("Grace").command("project list", stage="completed")).text.splitlines()
    assert shown[0].startswith(f"**{lab.call(Session.scalar, select(func.max(col(Project.id))))}** 39 🧪")
    assert 5 < len(shown) < 25, "what fits one message"
    assert shown[-1] == f"-# and {40 - len(shown) + 1} more"
    assert all(line.endswith("Ada") for line in shown[:-1]), "no line is cut"
