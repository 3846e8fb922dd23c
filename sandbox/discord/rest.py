"""Discord's REST API v10: every request passes here, is recorded, limited and answered in Discord's form."""

import json
import logging
import math
import time
from collections.abc import Awaitable, Callable

from aiohttp import web

from sandbox.discord import (
    rest_channels,
    rest_commands,
    rest_guild,
    rest_interactions,
    rest_messages,
    rest_threads,
    stickers,
)
from sandbox.discord.attachments import Draft
from sandbox.discord.errors import ApiError, Json, bare
from sandbox.discord.journal import STRUCK
from sandbox.discord.wire import BODY, read_body, reply, require_bot, server_of
from sandbox.faults import Fault

PREFIX = "/api/v10"
MAJOR = ("channel_id", "guild_id", "webhook_id", "webhook_token", "interaction_token")
TOKENLESS = ("/webhooks/{webhook_id}/{webhook_token}", "/interactions/")
REASONS = {500: "Internal Server Error", 502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout"}

log = logging.getLogger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def add_routes(app: web.Application) -> None:
    for module in (rest_guild, rest_commands, rest_channels, rest_messages, rest_threads, rest_interactions, stickers):
        for route in module.ROUTES:
            app.router.add_route(route.method, PREFIX + route.path, route.handler)


@web.middleware
async def discord_api(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Around every request below /api: record, faults, limits, authorisation, and errors as JSON."""
    if not request.path.startswith("/api/"):
        return await handler(request)
    server = server_of(request)
    started = time.time()
    path = request.path.removeprefix(PREFIX)
    fault = server.faults.take(request.method, path)
    draft: Draft | None = None
    response: web.StreamResponse
    body: Json | None
    if fault is not None and fault.delay:
        await server.faults.delay(fault.delay)
        if request.transport is None:  # whoever asked is gone, and what they asked for never arrived
            return web.Response()
    shut_out = server.rates.shut_out()
    if shut_out is not None:
        response, body = _shut_out(shut_out), None
    elif fault is not None and fault.status is not None and not fault.cut:
        response, body = _failed(fault)
    else:
        try:
            draft = request[BODY] = await read_body(request)
            response, body = await _answer(request, handler)
        except ApiError as error:
            response, body = reply(error.body, error.status), error.body
        if fault is not None and fault.status is not None:
            response, body = _failed(fault)
    server.rates.answered(response.status, shared=response.headers.get("X-RateLimit-Scope") == "shared")
    server.journal.exchange(
        {
            "at": round(started, 3),
            "method": request.method,
            "path": _public_path(request, path),
            "query": dict(request.query),
            "request": draft.body if draft and (draft.body or request.can_read_body) else None,
            "files": [
                {"name": f"files[{upload.index}]", "filename": upload.filename, "size": len(upload.data)}
                for upload in (draft.uploads if draft else [])
            ],
            "status": response.status,
            "response": body,
            "fault": None if fault is None else {"status": fault.status, "cut": fault.cut, "delay": fault.delay},
        }
    )
    if fault is not None and fault.cut and fault.status is None and request.transport is not None:
        request.transport.abort()
    return response


async def _answer(request: web.Request, handler: Handler) -> tuple[web.StreamResponse, Json | None]:
    """The handler's answer with its rate-limit headers, or the error that took its place."""
    server = server_of(request)
    resource = request.match_info.route.resource
    if resource is None:
        known = request.match_info.http_exception
        raise bare(405, "Method Not Allowed") if known and known.status == 405 else bare(404, "Not Found")
    template = resource.canonical.removeprefix(PREFIX)
    tokenless = template.startswith(TOKENLESS)
    major = "+".join(request.match_info[key] for key in MAJOR if key in request.match_info)
    limits, refusal = server.rates.take(f"{request.method} {template}", major, counts_globally=not tokenless)
    # A request without a `Via` header would look to discord.py like a ban by the network in front of Discord.
    headers = limits | {"Via": "1.1 sandbox"}
    if refusal is not None:
        return reply(refusal, 429, headers), refusal
    try:
        if not tokenless:
            require_bot(request)
        response = await handler(request)
    except ApiError as error:
        if error.status == 429:
            headers |= {"Retry-After": str(int(error.body["retry_after"]) + 1), "X-RateLimit-Scope": "user"}
        return reply(error.body, error.status, headers), error.body
    except Exception:
        # A failure of the sandbox's own belongs in the journal too, where tests look for it.
        log.exception("%s %s failed", request.method, template)
        failed = bare(500, REASONS[500])
        return reply(failed.body, failed.status, headers), failed.body
    response.headers.update(headers)
    return response, _body_of(response)


def _shut_out(seconds: float) -> web.Response:
    """What the network in front of Discord says: no JSON, and no `Via`."""
    headers = {"Retry-After": str(math.ceil(seconds))}
    return web.Response(text="error code: 1015", status=429, headers=headers, content_type="text/plain")


def _body_of(response: web.StreamResponse) -> Json | None:
    if isinstance(response, web.Response) and isinstance(response.body, bytes) and response.body:
        parsed: Json = json.loads(response.body)
        return parsed
    return None


def _failed(fault: Fault) -> tuple[web.Response, Json]:
    status = fault.status or 500
    if status == 429:
        body: Json = {
            "message": "You are being rate limited.",
            "retry_after": fault.retry_after,
            "global": False,
            "code": 0,
        }
        headers = {"Retry-After": str(int(fault.retry_after) + 1), "X-RateLimit-Scope": "shared", "Via": "1.1 sandbox"}
        return reply(body, 429, headers), body
    body = {"message": f"{status}: {REASONS.get(status, 'Error')}", "code": 0}
    return reply(body, status, {"Via": "1.1 sandbox"}), body


def _public_path(request: web.Request, path: str) -> str:
    for key in ("webhook_token", "interaction_token"):
        if secret := request.match_info.get(key):
            path = path.replace(secret, STRUCK)
    return path
