"""What every handler of the Hub shares: who asks, what they sent, how they are refused, and faults on request."""

import functools
import hmac
import json
import re
from collections.abc import Mapping
from typing import TypeVar

import pydantic
from aiohttp import web
from aiohttp.typedefs import Handler

from sandbox.hub.store import HubError, Repo, Store

USER = "stoa"
"""Whose the one token is."""

STORE = web.AppKey("store", Store)
TOKEN = web.AppKey("token", str)
FAULTS = web.AppKey("faults", list["Fault"])

Body = TypeVar("Body", bound=pydantic.BaseModel)

# YAML reads a bare 2026-01-31 as a date, which JSON lacks.
dumps = functools.partial(json.dumps, default=str)


class Fault(pydantic.BaseModel, extra="forbid"):
    """The next `times` matching requests fail: answered by `status` and not executed, or executed and then cut off."""

    method: str | None = None
    path: str = ""
    status: int = pydantic.Field(503, ge=400, le=599)
    times: int = pydantic.Field(1, ge=1)
    retry_after: int | None = None
    code: str = ""
    cut: bool = False

    @pydantic.field_validator("path")
    @classmethod
    def _is_regex(cls, path: str) -> str:
        try:
            re.compile(path)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return path

    def matches(self, request: web.Request) -> bool:
        return self.method in (None, request.method) and re.search(self.path, request.path) is not None


async def read_body(request: web.Request, model: type[Body]) -> Body:
    """The JSON body as `model`; HubError 400 with the first thing that is wrong."""
    return parse(await request.read(), model)


def parse(data: bytes, model: type[Body]) -> Body:
    """JSON text as `model`; HubError 400 with the first thing that is wrong."""
    try:
        return model.model_validate_json(data)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise HubError(400, f"{where}: {first['msg']}") from error


def signed_in(request: web.Request) -> bool:
    """Whether a token came with the request; a wrong one was refused before any handler ran."""
    return "Authorization" in request.headers


def need_token(request: web.Request) -> None:
    if not signed_in(request):
        raise HubError(401, "Invalid username or password: this needs a token")


def may_read(request: web.Request, repo: Repo) -> bool:
    return signed_in(request) or not repo.refs["private"]


def find_repo(request: web.Request) -> Repo:
    """The repository of the URL, if the asker may read it; a private one looks absent to others, as on the Hub."""
    kind = request.match_info.get("kind", "models")
    repo_id = f"{request.match_info['ns']}/{request.match_info['name']}"
    repo = request.app[STORE].find(kind, repo_id)
    if repo is None or not may_read(request, repo):
        raise HubError(404 if signed_in(request) else 401, f"No repository {repo_id} here", "RepoNotFound")
    return repo


def is_set(given: Mapping[str, object], name: str) -> bool:
    """Whether a query or a form says yes to an option."""
    return str(given.get(name, "")).lower() in ("1", "true")


def base_url(request: web.Request) -> str:
    return f"{request.scheme}://{request.host}"


@web.middleware
async def inject_faults(request: web.Request, handler: Handler) -> web.StreamResponse:
    faults = request.app[FAULTS]
    fault = next((fault for fault in faults if fault.matches(request)), None)
    if fault is None or request.path.startswith("/sandbox/"):
        return await handler(request)
    fault.times -= 1
    if not fault.times:
        faults.remove(fault)
    if not fault.cut:
        headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
        headers |= {"X-Error-Code": fault.code} if fault.code else {}
        return web.json_response({"error": "A fault was asked for"}, status=fault.status, headers=headers)
    response = await handler(request)
    if request.transport is not None:
        request.transport.abort()
    return response


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except HubError as error:
        # A sentence may quote what was sent, and a header holds neither line ends nor letters beyond ASCII.
        headers = {"X-Error-Message": ascii(str(error))[1:-1]}
        if error.code:
            headers["X-Error-Code"] = error.code
        if commit := error.fields.get("commit"):
            headers["X-Repo-Commit"] = commit
        return web.json_response({"error": str(error), **error.fields}, status=error.status, headers=headers)
    except (web.HTTPNotFound, web.HTTPMethodNotAllowed) as error:
        if not request.path.startswith("/api/"):
            raise
        said = f"The Hub on loopback has no {request.method} {request.path}"
        return web.json_response({"error": said}, status=error.status)


@web.middleware
async def check_token(request: web.Request, handler: Handler) -> web.StreamResponse:
    given = request.headers.get("Authorization")
    expected = f"Bearer {request.app[TOKEN]}"
    if given is not None and not hmac.compare_digest(given.encode(errors="surrogateescape"), expected.encode()):
        raise HubError(401, "Invalid credentials in Authorization header")
    return await handler(request)


async def list_faults(request: web.Request) -> web.Response:
    return web.json_response([fault.model_dump() for fault in request.app[FAULTS]])


async def add_fault(request: web.Request) -> web.Response:
    request.app[FAULTS].append(await read_body(request, Fault))
    return await list_faults(request)


async def clear_faults(request: web.Request) -> web.Response:
    request.app[FAULTS].clear()
    return await list_faults(request)


ROUTES = [
    web.get("/sandbox/faults", list_faults),
    web.post("/sandbox/faults", add_fault),
    web.delete("/sandbox/faults", clear_faults),
]
