"""One model trained over two nodes of a real Slurm, from Discord: paused, resumed on one node, and a node lost."""

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from broker.allocations import pools
from broker.runs.attempts import Attempt
from broker.runs.runs import RunState
from demo import story
from demo.play import set_stage
from demo.stage import Stage
from projects.db.columns import utcnow
from tests.broker.lab import Lab
from tests.patience import until
from tests.slurm import Cluster, slurm
from tests.system import processes
from tests.system.forked_services import ForkedServices

__all__ = ["slurm"]

TINY = f"""{processes.SMALL}
training: {{steps: 1000000, batch: 4, micro_batch: 2, evaluate_every: 100000, evaluation_tokens: 64}}
checkpoints: {{log_until: 4, every: 100000}}
"""


async def test_one_model_over_two_nodes(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", str(slurm.conf))
    parts = ForkedServices(tmp_path / "logs")
    try:
        stage = await set_stage(tmp_path, parts, every={"lease_seconds": 45.0})
        with stage.database.write() as session:
            pools.add_pool(session, name="cluster", gpu_type="CPU", gpus=2, gpus_a_node=1, runner="slurm")
            soon = utcnow() + timedelta(days=60)
            pools.add_grant(session, pool="cluster", sponsor="A centre", seconds=36_000, until=soon)
        Lab(stage.database).recipe("tiny", TINY)
        for act in (story.propose, story.join, story.confirm, story.scope):
            await act(stage, Console(quiet=True))
        await play(stage, slurm)
        await stage.guild.close()
        stage.database.close()
    finally:
        await asyncio.to_thread(parts.stop)
        slurm.clear()


async def play(stage: Stage, slurm: Cluster) -> None:
    ada, rosa, here = stage.person("Ada"), stage.person("Rosa"), stage.channel
    form = await ada.command("allocation request", pool="cluster", channel=here)
    ends = (utcnow() + timedelta(days=30)).date().isoformat()
    await ada.submit(form, {"Core-hours": "2", "Until": ends, "Justification": "Two nodes."})
    card = await stage.guild.wait_for("compute-review", lambda m: "Approve" in m.button_labels)
    await rosa.submit(await rosa.press(card, "Approve"), {"Core-hours": "2", "Reason": "Good."})
    await stage.guild.wait_for(stage.channel, lambda m: "Good." in m.text)

    refused = await ada.command("run launch", recipe="tiny", time_limit="20m", gpus=3, channel=here)
    assert "has 2 cores on 2 nodes of 1; ask for 1 to 2." in refused.text
    offer = await ada.command("run launch", recipe="tiny", time_limit="20m", gpus=2, channel=here)
    assert "on 2 cores on 2 nodes of `cluster`?" in offer.text
    await ada.press(offer.message or "", "Launch")
    stage.run_id = 1
    together = await trains(stage)
    assert (started(stage, together)["ranks"], nodes(slurm)) == (2, "n[1-2]")

    await ada.command("run pause", run=1, channel=here)
    await until(lambda: stage.run().state == RunState.PAUSED, "the pause")
    assert json.loads((folder(stage, together) / "outcome.json").read_text())["status"] == 75
    paused_at = stage.run().step
    await ada.command("run resume", run=1, gpus=1, channel=here)
    alone = await trains(stage, after=together)
    assert (started(stage, alone)["ranks"], started(stage, alone)["step"]) == (1, paused_at)

    lost = nodes(slurm)
    assert lost in ("n1", "n2")
    slurm.ask("scontrol", "update", f"nodename={lost}", "state=down", "reason=test")
    elsewhere = await trains(stage, after=alone)
    assert started(stage, elsewhere)["step"] >= paused_at
    assert nodes(slurm) in {"n1", "n2"} - {lost}
    with stage.database.read() as session:
        told = session.get_one(Attempt, (1, alone)).reason
    assert told == f"Slurm ended the job: NODE_FAIL on {lost}"
    card = await stage.guild.wait_for(here, lambda m: m.text.endswith("· run 1") and m.thread_id is not None)
    await stage.guild.wait_for(card.thread_id or "", lambda m: told in m.text.replace("\\", ""))
    await ada.agree(await ada.command("run cancel", run=1, channel=here))
    await until(lambda: stage.run().state == RunState.CANCELLED, "the end")


async def trains(stage: Stage, after: int = 0) -> int:
    """The number of an attempt after another, once it has done steps of its own and the database knows it."""

    def stands() -> bool:
        run = stage.run()
        if run.state != RunState.RUNNING or run.attempt <= after:
            return False
        logged = folder(stage, run.attempt) / "metrics.jsonl"
        return logged.exists() and logged.read_text().count("\n") > 3

    await until(stands, f"steps after attempt {after}")
    attempt = stage.run().attempt
    least = int(started(stage, attempt)["step"]) + 2
    with processes.held(folder(stage, attempt)):
        await until(lambda: stage.run().step > least, f"steps of attempt {attempt}")
    return attempt


def folder(stage: Stage, attempt: int) -> Path:
    return stage.home / "runs" / "1" / f"attempt-{attempt}"


def started(stage: Stage, attempt: int) -> dict[str, Any]:
    """What the trainer of an attempt has said as it began: its ranks and its first step."""
    lines = (folder(stage, attempt) / "events.jsonl").read_text().splitlines()
    return next(event for event in map(json.loads, lines) if event["event"] == "started")


def nodes(slurm: Cluster) -> str:
    """Where the running job runs."""
    return slurm.ask("squeue", "--noheader", "--states=running", "--format=%N")
