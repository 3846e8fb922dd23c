"""What a bot can check by itself on the real Discord, and a list of clicks for the person beside it.

    STOA_DISCORD_TOKEN=… STOA_GUILD_ID=… python -m tests.discord_real

Take a server made for tests, with the bot invited and started once. It makes one channel and deletes it at the
end. Each answer is judged by Discord's API description too, where there is one. A bot presses no button and uses no
command, so that the second half of the story is the person's. With STOA_DISCORD_API it runs against the loopback one.
"""

import asyncio
import json
import os
import re
import secrets
import sys
from collections.abc import Awaitable, Mapping
from typing import Any

import aiohttp

from bot.server import IN_GUILD
from sandbox.discord import permissions
from tests.discord_openapi import DiscordJudge, find_description
from tests.sandbox.bot import PNG

Json = dict[str, Any]
V2, SUPPRESS = 1 << 15, 1 << 2
TEXT, GALLERY = 10, 12
COMMANDS = {"project", "allocation", "run", "catalogue", "cluster", "stoa", "Put on record"}
CLICKS = """
Now you, in the server, with a second account beside the first; each line tells what must be seen:
[ ] /stoa setup as the owner: every channel and role by name; once more: “nothing was changed”.
[ ] Give yourself the role of the admins, and of the reviewers; /stoa help as yourself and as the other: only one sees
    “As an admin”.
[ ] /project propose, all four fields: a private answer, a card with Join in the proposals, a thread under it.
[ ] Join from the other account: a private welcome; the card counts two people, one of them as a newcomer.
[ ] Confirm, under the post of the joining: the card says contributor.
[ ] /project scope: the project's channel comes, and the card links it.
[ ] /allocation request: the pools are suggested while you type; a card in the review channel.
[ ] Approve it as a reviewer who is not of the project: the buttons go, the channel tells it.
[ ] /run launch: recipes are suggested; an offer with the cost; Launch: the run's card, with a thread under it.
[ ] Watch it: one card whose curve grows, with alt text; where it is older than an hour, a newer card that it links.
[ ] /run show, once there is a curve: an answer to you alone, with the curve in it.
[ ] Launch a second run, then Compare on a card: both curves in one picture, with a legend one can read on a phone.
[ ] Pause, and once it is paused, Resume: the card's words and colour follow.
[ ] Config: the file opens. Sample, once there is a checkpoint: a form for the prompt, and its text in the thread.
[ ] A message's menu, Apps, Put on record: a post with a link that leads back to the message; once more: its number.
[ ] As a moderator, delete a run's card: it does not come back, and the run's posts go on in the thread.
[ ] Take “Send Messages” in the project's channel from the bot, then /project update: “Posting waits” in the review
    channel; give it back: the update comes, and the notice says that it resumes.
[ ] /project complete, with an outcome and what was learnt: an announcement with the people and the checkpoints.
[ ] On a phone: the cards, pictures and forms are whole, and nothing scrolls sideways.
[ ] Stop the bot for a minute and start it again: an old button works, and nothing is posted twice.
"""


class Check:
    """Requests to Discord as the bot, each answer judged, and what was seen so far."""

    def __init__(self, session: aiohttp.ClientSession, base: str, token: str) -> None:
        self._session, self._base, self._token = session, base.rstrip("/"), token
        self._judge = DiscordJudge() if find_description() else None
        self.failed = 0
        self.headers: Json = {}
        self.last = "nothing was asked"

    async def part(self, story: Awaitable[None]) -> None:
        """A part of the story; an answer that leaves it nothing to go on with ends it, as a failure."""
        try:
            await story
        except (AttributeError, KeyError, TypeError, StopIteration, aiohttp.ClientError, TimeoutError) as error:
            self.see("the story can go on", False, f"{self.last} ({error!r})")

    async def call(
        self, method: str, path: str, body: Json | None = None, files: Mapping[str, bytes] | None = None
    ) -> tuple[int, Any]:
        """Status and body of an answer; a 429 is waited for. A message mentions nobody."""
        if body is not None and re.search(r"/messages(/\d+)?$", path):
            body = {"allowed_mentions": {"parse": []}} | body
        self.last = f"no answer to {method} {path}"
        headers = {"Authorization": f"Bot {self._token}", "User-Agent": "DiscordBot (stoa check, 1)"}
        url = f"{self._base}/api/v10{path}"
        while True:
            sent: Json = {"json": body} if files is None else {"data": multipart(body, files)}
            async with self._session.request(method, url, headers=headers, **sent) as reply:
                told = await reply.json() if reply.content_type == "application/json" else None
                status, self.headers = reply.status, dict(reply.headers)
            if status != 429:
                break
            # A 429 from before Discord's API itself is no JSON.
            await asyncio.sleep(float(told["retry_after"] if told else self.headers.get("Retry-After", 5)))
        self.last = f"{method} {path} was answered {status} {told}"
        if self._judge is not None:
            exchange = {"method": method, "path": path, "request": body, "status": status, "response": told}
            for problem in self._judge.judge(exchange):
                self.see("Discord's API description fits", False, problem)
        return status, told

    def see(self, what: str, ok: bool, found: object = "") -> None:
        """Print one line, and count a failure."""
        self.failed += not ok
        print(f"{'✔' if ok else '✘'} {what}{'' if ok else f': {found}'}", flush=True)


def multipart(body: Json | None, files: Mapping[str, bytes]) -> aiohttp.FormData:
    """A body with files, by their names."""
    data = aiohttp.FormData(quote_fields=False)
    data.add_field("payload_json", json.dumps(body), content_type="application/json")
    for number, (name, content) in enumerate(files.items()):
        data.add_field(f"files[{number}]", content, filename=name, content_type="image/png")
    return data


async def look_at_the_server(check: Check, guild_id: str) -> None:
    """The token, the permissions of the bot's roles, and the commands that it has registered."""
    status, me = await check.call("GET", "/users/@me")
    check.see("the token is good", status == 200, me)
    status, guild = await check.call("GET", f"/guilds/{guild_id}")
    check.see("the bot is in the server", status == 200, guild)
    if check.failed:
        return
    _, member = await check.call("GET", f"/guilds/{guild_id}/members/{me['id']}")
    mine = [role for role in guild["roles"] if role["id"] in (guild_id, *member["roles"])]
    bits = 0
    for role in mine:
        bits |= int(role["permissions"])
    wanted = {name: getattr(permissions, name.upper(), 0) for name in IN_GUILD}
    lacking = [name for name, bit in wanted.items() if not bits & bit]
    check.see("its role has the permissions that Stoa needs", not lacking, f"grant {', '.join(lacking)}")
    check.see("and is no administrator", not bits & permissions.ADMINISTRATOR, "take Administrator away: it needs less")
    _, commands = await check.call("GET", f"/applications/{me['id']}/guilds/{guild_id}/commands")
    missing = COMMANDS - {command["name"] for command in commands}
    check.see("its commands are registered", not missing, f"start the bot first; missing: {', '.join(sorted(missing))}")


async def in_a_channel(check: Check, guild_id: str) -> None:
    """The rest, in a channel that the bot alone may write in, as /stoa setup makes them; it is deleted at the end."""
    _, me = await check.call("GET", "/users/@me")
    quiet: list[Json] = [{"id": guild_id, "type": 0, "allow": 0, "deny": permissions.SEND_MESSAGES}]
    quiet.append({"id": me["id"]} | own())
    body: Json = {"name": f"stoa-check-{secrets.token_hex(3)}", "type": 0, "topic": "Made by a check; may be deleted"}
    body |= {"permission_overwrites": quiet}
    status, channel = await check.call("POST", f"/guilds/{guild_id}/channels", body)
    check.see("it can make a channel", status == 201, channel)
    if status != 201:
        return
    try:
        for story in (pictures, post, history):
            await check.part(story(check, str(channel["id"])))
    finally:
        status, told = await check.call("DELETE", f"/channels/{channel['id']}")
        check.see("and delete it", status == 200, told)


def own(deny: int = 0) -> Json:
    """The bot's own overwrite in its channel."""
    return {"type": 1, "allow": permissions.SEND_MESSAGES, "deny": deny}


async def post(check: Check, channel: str) -> None:
    """What the delivery rests on: nonces, edits, threads, Components V2, headers, codes of errors."""
    messages = f"/channels/{channel}/messages"
    said: Json = {"content": "One **post**", "flags": SUPPRESS, "allowed_mentions": {"parse": []}}
    said |= {"nonce": secrets.token_hex(12), "enforce_nonce": True}
    _, first = await check.call("POST", messages, said)
    limits = {key.lower() for key in check.headers}
    named = {f"x-ratelimit-{name}" for name in ("limit", "remaining", "reset-after", "bucket")}
    check.see("answers carry the headers of rate limits", named <= limits, sorted(named - limits))
    _, second = await check.call("POST", messages, said)
    check.see("the same nonce posts once", first["id"] == second["id"], (first["id"], second["id"]))
    status, told = await check.call("POST", messages, said | {"nonce": "x" * 26})
    check.see("a nonce over 25 characters is refused", status == 400, told)
    status, told = await check.call("POST", messages, {"content": "x" * 2001})
    check.see("2,001 characters are refused as a form's error", told.get("code") == 50035 and "errors" in told, told)

    _, edited = await check.call("PATCH", f"{messages}/{first['id']}", {"content": "Edited"})
    check.see("a post is edited", edited.get("content") == "Edited", edited)
    status, thread = await check.call("POST", f"{messages}/{first['id']}/threads", {"name": "Below it"})
    check.see("a message's thread has the message's id", thread.get("id") == first["id"], thread)
    _, told = await check.call("POST", f"{messages}/{first['id']}/threads", {"name": "Again"})
    check.see("a second thread is refused with 160004", told.get("code") == 160004, told)
    status, told = await check.call("POST", f"/channels/{thread.get('id')}/messages", {"content": "In the thread"})
    check.see("it can post in the thread", status == 200, told)

    button = {"type": 2, "style": 3, "label": "Join", "custom_id": "join:1"}
    inner = [{"type": 10, "content": "## A card"}, {"type": 1, "components": [button]}]
    card: Json = {"flags": V2, "components": [{"type": 17, "accent_color": 0x0072B2, "components": inner}]}
    status, shown = await check.call("POST", messages, card)
    check.see("a card of Components V2 is accepted", status == 200 and bool(shown["flags"] & V2), shown)
    inner[0]["content"] = "## A card, edited"
    status, shown = await check.call("PATCH", f"{messages}/{shown.get('id')}", {"components": card["components"]})
    check.see("and edited in place", status == 200 and "edited" in str(shown["components"]), shown)
    _, told = await check.call("POST", messages, card | {"content": "beside it"})
    check.see("a card with content beside it is refused", told.get("code") == 50035, told)

    await check.call("DELETE", f"{messages}/{first['id']}")
    _, told = await check.call("PATCH", f"{messages}/{first['id']}", {"content": "Gone"})
    check.see("a deleted message answers 10008", told.get("code") == 10008, told)
    _, listed = await check.call("GET", messages)
    texts = [message["content"] for message in listed if message["type"] == 0]
    check.see("the history shows what is left", texts == [""], texts)


async def pictures(check: Check, channel: str) -> None:
    """What a run's card rests on: its picture stays while its text is edited, and gives way to a newer one."""
    messages = f"/channels/{channel}/messages"
    status, shown = await check.call("POST", messages, pictured("Step 1", "one.png"), {"one.png": PNG})
    first = picture_of(shown)
    check.see("a card shows the picture sent with it", status == 200 and first is not None, shown)
    check.see("and does not list it among its attachments", shown["attachments"] == [], shown["attachments"])
    card = f"{messages}/{shown['id']}"
    text_only = pictured("Step 2", "one.png") | {"attachments": [{"id": first, "filename": "one.png"}]}
    status, shown = await check.call("PATCH", card, text_only)
    kept = status == 200 and "Step 2" in str(shown["components"]) and picture_of(shown) == first
    check.see("its text is edited, and the picture that is listed stays", kept, shown)
    del text_only["attachments"]
    status, told = await check.call("PATCH", card, text_only)
    lost = "UNFURLED_MEDIA_ITEM_REFERENCED_ATTACHMENT_NOT_FOUND" in str(told.get("errors"))
    check.see("one that is not listed is refused", status == 400 and lost, told)
    status, shown = await check.call("PATCH", card, pictured("Step 3", "two.png"), {"two.png": PNG})
    check.see("a newer picture takes its place", status == 200 and picture_of(shown) not in (None, first), shown)
    words = [{"type": TEXT, "content": "Step 4"}]
    status, shown = await check.call("PATCH", card, {"flags": V2, "components": words, "attachments": []})
    check.see("and is dropped", status == 200 and "two.png" not in str(shown), shown)
    await check.call("DELETE", card)
    status, plain = await check.call("POST", messages, {"content": "Plain"})
    turned: Json = {"flags": V2, "components": words}
    status, told = await check.call("PATCH", f"{messages}/{plain['id']}", turned)
    check.see("a plain message cannot turn into a card that leaves its content", told.get("code") == 50035, told)
    status, told = await check.call("PATCH", f"{messages}/{plain['id']}", turned | {"content": None})
    check.see("and turns into one that takes it away", status == 200, told)
    await check.call("DELETE", f"{messages}/{plain['id']}")


def pictured(said: str, name: str) -> Json:
    """A card with an uploaded picture."""
    gallery = {"type": GALLERY, "items": [{"media": {"url": f"attachment://{name}"}, "description": "A curve"}]}
    inner = [{"type": 10, "content": said}, gallery]
    card = {"type": 17, "components": inner}
    return {"flags": V2, "components": [card], "attachments": [{"id": 0, "filename": name}]}


def picture_of(message: Json) -> str | None:
    """Which attachment a card shows."""
    gallery = next(part for part in message["components"][0]["components"] if part["type"] == GALLERY)
    found: str | None = gallery["items"][0]["media"].get("attachment_id")
    return found


async def history(check: Check, channel: str) -> None:
    """How the bot tells a channel that holds nothing from one whose history it may not read."""
    _, me = await check.call("GET", "/users/@me")
    messages, overwrite = f"/channels/{channel}/messages", f"/channels/{channel}/permissions/{me['id']}"
    never = f"{messages}/{me['id']}"
    _, told = await check.call("GET", never)
    check.see("a message that never was answers 10008", told.get("code") == 10008, told)
    status, told = await check.call("PUT", overwrite, own(permissions.READ_MESSAGE_HISTORY))
    check.see("it can change who may do what in a channel", status == 204, told)
    status, told = await check.call("GET", messages)
    check.see("without Read Message History the history is empty", told == [], told)
    status, told = await check.call("GET", never)
    check.see("and a single message refused", status == 403, told)


async def main() -> int:
    """All of it; the exit status."""
    token, guild_id = os.environ.get("STOA_DISCORD_TOKEN", ""), os.environ.get("STOA_GUILD_ID", "")
    if not (token and guild_id):
        print("Set STOA_DISCORD_TOKEN and STOA_GUILD_ID, of a server made for tests.")
        return 2
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30), trust_env=True) as session:
        check = Check(session, os.environ.get("STOA_DISCORD_API") or "https://discord.com", token)
        await check.part(look_at_the_server(check, guild_id))
        if not check.failed:
            await check.part(in_a_channel(check, guild_id))
        print(f"\n{check.failed} failed." if check.failed else "\nAll is as Stoa takes it to be.")
        print(CLICKS)
        return 1 if check.failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
