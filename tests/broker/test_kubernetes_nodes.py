"""The trainer over two pods, one on each of two nodes of the stand-in: a gang that a lost node ends and begins anew."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from broker.end_reasons import EndReason
from broker.runs.runs import Run, RunState
from tests.broker.lab import Lab
from tests.broker.supervised import attempt, charged
from tests.broker.test_kubernetes import OPTIONS, cluster, forget_grace, supervised
from tests.databases import ONCE
from tests.kubernetes import NAMESPACE, Standin, standin
from tests.patience import PATIENCE, wait_for
from tests.trainer.conftest import start_trainer, write_config

__all__ = ["cluster", "standin"]

POOL = "cloud"
NODES = ("m1", "m2", "m3")
STEPS = 20_000
"""More than any attempt does before the test ends it."""
LEASE = 12.0
"""Seconds; the cluster is asked every two, and the trainers train on meanwhile."""
LATER = 8
"""The steps that each attempt does before the test goes on."""


@pytest.fixture
def run(lab: Lab, standin: Standin, cluster: Standin, tmp_path: Path) -> int:
    """A queued run of the tiny model on two nodes of one GPU, of which the cluster has three."""
    known = {node.metadata.name for node in standin.core.list_node().items}
    for name in set(NODES) - known:
        standin.do(lambda c, name=name: c.add_node(name, gpus=1, labels={"size": "one"}))  # type: ignore[misc]
    lab.pool(POOL, gpus=3, gpus_a_node=1, runner="kubernetes", options=OPTIONS | {"node_selector": "size=one"})
    project = lab.project()
    lab.approve(lab.request(project, pool=POOL))
    run = lab.launch(project, gpus=2)
    with lab.db.write() as session:
        session.get_one(Run, run).config = write_config(tmp_path / "tiny.yml", steps=STEPS).read_text()
    return run


@ONCE
def test_a_model_over_two_pods_goes_on_after_a_lost_node(lab: Lab, cluster: Standin, tmp_path: Path, run: int) -> None:
    cluster.fork_trainers()
    cluster.do(lambda c: c.pods.lost.update(("m2", "m3")))
    with supervised(lab, cluster, tmp_path, run, lease=LEASE) as (supervisor, token, first):
        wait_for(lambda: phases(cluster) == ["Pending", "Running"], "the first of two pods")
        wait_for(lambda: "Unschedulable" in attempt(lab, run, token).waiting, "what the second waits for")
        until = attempt(lab, run, token).lease_until
        wait_for(lambda: attempt(lab, run, token).lease_until != until, "a renewal")
        assert (lab.run(run).state, charged(lab, run, token)) == (RunState.STARTING, 0), "a gang starts together"
        cluster.do(lambda c: c.pods.lost.clear())
        wait_for(lambda: lab.row(run).step >= LATER, "steps")
        assert placed(cluster) == ["m1", "m2"]
        assert started(first)["ranks"] == 2
        cluster.do(lambda c: c.lose("m2"))
        cluster.do(forget_grace)
        assert supervisor.wait() == 0
    assert lab.run(run).state == RunState.QUEUED
    assert attempt(lab, run, token).end_reason == EndReason.NODE_FAILED
    in_store = {int(path.parent.name[4:]) for path in tmp_path.glob("store/runs/*/attempt-1/checkpoints/step*/whole")}

    with supervised(lab, cluster, tmp_path, run, lease=LEASE) as (supervisor, _, second):
        wait_for(lambda: (second / "events.jsonl").exists() and started(second), "the second attempt")
        begun = started(second)["step"]
        assert begun in in_store
        wait_for(lambda: lab.row(run).step >= begun + LATER, "steps after the checkpoint")
        assert placed(cluster) == ["m1", "m3"]
        lab.cancel(run)
        assert supervisor.wait() == 0
    assert lab.run(run).state == RunState.CANCELLED
    assert json.loads((second / "outcome.json").read_text())["status"] == 75
    told = losses(first) | losses(second)
    # What the lost node had measured since its last piece is gone with it; the steps go on at the checkpoint.
    assert begun == min(losses(second)) - 1
    alone = on_one_node(first.parent / "config.yml", tmp_path / "alone", max(told))
    assert told == pytest.approx({step: alone[step] for step in told}, rel=1e-5)


def on_one_node(config: Path, out: Path, last: int) -> dict[int, Any]:
    """The losses of the same configuration on two ranks of one node, up to a step."""
    trainer = start_trainer("train", config, "--out", out, "--gpus", "2")
    try:
        wait_for(lambda: (out / "metrics.jsonl").exists() and max(losses(out), default=0) >= last, "as many steps")
    finally:
        trainer.send_signal(signal.SIGTERM)
        trainer.wait(PATIENCE)
    return {step: loss for step, loss in losses(out).items() if step <= last}


def losses(folder: Path) -> dict[int, Any]:
    """The losses by step that a trainer has told in whole lines."""
    whole, _, _ = (folder / "metrics.jsonl").read_text().rpartition("\n")
    return {line["step"]: line["loss"] for line in map(json.loads, whole.splitlines())}


def started(folder: Path) -> dict[str, Any]:
    """What the trainer has said as it began."""
    whole, _, _ = (folder / "events.jsonl").read_text().rpartition("\n")
    return next((event for event in map(json.loads, whole.splitlines()) if event["event"] == "started"), {})


def phases(cluster: Standin) -> list[str]:
    return sorted(pod.status.phase for pod in cluster.core.list_namespaced_pod(NAMESPACE).items)


def placed(cluster: Standin) -> list[str]:
    """The nodes of the pods that run."""
    pods = cluster.core.list_namespaced_pod(NAMESPACE).items
    return sorted(pod.spec.node_name for pod in pods if pod.status.phase == "Running")
