"""What the REST handlers share: the server's parts, the parsed body, answers, and the checks before a handler."""

import json
import re
from dataclasses import dataclass, field
from typing import Any

from aiohttp import BodyPartReader, web

from sandbox.discord.attachments import MAX_REQUEST_BYTES, Draft, Upload
from sandbox.discord.errors import ApiError, Json, bare
from sandbox.discord.form import Form
from sandbox.discord.gateway import Gateway
from sandbox.discord.journal import Journal
from sandbox.discord.rates import Rates
from sandbox.discord.state import World
from sandbox.faults import Faults


@dataclass
class Server:
    """The parts of one loopback Discord."""

    world: World
    gateway: Gateway
    journal: Journal
    rates: Rates = field(default_factory=Rates)
    faults: Faults = field(default_factory=Faults)


SERVER = web.AppKey("server", Server)
BODY = web.RequestKey("body", Draft)


def server_of(request: web.Request) -> Server:
    return request.app[SERVER]


def world_of(request: web.Request) -> World:
    return request.app[SERVER].world


def reply(body: Any = None, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """An answer in Discord's way: the content type bare of a charset, or 204 with nothing."""
    if status == 204:
        return web.Response(status=204, headers=headers)
    return web.Response(body=json.dumps(body).encode(), status=status, content_type="application/json", headers=headers)


def json_object(request: web.Request) -> Json:
    """The request's JSON object.

    Raises ApiError 50035 where it is something else.
    """
    body = request[BODY].body
    if not isinstance(body, dict):
        form = Form()
        form.fault("MODEL_TYPE_CONVERT", "Only dictionaries may be used in a ModelType")
        form.close()
    return body


def draft_of(request: web.Request) -> Draft:
    json_object(request)
    return request[BODY]


async def read_body(request: web.Request) -> Draft:
    """The body of a request: JSON, or multipart with `payload_json` and `files[n]`, or with `file` and fields of text.

    Raises ApiError 50109 for broken JSON, 40005 for a request over 25 MiB.
    """
    if (request.content_length or 0) > MAX_REQUEST_BYTES:
        raise ApiError(40005)
    if not request.can_read_body:
        return Draft({})
    if not request.content_type.startswith("multipart/"):
        return Draft(_parse(await request.read()))
    body: Json = {}
    uploads: list[Upload] = []
    async for part in await request.multipart():
        if not isinstance(part, BodyPartReader):
            continue
        data = bytes(await part.read())
        if part.name == "payload_json":
            body = _parse(data)
        elif match := re.fullmatch(r"files\[(\d+)\]", part.name or ""):
            uploads.append(Upload(int(match[1]), part.filename or "unknown", data))
        elif part.name == "file":
            uploads.append(Upload(0, part.filename or "unknown", data))
        elif part.name:
            body[part.name] = data.decode(errors="replace")
        if sum(len(upload.data) for upload in uploads) > MAX_REQUEST_BYTES:
            raise ApiError(40005)
    return Draft(body, uploads)


def _parse(data: bytes) -> Any:
    if not data:
        return {}
    try:
        return json.loads(data)
    except ValueError:
        raise ApiError(50109) from None


def require_bot(request: web.Request) -> None:
    """Raises 401 unless the request carries the bot's token."""
    if request.headers.get("Authorization") != f"Bot {world_of(request).bot_token}":
        raise bare(401, "Unauthorized")
