"""A Hugging Face Hub on loopback: repositories with branches, files and LFS, as far as the stock client uses them.

One token writes to every namespace; reading a public repository needs none. Xet is not offered: the client must run
with HF_HUB_DISABLE_XET=1.
"""

import html
import pathlib
from typing import Any, Literal

import pydantic
from aiohttp import web

from sandbox.hub import accounts, discussions, http, info, listing, pages, upload
from sandbox.hub.http import STORE, USER, base_url, find_repo, is_set, need_token, read_body
from sandbox.hub.listing import expanded
from sandbox.hub.store import PULL_REQUEST, Commit, HubError, Repo, Store, check_path

# A commit carries its regular files inline; content above that size belongs in LFS.
BODY_MAX_BYTES = 256 * 1024 * 1024


class NamedRepo(pydantic.BaseModel):
    """The repository that a body names: the user's own where it names no organization."""

    name: str
    organization: str | None = None
    type: Literal["model", "dataset", "space"] | None = None

    @property
    def kind(self) -> str:
        return f"{self.type or 'model'}s"

    @property
    def id(self) -> str:
        return f"{self.organization or USER}/{self.name}"


class NewRepo(NamedRepo):
    visibility: Literal["public", "private"] | None = None
    private: bool | None = None


class Settings(pydantic.BaseModel):
    visibility: Literal["public", "private"] | None = None
    private: bool | None = None


class NewBranch(pydantic.BaseModel):
    startingPoint: str = "main"  # noqa: N815 (the name on the wire)


class NewTag(pydantic.BaseModel):
    tag: str
    message: str | None = None


class Squash(pydantic.BaseModel):
    message: str = "Squash the history"


class Card(pydantic.BaseModel):
    content: str


async def whoami(request: web.Request) -> web.Response:
    need_token(request)
    access = {"type": "access_token", "accessToken": {"displayName": "sandbox", "role": "write"}}
    return web.json_response({"type": "user", "id": USER, "name": USER, "fullname": USER, "orgs": [], "auth": access})


async def create_repo(request: web.Request) -> web.Response:
    need_token(request)
    new = await read_body(request, NewRepo)
    path = new.id if new.kind == "models" else f"{new.kind}/{new.id}"
    url = f"{base_url(request)}/{path}"
    try:
        request.app[STORE].create(new.kind, new.id, private=bool(new.private) or new.visibility == "private")
    except HubError as error:
        if error.status == 409:
            raise HubError(409, str(error), url=url) from error
        raise
    return web.json_response({"url": url, "name": new.id})


async def change_settings(request: web.Request) -> web.Response:
    """Open a repository to everyone, or close it."""
    need_token(request)
    repo = find_repo(request)
    asked = await read_body(request, Settings)
    if asked.visibility is None and asked.private is None:
        raise HubError(400, "visibility: say public or private")
    repo.show(private=bool(asked.private) or asked.visibility == "private")
    return web.json_response({"private": repo.refs["private"]})


async def create_branch(request: web.Request) -> web.Response:
    need_token(request)
    repo = find_repo(request)
    new = await read_body(request, NewBranch)
    repo.add_ref("branches", request.match_info["rev"], new.startingPoint)
    return web.json_response({})


async def create_tag(request: web.Request) -> web.Response:
    need_token(request)
    repo = find_repo(request)
    new = await read_body(request, NewTag)
    repo.add_ref("tags", new.tag, request.match_info["rev"])
    return web.json_response({})


async def delete_branch(request: web.Request) -> web.Response:
    need_token(request)
    find_repo(request).delete_ref("branches", request.match_info["rev"])
    return web.json_response({})


async def delete_tag(request: web.Request) -> web.Response:
    need_token(request)
    find_repo(request).delete_ref("tags", request.match_info["rev"])
    return web.json_response({})


async def delete_repo(request: web.Request) -> web.Response:
    need_token(request)
    asked = await read_body(request, NamedRepo)
    repo = request.app[STORE].find(asked.kind, asked.id)
    if repo is None:
        raise HubError(404, f"No repository {asked.id} here", "RepoNotFound")
    repo.delete()
    return web.json_response({})


async def squash(request: web.Request) -> web.Response:
    """Replace the history of a branch by one commit with its files."""
    need_token(request)
    repo = find_repo(request)
    asked = await read_body(request, Squash)
    repo.squash(request.match_info["rev"].removeprefix("refs/heads/"), asked.message)
    return web.json_response({})


async def list_refs(request: web.Request) -> web.Response:
    refs = find_repo(request).refs

    def items(kind: str, prefix: str) -> list[dict[str, str]]:
        return [{"name": n, "ref": f"refs/{prefix}/{n}", "targetCommit": commit} for n, commit in refs[kind].items()]

    listed: dict[str, Any] = {"branches": items("branches", "heads"), "tags": items("tags", "tags"), "converts": []}
    if is_set(request.query, "include_prs"):
        names = {f"{PULL_REQUEST}{num}": commit for num, commit in refs.get("pulls", {}).items()}
        listed["pullRequests"] = [{"name": n, "ref": n, "targetCommit": commit} for n, commit in names.items()]
    return web.json_response(listed)


async def list_commits(request: web.Request) -> web.Response:
    history = find_repo(request).history(request.match_info["rev"])
    formatted = "formatted" in request.query.getall("expand[]", [])
    return web.json_response([_commit(commit, formatted=formatted) for commit in history])


def _commit(commit: Commit, *, formatted: bool) -> dict[str, Any]:
    """A commit as the history lists it; `formatted` adds its texts as HTML."""
    texts = {"title": commit.title, "message": commit.message}
    listed = {"id": commit.id, **texts, "date": commit.date, "authors": [{"user": USER}]}
    return listed | ({"formatted": {key: html.escape(text) for key, text in texts.items()}} if formatted else {})


async def repo_info(request: web.Request) -> web.Response:
    repo = find_repo(request)
    commit = repo.find(request.match_info.get("rev", "main"))
    told = info.describe(request.app[STORE], repo, commit, blobs=is_set(request.query, "blobs"))
    if is_set(request.query, "securityStatus"):
        told["securityRepoStatus"] = {"scansDone": True, "filesWithIssues": []}
    return web.json_response(expanded(request, told) or told, dumps=http.dumps)


async def safetensors_metadata(request: web.Request) -> web.Response:
    """The index of a sharded model on `main` with the headers of its shards."""
    repo, store, path = find_repo(request), request.app[STORE], request.match_info["path"]
    commit = repo.find("main")
    if path not in commit.files:
        raise _missing(repo, commit, path)
    index = info.json_file(store, commit, path)
    about = {key: value for key, value in index.items() if key != "weight_map"}
    return web.json_response({"index": about, "headers": info.headers(store, commit, path)})


async def check_access(request: web.Request) -> web.Response:
    find_repo(request)
    if request.path.endswith("/write"):
        need_token(request)
    return web.json_response({})


async def list_likers(request: web.Request) -> web.Response:
    find_repo(request)
    return web.json_response([])


async def validate_card(request: web.Request) -> web.Response:
    card = await read_body(request, Card)
    try:
        found = info.front_matter(card.content)
    except ValueError as error:
        return web.json_response({"errors": [{"message": str(error)}], "warnings": []}, status=400)
    warnings = [] if found else [{"message": "empty or missing yaml metadata in repo card"}]
    return web.json_response({"errors": [], "warnings": warnings})


async def list_tree(request: web.Request) -> web.Response:
    repo, folder = find_repo(request), request.match_info.get("path", "")
    commit = repo.find(request.match_info["rev"])
    if folder and check_path(folder) not in commit.folders:
        raise _missing(repo, commit, folder)
    prefix = f"{folder}/" if folder else ""
    recursive = is_set(request.query, "recursive")
    paths = sorted(path for path in [*commit.folders, *commit.files] if path.startswith(prefix))
    shown = [path for path in paths if recursive or "/" not in path.removeprefix(prefix)]
    return web.json_response(_items(repo, commit, shown, expand=is_set(request.query, "expand")))


async def paths_info(request: web.Request) -> web.Response:
    repo = find_repo(request)
    commit = repo.find(request.match_info["rev"])
    form = await request.post()
    asked = [path for path in form.getall("paths", []) if isinstance(path, str)]
    there = [path for path in asked if path in commit.files or path in commit.folders]
    return web.json_response(_items(repo, commit, there, expand=is_set(form, "expand")))


def _items(repo: Repo, commit: Commit, paths: list[str], *, expand: bool) -> list[dict[str, Any]]:
    """Files and folders as the tree lists them; `expand` adds the last commit of each and the scan of each file."""
    items = [_item(commit, path) for path in paths]
    if expand:
        changed = _last_changes(repo, commit, paths)
        for item in items:
            last = changed[item["path"]]
            item["lastCommit"] = {"id": last.id, "title": last.title, "date": last.date}
            if item["type"] == "file":
                item["securityFileStatus"] = {"status": "safe", "avScan": None, "pickleImportScan": None}
    return items


def _last_changes(repo: Repo, commit: Commit, paths: list[str]) -> dict[str, Commit]:
    """The commit that last changed each file or folder, up to and with `commit`."""
    changed: dict[str, Commit] = {}
    before: dict[str, str | None] = dict.fromkeys(paths)
    for step in reversed(repo.history(commit.id)):
        now = {path: _oid(step, path) for path in paths}
        changed |= {path: step for path in paths if now[path] != before[path]}
        before = now
    return changed


def _oid(commit: Commit, path: str) -> str | None:
    entry = commit.files.get(path)
    return entry.oid if entry is not None else commit.folders.get(path)


def _item(commit: Commit, path: str) -> dict[str, Any]:
    entry = commit.files.get(path)
    if entry is None:
        return {"type": "directory", "path": path, "oid": commit.folders[path], "size": 0}
    lfs = {"oid": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
    item = {"type": "file", "path": path, "oid": entry.oid, "size": entry.size}
    return item | ({"lfs": lfs} if entry.lfs else {})


async def resolve(request: web.Request) -> web.StreamResponse:
    """Serve a file of a revision, whole or a range of it."""
    repo = find_repo(request)
    commit = repo.find(request.match_info["rev"])
    path = check_path(request.match_info["path"])
    entry = commit.files.get(path)
    if entry is None:
        raise _missing(repo, commit, path)
    headers = {
        "X-Repo-Commit": commit.id,
        "X-Linked-ETag": f'"{entry.etag}"',
        "X-Linked-Size": str(entry.size),
        "Content-Type": "application/octet-stream" if entry.lfs else "text/plain; charset=utf-8",
        # What a repository holds is shown as text or saved; a browser must never run it.
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox",
    }
    if any(etag.value in (entry.etag, "*") for etag in request.if_none_match or ()):
        return web.Response(status=304, headers=headers)
    return web.FileResponse(request.app[STORE].blob(entry.sha256), headers=headers)


async def _tag_by_content(request: web.Request, response: web.StreamResponse) -> None:
    """Files are tagged by content: a time of writing says nothing when a branch moves back to an older blob."""
    if "X-Linked-ETag" in response.headers:
        response.headers["ETag"] = response.headers["X-Linked-ETag"]
        response.headers.pop("Last-Modified", None)


def _missing(repo: Repo, commit: Commit, path: str) -> HubError:
    return HubError(404, f"{repo.id} has no {path!a} at {commit.id}", "EntryNotFound", commit=commit.id)


_API = "/api/{kind:models|datasets|spaces}/{ns}/{name}"
ROUTES = [
    web.get("/api/whoami-v2", whoami),
    web.post("/api/repos/create", create_repo),
    web.delete("/api/repos/delete", delete_repo),
    web.post("/api/validate-yaml", validate_card),
    web.get(_API, repo_info),
    web.get(_API + "/revision/{rev}", repo_info),
    web.put(_API + "/settings", change_settings),
    web.get(_API + "/auth-check", check_access),
    web.get(_API + "/auth-check/write", check_access),
    web.get(_API + "/likers", list_likers),
    web.get("/api/models/{ns}/{name}/safetensors-metadata/{path:.+}", safetensors_metadata),
    web.get(_API + "/refs", list_refs),
    web.post(_API + "/super-squash/{rev}", squash),
    web.get(_API + "/commits/{rev}", list_commits),
    web.get(_API + "/tree/{rev}", list_tree),
    web.get(_API + "/tree/{rev}/{path:.+}", list_tree),
    web.post(_API + "/paths-info/{rev}", paths_info),
    web.post(_API + "/branch/{rev}", create_branch),
    web.delete(_API + "/branch/{rev}", delete_branch),
    web.post(_API + "/tag/{rev}", create_tag),
    web.delete(_API + "/tag/{rev}", delete_tag),
    web.get("/{ns}/{name}/resolve/{rev}/{path:.+}", resolve),
    web.get("/{kind:datasets|spaces}/{ns}/{name}/resolve/{rev}/{path:.+}", resolve),
]


def make_app(root: pathlib.Path, *, token: str) -> web.Application:
    """The Hub that keeps its repositories under `root` and takes writes that carry `token`."""
    app = web.Application(
        middlewares=[http.inject_faults, http.answer_errors, http.check_token],
        client_max_size=BODY_MAX_BYTES,
    )
    app[STORE] = Store(root)
    app[http.TOKEN] = token
    app[http.FAULTS] = []
    app.on_response_prepare.append(_tag_by_content)
    for module in (http, listing, accounts, discussions):
        app.add_routes(module.ROUTES)
    app.add_routes([*ROUTES, *upload.ROUTES, *pages.ROUTES])
    return app
