"""Files of messages: those a request brings, those an edit keeps, and which of them Discord lists."""

import mimetypes
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandbox.discord import components as parts
from sandbox.discord.errors import Json
from sandbox.discord.form import Form
from sandbox.discord.state import World

MAX_FILES, MAX_FILE_BYTES, MAX_REQUEST_BYTES = 10, 10 * 2**20, 25 * 2**20
ATTACHMENT_LIMIT = 10 * 2**20


@dataclass(frozen=True)
class Upload:
    """A file of a multipart request: its number in `files[n]`, name and bytes."""

    index: int
    filename: str
    data: bytes


@dataclass
class Draft:
    """A request for a message: the JSON body and its files."""

    body: Json
    uploads: list[Upload] = field(default_factory=list)


def safe_name(filename: str) -> str:
    """The name Discord gives an uploaded file: letters, digits, dot, dash and underscore."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", Path(filename).name).lstrip(".")[:255] or "unknown"


def _listed(draft: Draft) -> dict[str, Json] | None:
    """The entries of a body's `attachments` by their ids as strings; None where it has no such list."""
    entries = draft.body.get("attachments")
    if not isinstance(entries, list):
        return None
    return {str(entry.get("id")): entry for entry in entries if isinstance(entry, dict)}


def check(form: Form, draft: Draft) -> None:
    """Faults of the `attachments` of a body."""
    indexes = {str(upload.index) for upload in draft.uploads}
    for number, entry in enumerate(form.items(draft.body, "attachments", 0, MAX_FILES)):
        here = form.at("attachments", number)
        if not isinstance(entry, dict) or not str(entry.get("id", "")).isdigit():
            here.at("id").fault("NUMBER_TYPE_COERCE", "Value is not snowflake.")
            continue
        here.text(entry, "description", 0, 1024)
        if int(entry["id"]) < 2**22 and str(entry["id"]) not in indexes:
            here.at("id").fault("ATTACHMENT_NOT_FOUND", "Attachment data was not found")


def referable(draft: Draft, had: list[Json] | None = None) -> set[str]:
    """The names that `attachment://` may refer to; `had` are the files of the message that an edit changes.

    An edit must list each of them in `attachments`: an upload by its number, a file that stays by its id.
    """
    listed = _listed(draft)
    entries = listed or {}
    new = {
        safe_name(entries.get(str(upload.index), {}).get("filename") or upload.filename)
        for upload in draft.uploads
        if had is None or str(upload.index) in entries
    }
    return new | {file["filename"] for file in had or [] if file["id"] in entries}


def kept(had: list[Json], draft: Draft) -> list[Json]:
    """The files that stay: those an edit lists, or all where it neither lists any nor brings one."""
    listed = _listed(draft)
    if listed is None and not draft.uploads and "attachments" not in draft.body:
        return had
    return [file | _described(listed[file["id"]]) for file in had if listed and file["id"] in listed]


def _described(entry: Json) -> Json:
    return {"description": entry["description"]} if entry.get("description") else {}


def unreferenced(files: list[Json], embeds: list[Json], components: list[Json]) -> list[Json]:
    """The files that Discord lists in a message's `attachments`: those that neither an embed nor a component shows."""
    shown = {slot.get("attachment_id") for component in parts.walk(components) for slot in parts.media(component)}
    urls = {value for embed in embeds for value in _addresses(embed)}
    return [file for file in files if file["id"] not in shown and file["url"] not in urls]


def _addresses(embed: Json) -> list[Any]:
    pictures = [(embed.get(key) or {}).get("url") for key in ("image", "thumbnail")]
    return pictures + [(embed.get(key) or {}).get("icon_url") for key in ("author", "footer")]


def store(world: World, channel_id: str, draft: Draft, *, ephemeral: bool = False) -> list[Json]:
    """Writes a draft's files below the sandbox's folder and gives their attachment objects."""
    entries = _listed(draft) or {}
    stored = []
    for upload in draft.uploads:
        entry = entries.get(str(upload.index), {})
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
