"""Discussions of a repository, which pull requests are too: what was said, their titles and how they stand.

Each is a file `discussions/{num}.json` beside the repository's commits, in the form in which the Hub tells of it.
"""

import html
import json
import secrets
from typing import Any, Literal

import pydantic
from aiohttp import web

from sandbox.hub import pull_requests
from sandbox.hub.http import USER, find_repo, need_token, read_body
from sandbox.hub.store import Commit, HubError, Repo, now, write

PAGE = 10
Discussion = dict[str, Any]


class New(pydantic.BaseModel):
    title: str = pydantic.Field(min_length=3, max_length=200)
    description: str = pydantic.Field(max_length=65536)
    pullRequest: bool = False  # noqa: N815 (the name on the wire)


class Comment(pydantic.BaseModel):
    comment: str = pydantic.Field(min_length=1, max_length=65536)


class Edit(pydantic.BaseModel):
    content: str = pydantic.Field(min_length=1, max_length=65536)


class Title(pydantic.BaseModel):
    title: str = pydantic.Field(min_length=3, max_length=200)


class Status(pydantic.BaseModel):
    status: Literal["open", "closed"]
    comment: str | None = None


class Merge(pydantic.BaseModel):
    comment: str | None = None


def start(repo: Repo, title: str, description: str, *, status: str = "open", head: Commit | None = None) -> Discussion:
    """A new discussion; a pull request where it has a head, the commit that its branch starts from."""
    num = max((each["num"] for each in every(repo)), default=0) + 1
    opened: Discussion = {
        "num": num,
        "title": title,
        "status": status,
        "author": {"name": USER},
        "createdAt": now(),
        "isPullRequest": head is not None,
        "repo": {"name": repo.id, "type": repo.kind.removesuffix("s")},
        "events": [_comment(description)],
    }
    if head is not None:
        opened["changes"] = {"base": "refs/heads/main"}
        repo.point_pull_request(num, head)
    _keep(repo, opened)
    return opened


def add_commit(repo: Repo, num: int, commit: Commit) -> None:
    """Tell of a commit on a pull request's branch."""
    found = _load(repo, num)
    found["events"].append(_event("commit", subject=commit.title, oid=commit.id))
    _keep(repo, found)


def every(repo: Repo) -> list[Discussion]:
    """All discussions of a repository, the newest first."""
    found = [json.loads(path.read_text()) for path in (repo.folder / "discussions").glob("*.json")]
    return sorted(found, key=lambda each: int(each["num"]), reverse=True)


def _load(repo: Repo, num: int) -> Discussion:
    path = repo.folder / "discussions" / f"{num}.json"
    if not path.exists():
        raise HubError(404, f"{repo.id} has no discussion {num}", "DiscussionNotFound")
    found: Discussion = json.loads(path.read_text())
    return found


def _keep(repo: Repo, discussion: Discussion) -> None:
    text = json.dumps(discussion, indent=1)
    write(repo.folder / "discussions" / f"{discussion['num']}.json", text.encode())


def _event(kind: str, **data: object) -> dict[str, Any]:
    author = {"name": USER}
    return {"id": secrets.token_hex(12), "type": kind, "createdAt": now(), "author": author, "data": data}


def _comment(said: str) -> dict[str, Any]:
    latest = _version(said)
    return _event("comment", edited=False, hidden=False, latest=latest, history=[latest], reactions=[])


def _version(said: str) -> dict[str, Any]:
    return {"raw": said, "html": f"<p>{html.escape(said)}</p>", "updatedAt": now(), "author": {"name": USER}}


def _asked(request: web.Request) -> tuple[Repo, Discussion]:
    """The repository and the discussion of the URL."""
    repo = find_repo(request)
    return repo, _load(repo, int(request.match_info["num"]))


async def list_all(request: web.Request) -> web.Response:
    """The discussions of a kind, status and author, a page of them."""
    repo, query = find_repo(request), request.query
    page = query.get("p", "0")
    if not (page.isascii() and page.isdigit() and len(page) < 9):
        raise HubError(400, f"p: {page!a} is not the number of a page")
    kinds = {"discussion": (False,), "pull_request": (True,)}.get(query.get("type", "all"), (False, True))
    statuses = {"open": ("open", "draft"), "closed": ("closed", "merged")}.get(query.get("status", "all"))
    found = [
        {key: value for key, value in each.items() if key not in ("events", "changes")}
        for each in every(repo)
        if each["isPullRequest"] in kinds
        and (statuses is None or each["status"] in statuses)
        and query.get("author", each["author"]["name"]) == each["author"]["name"]
    ]
    first = int(page) * PAGE
    return web.json_response({"discussions": found[first : first + PAGE], "count": len(found), "start": first})


async def show(request: web.Request) -> web.Response:
    """A discussion with all that happened in it, and of a pull request what it changes."""
    repo, found = _asked(request)
    if found["isPullRequest"]:
        found |= pull_requests.compared(request, repo, found)
    return web.json_response(found)


async def create(request: web.Request) -> web.Response:
    """Open a discussion, or a pull request as a draft without changes."""
    need_token(request)
    repo, new = find_repo(request), await read_body(request, New)
    head = repo.find("main") if new.pullRequest else None
    status = "draft" if new.pullRequest else "open"
    opened = start(repo, new.title, new.description, status=status, head=head)
    return web.json_response({"num": opened["num"], "url": f"/{repo.path}/discussions/{opened['num']}"})


async def comment(request: web.Request) -> web.Response:
    need_token(request)
    said = await read_body(request, Comment)
    repo, found = _asked(request)
    found["events"].append(_comment(said.comment))
    _keep(repo, found)
    return web.json_response({"newMessage": found["events"][-1]})


async def rename(request: web.Request) -> web.Response:
    need_token(request)
    new = await read_body(request, Title)
    repo, found = _asked(request)
    found["events"].append(_event("title-change", **{"from": found["title"], "to": new.title}))
    found["title"] = new.title
    _keep(repo, found)
    return web.json_response({"newTitle": found["events"][-1]})


async def change_status(request: web.Request) -> web.Response:
    """Open or close a discussion; to open the draft of a pull request makes it ready."""
    need_token(request)
    new = await read_body(request, Status)
    repo, found = _asked(request)
    if found["status"] == "merged":
        raise HubError(400, "A pull request that is merged stays so")
    if found["status"] == new.status:
        raise HubError(400, f"It is {new.status} already")
    _say(found, new.comment)
    _stand(found, new.status)
    _keep(repo, found)
    return web.json_response({"newStatus": found["events"][-1]})


async def merge(request: web.Request) -> web.Response:
    """Put the changes of a pull request on its target as one commit."""
    need_token(request)
    body = await request.read()
    said = Merge() if body in (b"", b"null") else await read_body(request, Merge)
    repo, found = _asked(request)
    if not found["isPullRequest"]:
        raise HubError(400, "This is a discussion: only a pull request can be merged")
    if found["status"] != "open":
        raise HubError(400, f"The pull request is {found['status']}: only an open one can be merged")
    merged = pull_requests.merge(repo, found)
    _say(found, said.comment)
    _stand(found, "merged")
    found["changes"]["mergeCommitId"] = merged.id
    _keep(repo, found)
    return web.json_response({"newStatus": found["events"][-1]})


async def edit(request: web.Request) -> web.Response:
    need_token(request)
    new = await read_body(request, Edit)
    repo, found = _asked(request)
    event = _of_comment(request, found)
    latest = _version(new.content)
    event["data"] |= {"edited": True, "latest": latest, "history": [latest, *event["data"]["history"]]}
    _keep(repo, found)
    return web.json_response({"updatedComment": event})


async def hide(request: web.Request) -> web.Response:
    """Hide a comment for good: its text is gone."""
    need_token(request)
    repo, found = _asked(request)
    event = _of_comment(request, found)
    event["data"] |= {"hidden": True, "latest": _version("This comment has been hidden"), "history": []}
    _keep(repo, found)
    return web.json_response({"updatedComment": event})


def _of_comment(request: web.Request, found: Discussion) -> dict[str, Any]:
    wanted = request.match_info["comment"]
    for event in found["events"]:
        if event["id"] == wanted and event["type"] == "comment" and not event["data"]["hidden"]:
            changed: dict[str, Any] = event
            return changed
    raise HubError(404, f"There is no comment {wanted} to change")


def _say(found: Discussion, said: str | None) -> None:
    if said:
        found["events"].append(_comment(said))


def _stand(found: Discussion, status: str) -> None:
    found["events"].append(_event("status-change", status=status))
    found["status"] = status


_API = "/api/{kind:models|datasets|spaces}/{ns}/{name}/discussions"
_ONE = _API + r"/{num:\d{1,9}}"
ROUTES = [
    web.get(_API, list_all),
    web.post(_API, create),
    web.get(_ONE, show),
    web.post(_ONE + "/comment", comment),
    web.post(_ONE + "/comment/{comment}/edit", edit),
    web.post(_ONE + "/comment/{comment}/hide", hide),
    web.post(_ONE + "/title", rename),
    web.post(_ONE + "/status", change_status),
    web.post(_ONE + "/merge", merge),
]
