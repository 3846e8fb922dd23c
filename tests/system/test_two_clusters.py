"""Two clusters of Slurm, a pool each, served by one worker from launch to the end of their runs."""

from datetime import timedelta
from pathlib import Path

from sqlalchemy import update
from sqlmodel import col

from broker.runs.attempts import OPEN, Attempt
from broker.runs.runs import ENDED, RunState
from projects.db.columns import utcnow
from tests.broker.supervised import charged
from tests.broker.test_slurm import slurms_seconds
from tests.patience import wait_for
from tests.slurm import Cluster, clusters, slurm
from tests.system.test_engine_hosts import TRAINER
from tests.system.worker_hosts import LAB, Hosts

__all__ = ["clusters", "slurm"]


def test_runs_on_two_clusters_at_once(clusters: dict[str, Cluster], tmp_path: Path) -> None:
    hosts = Hosts(tmp_path, ["here"], in_containers=True, worker_concurrency=4)
    lab = hosts.lab

    def work() -> None:
        serves = [word for name in clusters for word in ("--pool", name)]
        hosts.start("here", "worker", *serves, python=hosts.python("here", TRAINER.replace("END", "None")))

    def runs_on(name: str) -> list[int]:
        """The numbers of the jobs that run on a cluster."""
        told = clusters[name].ask("squeue", "--noheader", "--states=running", "--format=%A")
        return [int(number) for number in told.split()]

    try:
        for name, cluster in clusters.items():
            lab.pool(name, runner="slurm", options={"slurm_conf": str(cluster.conf)})
        hosts.start(LAB, "scheduler")
        work()
        runs = {name: [hosts.launch(name), hosts.launch(name)] for name in clusters}
        every = [run for pair in runs.values() for run in pair]
        for run in every:
            wait_for(lambda run=run: hosts.has_done(run, 1), "the first step")  # type: ignore[misc]
        jobs = {run: hosts.attempt(run).pid or 0 for run in every}
        for name, pair in runs.items():
            assert sorted(runs_on(name)) == sorted(jobs[run] for run in pair)

        cancelled, finishes = runs["one"]
        lab.cancel(cancelled)
        wait_for(lambda: lab.run(cancelled).state == RunState.CANCELLED, "the end of what was cancelled")
        assert (runs_on("one"), len(runs_on("two"))) == ([jobs[finishes]], 2)

        stray, last = runs["two"]
        hosts.kill("here")
        with hosts.db.write() as session:  # the lease is over since long, for which nobody need wait
            long_ago = utcnow() - timedelta(days=1)
            session.execute(update(Attempt).where(col(Attempt.run_id) == stray).values(lease_until=long_ago))
        lab.cancel(stray)
        wait_for(lambda: lab.run(stray).state == RunState.CANCELLED, "the attempt that is given up")
        assert sorted(runs_on("two")) == sorted((jobs[stray], jobs[last])), "nobody could tell Slurm"
        work()
        with hosts.db.write() as session:  # so are those of the runs that go on
            session.execute(update(Attempt).where(col(Attempt.state).in_(OPEN)).values(lease_until=utcnow()))
        wait_for(lambda: runs_on("two") == [jobs[last]], "the reaper of the second cluster")
        assert runs_on("one") == [jobs[finishes]]

        for name, run in (("one", finishes), ("two", last)):
            (tmp_path / "here" / "runs" / str(run) / "attempt-1" / "end").touch()
            wait_for(lambda run=run: lab.run(run).state in ENDED, "the end of a run")  # type: ignore[misc]
            assert (lab.run(run).state, lab.run(run).step, hosts.attempt(run).pid) == (RunState.FINISHED, 2, jobs[run])
            assert charged(lab, run, 1) == slurms_seconds(clusters[name], jobs[run])
            assert runs_on(name) == []
    finally:
        hosts.close()
