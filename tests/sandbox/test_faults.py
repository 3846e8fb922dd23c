"""Faults that tests order, and what moderators do behind the bot's back."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import aiohttp
import discord
import pytest

from sandbox.people import ActionError, Guild
from tests.discord_openapi import recorded
from tests.patience import PATIENCE
from tests.sandbox import bot as bots


async def test_a_cut_answer_is_done_all_the_same(bot: bots.Bot, guild: Guild, tmp_path: Path) -> None:
    channel = bot.text_channel("public-record")
    await guild.fault("POST /channels/.*/messages", cut=True)
    with pytest.raises(aiohttp.ClientError):
        await channel.send("entry 1", nonce=1)
    assert [m.text for m in await guild.messages("public-record")] == ["entry 1"]
    await channel.send("entry 1", nonce=1)
    assert len(await guild.messages("public-record")) == 1
    posts = [e for e in recorded(tmp_path, "exchanges.jsonl") if e["path"].endswith("/messages")]
    assert [e["fault"] and e["fault"]["cut"] for e in posts] == [True, None]


async def test_a_failing_answer_does_nothing(bot: bots.Bot, guild: Guild, tmp_path: Path) -> None:
    channel = bot.text_channel("general")
    await guild.fault("POST /channels/.*/messages", status=503)
    with pytest.raises(discord.DiscordServerError):
        await channel.send("lost")
    assert await guild.messages("general") == []
    await guild.fault("POST /channels/.*/messages", status=502)
    await channel.send("tried again by the client")
    assert len(await guild.messages("general")) == 1
    posts = [e["status"] for e in recorded(tmp_path, "exchanges.jsonl") if e["path"].endswith("/messages")]
    assert posts == [503, 502, 200]


async def test_an_answer_is_delayed_until_its_time_or_until_the_faults_are_cleared(bot: bots.Bot, guild: Guild) -> None:
    ada = int(guild.info["users"]["Ada"])
    await guild.fault("GET /users/", delay=0.1)
    await bot.fetch_user(ada)
    await guild.fault("GET /users/", delay=PATIENCE, count=5)
    asked = asyncio.create_task(bot.fetch_user(ada))
    done, _ = await asyncio.wait([asked], timeout=0.4)
    assert not done
    await guild.clear_faults()
    assert (await asked).id == ada
    assert (await bot.fetch_user(ada)).id == ada


async def test_a_moderator_deletes_what_the_bot_made(bot: bots.Bot, guild: Guild) -> None:
    channel = bot.text_channel("general")
    message = await channel.send("to go")
    with pytest.raises(ActionError, match="Ada lacks the permission"):
        await guild.person("Ada").delete("general", str(message.id))
    await guild.person("Omar").delete("general", str(message.id))
    with pytest.raises(discord.NotFound) as gone:
        await message.edit(content="still here?")
    assert gone.value.code == 10008
    await guild.person("Omar").delete_channel("general")
    with pytest.raises(discord.NotFound) as gone:
        await channel.send("anyone?")
    assert gone.value.code == 10003


async def test_waiting_for_what_is_to_come(bot: bots.Bot, guild: Guild) -> None:
    waiting = asyncio.create_task(guild.wait_for("late", lambda m: "run" in m.text))
    channel = await bot.guilds[0].create_text_channel("late")
    await channel.send("a run")
    assert (await waiting).text == "a run"
    with pytest.raises(TimeoutError, match=r"No message in #late fitted within 0\.3 s; last: a run"):
        await guild.wait_for("late", lambda m: False, timeout=0.3)


async def test_people_come_and_get_roles(bot: bots.Bot, guild: Guild) -> None:
    await guild.join("Linus")
    await guild.set_roles("Linus", ["reviewer"])
    answer = await guild.person("Ada").command("project scope", goal="learn", hours=1, lead="Linus")
    assert answer.text == "learn 1 Linus(reviewer) -"
    with pytest.raises(ActionError, match="may not write in #announcements"):
        await guild.person("Linus").say("announcements", "hello")
    for name, reason in (("", "between 1 and 32"), ("x" * 33, "between 1 and 32"), ("linus ", "in the guild already")):
        with pytest.raises(ActionError, match=reason):
            await guild.join(name)


async def test_the_program_starts_and_ends(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "sandbox", "--dir", str(tmp_path))
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        async with await Guild.open(tmp_path) as guild:
            assert guild.info["pid"] == process.pid
            assert set(guild.info["channels"]) >= {"proposals", "compute-review", "announcements", "public-record"}
            assert not await guild.bot_connected()
            assert oct((tmp_path / "sandbox.json").stat().st_mode & 0o777) == "0o600"
            bot = await bots.start(guild.info)
            assert (await guild.person("Ada").command("run", recipe="demo")).text == "demo"
            await bot.close()
            async with aiohttp.ClientSession() as session, session.get(guild.info["hub"]) as response:
                assert response.status < 500
    finally:
        os.kill(process.pid, signal.SIGTERM)
        output = (await asyncio.wait_for(process.communicate(), PATIENCE))[0].decode()
    assert process.returncode == 0
    assert "Discord on http://127.0.0.1:" in output
    assert guild.info["bot_token"] not in output
    (acted,) = [e["d"] for e in recorded(tmp_path, "dispatches.jsonl") if e["t"] == "INTERACTION_CREATE"]
    assert acted["token"] == "-"
    for name in ("exchanges.jsonl", "dispatches.jsonl"):
        assert guild.info["bot_token"] not in (tmp_path / name).read_text(encoding="utf-8")
