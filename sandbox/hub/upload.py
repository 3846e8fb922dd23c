"""The way in: which files go to LFS, the LFS transfers, and the commit that puts the files on a branch."""

import asyncio
import base64
import binascii
import hashlib
import hmac
from typing import Annotated, Literal

import pydantic
from aiohttp import web

from sandbox.hub import discussions
from sandbox.hub.http import STORE, TOKEN, base_url, find_repo, is_set, need_token, parse, read_body
from sandbox.hub.store import LFS_SUFFIXES, PULL_REQUEST, Commit, Entry, HubError, Repo, Store, check_path

REGULAR_MAX_BYTES = 10 * 1024 * 1024


class Candidate(pydantic.BaseModel):
    path: str
    size: pydantic.NonNegativeInt
    sample: pydantic.Base64Bytes = b""


class Preupload(pydantic.BaseModel):
    files: list[Candidate]


class LfsObject(pydantic.BaseModel):
    oid: Annotated[str, pydantic.Field(pattern=r"^[0-9a-f]{64}$")]
    size: pydantic.NonNegativeInt


class Batch(pydantic.BaseModel):
    operation: Literal["upload"]
    hash_algo: Literal["sha256"] = "sha256"
    objects: list[LfsObject]


class Header(pydantic.BaseModel):
    summary: Annotated[str, pydantic.Field(min_length=1)]
    description: str = ""
    parentCommit: Annotated[str | None, pydantic.Field(min_length=7)] = None  # noqa: N815 (the name on the wire)


class File(pydantic.BaseModel):
    path: str
    content: str
    encoding: Literal["base64", "utf-8"] = "utf-8"


class LfsFile(pydantic.BaseModel):
    path: str
    oid: str
    size: int | None = None


class Deletion(pydantic.BaseModel):
    path: str


class HeaderLine(pydantic.BaseModel):
    key: Literal["header"]
    value: Header


class FileLine(pydantic.BaseModel):
    key: Literal["file"]
    value: File


class LfsLine(pydantic.BaseModel):
    key: Literal["lfsFile"]
    value: LfsFile


class DeletionLine(pydantic.BaseModel):
    key: Literal["deletedFile", "deletedFolder"]
    value: Deletion


class Line(
    pydantic.RootModel[Annotated[HeaderLine | FileLine | LfsLine | DeletionLine, pydantic.Discriminator("key")]]
):
    """One line of a commit's body."""


async def preupload(request: web.Request) -> web.Response:
    """Say for each file how to send it and what the revision holds under its path, so that nothing is sent twice."""
    need_token(request)
    held = find_repo(request).find(request.match_info["rev"]).files
    asked = await read_body(request, Preupload)
    answers = []
    for file in asked.files:
        entry = held.get(check_path(file.path))
        mode = "lfs" if _wants_lfs(file) else "regular"
        oid = entry.etag if entry else None
        answers.append({"path": file.path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return web.json_response({"files": answers})


def _wants_lfs(file: Candidate) -> bool:
    binary = b"\0" in file.sample
    return file.size > 0 and (file.size > REGULAR_MAX_BYTES or file.path.endswith(LFS_SUFFIXES) or binary)


async def lfs_batch(request: web.Request) -> web.Response:
    """Where to send each object; an object without actions is stored already."""
    need_token(request)
    find_repo(request)
    batch = await read_body(request, Batch)
    store = request.app[STORE]
    objects = []
    for item in batch.objects:
        answer: dict[str, object] = {"oid": item.oid, "size": item.size}
        if not store.has(item.oid, item.size):
            query = f"size={item.size}&signature={_sign(request.app[TOKEN], item.oid, str(item.size))}"
            upload = {"href": f"{base_url(request)}/lfs/objects/{item.oid}?{query}"}
            answer["actions"] = {"upload": upload, "verify": {"href": f"{base_url(request)}/lfs/verify"}}
        objects.append(answer)
    answer_type = "application/vnd.git-lfs+json"
    return web.json_response({"transfer": "basic", "objects": objects}, content_type=answer_type)


def _sign(token: str, oid: str, size: str) -> str:
    """The client sends no token with the content, so the address itself carries the permission."""
    return hmac.new(token.encode(), f"{oid}:{size}".encode(errors="replace"), hashlib.sha256).hexdigest()


async def lfs_put(request: web.Request) -> web.Response:
    oid, size = request.match_info["oid"], request.query.get("size", "")
    given, expected = request.query.get("signature", ""), _sign(request.app[TOKEN], oid, size)
    if not hmac.compare_digest(given.encode(errors="replace"), expected.encode()):
        raise HubError(403, "This address was not given out for this content: ask the LFS batch again")
    with request.app[STORE].receive(oid, int(size)) as upload:
        async for chunk in request.content.iter_chunked(1 << 20):
            await asyncio.to_thread(upload.write, chunk)
        await asyncio.to_thread(upload.finish)
    return web.Response()


async def lfs_verify(request: web.Request) -> web.Response:
    need_token(request)
    item = await read_body(request, LfsObject)
    if not request.app[STORE].has(item.oid, item.size):
        raise HubError(404, f"No object {item.oid} of {item.size} bytes was received")
    return web.json_response({})


async def commit(request: web.Request) -> web.Response:
    """Apply the lines of the body to a branch, or to a new pull request, as one commit, or refuse them all."""
    need_token(request)
    repo = find_repo(request)
    body = await request.read()
    lines = [parse(line, Line).root for line in body.splitlines() if line.strip()]

    headers = [line.value for line in lines if isinstance(line, HeaderLine)]
    if not headers:
        raise HubError(400, "The commit has no header line with a summary")
    header = headers[-1]

    # From here to the end nothing awaits, so no other request can move the branch in between.
    branch = request.match_info["rev"].removeprefix("refs/heads/")
    new = is_set(request.query, "create_pr")
    head = _head(repo, branch, header, new=new)
    files = dict(head.files)
    for line in lines:
        if not isinstance(line, HeaderLine):
            _apply(line, files, request.app[STORE])
    url = f"{base_url(request)}/{repo.path}"
    answer: dict[str, object] = {"success": True, "hookOutput": ""}
    if new:
        repo.check(files)
        num = discussions.start(repo, header.summary, header.description, head=head)["num"]
        branch = f"{PULL_REQUEST}{num}"
        answer["pullRequestUrl"] = f"{url}/discussions/{num}"
    made = repo.commit(branch, files, header.summary, header.description)
    if branch.startswith(PULL_REQUEST):
        discussions.add_commit(repo, int(branch.removeprefix(PULL_REQUEST)), made)
    return web.json_response(answer | {"commitOid": made.id, "commitUrl": f"{url}/commit/{made.id}"})


def _head(repo: Repo, branch: str, header: Header, *, new: bool) -> Commit:
    """The commit that another one follows on a branch, or in a `new` pull request for the branch.

    Raises HubError 404 RevisionNotFound where there is no branch, and 412 where it has moved from the parent named.
    """
    refs, parent = repo.refs, header.parentCommit
    if branch not in refs["branches"] and branch.removeprefix(PULL_REQUEST) not in refs.get("pulls", {}):
        raise HubError(404, f"{repo.id} has no branch {branch!a}", "RevisionNotFound")
    if new and parent is not None:
        history = repo.history(branch)
        if (found := next((commit for commit in history if commit.id.startswith(parent)), None)) is None:
            raise HubError(404, f"{branch!a} has no commit {parent!a}", "RevisionNotFound")
        return found
    head = repo.find(branch if branch.startswith(PULL_REQUEST) else f"refs/heads/{branch}")
    if not head.id.startswith(parent or ""):
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    return head


def _apply(line: FileLine | LfsLine | DeletionLine, files: dict[str, Entry], store: Store) -> None:
    """Make one line's change in the list of files."""
    if isinstance(line, FileLine):
        files[check_path(line.value.path)] = store.add(_content(line.value))
    elif isinstance(line, LfsLine):
        blob = store.blob(line.value.oid)
        size = line.value.size if line.value.size is not None or not blob.exists() else blob.stat().st_size
        if size is None or not store.has(line.value.oid, size):
            raise HubError(400, f"The LFS object of {line.value.path!a} was not received: upload it before the commit")
        files[check_path(line.value.path)] = Entry.in_lfs(line.value.oid, size)
    else:
        path = check_path(line.value.path.rstrip("/"))
        below = [name for name in files if name.startswith(f"{path}/")]
        gone = below if line.key == "deletedFolder" else [path] if path in files else []
        if not gone:
            raise HubError(404, f"There is no {path!a} to delete", "EntryNotFound")
        for name in gone:
            del files[name]


def _content(file: File) -> bytes:
    if file.encoding == "utf-8":
        return file.content.encode()
    try:
        return base64.b64decode(file.content, validate=True)
    except binascii.Error as error:
        raise HubError(400, f"The content of {file.path!a} is not base64") from error


_API = "/api/{kind:models|datasets|spaces}/{ns}/{name}"
ROUTES = [
    web.post(_API + "/preupload/{rev}", preupload),
    web.post(_API + "/commit/{rev}", commit),
    web.post("/{ns}/{name}.git/info/lfs/objects/batch", lfs_batch),
    web.post("/{kind:datasets|spaces}/{ns}/{name}.git/info/lfs/objects/batch", lfs_batch),
    web.put("/lfs/objects/{oid}", lfs_put),
    web.post("/lfs/verify", lfs_verify),
]
