"""Two clusters of Slurm, each with its own slurm.conf in its pool: what is asked of one does nothing to the other."""

import sys
from pathlib import Path

import pytest

from broker.allocations import pools
from broker.runners import reaper
from broker.runners.base import Check, JobSpec
from broker.runners.slurm import SlurmRunner
from projects.errors import InvalidError
from tests.broker.lab import Lab, settings
from tests.broker.test_slurm import LEASE_OF_JOBS, LISTENS, ended, here, slurm
from tests.databases import ONCE
from tests.slurm import Cluster, clusters

__all__ = ["clusters", "slurm"]


@ONCE
def test_each_pool_has_its_cluster_and_its_reaper(lab: Lab, clusters: dict[str, Cluster], tmp_path: Path) -> None:
    runners, options, numbers = {}, {}, {}
    for run, (name, cluster) in enumerate(clusters.items(), 1):
        options[name] = {"slurm_conf": str(cluster.conf)}
        lab.pool(name, runner="slurm", options=options[name])
        with lab.db.read() as session:
            numbers[name] = pools.named(session, name).id
        folder = tmp_path / "runs" / str(run) / "attempt-1"
        folder.mkdir(parents=True)
        runner = SlurmRunner(JobSpec(lease_seconds=LEASE_OF_JOBS, options=options[name]))
        runner.start([sys.executable, "-c", LISTENS], folder, "")
        here(runner, folder)
        runners[name] = runner
        assert SlurmRunner.check(options[name]) == Check("the controller answers")
    assert SlurmRunner.check({}).advice

    def living(name: str) -> list[int]:
        return [job.run_id for job in SlurmRunner.living(tmp_path / "runs", options[name])]

    assert (living("one"), living("two")) == ([1], [2])
    runners["one"].stop()
    assert ended(runners["one"]) == 75
    assert runners["two"].poll() is None
    conf = settings(tmp_path)
    assert reaper.end_strays(conf, lab.db, numbers["one"]) == 0
    assert living("two") == [2], "its stray job is the business of its own reaper"
    assert reaper.end_strays(conf, lab.db, numbers["two"]) == 1
    ended(runners["two"])
    assert (living("one"), living("two")) == ([], [])


@pytest.mark.parametrize("wrong", ["slurm.conf", "/a b", "/x;id"])
def test_a_slurm_conf_is_a_path(wrong: str) -> None:
    with pytest.raises(InvalidError, match=r"slurm\.conf is a path"):
        SlurmRunner.checked_options({"slurm_conf": wrong})
