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
    *(f"run {name}" for name in ("show", "list", "compare", "why", "config", "log")),
    *(f"catalogue {name}" for name in ("list", "corpora", "propose")),
    *(f"cluster {name}" for name in ("status", "usage", "queue")),
    *(f"stoa {name}" for name in ("help", "notify")),
}


async def test_each_person_sees_what_they_can_do(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    await lab.person("Omar").command("stoa setup", admins="admin")
    seen = {}
    for name in ("Ada", "Grace", "Rosa", "Omar"):
        for place in ("general", channel.id):
            answer = await lab.person(name).command("stoa help", channel=place)
            assert answer.ephemeral
            seen[name, place == channel.id] = "\n".join([answer.text, *(more.text for more in answer.followups)])
    assert seen["Ada", True].startswith("What you can do in **Do small models dream?**, as lead:")
    assert "### As the lead of this project\n**/project scope** · " in seen["Ada", True]
    assert "**/run launch** · " in seen["Ada", True]
    assert "Put on record** · " in seen["Grace", True]
    assert "**/project scope**" not in seen["Grace", True]
    assert "button **Answer** of a reviewer" in seen["Ada", True]
    assert "### As who manages this server" not in seen["Omar", True], "an admin is told it once"
    assert seen["Omar", True].count("**/stoa setup**") == 1
    assert seen["Ada", False].startswith("What you can do here, as member of the lab:")
    assert "**/run launch**" not in seen["Ada", False]
    assert "### As a reviewer" in seen["Rosa", True]
    assert "### As an admin" in seen["Omar", False]
    assert "**/stoa ban** · " in seen["Omar", False]
    for text in seen.values():
        assert ("**/stoa ban**" in text) == (text in (seen["Omar", False], seen["Omar", True]))
        assert text.count("**/project propose** · ") == text.count("**/cluster queue** · ") == 1


async def test_who_manages_the_server_or_only_visits_is_told_so(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    await lab.guild.join("Noor")
    visitor = (await lab.person("Noor").command("stoa help", channel=channel.id)).text
    assert visitor.startswith("What you can do in **Do small models dream?**, as a visitor:")
    assert "An offer, of a launch or of a lead, is answered by its buttons" in visitor
    assert "**/stoa setup**" not in visitor
    assert "as member of the lab" in (await lab.person("Noor").command("stoa help")).text
    everyone = permissions.EVERYONE
    await lab.guild.set_permissions("@everyone", everyone | Permissions(manage_guild=True).value)
    manager = (await lab.person("Noor").command("stoa help")).text
    await lab.guild.set_permissions("@everyone", everyone)
    assert "### As who manages this server\n**/stoa setup** · " in manager


async def test_every_command_is_for_everyone_or_has_its_row_in_the_table(shared_lab: Shared) -> None:
    lab, _ = shared_lab
    names = set()
    for command in await lab.guild.commands():
        below = command.get("options") or []
        nested = [option["name"] for option in below if option["type"] == 1]
        names |= {f"{command['name']} {name}" for name in nested} or {command["name"]}
    assert names - set(help_text.NEEDS) == EVERYONE
    assert set(help_text.NEEDS) <= names


async def test_nobody_reviews_their_own_project_and_who_is_banned_hears_it(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    await lab.guild.set_roles("Ada", ["reviewer"])
    assert "### As a reviewer" in (await lab.person("Ada").command("stoa help")).text
    assert "### As a reviewer" not in (await lab.person("Ada").command("stoa help", channel=channel.id)).text
    await lab.guild.set_roles("Ada", [])
    form = await lab.person("Omar").command("stoa ban", person="Grace")
    await lab.person("Omar").submit(form, {"Reason": "Spam."})
    assert "you are banned: Spam." in (await lab.person("Grace").command("stoa help")).text


async def test_it_fits_however_many_commands_there_are() -> None:
    here = help_text.Standing(frozenset(help_text.HEADINGS), "x" * 80)
    pages = help_text.pages([stoa], here, review=1, manages=True)
    assert all(page.content_length() <= 4000 for page in pages)
    known = {command.qualified_name for command in stoa.commands}
    assert known <= {*help_text.NEEDS, *EVERYONE}
