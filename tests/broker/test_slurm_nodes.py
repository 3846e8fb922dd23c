"""One trainer over several nodes of a real Slurm, started together and stopped together."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.end_reasons import EndReason
from broker.runners.slurm import SlurmRunner
from broker.runs.runs import RunState
from tests.broker.lab import Lab
from tests.broker.supervised import admitted
from tests.broker.test_preparing import accept_tiny, prepare
from tests.broker.test_slurm import LEASE, cluster, ended, here, of, said, slurm, start, supervisor_of
from tests.databases import ONCE
from tests.patience import PATIENCE, wait_for
from tests.slurm import Cluster
from trainer.contract import Status

__all__ = ["cluster", "slurm", "start"]

Start = Callable[..., tuple[SlurmRunner, Path]]
TELL = (
    "import json, os, sys; "
    "line = json.dumps([sys.argv[1:], os.environ['SLURMD_NODENAME'], os.environ['CUDA_VISIBLE_DEVICES']]); "
    "os.write(1, f'{line}\\n'.encode())"
)
SLOW = (
    "import os, signal, sys, time; "
    "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(3 * int(os.environ['SLURM_NODEID'])), sys.exit(75))); "
    "os.write(1, b'here\\n'); time.sleep(600)"
)
DEAF = (
    "import os, signal, time; signal.signal(signal.SIGTERM, lambda *_: os.write(1, b'asked\\n')); "
    "os.write(1, b'here\\n')\nwhile True: time.sleep(60)"
)


def test_each_node_is_given_its_number_and_where_they_meet(start: Start) -> None:
    typed = ["; touch here", "$HOME", "it's", '"', "a\nb"]
    runner, folder = start(TELL, *typed, gpus=16, nodes=2)
    assert ended(runner) == 0, said(folder)
    lines = sorted(map(json.loads, said(folder).splitlines()), key=lambda line: line[1])
    port = lines[0][0][-1].rpartition(":")[2]
    for number, (arguments, node, devices) in enumerate(lines):
        own = ["--hosts", "2", "--host", str(number), "--rendezvous", f"127.0.0.1:{port}"]
        assert (arguments, node, devices) == (typed + own, f"n{number + 1}", "0,1,2,3,4,5,6,7")
    assert 10_000 <= int(port) < 30_000
    assert not (folder / "here").exists()


def test_a_stop_lets_each_node_end_in_its_own_time(start: Start) -> None:
    runner, folder = start(SLOW, gpus=2, nodes=2, grace=60)
    here(runner, folder, times=2)
    runner.stop()
    assert ended(runner) == 75, said(folder)


def test_a_plain_scancel_lets_each_node_write_a_checkpoint(cluster: Cluster, start: Start) -> None:
    runner, folder = start(SLOW, gpus=2, nodes=2, grace=60)
    here(runner, folder, times=2)
    cluster.ask("scancel", str(runner.job))
    wait_for(lambda: runner.poll() is not None, "the end of a job")
    for number in range(2):
        assert f"task {number}: Exited with exit code 75" in said(folder)


def test_a_job_that_does_not_listen_is_ended_on_all_nodes(start: Start) -> None:
    runner, folder = start(DEAF, gpus=2, nodes=2)
    here(runner, folder, times=2)
    runner.stop()
    wait_for(lambda: said(folder).count("asked") == 2, "the asking")
    runner.kill()
    assert runner.poll() == -signal.SIGKILL
    assert of(folder) == []


def test_a_lost_node_ends_the_job_on_all_nodes(cluster: Cluster, start: Start) -> None:
    runner, folder = start(SLOW, gpus=2, nodes=2, grace=60)
    here(runner, folder, times=2)
    cluster.ask("scontrol", "update", "nodename=n2", "state=down", "reason=test")
    assert ended(runner) == Status.FAILED
    assert (runner.ended, runner.end_reason) == ("Slurm ended the job: NODE_FAIL on n[1-2]", EndReason.NODE_FAILED)
    wait_for(lambda: of(folder) == [], "the end of what ran on the other node")


@pytest.mark.parametrize(("what", "works"), [("nodename=n2 reason=test", "resume"), ("partitionname=main", "up")])
def test_nodes_are_given_together_or_not_at_all(cluster: Cluster, start: Start, what: str, works: str) -> None:
    cluster.ask("scontrol", "update", *what.split(), "state=drain")
    runner, folder = start(SLOW, gpus=16, nodes=2)
    assert runner.poll() is None
    assert runner.waiting.startswith("Slurm: ")
    assert said(folder) == ""
    cluster.ask("scontrol", "update", *what.split(), f"state={works}")
    here(runner, folder, times=2)
    runner.kill()


@ONCE
def test_two_nodes_prepare_a_corpus_together(lab: Lab, cluster: Cluster, tmp_path: Path) -> None:
    accept_tiny(lab)
    lab.pool("cluster", gpus=2, gpus_a_node=1, runner="slurm")
    project = lab.project()
    lab.approve(lab.request(project, pool="cluster"))
    run = prepare(lab, project, gpus=2)
    token, folder = admitted(lab, tmp_path, run, LEASE)
    with supervisor_of(lab, cluster, tmp_path, LEASE, None, run, token) as supervisor:
        assert supervisor.wait(PATIENCE) == 0
    assert (lab.run(run).state, lab.run(run).reason) == (RunState.FINISHED, ""), said(folder)
    place = tmp_path / "data" / "tiny" / f"{run}-{token}"
    assert json.loads((place / "manifest.json").read_text())
    assert "joining python-docs" in said(folder), "what several nodes have written is joined"
    assert said(folder).count("done\n") == 2, "on each node"
