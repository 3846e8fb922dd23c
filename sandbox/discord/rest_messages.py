"""REST: messages of a channel."""

import time

from aiohttp import web

from sandbox.discord import messages, permissions, stickers
from sandbox.discord.errors import ApiError, Json
from sandbox.discord.form import Form
from sandbox.discord.messages import COMPONENTS_V2, SUPPRESS_EMBEDS, SUPPRESS_NOTIFICATIONS
from sandbox.discord.state import CATEGORY, THREADS, World
from sandbox.discord.wire import draft_of, reply, server_of, world_of

SETTABLE_FLAGS = SUPPRESS_EMBEDS | SUPPRESS_NOTIFICATIONS | COMPONENTS_V2


def _channel(request: web.Request) -> Json:
    channel = world_of(request).channel(request.match_info["channel_id"])
    if channel["type"] == CATEGORY:
        raise ApiError(50024)
    return channel


def _require_open(world: World, channel: Json) -> None:
    """Raises 50013 in a locked thread where the bot may not manage threads."""
    if channel["type"] in THREADS and channel["thread_metadata"]["locked"]:
        world.require(channel, permissions.MANAGE_THREADS)


def reference(world: World, channel_id: str, body: Json) -> Json:
    """The fields of a message that answers another one.

    Raises ApiError 50035 where that one is gone and the request asks to fail then.
    """
    asked = body.get("message_reference")
    if not isinstance(asked, dict) or asked.get("message_id") is None:
        return {}
    target = world.messages[channel_id].get(str(asked["message_id"]))
    if target is None:
        if asked.get("fail_if_not_exists") is False:
            return {}
        form = Form().at("message_reference")
        form.fault("REPLIES_UNKNOWN_MESSAGE", "Unknown message")
        form.close()
        return {}
    return {
        "type": 19,
        "message_reference": {
            "type": 0,
            "channel_id": channel_id,
            "message_id": target.id,
            "guild_id": world.guild_id,
        },
        "referenced_message": {k: v for k, v in target.payload.items() if k not in ("referenced_message", "thread")},
    }


async def create_message(request: web.Request) -> web.Response:
    world, draft, channel = world_of(request), draft_of(request), _channel(request)
    in_thread = channel["type"] in THREADS
    world.require(channel, permissions.SEND_MESSAGES_IN_THREADS if in_thread else permissions.SEND_MESSAGES)
    if draft.uploads:
        world.require(channel, permissions.ATTACH_FILES)
    messages.check(Form(), draft, stickers=world.stickers.keys())
    _require_open(world, channel)
    nonce = draft.body.get("nonce")
    if nonce is not None and draft.body.get("enforce_nonce"):
        remembered = server_of(request).rates.nonce_seconds
        for earlier in reversed(world.messages[channel["id"]].values()):
            recent = time.monotonic() - earlier.created < remembered
            if recent and earlier.nonce == str(nonce) and earlier.author_id == world.application_id:
                return reply(earlier.payload | {"nonce": nonce})
    flags = int(draft.body.get("flags") or 0) & SETTABLE_FLAGS
    message = messages.build(world, channel["id"], world.users[world.application_id], draft, flags=flags)
    payload = message.payload
    payload |= reference(world, channel["id"], draft.body) | stickers.shown(world, draft.body)
    message.nonce = None if nonce is None else str(nonce)
    if nonce is not None:
        payload["nonce"] = nonce
    messages.post(world, message)
    answer = dict(payload)
    # Only the answer and the event carry the nonce; later reads of the message do not.
    payload.pop("nonce", None)
    return reply(answer)


async def list_messages(request: web.Request) -> web.Response:
    world, channel, form, query = world_of(request), _channel(request), Form(), dict(request.query)
    world.require(channel, permissions.VIEW_CHANNEL)
    if not world.permissions(world.application_id, channel) & permissions.READ_MESSAGE_HISTORY:
        return reply([])
    limit = form.integer(query, "limit", 1, 100) or 50
    before, after, around = (form.integer(query, key, 0, 2**63 - 1) for key in ("before", "after", "around"))
    form.close()
    everything = sorted(world.messages[channel["id"]].values(), key=lambda message: int(message.id))
    if around is not None:
        older = [m for m in everything if int(m.id) <= around][-(limit // 2 + 1) :]
        newer = [m for m in everything if int(m.id) > around][: limit - len(older)]
        chosen = older + newer
    elif after is not None:
        chosen = [m for m in everything if int(m.id) > after][:limit]
    else:
        chosen = [m for m in everything if before is None or int(m.id) < before][-limit:]
    return reply([message.payload for message in reversed(chosen)])


async def get_message(request: web.Request) -> web.Response:
    world, channel = world_of(request), _channel(request)
    world.require(channel, permissions.VIEW_CHANNEL | permissions.READ_MESSAGE_HISTORY)
    return reply(world.message(channel["id"], request.match_info["message_id"]).payload)


async def edit_message(request: web.Request) -> web.Response:
    world, draft, channel = world_of(request), draft_of(request), _channel(request)
    world.require(channel, permissions.VIEW_CHANNEL)
    message = world.message(channel["id"], request.match_info["message_id"])
    if message.author_id != world.application_id:
        raise ApiError(50005)
    messages.check(Form(), draft, before=message)
    if channel["type"] in THREADS and channel["thread_metadata"]["archived"]:
        raise ApiError(50083)
    _require_open(world, channel)
    wait = server_of(request).rates.edit(channel["id"], time.monotonic() - message.created)
    if wait is not None:
        refusal = ApiError(30046)
        refusal.body |= {"retry_after": round(wait, 3), "global": False}
        raise refusal
    messages.edit(world, message, draft)
    return reply(message.payload)


async def delete_message(request: web.Request) -> web.Response:
    world, channel = world_of(request), _channel(request)
    world.require(channel, permissions.VIEW_CHANNEL)
    message = world.message(channel["id"], request.match_info["message_id"])
    if message.author_id != world.application_id:
        world.require(channel, permissions.MANAGE_MESSAGES)
    messages.delete(world, message)
    return reply(status=204)


async def pin_message(request: web.Request) -> web.Response:
    world, channel = world_of(request), _channel(request)
    world.require(channel, permissions.PIN_MESSAGES)
    messages.pin(world, world.message(channel["id"], request.match_info["message_id"]))
    return reply(status=204)


async def typing(request: web.Request) -> web.Response:
    world_of(request).require(_channel(request), permissions.SEND_MESSAGES)
    return reply(status=204)


ROUTES = [
    web.post("/channels/{channel_id}/messages", create_message),
    web.get("/channels/{channel_id}/messages", list_messages),
    web.get("/channels/{channel_id}/messages/{message_id}", get_message),
    web.patch("/channels/{channel_id}/messages/{message_id}", edit_message),
    web.delete("/channels/{channel_id}/messages/{message_id}", delete_message),
    web.put("/channels/{channel_id}/messages/pins/{message_id}", pin_message),
    web.post("/channels/{channel_id}/typing", typing),
]
