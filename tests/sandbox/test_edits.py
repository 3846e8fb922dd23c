"""Edits of messages with files, and of plain messages into cards of Components V2."""

import json
from typing import Any

import aiohttp
import pytest

from sandbox.discord.interactions import COMPONENT
from sandbox.discord.wire import Server
from sandbox.people import Guild
from tests.discord_openapi import DiscordJudge
from tests.sandbox.bot import PNG
from tests.sandbox.conftest import Rest
from tests.sandbox.test_answers import asked, callback

V2 = 1 << 15
GALLERY, THUMBNAIL, FILE = 12, 11, 13
POLL = {"question": {"text": "Which?"}, "answers": [{"poll_media": {"text": name}} for name in "ab"], "duration": 1}
LOST = "UNFURLED_MEDIA_ITEM_REFERENCED_ATTACHMENT_NOT_FOUND"


@pytest.fixture(autouse=True)
def unhurried(sandbox: Server) -> None:
    """Each test makes more edits than Discord's limits take in a moment."""
    sandbox.rates.enforced = False


def words(said: str) -> dict[str, Any]:
    return {"type": 10, "content": said}


def showing(name: str, kind: int = GALLERY) -> dict[str, Any]:
    """A component that shows an uploaded file."""
    media = {"url": f"attachment://{name}"}
    if kind == GALLERY:
        return {"type": GALLERY, "items": [{"media": media}]}
    if kind == FILE:
        return {"type": FILE, "file": media}
    return {"type": 9, "components": [words("beside it")], "accessory": {"type": THUMBNAIL, "media": media}}


def card(said: str, *shown: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"flags": V2, "components": [{"type": 17, "components": [words(said), *shown]}]} | changes


def sent(body: dict[str, Any], *names: str) -> dict[str, Any]:
    """The options of a request with files of these names."""
    data = aiohttp.FormData(quote_fields=False)
    data.add_field("payload_json", json.dumps(body))
    for number, name in enumerate(names):
        data.add_field(f"files[{number}]", PNG, filename=name)
    return {"data": data}


def shown_id(message: dict[str, Any]) -> str:
    """The id of the attachment that the last component of a card shows."""
    last = message["components"][0]["components"][-1]
    media = last.get("file") or (last["items"][0]["media"] if "items" in last else last["accessory"]["media"])
    return str(media["attachment_id"])


@pytest.mark.parametrize("kind", [GALLERY, THUMBNAIL, FILE])
async def test_an_edit_lists_the_file_that_it_goes_on_showing(
    rest: Rest, info: dict[str, Any], guild: Guild, sandbox: Server, judge: DiscordJudge, kind: int
) -> None:
    messages = f"/channels/{info['channels']['general']}/messages"
    status, made = await rest("POST", messages, **sent(card("One", showing("a.png", kind)), "a.png"))
    first = shown_id(made)
    assert (status, made["attachments"]) == (200, []), "only files that nothing shows are listed"
    path = f"{messages}/{made['id']}"
    kept = {"attachments": [{"id": first, "filename": "a.png"}]}
    again = showing("a.png", kind)

    not_listed: list[dict[str, Any]] = [{}, {"attachments": []}]
    not_listed += [{"attachments": [{"id": str(int(first) + 1), "filename": "a.png"}]}]
    for unlisted in not_listed:
        status, refusal = await rest("PATCH", path, card("Two", again, **unlisted))
        assert (status, refusal["code"]) == (400, 50035)
        assert LOST in json.dumps(refusal["errors"])
    status, refusal = await rest("PATCH", path, card("Two", showing("b.png", kind), **kept))
    assert LOST in json.dumps(refusal["errors"]), "a name that the listed file does not have"
    assert (await guild.messages("general"))[0].text.startswith("One")

    status, edited = await rest("PATCH", path, card("Two", again, **kept))
    assert (status, shown_id(edited), edited["attachments"]) == (200, first, [])
    status, edited = await rest("PATCH", path, {"flags": V2})
    assert (status, shown_id(edited)) == (200, first), "an edit of neither leaves both"

    new = {"attachments": [{"id": 0, "filename": "b.png"}]}
    status, edited = await rest("PATCH", path, **sent(card("Three", showing("b.png", kind), **new), "b.png"))
    second = shown_id(edited)
    assert (status, second != first) == (200, True)
    status, refusal = await rest("PATCH", path, card("Four", again, **kept))
    assert (status, LOST in json.dumps(refusal["errors"])) == (400, True), "what was replaced is gone"
    status, refusal = await rest("PATCH", path, **sent(card("Four", showing("c.png", kind)), "c.png"))
    assert (status, LOST in json.dumps(refusal["errors"])) == (400, True), "a new file is listed too"

    both = {"attachments": [{"id": second, "filename": "b.png"}, {"id": "0", "filename": "c.png"}]}
    body = card("Four", showing("b.png", kind), showing("c.png", kind), **both)
    status, edited = await rest("PATCH", path, **sent(body, "c.png"))
    assert (status, shown_id(edited) not in (first, second), edited["attachments"]) == (200, True, [])
    status, edited = await rest("PATCH", path, card("Five", attachments=[]))
    assert (status, "attachment_id" in json.dumps(edited)) == (200, False)
    assert (await guild.messages("general"))[0].attachments == []
    assert judge.judge_recorded(sandbox.world.root) == []


async def test_a_file_that_nothing_shows_is_listed_and_not_shown(
    rest: Rest, info: dict[str, Any], guild: Guild, sandbox: Server, judge: DiscordJudge
) -> None:
    messages = f"/channels/{info['channels']['general']}/messages"
    status, made = await rest("POST", messages, **sent(card("One", showing("a.png")), "a.png", "hidden.png"))
    assert (status, [file["filename"] for file in made["attachments"]]) == (200, ["hidden.png"])
    assert [file.filename for file in (await guild.messages("general"))[0].attachments] == ["a.png"]
    hidden = {"id": made["attachments"][0]["id"], "filename": "hidden.png"}
    path = f"{messages}/{made['id']}"
    status, edited = await rest("PATCH", path, card("Two", showing("hidden.png"), attachments=[hidden]))
    assert (status, shown_id(edited), edited["attachments"]) == (200, hidden["id"], [])
    assert (await rest("POST", messages, **sent({"flags": V2}, "a.png")))[1]["code"] == 50006

    embed = {"image": {"url": "attachment://a.png"}, "footer": {"text": "f", "icon_url": "attachment://b.png"}}
    status, made = await rest("POST", messages, **sent({"embeds": [embed]}, "a.png", "b.png", "c.png"))
    assert [file["filename"] for file in made["attachments"]] == ["c.png"]
    assert made["embeds"][0]["image"]["url"].endswith("/a.png")
    assert made["embeds"][0]["footer"]["icon_url"].endswith("/b.png")
    status, edited = await rest("PATCH", f"{messages}/{made['id']}", {"embeds": []})
    assert len(edited["attachments"]) == 3, "they stay, and show by themselves"
    assert judge.judge_recorded(sandbox.world.root) == []


async def test_answers_list_the_files_that_they_go_on_showing(
    rest: Rest, info: dict[str, Any], sandbox: Server, judge: DiscordJudge
) -> None:
    """An update of the message pressed on, the end of a deferred answer, and an edit of it."""
    messages = f"/channels/{info['channels']['general']}/messages"
    made = (await rest("POST", messages, **sent(card("One", showing("a.png")), "a.png")))[1]
    pressed = asked(sandbox, COMPONENT, message_id=made["id"])
    update: dict[str, Any] = {"type": 7, "data": card("Two", showing("a.png"))}
    status, refusal = await rest("POST", callback(pressed), update)
    assert (status, LOST in json.dumps(refusal["errors"])) == (400, True)
    update["data"]["attachments"] = [{"id": shown_id(made), "filename": "a.png"}]
    assert (await rest("POST", callback(pressed), update))[0] == 204
    assert shown_id((await rest("GET", f"{messages}/{made['id']}"))[1]) == shown_id(made)

    waiting = asked(sandbox)
    assert (await rest("POST", callback(waiting), {"type": 5}))[0] == 204
    later = f"/webhooks/{info['application_id']}/{waiting.token}"
    status, refusal = await rest("POST", later, **sent(card("Done", showing("b.png")), "b.png"))
    assert (status, LOST in json.dumps(refusal["errors"])) == (400, True), "it is an edit of the deferred answer"
    new = {"attachments": [{"id": 0, "filename": "b.png"}]}
    status, done = await rest("POST", later, **sent(card("Done", showing("b.png"), **new), "b.png"))
    assert (status, done["attachments"]) == (200, [])
    original = f"{later}/messages/@original"
    assert (await rest("PATCH", original, card("More", showing("b.png"))))[0] == 400
    kept = {"attachments": [{"id": shown_id(done), "filename": "b.png"}]}
    status, edited = await rest("PATCH", original, card("More", showing("b.png"), **kept))
    assert (status, shown_id(edited)) == (200, shown_id(done))
    assert judge.judge_recorded(sandbox.world.root) == []


@pytest.mark.parametrize(
    ("plain", "key", "gone"),
    [
        ({"content": "x"}, "content", None),
        ({"content": "x"}, "content", ""),
        ({"embeds": [{"title": "t"}]}, "embeds", None),
        ({"embeds": [{"title": "t"}]}, "embeds", []),
        ({"poll": POLL}, "poll", None),
    ],
)
async def test_an_edit_into_a_card_takes_away_what_a_card_cannot_have(
    rest: Rest, info: dict[str, Any], guild: Guild, plain: dict[str, Any], key: str, gone: Any
) -> None:
    messages = f"/channels/{info['channels']['general']}/messages"
    made = (await rest("POST", messages, plain))[1]
    status, refusal = await rest("PATCH", f"{messages}/{made['id']}", card("A card"))
    assert (status, refusal["code"], list(refusal["errors"])) == (400, 50035, [key])
    status, edited = await rest("PATCH", f"{messages}/{made['id']}", card("A card", **{key: gone}))
    assert (status, edited["content"], edited["embeds"], "poll" in edited) == (200, "", [], False)
    assert (await rest("PATCH", f"{messages}/{made['id']}", {"flags": 0, "content": "back"}))[0] == 400
    assert [m.text for m in await guild.messages("general")] == ["A card"]


async def test_whom_a_message_pings(rest: Rest, info: dict[str, Any], guild: Guild, sandbox: Server) -> None:
    """A post all that it names, an answer only the users; without Mention Everyone no role that is not mentionable."""
    messages = f"/channels/{info['channels']['general']}/messages"
    ada, role = info["users"]["Ada"], info["roles"]["reviewer"]
    text = f"<@{ada}> <@&{role}> @everyone"

    def pinged(message: dict[str, Any]) -> tuple[int, list[str], bool]:
        return len(message["mentions"]), message["mention_roles"], message["mention_everyone"]

    assert pinged((await rest("POST", messages, {"content": text}))[1]) == (1, [role], True)
    answered = asked(sandbox)
    assert (await rest("POST", callback(answered), {"type": 4, "data": {"content": text}}))[0] == 204
    assert answered.original is not None
    assert pinged(answered.original.payload) == (1, [], False)
    later = f"/webhooks/{info['application_id']}/{answered.token}"
    assert pinged((await rest("POST", later, card(text)))[1]) == (1, [], False)
    assert pinged((await rest("PATCH", f"{later}/messages/@original", {"content": text}))[1]) == (1, [], False)
    said = await guild.person("Ada").say("general", "@everyone")
    assert (await rest("GET", f"{messages}/{said.id}"))[1]["mention_everyone"] is False
