"""What a donated machine may do by the lab's API, and that it may do nothing else: over HTTP, on a real store."""

import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.routing import APIRoute
from sqlalchemy import inspect

from broker.allocations import machines
from broker.pieces import PIECE
from broker.runners import donated_orders as orders
from broker.runners import donated_presence
from broker.runners.base import JobSpec
from broker.runners.donated import DonatedRunner
from broker.runners.task import Task
from broker.store import Store, StoreError
from projects.db import clock
from projects.db.columns import utcnow
from projects.errors import ConflictError, InvalidError, NotFoundError
from projects.record import record
from projects.settings import Settings, get_settings
from tests.broker.donating import POOL, Served, admit, serving
from tests.broker.lab import Lab, settings
from tests.patience import PATIENCE, wait_for
from web import machines as api

OWNER = "0123456789ab"
OTHER = "ba9876543210"
ENDPOINTS = {
    ("POST", "/claims"),
    ("POST", "/attempts/{run}/{attempt}/renew"),
    ("POST", "/attempts/{run}/{attempt}/settle"),
    ("GET", "/attempts/{run}/{attempt}/names/{name:path}"),
    ("HEAD", "/attempts/{run}/{attempt}/objects/{name:path}"),
    ("GET", "/attempts/{run}/{attempt}/objects/{name:path}"),
    ("PUT", "/attempts/{run}/{attempt}/objects/{name:path}"),
    ("DELETE", "/attempts/{run}/{attempt}/objects/{name:path}"),
}


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """The lab's settings, with an empty store, which are those of this process too."""
    monkeypatch.setenv("STOA_STORE", f"file://{tmp_path}/store")
    monkeypatch.setenv("STOA_ENV_FILE", "")
    monkeypatch.setattr(api, "FAILING_SECONDS", 0.01)
    get_settings.cache_clear()
    yield settings(tmp_path, store=f"file://{tmp_path}/store")
    get_settings.cache_clear()


@pytest.fixture
def served(lab: Lab, ours: Settings) -> Iterator[Served]:
    """The API of a lab with two pools of donated machines."""
    for pool in (POOL, "attic"):
        lab.pool(pool, runner="donated")
    with serving(lab, ours) as served:
        yield served


@pytest.fixture
def client(served: Served) -> Iterator[httpx2.Client]:
    """Somebody who reaches the API."""
    with httpx2.Client(base_url=served.address, timeout=PATIENCE) as client:
        yield client


class Machine:
    """A machine that speaks to the API by hand."""

    def __init__(self, client: httpx2.Client, token: str) -> None:
        self.client, self.token, self.key, self.place = client, token, "", ""
        self.about: dict[str, Any] = dict(donated_presence.versions())

    def claim(self, gpus: int = 8) -> dict[str, Any] | None:
        """What it is granted, if anything."""
        answer = self.client.post("/claims", headers=bearer(self.token), json={"gpus": gpus, "about": self.about})
        assert answer.status_code == 200, answer.text
        granted: dict[str, Any] | None = answer.json()
        if granted is not None:
            self.key, self.place = granted["key"], f"/attempts/{granted['run']}/{granted['attempt']}"
        return granted

    def ask(self, method: str, path: str, **given: Any) -> int:
        """The status of a request with the key of its attempt."""
        return self.client.request(method, f"{self.place}/{path}", headers=bearer(self.key), **given).status_code


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"} if secret else {}


def order(
    tmp_path: Path, run: int, token: int = 1, *, pool: str = POOL, owner: str = OWNER, **spec: Any
) -> DonatedRunner:
    """An order on the board, as its supervisor puts it there; the attempt reads a checkpoint of the one before."""
    folder = tmp_path / "runs" / str(run) / f"attempt-{token}"
    folder.mkdir(parents=True)
    options = DonatedRunner.checked_options({})
    told = JobSpec(
        store_folder=f"runs/{run}-{owner}/attempt-{token}", pool=pool, options=options, lease_seconds=0.1, **spec
    )
    runner = DonatedRunner(told)
    runner.start(
        [sys.executable, "-m", "trainer", str(folder.parent / "attempt-9" / "checkpoints" / "step5")], folder, ""
    )
    assert runner.process().pid, runner.waiting
    return runner


def tree(tmp_path: Path) -> dict[str, bytes]:
    """All objects of the store, but for claims and what is known of machines, which renewals write."""
    store = tmp_path / "store"
    paths = (path for path in store.rglob("*") if path.is_file() and path.name != "claim.json")
    paths = (path for path in paths if not path.is_relative_to(store / donated_presence.FOLDER))
    return {str(path): path.read_bytes() for path in paths}


def dump(lab: Lab) -> dict[str, list[Any]]:
    """Every row of every table."""
    with lab.db.read() as session:
        connection = session.connection()
        tables = inspect(connection).get_table_names()
        return {table: sorted(map(repr, connection.exec_driver_sql(f"SELECT * FROM {table}"))) for table in tables}


def test_there_are_these_endpoints_and_no_other(served: Served) -> None:
    included: list[Any] = list(api.app(served.lab.db, Store(served.settings)).routes)
    assert [each.original_router for each in included] == [api.router]
    assert all(isinstance(route, APIRoute) for route in api.router.routes)
    found = [route for route in api.router.routes if isinstance(route, APIRoute)]
    assert {(method, route.path) for route in found for method in route.methods or ()} == ENDPOINTS


def test_a_token_claims_a_run_of_its_own_pool_once(lab: Lab, client: httpx2.Client, tmp_path: Path) -> None:
    ada, bob = (Machine(client, admit(lab, name)) for name in ("ada", "bob"))
    far = Machine(client, admit(lab, "carla", "attic"))
    assert ada.claim() is None
    order(tmp_path, 7, gpus=4)
    assert (far.claim(), bob.claim(gpus=3)) == (None, None)
    granted = ada.claim(gpus=4)
    assert granted is not None
    assert (granted["run"], granted["attempt"], granted["silence_seconds"]) == (f"7-{OWNER}", "attempt-1", 300)
    assert (bob.claim(), ada.claim()) == (None, None)


def test_of_machines_that_claim_at_once_one_gets_the_run(lab: Lab, client: httpx2.Client, tmp_path: Path) -> None:
    tokens = [admit(lab, name) for name in ("ada", "bob")] * 4  # two processes may hold one token
    order(tmp_path, 7)
    with ThreadPoolExecutor(len(tokens)) as at_once:
        granted = list(at_once.map(lambda token: Machine(client, token).claim(), tokens))
    assert len([each for each in granted if each is not None]) == 1


def test_a_claim_reads_and_writes_what_a_trainer_does(lab: Lab, client: httpx2.Client, tmp_path: Path) -> None:
    ada, runner = Machine(client, admit(lab, "ada")), order(tmp_path, 7)
    (tmp_path / "store/runs" / f"7-{OWNER}" / "attempt-9/checkpoints/step5").mkdir(parents=True)
    (tmp_path / "store/runs" / f"7-{OWNER}" / "attempt-9/checkpoints/step5/whole").write_text("{}")
    ada.claim()
    own, before = f"runs/7-{OWNER}/attempt-1", f"runs/7-{OWNER}/attempt-9/checkpoints/step5"
    assert ada.ask("GET", f"objects/{own}/task.json") == 200
    assert ada.ask("GET", f"objects/{own}/outcome.json") == 404
    assert ada.ask("GET", f"objects/{before}/whole") == 200
    assert ada.ask("PUT", f"objects/{before}/whole", content=b"{}") == 403
    store = Store(Settings(_env_file=None, store=f"{client.base_url}".rstrip("/") + ada.place, store_secret=ada.key))
    large = tmp_path / "large"
    large.mkdir()
    (large / "weights").write_bytes(b"12345678" * 2**18)
    deep = Path("é" * 120, "long" * 60, f"{'n' * 240}, the end")
    (large / deep).parent.mkdir(parents=True)
    (large / deep).write_bytes(b"la")
    store.push(large, f"{own}/checkpoints/step3")
    assert store.pull(f"{own}/checkpoints/step3", tmp_path / "again")
    assert (tmp_path / "again" / "weights").read_bytes() == (large / "weights").read_bytes()
    assert (tmp_path / "again" / deep).read_bytes() == b"la"
    assert store.names(f"{own}/checkpoints/step3") == ["weights", "whole", "é" * 120]
    store.write(f"{own}/outcome.json", json.dumps({"status": 75}).encode())
    assert ada.ask("POST", "settle", json={"status": 75}) == 200
    assert wait_end(runner) == 75


def test_a_machine_is_known_by_when_it_was_heard_of_and_what_it_has(
    lab: Lab, client: httpx2.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, store = admit(lab, "ada"), Store(Settings(_env_file=None, store=f"file://{tmp_path}/store"))
    before = dump(lab)
    told = utcnow() + timedelta(hours=1), time.clock_gettime(time.CLOCK_BOOTTIME)
    monkeypatch.setattr(clock, "_told", told)  # the database's clock is an hour ahead of this host's
    ada = Machine(client, token)
    gpu = {"name": "RTX 4090 [x](https://evil.example) @everyone\n\x1b[31m`" + "a" * 99, "memory_mib": 24_576}
    ada.about |= {"gpus": [gpu, gpu], "driver": "575.1 **bold**", "torch": "1.0"}
    ada.claim(gpus=2)
    seen = donated_presence.read(store, "ada")
    assert seen is not None
    assert abs((seen.at - told[0]).total_seconds()) < PATIENCE
    assert (seen.pool, seen.slots, seen.run, seen.is_away) == (POOL, 2, 0, False)
    assert seen.about.gpus[0].name == f"RTX 4090 x(https//evil.example) everyone31m{'a' * 20}"[:60]
    assert seen.about.driver == "575.1 bold"
    assert donated_presence.has(seen) == f"2 × {seen.about.gpus[0].name} (24 GiB)"
    assert donated_presence.differing(seen) == ["torch 1.0"]
    ada.claim(gpus=2)
    assert donated_presence.read(store, "ada") == seen, "it is noted now and then only"
    order(tmp_path, 7)
    ada.claim(gpus=2)
    assert ada.ask("POST", "renew", json={}) == 200
    assert [each.run for each in donated_presence.every(store)] == [7]
    assert ada.ask("POST", "settle", json={"status": 75}) == 200
    assert [each.run for each in donated_presence.every(store)] == [0]
    monkeypatch.setattr(donated_presence, "NOTE_SECONDS", 0.0)
    ada.claim(gpus=2)
    later = donated_presence.read(store, "ada")
    assert later is not None
    assert later.at > seen.at
    assert dump(lab) == before


@pytest.mark.parametrize("about", [{"stoa": "0.0.1"}, {"stoa": ""}])
def test_a_machine_of_another_stoa_takes_no_run(
    lab: Lab, client: httpx2.Client, tmp_path: Path, about: dict[str, str]
) -> None:
    token = admit(lab, "ada")
    order(tmp_path, 7)
    answer = client.post("/claims", headers=bearer(token), json={"gpus": 8, "about": about})
    assert answer.status_code == 409
    assert answer.json()["detail"].startswith("This machine runs ")
    assert answer.json()["detail"].endswith("install that version here.")
    assert Machine(client, token).claim() is not None


@pytest.mark.parametrize(
    "about",
    [
        {"gpus": [{"name": "H200", "memory_mib": -1}]},
        {"gpus": [{"name": ["H200"]}]},
        {"gpus": [{"name": "H200"}] * 65},
        {"torch": 2},
    ],
)
def test_what_a_machine_says_of_itself_is_bounded(lab: Lab, client: httpx2.Client, about: dict[str, Any]) -> None:
    token = admit(lab, "ada")
    assert client.post("/claims", headers=bearer(token), json={"gpus": 1, "about": about}).status_code == 422


def wait_end(runner: DonatedRunner) -> int | None:
    wait_for(lambda: runner.poll() is not None, "the end")
    return runner.poll()


def refused(own: str) -> Iterator[tuple[str, str, dict[str, Any], int]]:
    """Requests with a good key of the attempt `own`, and the status of each."""
    other = f"runs/8-{OTHER}/attempt-1"
    for name in ("order.json", "claim.json", "task.json", "closed", "carrier", "trainer.log", "checkpoints/step1", "x"):
        yield "PUT", f"objects/{own}/{name}", {"content": b"{}"}, 403
        yield "DELETE", f"objects/{own}/{name}", {}, 403
    for name in ("order.json", "claim.json", "keys", "keys/abc"):
        yield "GET", f"objects/{own}/{name}", {}, 403
        yield "HEAD", f"objects/{own}/{name}", {}, 403
    for name in (
        f"{other}/task.json",
        f"{other}/outcome.json",
        f"runs/7-{OWNER}/attempt-2/task.json",
        f"{own}0/task.json",
    ):
        yield "GET", f"objects/{name}", {}, 403
        yield "PUT", f"objects/{name}", {"content": b"{}"}, 403
        yield "DELETE", f"objects/{name}", {}, 403
    for folder in ("runs", f"runs/7-{OWNER}", other, f"donated/{POOL}", "donated"):
        yield "GET", f"names/{folder}", {}, 403
    up = "%2e%2e"
    for name in (
        f"{own}/{up}/{up}/8-{OTHER}/attempt-1/outcome.json",
        f"{own}/checkpoints/step1/{up}/{up}/order.json",
        f"{own}/checkpoints/step1/%2e/order.json",
        f"{own}/checkpoints/step1//etc/passwd",
        "%2Fetc/passwd",
        f"{own}/checkpoints/step1/a%00b",
        f"{own}/checkpoints/step1/..%5C..%5Corder.json",
        f"{own}/checkpoints/step1/{'a' * 1200}",
    ):
        yield "PUT", f"objects/{name}", {"content": b"{}"}, 400
        yield "GET", f"objects/{name}", {}, 400
    yield "PUT", f"objects/{own}/trainer.log/00000000", {"content": b"a" * (PIECE + 1)}, 413
    yield "PUT", f"objects/{own}/outcome.json", {"content": b"a" * (2**20 + 1)}, 413
    yield "PUT", f"objects/{own}/outcome.json", {"content": iter([b"{}"])}, 413
    yield "PUT", f"objects/{own}/trainer.log/99999999", {"content": b"a"}, 403
    yield "POST", "renew", {"content": b" " * (2**20 + 1)}, 413
    yield "POST", "renew", {"json": {"leaves": "perhaps"}}, 422
    yield "POST", "settle", {"json": {"status": 10**6}}, 422
    yield "PUT", f"objects/{own}/checkpoints/step1/a%0Ab", {"content": b"{}"}, 404
    yield "POST", "charge", {"json": {}}, 404
    yield "PATCH", f"objects/{own}/outcome.json", {}, 405


def test_nothing_else_can_be_read_or_written(lab: Lab, client: httpx2.Client, tmp_path: Path) -> None:
    ada, other = Machine(client, admit(lab, "ada")), Machine(client, admit(lab, "olga"))
    order(tmp_path, 7)
    ada.claim()
    order(tmp_path, 8, owner=OTHER)
    other.claim()
    before, objects = dump(lab), tree(tmp_path)
    for method, path, given, status in refused(f"runs/7-{OWNER}/attempt-1"):
        assert ada.ask(method, path, **given) == status, (method, path)
    for secret in (ada.token, other.key, other.token, "", "wrong"):
        for method, path in (("POST", "renew"), ("GET", f"objects/runs/7-{OWNER}/attempt-1/task.json")):
            answer = client.request(method, f"{ada.place}/{path}", headers=bearer(secret), json={})
            assert answer.status_code == 403, (secret, path)
    for secret in (ada.key, "", "wrong"):
        assert client.post("/claims", headers=bearer(secret), json={"gpus": 1}).status_code == 401
    assert client.post("/claims", json={"gpus": 1}).status_code == 401
    assert client.get("/attempts/..%2F..%2Fetc/attempt-1/objects/passwd", headers=bearer(ada.key)).status_code in (
        403,
        404,
    )
    for path in ("/", "/docs", "/openapi.json", "/machines", f"/attempts/7-{OWNER}"):
        assert client.get(path, headers=bearer(ada.token)).status_code == 404
    assert dump(lab) == before
    assert tree(tmp_path) == objects


@pytest.mark.parametrize("end", ["revoked", "replaced", "killed", "another attempt"])
def test_a_claim_that_is_no_longer_good_does_nothing(lab: Lab, client: httpx2.Client, tmp_path: Path, end: str) -> None:
    ada, runner = Machine(client, admit(lab, "ada")), order(tmp_path, 7)
    ada.claim()
    log = f"objects/runs/7-{OWNER}/attempt-1/trainer.log/00000000"
    assert ada.ask("PUT", log, content=b"well") == 200
    match end:
        case "revoked":
            with lab.db.write() as session:
                assert machines.revoke(session, "ada", "It was stolen.")
        case "replaced":
            admit(lab, "ada")
        case "killed":
            runner.kill()
        case "another attempt":
            order(tmp_path, 7, 2)
    before, objects = dump(lab), tree(tmp_path)
    gone = 403 if end in ("revoked", "replaced") else 410
    for method, path in (("PUT", log), ("GET", log), ("DELETE", log), ("GET", f"names/runs/7-{OWNER}/attempt-1")):
        assert ada.ask(method, path, content=b"stale") == gone
    assert ada.ask("POST", "renew", json={}) == gone
    assert ada.ask("POST", "settle", json={"status": 0}) == gone
    if end in ("revoked", "replaced"):
        assert client.post("/claims", headers=bearer(ada.token), json={"gpus": 1}).status_code == 401
    assert dump(lab) == before
    assert tree(tmp_path) == objects


def test_the_key_of_pods_opens_their_attempt_and_claims_nothing(
    lab: Lab, client: httpx2.Client, tmp_path: Path, ours: Settings
) -> None:
    store, own = Store(ours), f"runs/7-{OWNER}/attempt-1"
    store.write(f"{own}/task.json", Task(command=[], out="", nodes=2, seconds=1).model_dump_json().encode())
    orders.write_order(store, own, orders.Order(pool=POOL, gpus=1, grace_seconds=5))
    pods, ada = (Machine(client, admit(lab, name)) for name in ("bob", "ada"))
    pods.place, pods.key = f"/attempts/7-{OWNER}/attempt-1", orders.new_secret()
    assert pods.ask("GET", f"objects/{own}/task.json") == 403
    orders.add_key(store, own, pods.key)
    orders.add_key(store, f"runs/8-{OTHER}/attempt-1", orders.new_secret())
    hidden = f"keys/{orders.hashed(pods.key)}"
    before, objects = dump(lab), tree(tmp_path)
    for method, path, given, status in refused(own):
        assert pods.ask(method, path, **given) == status, (method, path)
    for method, path in (("GET", "objects"), ("GET", "names"), ("PUT", "objects"), ("DELETE", "objects")):
        assert pods.ask(method, f"{path}/{own}/{hidden}", json={}) == 403, (method, path)
    for path in ("renew", "settle"):
        assert pods.ask("POST", path, json={"status": 0}) == 403, "there is no claim to renew"
    for log in ("trainer-0.log", "trainer-01.log", "trainer-1.txt", "trainer-.log", "trainer-1.log/x", "trainer-1"):
        assert pods.ask("PUT", f"objects/{own}/{log}/00000000", content=b"a") == 403
    assert ada.claim() is None, "it is on no board"
    assert dump(lab) == before
    assert tree(tmp_path) == objects
    assert pods.ask("PUT", f"objects/{own}/trainer-11.log/00000001", content=b"well") == 200
    assert store.read(f"{own}/trainer-11.log/00000001") == b"well"
    orders.close(store, own)
    objects = tree(tmp_path)
    for method in ("GET", "PUT", "DELETE"):
        assert pods.ask(method, f"objects/{own}/outcome.json", content=b"{}") == 410
    assert tree(tmp_path) == objects


def test_wrong_tokens_are_answered_slowly_and_good_ones_at_once(
    lab: Lab, client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "FAILING_SECONDS", 5.0)
    ada = Machine(client, admit(lab, "ada"))
    most = api.FAILING_AT_ONCE
    with ThreadPoolExecutor(most + 8) as at_once:
        wrong = [
            at_once.submit(client.post, "/claims", headers=bearer("wrong"), json={"gpus": 1}) for _ in range(most + 8)
        ]
        assert ada.claim() is None
        assert not all(each.done() for each in wrong), "the wrong ones are still being answered"
        statuses = sorted(each.result().status_code for each in wrong)
    assert statuses == [401] * most + [429] * 8


def test_a_machine_is_admitted_and_revoked_on_record(lab: Lab) -> None:
    lab.pool(POOL, runner="donated")
    token = admit(lab, "ada")
    with lab.db.read() as session:
        [view] = machines.every(session)
        assert token not in repr(view)
        assert machines.with_token(session, token) == view
    assert token not in repr(dump(lab))
    with lab.db.write() as session:
        assert machines.revoke(session, "ada", "It was stolen.")
    with lab.db.write() as session:
        assert not machines.revoke(session, "ada", "It was stolen.")
    with lab.db.read() as session:
        told = [entry.kind for entry in record.since(session, record.LAB, 0)]
    assert told[-2:] == ["machine.admitted", "machine.revoked"]
    lab.pool("attic", runner="donated")
    before = dump(lab)
    for name, pool, error in (
        ("a/b", POOL, InvalidError),
        ("", POOL, InvalidError),
        ("bob", "nowhere", NotFoundError),
        ("bob", "laptop", InvalidError),
        ("ada", "attic", ConflictError),
    ):
        with pytest.raises(error):
            admit(lab, name, pool)
    with pytest.raises(NotFoundError), lab.db.write() as session:
        machines.revoke(session, "bob", "Nobody knows it.")
    assert dump(lab) == before


def test_a_lab_is_reached_in_private_only(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="https"):
        Store(Settings(_env_file=None, store="http://lab.example/attempts", store_secret="key"))
