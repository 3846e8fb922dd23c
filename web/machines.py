"""The API that donated machines and pods speak to: claim a run, renew the claim, settle it, and an attempt's objects.

A machine's token does nothing but claim a run of the machine's pool. The answer holds a key, which opens the folder of
that one attempt for as long as the claim is good. Pods of Kubernetes have a key of their attempt from its runner, which
opens its folder until the attempt is over. Nothing here writes the database. Several processes may serve the API: a
claim is made under a lock of the database.
"""

import asyncio
import contextlib
import hmac
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Annotated, Any

import structlog
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from broker.allocations import machines
from broker.allocations.machines import MachineView
from broker.pieces import PIECE
from broker.runners import donated_orders as orders
from broker.runners import donated_presence
from broker.runners.donated_orders import (
    CLAIM_FILE,
    KEYS,
    POSTED_ORDER_FILE,
    Claim,
    Granted,
    Order,
    Renewal,
    Settled,
    Told,
    Wanted,
)
from broker.runners.donated_presence import Presence
from broker.runners.task import TASK_FILE, Task
from broker.store import Store, StoreError, is_plain
from projects import health
from projects.db.columns import utcnow
from projects.db.database import Database
from projects.settings import Settings
from trainer import contract

MOST_SMALL = 2**20
MOST_LARGE = 2**36
LOCKS = 64
CLAIMS = "claims"
"""The lock under which a claim is made."""
MOST_AT_ONCE = 256
FAILING_AT_ONCE = 16
FAILING_SECONDS = 1.0
"""So many wrong secrets are answered at once, each after so long; more are turned away."""
BEAT_SECONDS = 10
BYTES = "application/octet-stream"
CLAIM = "/attempts/{run}/{attempt}"
GROWING = "|".join(re.escape(name) for name in (contract.LOG_FILE, contract.METRICS_FILE, contract.EVENTS_FILE))
NODE_LOG = r"trainer-[1-9][0-9]{0,4}\.log"
WRITES = (
    (rf"({GROWING}|{NODE_LOG})/0000[0-9]{{4}}", PIECE),
    (rf"{re.escape(contract.OUTCOME_FILE)}|{re.escape(contract.SAMPLE_FILE)}", MOST_SMALL),
    (rf"({contract.CHECKPOINTS_FOLDER}/step[0-9]+|{contract.DATA_FOLDER})/.+", MOST_LARGE),
)
"""The names of all objects that may be written in an attempt's folder, and the most bytes of each."""
KEPT = re.compile(rf"{re.escape(POSTED_ORDER_FILE)}|{re.escape(CLAIM_FILE)}|{KEYS}(/.*)?")
"""The names of objects in an attempt's folder that the API keeps to itself."""

log = structlog.get_logger()


class Api:
    """What the endpoints stand on: the tokens, which are only read, and the store."""

    def __init__(self, db: Database, store: Store) -> None:
        self.db = db
        self.store = store
        self.claiming = threading.Lock()
        self.renewing = [threading.Lock() for _ in range(LOCKS)]
        self.claimed: set[str] = set()
        self.heard: dict[str, Presence] = {}
        self.failing = 0

    async def refuse(self, status: int) -> HTTPException:
        """What is raised for a wrong secret, after a while."""
        if self.failing >= FAILING_AT_ONCE:
            return HTTPException(429, "Too many wrong tokens at once.")
        self.failing += 1
        try:
            await asyncio.sleep(FAILING_SECONDS)
        finally:
            self.failing -= 1
        return HTTPException(status, "This token or key is not good, or no longer.")

    def machine(self, token: str) -> MachineView | None:
        """The machine of a token."""
        with self.db.read() as session:
            return machines.with_token(session, token)

    def hear(self, machine: str, run: int, *, said: Presence | None = None) -> None:
        """Note in the store, now and then, that a machine is there, with the run that it has and what it last `said`.

        No claim waits for this: what the store does not take is noted another time.
        """
        try:
            before = self.heard.get(machine) or donated_presence.read(self.store, machine)
            last = said or before
            if last is None:
                return
            now = last.model_copy(update={"at": utcnow(), "run": run})
            told = before is not None and before == now.model_copy(update={"at": before.at})
            if before is None or not told or (now.at - before.at).total_seconds() >= donated_presence.NOTE_SECONDS:
                donated_presence.write(self.store, now)
                self.heard[machine] = now
        except StoreError as error:
            log.warning("the store does not take that a machine is there", machine=machine, error=str(error))

    def claim(self, machine: MachineView, gpus: int) -> Granted | None:
        """The first order on the board of the machine's pool that it has the GPUs for; None where there is none."""
        with self.claiming:
            for posted in orders.posted(self.store, machine.pool):
                if posted.name in self.claimed:
                    continue
                folder = orders.folder_of(self.store, posted)
                order = orders.read_order(self.store, folder) if folder else None
                if order is None or order.stop or order.over or order.gpus > gpus:
                    continue
                if key := self._claimed(machine, folder):
                    log.info("a machine has claimed a run", machine=machine.name, run=posted.run, token=posted.token)
                    run, attempt = folder.split("/")[-2:]
                    return Granted(
                        run=run,
                        attempt=attempt,
                        key=key,
                        grace_seconds=order.grace_seconds,
                        silence_seconds=order.silence_seconds,
                    )
                self.claimed.add(posted.name)
        return None

    def _claimed(self, machine: MachineView, folder: str) -> str:
        """The key of a claim that is made now; empty where there is one. Other processes may serve the API, too."""
        with self.db.alone(CLAIMS):
            if orders.read_claim(self.store, folder) is not None:
                return ""
            key = orders.new_secret()
            claim = Claim(machine=machine.name, machine_token=machine.token, key=orders.hashed(key), began=time.time())
            orders.write_claim(self.store, folder, claim)
            return key

    def good(self, folder: str, key: str) -> tuple[Order, Claim | None] | None:
        """The order that this key is for, and the claim on it, which pods have not; None where it is not the key.

        Raises HTTPException where the key is no longer good.
        """
        claim = orders.read_claim(self.store, folder)
        if claim is not None and not hmac.compare_digest(claim.key, orders.hashed(key)):
            return None
        if claim is None and not orders.has_key(self.store, folder, key):
            return None
        if claim is not None:
            with self.db.read() as session:
                known = machines.with_hash(session, claim.machine_token) is not None
            if not known:
                raise HTTPException(403, "The machine's token has been revoked.")
        order = orders.read_order(self.store, folder)
        if order is None or order.over:
            raise HTTPException(410, "The lab has given this attempt up.")
        return order, claim

    def renew(self, folder: str, key: str, **changed: Any) -> bool:
        """Renew a claim; whether the attempt is to stop."""
        with self.renewing[hash(folder) % LOCKS]:
            order, claim = self.good(folder, key) or (None, None)
            if order is None or claim is None:
                raise HTTPException(403, "This key is not that of a claim.")
            seconds = max(claim.seconds, time.time() - claim.began)
            renewed = claim.model_copy(update={"beats": claim.beats + 1, "seconds": seconds, **changed})
            orders.write_claim(self.store, folder, renewed)
        self.hear(claim.machine, 0 if renewed.status is not None else int(folder.split("/")[1].partition("-")[0]))
        return order.stop

    def read_name(self, folder: str, name: str) -> str:
        """The object in the store that may be read by this name; raises HTTPException."""
        _check(name)
        if _is_within(name, folder):
            if not KEPT.fullmatch(name.removeprefix(f"{folder}/")):
                return name
        elif any(_is_within(name, other) for other in self.task(folder).folders):
            return name
        raise HTTPException(403, "This is no object of the attempt.")

    def written_name(self, folder: str, name: str, size: int) -> str:
        """The object in the store that may be written by this name; raises HTTPException."""
        _check(name)
        for pattern, most in WRITES:
            if name.startswith(f"{folder}/") and re.fullmatch(pattern, name.removeprefix(f"{folder}/")):
                if size > most:
                    raise HTTPException(413, "The object is too large.")
                return name
        raise HTTPException(403, "No trainer writes this object.")

    def task(self, folder: str) -> Task:
        """What the attempt is to do."""
        return Task.model_validate_json(self.store.read(f"{folder}/{TASK_FILE}") or b"")


router = APIRouter()
Secret = Annotated[str, Header(alias="Authorization")]


def _api(request: Request) -> Api:
    api: Api = request.app.state.api
    return api


On = Annotated[Api, Depends(_api)]


async def _machine(api: On, authorization: Secret = "") -> MachineView:
    """The machine whose token the request bears."""
    machine = await run_in_threadpool(api.machine, _secret(authorization))
    if machine is None:
        raise await api.refuse(401)
    return machine


async def _folder(api: On, run: str, attempt: str, authorization: Secret = "") -> str:
    """The folder of the attempt that the path names, for which the request bears the key."""
    folder = f"runs/{run}/{attempt}"
    good = re.fullmatch(r"runs/[0-9]{1,18}-[0-9a-f]{12}/attempt-[0-9]{1,18}", folder)
    if not good or await run_in_threadpool(api.good, folder, _secret(authorization)) is None:
        raise await api.refuse(403)
    return folder


Folder = Annotated[str, Depends(_folder)]


@router.post("/claims")
def claim(api: On, machine: Annotated[MachineView, Depends(_machine)], wanted: Wanted) -> Granted | None:
    """Claim a run of the machine's pool; null where none waits."""
    said = Presence(machine=machine.name, pool=machine.pool, at=utcnow(), about=wanted.about, slots=wanted.gpus)
    api.hear(machine.name, 0, said=said)
    if refusal := donated_presence.refusal(wanted.about):
        raise HTTPException(409, refusal)
    return api.claim(machine, wanted.gpus)


@router.post(f"{CLAIM}/renew")
def renew(api: On, folder: Folder, authorization: Secret, said: Renewal) -> Told:
    """Keep the claim, and learn whether the trainer is to stop."""
    return Told(stop=api.renew(folder, _secret(authorization), leaves=said.leaves))


@router.post(f"{CLAIM}/settle")
def settle(api: On, folder: Folder, authorization: Secret, said: Settled) -> None:
    """Say that what ran the attempt has ended."""
    api.renew(folder, _secret(authorization), status=said.status)


@router.get(f"{CLAIM}/names/{{name:path}}")
def names(api: On, folder: Folder, name: str) -> list[str]:
    """The names of what is directly in a folder."""
    return list(api.store.names(api.read_name(folder, name)))


@router.head(f"{CLAIM}/objects/{{name:path}}")
def head(api: On, folder: Folder, name: str) -> Response:
    """The size of an object."""
    return Response(headers={"Content-Length": str(_size(api.store, api.read_name(folder, name)))})


@router.get(f"{CLAIM}/objects/{{name:path}}")
def get(api: On, folder: Folder, name: str) -> Response:
    """The content of an object."""
    place = api.read_name(folder, name)
    size = _size(api.store, place)
    headers = {"Content-Length": str(size)}
    return StreamingResponse(_exactly(api.store.blocks(place), size), headers=headers, media_type=BYTES)


@router.put(f"{CLAIM}/objects/{{name:path}}")
async def put(api: On, folder: Folder, name: str, request: Request) -> None:
    """Write an object, whose size is known before it comes."""
    size = int(request.headers.get("Content-Length", 0))
    await _receive(request, api.store, api.written_name(folder, name, size), size)


@router.delete(f"{CLAIM}/objects/{{name:path}}")
def delete(api: On, folder: Folder, name: str) -> None:
    """Remove an object."""
    api.store.remove(api.written_name(folder, name, 0))


async def _store_is_away(_request: Request, error: Exception) -> Response:
    log.warning("the store did not do what a machine asked for", error=str(error))
    return JSONResponse({"detail": "The lab's store does not do this now."}, 503)


class Bounded:
    """Turns away, before anybody has read it, a request whose size is not said or is too large."""

    def __init__(self, asgi: ASGIApp) -> None:
        self.asgi = asgi

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            length = headers.get("Content-Length", "0")
            most = MOST_LARGE if scope["method"] == "PUT" else MOST_SMALL
            if "Transfer-Encoding" in headers or not re.fullmatch(r"[0-9]{1,15}", length) or int(length) > most:
                await JSONResponse({"detail": "The size of what is sent is not said, or too large."}, 413)(
                    scope, receive, send
                )
                return
        await self.asgi(scope, receive, send)


def app(db: Database, store: Store) -> FastAPI:
    """The API, on a database whose tokens it reads and the lab's store."""
    asgi = FastAPI(title="Stoa for donated machines", docs_url=None, redoc_url=None, openapi_url=None)
    asgi.state.api = Api(db, store)
    asgi.include_router(router)
    asgi.add_exception_handler(StoreError, _store_is_away)
    asgi.add_middleware(Bounded)
    return asgi


def serve(settings: Settings, db: Database, store: Store) -> None:
    """Serve the API at the address of the settings until asked to stop."""
    host, _, port = settings.machines_address.rpartition(":")

    async def beat() -> None:
        with contextlib.suppress(OSError):
            await run_in_threadpool(health.beat, settings, "machine")

    config = uvicorn.Config(
        app(db, store),
        host=host.strip("[]"),
        port=int(port),
        ssl_certfile=settings.machines_certificate or None,
        ssl_keyfile=settings.machines_key or None,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=MOST_AT_ONCE,
        timeout_graceful_shutdown=5,
        callback_notify=beat,
        timeout_notify=BEAT_SECONDS,
    )
    uvicorn.Server(config).run()


async def _receive(request: Request, store: Store, name: str, size: int) -> None:
    """Write the body of a request as an object, which is there once all of it has come."""
    if size <= MOST_SMALL:
        body = await request.body()
        await run_in_threadpool(store.write, name, body)
        return
    writing: AbstractContextManager[Any] = store.writing(name)
    out = await run_in_threadpool(writing.__enter__)
    try:
        async for block in request.stream():
            await run_in_threadpool(out.write, block)
    except BaseException:
        with contextlib.suppress(StoreError):
            await run_in_threadpool(writing.__exit__, *sys.exc_info())
            await run_in_threadpool(store.remove, name)  # a store may have taken what had come for the whole
        raise
    await run_in_threadpool(writing.__exit__, None, None, None)


def _secret(authorization: str) -> str:
    return authorization.removeprefix("Bearer ").strip()


def _size(store: Store, name: str) -> int:
    size = store.size(name)
    if size is None:
        raise HTTPException(404, "There is no such object.")
    return size


def _exactly(blocks: Iterator[bytes], size: int) -> Iterator[bytes]:
    """The first `size` bytes: a growing file may have more by now."""
    for block in blocks:
        yield block[:size]
        size -= len(block)
        if size <= 0:
            return


def _check(name: str) -> None:
    """Raise HTTPException for a name that might lead elsewhere."""
    if not is_plain(name):
        raise HTTPException(400, "This is no name of an object.")


def _is_within(name: str, folder: str) -> bool:
    return name == folder or name.startswith(f"{folder}/")
