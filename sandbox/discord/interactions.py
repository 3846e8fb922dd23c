"""Interactions: the event a person's act sends to the bot, and the deadlines of its answers."""

import secrets
import time
from typing import Any

from sandbox.discord import components as parts
from sandbox.discord import permissions
from sandbox.discord.attachments import ATTACHMENT_LIMIT
from sandbox.discord.commands import MESSAGE_MENU, InputError, fill, find, find_user, named, nest, offered
from sandbox.discord.errors import Json
from sandbox.discord.state import Interaction, Message, World

COMMAND, COMPONENT, AUTOCOMPLETE, MODAL = 2, 3, 4, 5
FIRST_ANSWER_SECONDS = 3.0


def start(
    world: World,
    kind: int,
    user_id: str,
    channel: Json,
    data: Json,
    source: Message | None = None,
    asked: Interaction | None = None,
) -> Interaction:
    """Sends an interaction to the bot: `source` is the message it comes from, `asked` what opened its form."""
    member = world.members[user_id] | {
        "permissions": str(world.permissions(user_id, channel)),
        "unusual_dm_activity_until": None,
    }
    shown = channel | {"permissions": str(world.permissions(user_id, channel))}
    interaction_id, token = world.ids.next(), secrets.token_urlsafe(48)
    event: Json = {
        "id": interaction_id,
        "application_id": world.application_id,
        "type": kind,
        "data": data,
        "guild": {"id": world.guild_id, "locale": "en-US", "features": []},
        "guild_id": world.guild_id,
        "channel": shown,
        "channel_id": channel["id"],
        "member": member,
        "token": token,
        "version": 1,
        "app_permissions": str(world.permissions(world.application_id, channel)),
        "locale": "en-US",
        "guild_locale": "en-US",
        "entitlements": [],
        "entitlement_sku_ids": [],
        "authorizing_integration_owners": {"0": world.guild_id},
        "context": 0,
        "attachment_size_limit": ATTACHMENT_LIMIT,
    }
    if source is not None:
        event["message"] = source.payload
    interaction = Interaction(interaction_id, token, kind, event, user_id, channel["id"], source, asked)
    world.interactions[interaction_id] = world.by_token[token] = interaction
    world.dispatch("INTERACTION_CREATE", event)
    return interaction


def expired(interaction: Interaction) -> bool:
    """Whether the first answer came too late."""
    return interaction.shown is None and time.monotonic() - interaction.created > FIRST_ANSWER_SECONDS


def _may(world: World, user: Json, channel: Json) -> None:
    bits = world.permissions(user["id"], channel)
    if not bits & permissions.VIEW_CHANNEL:
        raise InputError(f"{user['username']} cannot see #{channel['name']}.")
    if not bits & permissions.USE_APPLICATION_COMMANDS:
        raise InputError(f"{user['username']} may not use commands in #{channel['name']}.")
    state = channel.get("thread_metadata")
    if state and state["archived"]:
        raise InputError(f"Commands cannot be used in #{channel['name']}: the thread is archived.")
    if state and state["locked"] and not bits & permissions.MANAGE_THREADS:
        raise InputError(f"{user['username']} cannot use commands in #{channel['name']}: the thread is locked.")


def person(world: World, name: str) -> Json:
    user = find_user(world, name)
    if user is None or user.get("bot"):
        raise InputError(f"There is no person {name!r} in the guild.")
    return user


def find_channel(world: World, value: str) -> Json:
    """A channel or thread by id or name, the newest where several have that name."""
    value = value.removeprefix("#")
    if channel := world.channels.get(value):
        return channel
    named = [channel for channel in world.channels.values() if channel["name"] == value]
    if not named:
        raise InputError(f"There is no channel {value!r}.")
    return named[-1]


def run_command(world: World, user: Json, channel: Json, words: str, options: Json) -> Interaction:
    _may(world, user, channel)
    root, steps, leaf = find(world, words)
    _shown(world, user, channel, root)
    resolved: Json = {}
    data = nest(root, steps, fill(world, leaf, options, resolved))
    if resolved:
        data["resolved"] = resolved
    return start(world, COMMAND, user["id"], channel, data)


def _shown(world: World, user: Json, channel: Json, root: Json) -> None:
    """Raises InputError where the client does not show the command to this person."""
    if not offered(root, world.permissions(user["id"], channel)):
        raise InputError(f"/{root['name']} is not shown to {user['username']}: it asks for permissions they lack.")


def menu(world: World, user: Json, message_id: str, name: str) -> Interaction:
    """A choice in a message's context menu."""
    channel, message = visible_message(world, user, message_id)
    _may(world, user, channel)
    command = named(world, MESSAGE_MENU, name)
    if command is None:
        there = [c["name"] for c in world.commands.values() if c["type"] == MESSAGE_MENU]
        raise InputError(f"Messages have no menu entry {name!r}; they have: {', '.join(there) or 'none'}.")
    _shown(world, user, channel, command)
    data = {"id": command["id"], "name": command["name"], "type": MESSAGE_MENU, "target_id": message.id}
    if command.get("guild_id"):
        data["guild_id"] = command["guild_id"]
    # Whoever's message it is, the bot is shown all of it.
    data["resolved"] = {"messages": {message.id: message.payload}}
    return start(world, COMMAND, user["id"], channel, data)


def autocomplete(
    world: World, user: Json, channel: Json, words: str, option: str, typed: str, others: Json
) -> Interaction:
    _may(world, user, channel)
    root, steps, leaf = find(world, words)
    declared = next((o for o in leaf.get("options", []) if o["name"] == option), None)
    if declared is None or not declared.get("autocomplete"):
        raise InputError(f"/{words} has no option {option} with autocomplete.")
    data = nest(root, steps, fill(world, leaf, others | {option: typed}, {}, focused=option))
    return start(world, AUTOCOMPLETE, user["id"], channel, data)


def visible_message(world: World, user: Json, message_id: str) -> tuple[Json, Message]:
    """A message a person can see: in a channel, or one shown to them alone."""
    for channel_id, kept in world.messages.items():
        if message := kept.get(message_id):
            return world.channels[channel_id], message
    for interaction in world.interactions.values():
        for message in [interaction.original, *interaction.followups]:
            if message is not None and message.id == message_id and message.ephemeral_for == user["id"]:
                return world.channels[interaction.channel_id], message
    raise InputError(f"{user['username']} sees no message {message_id}.")


def press(world: World, user: Json, message_id: str, target: str, values: list[str] | None) -> Interaction:
    """A press of a button, or a choice in a select, given by its label, placeholder or custom id."""
    channel, message = visible_message(world, user, message_id)
    if not world.permissions(user["id"], channel) & permissions.VIEW_CHANNEL:
        raise InputError(f"{user['username']} cannot see #{channel['name']}.")
    usable = [c for c in parts.walk(message.payload["components"]) if c.get("custom_id")]
    named = [c for c in usable if target in (c["custom_id"], c.get("label"), c.get("placeholder"))]
    if not named:
        there = ", ".join(c.get("label") or c.get("placeholder") or c["custom_id"] for c in usable) or "nothing"
        raise InputError(f"The message has no {target!r} to press; it has: {there}.")
    component = named[0]
    if component.get("disabled"):
        raise InputError(f"{target!r} is disabled.")
    data: Json = {"custom_id": component["custom_id"], "component_type": component["type"], "id": component["id"]}
    if component["type"] in parts.SELECTS:
        resolved: Json = {}
        data["values"] = _chosen(world, component, values or [], resolved)
        if resolved:
            data["resolved"] = resolved
    return start(world, COMPONENT, user["id"], channel, data, message)


def _chosen(world: World, select: Json, values: list[str], resolved: Json) -> list[str]:
    name = select.get("placeholder") or select["custom_id"]
    low, high = select.get("min_values", 1), select.get("max_values", 1)
    if not low <= len(values) <= high:
        raise InputError(f"{name} takes between {low} and {high} choices; {len(values)} given.")
    if select["type"] in (parts.STRING_SELECT, parts.RADIO_GROUP, parts.CHECKBOX_GROUP):
        labels = {option["label"]: option["value"] for option in select["options"]}
        chosen = [labels.get(value, value) for value in values]
        if any(value not in labels.values() for value in chosen):
            raise InputError(f"{name} offers: {', '.join(labels)}.")
        return chosen
    # Selects of people, roles and channels take what the command option of the same sort takes.
    kind = {parts.USER_SELECT: 6, parts.ROLE_SELECT: 8, parts.MENTIONABLE_SELECT: 9, parts.CHANNEL_SELECT: 7}[
        select["type"]
    ]
    leaf = {"name": name, "options": [{"name": name, "type": kind}]}
    return [str(fill(world, leaf, {name: value}, resolved)[0]["value"]) for value in values]


def fields(modal: Json) -> list[Json]:
    """The inputs of a modal in order, each with its label."""
    out = []
    for part in modal["components"]:
        inner = part.get("component") or (part.get("components") or [None])[0]
        if inner is not None:
            out.append(inner | {"label": part.get("label") or inner.get("label")})
    return out


def submit(world: World, asked: Interaction, given: Json, *, force: bool) -> Interaction:
    """A filled-in modal. `given` is by label or custom id; `force` skips what the client itself would refuse.

    It stays open until it is answered, as Discord's client does it; the documentation does not say so.
    """
    modal = asked.modal
    if asked.shown is None:
        raise InputError("No form has come: the bot has not answered.")
    if asked.shown != "modal":
        raise InputError(f"The bot has not answered with a form, but with: {asked.shown}.")
    if modal is None:
        raise InputError("The form was sent already, and answered.")
    resolved: Json = {}
    known = {key for field in fields(modal) for key in (field["label"], field["custom_id"]) if key}
    for name in given:
        if name not in known:
            raise InputError(f"The form has no field {name!r}; it has: {', '.join(f['label'] for f in fields(modal))}.")

    def filled(component: Json, label: str) -> Json:
        entry: Json = {"type": component["type"], "id": component["id"], "custom_id": component["custom_id"]}
        value = given.get(label, given.get(component["custom_id"]))
        return entry | _entry(world, component, label, value, resolved, force=force)

    submitted: list[Json] = []
    for part in modal["components"]:
        base = {"type": part["type"], "id": part["id"]}
        if part["type"] == parts.LABEL:
            submitted.append(base | {"component": filled(part["component"], part["label"])})
        elif part["type"] == parts.ROW:
            submitted.append(base | {"components": [filled(inner, inner["label"]) for inner in part["components"]]})
        else:
            submitted.append(base)
    data: Json = {"custom_id": modal["custom_id"], "components": submitted}
    if resolved:
        data["resolved"] = resolved
    return start(world, MODAL, asked.user_id, world.channels[asked.channel_id], data, asked.source, asked)


def _entry(world: World, component: Json, label: str, value: Any, resolved: Json, *, force: bool) -> Json:
    required = component.get("required") is not False
    if component["type"] == parts.TEXT_INPUT:
        text = str(component.get("value", "") if value is None else value)
        low, high = component.get("min_length") or 0, component.get("max_length") or 4000
        if not force and required and not text:
            raise InputError(f"The field {label!r} is required.")
        if not force and text and not low <= len(text) <= high:
            raise InputError(f"The field {label!r} takes between {low} and {high} characters; it has {len(text)}.")
        return {"value": text}
    if component["type"] == parts.CHECKBOX:
        return {"value": bool(component.get("default") if value is None else value)}
    if component["type"] == parts.FILE_UPLOAD:
        if required and not force:
            raise InputError(f"The field {label!r} takes a file, which the sandbox's people cannot send.")
        return {"values": []}
    listed = [] if value is None else [str(item) for item in (value if isinstance(value, list) else [value])]
    if value is None:
        listed = [option["value"] for option in component.get("options", []) if option.get("default")]
    if not listed and (force or not required):
        chosen: list[str] = []
    elif not listed:
        raise InputError(f"The field {label!r} is required.")
    else:
        most = {"max_values": component.get("max_values") or (1 if component["type"] != parts.CHECKBOX_GROUP else 10)}
        labels = {option["label"]: option["value"] for option in component.get("options", [])}
        chosen = [labels.get(item, item) for item in listed]
        if not force:
            chosen = _chosen(world, component | {"placeholder": label} | most, listed, resolved)
    if component["type"] == parts.RADIO_GROUP:
        return {"value": chosen[0] if chosen else None}
    return {"values": chosen}
