"""Corpora that engines' runs copy from the store: jobs of Slurm, pods of Kubernetes, donated machines."""

from collections.abc import Mapping
from pathlib import Path

from broker.runs.runs import RunState
from broker.store import Store
from projects.settings import Settings
from tests.broker.copying import HAS, LACKS, add, launch, losses, projects, propose, push, songs, supervised, trained
from tests.broker.donating import admit, donated, serving
from tests.broker.lab import Lab, settings
from tests.broker.supervised import attempt
from tests.broker.test_kubernetes import OPTIONS, cluster, standin
from tests.databases import ONCE
from tests.kubernetes import Standin
from tests.patience import PATIENCE
from tests.slurm import Cluster, slurm

__all__ = ["cluster", "slurm", "standin"]


def trained_by_engine(lab: Lab, conf: Settings, run: int, more: Mapping[str, str] | None = None) -> Path:
    """The folder of an attempt that an engine has brought to its end."""
    with supervised(lab, conf, run, more=more) as (supervisor, token, folder):
        assert supervisor.wait(PATIENCE) == 0
    log = folder / "trainer.log"
    said = log.read_text() if log.exists() else ""
    assert lab.run(run).state == RunState.FINISHED, (attempt(lab, run, token).reason, said)
    return folder


def lab_in_a_store(lab: Lab, tmp_path: Path) -> Settings:
    """The settings of a lab whose corpus lies in the store and on a pool, and not on the pool of pods."""
    add(lab, HAS, songs(tmp_path / "data"))
    propose(lab)
    conf = settings(tmp_path, store=f"file://{tmp_path}/store")
    assert push(lab, conf).returncode == 0
    return conf


@ONCE
def test_a_donated_machine_copies_a_corpus_once_and_trains_to_the_same_losses(lab: Lab, tmp_path: Path) -> None:
    project = projects(lab, "donated")
    conf = lab_in_a_store(lab, tmp_path)
    original = losses(trained(lab, settings(tmp_path / "here", store=conf.store), launch(lab, project, HAS)))
    token = admit(lab, "ada", LACKS)
    with serving(lab, conf) as served, donated(served.address, tmp_path, "ada", token):
        assert losses(trained_by_engine(lab, conf, launch(lab, project, LACKS))) == original
        [copy] = [path for path in (tmp_path / "ada" / "corpora").iterdir() if path.is_dir()]
        Store(conf).remove(f"corpora/{copy.name}/a.jsonl")
        assert losses(trained_by_engine(lab, conf, launch(lab, project, LACKS))) == original
    assert not conf.corpora_dir.exists(), "the lab's host copies nothing"


@ONCE
def test_a_job_of_slurm_reads_what_its_supervisor_has_copied(lab: Lab, slurm: Cluster, tmp_path: Path) -> None:
    project = projects(lab, "slurm")
    conf = lab_in_a_store(lab, tmp_path)
    original = losses(trained(lab, settings(tmp_path / "here", store=conf.store), launch(lab, project, HAS)))
    run = launch(lab, project, LACKS)
    try:
        assert losses(trained_by_engine(lab, conf, run, {"SLURM_CONF": str(slurm.conf)})) == original
    finally:
        slurm.clear()
    assert (attempt(lab, run, 1).boot_id, len(list(conf.corpora_dir.glob("songs-*")))) == ("slurm", 1)


@ONCE
def test_a_pod_of_kubernetes_copies_a_corpus(lab: Lab, cluster: Standin, tmp_path: Path) -> None:
    cluster.fork_trainers()
    project = projects(lab, "kubernetes", OPTIONS)
    conf = lab_in_a_store(lab, tmp_path)
    original = losses(trained(lab, settings(tmp_path / "here", store=conf.store), launch(lab, project, HAS)))
    more = {"KUBECONFIG": str(cluster.kubeconfig)}
    assert losses(trained_by_engine(lab, conf, launch(lab, project, LACKS), more)) == original
    assert not conf.corpora_dir.exists(), "the lab's host copies nothing"

    [object_] = (tmp_path / "store").rglob("c.jsonl")
    object_.write_bytes(object_.read_bytes()[:-1] + b"!")
    run = launch(lab, project, LACKS)
    with supervised(lab, conf, run, more=more) as (supervisor, token, _):
        assert supervisor.wait(PATIENCE) == 0
    assert lab.run(run).state == RunState.QUEUED
    assert f"The store has other bytes as corpora/{object_.parents[1].name}" in attempt(lab, run, token).reason
    (object_.parents[1] / "whole").unlink()
    with supervised(lab, conf, run, more=more) as (supervisor, token, _):
        assert supervisor.wait(PATIENCE) == 0
    assert "it could not be started: The store has lost corpora/" in attempt(lab, run, token).reason, "before any pod"
