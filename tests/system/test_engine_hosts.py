"""Two hosts of an engine's pool: one is lost, and the other takes its job over, which goes on as the same attempt."""

import json
from pathlib import Path

import pytest
from sqlalchemy import update

from broker.pieces import tail
from broker.runs.attempts import Attempt
from broker.runs.runs import ENDED, RunState
from broker.store import Store
from projects.db.columns import utcnow
from tests.broker.donating import serving
from tests.broker.lab import settings
from tests.broker.supervised import charged
from tests.broker.test_slurm import slurms_seconds
from tests.kubernetes import IMAGE, NAMESPACE, Standin, standin
from tests.patience import wait_for
from tests.slurm import Cluster, slurm
from tests.standin import python_with_trainer
from tests.system.worker_hosts import LAB, Hosts

__all__ = ["slurm", "standin"]

NAMES = ("here", "there")
TRAINER = """
import json, pathlib, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
def did(step):
    with (out / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "tokens": step, "loss": 1.0}) + "\\n")
print("began", flush=True)
did(1)
while not (END or out / "end").exists():
    time.sleep(0.1)
did(2)
(out / "outcome.json").write_text(json.dumps({"status": 0, "reason": None, "step": 2, "transient": False}))
"""


def test_any_worker_of_an_engines_pool_takes_a_job_over_once_its_lease_is_out(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(slurm.conf))
    (tmp_path / "shared").mkdir()
    hosts = Hosts(tmp_path, NAMES, in_containers=True)
    try:
        hosts.lab.pool("engine", runner="slurm")
        hosts.start(LAB, "scheduler")
        for name in NAMES:
            (tmp_path / name).mkdir()
            (tmp_path / name / "runs").symlink_to(tmp_path / "shared")  # as a cluster's shared file system
            hosts.start(name, "worker", "--pool", "engine", python=hosts.python(name, TRAINER.replace("END", "None")))
        run = hosts.launch("engine")
        wait_for(lambda: hosts.has_done(run, 1), "the first step")
        before = hosts.attempt(run)
        hosts.kill(before.host)
        with hosts.db.write() as session:  # the lease is over, for which nobody need wait
            session.execute(update(Attempt).values(lease_until=utcnow()))
        wait_for(lambda: hosts.attempt(run).generation == 2, "another supervisor")
        [other] = set(NAMES) - {before.host}
        assert hosts.attempt(run).host == other
        (tmp_path / "shared" / str(run) / "attempt-1" / "end").touch()
        wait_for(lambda: hosts.lab.run(run).state in ENDED, "the end of the run")
        assert (hosts.lab.run(run).state, hosts.lab.run(run).step, hosts.lab.row(run).token) == (
            RunState.FINISHED,
            2,
            1,
        )
        assert hosts.attempt(run).pid == before.pid
        assert before.pid is not None
        assert charged(hosts.lab, run, 1) == slurms_seconds(slurm, before.pid)
        assert hosts.lab.kinds(1).count("run.started") == 1
    finally:
        hosts.close()
        slurm.clear()


@pytest.mark.chaos
def test_another_worker_takes_a_job_of_kubernetes_over_and_need_not_know_its_key(
    standin: Standin, tmp_path: Path
) -> None:
    """The hosts share the store alone, and neither a folder nor the key that the first one has made for the pod."""
    end = tmp_path / "end"
    standin.use(python_with_trainer(tmp_path, TRAINER.replace("END", f"pathlib.Path({str(end)!r})")))
    hosts = Hosts(
        tmp_path, NAMES, given=settings(tmp_path / "lab", store=f"file://{tmp_path}/store"), in_containers=True
    )
    try:
        with serving(hosts.lab, hosts.settings[LAB]) as served:
            options = {"namespace": NAMESPACE, "image": IMAGE, "kubeconfig": str(standin.kubeconfig)}
            hosts.lab.pool("engine", runner="kubernetes", options=options | {"lab": served.address})
            hosts.start(LAB, "scheduler")
            for name in NAMES:
                hosts.start(name, "worker", "--pool", "engine")
            run = hosts.launch("engine")
            wait_for(lambda: hosts.has_done(run, 1), "the first step")
            before = hosts.attempt(run)
            [pod] = standin.core.list_namespaced_pod(NAMESPACE).items
            hosts.kill(before.host)
            with hosts.db.write() as session:  # the lease is over, for which nobody need wait
                session.execute(update(Attempt).values(lease_until=utcnow()))
            wait_for(lambda: hosts.attempt(run).generation == 2, "another supervisor")
            [other] = set(NAMES) - {before.host}
            assert hosts.attempt(run).host == other
            end.touch()
            wait_for(lambda: hosts.lab.run(run).state in ENDED, "the end of the run")
            assert (hosts.lab.run(run).state, hosts.lab.run(run).step, hosts.lab.row(run).token) == (
                RunState.FINISHED,
                2,
                1,
            )
            assert hosts.attempt(run).pid == before.pid
            [same] = standin.core.list_namespaced_pod(NAMESPACE).items
            assert same.metadata.uid == pod.metadata.uid, "no pod was started but the first"
            ran = same.status.container_statuses[0].state.terminated
            assert charged(hosts.lab, run, 1) == round((ran.finished_at - ran.started_at).total_seconds())
            assert hosts.lab.kinds(1).count("run.started") == 1
            store = Store(hosts.settings[LAB])
            [folder] = [f"runs/{name}/attempt-1" for name in store.names("runs")]
            assert tail(store, f"{folder}/trainer.log", 100) == b"began\n"
            steps = (tmp_path / other / "runs" / str(run) / "attempt-1" / "metrics.jsonl").read_text().splitlines()
            assert [json.loads(line)["step"] for line in steps] == [1, 2], "nothing is trained or told twice"
    finally:
        hosts.close()
        standin.clear()
