"""The API server over HTTP: reads, writes, watches, refusals, and faults that a test orders."""

import asyncio
import base64
import copy
import hmac
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import yaml
from aiohttp import web
from aiohttp.typedefs import Handler

from sandbox.faults import Faults
from sandbox.kubernetes import errors, validation
from sandbox.kubernetes.errors import ApiError, Json
from sandbox.kubernetes.jobs import Jobs
from sandbox.kubernetes.objects import JOBS, KINDS, NAMESPACES, NODES, PODS, SECRETS, Change, Objects, ResourceType
from sandbox.kubernetes.pods import Pods
from sandbox.kubernetes.selectors import Test, selects

HOST = "127.0.0.1"
STEP_SECONDS = 0.05
VERSION = {
    "major": "1",
    "minor": "34",
    "gitVersion": "v1.34.0-standin",
    "gitCommit": "0" * 40,
    "gitTreeState": "clean",
    "buildDate": "2025-08-27T00:00:00Z",
    "goVersion": "go1.24",
    "compiler": "gc",
    "platform": "linux/amd64",
}
LONGEST_WATCH = 3600.0
LARGEST_BODY = 3 * 2**20


class Cluster:
    """The whole stand-in: objects, controllers, the tokens that open it, and what a test makes it do.

    `forbidden` holds verbs and plurals that `token` may not use, such as ("create", "jobs"); `admin` may use all.
    """

    def __init__(self, root: Path, token: str, admin: str, images: Mapping[str, Path]) -> None:
        self.token, self.admin = token, admin
        self.objects = Objects()
        self.pods = Pods(self.objects, root, images)
        self.jobs = Jobs(self.objects, self.pods)
        self.faults = Faults()
        self.forbidden: set[tuple[str, str]] = set()
        self.url = ""

    def add_namespace(self, name: str) -> None:
        self.objects.create(NAMESPACES, "", {"metadata": {"name": name}, "status": {"phase": "Active"}})

    def add_node(
        self, name: str, *, labels: Mapping[str, str] | None = None, taints: list[Json] | None = None, gpus: int = 0
    ) -> None:
        """A node with so many `nvidia.com/gpu`."""
        body: Json = {"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **(labels or {})}}}
        body |= {"spec": {"taints": taints or []}, "status": {"allocatable": {"nvidia.com/gpu": str(gpus)}}}
        self.objects.create(NODES, "", body)

    def lose(self, node: str) -> None:
        """Cut a node off: its pods live on unseen, and the cluster gives them up without learning of an end."""
        self.pods.lost.add(node)
        for pod in self.objects.all(PODS):
            if pod["spec"].get("nodeName") == node and pod["status"]["phase"] == "Running":
                message = "Taint manager: deleting due to NoExecute taint"
                self.pods.evict(pod, "DeletionByTaintManager", message)

    def evict(self, pod: str, namespace: str, reason: str = "PreemptionByScheduler") -> None:
        """Take a pod's place for another one."""
        self.pods.evict(self.objects.get(PODS, namespace, pod), reason, "preempted by a pod of higher priority")

    def kubeconfig(self, namespace: str, token: str) -> str:
        """What a client with this token needs, as a file of kubectl's."""
        return yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "standin", "cluster": {"server": self.url}}],
                "users": [{"name": "stoa", "user": {"token": token}}],
                "contexts": [
                    {"name": "standin", "context": {"cluster": "standin", "user": "stoa", "namespace": namespace}}
                ],
                "current-context": "standin",
            }
        )

    async def run(self) -> None:
        """Let the controllers work, until cancelled."""
        while True:
            self.pods.step()
            self.jobs.step()
            self.pods.sweep()
            await asyncio.sleep(STEP_SECONDS)


CLUSTER = web.AppKey("cluster", Cluster)


@asynccontextmanager
async def serve(cluster: Cluster, port: int = 0) -> AsyncIterator[Cluster]:
    """The cluster at work on a port of loopback; its pods end with it."""
    app = web.Application(middlewares=[_answer], client_max_size=LARGEST_BODY)
    app[CLUSTER] = cluster
    app.add_routes(ROUTES)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, HOST, port).start()
    cluster.url = f"http://{HOST}:{runner.addresses[0][1]}"
    controllers = asyncio.create_task(cluster.run())
    try:
        yield cluster
    finally:
        controllers.cancel()
        await asyncio.gather(controllers, return_exceptions=True)
        cluster.faults.clear()
        cluster.pods.close()
        await runner.cleanup()


@web.middleware
async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Around every request: faults, the token, and refusals as `Status` objects."""
    cluster = request.app[CLUSTER]
    fault = cluster.faults.take(request.method, request.path)
    if fault is not None and fault.delay:
        await cluster.faults.delay(fault.delay)
    try:
        if fault is not None and fault.status is not None and not fault.cut:
            raise _fault(fault.status)
        given = request.headers.get("Authorization", "")
        known = [f"Bearer {token}".encode() for token in (cluster.token, cluster.admin)]
        if not any(hmac.compare_digest(given.encode(), each) for each in known):
            raise ApiError(401, "Unauthorized", "Unauthorized")
        response = await handler(request)
    except ApiError as error:
        headers = {"Retry-After": str(int(fault.retry_after))} if fault is not None and error.code == 429 else {}
        response = web.json_response(error.body(), status=error.code, headers=headers)
    except web.HTTPNotFound:
        said = ApiError(404, "NotFound", "the server could not find the requested resource")
        response = web.json_response(said.body(), status=404)
    except web.HTTPMethodNotAllowed:
        said = ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
        response = web.json_response(said.body(), status=405)
    if fault is not None and fault.cut and request.transport is not None:
        request.transport.abort()
    return response


def _fault(status: int) -> ApiError:
    known = {
        429: ("TooManyRequests", "the server has received too many requests and has asked us to try again later"),
        500: ("InternalError", "Internal error occurred: a fault was asked for"),
        503: ("ServiceUnavailable", "the server is currently unable to handle the request"),
    }
    reason, message = known.get(status, ("Unknown", "a fault was asked for"))
    return ApiError(status, reason, message)


def _asked(request: web.Request, verb: str) -> tuple[Cluster, ResourceType, str]:
    """The kind and the namespace that an address names; raises ApiError."""
    cluster, given = request.app[CLUSTER], request.match_info
    kind = KINDS.get((given.get("group", ""), given["plural"]))
    namespace = given.get("namespace", "")
    if kind is None or (namespace and not kind.namespaced):
        raise ApiError(404, "NotFound", "the server could not find the requested resource")
    if (verb, kind.plural) in cluster.forbidden and not _is_admin(request):
        raise errors.forbidden(verb, kind.plural, kind.group, namespace)
    return cluster, kind, namespace


def _is_admin(request: web.Request) -> bool:
    return request.headers["Authorization"] == f"Bearer {request.app[CLUSTER].admin}"


async def _body(request: web.Request) -> Json:
    try:
        body = json.loads(await request.read() or b"{}")
    except ValueError:
        raise errors.bad_request("the object provided is unrecognized: it is no JSON") from None
    if not isinstance(body, dict):
        raise errors.bad_request("the object provided is unrecognized: it is no object")
    return body


async def _create(request: web.Request) -> web.Response:
    cluster, kind, namespace = _asked(request, "create")
    body = await _body(request)
    cluster.objects.get(NAMESPACES, "", namespace)
    told = (body.get("metadata") or {}).get("namespace", namespace)
    if told != namespace:
        raise errors.bad_request(
            "the namespace of the provided object does not match the namespace sent on the request"
        )
    validation.check_new(kind, body)
    if kind is JOBS:
        cluster.jobs.prepare(body)
    elif kind is SECRETS:
        _encode(body)
    one = cluster.objects.create(kind, namespace, body)
    if kind is JOBS:
        cluster.jobs.label(one)
    return web.json_response(one, status=201)


def _encode(secret: Json) -> None:
    """Put what a Secret has in clear to what it has encoded, as which alone it is kept and told."""
    clear = secret.pop("stringData", None) or {}
    encoded = {name: base64.b64encode(value.encode()).decode() for name, value in clear.items()}
    secret["data"] = (secret.get("data") or {}) | encoded
    secret.setdefault("type", "Opaque")


async def _read(request: web.Request) -> web.Response:
    cluster, kind, namespace = _asked(request, "get")
    return web.json_response(cluster.objects.get(kind, namespace, request.match_info["name"]))


async def _list(request: web.Request) -> web.StreamResponse:
    """A list, in pages where a limit is given, or a watch."""
    query = request.query
    watching = query.get("watch") in ("true", "1", "True")
    cluster, kind, namespace = _asked(request, "watch" if watching else "list")
    test = selects(query.get("labelSelector", ""), query.get("fieldSelector", ""))
    if watching:
        return await _watch(request, cluster, kind, namespace, test)
    found = [one for one in cluster.objects.all(kind, namespace) if test(one)]
    metadata: Json = {"resourceVersion": str(cluster.objects.version)}
    start = _start(query.get("continue", ""), cluster.objects)
    limit = int(query.get("limit", "0") or 0)
    if limit and len(found) > start + limit:
        metadata["remainingItemCount"] = len(found) - start - limit
        token = json.dumps([start + limit, cluster.objects.version])
        metadata["continue"] = base64.urlsafe_b64encode(token.encode()).decode()
    items = found[start : start + limit] if limit else found[start:]
    listed = {"kind": f"{kind.kind}List", "apiVersion": kind.api_version, "metadata": metadata}
    return web.json_response(listed | {"items": items})


def _start(token: str, objects: Objects) -> int:
    if not token:
        return 0
    try:
        start, version = json.loads(base64.urlsafe_b64decode(token))
    except ValueError:
        raise errors.bad_request("continue key is not valid") from None
    if objects.version != version and (not objects.changes or version < objects.changes[0].version - 1):
        raise errors.expired("The provided continue parameter is too old to display a consistent list result.")
    return int(start)


async def _watch(
    request: web.Request, cluster: Cluster, kind: ResourceType, namespace: str, test: Test
) -> web.StreamResponse:
    """Send changes as they come, a JSON object a line, from the given version or with all that is there now."""
    version = request.query.get("resourceVersion", "")
    seconds = float(request.query.get("timeoutSeconds", LONGEST_WATCH))
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)

    async def send(type_: str, one: Json) -> None:
        await response.write(json.dumps({"type": type_, "object": one}).encode() + b"\n")

    seen = cluster.objects.version
    if version in ("", "0"):
        for one in cluster.objects.all(kind, namespace):
            if test(one):
                await send("ADDED", one)
    else:
        seen = int(version)
    until = asyncio.get_running_loop().time() + seconds
    while (left := until - asyncio.get_running_loop().time()) > 0:
        try:
            changes = cluster.objects.since(seen)
        except ApiError as error:
            await send("ERROR", error.body())
            break
        for change in changes:
            if change.kind is kind and (event := _event(change, namespace, test)):
                await send(*event)
            seen = change.version
        await cluster.objects.wait(left)
    else:
        if request.query.get("allowWatchBookmarks") in ("true", "True", "1"):
            mark = {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": {"resourceVersion": str(seen)}}
            await send("BOOKMARK", mark)
    await response.write_eof()
    return response


def _event(change: Change, namespace: str, test: Test) -> tuple[str, Json] | None:
    """What a watcher with this selector sees of a change: an object may come into it and go out of it."""

    def seen(one: Json | None) -> Json | None:
        there = one is not None and (not namespace or one["metadata"].get("namespace") == namespace) and test(one)
        return one if there else None

    before, after = seen(change.before), seen(change.after)
    if after is not None:
        return ("MODIFIED" if before is not None else "ADDED"), after
    if before is None:
        return None
    last = copy.deepcopy(before)
    last["metadata"]["resourceVersion"] = str(change.version)
    return "DELETED", last


async def _patch(request: web.Request) -> web.Response:
    """A merge patch, a strategic merge patch (of which lists are replaced here), or a list of JSON patches."""
    cluster, kind, namespace = _asked(request, "patch")
    one = cluster.objects.get(kind, namespace, request.match_info["name"])
    try:
        body = json.loads(await request.read())
    except ValueError:
        raise errors.bad_request("the patch is no JSON") from None
    after = _json_patched(one, body) if isinstance(body, list) else _merged(one, body)
    return await _replace(cluster, kind, one, after)


async def _put(request: web.Request) -> web.Response:
    cluster, kind, namespace = _asked(request, "update")
    one = cluster.objects.get(kind, namespace, request.match_info["name"])
    return await _replace(cluster, kind, one, await _body(request))


async def _replace(cluster: Cluster, kind: ResourceType, one: Json, after: Json) -> web.Response:
    name = one["metadata"]["name"]
    wanted = after["metadata"].get("resourceVersion")
    if wanted and wanted != one["metadata"]["resourceVersion"]:
        why = "the object has been modified; please apply your changes to the latest version and try again"
        raise errors.conflict(kind.plural, kind.group, name, why)
    after["metadata"] = {**one["metadata"], **after["metadata"]}
    after["status"] = one.get("status", {})
    if kind is SECRETS:
        _encode(after)
    validation.check_change(kind, one, after)
    with cluster.objects.edit(kind, one):
        one.clear()
        one.update(after)
    return web.json_response(one)


def _merged(value: Json, patch: Json) -> Json:
    """A JSON merge patch (RFC 7386)."""
    result = copy.deepcopy(value)
    for key, change in patch.items():
        if change is None:
            result.pop(key, None)
        elif isinstance(change, dict):
            before = result.get(key)
            result[key] = _merged(before if isinstance(before, dict) else {}, change)
        else:
            result[key] = change
    return result


def _json_patched(value: Json, operations: list[Json]) -> Json:
    """The operations add, replace, remove and test of a JSON patch (RFC 6902) on objects."""
    result = copy.deepcopy(value)
    for operation in operations:
        *path, last = (part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:])
        target = result
        for key in path:
            if not isinstance(target.get(key), dict):
                raise errors.invalid("", "", "", [(operation["path"], "FieldValueInvalid", "the path does not exist")])
            target = target[key]
        match operation["op"]:
            case "add" | "replace":
                target[last] = operation["value"]
            case "remove" if last in target:
                del target[last]
            case "test" if target.get(last) == operation["value"]:
                pass
            case _:
                raise ApiError(422, "Invalid", "the server rejected our request due to an error in our request")
    return result


async def _delete(request: web.Request) -> web.Response:
    """Delete one object; options come in the query or in the body, and the body counts."""
    cluster, kind, namespace = _asked(request, "delete")
    one = cluster.objects.get(kind, namespace, request.match_info["name"])
    body = await _body(request)
    uid = (body.get("preconditions") or {}).get("uid")
    if uid and uid != one["metadata"]["uid"]:
        why = f"the UID in the precondition ({uid}) does not match the UID in record ({one['metadata']['uid']})"
        raise errors.conflict(kind.plural, kind.group, one["metadata"]["name"], why)
    grace = body.get("gracePeriodSeconds", request.query.get("gracePeriodSeconds"))
    default = "Orphan" if kind is JOBS else "Background"
    policy = body.get("propagationPolicy") or request.query.get("propagationPolicy") or default
    if policy not in ("Orphan", "Background", "Foreground"):
        raise errors.invalid(
            "DeleteOptions", "", "", [("propagationPolicy", "FieldValueNotSupported", f'Unsupported value: "{policy}"')]
        )
    if kind is PODS:
        cluster.pods.delete(one, None if grace is None else int(grace))
        return web.json_response(one)
    if kind is JOBS:
        if not cluster.jobs.delete(one, policy):
            return web.json_response(one)
    else:
        cluster.objects.remove(kind, one)
    metadata = one["metadata"]
    details = {"name": metadata["name"], "group": kind.group, "kind": kind.plural, "uid": metadata["uid"]}
    return web.json_response(
        {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
    )


async def _delete_all(request: web.Request) -> web.Response:
    """Delete what a selector selects."""
    cluster, kind, namespace = _asked(request, "deletecollection")
    test = selects(request.query.get("labelSelector", ""), request.query.get("fieldSelector", ""))
    body = await _body(request)
    grace = body.get("gracePeriodSeconds", request.query.get("gracePeriodSeconds"))
    policy = body.get("propagationPolicy") or request.query.get("propagationPolicy")
    found = [one for one in cluster.objects.all(kind, namespace) if test(one)]
    for one in found:
        if kind is PODS:
            cluster.pods.delete(one, None if grace is None else int(grace))
        elif kind is JOBS:
            cluster.jobs.delete(one, policy or "Orphan")
        else:
            cluster.objects.remove(kind, one)
    listed = {"kind": f"{kind.kind}List", "apiVersion": kind.api_version, "metadata": {}, "items": found}
    return web.json_response(listed)


async def _log(request: web.Request) -> web.Response:
    """The output of a pod."""
    cluster, namespace = request.app[CLUSTER], request.match_info["namespace"]
    pod = cluster.objects.get(PODS, namespace, request.match_info["name"])
    if ("get", "pods/log") in cluster.forbidden and not _is_admin(request):
        raise errors.forbidden("get", "pods/log", "", namespace)
    if pod["status"]["phase"] == "Pending":
        name = pod["metadata"]["name"]
        raise errors.bad_request(
            f'container "{pod["spec"]["containers"][0]["name"]}" in pod "{name}" is waiting to start'
        )
    said = cluster.pods.said(pod)
    if lines := request.query.get("tailLines"):
        said = b"".join(said.splitlines(keepends=True)[-int(lines) :])
    return web.Response(body=said, content_type="text/plain")


async def _version(_: web.Request) -> web.Response:
    return web.json_response(VERSION)


def _routes() -> list[web.RouteDef]:
    routes = [web.get("/version", _version), web.get("/version/", _version)]
    routes.append(web.get("/api/v1/namespaces/{namespace}/{plural:pods}/{name}/log", _log))
    for base in ("/api/v1", "/apis/{group}/v1"):
        for place in (base + "/namespaces/{namespace}/{plural}", base + "/{plural}"):
            routes += [
                web.get(place, _list),
                web.post(place, _create),
                web.delete(place, _delete_all),
                web.get(place + "/{name}", _read),
                web.put(place + "/{name}", _put),
                web.patch(place + "/{name}", _patch),
                web.delete(place + "/{name}", _delete),
            ]
    return routes


ROUTES = _routes()
