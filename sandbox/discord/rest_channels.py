"""REST: guild channels and their permission overwrites."""

from typing import Any

from aiohttp import web

from sandbox.discord import permissions
from sandbox.discord.errors import ApiError, Json
from sandbox.discord.form import Form
from sandbox.discord.messages import HAS_THREAD
from sandbox.discord.rest_guild import in_guild
from sandbox.discord.state import CATEGORY, TEXT, THREADS, World
from sandbox.discord.wire import json_object, reply, server_of, world_of

ARCHIVE_MINUTES = {60, 1440, 4320, 10080}
MAX_CHANNELS, MAX_IN_CATEGORY = 500, 50


def channel_name(name: str, kind: int) -> str:
    """A text channel's name as Discord keeps it: lower case, spaces as dashes."""
    return name if kind == CATEGORY else "-".join(name.lower().split())


def _overwrites(form: Form, listed: list[Any], world: World, channel: Json | None = None) -> list[Json]:
    """The overwrites that a request sets, in a new channel or in `channel`.

    Raises ApiError 50013 where they allow or deny what the bot may not.
    """
    out: list[Json] = []
    for index, item in enumerate(listed):
        here = form.at("permission_overwrites", index)
        if not isinstance(item, dict) or not str(item.get("id", "")).isdigit():
            here.at("id").fault("NUMBER_TYPE_COERCE", "Value is not snowflake.")
            continue
        target = str(item["id"])
        kind = here.choice(item, "type", {0, 1})
        kind = (0 if target in world.roles else 1) if kind is None else kind
        if target not in (world.roles if kind == 0 else world.users):
            raise ApiError(10011 if kind == 0 else 10013)
        bits = [here.integer(item, key, 0, 2**63 - 1) or 0 for key in ("allow", "deny")]
        out.append({"id": target, "type": kind, "allow": str(bits[0]), "deny": str(bits[1])})
    if any((int(o["allow"]) | int(o["deny"])) & ~_grantable(world, channel) for o in out):
        raise ApiError(50013)
    return out


def _grantable(world: World, channel: Json | None) -> int:
    """What the bot may allow or deny: what it may do itself in the guild or the channel's category.

    Manage Roles is an administrator's to give in a new channel; with an overwrite of it in `channel` all may be given.
    """
    own = world.permissions(world.application_id)
    if channel is None:
        return own if own & permissions.ADMINISTRATOR else own & ~permissions.MANAGE_ROLES
    if parent := world.channels.get(channel["parent_id"] or ""):
        own |= world.permissions(world.application_id, parent)
    held = {world.application_id, *world.members[world.application_id]["roles"]}
    mine = [o for o in channel["permission_overwrites"] if o["id"] in held]
    return permissions.ALL if any(int(o["allow"]) & permissions.MANAGE_ROLES for o in mine) else own


def _checked(form: Form, body: Json, world: World, *, creating: bool) -> None:
    form.text(body, "name", 1, 100, required=creating)
    form.text(body, "topic", 0, 1024)
    form.choice(body, "type", {TEXT, CATEGORY})
    form.integer(body, "position", 0, 2**31 - 1)
    form.integer(body, "rate_limit_per_user", 0, 21_600)
    form.choice(body, "default_auto_archive_duration", ARCHIVE_MINUTES)
    parent_id = body.get("parent_id")
    if parent_id is not None:
        parent = world.channels.get(str(parent_id))
        inside = [c for c in world.guild_channels() if c["parent_id"] == str(parent_id)]
        if parent is None or parent["type"] != CATEGORY:
            form.at("parent_id").fault("CHANNEL_PARENT_INVALID", "Category does not exist")
        elif len(inside) >= MAX_IN_CATEGORY:
            form.at("parent_id").fault(
                "CHANNEL_PARENT_MAX_CHANNELS", "Maximum number of channels in category reached (50)"
            )


async def list_channels(request: web.Request) -> web.Response:
    in_guild(request)
    return reply(world_of(request).guild_channels())


async def create_channel(request: web.Request) -> web.Response:
    in_guild(request)
    world, body, form = world_of(request), json_object(request), Form()
    world.require(None, permissions.MANAGE_CHANNELS)
    _checked(form, body, world, creating=True)
    listed = form.items(body, "permission_overwrites", 0, 100)
    overwrites = _overwrites(form, listed, world)
    form.close()
    if len(world.guild_channels()) >= MAX_CHANNELS:
        raise ApiError(30013)
    kind = body.get("type") or TEXT
    parent_id = None if body.get("parent_id") is None else str(body["parent_id"])
    if parent_id and "permission_overwrites" not in body:
        overwrites = [dict(o) for o in world.channels[parent_id]["permission_overwrites"]]
    channel = world.add_channel(
        channel_name(body["name"], kind),
        kind,
        parent_id=parent_id,
        topic=body.get("topic"),
        overwrites=overwrites,
        position=body.get("position"),
        nsfw=bool(body.get("nsfw")),
        slow_mode=body.get("rate_limit_per_user") or 0,
    )
    world.dispatch("CHANNEL_CREATE", channel)
    return reply(channel, 201)


async def get_channel(request: web.Request) -> web.Response:
    world = world_of(request)
    channel = world.channel(request.match_info["channel_id"])
    world.require(channel, permissions.VIEW_CHANNEL)
    return reply(channel)


async def modify_channel(request: web.Request) -> web.Response:
    world, body, form = world_of(request), json_object(request), Form()
    channel = world.channel(request.match_info["channel_id"])
    if channel["type"] in THREADS:
        return _modify_thread(request, channel, body, form)
    world.require(channel, permissions.MANAGE_CHANNELS)
    _checked(form, body, world, creating=False)
    overwrites = _overwrites(form, form.items(body, "permission_overwrites", 0, 100), world, channel)
    form.close()
    if "permission_overwrites" in body:
        world.require(channel, permissions.MANAGE_ROLES)
    renamed = any(body.get(key) not in (None, channel.get(key)) for key in ("name", "topic"))
    if renamed and (wait := server_of(request).rates.rename(channel["id"])) is not None:
        raise _too_soon(wait)
    for key in ("position", "topic", "nsfw", "rate_limit_per_user", "default_auto_archive_duration"):
        if key in body and key in channel | {"default_auto_archive_duration": None}:
            channel[key] = body[key]
    if body.get("name"):
        channel["name"] = channel_name(body["name"], channel["type"])
    if "parent_id" in body:
        channel["parent_id"] = None if body["parent_id"] is None else str(body["parent_id"])
    if "permission_overwrites" in body:
        channel["permission_overwrites"] = overwrites
    world.dispatch("CHANNEL_UPDATE", channel)
    return reply(channel)


def _too_soon(wait: float) -> ApiError:
    error = ApiError(0, status=429, message="You are being rate limited.")
    error.body |= {"retry_after": round(wait, 3), "global": False}
    return error


def _modify_thread(request: web.Request, thread: Json, body: Json, form: Form) -> web.Response:
    world = world_of(request)
    world.require(thread, permissions.VIEW_CHANNEL)
    state = thread["thread_metadata"]
    moderates = any(body.get(key) is not None for key in ("locked", "rate_limit_per_user"))
    reopens = body == {"archived": False}
    if state["locked"] or moderates or (thread["owner_id"] != world.application_id and not reopens):
        world.require(thread, permissions.MANAGE_THREADS)
    if state["archived"] and body.get("archived") is not False:
        raise ApiError(50083)
    form.text(body, "name", 1, 100)
    form.integer(body, "rate_limit_per_user", 0, 21_600)
    form.choice(body, "auto_archive_duration", ARCHIVE_MINUTES)
    form.close()
    if body.get("name") not in (None, thread["name"]):
        if (wait := server_of(request).rates.rename(thread["id"])) is not None:
            raise _too_soon(wait)
        thread["name"] = body["name"]
    if body.get("rate_limit_per_user") is not None:
        thread["rate_limit_per_user"] = body["rate_limit_per_user"]
    for key in ("archived", "locked", "auto_archive_duration"):
        if body.get(key) is not None:
            state[key] = body[key]
    world.dispatch("THREAD_UPDATE", thread)
    return reply(thread)


def remove_channel(world: World, channel: Json) -> None:
    """Deletes a channel or thread with its threads and messages, and tells the gateway."""
    for thread in [t for t in world.threads() if t["parent_id"] == channel["id"]]:
        remove_channel(world, thread)
    del world.channels[channel["id"]]
    del world.messages[channel["id"]]
    if channel["type"] in THREADS:
        if starter := world.messages.get(channel["parent_id"], {}).get(channel["id"]):
            starter.payload.pop("thread", None)
            starter.payload["flags"] &= ~HAS_THREAD
        gone = {key: channel[key] for key in ("id", "guild_id", "parent_id", "type")}
        world.dispatch("THREAD_DELETE", gone)
        return
    for child in world.guild_channels():
        if child["parent_id"] == channel["id"]:
            child["parent_id"] = None
            world.dispatch("CHANNEL_UPDATE", child)
    world.dispatch("CHANNEL_DELETE", channel)


async def delete_channel(request: web.Request) -> web.Response:
    world = world_of(request)
    channel = world.channel(request.match_info["channel_id"])
    in_thread = channel["type"] in THREADS
    world.require(channel, permissions.MANAGE_THREADS if in_thread else permissions.MANAGE_CHANNELS)
    remove_channel(world, channel)
    return reply(channel)


async def overwrite(request: web.Request) -> web.Response:
    """PUT or DELETE of one permission overwrite."""
    world, form = world_of(request), Form()
    channel = world.channel(request.match_info["channel_id"])
    target = request.match_info["overwrite_id"]
    world.require(channel, permissions.MANAGE_ROLES)
    kept = [o for o in channel["permission_overwrites"] if o["id"] != target]
    if request.method == "PUT":
        kept += _overwrites(form, [json_object(request) | {"id": target}], world, channel)
        form.close()
    channel["permission_overwrites"] = kept
    world.dispatch("CHANNEL_UPDATE", channel)
    return reply(status=204)


ROUTES = [
    web.get("/guilds/{guild_id}/channels", list_channels),
    web.post("/guilds/{guild_id}/channels", create_channel),
    web.get("/channels/{channel_id}", get_channel),
    web.patch("/channels/{channel_id}", modify_channel),
    web.delete("/channels/{channel_id}", delete_channel),
    web.put("/channels/{channel_id}/permissions/{overwrite_id}", overwrite),
    web.delete("/channels/{channel_id}/permissions/{overwrite_id}", overwrite),
]
