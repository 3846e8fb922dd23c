"""Pods that reach the lab's API with a key of their own attempt, and hold no key of the store."""

import base64
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from broker import pieces
from broker import store as stores
from broker.runners import donated_orders as orders
from broker.runners.base import Check
from broker.runners.kubernetes import KubernetesRunner
from broker.runs.runs import Run, RunState
from broker.store import Store
from projects.errors import InvalidError
from projects.settings import Settings, get_settings
from tests.broker.donating import Served, self_signed, serving
from tests.broker.lab import Lab, settings
from tests.broker.supervised import TRAINER, admitted, attempt, supervised_by
from tests.broker.test_kubernetes import (
    KEYS,
    LISTENS,
    OPTIONS,
    OWNER,
    Start,
    cluster,
    ended,
    forget_grace,
    here,
    names,
    said,
    start,
)
from tests.databases import ONCE
from tests.environment import bare
from tests.forked import Forked, run_module
from tests.kubernetes import IMAGE, NAMESPACE, Standin, standin
from tests.patience import PATIENCE, wait_for
from tests.seaweed import KEY, SECRET, Seaweed
from tests.standin import python_with_trainer

__all__ = ["cluster", "standin", "start"]

# Each node prepares the data for itself, and only node 0 writes checkpoints.
TWO_NODES = """
import pathlib, sys
if sys.argv[1] == "data":
    pathlib.Path(sys.argv[-1]).mkdir()
    sys.exit()
"""
LEASE = 12.0


@pytest.fixture
def served(lab: Lab, cluster: Standin, tmp_path: Path) -> Iterator[Served]:
    """The lab's API, on the store of this process."""
    with serving(lab, settings(tmp_path, store=get_settings().store)) as served:
        yield served


def by(served: Served) -> dict[str, str]:
    """The options of a pool whose pods use the API."""
    return OPTIONS | {"store_secret": "", "lab": served.address}


def key_of(cluster: Standin, token: int = 1) -> str:
    """The key that the Secret of an attempt's Job has for its pods."""
    [name] = [each for each in names(cluster) if each.endswith(f"-{token}")]
    key: str = cluster.core.read_namespaced_secret(name, NAMESPACE).data["STOA_STORE_SECRET"]
    return base64.b64decode(key).decode()


def asked(served: Served, key: str, method: str, path: str, run: str, token: int = 1, **given: Any) -> int:
    """The status with which the API answers a request for an attempt."""
    address = f"{served.address}/attempts/{run}/attempt-{token}/{path}"
    headers = {"Authorization": f"Bearer {key}"}
    return httpx2.request(method, address, headers=headers, timeout=PATIENCE, **given).status_code


@ONCE
def test_a_run_on_two_nodes_trains_by_keys_of_its_own_attempts(
    lab: Lab, cluster: Standin, seaweed: Seaweed, tmp_path: Path
) -> None:
    conf = seaweed.settings(settings(tmp_path), prefix="keys")
    python = python_with_trainer(tmp_path, TWO_NODES + TRAINER.replace("LAST", "10000"))
    cluster.use(python)
    cluster.begin_anew()
    with serving(lab, conf) as served:
        run = queued_on_two(lab, by(served))
        owner = stores.attempt_folder(run, request_of(lab, run), 1).split("/")[1]
        store = Store(conf)
        with supervised(lab, cluster, conf, python, run) as (supervisor, folder):
            wait_for(lambda: lab.row(run).step > 10 and len(cluster.pods()) == 2, "a checkpoint")
            key = key_of(cluster)
            for process in cluster.pods():
                given = process.environ()
                assert given["STOA_STORE_SECRET"] == key
                assert given["STOA_STORE"] == f"{served.address}/attempts/{owner}/attempt-1"
                assert not [value for value in given.values() if value in (KEY, SECRET) or "s3://" in value]
                [trainer] = process.children()
                told = Path(f"/proc/{trainer.pid}/environ").read_bytes()
                assert not [word for word in (b"STOA", key.encode(), SECRET.encode(), KEY.encode()) if word in told]
            assert key not in str(cluster.batch.list_namespaced_job(NAMESPACE))
            nothing_else(lab, served, key, owner, store)
            wait_for(lambda: pieces.tail(store, f"runs/{owner}/attempt-1/trainer-1.log", 100), "the log of node 1")
            served.stop()
            seen = lab.row(run).step
            with pytest.raises(httpx2.HTTPError):
                asked(served, key, "GET", "objects/x", owner)
            served.start()
            wait_for(lambda: lab.row(run).step > seen + 10, "more steps")
            lab.pause(run)
            assert supervisor.wait(PATIENCE) == 0
        assert lab.run(run).state == RunState.PAUSED
        last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
        assert store.is_whole(f"runs/{owner}/attempt-1/checkpoints/step{last}")
        task = f"objects/runs/{owner}/attempt-1/task.json"
        assert asked(served, key, "GET", task, owner) == 410
        lab.resume(run)
        with supervised(lab, cluster, conf, python, run) as (supervisor, folder):
            wait_for(lambda: f"from step {last}" in said(folder), "the second attempt")
            new = key_of(cluster, token=2)
            assert asked(served, new, "GET", f"objects/runs/{owner}/attempt-2/task.json", owner, 2) == 200
            assert [asked(served, old, "GET", task, owner) for old in (key, new)] == [410, 403]
            lab.cancel(run)
            assert supervisor.wait(PATIENCE) == 0
    assert lab.run(run).state == RunState.CANCELLED
    assert [attempt(lab, run, token).boot_id for token in (1, 2)] == ["kubernetes"] * 2
    wait_for(lambda: names(cluster) == [], "the end of the jobs")
    assert secrets(cluster) == [KEYS], "the key goes with its Job"


def nothing_else(lab: Lab, served: Served, key: str, owner: str, store: Store) -> None:
    """Another attempt's objects are not to be had with a key, nor what the lab keeps of this one, nor a claim."""
    store.write("runs/77-ba9876543210/attempt-1/outcome.json", b"of another")
    other = "objects/runs/77-ba9876543210/attempt-1/outcome.json"
    mine = f"objects/runs/{owner}/attempt-1"
    refusals = [("GET", other), ("PUT", other), ("DELETE", other), ("PUT", f"{mine}/order.json")]
    refusals += [("GET", f"{mine}/order.json"), ("GET", f"names/runs/{owner}/attempt-1/keys"), ("POST", "renew")]
    refusals += [("GET", f"names/runs/{owner}"), ("PUT", f"{mine}/trainer-0.log/00000000"), ("GET", "names/runs")]
    for method, path in refusals:
        assert asked(served, key, method, path, owner, json={}) == 403, (method, path)
    assert asked(served, key, "GET", other, "77-ba9876543210") == 403
    assert store.read("runs/77-ba9876543210/attempt-1/outcome.json") == b"of another"
    assert orders.read_claim(store, f"runs/{owner}/attempt-1") is None


def queued_on_two(lab: Lab, options: dict[str, str]) -> int:
    """A queued run on two nodes of a pool of Kubernetes'."""
    lab.pool("cloud", gpus=16, gpus_a_node=1, runner="kubernetes", options=options)
    project = lab.project()
    lab.approve(lab.request(project, pool="cloud"))
    return lab.launch(project, gpus=2, overrides="steps=4, batch=2, micro_batch=1, sequence_length=32")


def request_of(lab: Lab, run: int) -> str:
    with lab.db.read() as session:
        return session.get_one(Run, run).request_id


@contextmanager
def supervised(lab: Lab, cluster: Standin, conf: Settings, python: Path, run: int) -> Iterator[tuple[Forked, Path]]:
    """A supervisor of the run's next attempt, which holds the store's keys, and the attempt's folder."""
    token, folder = admitted(lab, conf.home, run, LEASE)
    places = stores.environment(conf) | {"KUBECONFIG": str(cluster.kubeconfig)}
    with supervised_by(lab, Path(sys.executable), conf.home, LEASE, places, run, token) as supervisor:
        yield supervisor, folder


@ONCE
def test_a_pod_of_a_lost_node_is_shut_out_and_ends_when_the_next_attempt_begins(
    start: Start, cluster: Standin, served: Served
) -> None:
    _, folder = lost = start(LISTENS, run=7, options=by(served))
    here(*lost)
    [pod] = cluster.pods()
    key, owner = key_of(cluster), f"7-{OWNER}"
    task = f"objects/runs/{owner}/attempt-1/task.json"
    [seen] = cluster.core.list_namespaced_pod(NAMESPACE).items
    cluster.do(lambda c: c.lose(seen.spec.node_name))
    assert asked(served, key, "GET", task, owner) == 200
    later, later_folder = start(LISTENS, run=7, token=2, options=by(served))
    assert (later.uid, asked(served, key, "GET", task, owner)) == ("", 410)
    wait_for(lambda: pod not in cluster.pods(), "the end of the lost pod")
    assert "the lab has given the attempt up" in said_by(cluster, seen)
    assert not (folder / "outcome.json").exists()
    cluster.do(forget_grace)
    here(later, later_folder)
    later.kill()
    [new] = [name for name in Store(get_settings()).names(f"runs/{owner}") if name == "attempt-2"]
    order = orders.read_order(Store(get_settings()), f"runs/{owner}/{new}")
    assert order is not None
    assert order.over, "an attempt's end shuts its pods out, too"


def secrets(cluster: Standin) -> list[str]:
    return [secret.metadata.name for secret in cluster.core.list_namespaced_secret(NAMESPACE).items]


def said_by(cluster: Standin, pod: Any) -> str:
    return (cluster.root / "pods" / str(pod.metadata.uid) / "log").read_text()


@ONCE
@pytest.mark.parametrize("fault", [{"status": 500}, {"cut": True}], ids=["not created", "created, and not told"])
def test_another_supervisor_need_not_know_the_key(
    start: Start, cluster: Standin, served: Served, fault: dict[str, Any]
) -> None:
    """The first supervisor dies as it creates the Secret: its pods wait for one, or hold a key that nobody knows."""
    cluster.fault("POST .*/secrets", count=1, **fault)
    first, folder = start(LISTENS, run=7, options=by(served))
    wait_for(lambda: len(names(cluster)) == 1, "the Job")
    if "cut" in fault:
        wait_for(cluster.pods, "the pod")
        wait_for(lambda: "here" in (Store(get_settings()).read(log_of(7)) or b"").decode(), "its program")
    successor, _ = start(LISTENS, run=7, options=by(served))
    assert successor.uid == first.uid
    here(successor, folder)
    assert asked(served, key_of(cluster), "GET", f"objects/runs/7-{OWNER}/attempt-1/task.json", f"7-{OWNER}") == 200
    successor.stop()
    assert ended(successor) == 75


def log_of(run: int) -> str:
    return f"runs/{run}-{OWNER}/attempt-1/trainer.log/00000000"


@ONCE
def test_a_secret_that_is_gone_or_not_allowed_is_created_once_it_can_be(
    start: Start, cluster: Standin, served: Served
) -> None:
    cluster.do(lambda c: c.pods.lost.update(("n1", "n2")))
    cluster.do(lambda c: c.forbidden.add(("create", "secrets")))
    runner, folder = start(LISTENS, options=by(served))
    wait_for(lambda: runner.poll() is None and "cannot create" in runner.waiting, "the reason")
    assert 'resource "secrets"' in runner.waiting
    cluster.do(lambda c: c.forbidden.discard(("create", "secrets")))
    wait_for(lambda: runner.poll() is None and "Unschedulable" in runner.waiting, "a pod that waits")
    [name] = names(cluster)
    cluster.core.delete_namespaced_secret(name, NAMESPACE)
    cluster.do(lambda c: c.pods.lost.clear())
    here(runner, folder)
    runner.kill()
    assert secrets(cluster) == [KEYS]


@ONCE
def test_an_attempt_that_was_over_is_not_begun_again(start: Start, cluster: Standin, served: Served) -> None:
    store, folder = Store(get_settings()), f"runs/7-{OWNER}/attempt-1"
    orders.write_order(store, folder, orders.Order(pool="cloud", gpus=1, grace_seconds=5))
    orders.close(store, folder)
    stale, _ = start(LISTENS, run=7, options=by(served))
    assert (ended(stale), names(cluster)) == (75, [])


def test_a_pool_has_one_way_to_the_store(lab: Lab) -> None:
    before = lab.everything()
    for options in ({}, {"lab": "https://lab.example:8443", "store_secret": "keys"}):
        with pytest.raises(InvalidError, match=r"either --lab, .* or --store-secret, a Secret"):
            lab.pool("cloud", runner="kubernetes", options=options)
    with pytest.raises(InvalidError, match="--lab-certificate goes with --lab"):
        lab.pool("cloud", runner="kubernetes", options={"store_secret": "keys", "lab_certificate": "/etc/stoa/lab.pem"})
    assert lab.everything() == before
    lab.pool("cloud", runner="kubernetes", options={"lab": "https://lab.example:8443/stoa"})


@ONCE
def test_doctor_learns_whether_the_api_answers(
    served: Served, cluster: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = by(served)
    assert KubernetesRunner.check(options) == Check(
        f"the API server answers (v1.34.0-standin), and the lab's API at {served.address}"
    )
    served.stop()
    check = KubernetesRunner.check(options)
    assert check.found == f"the lab's API does not answer at {served.address}"
    assert check.advice.endswith(" STOA_MACHINES_ADDRESS, where it listens, is not set here.")
    monkeypatch.setenv("STOA_MACHINES_ADDRESS", "127.0.0.1:8440")
    get_settings.cache_clear()
    check = KubernetesRunner.check(options)
    assert check.advice == "Run `stoa machine serve` or `stoa up`; pods must reach it at that address."
    served.start()
    assert not KubernetesRunner.check(options).advice
    elsewhere = KubernetesRunner.check(options | {"lab": cluster.cluster.url})
    assert elsewhere.found == f"what answers at {cluster.cluster.url} is not the lab's API"


@ONCE
def test_pods_know_a_lab_by_its_own_certificate(start: Start, cluster: Standin, lab: Lab, tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    cluster.begin_anew()
    tls = {"machines_address": "127.0.0.1:8443", "machines_certificate": str(certificate), "machines_key": str(key)}
    with serving(lab, settings(tmp_path, store=get_settings().store, **tls)) as served:
        options = by(served) | {"lab_certificate": str(tmp_path / "later.pem")}
        assert "cannot be used" in KubernetesRunner.check(options).found
        assert "does not answer" in KubernetesRunner.check(by(served)).found, "no authority has signed it"
        runner, folder = start(LISTENS, options=options)
        wait_for(lambda: runner.poll() is None and "later.pem cannot be read" in runner.waiting, "the reason")
        (tmp_path / "later.pem").write_text(certificate.read_text())
        assert not KubernetesRunner.check(options).advice
        here(runner, folder)
        [pod] = cluster.pods()
        assert Path(pod.environ()["SSL_CERT_FILE"]).read_text() == certificate.read_text()
        runner.stop()
        assert ended(runner) == 75


@ONCE
def test_the_story_for_a_real_cluster_plays_by_the_labs_api(cluster: Standin, served: Served) -> None:
    options = ["--namespace", NAMESPACE, "--image", IMAGE, "--lab", served.address]
    environment = bare() | {
        "STOA_ENV_FILE": "",
        "STOA_STORE": get_settings().store,
        "KUBECONFIG": str(cluster.kubeconfig),
    }
    done = run_module("tests.kubernetes_real", environment, *options)
    assert (done.returncode, done.stdout.count(": well, in ")) == (0, 4), done.stdout + done.stderr
    served.stop()
    away = run_module("tests.kubernetes_real", environment, *options)
    served.start()
    assert (away.returncode, away.stderr.count("\n")) == (2, 1)
    assert away.stderr.startswith(f"the lab's API does not answer at {served.address}; run `stoa machine serve`")
