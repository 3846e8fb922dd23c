"""Messages: the checks of what is sent, and making, editing and deleting them."""

import re
from collections.abc import Collection
from typing import Any

from sandbox.discord import attachments, permissions, polls
from sandbox.discord import components as parts
from sandbox.discord.attachments import MAX_FILE_BYTES, MAX_FILES, Draft
from sandbox.discord.errors import ApiError, Json
from sandbox.discord.form import Form
from sandbox.discord.state import THREADS, Message, World, now_iso, snowflake_time

SUPPRESS_EMBEDS, HAS_THREAD, EPHEMERAL, LOADING = 1 << 2, 1 << 5, 1 << 6, 1 << 7
SUPPRESS_NOTIFICATIONS, COMPONENTS_V2 = 1 << 12, 1 << 15

PINNED = 6
"""The type of the message by which Discord says that somebody has pinned one."""
MAX_PINS = 250

LEGACY = ("content", "embeds", "poll", "sticker_ids")
LEGACY_WITH_V2 = "The 'content', 'embeds' and 'poll' fields cannot be used when using MessageFlags.IS_COMPONENTS_V2"


def check(form: Form, draft: Draft, *, before: Message | None = None, stickers: Collection[str] = frozenset()) -> None:
    """Faults of a message's body. `before` is the message that an edit changes; `stickers` are those that it may show.

    Raises ApiError 50006 for an empty message, 40005 for files over the limit, 50081 for another sticker.
    """
    body, uploads = draft.body, draft.uploads
    if len(uploads) > MAX_FILES:
        form.at("attachments").fault("BASE_TYPE_MAX_LENGTH", f"Must be {MAX_FILES} or fewer in length.")
    if any(len(upload.data) > MAX_FILE_BYTES for upload in uploads):
        raise ApiError(40005)
    form.text(body, "content", 0, 2000)
    form.text(body, "nonce", 0, 25) if not isinstance(body.get("nonce"), int) else None
    flags = form.integer(body, "flags", 0, 2**31 - 1) or 0
    had: Json = before.payload if before else {}
    v2 = bool((flags | had.get("flags", 0)) & COMPONENTS_V2)
    _check_embeds(form, form.items(body, "embeds", 0, 10))
    attachments.check(form, draft)
    polls.check(form, body.get("poll"))
    _check_mentions(form, body.get("allowed_mentions"))
    if v2:
        for key in LEGACY:
            # What an edit does not name stays, so that it must be taken away with null.
            if body[key] if key in body else had.get(key):
                form.at(key).fault("MESSAGE_CANNOT_USE_LEGACY_FIELDS_WITH_COMPONENTS_V2", LEGACY_WITH_V2)
    if body.get("components") is not None:
        listed = form.items(body, "components", 0, parts.MAX_COMPONENTS)
        named = attachments.referable(draft, before.files if before else None)
        parts.check_message(form.at("components"), listed, parts.Setting(named, edit=before is not None), v2=v2)
    form.items(body, "sticker_ids", 0, 3)
    form.close()
    if any(str(item) not in stickers for item in body.get("sticker_ids") or []):
        raise ApiError(50081)
    files = bool(draft.uploads or (before and attachments.kept(before.files, draft)))
    _check_empty(body, had, v2=v2, files=files, edit=before is not None)


def _check_empty(body: Json, had: Json, *, v2: bool, files: bool, edit: bool) -> None:
    fields = ("components",) if v2 else ("content", "embeds", "components", "sticker_ids", "poll")
    after = {key: (body if key in body or not edit else had).get(key) for key in fields}
    after["sticker_ids"] = after.get("sticker_ids") or (had.get("sticker_items") if edit else None)
    after["content"] = (after.get("content") or "").strip()
    if not any(after[key] for key in fields) and not (files and not v2):
        raise ApiError(50006)


def _check_mentions(form: Form, allowed: Any) -> None:
    if allowed is None:
        return
    here = form.at("allowed_mentions")
    parse = here.items(allowed, "parse", 0, 3)
    for key in ("users", "roles"):
        named = here.items(allowed, key, 0, 100)
        if named and key in parse:
            here.at("parse").fault(
                "MESSAGE_ALLOWED_MENTIONS_PARSE_EXCLUSIVE", f'parse:["{key}"] and {key}: [ids...] exclude each other.'
            )
    for index, item in enumerate(parse):
        if item not in ("users", "roles", "everyone"):
            here.at("parse", index).fault("BASE_TYPE_CHOICES", "Value must be one of ('users', 'roles', 'everyone').")


def _check_embeds(form: Form, embeds: list[Any]) -> None:
    total = 0
    for index, embed in enumerate(embeds):
        here = form.at("embeds", index)
        if not isinstance(embed, dict):
            here.fault("MODEL_TYPE_CONVERT", "Only dictionaries may be used in a ModelType")
            continue
        embed = _trimmed(embed)
        texts = [here.text(embed, "title", 0, 256), here.text(embed, "description", 0, 4096)]
        for key in ("image", "thumbnail"):
            if embed.get(key) is not None:
                here.at(key).text(embed[key], "url", 1, 2048, required=True)
        if footer := embed.get("footer"):
            texts.append(here.at("footer").text(footer, "text", 0, 2048, required=True))
        if author := embed.get("author"):
            texts.append(here.at("author").text(author, "name", 0, 256, required=True))
        for number, row in enumerate(here.items(embed, "fields", 0, 25)):
            place = here.at("fields", number)
            texts += [place.text(row, "name", 1, 256, required=True), place.text(row, "value", 1, 1024, required=True)]
        total += sum(len(text) for text in texts if text)
    if total > 6000:
        form.at("embeds").fault("MAX_EMBED_SIZE_EXCEEDED", "Embed size exceeds maximum size of 6000")


def _mentioned(world: World, payload: Json, allowed: Json | None) -> Json:
    """Who is pinged by a message: by `allowed_mentions` (absent: all) and by what its author may mention."""
    content = "\n".join([payload["content"], *parts.texts(payload["components"])])
    parse = ["users", "roles", "everyone"] if allowed is None else allowed.get("parse") or []
    # discord.py sends these ids as integers.
    named_users, named_roles = ({str(item) for item in (allowed or {}).get(key) or []} for key in ("users", "roles"))
    channel = world.channels.get(payload["channel_id"])
    may = bool(world.permissions(payload["author"]["id"], channel) & permissions.MENTION_EVERYONE)
    users = [
        world.users[user_id]
        for user_id in dict.fromkeys(re.findall(r"<@!?(\d+)>", content))
        if user_id in world.users and ("users" in parse or user_id in named_users)
    ]
    roles = [
        role_id
        for role_id in dict.fromkeys(re.findall(r"<@&(\d+)>", content))
        if role_id in world.roles
        and ("roles" in parse or role_id in named_roles)
        and (may or world.roles[role_id]["mentionable"])
    ]
    everyone = may and "everyone" in parse and bool(re.search(r"@(everyone|here)\b", content))
    return {"mentions": users, "mention_roles": roles, "mention_everyone": everyone}


def _trimmed(value: Any) -> Any:
    """An embed, or a part of one, with its texts trimmed: the limits hold for what is left."""
    if isinstance(value, dict):
        return {key: _trimmed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_trimmed(inner) for inner in value]
    return value.strip() if isinstance(value, str) else value


def _embeds(raw: list[Json], attachments: list[Json]) -> list[Json]:
    by_name = {f"attachment://{a['filename']}": a for a in attachments}
    out = []
    for embed in raw:
        shown: Json = {key: value for key, value in _trimmed(embed).items() if value is not None} | {"type": "rich"}
        for key in ("image", "thumbnail"):
            if attachment := by_name.get((embed.get(key) or {}).get("url", "")):
                shown[key] = {k: attachment[k] for k in ("url", "proxy_url", "width", "height") if k in attachment}
        for key in ("author", "footer"):
            if attachment := by_name.get((embed.get(key) or {}).get("icon_url", "")):
                shown[key] = embed[key] | {"icon_url": attachment["url"], "proxy_icon_url": attachment["proxy_url"]}
        for row in shown.get("fields", []):
            row.setdefault("inline", False)
        out.append(shown)
    return out


def build(world: World, channel_id: str, author: Json, draft: Draft, *, kind: int = 0, flags: int = 0) -> Message:
    """A new message; it is in no channel yet."""
    body = draft.body
    files = attachments.store(world, channel_id, draft, ephemeral=bool(flags & EPHEMERAL))
    embeds, components = _embeds(body.get("embeds") or [], files), parts.resolve(body.get("components") or [], files)
    message_id = world.ids.next()
    payload: Json = {
        "id": message_id,
        "type": kind,
        "channel_id": channel_id,
        "author": author,
        "content": (body.get("content") or "").strip(),
        "timestamp": snowflake_time(message_id),
        "edited_timestamp": None,
        "tts": False,
        "pinned": False,
        "attachments": attachments.unreferenced(files, embeds, components),
        "embeds": embeds,
        "components": components,
        "flags": flags,
    }
    if body.get("poll"):
        payload["poll"] = polls.shown(body["poll"])
    payload |= _mentioned(world, payload, body.get("allowed_mentions"))
    return Message(payload, files=files)


def post(world: World, message: Message) -> Message:
    """Puts a message into its channel and tells the gateway."""
    channel = world.channels[message.payload["channel_id"]]
    world.messages[channel["id"]][message.id] = message
    channel["last_message_id"] = message.id
    if channel["type"] in THREADS:
        channel["message_count"] += 1
        channel["total_message_sent"] += 1
        channel["thread_metadata"]["archived"] = False
    member = {k: v for k, v in world.members[message.author_id].items() if k != "user"}
    world.dispatch("MESSAGE_CREATE", message.payload | {"guild_id": world.guild_id, "member": member})
    return message


def edit(world: World, message: Message, draft: Draft) -> None:
    """Applies a checked edit and tells the gateway. Absent keys stay."""
    body, payload = draft.body, message.payload
    added = attachments.store(world, payload["channel_id"], draft, ephemeral=message.ephemeral_for is not None)
    message.files = attachments.kept(message.files, draft) + added
    if "content" in body:
        payload["content"] = (body["content"] or "").strip()
    if "embeds" in body:
        payload["embeds"] = _embeds(body["embeds"] or [], message.files)
    if body.get("flags") is not None:
        sticky = payload["flags"] & ~SUPPRESS_EMBEDS
        payload["flags"] = sticky | int(body["flags"]) & (SUPPRESS_EMBEDS | COMPONENTS_V2)
    if "components" in body:
        payload["components"] = parts.resolve(body["components"] or [], message.files)
    if "poll" in body:
        payload.pop("poll", None)
        if body["poll"]:
            payload["poll"] = polls.shown(body["poll"])
    payload["attachments"] = attachments.unreferenced(message.files, payload["embeds"], payload["components"])
    payload |= _mentioned(world, payload, body.get("allowed_mentions"))
    payload["flags"] &= ~LOADING
    payload["edited_timestamp"] = now_iso()
    message.edits += 1
    if message.ephemeral_for is None:
        world.dispatch("MESSAGE_UPDATE", payload | {"guild_id": world.guild_id})
    else:
        world.whisper("MESSAGE_UPDATE", message)


def pin(world: World, message: Message) -> None:
    """Pins a message, unless it is pinned, and says so in its channel. Raises ApiError 30003 where too many are."""
    payload = message.payload
    channel_id = payload["channel_id"]
    if payload["pinned"]:
        return
    if sum(one.payload["pinned"] for one in world.messages[channel_id].values()) >= MAX_PINS:
        raise ApiError(30003)
    payload["pinned"] = True
    world.dispatch("MESSAGE_UPDATE", payload | {"guild_id": world.guild_id})
    pinned = {"guild_id": world.guild_id, "channel_id": channel_id, "last_pin_timestamp": now_iso()}
    world.dispatch("CHANNEL_PINS_UPDATE", pinned)
    notice = build(world, channel_id, world.users[world.application_id], Draft({}), kind=PINNED)
    where = {"channel_id": channel_id, "message_id": message.id, "guild_id": world.guild_id}
    notice.payload["message_reference"] = {"type": 0} | where
    post(world, notice)


def delete(world: World, message: Message) -> None:
    channel_id = message.payload["channel_id"]
    if message.ephemeral_for is not None:
        world.whisper("MESSAGE_DELETE", message)
    if world.messages.get(channel_id, {}).pop(message.id, None) is not None:
        world.dispatch("MESSAGE_DELETE", {"id": message.id, "channel_id": channel_id, "guild_id": world.guild_id})
