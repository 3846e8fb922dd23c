"""What Discord's API refuses, and how; each refusal is judged by Discord's own description."""

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from sandbox.discord import permissions
from sandbox.discord.wire import Server
from sandbox.people import Guild
from tests.discord_openapi import DiscordJudge
from tests.sandbox.conftest import Rest

V2 = 1 << 15


def text(content: str) -> dict[str, Any]:
    return {"type": 10, "content": content}


def row(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": 1, "components": list(parts)}


def button(**changes: Any) -> dict[str, Any]:
    return {"type": 2, "style": 1, "label": "Go", "custom_id": "go"} | changes


def fault_at(body: dict[str, Any], path: str) -> str:
    """The code of the first form fault at a place such as `embeds.0.title`."""
    assert (body["code"], body["message"]) == (50035, "Invalid Form Body")
    place = body["errors"]
    for key in path.split("."):
        place = place[key]
    return str(place["_errors"][0]["code"])


def buttons(*changes: dict[str, Any]) -> dict[str, Any]:
    """A message with a row of buttons."""
    return {"content": "x", "components": [row(*[button(**change) for change in changes])]}


def cards(*parts: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A Components V2 message."""
    return {"flags": V2, "components": list(parts)} | changes


def choices(count: int) -> list[dict[str, Any]]:
    return [{"name": str(n), "label": str(n), "value": str(n)} for n in range(count)]


NO_FILE = {"type": 12, "items": [{"media": {"url": "attachment://no.png"}}]}
SELECT = {"type": 3, "custom_id": "s", "options": [{"label": str(n), "value": str(n)} for n in range(5)]}
FORTY_TWO = [{"type": 17, "components": [text("x")] * 20}] * 2
BUTTON, URL = "components.0.components.0.", "components.0.items.0.media.url"
ANSWERS = [{"poll_media": {"text": "a"}}]
LEGACY = "MESSAGE_CANNOT_USE_LEGACY_FIELDS_WITH_COMPONENTS_V2"
TOO_LARGE = "SELECT_COMPONENT_MIN_VALUES_TOO_LARGE"
MESSAGES = [
    ({"content": "x" * 2001}, "content", "BASE_TYPE_MAX_LENGTH"),
    ({"content": "x", "nonce": "n" * 26}, "nonce", "BASE_TYPE_MAX_LENGTH"),
    ({"embeds": [{"description": "x" * 4000}, {"description": "x" * 2001}]}, "embeds", "MAX_EMBED_SIZE_EXCEEDED"),
    ({"embeds": [{"title": "x" * 257}]}, "embeds.0.title", "BASE_TYPE_MAX_LENGTH"),
    ({"embeds": [{"fields": [{"name": "n", "value": " "}]}]}, "embeds.0.fields.0.value", "BASE_TYPE_BAD_LENGTH"),
    ({"content": "x", "components": [text("y")]}, "components.0.type", "BASE_TYPE_CHOICES"),
    (buttons(*[{"custom_id": str(n)} for n in range(6)]), "components.0.components", "BASE_TYPE_BAD_LENGTH"),
    (buttons({"label": "x" * 81}), BUTTON + "label", "BASE_TYPE_MAX_LENGTH"),
    (buttons({"custom_id": "x" * 101}), BUTTON + "custom_id", "BASE_TYPE_BAD_LENGTH"),
    (buttons({"custom_id": ""}), BUTTON + "custom_id", "BASE_TYPE_BAD_LENGTH"),
    (buttons({}, {}), "components", "COMPONENT_CUSTOM_ID_DUPLICATED"),
    (buttons({"type": 3, "options": choices(26)}), BUTTON + "options", "BASE_TYPE_BAD_LENGTH"),
    (cards(text("y"), content="x"), "content", "MESSAGE_CANNOT_USE_LEGACY_FIELDS_WITH_COMPONENTS_V2"),
    (cards(text(" ")), "components.0.content", "BASE_TYPE_REQUIRED"),
    (cards(text("x" * 3000), text("y" * 1001)), "components", "COMPONENT_DISPLAYABLE_TEXT_SIZE_EXCEEDED"),
    (cards(*FORTY_TWO), "components", "COMPONENT_MAX_TOTAL_COMPONENTS_EXCEEDED"),
    (cards(NO_FILE), URL, "COMPONENT_REFERENCED_ATTACHMENT_NOT_FOUND"),
    ({"poll": {"question": {"text": "q"}, "answers": []}}, "poll.answers", "BASE_TYPE_BAD_LENGTH"),
    ({"poll": {"question": {"text": "q" * 301}, "answers": ANSWERS}}, "poll.question.text", "BASE_TYPE_BAD_LENGTH"),
    (cards(text("y"), poll={"question": {"text": "q"}, "answers": ANSWERS}), "poll", LEGACY),
    (cards(text("x") | {"id": 2**31}), "components.0.id", "NUMBER_TYPE_MAX"),
    (cards(text("x") | {"id": -1}), "components.0.id", "NUMBER_TYPE_MIN"),
    (cards(text("x") | {"id": "7"}), "components.0.id", "NUMBER_TYPE_COERCE"),
    (cards(text("x") | {"id": 3}, text("y") | {"id": 3}), "components", "COMPONENT_ID_DUPLICATED"),
    (cards(row(SELECT | {"min_values": 3, "max_values": 2})), BUTTON + "min_values", TOO_LARGE),
    (cards(row(SELECT | {"min_values": 2})), BUTTON + "min_values", TOO_LARGE),
    (cards(row(SELECT | {"max_values": 6})), BUTTON + "max_values", "BASE_TYPE_BAD_LENGTH"),
    (
        cards(row({"type": 6, "custom_id": "r", "default_values": [{"id": "1", "type": "role"}] * 2})),
        BUTTON + "default_values",
        "BASE_TYPE_BAD_LENGTH",
    ),
    (buttons({"style": 6, "custom_id": None, "label": None}), BUTTON + "sku_id", "BASE_TYPE_REQUIRED"),
    (buttons({"style": 6, "sku_id": "1", "custom_id": None}), BUTTON + "label", "BUTTON_COMPONENT_INVALID"),
    (buttons({"sku_id": "1"}), BUTTON + "sku_id", "BUTTON_COMPONENT_INVALID"),
    ({"content": "x", "allowed_mentions": {"parse": ["all"]}}, "allowed_mentions.parse.0", "BASE_TYPE_CHOICES"),
]


@pytest.mark.parametrize(("body", "place", "code"), MESSAGES)
async def test_a_message_over_a_limit_is_refused(
    rest: Rest, info: dict[str, Any], guild: Guild, body: dict[str, Any], place: str, code: str
) -> None:
    status, answer = await rest("POST", f"/channels/{info['channels']['general']}/messages", body)
    assert (status, fault_at(answer, place)) == (400, code)
    assert await guild.messages("general") == []


def command(*options: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"name": "ok", "description": "d", "options": list(options)} | changes


def option(name: str, **changes: Any) -> dict[str, Any]:
    return {"type": 3, "name": name, "description": "d"} | changes


LONG = [{"name": f"{n}" * 100, "value": f"{n}" * 100} for n in range(10)]
COMMANDS = [
    (command(name="Upper"), "0.name"),
    (command(name="two words"), "0.name"),
    (command(name="Put on record", type=3), "0.description"),
    (command(description=""), "0.description"),
    (command(description="d" * 101), "0.description"),
    (command(*[option(str(n)) for n in range(26)]), "0.options"),
    (command(option("a", choices=choices(26))), "0.options.0.choices"),
    (command(option("a"), option("b", required=True)), "0.options.1"),
    (command(option("a"), option("a")), "0.options.1"),
    (command(option("a", type=5, choices=choices(1))), "0.options.0"),
    (command(option("a", type=6, autocomplete=True)), "0.options.0"),
    (command(option("a", type=4, max_value=2**53)), "0.options.0.max_value"),
    ({"name": "launch", "type": 4}, "0.type"),
    (command(*[option(f"o{n}", choices=LONG) for n in range(5)]), "0"),
]


@pytest.mark.parametrize(("definition", "place"), COMMANDS)
async def test_a_command_over_a_limit_is_refused(
    rest: Rest, info: dict[str, Any], guild: Guild, definition: dict[str, Any], place: str
) -> None:
    path = f"/applications/{info['application_id']}/guilds/{info['guild_id']}/commands"
    status, answer = await rest("PUT", path, [definition])
    assert status == 400
    assert fault_at(answer, place)
    assert await guild.commands() == []


async def test_a_scope_has_100_slash_commands_and_15_of_each_menu(
    rest: Rest, info: dict[str, Any], guild: Guild, sandbox: Server, judge: DiscordJudge, tmp_path: Path
) -> None:
    """The three sorts are counted apart, globally and in a guild."""
    sandbox.rates.enforced = False
    application = f"/applications/{info['application_id']}"
    slashes = [command(name=f"c{n}") for n in range(100)]
    menus = [{"name": f"Menu {n}", "type": kind} for kind in (2, 3) for n in range(15)]
    more = [(command(name="c100"), 100), ({"name": "Menu 15", "type": 2}, 15), ({"name": "Menu 15", "type": 3}, 15)]
    for path in (f"{application}/commands", f"{application}/guilds/{info['guild_id']}/commands"):
        assert (await rest("PUT", path, slashes + menus))[0] == 200
        for extra, most in more:
            for method, body in (("POST", extra), ("PUT", [*slashes, *menus, extra])):
                status, refusal = await rest(method, path, body)
                assert (status, refusal["code"]) == (400, 30032)
                assert f"({most})" in refusal["message"]
        assert (await rest("POST", path, command(name="c7", description="anew")))[0] == 200
    assert len(await guild.commands()) == 260
    assert judge.judge_recorded(tmp_path) == []


async def test_a_channel_over_a_limit_is_refused(rest: Rest, info: dict[str, Any]) -> None:
    path = f"/guilds/{info['guild_id']}/channels"
    for body, place in [
        ({"name": ""}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"name": "x", "topic": "t" * 1025}, "topic"),
        ({"name": "x", "parent_id": "1"}, "parent_id"),
    ]:
        status, answer = await rest("POST", path, body)
        assert status == 400
        assert fault_at(answer, place)


async def test_a_guild_holds_500_channels_and_a_category_50(
    rest: Rest, info: dict[str, Any], sandbox: Server, judge: DiscordJudge, tmp_path: Path
) -> None:
    path, world = f"/guilds/{info['guild_id']}/channels", sandbox.world
    category = next(c["id"] for c in world.guild_channels() if c["name"] == "Projects")
    for number in range(49):
        world.add_channel(f"p{number}", parent_id=category)
    statuses = [(await rest("POST", path, {"name": "x", "parent_id": category}))[0] for _ in range(2)]
    assert statuses == [201, 400]
    while len(world.guild_channels()) < 499:
        world.add_channel("x")
    assert (await rest("POST", path, {"name": "the last"}))[0] == 201
    assert (await rest("POST", path, {"name": "one more"}))[1]["code"] == 30013
    assert judge.judge_recorded(tmp_path) == []


async def test_a_guild_holds_250_roles_and_1000_active_threads(
    rest: Rest, info: dict[str, Any], sandbox: Server
) -> None:
    world, general = sandbox.world, f"/channels/{info['channels']['general']}"
    sandbox.rates.enforced = False
    while len(world.roles) < 249:
        world.add_role("x", 0)
    made = [await rest("POST", f"/guilds/{info['guild_id']}/roles", {"name": "r", "permissions": "0"}) for _ in "ab"]
    assert (made[0][0], made[1][1]["code"]) == (200, 30005)
    thread = (await rest("POST", f"{general}/threads", {"name": "t", "type": 11}))[1]
    state = world.channels[thread["id"]]
    world.channels |= {str(n): state | {"id": str(n)} for n in range(998)}
    made = [await rest("POST", f"{general}/threads", {"name": "t", "type": 11}) for _ in "ab"]
    assert (made[0][0], made[1][1]["code"]) == (201, 160006)


async def test_errors_carry_discords_codes(
    rest: Rest, info: dict[str, Any], guild: Guild, sandbox: Server, judge: DiscordJudge, tmp_path: Path
) -> None:
    general = info["channels"]["general"]
    message = (await rest("POST", f"/channels/{general}/messages", {"content": "x"}))[1]["id"]
    said = await guild.person("Ada").say("general", "Hello")
    ada = (sandbox.world.users[info["users"]["Ada"]])["id"]
    own = sandbox.world.members[info["application_id"]]["roles"][0]
    expected = [
        ("GET", "/channels/1", None, 404, 10003),
        ("GET", f"/channels/{general}/messages/1", None, 404, 10008),
        ("GET", "/guilds/1", None, 404, 10004),
        ("GET", f"/guilds/{info['guild_id']}/members/1", None, 404, 10007),
        ("POST", f"/channels/{general}/messages", {}, 400, 50006),
        ("POST", f"/channels/{general}/messages", {"content": " \n"}, 400, 50006),
        ("PATCH", f"/channels/{general}/messages/{message}", {"content": ""}, 400, 50006),
        ("POST", f"/channels/{general}/messages", {"sticker_ids": ["1"]}, 400, 50081),
        ("PATCH", f"/channels/{general}/messages/{said.id}", {"content": "x"}, 403, 50005),
        ("POST", "/interactions/1/none/callback", {"type": 4, "data": {"content": "x"}}, 404, 10062),
        ("PATCH", f"/webhooks/{info['application_id']}/none/messages/@original", {"content": "x"}, 401, 50027),
        ("PUT", f"/guilds/{info['guild_id']}/members/{ada}/roles/{info['roles']['admin']}", None, 403, 50013),
        ("DELETE", f"/guilds/{info['guild_id']}/roles/{own}", None, 403, 50013),
        ("DELETE", f"/guilds/{info['guild_id']}/roles/{info['guild_id']}", None, 400, 50028),
        ("DELETE", f"/guilds/{info['guild_id']}/roles/1", None, 404, 10011),
        ("GET", "/no/such/route", None, 404, 0),
    ]
    for method, path, body, status, code in expected:
        answered, refusal = await rest(method, path, body)
        assert (answered, refusal["code"]) == (status, code), path
    assert (await rest("GET", "/users/@me", headers={"Authorization": "Bot wrong"}))[0] == 401
    assert (await rest("POST", f"/channels/{general}/messages", data="{"))[1]["code"] == 50109
    assert judge.judge_recorded(tmp_path) == []


async def test_permissions_are_kept(rest: Rest, info: dict[str, Any], guild: Guild) -> None:
    everyone, own, me = info["guild_id"], info["roles"]["Stoa"], info["application_id"]
    channels = f"/guilds/{info['guild_id']}/channels"
    hidden = [{"id": own, "type": 0, "allow": 0, "deny": permissions.VIEW_CHANNEL}]
    body = {"name": "Hidden One", "permission_overwrites": hidden}
    _, channel = await rest("POST", channels, body)
    assert channel["name"] == "hidden-one"
    assert (await rest("GET", f"/channels/{channel['id']}"))[1]["code"] == 50001
    general = f"/channels/{info['channels']['general']}"
    speak, mute = [{"allow": 0, "deny": 0, key: permissions.SEND_MESSAGES} for key in ("allow", "deny")]
    for target, kind, overwrite, code in ((everyone, 0, mute, 50013), (own, 0, speak, None), (me, 1, mute, 50013)):
        assert (await rest("PUT", f"{general}/permissions/{target}", overwrite | {"type": kind}))[0] == 204
        assert (await rest("POST", f"{general}/messages", {"content": "x"}))[1].get("code") == code, target
    beyond = [{"id": everyone, "type": 0, "allow": permissions.ADMINISTRATOR, "deny": 0}]
    assert (await rest("POST", channels, {"name": "x", "permission_overwrites": beyond}))[1]["code"] == 50013

    _, role = await rest("POST", f"/guilds/{everyone}/roles", {"name": "new", "permissions": "0"})
    given = f"/guilds/{everyone}/members/{info['users']['Ada']}/roles/{role['id']}"
    assert (await rest("PUT", given))[0] == 204

    await guild.set_permissions("Stoa", permissions.BOT & ~permissions.MANAGE_ROLES)
    overwrites = {"permission_overwrites": [{"id": own, "type": 0, "allow": permissions.SEND_MESSAGES, "deny": 0}]}
    assert (await rest("PATCH", general, overwrites))[1]["code"] == 50013
    assert (await rest("PUT", f"{general}/permissions/{own}", speak | {"type": 0}))[1]["code"] == 50013
    assert (await rest("POST", channels, {"name": "x"} | overwrites))[0] == 201, "a new one asks for no Manage Roles"
    beyond[0]["allow"] = permissions.MANAGE_ROLES
    assert (await rest("POST", channels, {"name": "x", "permission_overwrites": beyond}))[1]["code"] == 50013
    await guild.set_permissions("Stoa", permissions.BOT)
    refused = await rest("POST", channels, {"name": "x", "permission_overwrites": beyond})
    assert refused[1]["code"] == 50013, "Manage Roles is an administrator's to give"
    await guild.set_permissions("Stoa", permissions.VIEW_CHANNEL)
    assert (await rest("POST", channels, {"name": "x"}))[1]["code"] == 50013


async def test_history_and_a_locked_thread_ask_for_permissions_of_their_own(
    rest: Rest, info: dict[str, Any], guild: Guild
) -> None:
    messages = f"/channels/{info['channels']['general']}/messages"
    message = (await rest("POST", messages, {"content": "x"}))[1]["id"]
    assert (await rest("POST", f"{messages}/{message}/threads", {"name": "t"}))[0] == 201
    assert (await rest("PATCH", f"/channels/{message}", {"locked": True}))[0] == 200
    assert (await rest("POST", f"/channels/{message}/messages", {"content": "a moderator's"}))[0] == 200
    assert (await rest("PUT", f"{messages}/pins/{info['guild_id']}"))[1]["code"] == 10008
    lacking = permissions.MANAGE_THREADS | permissions.READ_MESSAGE_HISTORY | permissions.PIN_MESSAGES
    for role, bits in (("Stoa", permissions.BOT), ("@everyone", permissions.EVERYONE)):
        await guild.set_permissions(role, bits & ~lacking)
    assert (await rest("POST", f"/channels/{message}/messages", {"content": "y"}))[1]["code"] == 50013
    assert (await rest("GET", messages)) == (200, [])
    assert (await rest("GET", f"{messages}/{message}"))[1]["code"] == 50013
    assert (await rest("PUT", f"{messages}/pins/{message}"))[1]["code"] == 50013


async def test_an_archived_thread_is_neither_joined_nor_left(rest: Rest, info: dict[str, Any], guild: Guild) -> None:
    messages = f"/channels/{info['channels']['general']}/messages"
    thread = f"/channels/{(await rest('POST', messages, {'content': 'x'}))[1]['id']}"
    assert (await rest("POST", f"{messages}/{thread.rpartition('/')[2]}/threads", {"name": "t"}))[0] == 201
    member = f"{thread}/thread-members/{info['users']['Ada']}"
    assert (await rest("PATCH", thread, {"archived": True}))[0] == 200
    for method, path in (("PUT", member), ("DELETE", member), ("PUT", f"{thread}/thread-members/@me")):
        assert (await rest(method, path))[1]["code"] == 50083
    assert (await rest("PATCH", thread, {"archived": False}))[0] == 200
    assert (await rest("PUT", member))[0] == 204
    await guild.set_permissions("Stoa", permissions.BOT & ~permissions.MANAGE_THREADS)
    for body, status in (({"locked": True}, 403), ({"rate_limit_per_user": 5}, 403), ({"archived": True}, 200)):
        assert (await rest("PATCH", thread, body))[0] == status, body


async def test_a_deleted_category_leaves_its_channels_without_one(
    rest: Rest, info: dict[str, Any], sandbox: Server
) -> None:
    told: list[str] = []
    sandbox.world.listeners.append(lambda name, data: told.append(f"{name} {data.get('name')}"))
    assert (await rest("DELETE", f"/channels/{info['categories']['Lab']}"))[0] == 200
    assert told[-1] == "CHANNEL_DELETE Lab"
    assert "CHANNEL_UPDATE general" in told


async def test_files_over_10_mib_are_refused(rest: Rest, info: dict[str, Any]) -> None:
    path = f"/channels/{info['channels']['general']}/messages"

    def form(payload: dict[str, Any], size: int) -> aiohttp.FormData:
        data = aiohttp.FormData(quote_fields=False)
        data.add_field("payload_json", json.dumps(payload))
        data.add_field("files[0]", b"x" * size, filename="a b.bin")
        return data

    status, answer = await rest("POST", path, data=form({}, 10 * 2**20 + 1))
    assert (status, answer["code"]) == (413, 40005)
    status, answer = await rest("POST", path, data=form({}, 10))
    assert (status, answer["attachments"][0]["filename"]) == (200, "a_b.bin")
    async with aiohttp.ClientSession() as session, session.get(answer["attachments"][0]["url"]) as file:
        assert await file.read() == b"x" * 10


async def test_limits_are_told_and_kept(rest: Rest, info: dict[str, Any], judge: DiscordJudge, tmp_path: Path) -> None:
    path = f"/channels/{info['channels']['general']}/messages"
    answers = [await rest("POST", path, {"content": str(n)}) for n in range(6)]
    assert [status for status, _ in answers] == [200] * 5 + [429]
    assert answers[5][1]["global"] is False
    assert 0 < answers[5][1]["retry_after"] <= 5
    other = f"/channels/{info['channels']['proposals']}/messages"
    assert (await rest("POST", other, {"content": "a bucket of its own"}))[0] == 200
    topics = [await rest("PATCH", f"/channels/{info['channels']['general']}", {"topic": str(n)}) for n in range(3)]
    assert [status for status, _ in topics] == [200, 200, 429]
    assert topics[2][1]["retry_after"] > 500
    assert judge.judge_recorded(tmp_path) == []


async def test_fifty_requests_a_second_over_all(rest: Rest) -> None:
    answers = [await rest("GET", "/users/@me") for _ in range(25)]
    answers += [await rest("GET", "/gateway/bot") for _ in range(26)]
    assert [status for status, _ in answers[:50]] == [200] * 50
    assert answers[50][0] == 429
    assert answers[50][1]["global"] is True
    assert (await rest("POST", "/interactions/1/none/callback", {}))[1]["code"] == 10062
