"""What people do with requests for compute, from a reviewer's question to a revocation."""

import re
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bot import text
from broker.allocations import requests
from projects import policies
from sandbox.people import Answer, Channel, Message
from tests.bot.conftest import Lab

pytestmark = pytest.mark.asyncio(loop_scope="module")

Shared = tuple[Lab, Channel]
LEAD = "Only the lead of “Do small models dream?”, Ada, can do this."
WHY = {"Reason": "So it was agreed."}


async def refused(lab: Lab, acting: Awaitable[Answer], sentence: str) -> None:
    """The answer is that one sentence, for one person, and the record does not grow."""
    heads = lab.heads()
    answer = await acting
    assert (answer.kind, answer.ephemeral, answer.text) == ("message", True, sentence)
    assert lab.heads() == heads


async def card(lab: Lab, ends: str, *parts: str) -> Message:
    """The reviewers' card whose last line ends so, once it says all the parts."""
    return await lab.guild.wait_for(
        "compute-review", lambda m: m.text.endswith(ends) and all(part in m.text for part in parts)
    )


@asynccontextmanager
async def stale_cards(lab: Lab) -> AsyncIterator[None]:
    """Cards stay as they are meanwhile."""
    await lab.guild.fault(r"PATCH /channels/\d+/messages/", count=1000, status=503)
    yield
    await lab.guild.clear_faults()


async def test_a_request_is_corrected_as_it_was_understood(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    ada, reason = lab.person("Ada"), "Five sizes, one seed each."
    asked = await lab.request(channel, "3,5", Until="in 3 weeks")
    number = int(asked.text.split()[1])
    assert re.search(rf"Allocation {number} is requested: 3\.5 core-hours of `local` until <t:\d+:D>\.\n", asked.text)
    assert asked.message is not None
    form, twice = await ada.press(asked.message, "Edit"), await ada.press(asked.message, "Edit")
    assert [field.value for field in form.fields] == ["3,5", "in 3 weeks", reason]
    written = {"Core-hours": "2,5", "Until": "in 3 weeks", "Justification": reason}
    again = await ada.submit(form, written)
    assert "is requested: 2.5 core-hours of `local` until <t:" in again.text
    assert f"It takes the place of allocation {number}, which is withdrawn.\n" in again.text
    heads = lab.heads()
    late = await ada.submit(twice, written)
    over = f"Allocation {number} is withdrawn already and can no longer be corrected; /allocation request asks again."
    assert (late.text.startswith(over), late.ephemeral, lab.heads()) == (True, True, heads)
    lab.call(requests.withdraw, lab.actor("Ada"), int(again.text.split()[1]), reason="Only to see.")


async def test_a_request_is_asked_about_answered_and_withdrawn(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    ada, rosa, omar = map(lab.person, ("Ada", "Rosa", "Omar"))
    shown = await card(lab, "allocation 2", "**The project** has used 0 core-hours of 1 allocation.")
    assert "**The pool** can give 99 core-hours." in shown.text
    assert "**Decision** One reviewer decides." in shown.text
    assert shown.button_labels == ["Approve", "Approve part", "Ask", "Decline"]

    question = await rosa.press(shown, "Ask")
    assert "with a button for the answer" in (await rosa.submit(question, {"Question": "Why *five* sizes?"})).text
    post = await lab.guild.wait_for(channel.id, lambda m: "**Rosa** asks about the request (allocation 2):" in m.text)
    assert "> Why \\*five\\* sizes?" in post.text
    assert post.button_labels == ["Answer"]
    await refused(lab, omar.press(post, "Answer"), LEAD)
    unsaid = await ada.press(post, "Answer")
    await refused(lab, ada.submit(unsaid, {}, force=True), "The answer is empty: please write a sentence or two.")
    said = await ada.press(post, "Answer")
    assert said.fields[0].placeholder == "Why *five* sizes?"
    late_answer = await ada.press(post, "Answer")
    await ada.submit(said, {"Answer": "A line needs points."})
    await lab.guild.wait_for(channel.id, lambda m: "**Ada** answers about the request (allocation 2):" in m.text)
    bare = await lab.guild.wait_for(channel.id, lambda m: m.id == post.id and not m.buttons)
    assert bare.text == post.text
    await card(lab, "allocation 2", "**Rosa** asks\n> Why", "**Ada** answers\n> A line needs points.")

    await refused(lab, omar.command("allocation withdraw", channel=channel.id, allocation=2), LEAD)
    suggested = await ada.complete("allocation withdraw", "allocation", "", channel=channel.id)
    assert suggested == [("2 · 2 core-hours of local, requested", 2)]
    assert await ada.complete("allocation withdraw", "allocation", "") == suggested
    assert await omar.complete("allocation withdraw", "allocation", "") == []
    late = await rosa.press(shown, "Approve")
    withdraw = await ada.command("allocation withdraw", channel=channel.id, allocation=2)
    async with stale_cards(lab):
        assert (await ada.submit(withdraw, WHY)).text == "The request is withdrawn; /allocation request asks again."
        sentence = "This request was already withdrawn, by Ada."
        await refused(lab, rosa.submit(late, {"Core-hours": "2", "Reason": "Yes."}), sentence)
        for label in shown.button_labels:
            await refused(lab, rosa.press(shown, label), sentence)
    over = "Allocation 2 is withdrawn; reviewers can no longer ask about it."
    await refused(lab, ada.submit(late_answer, {"Answer": "More points."}), over)
    assert (await card(lab, "allocation 2", "Withdrawn by Ada")).buttons == []
    assert await ada.complete("allocation withdraw", "allocation", "", channel=channel.id) == []


async def test_a_large_request_takes_two_reviewers_and_comes_in_halves(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    ada, rosa, omar = map(lab.person, ("Ada", "Rosa", "Omar"))
    await lab.guild.set_roles("Omar", ["reviewer", "admin"])
    for name in ("one_reviewer_hours", "halves_hours"):
        lab.call(policies.change, None, name, "2", "Little is left.")
    number = int((await lab.request(channel, "4")).text.split()[1])
    shown = await card(lab, f"allocation {number}", "Two reviewers decide, and it comes in two halves.")
    part = await rosa.press(shown, "Approve part")
    assert (part.title, part.fields[0].value) == ("Approve part of it", None)
    answer = await rosa.submit(part, {"Core-hours": "3", "Reason": "A part."})
    assert "needs a second reviewer" in answer.text
    await card(lab, f"allocation {number}", "Endorsed by Rosa; a second reviewer decides.")
    again = "You have already endorsed this request; another reviewer must agree."
    await refused(lab, rosa.press(shown, "Approve"), again)
    second = await omar.press(shown, "Approve")
    assert second.fields[0].value == "4"
    await omar.submit(second, WHY)
    await lab.guild.wait_for(channel.id, lambda m: "1.5 core-hours more on a report of progress by <t:" in m.text)

    granted = await card(lab, f"allocation {number}", "**Second half** 1.5 core-hours, to be released on a report")
    assert granted.button_labels == ["Release second half", "Revoke"]
    unreported = "The second half is released on a public report of progress; the lead writes it first."
    await refused(lab, rosa.press(granted, "Release second half"), unreported)
    report = await ada.command("allocation report", channel=channel.id, allocation=number)
    assert (await ada.submit(report, {"Report": "Two sizes are done."})).text == (
        "Your report is posted in the project's channel, and reviewers see it on the allocation's card.\n"
        "**Next** A reviewer releases the second half; `/allocation change` asks for more."
    )
    await lab.guild.wait_for(channel.id, lambda m: f"**Ada** reports on allocation {number}:" in m.text)
    await card(lab, f"allocation {number}", "**Report**\n> Two sizes are done.")
    await refused(lab, ada.press(granted, "Release second half"), (
        "Only compute reviewers can decide on requests; the admins assign the reviewers' role."
    ))  # fmt: skip
    await rosa.submit(await rosa.press(granted, "Release second half"), WHY)
    await lab.guild.wait_for(channel.id, lambda m: f"second half of allocation {number}: 1.5 core-hours" in m.text)
    assert lab.allocation(number).account.granted == 3 * 3600
    for name, was in (("one_reviewer_hours", "100"), ("halves_hours", "1000")):
        lab.call(policies.change, None, name, was, "There is more.")


async def test_a_change_is_decided_and_an_allocation_revoked(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    ada, rosa, grace = map(lab.person, ("Ada", "Rosa", "Grace"))
    later = (datetime.now(UTC) + timedelta(days=40)).date().isoformat()
    await refused(lab, grace.command("allocation change", channel=channel.id, allocation=1), LEAD)
    no_live = "Allocation 2 is withdrawn; this needs an approved one."
    await refused(lab, ada.command("allocation change", channel=channel.id, allocation=2), no_live)
    suggested = await ada.complete("allocation change", "allocation", "1 ·", channel=channel.id)
    assert suggested == [("1 · 1 core-hour of local, approved", 1)]

    async def ask(**fields: str) -> Answer:
        form = await ada.command("allocation change", channel=channel.id, allocation=1)
        return await ada.submit(form, {"Justification": "One size more."} | fields)

    await refused(lab, ask(), "Say what should change: more hours, a later end, or both.")
    await ask(**{"Core-hours more": "2", "Until": later})
    await lab.guild.wait_for(channel.id, lambda m: "asks for 2 core-hours more and an end on" in m.text)
    first = await card(lab, "change 1 of allocation 1", "2 core-hours more", "1 of 1 core-hour left", "One reviewer")
    assert first.button_labels == ["Approve", "Decline"]
    ledger = await ada.command("allocation show", channel=channel.id, allocation=1)
    assert "Asked for: 2 core-hours more and an end on <t:" in ledger.text
    open_already = "A change of allocation 1 is already waiting for a decision."
    await refused(lab, ada.command("allocation change", channel=channel.id, allocation=1), open_already)
    form = await rosa.press(first, "Approve")
    assert [field.value for field in form.fields] == ["2", None]
    async with stale_cards(lab):
        await rosa.submit(form, {"Core-hours more": "0.5", "Reason": "Half an hour."})
        sentence = "This change was already approved, by Rosa."
        for label in first.button_labels:
            await refused(lab, rosa.press(first, label), sentence)
    post = await lab.guild.wait_for(
        channel.id, lambda m: "approves the change of allocation 1: 0.5 core-hours" in m.text
    )
    assert f"until {text.day(later)}" in post.text
    assert (await card(lab, "change 1 of allocation 1", "Approved by Rosa", "Half an hour.")).buttons == []
    assert lab.allocation(1).account.granted == 5400

    await ask(**{"Core-hours more": "1"})
    second = await card(lab, "change 2 of allocation 1")
    await rosa.submit(await rosa.press(second, "Decline"), WHY)
    await card(lab, "change 2 of allocation 1", "Declined by Rosa")
    await ask(**{"Core-hours more": "1"})
    await card(lab, "change 3 of allocation 1")
    withdraw = await ada.command("allocation withdraw", channel=channel.id, allocation=1)
    assert (
        await ada.submit(withdraw, WHY)
    ).text == "The request for a change is withdrawn; /allocation change asks again."
    await card(lab, "change 3 of allocation 1", "Withdrawn by Ada")

    shown = await card(lab, "-# P1 · allocation 1", "Approved by Rosa")
    asked = await rosa.press(shown, "Revoke")
    ends = "Allocation 1 ends: 1.5 core-hours return to its sponsor's grant.\n**This cannot be undone.**"
    assert (asked.ephemeral, asked.text) == (True, ends)
    revoke = await rosa.agree(asked)
    async with stale_cards(lab):
        assert (await rosa.submit(revoke, WHY)).text.startswith("Revoked: ")
        await refused(lab, rosa.press(shown, "Revoke"), "Allocation 1 is revoked; this needs an approved one.")
        await refused(lab, rosa.agree(asked), "Allocation 1 is revoked; this needs an approved one.")
    await lab.guild.wait_for(channel.id, lambda m: "**Rosa** revokes allocation 1, which returns 1.5" in m.text)
    assert (await card(lab, "-# P1 · allocation 1", "Revoked by Rosa", "0 core-hours used by")).buttons == []
    listed = (await grace.command("allocation list", channel=channel.id)).text.splitlines()
    assert listed[-1].startswith("**1** 0 core-hours of `local` until")
    assert "· revoked · 0 core-hours left" in listed[-1]


async def test_a_starter_grant_and_what_takes_its_place(shared_lab: Shared) -> None:
    lab, _ = shared_lab
    ada = lab.person("Ada")
    channel = await lab.activate()
    nope = ada.command("allocation request", channel=channel.id, pool="nope")
    await refused(lab, nope, "There is no pool “nope”; the pools are: local.")
    larger = await lab.request(channel, "5")
    assert larger.message is not None
    written = {"Core-hours": "1", "Until": "in 3 weeks", "Justification": "A first look."}
    answer = await ada.submit(await ada.press(larger.message, "Edit"), written)
    number, earlier = int(answer.text.split()[1]), int(larger.text.split()[1])
    assert answer.text.startswith(f"Allocation {number} is yours at once, the starter grant of your project: ")
    instead = f"It takes the place of allocation {earlier}, which is withdrawn\\."
    assert re.search(rf"(?m) core-hours? of `local` until <t:\d+:D>\. {instead}$", answer.text)
    assert lab.allocation(earlier).state == "withdrawn"
    assert "Approved by policy" in (await card(lab, f"allocation {number}", "starter grant")).text
    suggested = await ada.complete("allocation request", "renews", "", channel=channel.id, pool="local")
    assert suggested == [(f"{number} · 1 core-hour of local, approved", number)]
    day = (datetime.now(UTC) + timedelta(days=30)).date().isoformat()
    form = await ada.command("allocation request", channel=channel.id, pool="local", renews=number)
    await ada.submit(form, {"Core-hours": "2", "Until": day, "Justification": "It goes well."})
    asked = await card(lab, f"allocation {number + 1}", f"in place of allocation {number}.")
    await lab.person("Rosa").submit(await lab.person("Rosa").press(asked, "Approve"), WHY)
    await card(lab, f"allocation {number}", "**Renewed**")
    assert lab.allocation(number + 1).account.granted == 7200


async def test_what_is_open_can_be_decided_without_its_card(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    ada, rosa, omar = map(lab.person, ("Ada", "Rosa", "Omar"))
    number = int((await lab.request(channel, "2")).text.split()[1])
    shown = await card(lab, f"allocation {number}")
    await omar.delete("compute-review", shown)
    show: dict[str, Any] = {"channel": channel.id, "allocation": number}
    assert (await ada.command("allocation show", **show)).followups == []

    async def in_private(label: str) -> Message:
        answer = await rosa.command("allocation show", **show)
        assert answer.ephemeral
        answer = await lab.guild.wait_for_answer(answer, lambda a: any(label in m.button_labels for m in a.followups))
        followup = next(m for m in answer.followups if label in m.button_labels)
        assert followup.ephemeral
        return followup

    again = await in_private("Approve part")
    assert (again.text, again.button_labels) == (shown.text, shown.button_labels)
    assert "Approved" in (await rosa.submit(await rosa.press(again, "Approve"), {"Core-hours": "1"} | WHY)).text
    form = await ada.command("allocation change", **show)
    await ada.submit(form, {"Justification": "One more.", "Core-hours more": "1"})
    change = await in_private("Approve")
    assert "Declined" in (await rosa.submit(await rosa.press(change, "Decline"), WHY)).text
    assert (await in_private("Revoke")).text.endswith(f"allocation {number}")
