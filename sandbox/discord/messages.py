"""Messages: the checks of what is sent, attachments on disk, and making, editing and deleting them."""

import mimetypes
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandbox.discord import components as parts
from sandbox.discord.errors import ApiError, Json
from sandbox.discord.form import Form
from sandbox.discord.state import THREADS, Message, World, now_iso, snowflake_time

SUPPRESS_EMBEDS, HAS_THREAD, EPHEMERAL, LOADING = 1 << 2, 1 << 5, 1 << 6, 1 << 7
SUPPRESS_NOTIFICATIONS, COMPONENTS_V2 = 1 << 12, 1 << 15
MAX_FILES, MAX_FILE_BYTES, MAX_REQUEST_BYTES = 10, 10 * 2**20, 25 * 2**20
ATTACHMENT_LIMIT = 10 * 2**20

LEGACY_WITH_V2 = "The 'content', 'embeds' and 'poll' fields cannot be used when using MessageFlags.IS_COMPONENTS_V2"


@dataclass(frozen=True)
class Upload:
    """A file of a multipart request: its number in `files[n]`, name and bytes."""

    index: int
    filename: str
    data: bytes


@dataclass
class Draft:
    """A checked request for a message: the JSON body and its files."""

    body: Json
    uploads: list[Upload] = field(default_factory=list)


def safe_name(filename: str) -> str:
    """The name Discord gives an uploaded file: letters, digits, dot, dash and underscore."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", Path(filename).name).lstrip(".")[:255] or "unknown"


def _declared(body: Json, uploads: list[Upload]) -> dict[str, Json]:
    """The `attachments` entries of a body by their id as a string; integer ids are numbers of uploaded files."""
    entries = body.get("attachments")
    if not isinstance(entries, list):
        return {str(upload.index): {"id": upload.index} for upload in uploads}
    return {str(entry.get("id")): entry for entry in entries if isinstance(entry, dict)}


def check(form: Form, draft: Draft, *, before: Json | None = None, edit: bool = False) -> None:
    """Faults of a message's body. `before` is the stored payload of the message that an edit changes.

    Raises ApiError 50006 for an empty message, 40005 for files over the limit.
    """
    body, uploads = draft.body, draft.uploads
    if len(uploads) > MAX_FILES:
        form.at("attachments").fault("BASE_TYPE_MAX_LENGTH", f"Must be {MAX_FILES} or fewer in length.")
    if any(len(upload.data) > MAX_FILE_BYTES for upload in uploads):
        raise ApiError(40005)
    form.text(body, "content", 0, 2000)
    form.text(body, "nonce", 0, 25) if not isinstance(body.get("nonce"), int) else None
    flags = form.integer(body, "flags", 0, 2**31 - 1) or 0
    had = before or {}
    v2 = bool((flags | had.get("flags", 0)) & COMPONENTS_V2)
    _check_embeds(form, form.items(body, "embeds", 0, 10))
    _check_attachments(form, body, uploads)
    _check_mentions(form, body.get("allowed_mentions"))
    if v2:
        for key in ("content", "embeds", "poll", "sticker_ids"):
            if body.get(key):
                form.at(key).fault("MESSAGE_CANNOT_USE_LEGACY_FIELDS_WITH_COMPONENTS_V2", LEGACY_WITH_V2)
    declared = _declared(body, uploads)
    kept = _kept(had.get("attachments", []), draft)
    names = {safe_name(declared.get(str(u.index), {}).get("filename") or u.filename) for u in uploads}
    if body.get("components") is not None:
        listed = form.items(body, "components", 0, parts.MAX_COMPONENTS)
        parts.check_message(form.at("components"), listed, v2=v2, files=names | {a["filename"] for a in kept})
    elif v2 and names:
        form.at("components").fault("BASE_TYPE_REQUIRED", "Uploaded files must be referenced by a component")
    form.close()
    _check_empty(body, had, v2=v2, files=bool(names or kept), edit=edit)


def _check_empty(body: Json, had: Json, *, v2: bool, files: bool, edit: bool) -> None:
    fields = ("components",) if v2 else ("content", "embeds", "components", "sticker_ids", "poll")
    after = {key: (body if key in body or not edit else had).get(key) for key in fields}
    after["content"] = (after.get("content") or "").strip()
    if not any(after[key] for key in fields) and not (files and not v2):
        raise ApiError(50006)


def _check_attachments(form: Form, body: Json, uploads: list[Upload]) -> None:
    indexes = {str(upload.index) for upload in uploads}
    for number, entry in enumerate(form.items(body, "attachments", 0, MAX_FILES)):
        here = form.at("attachments", number)
        if not isinstance(entry, dict) or not str(entry.get("id", "")).isdigit():
            here.at("id").fault("NUMBER_TYPE_COERCE", "Value is not snowflake.")
            continue
        here.text(entry, "description", 0, 1024)
        if int(entry["id"]) < 2**22 and str(entry["id"]) not in indexes:
            here.at("id").fault("ATTACHMENT_NOT_FOUND", "Attachment data was not found")


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


def store_uploads(world: World, channel_id: str, draft: Draft, *, ephemeral: bool = False) -> list[Json]:
    """Writes a draft's files below the sandbox's folder and gives their attachment objects."""
    declared = _declared(draft.body, draft.uploads)
    stored = []
    for upload in draft.uploads:
        entry = declared.get(str(upload.index), {})
        name = safe_name(entry.get("filename") or upload.filename)
        attachment_id = world.ids.next()
        place = f"attachments/{channel_id}/{attachment_id}/{name}"
        path = world.root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(upload.data)
        world.attachments[attachment_id] = path
        url = f"{world.base_url}/{place}"
        attachment: Json = {
            "id": attachment_id,
            "filename": name,
            "size": len(upload.data),
            "url": url,
            "proxy_url": url,
            "content_type": mimetypes.guess_type(name)[0] or "application/octet-stream",
        }
        if upload.data.startswith(b"\x89PNG\r\n\x1a\n") and len(upload.data) >= 24:
            attachment["width"], attachment["height"] = struct.unpack(">II", upload.data[16:24])
        if entry.get("description"):
            attachment["description"] = entry["description"]
        if ephemeral:
            attachment["ephemeral"] = True
        stored.append(attachment)
    return stored


def _mentions(world: World, content: str, allowed: Json | None) -> tuple[list[Json], list[str], bool]:
    """Who a message pings: users, roles and whether everyone, after `allowed_mentions` (absent: all)."""
    parse = ["users", "roles", "everyone"] if allowed is None else allowed.get("parse") or []
    # discord.py sends these ids as integers.
    named_users, named_roles = ({str(item) for item in (allowed or {}).get(key) or []} for key in ("users", "roles"))
    users = [
        world.users[user_id]
        for user_id in dict.fromkeys(re.findall(r"<@!?(\d+)>", content))
        if user_id in world.users and ("users" in parse or user_id in named_users)
    ]
    roles = [
        role_id
        for role_id in dict.fromkeys(re.findall(r"<@&(\d+)>", content))
        if role_id in world.roles and ("roles" in parse or role_id in named_roles)
    ]
    everyone = "everyone" in parse and bool(re.search(r"@(everyone|here)\b", content))
    return users, roles, everyone


def _embeds(raw: list[Json], attachments: list[Json]) -> list[Json]:
    by_name = {f"attachment://{a['filename']}": a for a in attachments}
    out = []
    for embed in raw:
        shown: Json = {key: value for key, value in embed.items() if value is not None} | {"type": "rich"}
        for key in ("image", "thumbnail"):
            if attachment := by_name.get((embed.get(key) or {}).get("url", "")):
                shown[key] = {k: attachment[k] for k in ("url", "proxy_url", "width", "height") if k in attachment}
        for row in shown.get("fields", []):
            row.setdefault("inline", False)
        out.append(shown)
    return out


def build(world: World, channel_id: str, author: Json, draft: Draft, *, kind: int = 0, flags: int = 0) -> Json:
    """The stored form of a new message; it is in no channel yet."""
    body = draft.body
    attachments = store_uploads(world, channel_id, draft, ephemeral=bool(flags & EPHEMERAL))
    text = "\n".join([body.get("content") or "", *parts.texts(body.get("components") or [])])
    users, roles, everyone = _mentions(world, text, body.get("allowed_mentions"))
    message_id = world.ids.next()
    return {
        "id": message_id,
        "type": kind,
        "channel_id": channel_id,
        "author": author,
        "content": (body.get("content") or "").strip(),
        "timestamp": snowflake_time(message_id),
        "edited_timestamp": None,
        "tts": False,
        "pinned": False,
        "mention_everyone": everyone,
        "mentions": users,
        "mention_roles": roles,
        "attachments": attachments,
        "embeds": _embeds(body.get("embeds") or [], attachments),
        "components": parts.resolve(body.get("components") or [], attachments),
        "flags": flags,
    }


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
    added = store_uploads(world, payload["channel_id"], draft, ephemeral=message.ephemeral_for is not None)
    payload["attachments"] = _kept(payload["attachments"], draft) + added
    if "content" in body:
        payload["content"] = (body["content"] or "").strip()
    if "embeds" in body:
        payload["embeds"] = _embeds(body["embeds"] or [], payload["attachments"])
    if body.get("flags") is not None:
        sticky = payload["flags"] & ~SUPPRESS_EMBEDS
        payload["flags"] = sticky | int(body["flags"]) & (SUPPRESS_EMBEDS | COMPONENTS_V2)
    if "components" in body:
        payload["components"] = parts.resolve(body["components"] or [], payload["attachments"])
    text = "\n".join([payload["content"], *parts.texts(payload["components"])])
    users, roles, everyone = _mentions(world, text, body.get("allowed_mentions"))
    payload |= {"mentions": users, "mention_roles": roles, "mention_everyone": everyone}
    payload["flags"] &= ~LOADING
    payload["edited_timestamp"] = now_iso()
    message.edits += 1
    if message.ephemeral_for is None:
        world.dispatch("MESSAGE_UPDATE", payload | {"guild_id": world.guild_id})
    else:
        world.whisper("MESSAGE_UPDATE", message)


def _kept(had: list[Json], draft: Draft) -> list[Json]:
    """The attachments that stay: those an edit lists, or all where it neither lists any nor brings a file."""
    if "attachments" not in draft.body and not draft.uploads:
        return had
    listed = _declared({"attachments": draft.body.get("attachments") or []}, [])
    return [a | _described(listed[a["id"]]) for a in had if a["id"] in listed]


def _described(entry: Json) -> Json:
    return {"description": entry["description"]} if entry.get("description") else {}


def delete(world: World, message: Message) -> None:
    channel_id = message.payload["channel_id"]
    if message.ephemeral_for is not None:
        world.whisper("MESSAGE_DELETE", message)
    if world.messages.get(channel_id, {}).pop(message.id, None) is not None:
        world.dispatch("MESSAGE_DELETE", {"id": message.id, "channel_id": channel_id, "guild_id": world.guild_id})
