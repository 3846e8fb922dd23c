"""REST: threads and who is in them."""

from aiohttp import web

from sandbox.discord import messages, permissions
from sandbox.discord.attachments import Draft
from sandbox.discord.errors import ApiError, Json
from sandbox.discord.form import Form
from sandbox.discord.messages import HAS_THREAD
from sandbox.discord.rest_channels import ARCHIVE_MINUTES
from sandbox.discord.rest_guild import in_guild
from sandbox.discord.state import PRIVATE_THREAD, PUBLIC_THREAD, TEXT, THREADS, World, now_iso
from sandbox.discord.wire import json_object, reply, world_of

THREAD_CREATED, THREAD_STARTER = 18, 21
MAX_ACTIVE = 1000


def _checked(form: Form, body: Json) -> None:
    form.text(body, "name", 1, 100, required=True)
    form.choice(body, "auto_archive_duration", ARCHIVE_MINUTES)
    form.integer(body, "rate_limit_per_user", 0, 21_600)
    form.close()


def _add_thread(world: World, parent: Json, body: Json, thread_id: str, kind: int) -> Json:
    if sum(not thread["thread_metadata"]["archived"] for thread in world.threads()) >= MAX_ACTIVE:
        raise ApiError(160006)
    now = now_iso()
    thread: Json = {
        "id": thread_id,
        "type": kind,
        "guild_id": world.guild_id,
        "parent_id": parent["id"],
        "owner_id": world.application_id,
        "name": body["name"],
        "last_message_id": None,
        "flags": 0,
        "rate_limit_per_user": body.get("rate_limit_per_user") or 0,
        "message_count": 0,
        "member_count": 1,
        "total_message_sent": 0,
        "thread_metadata": {
            "archived": False,
            "archive_timestamp": now,
            "auto_archive_duration": body.get("auto_archive_duration") or 4320,
            "locked": False,
            "create_timestamp": now,
        },
    }
    if kind == PRIVATE_THREAD:
        thread["thread_metadata"]["invitable"] = bool(body.get("invitable", True))
    world.channels[thread_id] = thread
    world.messages[thread_id] = {}
    world.thread_members[thread_id] = {}
    member = add_member(world, thread, world.application_id)
    world.dispatch("THREAD_CREATE", thread | {"newly_created": True, "member": member})
    return thread | {"member": member}


def add_member(world: World, thread: Json, user_id: str) -> Json:
    member = {"id": thread["id"], "user_id": user_id, "join_timestamp": now_iso(), "flags": 0}
    world.thread_members[thread["id"]].setdefault(user_id, member)
    thread["member_count"] = len(world.thread_members[thread["id"]])
    return world.thread_members[thread["id"]][user_id]


async def from_message(request: web.Request) -> web.Response:
    world, body, form = world_of(request), json_object(request), Form()
    channel = world.channel(request.match_info["channel_id"])
    world.require(channel, permissions.CREATE_PUBLIC_THREADS)
    if channel["type"] != TEXT:
        raise ApiError(50024)
    message = world.message(channel["id"], request.match_info["message_id"])
    _checked(form, body)
    if message.id in world.channels:
        raise ApiError(160004)
    thread = _add_thread(world, channel, body, message.id, PUBLIC_THREAD)
    starter = messages.build(
        world, thread["id"], message.payload["author"], Draft({"allowed_mentions": {"parse": []}}), kind=THREAD_STARTER
    )
    place = {"type": 0, "channel_id": channel["id"], "message_id": message.id, "guild_id": world.guild_id}
    shown = {key: value for key, value in message.payload.items() if key not in ("referenced_message", "thread")}
    starter.payload |= {"message_reference": place, "referenced_message": shown}
    world.messages[thread["id"]][starter.id] = starter
    message.payload["flags"] |= HAS_THREAD
    message.payload["thread"] = world.channels[message.id]
    world.dispatch("MESSAGE_UPDATE", message.payload | {"guild_id": world.guild_id})
    return reply(thread, 201)


async def without_message(request: web.Request) -> web.Response:
    world, body, form = world_of(request), json_object(request), Form()
    channel = world.channel(request.match_info["channel_id"])
    kind = form.choice(body, "type", set(THREADS)) or PRIVATE_THREAD
    needed = permissions.CREATE_PUBLIC_THREADS if kind == PUBLIC_THREAD else permissions.CREATE_PRIVATE_THREADS
    world.require(channel, needed)
    if channel["type"] != TEXT:
        raise ApiError(50024)
    _checked(form, body)
    thread = _add_thread(world, channel, body, world.ids.next(), kind)
    if kind == PUBLIC_THREAD:
        note = messages.build(
            world,
            channel["id"],
            world.users[world.application_id],
            Draft({"content": body["name"]}),
            kind=THREAD_CREATED,
        )
        place = {"type": 0, "channel_id": thread["id"], "guild_id": world.guild_id}
        note.payload["message_reference"] = place
        messages.post(world, note)
    return reply(thread, 201)


def _thread(request: web.Request) -> Json:
    world = world_of(request)
    thread = world.channel(request.match_info["channel_id"])
    if thread["type"] not in THREADS:
        raise ApiError(50024)
    world.require(thread, permissions.VIEW_CHANNEL)
    return thread


def _require_active(thread: Json) -> None:
    """Raises ApiError 50083 for an archived thread, which nobody joins or leaves."""
    if thread["thread_metadata"]["archived"]:
        raise ApiError(50083)


def _target(request: web.Request) -> str:
    world = world_of(request)
    user_id = request.match_info.get("user_id", "@me")
    if user_id == "@me":
        return world.application_id
    world.member(user_id)
    return user_id


async def join(request: web.Request) -> web.Response:
    world, thread, user_id = world_of(request), _thread(request), _target(request)
    _require_active(thread)
    new = user_id not in world.thread_members[thread["id"]]
    member = add_member(world, thread, user_id)
    if new:
        added = member | {"member": world.members[user_id], "presence": None}
        counts = {"id": thread["id"], "guild_id": world.guild_id, "member_count": thread["member_count"]}
        world.dispatch("THREAD_MEMBERS_UPDATE", counts | {"added_members": [added], "removed_member_ids": []})
    return reply(status=204)


async def leave(request: web.Request) -> web.Response:
    world, thread, user_id = world_of(request), _thread(request), _target(request)
    _require_active(thread)
    if user_id != world.application_id:
        world.require(thread, permissions.MANAGE_THREADS)
    world.thread_members[thread["id"]].pop(user_id, None)
    thread["member_count"] = len(world.thread_members[thread["id"]])
    return reply(status=204)


async def member(request: web.Request) -> web.Response:
    world, thread = world_of(request), _thread(request)
    if found := world.thread_members[thread["id"]].get(_target(request)):
        return reply(found)
    raise ApiError(10007)


async def members(request: web.Request) -> web.Response:
    return reply(list(world_of(request).thread_members[_thread(request)["id"]].values()))


async def active(request: web.Request) -> web.Response:
    in_guild(request)
    world = world_of(request)
    open_threads = [t for t in world.threads() if not t["thread_metadata"]["archived"]]
    own = [
        world.thread_members[t["id"]][world.application_id]
        for t in open_threads
        if world.application_id in world.thread_members[t["id"]]
    ]
    return reply({"threads": open_threads, "members": own, "has_more": False})


async def archived(request: web.Request) -> web.Response:
    world = world_of(request)
    parent = world.channel(request.match_info["channel_id"])
    world.require(parent, permissions.VIEW_CHANNEL | permissions.READ_MESSAGE_HISTORY)
    closed = [t for t in world.threads() if t["parent_id"] == parent["id"] and t["thread_metadata"]["archived"]]
    return reply({"threads": closed, "members": [], "has_more": False})


ROUTES = [
    web.post("/channels/{channel_id}/messages/{message_id}/threads", from_message),
    web.post("/channels/{channel_id}/threads", without_message),
    web.get("/channels/{channel_id}/threads/archived/public", archived),
    web.get("/channels/{channel_id}/thread-members", members),
    web.put("/channels/{channel_id}/thread-members/@me", join),
    web.delete("/channels/{channel_id}/thread-members/@me", leave),
    web.get("/channels/{channel_id}/thread-members/{user_id}", member),
    web.put("/channels/{channel_id}/thread-members/{user_id}", join),
    web.delete("/channels/{channel_id}/thread-members/{user_id}", leave),
    web.get("/guilds/{guild_id}/threads/active", active),
]
