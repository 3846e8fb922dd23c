"""REST: the first answer to an interaction, and the messages that its token allows afterwards."""

import time
from typing import Any

from aiohttp import web

from sandbox.discord import components, messages
from sandbox.discord.attachments import Draft, Upload
from sandbox.discord.errors import ApiError, Json
from sandbox.discord.form import Form
from sandbox.discord.interactions import AUTOCOMPLETE, COMMAND, COMPONENT, MODAL, expired
from sandbox.discord.messages import COMPONENTS_V2, EPHEMERAL, LOADING, SUPPRESS_EMBEDS, SUPPRESS_NOTIFICATIONS
from sandbox.discord.state import Interaction, Message, World
from sandbox.discord.wire import draft_of, json_object, reply, server_of, world_of

MESSAGE, DEFER, ACK, UPDATE, CHOICES, FORM = 4, 5, 6, 7, 8, 9
# Which answers each kind of interaction may have first.
ALLOWED = {
    COMMAND: {MESSAGE, DEFER, FORM},
    COMPONENT: {MESSAGE, DEFER, ACK, UPDATE, FORM},
    MODAL: {MESSAGE, DEFER, ACK, UPDATE},
    AUTOCOMPLETE: {CHOICES},
}
SHOWN = {MESSAGE: "message", DEFER: "deferred", ACK: "ack", UPDATE: "update", CHOICES: "choices", FORM: "modal"}
SETTABLE_FLAGS = SUPPRESS_EMBEDS | SUPPRESS_NOTIFICATIONS | COMPONENTS_V2 | EPHEMERAL


def _draft(body: Any, uploads: list[Upload]) -> Draft:
    """A draft that pings the users it names and nobody else, unless it says otherwise."""
    if isinstance(body, dict) and body.get("allowed_mentions") is None:
        body = body | {"allowed_mentions": {"parse": ["users"]}}
    return Draft(body, uploads)


def _draft_of(request: web.Request) -> Draft:
    draft = draft_of(request)
    return _draft(draft.body, draft.uploads)


def _message_kind(interaction: Interaction) -> int:
    return 20 if interaction.kind == COMMAND else 19


def _metadata(world: World, interaction: Interaction) -> Json:
    shown: Json = {
        "id": interaction.id,
        "type": interaction.kind,
        "user": world.users[interaction.user_id],
        "authorizing_integration_owners": {"0": world.guild_id},
    }
    if interaction.kind == COMPONENT and interaction.source is not None:
        shown["interacted_message_id"] = interaction.source.id
    if interaction.asked is not None:
        shown["triggering_interaction_metadata"] = _metadata(world, interaction.asked)
    return shown


def _compose(world: World, interaction: Interaction, draft: Draft, *, flags: int, kind: int) -> Message:
    """A new message in answer to an interaction; one that is not ephemeral goes into the channel.

    Raises ApiError 10003 where the channel was deleted meanwhile.
    """
    world.channel(interaction.channel_id)
    author = world.users[world.application_id]
    message = messages.build(world, interaction.channel_id, author, draft, kind=kind, flags=flags)
    payload = message.payload
    payload |= {
        "webhook_id": world.application_id,
        "application_id": world.application_id,
        "interaction_metadata": _metadata(world, interaction),
    }
    if kind == 19 and interaction.source is not None:
        payload["message_reference"] = {
            "type": 0,
            "channel_id": interaction.channel_id,
            "message_id": interaction.source.id,
            "guild_id": world.guild_id,
        }
    elif kind == 19:
        payload["type"] = 0
    ephemeral = bool(flags & EPHEMERAL)
    if ephemeral:
        message.ephemeral_for = interaction.user_id
        world.whisper("MESSAGE_CREATE", message)
    else:
        messages.post(world, message)
    return message


async def callback(request: web.Request) -> web.Response:
    world, body = world_of(request), json_object(request)
    interaction = world.interactions.get(request.match_info["interaction_id"])
    if interaction is None or interaction.token != request.match_info["interaction_token"] or expired(interaction):
        raise ApiError(10062)
    if interaction.shown is not None:
        raise ApiError(40060)
    form = Form()
    kind = form.choice(body, "type", ALLOWED[interaction.kind], required=True)
    form.close()
    data = body.get("data")
    resource = _take(world, interaction, kind, data, _draft(data or {}, draft_of(request).uploads))
    interaction.shown = SHOWN[kind]
    if interaction.asked is not None:
        interaction.asked.modal = None  # a form closes once it is answered; until then it can be sent again
    if kind not in (DEFER, ACK):
        interaction.settled.set()
    if request.query.get("with_response") not in ("1", "true", "True"):
        return reply(status=204)
    about: Json = {"id": interaction.id, "type": interaction.kind}
    if resource is not None:
        about |= {
            "response_message_id": resource.id,
            "response_message_loading": bool(resource.payload["flags"] & LOADING),
            "response_message_ephemeral": resource.ephemeral_for is not None,
        }
        # The message itself comes back only where it is complete: not for a deferred answer.
        if kind != DEFER:
            return reply({"interaction": about, "resource": {"type": kind, "message": resource.payload}})
    return reply({"interaction": about})


def _still_there(world: World, message: Message) -> None:
    """Raises ApiError 10008 for a message that was deleted from its channel."""
    if message.ephemeral_for is None and message.id not in world.messages.get(message.payload["channel_id"], {}):
        raise ApiError(10008)


def _take(world: World, interaction: Interaction, kind: int, data: Any, draft: Draft) -> Message | None:
    """Carries out a first answer: the message it made or changed, if there is one."""
    form = Form()
    flags = int((data or {}).get("flags") or 0) & SETTABLE_FLAGS if isinstance(data, dict) else 0
    if kind == MESSAGE:
        messages.check(form.at("data"), draft)
        interaction.original = _compose(world, interaction, draft, flags=flags, kind=_message_kind(interaction))
        return interaction.original
    if kind == DEFER:
        flags = flags & EPHEMERAL | LOADING
        interaction.original = _compose(world, interaction, Draft({}), flags=flags, kind=_message_kind(interaction))
        return interaction.original
    if kind in (ACK, UPDATE):
        if interaction.source is None:
            form.at("type").fault("INTERACTION_TYPE_INVALID", "There is no message to update")
            form.close()
        interaction.original = interaction.source
        if kind == UPDATE and interaction.source is not None:
            _still_there(world, interaction.source)
            # Unlike an edit, it takes away what it does not list.
            update = Draft({"attachments": []} | draft.body, draft.uploads)
            messages.check(form.at("data"), update, before=interaction.source)
            messages.edit(world, interaction.source, update)
            return interaction.source
        return None
    if kind == FORM:
        components.check_modal(form.at("data"), data)
        form.close()
        interaction.modal = data | {"components": components.resolve(data["components"], [])}
        return None
    choices = form.at("data").items(data or {}, "choices", 0, 25, required=True)
    for index, choice in enumerate(choices):
        here = form.at("data", "choices", index)
        here.text(choice, "name", 1, 100, required=True)
        if isinstance(choice.get("value"), str):
            here.text(choice, "value", 1, 100, required=True)
    form.close()
    interaction.choices = choices
    return None


def _by_token(request: web.Request) -> Interaction:
    """The interaction whose token the path carries.

    Raises ApiError 10015 for a wrong one or before any answer, 50027 once it is 15 minutes old.
    """
    world = world_of(request)
    found = world.by_token.get(request.match_info["webhook_token"])
    if found is None or request.match_info["webhook_id"] != world.application_id:
        raise ApiError(50027)
    if time.monotonic() - found.created > server_of(request).rates.token_seconds:
        raise ApiError(50027)
    if found.shown is None:
        raise ApiError(10015)
    return found


def _named(request: web.Request, interaction: Interaction) -> Message:
    world, message_id = world_of(request), request.match_info["message_id"]
    if message_id == "@original":
        found = interaction.original
    else:
        everything = [interaction.original, *interaction.followups]
        found = next((m for m in everything if m is not None and m.id == message_id), None)
    if found is None:
        raise ApiError(10008)
    _still_there(world, found)
    return found


async def follow_up(request: web.Request) -> web.Response:
    world, interaction, draft = world_of(request), _by_token(request), _draft_of(request)
    original = interaction.original
    loading = original is not None and bool(original.payload["flags"] & LOADING)
    # The first follow-up of a deferred answer takes the place of its "thinking" message.
    if loading and original is not None:
        _still_there(world, original)
        messages.check(Form(), draft, before=original)
        messages.edit(world, original, draft)
        original.edits = 0
        interaction.settled.set()
        return reply(original.payload)
    messages.check(Form(), draft)
    flags = int(draft.body.get("flags") or 0) & SETTABLE_FLAGS
    message = _compose(world, interaction, draft, flags=flags, kind=19)
    if original is not None and original.ephemeral_for is None:
        message.payload["type"] = 19
        message.payload["message_reference"] = {
            "type": 0,
            "channel_id": interaction.channel_id,
            "message_id": original.id,
            "guild_id": world.guild_id,
        }
    interaction.followups.append(message)
    interaction.settled.set()
    return reply(message.payload)


async def get_message(request: web.Request) -> web.Response:
    return reply(_named(request, _by_token(request)).payload)


async def edit_message(request: web.Request) -> web.Response:
    world, interaction, draft = world_of(request), _by_token(request), _draft_of(request)
    message = _named(request, interaction)
    was_loading = bool(message.payload["flags"] & LOADING)
    messages.check(Form(), draft, before=message)
    messages.edit(world, message, draft)
    if was_loading:
        message.edits = 0
    interaction.settled.set()
    return reply(message.payload)


async def delete_message(request: web.Request) -> web.Response:
    world, interaction = world_of(request), _by_token(request)
    message = _named(request, interaction)
    messages.delete(world, message)
    if message in interaction.followups:
        interaction.followups.remove(message)
    else:
        interaction.original = None
    interaction.settled.set()
    return reply(status=204)


_TOKEN = "/webhooks/{webhook_id}/{webhook_token}"
ROUTES = [
    web.post("/interactions/{interaction_id}/{interaction_token}/callback", callback),
    web.post(_TOKEN, follow_up),
    web.get(_TOKEN + "/messages/{message_id}", get_message),
    web.patch(_TOKEN + "/messages/{message_id}", edit_message),
    web.delete(_TOKEN + "/messages/{message_id}", delete_message),
]
