"""What members and the log hear while the bot's database is away."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from functools import partial

from bot.client import LATER
from projects.db.database import Database
from sandbox.people import Message, Person
from tests import databases
from tests.bot.conftest import PROPOSAL, Lab
from tests.outage import freezable, relayed
from tests.patience import until


async def test_members_hear_when_to_try_again_and_keep_what_they_wrote(lab: Lab, postgres: str) -> None:
    url = databases.create(postgres, f"test_{secrets.token_hex(6)}", template=databases.TABLES)
    with relayed(url) as (wire, by_way_of_it):
        await lab.start_bot(DATABASE_URL=by_way_of_it)
        ada = lab.person("Ada")
        form = await ada.command("project propose")
        began = time.monotonic()
        wire.away()
        await until(lab.logged("the database cannot be reached"), "the line in the log")
        answer = await ada.submit(form, PROPOSAL)
        assert "cannot reach its database at the moment" in answer.text
        assert "try again in a minute or two" in answer.text
        assert answer.message is not None
        (kept,) = answer.message.attachments
        assert all(written in kept.path.read_text() for written in PROPOSAL.values())
        assert await ada.complete("project show", "project", "dream") == [(LATER, 0)]
        assert await ada.complete("run launch", "recipe", "dem") == [(LATER, "-")]
        said = await ada.command("cluster status")
        assert "cannot reach its database" in said.text
        await asyncio.sleep(3)
        assert "Traceback" not in lab.log
        lines = lab.log.count("the database cannot be reached")
        assert 1 <= lines <= 1 + (time.monotonic() - began) // 60, "one line a minute"
        wire.back()
        form = await ada.press(answer.message, "Open the form again")
        assert [field.value for field in form.fields] == list(PROPOSAL.values())
        await ada.submit(form, PROPOSAL)
        await lab.guild.wait_for("proposals", lambda m: "Do small models dream?" in m.text)
        assert await lab.stop_bot() == 0


async def test_members_hear_of_a_database_that_is_frozen(lab: Lab, postgres: str) -> None:
    """Its connections stay open, and nothing is answered."""
    url = databases.create(postgres, f"test_{secrets.token_hex(6)}", template=databases.TABLES)
    await lab.start_bot(DATABASE_URL=url)
    ada = lab.person("Ada")
    await ada.submit(await ada.command("project propose"), PROPOSAL | {"Title": "Before"})
    await lab.guild.wait_for("proposals", lambda m: "Before" in m.text)
    message = await ada.say("general", "Look at this.")
    form = await ada.command("project propose")
    with freezable(url) as server:
        server.freeze()
        at_once = await ada.command("project needs", project=1)
        assert "cannot reach its database at the moment" in at_once.text, "within the seconds that Discord waits"
        assert await ada.complete("project show", "project", "bef") == [(LATER, 0)]
        on_record = await ada.menu(message, "Put on record")
        assert "cannot reach its database at the moment" in on_record.text
        answer = await ada.submit(form, PROPOSAL)
        assert "cannot reach its database at the moment" in answer.text
        assert answer.message is not None
        (kept,) = answer.message.attachments
        assert all(written in kept.path.read_text() for written in PROPOSAL.values())
        said = await ada.command("cluster status")
        assert "cannot reach its database" in said.text
        assert await ada.complete("project show", "project", "dream") == [(LATER, 0)]
        assert "Traceback" not in lab.log
    form = await ada.press(answer.message, "Open the form again")
    await ada.submit(form, PROPOSAL)
    await lab.guild.wait_for("proposals", lambda m: "Do small models dream?" in m.text)
    listed = await ada.command("project list")
    assert listed.text.count("Do small models dream?") == 1, "what was sent before it froze was not done"
    assert await lab.stop_bot() == 0


async def test_what_opens_a_form_or_suggests_answers_in_time_from_the_first_moment_of_a_freeze(
    lab: Lab, postgres: str
) -> None:
    """A form cannot follow an acknowledgement, so each of these has Discord's three seconds."""
    url = databases.create(postgres, f"test_{secrets.token_hex(6)}", template=databases.TABLES)
    lab.db.close()
    lab.db = Database(url)
    lab.add_pool()
    await lab.start_bot(DATABASE_URL=url, ADMIN_ROLE_ID=str(lab.guild.info["roles"]["admin"]))
    channel = await lab.activate()
    await lab.request(channel)
    card = await lab.review_card(1)
    ada, rosa, omar = (lab.person(name) for name in ("Ada", "Rosa", "Omar"))
    listed = (await omar.command("stoa pools")).message
    message = await ada.say("general", "Look at this.")
    assert listed is not None
    lab.db.close()  # or its connections would wait for the server too

    async def pressed(person: Person, on: Message, label: str) -> str:
        return (await person.press(on, label)).text

    async def chosen_in_menu() -> str:
        return (await ada.menu(message, "Put on record")).text

    async def typed() -> str:
        return (await ada.command("project needs", channel=channel.id)).text

    async def suggested() -> str:
        return " ".join(said for said, _ in await ada.complete("run launch", "recipe", "dem", channel=channel.id))

    acts: list[Callable[[], Awaitable[str]]] = [
        partial(pressed, rosa, card, "Approve"),
        partial(pressed, omar, listed, "Change one"),
        chosen_in_menu,
        typed,
        suggested,
    ]
    for first in acts:
        with freezable(url) as server:
            server.freeze()
            assert "cannot reach its database" in await first()
        while not (form := await rosa.press(card, "Approve")).fields:
            assert "cannot reach its database" in form.text, "until the bot has another connection"
    with freezable(url) as server:
        server.freeze()
        for _ in range(2):
            said = await asyncio.gather(*(act() for act in acts))
            assert all("cannot reach its database" in each for each in said), said
    assert "Traceback" not in lab.log


async def test_a_bot_that_starts_without_its_database_says_so_in_one_sentence(lab: Lab) -> None:
    bot = lab.spawn_bot(DATABASE_URL="postgresql+psycopg://stoa@127.0.0.1:1/stoa")
    assert await asyncio.to_thread(bot.wait) == 1
    assert lab.log.strip().splitlines()[-1] == "The database does not answer: start it, or correct STOA_DATABASE_URL."
    assert "Traceback" not in lab.log
