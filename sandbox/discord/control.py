"""The people's side, below /sandbox: acting as a member, reading channels, and faults that tests order.

It asks for no secret, since the server listens on loopback alone, and shares no path with the bot's API.
"""

import asyncio
import contextlib
import time
from typing import Any

from aiohttp import web

from sandbox.discord import components as parts
from sandbox.discord import interactions, messages, permissions
from sandbox.discord.attachments import Draft
from sandbox.discord.commands import InputError
from sandbox.discord.errors import ApiError, Json
from sandbox.discord.form import Form
from sandbox.discord.interactions import find_channel, person
from sandbox.discord.messages import LOADING
from sandbox.discord.rest_channels import remove_channel
from sandbox.discord.state import Interaction, Message, World
from sandbox.discord.wire import reply, server_of, world_of
from sandbox.faults import Fault

PREFIX = "/sandbox"
NAME_LENGTH = 32


@web.middleware
async def control_errors(request: web.Request, handler: Any) -> web.StreamResponse:
    """Says what a person did wrong in one sentence."""
    if not request.path.startswith(PREFIX):
        return await handler(request)  # type: ignore[no-any-return]
    try:
        return await handler(request)  # type: ignore[no-any-return]
    except InputError as error:
        return reply({"error": str(error)}, 400)
    except ApiError as error:
        return reply({"error": error.body["message"], "details": error.body}, 400)
    except (KeyError, ValueError, TypeError) as error:
        return reply({"error": f"The request is malformed: {error!r}."}, 400)


def show_message(world: World, message: Message) -> Json:
    """A message with what a reader of it sees spelt out."""
    payload = message.payload
    everything = list(parts.walk(payload["components"]))
    author = payload["author"]
    shown = {slot.get("attachment_id") for component in everything for slot in parts.media(component)}
    return {
        "id": message.id,
        "type": payload["type"],
        "channel_id": payload["channel_id"],
        "author": author["global_name"] or author["username"],
        "author_id": author["id"],
        "text": "\n".join(text for text in [payload["content"], *parts.texts(payload["components"])] if text)
        or ("A message was pinned to this channel." if payload["type"] == messages.PINNED else ""),
        "content": payload["content"],
        "components": payload["components"],
        "embeds": payload["embeds"],
        "buttons": [
            {
                "label": c.get("label", ""),
                "custom_id": c.get("custom_id"),
                "disabled": bool(c.get("disabled")),
                "url": c.get("url"),
            }
            for c in everything
            if c["type"] == parts.BUTTON
        ],
        "edits": message.edits,
        "attachments": [
            {
                "filename": attachment["filename"],
                "description": _alt(everything, attachment),
                "path": str(world.attachments[attachment["id"]]),
                "url": attachment["url"],
                "size": attachment["size"],
            }
            for attachment in message.files
            if attachment["id"] in shown or not payload["flags"] & messages.COMPONENTS_V2
        ],
        "nonce": message.nonce,
        "flags": payload["flags"],
        "pinned": payload["pinned"],
        "thread_id": message.id if payload["flags"] & messages.HAS_THREAD else None,
        "ephemeral": message.ephemeral_for is not None,
        "created_at": payload["timestamp"],
    }


def _alt(components: list[Json], attachment: Json) -> str | None:
    """An attachment's alternative text: its own, or that of the gallery item or thumbnail that shows it."""
    for component in components:
        slots = component["items"] if component["type"] == parts.GALLERY else [component]
        for slot in slots:
            if (slot.get("media") or {}).get("attachment_id") == attachment["id"] and slot.get("description"):
                return str(slot["description"])
    alt: str | None = attachment.get("description")
    return alt


def show_answer(world: World, interaction: Interaction) -> Json:
    original, shown = interaction.original, interaction.shown
    loading = original is not None and bool(original.payload["flags"] & LOADING)
    kind = shown or "none"
    message = None if loading else original
    if shown == "deferred" and not loading:
        kind = "message"
    if shown == "ack":
        kind, message = "deferred", None
        if interaction.followups:
            kind, message = "message", interaction.followups[0]
        elif interaction.settled.is_set():
            kind, message = "update", original
    later = [m for m in interaction.followups if m is not message]
    return {
        "interaction_id": interaction.id,
        "kind": kind,
        "message": None if message is None else show_message(world, message),
        "modal": None if interaction.modal is None else _show_modal(interaction.modal),
        "form": interaction.modal,
        "choices": interaction.choices,
        "followups": [show_message(world, m) for m in later],
        "ephemeral": bool(original and original.ephemeral_for and kind != "update" and message is original)
        or bool(message and message.ephemeral_for),
    }


def _chosen(item: Json) -> str | None:
    """The label of the option of a select that is chosen at first."""
    return next((str(option["label"]) for option in item.get("options", []) if option.get("default")), None)


def _show_modal(modal: Json) -> Json:
    shown = ("custom_id", "label", "type", "style", "placeholder", "min_length", "max_length")
    fields = [
        {key: item.get(key) for key in shown}
        | {
            "value": item.get("value", _chosen(item)),
            "required": item.get("required") is not False,
            "options": [option["label"] for option in item.get("options", [])],
        }
        for item in interactions.fields(modal)
    ]
    return {"title": modal["title"], "custom_id": modal["custom_id"], "fields": fields}


async def _finish(request: web.Request, interaction: Interaction, seconds: float) -> web.Response:
    """Waits for what the person would see: 3 s for a first answer, `seconds` for the end of a deferred one.

    With 0 seconds the first answer is enough: the page is told of the rest. A form is there once its bot has heard that
    it was taken, which is long before anybody can have filled it in.
    """
    ends = interaction.created + max(interactions.FIRST_ANSWER_SECONDS, seconds)
    while not interaction.settled.is_set() and not interactions.expired(interaction) and time.monotonic() < ends:
        if interaction.shown is not None and seconds == 0:
            break
        # In short waits: the first answer of a deferral moves the end from 3 s to `seconds`.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(interaction.settled.wait(), 0.1 if seconds else 0.02)
    if interaction.modal is not None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(server_of(request).gateway.heard(), max(interactions.FIRST_ANSWER_SECONDS, seconds))
    return reply(show_answer(world_of(request), interaction))


async def guild(request: web.Request) -> web.Response:
    world = world_of(request)
    return reply(
        {
            "guild_id": world.guild_id,
            "application_id": world.application_id,
            "users": {u["global_name"]: u["id"] for u in world.users.values() if not u.get("bot")},
            "roles": {role["name"]: role["id"] for role in world.roles.values()},
            "holders": {
                role["name"]: [m["user"]["global_name"] for m in world.members.values() if role["id"] in m["roles"]]
                for role in world.roles.values()
            },
            "channels": list(world.channels.values()),
            "bot_connected": server_of(request).gateway.connected,
        }
    )


async def commands(request: web.Request) -> web.Response:
    return reply(list(world_of(request).commands.values()))


async def command(request: web.Request) -> web.Response:
    world, body = world_of(request), await request.json()
    user, channel = person(world, body["user"]), find_channel(world, body["channel"])
    interaction = interactions.run_command(world, user, channel, body["command"], body.get("options") or {})
    return await _finish(request, interaction, float(body.get("timeout", 10)))


async def autocomplete(request: web.Request) -> web.Response:
    world, body = world_of(request), await request.json()
    user, channel = person(world, body["user"]), find_channel(world, body["channel"])
    interaction = interactions.autocomplete(
        world, user, channel, body["command"], body["option"], body["typed"], body.get("options") or {}
    )
    return await _finish(request, interaction, 0.0)


async def press(request: web.Request) -> web.Response:
    world, body = world_of(request), await request.json()
    user = person(world, body["user"])
    interaction = interactions.press(world, user, body["message_id"], body["target"], body.get("values"))
    return await _finish(request, interaction, float(body.get("timeout", 10)))


async def menu(request: web.Request) -> web.Response:
    world, body = world_of(request), await request.json()
    interaction = interactions.menu(world, person(world, body["user"]), body["message_id"], body["name"])
    return await _finish(request, interaction, float(body.get("timeout", 10)))


async def submit(request: web.Request) -> web.Response:
    world, body = world_of(request), await request.json()
    asked = world.interactions.get(str(body["interaction_id"]))
    if asked is None or asked.user_id != person(world, body["user"])["id"]:
        raise InputError("That form was not shown to this person.")
    interaction = interactions.submit(world, asked, body["values"], force=bool(body.get("force")))
    return await _finish(request, interaction, float(body.get("timeout", 10)))


async def answer(request: web.Request) -> web.Response:
    world = world_of(request)
    interaction = world.interactions.get(request.match_info["interaction_id"])
    if interaction is None:
        raise InputError("There is no such interaction.")
    return reply(show_answer(world, interaction))


async def read_channel(request: web.Request) -> web.Response:
    world = world_of(request)
    channel = find_channel(world, request.match_info["channel"])
    kept = sorted(world.messages[channel["id"]].values(), key=lambda message: int(message.id))
    return reply([show_message(world, message) for message in kept])


async def say(request: web.Request) -> web.Response:
    world, body = world_of(request), await request.json()
    user, channel = person(world, body["user"]), find_channel(world, request.match_info["channel"])
    in_thread = "thread_metadata" in channel
    needed = permissions.SEND_MESSAGES_IN_THREADS if in_thread else permissions.SEND_MESSAGES
    if not world.permissions(user["id"], channel) & needed:
        raise InputError(f"{user['username']} may not write in #{channel['name']}.")
    draft = Draft({"content": body["content"]})
    messages.check(Form(), draft)
    message = messages.post(world, messages.build(world, channel["id"], user, draft))
    return reply(show_message(world, message))


def _moderator(world: World, name: str, channel: Json, bits: int) -> None:
    if not world.permissions(person(world, name)["id"], channel) & bits:
        raise InputError(f"{name} lacks the permission for that in #{channel['name']}.")


async def delete_message(request: web.Request) -> web.Response:
    world = world_of(request)
    channel = find_channel(world, request.match_info["channel"])
    message = world.message(channel["id"], request.match_info["message_id"])
    _moderator(world, request.query["user"], channel, permissions.MANAGE_MESSAGES)
    messages.delete(world, message)
    return reply({})


async def delete_channel(request: web.Request) -> web.Response:
    world = world_of(request)
    channel = find_channel(world, request.match_info["channel"])
    _moderator(world, request.query["user"], channel, permissions.MANAGE_CHANNELS)
    remove_channel(world, channel)
    return reply({})


async def set_thread(request: web.Request) -> web.Response:
    """A moderator closes or opens a thread: `archived`, `locked`."""
    world, body = world_of(request), await request.json()
    thread = find_channel(world, request.match_info["channel"])
    _moderator(world, body["user"], thread, permissions.MANAGE_THREADS)
    for key in ("archived", "locked"):
        thread["thread_metadata"][key] = bool(body.get(key, thread["thread_metadata"][key]))
    world.dispatch("THREAD_UPDATE", thread)
    return reply({})


async def join(request: web.Request) -> web.Response:
    """A new person comes into the guild."""
    world, body = world_of(request), await request.json()
    name = str(body["name"]).strip()
    if not 1 <= len(name) <= NAME_LENGTH:
        raise InputError(f"A name has between 1 and {NAME_LENGTH} characters.")
    if any(user["username"].lower() == name.lower() for user in world.users.values()):
        raise InputError(f"{name} is in the guild already.")
    member = world.add_member(world.add_user(name), [])
    world.dispatch("GUILD_MEMBER_ADD", member | {"guild_id": world.guild_id})
    return reply({"id": member["user"]["id"]})


async def set_roles(request: web.Request) -> web.Response:
    world, body = world_of(request), await request.json()
    member = world.members[person(world, body["user"])["id"]]
    named = {role["name"]: role["id"] for role in world.roles.values()}
    if unknown := [name for name in body["roles"] if name not in named]:
        raise InputError(f"There is no role {unknown[0]!r}; there are: {', '.join(named)}.")
    member["roles"] = [named[name] for name in body["roles"]]
    world.dispatch("GUILD_MEMBER_UPDATE", member | {"guild_id": world.guild_id})
    return reply({})


async def set_permissions(request: web.Request) -> web.Response:
    """Changes what a role may do: `permissions` as a number of bits."""
    world, body = world_of(request), await request.json()
    for role in world.roles.values():
        if role["name"] == body["role"]:
            role["permissions"] = str(int(body["permissions"]))
            world.dispatch("GUILD_ROLE_UPDATE", {"guild_id": world.guild_id, "role": role})
            return reply({})
    raise InputError(f"There is no role {body['role']!r}.")


async def delete_role(request: web.Request) -> web.Response:
    """Deletes a role, which then nobody holds."""
    world, name = world_of(request), request.match_info["role"]
    if not world.permissions(person(world, request.query["user"])["id"]) & permissions.MANAGE_ROLES:
        raise InputError(f"{request.query['user']} may not delete roles.")
    role = next((role for role in world.roles.values() if role["name"] == name), None)
    if role is None or role["managed"] or role["id"] == world.guild_id:
        raise InputError(f"There is no role {name!r} that can be deleted.")
    world.delete_role(role["id"])
    return reply({})


async def order_fault(request: web.Request) -> web.Response:
    server_of(request).faults.ordered.append(Fault(**await request.json()))
    return reply({})


async def clear_faults(request: web.Request) -> web.Response:
    server_of(request).faults.clear()
    return reply({})


async def set_limit(request: web.Request) -> web.Response:
    """Changes one bucket (`route`, `requests`, `seconds`) or how long something lasts, or turns all on or off."""
    rates, body = server_of(request).rates, await request.json()
    if "enforced" in body:
        rates.enforced = bool(body["enforced"])
    if "route" in body:
        rates.limits[body["route"]] = (int(body["requests"]), float(body["seconds"]))
    for key in ("old_seconds", "token_seconds", "nonce_seconds"):
        if key in body:
            setattr(rates, key, float(body[key]))
    return reply({})


async def set_intents(request: web.Request) -> web.Response:
    """Which privileged intents the application was granted, as bits."""
    world_of(request).privileged_intents = int((await request.json())["privileged"])
    return reply({})


async def invite_again(request: web.Request) -> web.Response:
    server_of(request).gateway.invite_again()
    return reply({})


async def gateway_drop(request: web.Request) -> web.Response:
    gateway, body = server_of(request).gateway, await request.json()
    if body.get("forget"):
        gateway.forget()
    return reply({"closed": await gateway.drop()})


def add_routes(app: web.Application) -> None:
    app.router.add_routes(
        [
            web.get(PREFIX + "/guild", guild),
            web.get(PREFIX + "/commands", commands),
            web.post(PREFIX + "/interactions/command", command),
            web.post(PREFIX + "/interactions/autocomplete", autocomplete),
            web.post(PREFIX + "/interactions/press", press),
            web.post(PREFIX + "/interactions/menu", menu),
            web.post(PREFIX + "/interactions/submit", submit),
            web.get(PREFIX + "/interactions/{interaction_id}", answer),
            web.get(PREFIX + "/channels/{channel}/messages", read_channel),
            web.post(PREFIX + "/channels/{channel}/messages", say),
            web.delete(PREFIX + "/channels/{channel}/messages/{message_id}", delete_message),
            web.delete(PREFIX + "/channels/{channel}", delete_channel),
            web.patch(PREFIX + "/channels/{channel}", set_thread),
            web.post(PREFIX + "/members", join),
            web.put(PREFIX + "/members/roles", set_roles),
            web.put(PREFIX + "/roles/permissions", set_permissions),
            web.delete(PREFIX + "/roles/{role}", delete_role),
            web.post(PREFIX + "/faults", order_fault),
            web.delete(PREFIX + "/faults", clear_faults),
            web.post(PREFIX + "/limits", set_limit),
            web.post(PREFIX + "/intents", set_intents),
            web.post(PREFIX + "/bot/invite", invite_again),
            web.post(PREFIX + "/gateway/drop", gateway_drop),
        ]
    )
