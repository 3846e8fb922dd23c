"""A message becomes an entry of a project's record, by one who works on it, once."""

from datetime import datetime

import pytest
from sqlalchemy.orm import Session

from bot.commands.project.put_on_record import put_on_record
from projects import findings, lifecycle, policies
from projects.people import Actor
from sandbox.people import ActionError, Channel
from tests.bot.conftest import Lab

pytestmark = pytest.mark.asyncio(loop_scope="module")

Shared = tuple[Lab, Channel]
ENTRY = put_on_record.name


async def test_a_finding_is_put_on_record_once(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    ada, grace, omar = lab.person("Ada"), lab.person("Grace"), lab.person("Omar")
    found = await omar.say(
        channel.id, "The **exponent** is 0.34 @everyone\n# so it falls\u2028# see https://a.org/@ada_b?c"
    )
    refused = await omar.menu(found, ENTRY)
    assert "Only members of" in refused.text
    done = await grace.menu(found, ENTRY)
    number = lab.heads()["project:1"]
    assert (done.text, done.ephemeral) == (f"It is entry {number} of project 1's record; its post follows.", True)
    post = await lab.guild.wait_for(channel.id, lambda m: f"record {number} " in m.text)
    said_at = int(datetime.fromisoformat(found.created_at).timestamp())
    assert f"**Grace** puts on record what **Omar** wrote on <t:{said_at}:D>:" in post.text
    assert (
        "> The \\*\\*exponent\\*\\* is 0.34 @\u200beveryone\n> \\# so it falls\n> \\# see https://a.org/%40ada_b?c"
        in post.text
    )
    guild = lab.guild.info["guild_id"]
    assert f"https://discord.com/channels/{guild}/{channel.id}/{found.id}" in post.text
    for again in (await ada.menu(found, ENTRY), await omar.menu(found, ENTRY)):
        assert again.text == f"This message is already on record: entry {number} of project 1."
    assert lab.heads()["project:1"] == number


async def test_elsewhere_it_asks_for_the_project(shared_lab: Shared) -> None:
    lab, _ = shared_lab
    ada, rosa = lab.person("Ada"), lab.person("Rosa")
    found = await rosa.say("general", "long " * 399)
    refused = await rosa.menu(found, ENTRY)
    assert "You work on no project yet" in refused.text
    form = await ada.menu(found, ENTRY)
    empty = await ada.submit(form, {}, force=True)
    assert empty.text == "Choose the project whose record it belongs to."
    form = await ada.menu(found, ENTRY)
    assert (form.kind, form.fields[0].options) == ("modal", ["1 · Do small models dream?"])
    head = lab.heads()["project:1"]
    done = await ada.submit(form, {form.fields[0].label: "1 · Do small models dream?"})
    assert done.text.startswith(f"It is entry {head + 1} of project 1")
    post = await lab.guild.wait_for("general", lambda m: m.id == found.id)
    assert post.text == found.text, "what was said stays where it was"


async def test_who_works_on_more_projects_than_a_list_holds_types_the_number(shared_lab: Shared) -> None:
    lab, _ = shared_lab
    edsger = await lab.guild.join("Edsger")
    actor = Actor(int((await lab.guild.call("GET", "/guild"))["users"]["Edsger"]), "Edsger")
    for number in range(27):
        lab.call(many, actor, number)
    found = await edsger.say("general", "It halts.")
    form = await edsger.menu(found, ENTRY)
    assert [field.label for field in form.fields] == ["Your 25 newest projects", "Or the number of another"]
    assert len(form.fields[0].options) == 25
    oldest = lab.call(findings.projects_of, actor)[-1][0]
    for typed, sentence in (("soon", "“soon” is no project's number"), ("9" * 30, "is no project's number")):
        refused = await edsger.submit(form, {"Or the number of another": typed})
        assert sentence in refused.text
        form = await edsger.menu(found, ENTRY)
    both = {"Your 25 newest projects": form.fields[0].options[0], "Or the number of another": str(oldest)}
    assert "not both" in (await edsger.submit(form, both)).text
    form = await edsger.menu(found, ENTRY)
    done = await edsger.submit(form, {"Or the number of another": f" {oldest} "})
    assert done.text.startswith(f"It is entry 2 of project {oldest}'s record")


def many(session: Session, actor: Actor, number: int) -> None:
    """One of many projects of one person."""
    for limit in ("most_open_proposals", "most_proposals_a_day"):
        policies.change(session, None, limit, str(number + 50), "To see.")
    said = {"title": f"Number {number:03}", "question": "q", "why": "w", "needs": "n"}
    lifecycle.propose(session, actor, f"many-{number}", **said)


async def test_what_cannot_be_put_on_record(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    ada = lab.person("Ada")
    heads = lab.heads()
    own = await lab.guild.wait_for(channel.id, lambda m: m.author_id == lab.guild.info["application_id"])
    assert "Stoa's own message" in (await ada.menu(own, ENTRY)).text
    blank = await ada.say(channel.id, "\u200b")
    assert "no words" in (await ada.menu(blank, ENTRY)).text
    with pytest.raises(ActionError, match="Messages have no menu entry 'Bookmark'; they have: Put on record"):
        await ada.menu(blank, "Bookmark")
    assert lab.heads() == heads
