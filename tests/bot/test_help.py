"""`/stoa help` shows each person what they can do, by the table of rights, where they ask."""

import pytest
from discord import Permissions

from bot.commands.stoa import help_text
from bot.commands.stoa.commands import stoa
from sandbox.discord import permissions
from sandbox.people import Channel
from tests.bot.conftest import Lab

pytestmark = pytest.mark.asyncio(loop_scope="module")

Shared = tuple[Lab, Channel]

EVERYONE = {
    *(f"project {name}" for name in ("propose", "join", "follow", "leave", "show", "list")),
    *(f"allocation {name}" for name in ("show", "list")),
    *(f"run {name}" for name in ("show", "list", "compare", "why", "config", "log", "data", "seen")),
    "study show",
    *(f"catalogue {name}" for name in ("list", "corpora", "propose")),
    *(f"cluster {name}" for name in ("status", "usage", "queue")),
    *(f"stoa {name}" for name in ("help", "notify")),
}


async def everything(lab: Lab, name: str, place: str) -> tuple[str, str]:
    """What the help shows a person first, and all that its topics show then."""
    answer = await lab.person(name).command("stoa help", channel=place)
    assert answer.ephemeral
    assert answer.message is not None
    assert answer.message.button_labels == [title for title, _ in help_text.TOPICS]
    first, pages = answer.text, []
    for title, _ in help_text.TOPICS:
        page = await lab.person(name).press(answer.message, title)
        assert page.kind == "update", "the topics take each other's place"
        assert page.text.startswith(f"## {title}")
        pages.append(page.text)
    return first, "\n".join(pages)


async def test_each_person_sees_what_they_can_do(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    await lab.person("Omar").command("stoa setup", admins="admin")
    seen = {}
    for name in ("Ada", "Grace", "Rosa", "Omar"):
        for place in ("general", channel.id):
            seen[name, place == channel.id] = await everything(lab, name, place)
    first, topics = seen["Ada", True]
    assert first.startswith(
        "What you can do in **Do small models dream?**, as lead:\n"
        "**Next** A contributor launches the first run with `/run launch`.\n**/project confirm** · "
    )
    assert len(first.splitlines()) <= 10, "it is short"
    assert "### As the lead of this project\n**/project scope** · " in topics
    assert "**/run launch** · " in first
    assert "button **Answer** of a reviewer" in topics
    first, topics = seen["Grace", True]
    assert "Put on record** · " in topics
    assert "**/project scope**" not in first + topics
    assert first.count("**/run launch** · ") == topics.count("**/run launch** · ") == 1
    first, topics = seen["Ada", False]
    assert first.startswith("What you can do here, as member of the lab:\n**/project list** · ")
    assert "**/run launch**" not in first + topics
    assert "### As a reviewer" in seen["Rosa", True][1]
    assert "The buttons on the cards in <#" in seen["Rosa", True][0]
    assert "### As an admin" in seen["Omar", False][1]
    assert seen["Omar", True][1].count("**/stoa setup**") == 1
    for (name, _), (_, topics) in seen.items():
        assert ("**/stoa ban** · " in topics) == (name == "Omar")
        assert topics.count("**/project propose** · ") == topics.count("**/cluster queue** · ") == 1


async def test_who_manages_the_server_or_only_visits_is_told_so(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    await lab.guild.join("Noor")
    visitor = (await lab.person("Noor").command("stoa help", channel=channel.id)).text
    assert visitor.startswith("What you can do in **Do small models dream?**, as a visitor:")
    assert "**/project join** · " in visitor
    assert "An offer, of a launch or of a lead, is answered by its buttons" in visitor
    assert "**/stoa setup**" not in visitor
    assert "as member of the lab" in (await lab.person("Noor").command("stoa help")).text
    everyone = permissions.EVERYONE
    await lab.guild.set_permissions("@everyone", everyone | Permissions(manage_guild=True).value)
    manager = (await lab.person("Noor").command("stoa help")).text
    await lab.guild.set_permissions("@everyone", everyone)
    assert "**/stoa setup** · " in manager


async def test_every_command_is_for_everyone_or_has_its_row_in_the_table(shared_lab: Shared) -> None:
    lab, _ = shared_lab
    names = set()
    for command in await lab.guild.commands():
        below = command.get("options") or []
        nested = [option["name"] for option in below if option["type"] == 1]
        names |= {f"{command['name']} {name}" for name in nested} or {command["name"]}
    assert names - set(help_text.NEEDS) == EVERYONE
    assert set(help_text.NEEDS) <= names
    assert all(name.startswith(tuple(group for _, groups in help_text.TOPICS for group in groups)) for name in names)


async def test_nobody_reviews_their_own_project_and_who_is_banned_hears_it(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    await lab.guild.set_roles("Ada", ["reviewer"])
    assert "### As a reviewer" in (await everything(lab, "Ada", "general"))[1]
    assert "### As a reviewer" not in (await everything(lab, "Ada", channel.id))[1]
    await lab.guild.set_roles("Ada", [])
    before = (await lab.person("Grace").command("stoa help")).message
    form = await lab.person("Omar").command("stoa ban", person="Grace")
    await lab.person("Omar").submit(form, {"Reason": "Spam."})
    assert "you are banned: Spam." in (await lab.person("Grace").command("stoa help")).text
    assert before is not None
    again = await lab.person("Grace").press(before, "Runs")
    assert "you are banned: Spam." in "".join(more.text for more in again.followups) + again.text


async def test_it_fits_however_many_commands_there_are() -> None:
    here = help_text.Standing(frozenset(help_text.HEADINGS), "x" * 80, "y" * 300)
    pages = [help_text.of_topic([stoa] * 9, here, number, review=1) for number in range(len(help_text.TOPICS))]
    pages.append(help_text.start([stoa], here, review=1, manages=True))
    assert all(page.content_length() <= 4000 for page in pages)
    known = {command.qualified_name for command in stoa.commands}
    assert known <= {*help_text.NEEDS, *EVERYONE}
