"""Newcomers on Discord: confirmed with one click, removed with a reason; an endorser without the role; a new lead."""

from typing import Any

import pytest

from bot.commands.allocation import forms
from broker.allocations.allocations import AllocationState
from projects import bans, policies
from sandbox.people import Channel
from tests.bot.conftest import Lab

pytestmark = pytest.mark.asyncio(loop_scope="module")

Shared = tuple[Lab, Channel]
TITLE = "“Do small models dream?”"
YET = f"Ada, the lead of {TITLE}, has yet to confirm you: until then you can follow what happens, and no more."
WHY = {"Reason": "They only make noise."}


async def test_a_newcomer_is_confirmed_with_one_click(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    ada, grace, omar = map(lab.person, ("Ada", "Grace", "Omar"))
    card = await lab.guild.wait_for("proposals", lambda m: m.text.endswith("-# P1 · project"))
    welcome = (await omar.press(card, "Join")).text
    assert welcome == (
        "Welcome! You are in **Do small models dream?** as a newcomer until its lead, Ada, confirms you.\n"
        "**Next** Say hello in its channel or thread; `/stoa help` there shows what you can do."
    )
    await lab.guild.wait_for("proposals", lambda m: m.id == card.id and "Grace, Omar (newcomer)" in m.text)
    post = await lab.guild.wait_for(channel.id, lambda m: "**Omar** joins the project. Welcome!" in m.text)
    assert post.button_labels == ["Confirm"]
    launch: dict[str, Any] = {"channel": channel.id, "recipe": "demo", "time_limit": "5m"}
    assert (await omar.command("run launch", **launch)).text == YET
    assert "as newcomer" in (await omar.command("stoa help", channel=channel.id)).text
    heads = lab.heads()
    for person in (omar, grace):
        assert (await person.press(post, "Confirm")).text == f"Only the lead of {TITLE}, Ada, can do this."
    assert lab.heads() == heads
    assert (
        await ada.press(post, "Confirm")
    ).text == "Omar is now a contributor.\n**Next** A contributor launches the first run with `/run launch`."
    await lab.guild.wait_for(channel.id, lambda m: "**Ada** confirms **Omar** as a contributor." in m.text)
    await lab.guild.wait_for("proposals", lambda m: m.id == card.id and "Grace, Omar" in m.text and "(n" not in m.text)
    assert (await ada.press(post, "Confirm")).text == f"Omar already works on {TITLE}."
    assert "core-hours at most" in (await omar.command("run launch", **launch)).text


async def test_a_person_is_removed_with_a_reason_and_returns_as_a_newcomer(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    ada, omar = lab.person("Ada"), lab.person("Omar")
    here: dict[str, Any] = {"channel": channel.id}
    only = f"Only the lead of {TITLE}, Ada, can do this."
    assert (await omar.command("project remove", person="Grace", **here)).text == only
    assert (await ada.command("project remove", person="Ada", **here)).text == (
        f"Ada leads {TITLE}; the lead is handed over, not removed."
    )
    form = await ada.command("project remove", person="Omar", **here)
    assert form.title == "Remove Omar"
    assert "They are removed" in (await ada.submit(form, WHY)).text
    removed = await lab.guild.wait_for(channel.id, lambda m: "**Ada** removes **Omar** from the project." in m.text)
    assert "> They only make noise." in removed.text
    assert "Only members of" in (await omar.command("run launch", recipe="demo", time_limit="5m", **here)).text
    outside = f"Omar is not in {TITLE}; they would join it first."
    assert (await ada.command("project confirm", person="Omar", **here)).text == outside
    assert "as a newcomer" in (await omar.command("project join", **here)).text
    assert (await omar.command("run launch", recipe="demo", time_limit="5m", **here)).text == YET
    confirmed = await ada.command("project confirm", person="Omar", **here)
    assert (
        confirmed.text
        == "Omar is now a contributor.\n**Next** A contributor launches the first run with `/run launch`."
    )


async def test_an_endorsement_of_one_who_has_lost_the_role_is_none(shared_lab: Shared) -> None:
    """Discord is asked at the second consent: nobody tells the bot that a member has lost a role."""
    lab, channel = shared_lab
    await lab.guild.join("Emmy")
    await lab.guild.join("Kurt")
    rosa, emmy, kurt = map(lab.person, ("Rosa", "Emmy", "Kurt"))
    for name in ("Emmy", "Kurt"):
        await lab.guild.set_roles(name, ["reviewer"])
    lab.call(policies.change, None, "one_reviewer_hours", "2", "Little is left.")
    number = int((await lab.request(channel, "4")).text.split()[1])
    card = await lab.review_card(number)
    consent = {"Core-hours": "4", "Reason": "Yes."}
    assert (await rosa.submit(await rosa.press(card, "Approve"), consent)).text == forms.ENDORSED
    await lab.guild.set_roles("Rosa", [])
    assert (await emmy.submit(await emmy.press(card, "Approve"), consent)).text == forms.ENDORSED
    assert (lab.allocation(number).state, lab.allocation(number).endorsed_by) == (AllocationState.REQUESTED, "Emmy")
    assert "Approved" in (await kurt.submit(await kurt.press(card, "Approve"), consent)).text
    assert lab.allocation(number).state == AllocationState.APPROVED


async def test_an_admin_appoints_another_lead(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    omar, grace = lab.person("Omar"), lab.person("Grace")
    await omar.command("stoa setup", admins="admin")
    lab.call(bans.ban, None, lab.actor("Ada"), "Spam.")
    await lab.guild.wait_for(
        "public-record", lambda m: "An admin can appoint another lead of P1 with `/project appoint`." in m.text
    )
    here: dict[str, Any] = {"channel": channel.id, "person": "Grace"}
    assert "Only the admins can appoint a lead" in (await grace.command("project appoint", **here)).text
    own = await omar.command("project appoint", channel=channel.id, person="Omar")
    assert own.text == "Nobody appoints themselves; another admin can."
    form = await omar.command("project appoint", **here)
    assert "has its new lead" in (await omar.submit(form, {"Reason": "Ada is gone."})).text
    told = "**Omar** appoints **Grace** to lead the project in place of **Ada**.\n> Ada is gone."
    await lab.guild.wait_for(channel.id, lambda m: told in m.text)
    await lab.guild.wait_for("proposals", lambda m: "**Lead** Grace" in m.text)
