"""The Hub's lists of models, datasets and spaces: who may see what, filters, order, pages and chosen properties."""

import math
import re
from collections.abc import Mapping
from typing import Any, get_args

from aiohttp import web
from huggingface_hub import hf_api
from multidict import MultiMapping

from sandbox.hub import http
from sandbox.hub.http import STORE, base_url, is_set, may_read
from sandbox.hub.info import describe
from sandbox.hub.store import HubError

PAGE = 1000
SORTS = ("createdAt", "downloads", "lastModified", "likes", "likes7d", "mainSize", "trendingScore")
BRIEF = ("_id", "id", "modelId", "createdAt", "downloads", "likes", "library_name", "pipeline_tag", "private", "tags")
BRIEF_OF_DATA = (*BRIEF, "author", "disabled", "gated", "lastModified", "sha")
FULL = ("author", "gated", "disabled", "lastModified", "sha", "siblings")
# What `expand` may name, whether or not anything here has it.
EXPANDABLE: dict[str, tuple[str, ...]] = {
    "models": get_args(hf_api.ExpandModelProperty_T),
    "datasets": get_args(hf_api.ExpandDatasetProperty_T),
    "spaces": get_args(hf_api.ExpandSpaceProperty_T),
}
SCALES = {"": 1, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def expanded(request: web.Request, info: dict[str, Any]) -> dict[str, Any] | None:
    """The properties that a request asks for by `expand`, with the id; None where it asks for none.

    Raises HubError 400 for a property that the Hub does not know.
    """
    asked = [*request.query.getall("expand", []), *request.query.getall("expand[]", [])]
    if not asked:
        return None
    for name in asked:
        if name not in info and name not in EXPANDABLE[request.match_info["kind"]]:
            raise HubError(400, f"Invalid option for expand: {name!a}")
    return {key: value for key, value in info.items() if key in ("_id", "id", *asked)}


async def list_repos(request: web.Request) -> web.Response:
    """The repositories of a kind that the asker may see, as filtered, in order, one page of them."""
    store, kind, query = request.app[STORE], request.match_info["kind"], request.query
    limit, start = _number(query, "limit", PAGE), _number(query, "cursor", 0)
    sort = query.get("sort", "trendingScore")
    if sort not in SORTS:
        raise HubError(400, f"Invalid sort parameter: {sort!a}")
    seen = [repo for repo in store.repos() if repo.kind == kind and may_read(request, repo)]
    found = [info for repo in seen if _is_asked_for(query, info := describe(store, repo, repo.find("main")))]
    if "num_parameters" in query:
        low, high = _parameter_bounds(query["num_parameters"])
        found = [info for info in found if "safetensors" in info and low <= info["safetensors"]["total"] <= high]
    found.sort(key=lambda info: (info.get(sort) or 0, info["createdAt"]))
    if query.get("direction", "-1") == "-1":
        found.reverse()
    size = min(limit, PAGE)
    page = [_item(request, info) for info in found[start : start + size]]
    response = web.json_response(page, dumps=http.dumps)
    if start + size < len(found):
        rest = request.rel_url.update_query(cursor=str(start + size))
        response.headers["Link"] = f'<{base_url(request)}{rest}>; rel="next"'
    return response


def _number(query: Mapping[str, str], name: str, default: int) -> int:
    given = query.get(name, str(default))
    if not (given.isascii() and given.isdigit() and len(given) <= 9):
        raise HubError(400, f"{name}: {given!a} is not a whole number")
    return int(given)


def _is_asked_for(query: MultiMapping[str], info: dict[str, Any]) -> bool:
    """Whether a repository passes the filters of a query by owner, task, name and tags."""
    tags = [tag for given in query.getall("filter", []) for tag in given.split(",")]
    # Nothing here is served by a provider, open in an app, or gated.
    never = is_set(query, "gated") or any(name in query for name in ("inference", "inference_provider", "apps"))
    return (
        not never
        and query.get("author", info["author"]).lower() == info["author"].lower()
        and ("pipeline_tag" not in query or info.get("pipeline_tag") == query["pipeline_tag"])
        and all(words.lower() in info["id"].lower() for words in query.getall("search", []))
        and all(tag in info["tags"] for tag in tags)
    )


def _parameter_bounds(asked: str) -> tuple[float, float]:
    """The fewest and the most parameters that `min:6B,max:128B`, or either half of it, asks for."""
    bounds = {"min": 0.0, "max": math.inf}
    for part in asked.split(","):
        match = re.fullmatch(r"(min|max):(\d+(?:\.\d+)?)([KMBT]?)", part, re.ASCII | re.IGNORECASE)
        if match is None:
            raise HubError(400, f"num_parameters: {asked!a} is not min:6B,max:128B, or half of that")
        bounds[match[1].lower()] = float(match[2]) * SCALES[match[3].upper()]
    return bounds["min"], bounds["max"]


def _item(request: web.Request, info: dict[str, Any]) -> dict[str, Any]:
    chosen = expanded(request, info)
    if chosen is not None:
        return chosen
    keys = [*(BRIEF if request.match_info["kind"] == "models" else BRIEF_OF_DATA)]
    full = is_set(request.query, "full")
    keys += FULL if full else ()
    keys += [name for name in ("config", "cardData") if full or is_set(request.query, name)]
    return {key: info[key] for key in dict.fromkeys(keys) if key in info}


ROUTES = [web.get("/api/{kind:models|datasets|spaces}", list_repos)]
