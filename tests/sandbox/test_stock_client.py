"""Stock discord.py on a real socket against the sandbox, and every exchange judged by Discord's own description."""

import asyncio
import json
from pathlib import Path
from typing import Any

import discord
import pytest
import yarl

from sandbox.people import ActionError, Guild
from tests.discord_openapi import DiscordJudge, recorded
from tests.patience import PATIENCE, until
from tests.sandbox import bot as bots

Overwrites = dict[discord.Role | discord.Member | discord.Object, discord.PermissionOverwrite]


async def test_the_whole_way_is_as_discord_describes_it(
    bot: bots.Bot, guild: Guild, judge: DiscordJudge, tmp_path: Path
) -> None:
    ada, grace = guild.person("Ada"), guild.person("Grace")
    form = await ada.command("project propose")
    await ada.submit(form, {"Title": "Scaling", "Field": "Data", "Note": "why"})
    await ada.command("project scope", goal="learn", hours=3, lead="Rosa", place="general")
    await ada.complete("run", "recipe", "de")
    await ada.command("slow")
    category = discord.utils.get(bot.guilds[0].categories, name="Projects")
    reviewer = discord.utils.get(bot.guilds[0].roles, name="reviewer")
    assert category is not None
    assert reviewer is not None
    overwrites: Overwrites = {reviewer: discord.PermissionOverwrite(view_channel=True, send_messages=False)}
    channel = await bot.guilds[0].create_text_channel("p-1 a", category=category, topic="A", overwrites=overwrites)
    await channel.edit(topic="B")
    post = await channel.send(view=bots.Card("One", "a.png", "a curve"), file=bots.picture("a.png"), nonce=77)
    await grace.press(str(post.id), "Join")
    await post.edit(view=bots.Card("Two", "b.png", "b curve"), attachments=[bots.picture("b.png")])
    thread = await post.create_thread(name="talk", auto_archive_duration=1440)
    await thread.send("In it", embed=discord.Embed(title="T", description="D").add_field(name="n", value="v"))
    await thread.add_user(discord.Object(int(guild.info["users"]["Ada"])))
    await (await channel.send("plain", reference=post)).edit(content="plainer")
    ada_only = discord.AllowedMentions(users=[discord.Object(int(guild.info["users"]["Ada"]))])
    pinged = await channel.send(f"<@{guild.info['users']['Ada']}> @everyone", allowed_mentions=ada_only)
    assert ([user.name for user in pinged.mentions], pinged.mention_everyone) == (["ada"], False)
    await pinged.pin()
    await pinged.pin()
    pins = [m async for m in channel.history(limit=9) if m.type is discord.MessageType.pins_add]
    assert [m.reference.message_id for m in pins if m.reference] == [pinged.id], "a second pin changes nothing"
    assert (await channel.fetch_message(pinged.id)).pinned
    own_thread = await channel.create_thread(name="open", type=discord.ChannelType.public_thread)
    await own_thread.edit(archived=True)
    await own_thread.send("wakes it", file=bots.picture("c.png"))
    assert [m.id async for m in channel.history(limit=2)]
    await channel.fetch_message(post.id)
    await bot.fetch_guild(bot.guilds[0].id)
    await bot.guilds[0].fetch_roles()
    await bot.guilds[0].fetch_channels()
    await bot.guilds[0].fetch_member(int(guild.info["users"]["Ada"]))
    await bot.guilds[0].active_threads()
    await bot.tree.fetch_commands(guild=bot.home)
    await bot.tree.sync()
    await post.delete()
    await channel.delete()
    with pytest.raises(discord.NotFound):
        await bot.fetch_channel(channel.id)
    assert len(recorded(tmp_path, "exchanges.jsonl")) >= 35
    assert judge.judge_recorded(tmp_path) == []


async def test_options_reach_the_bot_resolved(bot: bots.Bot, guild: Guild) -> None:
    answer = await guild.person("Ada").command(
        "project scope", goal="learn", hours=7, lead="Rosa", place="compute-review"
    )
    assert (answer.kind, answer.ephemeral) == ("message", False)
    assert answer.text == "learn 7 Rosa(reviewer) compute-review"
    assert [m.text for m in await guild.messages("general")] == ["learn 7 Rosa(reviewer) compute-review"]


@pytest.mark.parametrize(
    ("command", "options", "reason"),
    [
        ("project nothing", {}, "does not exist; under project there is: propose, scope"),
        ("nothing", {}, "no command /nothing"),
        ("project", {}, "needs one of its subcommands"),
        ("project scope", {"goal": "learn", "hours": 0, "lead": "Rosa"}, "hours must be between 1 and 100"),
        ("project scope", {"goal": "learn", "hours": 1.5, "lead": "Rosa"}, "hours must be a whole number"),
        ("project scope", {"goal": "x", "hours": 1, "lead": "Rosa"}, "goal must have between 3 and 20"),
        ("project scope", {"goal": "learn", "hours": 1, "lead": "Nobody"}, "there is no 'Nobody'"),
        ("project scope", {"goal": "learn", "hours": 1}, "needs the option lead"),
        ("run", {"recipe": "demo", "gpu": 1}, "no option gpu"),
    ],
)
async def test_what_a_client_would_not_send_is_refused(
    bot: bots.Bot, guild: Guild, command: str, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ActionError, match=reason):
        await guild.person("Ada").command(command, **options)


async def test_a_deferred_answer_is_waited_for(bot: bots.Bot, guild: Guild) -> None:
    ada = guild.person("Ada")
    answer = await ada.command("slow", seconds=0.3)
    assert (answer.kind, answer.text, answer.ephemeral) == ("message", "Done", True)
    later = await guild.wait_for_answer(answer, lambda a: a.followups)
    assert [(m.text, m.attachments[0].path.read_bytes()) for m in later.followups] == [("And a file", bots.PNG)]
    assert await guild.messages("general") == []
    unfinished = await ada.command("slow", seconds=PATIENCE, timeout=0.5)
    assert unfinished.kind == "deferred"


async def test_a_form_is_filled_by_label(bot: bots.Bot, guild: Guild, tmp_path: Path) -> None:
    ada = guild.person("Ada")
    form = await ada.command("project propose")
    assert (form.kind, form.title) == ("modal", "A proposal")
    assert [(f.label, f.required, f.options) for f in form.fields] == [
        ("Title", True, []),
        ("Field", True, ["Models", "Data"]),
        ("Note", False, []),
    ]
    for values, reason in [
        ({"Field": "Data"}, "'Title' is required"),
        ({"Title": "x" * 21, "Field": "Data"}, "between 0 and 20"),
        ({"Title": "x"}, "'Field' is required"),
        ({"Title": "x", "Field": "Art"}, "Field offers: Models, Data"),
        ({"Tilte": "x"}, "no field 'Tilte'"),
    ]:
        with pytest.raises(ActionError, match=reason):
            await ada.submit(form, values)
    await guild.fault("POST /interactions/.*/callback", delay=3.2)
    late = await ada.submit(form, {"Title": "Scaling", "Field": "Data"})
    assert late.kind == "none"  # the form stays open, and can be sent again
    answer = await ada.submit(form, {"Title": "Scaling", "Field": "Data", "Note": "two\nlines"})
    assert (answer.text, answer.ephemeral) == ("Scaling|d|two\nlines", True)
    with pytest.raises(ActionError, match="sent already"):
        await ada.submit(form, {"Title": "Scaling", "Field": "Data"})
    forced = await ada.submit(await ada.command("project propose"), {"Title": "", "Field": "Data"}, force=True)
    assert forced.text == "|d|"
    with pytest.raises(ActionError, match="not shown to this person"):
        await guild.person("Grace").submit(await ada.command("project propose"), {"Title": "x"})
    answers = [entry["response"] for entry in recorded(tmp_path, "exchanges.jsonl") if entry["response"]]
    (sent,) = [a["resource"]["message"] for a in answers if "two\\nlines" in json.dumps(a)]
    opened = sent["interaction_metadata"]["triggering_interaction_metadata"]
    assert (opened["id"], opened["type"]) == (form.interaction_id, 2)


async def test_autocomplete(bot: bots.Bot, guild: Guild) -> None:
    ada, offered = guild.person("Ada"), [("Demo", "demo"), ("Debug", "debug")]
    assert await ada.complete("run", "recipe", "de") == offered
    # The other options reach the bot as they stand, half-typed or not.
    assert await ada.complete("run", "recipe", "de", gpus="tw") == offered


async def test_a_card_its_button_and_its_new_picture(bot: bots.Bot, guild: Guild) -> None:
    channel = bot.text_channel("proposals")
    sent = await channel.send(view=bots.Card("Step 1", "curve.png", "loss 3.1"), file=bots.picture("curve.png"))
    (card,) = await guild.messages("proposals")
    assert (card.text, card.content, card.button_labels, card.edits) == ("Step 1", "", ["Join"], 0)
    assert (card.attachments[0].description, card.attachments[0].path.read_bytes()) == ("loss 3.1", bots.PNG)
    pressed = await guild.person("Grace").press(card, "Join")
    assert (pressed.text, pressed.ephemeral) == ("Grace joined 7", True)
    with pytest.raises(ActionError, match="no 'Leave' to press; it has: Join"):
        await guild.person("Grace").press(card, "Leave")
    await sent.edit(view=bots.Card("Step 2", "newer.png", "loss 2.9"), attachments=[bots.picture("newer.png")])
    (card,) = await guild.messages("proposals")
    assert (card.text, card.edits, [a.filename for a in card.attachments]) == ("Step 2", 1, ["newer.png"])
    assert card.attachments[0].description == "loss 2.9"


async def test_selects_and_deferred_buttons(bot: bots.Bot, guild: Guild) -> None:
    ada = guild.person("Ada")
    await bot.text_channel("general").send("board", view=bots.Board())
    (board,) = await guild.messages("general")
    picked = await ada.choose(board, "Pick", "Beta")
    assert (picked.kind, picked.text) == ("update", "picked B")
    worked = await ada.press(board, "Work")
    assert (worked.kind, worked.text, worked.ephemeral) == ("message", "worked", True)
    with pytest.raises(ActionError, match="'Rest' is disabled"):
        await ada.press(board, "Rest")
    with pytest.raises(ActionError, match="Pick offers: Alpha, Beta"):
        await ada.choose(board, "Pick", "Gamma")
    with pytest.raises(ActionError, match="takes between 1 and 1 choices; 2 given"):
        await ada.choose(board, "Pick", "Alpha", "Beta")


async def test_a_command_in_a_thread(bot: bots.Bot, guild: Guild) -> None:
    thread = await (await bot.text_channel("general").send("x")).create_thread(name="talk")
    answer = await guild.person("Ada").command("project scope", channel="talk", goal="learn", hours=1, lead="Ada")
    assert answer.message is not None
    assert answer.message.channel_id == str(thread.id)


async def test_no_command_in_a_closed_thread(bot: bots.Bot, guild: Guild) -> None:
    """Neither a slash command, nor its completion, nor a message's menu; a moderator may in a locked thread."""
    thread = await (await bot.text_channel("general").send("x")).create_thread(name="talk")
    ada, omar = guild.person("Ada"), guild.person("Omar")
    options: dict[str, Any] = {"goal": "learn", "hours": 1, "lead": "Ada"}
    await omar.set_thread("talk", archived=True)
    for person in (ada, omar):
        with pytest.raises(ActionError, match="Commands cannot be used in #talk: the thread is archived"):
            await person.command("project scope", channel="talk", **options)
    with pytest.raises(ActionError, match="the thread is archived"):
        await ada.complete("run", "recipe", "de", channel="talk")
    await omar.set_thread("talk", archived=False, locked=True)
    with pytest.raises(ActionError, match="ada cannot use commands in #talk: the thread is locked"):
        await ada.command("project scope", channel="talk", **options)
    assert (await omar.command("project scope", channel="talk", **options)).kind == "message"
    await thread.edit(locked=False)
    assert (await ada.command("project scope", channel="talk", **options)).kind == "message"


async def test_a_thread_is_made_once(bot: bots.Bot, guild: Guild) -> None:
    message = await bot.text_channel("proposals").send("A proposal")
    thread = await message.create_thread(name="the talk")
    assert thread.id == message.id
    with pytest.raises(discord.HTTPException) as refused:
        await message.create_thread(name="again")
    assert (refused.value.status, refused.value.code) == (400, 160004)
    await thread.send("first")
    assert [m.text for m in await guild.messages("the talk")] == ["first"]
    assert (await guild.messages("proposals"))[0].thread_id == str(thread.id)
    (listed,) = [c for c in await guild.channels() if c.is_thread]
    assert (listed.name, listed.parent_id) == ("the talk", guild.info["channels"]["proposals"])


async def test_the_same_nonce_posts_once(bot: bots.Bot, guild: Guild) -> None:
    channel = bot.text_channel("public-record")
    first = await channel.send("entry 1", nonce=41)
    again = await channel.send("entry 1 again", nonce=41)
    other = await channel.send("entry 2", nonce=42)
    assert first.id == again.id != other.id
    assert [(m.text, m.nonce) for m in await guild.messages("public-record")] == [("entry 1", "41"), ("entry 2", "42")]
    await guild.nonce_lasts(0.0)
    assert (await channel.send("entry 1, much later", nonce=41)).id != first.id


async def test_a_dropped_gateway_is_resumed_and_misses_nothing(bot: bots.Bot, guild: Guild) -> None:
    assert await guild.drop_gateway() == 1
    await guild.person("Ada").say("general", "while you were away")
    await asyncio.wait_for(bot.resumed.wait(), PATIENCE)
    await until(lambda: any(m.channel.id == bot.text_channel("general").id for m in bot.seen))
    assert bot.connects == 1


async def test_a_forgotten_session_is_identified_anew(bot: bots.Bot, guild: Guild) -> None:
    await guild.drop_gateway(forget=True)
    await until(lambda: bot.connects == 2)
    assert (await guild.person("Ada").command("run", recipe="demo")).text == "demo"


async def test_stock_client_waits_out_a_429(bot: bots.Bot, guild: Guild, tmp_path: Path) -> None:
    await guild.limit("POST /channels/{channel_id}/messages", 2, 1.0)
    channel = bot.text_channel("general")
    await guild.fault("POST /channels/.*/messages", status=429, retry_after=0.2)
    for number in range(4):
        await channel.send(f"post {number}")
    assert [m.text for m in await guild.messages("general")] == [f"post {n}" for n in range(4)]
    posts = [e for e in recorded(tmp_path, "exchanges.jsonl") if e["path"].endswith("/messages")]
    assert posts[0]["status"] == 429
    assert posts[0]["response"]["retry_after"] == 0.2


async def test_answering_twice_and_too_late(bot: bots.Bot, guild: Guild) -> None:
    ada = guild.person("Ada")
    twice = await ada.command("twice")
    answered = await guild.wait_for_answer(twice, lambda a: a.followups)
    assert [m.text for m in answered.followups] == ["400 40060"]
    silent = await ada.command("slow", answer=False)
    assert silent.kind == "none"


async def test_others_words_are_blank_without_the_intent(bot: bots.Bot, guild: Guild, info: dict[str, Any]) -> None:
    ada = guild.person("Ada")
    await ada.say("general", "secret thoughts")
    await ada.say("general", f"<@{info['application_id']}> hello")
    hidden: Overwrites = {bot.guilds[0].me: discord.PermissionOverwrite(view_channel=False)}
    await bot.guilds[0].create_text_channel("hidden", overwrites=hidden)
    await ada.say("hidden", "not for the bot at all")
    await ada.say("general", "the last")
    await until(lambda: len(bot.seen) == 3)
    assert [m.content for m in bot.seen] == ["", f"<@{info['application_id']}> hello", ""]
    assert {m.channel.id for m in bot.seen} == {bot.text_channel("general").id}
    intents = discord.Intents.default()
    intents.message_content = True
    with pytest.raises(discord.PrivilegedIntentsRequired):
        await bots.start(info, intents=intents)
    await guild.grant_intents(intents.value)
    reader = await bots.start(info, intents=intents)
    await ada.say("general", "open thoughts")
    await until(lambda: reader.seen)
    assert reader.seen[0].content == "open thoughts"
    await reader.close()


async def test_a_wrong_token_is_refused(info: dict[str, Any]) -> None:
    discord.http.Route.BASE = f"{info['discord']}/api/v10"
    discord.gateway.DiscordWebSocket.DEFAULT_GATEWAY = yarl.URL(info["gateway"])
    with pytest.raises(discord.LoginFailure):
        await bots.start(info | {"bot_token": "sandbox.wrong"})
