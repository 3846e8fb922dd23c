"""What the Hub tells of its user and of organizations: any other namespace in which there is a repository."""

from typing import Any

from aiohttp import web

from sandbox.hub.discussions import every
from sandbox.hub.http import STORE, USER, may_read, need_token
from sandbox.hub.info import describe
from sandbox.hub.store import FOLDERS, HubError, Repo


def _readable(request: web.Request, namespace: str) -> list[Repo]:
    """The repositories of a namespace that the asker may read."""
    repos = request.app[STORE].repos()
    return [repo for repo in repos if repo.id.partition("/")[0] == namespace and may_read(request, repo)]


def _counts(repos: list[Repo]) -> dict[str, int]:
    return {f"num{kind.capitalize()}": sum(repo.kind == kind for repo in repos) for kind in FOLDERS}


async def user(request: web.Request) -> web.Response:
    name = _user(request)
    started = sum(len(every(repo)) for repo in request.app[STORE].repos() if may_read(request, repo))
    about: dict[str, Any] = {"user": name, "fullname": name, "type": "user", "avatarUrl": "", "isPro": False}
    about |= {"numDiscussions": started, "numPapers": 0, "numUpvotes": 0, "numLikes": 0, "orgs": []}
    about |= {"numFollowing": 0, "numFollowers": 0, "isFollowing": False}
    return web.json_response(about | _counts(_readable(request, name)))


async def organization(request: web.Request) -> web.Response:
    name, repos = _organization(request)
    about: dict[str, Any] = {"name": name, "fullname": name, "type": "org", "avatarUrl": "", "isVerified": False}
    about |= {"numUsers": 1, "numFollowers": 0, "isFollowing": False}
    return web.json_response(about | _counts(repos))


async def members(request: web.Request) -> web.Response:
    _organization(request)
    return web.json_response([{"user": USER, "fullname": USER, "avatarUrl": "", "type": "user"}])


async def nobody(request: web.Request) -> web.Response:
    """The followers of an account, or the accounts that it follows."""
    if "user" in request.match_info:
        _user(request)
    else:
        _organization(request)
    return web.json_response([])


async def storage(request: web.Request) -> web.Response:
    """The repositories of the user or of an organization, with the bytes that each takes."""
    need_token(request)
    repos = _organization(request)[1] if "organization" in request.match_info else _readable(request, USER)
    told = [(repo, describe(request.app[STORE], repo, repo.find("main"))) for repo in repos]
    total = sum(info["usedStorage"] for _, info in told) or 1
    return web.json_response(
        [
            {
                "id": repo.id,
                "type": repo.kind.removesuffix("s"),
                "updatedAt": info["lastModified"],
                "visibility": "private" if info["private"] else "public",
                "storage": info["usedStorage"],
                "storagePercent": info["usedStorage"] / total,
            }
            for repo, info in told
        ]
    )


def _user(request: web.Request) -> str:
    name = request.match_info["user"]
    if name != USER:
        raise HubError(404, f"There is no user {name!a} here")
    return name


def _organization(request: web.Request) -> tuple[str, list[Repo]]:
    name = request.match_info["organization"]
    repos = _readable(request, name)
    if name == USER or not repos:
        raise HubError(404, f"There is no organization {name!a} here")
    return name, repos


ROUTES = [
    web.get("/api/users/{user}/overview", user),
    web.get("/api/users/{user}/followers", nobody),
    web.get("/api/users/{user}/following", nobody),
    web.get("/api/organizations/{organization}/overview", organization),
    web.get("/api/organizations/{organization}/members", members),
    web.get("/api/organizations/{organization}/followers", nobody),
    web.get("/api/settings/repositories", storage),
    web.get("/api/organizations/{organization}/settings/repositories", storage),
]
