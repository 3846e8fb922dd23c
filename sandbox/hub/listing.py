"""The Hub's lists of models, datasets and spaces: who may see what, filters, order, pages and chosen properties."""

from typing import Any

from aiohttp import web

from sandbox.hub import http
from sandbox.hub.http import STORE, base_url, signed_in
from sandbox.hub.info import describe
from sandbox.hub.store import HubError

PAGE = 1000
SORTS = ("createdAt", "downloads", "lastModified", "likes", "likes7d", "mainSize", "trendingScore")
BRIEF: tuple[str, ...] = (
    "_id",
    "id",
    "modelId",
    "createdAt",
    "downloads",
    "likes",
    "library_name",
    "pipeline_tag",
    "private",
    "tags",
)
BRIEF_OF_DATA = (*BRIEF, "author", "disabled", "gated", "lastModified", "sha")
FULL = ("author", "gated", "disabled", "lastModified", "sha", "siblings")
OPTIONAL = ("model-index", "safetensors", "config", "transformersInfo", "widgetData", "spaces", "library_name")
UNKNOWN: tuple[str, ...] = (
    "baseModels",
    "childrenModelCount",
    "citation",
    "description",
    "evalResults",
    "gguf",
    "inference",
)
UNKNOWN += ("inferenceProviderMapping", "mainSize", "mask_token", "paperswithcode_id", "resourceGroup", "runtime")
UNKNOWN += ("datasets", "models", "sdk", "subdomain", "pipeline_tag")
YES = ("1", "true")


def is_set(request: web.Request, name: str) -> bool:
    return request.query.get(name, "").lower() in YES


def expanded(request: web.Request, info: dict[str, Any]) -> dict[str, Any] | None:
    """The properties that a request asks for by `expand`, with the id; None where it asks for none.

    Raises HubError 400 for a property that the Hub does not know.
    """
    asked = [*request.query.getall("expand", []), *request.query.getall("expand[]", [])]
    if not asked:
        return None
    for name in asked:
        if name not in info and name not in OPTIONAL and name not in UNKNOWN:
            raise HubError(400, f"Invalid option for expand: {name!a}")
    return {key: value for key, value in info.items() if key in ("_id", "id", *asked)}


async def list_repos(request: web.Request) -> web.Response:
    """The repositories of a kind that the asker may see, as filtered, in order, one page of them."""
    store, kind, query = request.app[STORE], request.match_info["kind"], request.query
    limit, start = _number(request, "limit", PAGE), _number(request, "cursor", 0)
    seen = [repo for repo in store.repos() if repo.kind == kind and (signed_in(request) or not repo.refs["private"])]
    found = [info for repo in seen if _is_asked_for(request, info := describe(store, repo, repo.find("main")))]
    sort = query.get("sort", "trendingScore")
    if sort not in SORTS:
        raise HubError(400, f"Invalid sort parameter: {sort!a}")
    found.sort(key=lambda info: (info.get(sort) or 0, info["createdAt"]) if sort != "createdAt" else info["createdAt"])
    if query.get("direction", "-1") == "-1":
        found.reverse()
    size = min(limit, PAGE)
    page = [_item(request, info) for info in found[start : start + size]]
    response = web.json_response(page, dumps=http.dumps)
    if start + size < len(found):
        rest = request.rel_url.update_query(cursor=str(start + size))
        response.headers["Link"] = f'<{base_url(request)}{rest}>; rel="next"'
    return response


def _number(request: web.Request, name: str, default: int) -> int:
    given = request.query.get(name, str(default))
    if not (given.isascii() and given.isdigit() and len(given) <= 9):
        raise HubError(400, f"{name}: {given!a} is not a whole number")
    return int(given)


def _is_asked_for(request: web.Request, info: dict[str, Any]) -> bool:
    """Whether a repository passes all filters of a request."""
    query = request.query
    # Nothing here is served by a provider, open in an app, or gated.
    if any(name in query for name in ("inference", "inference_provider", "apps")) or is_set(request, "gated"):
        return False
    if "author" in query and info["author"].lower() != query["author"].lower():
        return False
    if "pipeline_tag" in query and info.get("pipeline_tag") != query["pipeline_tag"]:
        return False
    if any(words.lower() not in info["id"].lower() for words in query.getall("search", [])):
        return False
    wanted = [tag for given in query.getall("filter", []) for tag in given.split(",")]
    if any(tag not in info["tags"] for tag in wanted):
        return False
    return "num_parameters" not in query or _has_as_many(query["num_parameters"], info)


def _has_as_many(asked: str, info: dict[str, Any]) -> bool:
    """Whether a model has as many parameters as `min:6B,max:128B` or either half asks for."""
    total = (info.get("safetensors") or {}).get("total")
    if total is None:
        return False
    for part in asked.split(","):
        bound, _, number = part.partition(":")
        try:
            value = float(number.rstrip("KMBTkmbt")) * {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}.get(
                number[-1:].upper(), 1
            )
        except ValueError:
            raise HubError(400, f"num_parameters: {asked!a} is not min:6B,max:128B, or half of that") from None
        if (bound == "min" and total < value) or (bound == "max" and total > value):
            return False
    return True


def _item(request: web.Request, info: dict[str, Any]) -> dict[str, Any]:
    chosen = expanded(request, info)
    if chosen is not None:
        return chosen
    keys = [*(BRIEF if request.match_info["kind"] == "models" else BRIEF_OF_DATA)]
    keys += FULL if is_set(request, "full") else ()
    keys += [name for name in ("config", "cardData") if is_set(request, name) or is_set(request, "full")]
    return {key: info[key] for key in dict.fromkeys(keys) if key in info}


ROUTES = [web.get("/api/{kind:models|datasets|spaces}", list_repos)]
