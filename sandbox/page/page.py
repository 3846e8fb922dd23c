"""The page at `/`: this Discord in a browser, for the people of its guild. What they do goes through `control`.

The server listens on loopback, but any web page in the same browser could send requests there, also under a name of
its own that it lets point to 127.0.0.1: `here_only` refuses what does not come from this server's own page.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web
from yarl import URL

from sandbox.discord import permissions
from sandbox.discord.commands import offered
from sandbox.discord.errors import Json
from sandbox.discord.interactions import find_channel, person
from sandbox.discord.state import CATEGORY, THREADS, Message, World
from sandbox.discord.wire import reply, server_of, world_of

FILES = Path(__file__).parent / "files"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
NAMES = ("127.0.0.1", "localhost", "::1")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURE = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
# Who the people of a new sandbox are in the demo's story; others are what their roles say.
ABOUT = {"Ada": "a project's lead", "Grace": "a contributor", "Rosa": "a reviewer", "Omar": "an admin"}
MESSAGES_AT_ONCE = 50
MOST_WAITING = 2000
ALIVE_SECONDS = 15.0
# Events that change nothing on the page.
UNSEEN = {"INTERACTION_CREATE", "THREAD_MEMBERS_UPDATE", "GUILD_MEMBERS_CHUNK"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def here_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuses requests under a foreign name or from a foreign page."""
    try:
        name = URL(f"http://{request.host}").host
    except ValueError:
        name = None
    origin = request.headers.get("Origin")
    if name not in NAMES or origin not in (None, f"http://{request.host}"):
        return web.Response(status=403, text="This server answers only its own page and programs on this machine.")
    return await handler(request)


@dataclass(eq=False)
class Reader:
    """One open page, and what it has still to be told; None ends it."""

    user_id: str
    waiting: asyncio.Queue[str | None] = field(default_factory=lambda: asyncio.Queue(MOST_WAITING))


class Feed:
    """All open pages of one server: each is told what its person may see."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.readers: set[Reader] = set()
        world.listeners.append(self._heard)
        world.whisper = self._whispered

    def _heard(self, name: str, data: Json) -> None:
        if not self.readers or name in UNSEEN:
            return
        if not name.startswith("MESSAGE_"):
            self._tell({"kind": "guild"}, self.readers)
            return
        channel = self.world.channels[data["channel_id"]]
        allowed = [
            reader
            for reader in self.readers
            if self.world.permissions(reader.user_id, channel) & permissions.VIEW_CHANNEL
        ]
        self._tell(_message_event(name, data, private=False), allowed)

    def _whispered(self, name: str, message: Message) -> None:
        own = [reader for reader in self.readers if reader.user_id == message.ephemeral_for]
        self._tell(_message_event(name, message.payload, private=True), own)

    def _tell(self, event: Json, readers: list[Reader] | set[Reader]) -> None:
        said = json.dumps(event)
        for reader in list(readers):
            try:
                reader.waiting.put_nowait(said)
            except asyncio.QueueFull:  # a page that sleeps: it reads everything anew when it comes back
                self.readers.discard(reader)

    async def close(self, _: web.Application) -> None:
        for reader in self.readers:
            if not reader.waiting.full():
                reader.waiting.put_nowait(None)


def _message_event(name: str, payload: Json, *, private: bool) -> Json:
    if name == "MESSAGE_DELETE":
        return {"kind": "gone", "id": payload["id"], "channel_id": payload["channel_id"]}
    return {"kind": "message", "message": payload | {"private": private}}


FEED = web.AppKey("feed", Feed)


async def stream(request: web.Request) -> web.StreamResponse:
    """Server-sent events: messages as they come, change and go, and word that the guild has changed."""
    feed = request.app[FEED]
    reader = Reader(person(feed.world, request.query["user"])["id"])
    response = web.StreamResponse(headers=SECURE | {"Content-Type": "text/event-stream"})
    await response.prepare(request)
    feed.readers.add(reader)
    try:
        await response.write(b"retry: 500\n\n")
        while reader in feed.readers or not reader.waiting.empty():
            try:
                said = await asyncio.wait_for(reader.waiting.get(), ALIVE_SECONDS)
            except TimeoutError:
                await response.write(b": still here\n\n")
                continue
            if said is None:
                break
            await response.write(f"data: {said}\n\n".encode())
    except ConnectionError:
        pass
    finally:
        feed.readers.discard(reader)
    return response


async def view(request: web.Request) -> web.Response:
    """The guild as one person sees it; without `user`, as the first of them."""
    world = world_of(request)
    people = [user for user in world.users.values() if not user.get("bot") and user["id"] in world.members]
    you = person(world, request.query["user"]) if "user" in request.query else people[0]
    bot = world.users[world.application_id]
    return reply(
        {
            "guild": {"id": world.guild_id, "name": world.guild()["name"]},
            "you": you["id"],
            "bot": {"id": bot["id"], "name": bot["username"], "connected": server_of(request).gateway.connected},
            "people": [
                {"id": user["id"], "name": user["global_name"], "about": _about(world, user)} for user in people
            ],
            "roles": [{"id": role["id"], "name": role["name"]} for role in world.roles.values()],
            "channels": _channels(world, you["id"]),
            "commands": [c for c in world.commands.values() if offered(c, world.permissions(you["id"]))],
        }
    )


def _about(world: World, user: Json) -> str:
    roles = ", ".join(world.roles[role_id]["name"] for role_id in world.members[user["id"]]["roles"])
    return ABOUT.get(user["global_name"]) or roles or "a newcomer"


def _channels(world: World, user_id: str) -> list[Json]:
    """What a person sees of the channels: categories, channels, threads."""
    shown = []
    for channel in world.channels.values():
        bits = world.permissions(user_id, channel)
        if not bits & permissions.VIEW_CHANNEL:
            continue
        thread = channel["type"] in THREADS
        writes = permissions.SEND_MESSAGES_IN_THREADS if thread else permissions.SEND_MESSAGES
        seen = {key: channel.get(key) for key in ("id", "type", "name", "topic", "parent_id", "position")}
        seen |= {
            "last_message_id": channel.get("last_message_id"),
            "archived": thread and channel["thread_metadata"]["archived"],
            "messages": len(world.messages[channel["id"]]),
            "writes": channel["type"] != CATEGORY and bool(bits & writes),
        }
        shown.append(seen)
    return shown


async def read(request: web.Request) -> web.Response:
    """The newest messages of a channel, or the newest before one, oldest first."""
    world = world_of(request)
    user, channel = person(world, request.query["user"]), find_channel(world, request.match_info["channel"])
    if not world.permissions(user["id"], channel) & permissions.VIEW_CHANNEL:
        return reply({"error": f"{user['global_name']} cannot see #{channel['name']}."}, 400)
    before = int(request.query.get("before", 0))
    kept = [m for m in world.messages[channel["id"]].values() if not before or int(m.id) < before]
    kept.sort(key=lambda message: int(message.id))
    newest = kept[-MESSAGES_AT_ONCE:]
    return reply({"messages": [m.payload | {"private": False} for m in newest], "more": len(newest) < len(kept)})


async def _file(request: web.Request) -> web.StreamResponse:
    path = FILES / request.match_info.get("name", "index.html")
    if path.suffix not in TYPES or path.parent != FILES or not path.is_file():
        raise web.HTTPNotFound
    return web.FileResponse(path, headers=SECURE | {"Content-Type": f"{TYPES[path.suffix]}; charset=utf-8"})


def add_routes(app: web.Application, world: World) -> None:
    feed = app[FEED] = Feed(world)
    app.on_shutdown.append(feed.close)
    app.router.add_routes(
        [
            web.get("/", _file),
            web.get("/page/{name}", _file),
            web.get("/sandbox/page", view),
            web.get("/sandbox/page/stream", stream),
            web.get("/sandbox/page/channels/{channel}", read),
        ]
    )
