"""The guild's stickers on the loopback Discord, with stock discord.py, judged by Discord's own description."""

import io
from pathlib import Path

import discord
import pytest

from sandbox.discord import permissions
from sandbox.discord.wire import Server
from tests.discord_openapi import DiscordJudge
from tests.patience import until
from tests.sandbox import bot as bots
from tests.sandbox.conftest import Rest

GIF = b"GIF89a\x01\x00\x01\x00\x00\x00\x00;"


def file(data: bytes = bots.PNG) -> discord.File:
    return discord.File(io.BytesIO(data), "sticker.png")


async def test_stickers_are_made_changed_sent_and_deleted(bot: bots.Bot, judge: DiscordJudge, tmp_path: Path) -> None:
    guild = bot.guilds[0]
    channel = discord.utils.get(guild.text_channels, name="general")
    assert channel is not None
    assert await guild.fetch_stickers() == []
    made = await guild.create_sticker(name="sinks", description="Of attention", emoji="🛁", file=file())
    moving = await guild.create_sticker(name="sinking", description="", emoji="🛁", file=file(GIF))
    assert (made.format, moving.format) == (discord.StickerFormatType.png, discord.StickerFormatType.gif)
    assert moving.user is not None
    await until(lambda: {sticker.name for sticker in bot.guilds[0].stickers} == {"sinks", "sinking"}, "the event")
    changed = await made.edit(name="drains", description="Where attention goes", emoji="🚰")
    assert (changed.name, changed.description) == ("drains", "Where attention goes")
    assert {sticker.name for sticker in await guild.fetch_stickers()} == {"drains", "sinking"}
    assert (await guild.fetch_sticker(made.id)).name == "drains"
    assert isinstance(await bot.fetch_sticker(made.id), discord.GuildSticker)
    assert await bot.fetch_premium_sticker_packs() == []
    sent = await channel.send(stickers=[changed, moving])
    assert [sticker.name for sticker in sent.stickers] == ["drains", "sinking"]
    await made.delete()
    with pytest.raises(discord.NotFound, match="Unknown Sticker"):
        await guild.fetch_sticker(made.id)
    read = await channel.fetch_message(sent.id)
    assert [sticker.id for sticker in read.stickers] == [made.id, moving.id], "messages keep what they show"
    assert (await read.edit(content="Two of them")).stickers
    with pytest.raises(discord.HTTPException) as refused:
        await channel.send("No more", stickers=[changed])
    assert refused.value.code == 50081
    assert judge.judge_recorded(tmp_path) == []


async def test_what_is_no_sticker_is_refused(bot: bots.Bot, rest: Rest, sandbox: Server) -> None:
    guild, world = bot.guilds[0], sandbox.world
    for name, emoji, data, code in (
        ("a", "x", bots.PNG, 50035),
        ("a" * 31, "x", bots.PNG, 50035),
        ("fine", "", bots.PNG, 50035),
        ("fine", "x" * 201, bots.PNG, 50035),
        ("fine", "x", b"\xff\xd8\xff", 50046),
        ("fine", "x", b'{"v": "5"}', 50046),
        ("fine", "x", bots.PNG + bytes(512 * 1024), 50045),
    ):
        with pytest.raises(discord.HTTPException) as refused:
            await guild.create_sticker(name=name, description="", emoji=emoji, file=file(data))
        assert refused.value.code == code, (name, emoji, data[:10])
    assert (await rest("POST", f"/guilds/{guild.id}/stickers", {"name": "fine", "tags": "x"}))[1]["code"] == 50035
    assert (await rest("GET", "/guilds/1/stickers"))[1]["code"] == 10004
    assert (await rest("PATCH", f"/guilds/{guild.id}/stickers/1", {"name": "fine"}))[1]["code"] == 10060
    assert world.stickers == {}
    for number in range(5):
        made = await guild.create_sticker(name=f"number {number}", description="", emoji="x", file=file())
    with pytest.raises(discord.HTTPException) as refused:
        await guild.create_sticker(name="one more", description="", emoji="x", file=file())
    assert refused.value.code == 30039
    assert (await rest("PATCH", f"/guilds/{guild.id}/stickers/{made.id}", {"tags": ""}))[1]["code"] == 50035
    (role,) = (role for role in world.roles.values() if role["name"] == "Stoa")
    role["permissions"] = str(int(role["permissions"]) & ~permissions.MANAGE_GUILD_EXPRESSIONS)
    await made.edit(name="my own")
    world.stickers[str(made.id)]["user"] = world.users[world.owner_id]
    for refusing in (made.edit(name="another's"), made.delete()):
        with pytest.raises(discord.Forbidden):
            await refusing
    role["permissions"] = str(int(role["permissions"]) & ~permissions.CREATE_GUILD_EXPRESSIONS)
    assert "user" not in (await rest("GET", f"/guilds/{guild.id}/stickers/{made.id}"))[1]
    with pytest.raises(discord.Forbidden):
        await guild.create_sticker(name="one more", description="", emoji="x", file=file())
