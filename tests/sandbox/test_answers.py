"""Which answers to an interaction are taken, for how long, and by whose act there is one at all."""

import json
import time
from typing import Any

import aiohttp
import pytest

from sandbox.discord import interactions
from sandbox.discord.interactions import AUTOCOMPLETE, COMPONENT, MODAL
from sandbox.discord.state import Interaction
from sandbox.discord.wire import Server
from sandbox.people import ActionError, Guild
from tests.discord_openapi import DiscordJudge
from tests.sandbox.conftest import Rest

FIELD = {"type": 4, "custom_id": "f", "style": 1}
UPDATE: dict[str, Any] = {"type": 7, "data": {"content": "changed"}}
SAID: dict[str, Any] = {"type": 4, "data": {"content": "said"}}


def asked(sandbox: Server, kind: int = 2, channel: str = "general", message_id: str = "") -> Interaction:
    """An interaction of Ada's that waits for its first answer."""
    world = sandbox.world
    ada, place = interactions.person(world, "Ada"), interactions.find_channel(world, channel)
    source = world.message(place["id"], message_id) if message_id else None
    return interactions.start(world, kind, ada["id"], place, {"custom_id": "x"}, source)


def callback(interaction: Interaction) -> str:
    return f"/interactions/{interaction.id}/{interaction.token}/callback"


def form(rows: int = 1, **changes: Any) -> dict[str, Any]:
    """An answer that opens a form."""
    labels = [{"type": 18, "label": "L", "component": FIELD | {"custom_id": str(n)}} for n in range(rows)]
    return {"type": 9, "data": {"custom_id": "m", "title": "T", "components": labels} | changes}


def asking(**changes: Any) -> dict[str, Any]:
    """An answer that opens a form with a select of two options, or what takes its place."""
    options = [{"label": name, "value": name} for name in "ab"]
    select: dict[str, Any] = {"type": 3, "custom_id": "s", "options": options} | changes
    if select["type"] in (5, 19):
        del select["options"]
    return form(components=[{"type": 18, "label": "L", "component": select}])


def choices(count: int) -> dict[str, Any]:
    return {"type": 8, "data": {"choices": [{"name": str(n), "value": str(n)} for n in range(count)]}}


@pytest.mark.parametrize(
    ("kind", "right", "wrong", "place"),
    [
        (2, form(5), form(6), "components"),
        (2, asking(min_values=1), asking(min_values=0), "components"),
        (2, asking(min_values=0, required=False), asking(min_values=2), "components"),
        (2, asking(disabled=False), asking(disabled=True), "components"),
        (2, asking(type=5), asking(type=5, min_values=3, max_values=2), "components"),
        (2, asking(type=22, min_values=2), asking(type=22, min_values=3), "components"),
        (2, asking(type=19, max_values=3), asking(type=19, min_values=0, max_values=3), "components"),
        (2, asking(id=2**31 - 1), asking(id=2**31), "components"),
        (2, form(title="t" * 45), form(title="t" * 46), "title"),
        (COMPONENT, form(), UPDATE | {"data": {"content": "x" * 2001}}, "content"),
        (MODAL, SAID, form(), "type"),
        (AUTOCOMPLETE, choices(25), choices(26), "choices"),
        (AUTOCOMPLETE, choices(0), SAID, "type"),
    ],
)
async def test_only_a_fitting_answer_is_taken(
    rest: Rest,
    info: dict[str, Any],
    sandbox: Server,
    kind: int,
    right: dict[str, Any],
    wrong: dict[str, Any],
    place: str,
) -> None:
    general = f"/channels/{info['channels']['general']}/messages"
    pressed = (await rest("POST", general, {"content": "a card"}))[1]["id"] if kind == COMPONENT else ""
    interaction = asked(sandbox, kind, message_id=pressed)
    status, refusal = await rest("POST", callback(interaction), wrong)
    assert (status, refusal["code"]) == (400, 50035)
    assert place in refusal["errors"].get("data", refusal["errors"])
    assert (await rest("POST", callback(interaction), right))[0] == 204


async def test_a_token_is_good_after_the_answer_and_for_its_time(
    rest: Rest, info: dict[str, Any], guild: Guild, sandbox: Server, judge: DiscordJudge
) -> None:
    interaction = asked(sandbox)
    later = f"/webhooks/{info['application_id']}/{interaction.token}"
    assert (await rest("POST", later, {"content": "too early"}))[1]["code"] == 10015
    assert (await rest("POST", callback(interaction), SAID))[0] == 204
    assert (await rest("POST", later, {"content": "more"}))[0] == 200
    await guild.token_lasts(0.0)
    for method, path in (("POST", later), ("PATCH", f"{later}/messages/@original")):
        assert (await rest(method, path, {"content": "too late"}))[1]["code"] == 50027
    late = asked(sandbox)
    late.created = time.monotonic() - interactions.FIRST_ANSWER_SECONDS
    assert (await rest("POST", callback(late), SAID))[1]["code"] == 10062
    assert [m.text for m in await guild.messages("general")] == ["said", "more"]
    assert judge.judge_recorded(sandbox.world.root) == []


async def test_what_was_deleted_meanwhile_takes_no_answer(
    rest: Rest, info: dict[str, Any], guild: Guild, sandbox: Server, judge: DiscordJudge
) -> None:
    omar, general = guild.person("Omar"), f"/channels/{info['channels']['general']}/messages"
    card = (await rest("POST", general, {"content": "a card"}))[1]["id"]
    pressed, waiting = asked(sandbox, COMPONENT, message_id=card), asked(sandbox)
    await omar.delete("general", card)
    assert (await rest("POST", callback(pressed), UPDATE))[1]["code"] == 10008
    assert (await rest("POST", callback(waiting), {"type": 5}))[0] == 204
    assert waiting.original is not None
    await omar.delete("general", waiting.original.id)
    later = f"/webhooks/{info['application_id']}/{waiting.token}"
    for method, path in (("POST", later), ("PATCH", f"{later}/messages/@original")):
        assert (await rest(method, path, {"content": "x"}))[1]["code"] == 10008
    assert await guild.messages("general") == []

    answered, silent = asked(sandbox, channel="proposals"), asked(sandbox, channel="proposals")
    assert (await rest("POST", callback(answered), SAID))[0] == 204
    await omar.delete_channel("proposals")
    assert (await rest("POST", callback(silent), SAID))[1]["code"] == 10003
    later = f"/webhooks/{info['application_id']}/{answered.token}"
    assert (await rest("POST", later, {"content": "x"}))[1]["code"] == 10003
    assert judge.judge_recorded(sandbox.world.root) == []


async def test_files_stay_where_an_edit_is_of_words_alone(
    rest: Rest, info: dict[str, Any], sandbox: Server, judge: DiscordJudge
) -> None:
    """An edit that brings a file keeps those that it lists, and an update of the message pressed on only these."""
    general = f"/channels/{info['channels']['general']}/messages"

    def with_file(name: str, body: dict[str, Any]) -> aiohttp.FormData:
        data = aiohttp.FormData(quote_fields=False)
        data.add_field("payload_json", json.dumps(body))
        data.add_field("files[0]", b"x", filename=name)
        return data

    first = (await rest("POST", general, data=with_file("a.txt", {})))[1]
    card = f"{general}/{first['id']}"
    listed = {"attachments": [{"id": first["attachments"][0]["id"]}, {"id": "0", "filename": "b.txt"}]}
    edits: list[tuple[dict[str, Any], list[str]]] = [
        ({"body": {"content": "words"}}, ["a.txt"]),
        ({"data": with_file("b.txt", listed)}, ["a.txt", "b.txt"]),
        ({"data": with_file("c.txt", {"content": "words"})}, ["c.txt"]),
    ]
    for changed, names in edits:
        shown = (await rest("PATCH", card, **changed))[1]
        assert [file["filename"] for file in shown["attachments"]] == names
    pressed = asked(sandbox, COMPONENT, message_id=first["id"])
    assert (await rest("POST", callback(pressed), UPDATE))[0] == 204
    assert (await rest("GET", card))[1]["attachments"] == []
    assert judge.judge_recorded(sandbox.world.root) == []


async def test_a_client_shows_each_person_their_own(
    rest: Rest, info: dict[str, Any], guild: Guild, sandbox: Server
) -> None:
    """What is for another alone cannot be pressed, and a command for administrators is shown to them only."""
    go = {"type": 1, "components": [{"type": 2, "style": 1, "label": "Go", "custom_id": "go"}]}
    interaction = asked(sandbox)
    await rest("POST", callback(interaction), {"type": 4, "data": {"content": "x", "flags": 64, "components": [go]}})
    assert interaction.original is not None
    with pytest.raises(ActionError, match="grace sees no message"):
        await guild.person("Grace").press(interaction.original.id, "Go")
    user = interactions.person(sandbox.world, "Ada")
    assert interactions.press(sandbox.world, user, interaction.original.id, "Go", None).source is interaction.original

    commands = f"/applications/{info['application_id']}/guilds/{info['guild_id']}/commands"
    owners = {"name": "setup", "description": "d", "default_member_permissions": "0"}
    assert (await rest("PUT", commands, [owners, {"name": "open", "description": "d"}]))[0] == 200
    with pytest.raises(ActionError, match="/setup is not shown to ada"):
        await guild.person("Ada").command("setup")
    for name, shown in (("Ada", ["open"]), ("Omar", ["open", "setup"])):
        page = await guild.call("GET", "/page", user=name)
        assert sorted(command["name"] for command in page["commands"]) == shown
    omar, general = interactions.person(sandbox.world, "Omar"), interactions.find_channel(sandbox.world, "general")
    assert interactions.run_command(sandbox.world, omar, general, "setup", {}).event["data"]["name"] == "setup"
