"""Trainers as Indexed Jobs, on the stand-in for a cluster: pods see no disk of the lab's, only the object store."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from broker import pieces
from broker.allocations import pools
from broker.end_reasons import EndReason
from broker.pieces import PIECE
from broker.publishing import fetched
from broker.runners import kubernetes_manifest as manifest
from broker.runners import output, reaper
from broker.runners.base import Check, JobSpec
from broker.runners.kubernetes import KubernetesRunner
from broker.runs.runs import RunState
from broker.store import Store
from projects.db.columns import utcnow
from projects.errors import InvalidError
from projects.settings import get_settings
from sandbox.kubernetes.pods import INDEX
from tests.broker.lab import Lab, settings
from tests.broker.supervised import GRACE, TRAINER, admitted, attempt, charged, queued, supervised_by
from tests.broker.test_control import fork
from tests.databases import ONCE
from tests.environment import bare
from tests.forked import Forked, run_module
from tests.kubernetes import IMAGE, NAMESPACE, Standin, standin
from tests.patience import PATIENCE, wait_for
from tests.standin import python_with_trainer
from trainer.contract import Status

__all__ = ["standin"]

LEASE_OF_JOBS = 1.8  # the API server is asked every 0.3 seconds
LEASE = 12.0
OWNER = "0123456789ab"
POOL = "cloud"
KEYS = "stoa-store"
OPTIONS = {"namespace": NAMESPACE, "image": IMAGE, "store_secret": KEYS}
RIGHTS = Path(__file__).parents[2] / "deploy" / "rights.yaml"
VERSIONS = ("1.31", "1.34", "1.37")
TELL = "import json, os, sys; print(json.dumps([dict(os.environ), os.getcwd(), sys.argv[1:]]))"
LISTENS = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); "
    "print('here', flush=True); time.sleep(600)"
)
DEAF = (
    "import os, signal, time; signal.signal(signal.SIGTERM, lambda *_: print('asked', flush=True)); os.fork(); "
    "print('here', flush=True)\nwhile True: time.sleep(60)"
)


@pytest.fixture
def cluster(standin: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Standin]:
    """The stand-in and an empty store that needs no keys, and this process as one that uses them.

    The image has this Python.
    """
    monkeypatch.setenv("KUBECONFIG", str(standin.kubeconfig))
    monkeypatch.setenv("STOA_STORE", f"file://{tmp_path}/store")
    monkeypatch.setenv("STOA_ENV_FILE", "")
    get_settings.cache_clear()
    standin.use(Path(sys.executable))
    standin.do(lambda cluster: cluster.forbidden.update(forbidden()))
    standin.core.create_namespaced_secret(NAMESPACE, {"metadata": {"name": KEYS}, "stringData": {}})
    yield standin
    standin.clear()
    get_settings.cache_clear()


def forbidden() -> set[tuple[str, str]]:
    """All that the rights of `deploy/` do not allow."""
    verbs = ("create", "get", "list", "watch", "patch", "update", "delete", "deletecollection")
    kinds = ("jobs", "pods", "pods/log", "services", "secrets", "events", "namespaces", "nodes")
    [role] = [each for each in yaml.safe_load_all(RIGHTS.read_text()) if each["kind"] == "Role"]
    allowed = {(verb, kind) for rule in role["rules"] for verb in rule["verbs"] for kind in rule["resources"]}
    return {(verb, kind) for verb in verbs for kind in kinds} - allowed


Start = Callable[..., tuple[KubernetesRunner, Path]]


@pytest.fixture
def start(cluster: Standin, tmp_path: Path) -> Start:
    """Starts a program as the Job of a run of its own, or of a given attempt; the runner and the folder."""

    def start(
        code: str,
        *arguments: str,
        run: int | None = None,
        token: int = 1,
        gpus: int = 1,
        nodes: int = 1,
        grace: float = 5,
        options: Mapping[str, str] | None = None,
    ) -> tuple[KubernetesRunner, Path]:
        number = run or len(list(tmp_path.glob("runs/*"))) + 1
        folder = tmp_path / "runs" / str(number) / f"attempt-{token}"
        folder.mkdir(parents=True, exist_ok=True)
        runner = KubernetesRunner(
            JobSpec(
                gpus,
                nodes=nodes,
                seconds=600,
                grace_seconds=grace,
                lease_seconds=LEASE_OF_JOBS,
                store_folder=f"runs/{number}-{OWNER}/attempt-{token}",
                options=KubernetesRunner.checked_options(OPTIONS | dict(options or {})),
            )
        )
        runner.start([sys.executable, "-c", code, *arguments], folder, "")
        return runner, folder

    return start


def ended(runner: KubernetesRunner) -> int:
    wait_for(lambda: runner.poll() is not None, "the end of a job")
    status = runner.poll()
    assert status is not None
    return status


def said(folder: Path) -> str:
    log = folder / "trainer.log"
    return log.read_text() if log.exists() else ""


def here(runner: KubernetesRunner, folder: Path, times: int = 1) -> None:
    wait_for(lambda: runner.poll() is None and not runner.waiting, "a job that runs")
    wait_for(lambda: runner.poll() is None and said(folder).count("here") == times, "its program")


def names(standin: Standin) -> list[str]:
    return [job.metadata.name for job in standin.batch.list_namespaced_job(NAMESPACE).items]


def spec(**values: Any) -> JobSpec:
    options = KubernetesRunner.checked_options(OPTIONS | values.pop("options", {}))
    return JobSpec(options=options, store_folder="runs/7-abc/attempt-2", **values)


WHOLE = {
    "local_queue": "gpus",
    "node_selector": "gpu=h200,donor.example/zone=a",
    "tolerations": "nvidia.com/gpu,donor=abci:NoSchedule",
    "service_account": "trainer",
    "store_secret": KEYS,
    "claim": "corpora:/data",
    "pod_cpus": "8",
    "pod_memory_gib": "64",
}
BY_LAB = {"store_secret": "", "lab": "https://lab.example:8443", "lab_certificate": "/etc/stoa/machines.pem"}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "options", [{}, WHOLE, {"gpu_resource": ""}, BY_LAB], ids=["plain", "whole", "without GPUs", "by the lab"]
)
@pytest.mark.parametrize(("gpus", "nodes"), [(1, 1), (16, 2)])
def test_the_manifests_are_valid(version: str, options: Mapping[str, str], gpus: int, nodes: int) -> None:
    labels = manifest.labels("00000000", 7, 2)
    job = manifest.job(spec(gpus=gpus, nodes=nodes, options=options), "stoa-7-2", labels, {"STOA_STORE": "s3://a/b"})
    kubernetes_validate.validate(job, version, strict=True)
    kubernetes_validate.validate(manifest.service("stoa-7-2", labels, "uid"), version, strict=True)
    kubernetes_validate.validate(manifest.secret("stoa-7-2", labels, "uid", "key", "PEM"), version, strict=True)
    job["spec"]["backofLimit"] = job["spec"].pop("backoffLimit")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, version, strict=True)


def test_the_manifest_asks_for_what_the_pool_says() -> None:
    labels = manifest.labels("00000000", 7, 2)
    job = manifest.job(spec(gpus=16, nodes=2, options=WHOLE), "stoa-7-2", labels, {"STOA_STORE": "s3://a/b"})
    assert (job["spec"]["completions"], job["spec"]["backoffLimit"]) == (2, 0)
    assert (job["spec"]["podReplacementPolicy"], job["spec"]["suspend"]) == ("Failed", True)
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["resources"] == {
        "requests": {"cpu": "64", "memory": "512Gi"},
        "limits": {"memory": "512Gi", "nvidia.com/gpu": "8"},
    }
    assert pod["nodeSelector"] == {"gpu": "h200", "donor.example/zone": "a"}
    assert pod["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists"},
        {"key": "donor", "operator": "Equal", "value": "abci", "effect": "NoSchedule"},
    ]
    assert (pod["serviceAccountName"], pod["automountServiceAccountToken"]) == ("trainer", False)
    assert container["envFrom"] == [{"secretRef": {"name": "stoa-store"}}]
    assert pod["terminationGracePeriodSeconds"] >= GRACE
    assert "secret" not in json.dumps(container["env"]).lower()


def test_a_pod_has_its_own_folder_and_no_secret(
    start: Start, cluster: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.begin_anew()
    secret = {"metadata": {"name": "keys"}, "stringData": {"STOA_STORE_SECRET": "not-to-be-seen"}}
    cluster.core.create_namespaced_secret(NAMESPACE, secret)
    monkeypatch.setenv("STOA_DATABASE_URL", "sqlite:///not-to-be-seen")
    typed = ["; touch here", "$HOME", "`id`", "it's", '"', "a\nb"]
    runner, folder = start(TELL, *typed, options={"store_secret": "keys"})
    assert ended(runner) == 0
    environment, stood_in, arguments = json.loads(said(folder))
    assert "not-to-be-seen" not in "".join(environment.values())
    assert stood_in.startswith(f"{cluster.root}/pods/")
    assert arguments == typed
    assert "not-to-be-seen" not in str(cluster.batch.list_namespaced_job(NAMESPACE))
    assert json.loads((folder / "outcome.json").read_text())["status"] == 0


def test_a_job_that_is_asked_to_stop_says_how_it_ended(start: Start, cluster: Standin) -> None:
    runner, folder = start(LISTENS)
    here(runner, folder)
    wait_for(lambda: runner.poll() is None and runner.seconds() >= 1, "a second")
    runner.stop()
    assert ended(runner) == 75
    ran = runner.seconds()
    assert ran >= 1
    runner.stop()
    runner.kill()
    assert (runner.poll(), runner.seconds()) == (75, ran)
    assert names(cluster) == [], "a deleted pod keeps no exit status: the outcome in the store does"


def test_a_job_that_does_not_listen_is_ended_with_all_its_processes(start: Start, cluster: Standin) -> None:
    runner, folder = start(DEAF, grace=600)
    here(runner, folder, times=2)
    runner.stop()
    wait_for(lambda: runner.poll() is None and "asked" in said(folder), "the asking")
    runner.kill()
    assert runner.poll() == -signal.SIGKILL
    assert names(cluster) == []


def test_the_trainers_own_end_is_the_jobs(start: Start) -> None:
    runner, folder = start("import sys; sys.exit(3)")
    assert ended(runner) == Status.FAILED
    assert "ended with status 3" in output.ending(folder, Status.FAILED, timed_out=False).reason
    runner, folder = start("import os; os.kill(os.getpid(), 9)")
    assert ended(runner) == Status.FAILED
    ending = output.ending(folder, Status.FAILED, timed_out=False)
    assert ("SIGKILL" in ending.reason, ending.transient) == (True, True)


def test_what_kubernetes_will_not_have_is_refused_in_one_sentence(start: Start, cluster: Standin) -> None:
    runner, _ = start(TELL, options={"namespace": "elsewhere"})
    assert ended(runner) == Status.REFUSED
    assert runner.ended == 'Kubernetes refused the job: namespaces "elsewhere" not found'
    cluster.fault("POST .*/jobs", status=422)
    runner, _ = start(TELL)
    assert ended(runner) == Status.REFUSED


def test_without_a_store_nothing_is_started(cluster: Standin, tmp_path: Path) -> None:
    runner = KubernetesRunner(JobSpec(options=KubernetesRunner.checked_options(OPTIONS)))
    runner.start(["python"], tmp_path / "runs" / "1" / "attempt-1", "")
    assert (runner.poll(), "STOA_STORE" in runner.ended, names(cluster)) == (Status.REFUSED, True, [])


@pytest.mark.parametrize(
    ("hold", "release", "options", "reason"),
    [
        (lambda c: c.jobs.held.add("gpus"), lambda c: c.jobs.held.clear(), {"local_queue": "gpus"}, "queue gpus"),
        (lambda c: setattr(c.jobs, "quota", 0), lambda c: setattr(c.jobs, "quota", None), {}, "exceeded quota"),
        (lambda c: c.pods.lost.update(("n1", "n2")), lambda c: c.pods.lost.clear(), {}, "Unschedulable"),
        (
            lambda c: c.forbidden.add(("create", "jobs")),
            lambda c: c.forbidden.discard(("create", "jobs")),
            {},
            "cannot create",
        ),
    ],
)
def test_what_waits_says_why_and_then_runs(
    start: Start, cluster: Standin, hold: Any, release: Any, options: Mapping[str, str], reason: str
) -> None:
    cluster.do(hold)
    runner, folder = start(LISTENS, options=options)
    wait_for(lambda: runner.poll() is None and reason in runner.waiting, "the reason")
    assert runner.waiting.startswith("Kubernetes: ")
    assert runner.seconds() == 0
    cluster.do(release)
    here(runner, folder)
    runner.kill()


def test_what_waits_may_be_stopped(start: Start, cluster: Standin) -> None:
    runner, folder = start(LISTENS, gpus=9)
    wait_for(lambda: runner.poll() is None and "Insufficient nvidia.com/gpu" in runner.waiting, "the reason")
    runner.stop()
    assert ended(runner) == 75
    assert (runner.seconds(), said(folder), names(cluster)) == (0, "", [])


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 429}, {"cut": True}, {"delay": PATIENCE}])
def test_the_api_server_may_be_away_for_a_while(start: Start, cluster: Standin, fault: Mapping[str, Any]) -> None:
    """What runs goes on, what is to be created waits, and a stop is passed on as soon as it can be."""
    running, folder = start(LISTENS)
    here(running, folder)
    cluster.fault("", count=10**6, **fault)
    late, late_folder = start(LISTENS)
    wait_for(lambda: late.poll() is None and late.waiting.startswith("Kubernetes: "), "the reason of the wait")
    running.stop()
    assert (running.poll(), running.waiting) == (None, "")
    cluster.do(lambda c: c.faults.clear())
    assert ended(running) == 75
    here(late, late_folder)
    assert len(names(cluster)) == 1, "what was created before an answer was cut is not created twice"
    late.kill()


def test_the_store_may_be_away_for_a_while(start: Start, tmp_path: Path) -> None:
    running, folder = start(LISTENS)
    here(running, folder)
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    (tmp_path / "store").write_text("no folder")
    late, late_folder = start(LISTENS)
    running.stop()
    assert (running.poll(), late.poll()) == (None, None)
    (tmp_path / "store").unlink()
    (tmp_path / "elsewhere").rename(tmp_path / "store")
    assert ended(running) == 75
    here(late, late_folder)
    late.kill()


def test_a_job_is_found_again_and_never_created_twice(start: Start, cluster: Standin) -> None:
    runner, folder = start(LISTENS, run=7)
    here(runner, folder)
    assert start(LISTENS, run=7)[0].uid == runner.uid
    (folder / "kubernetes-job").unlink()
    again, _ = start(LISTENS, run=7)
    assert (again.uid, len(names(cluster))) == (runner.uid, 1)
    successor = KubernetesRunner(again.spec)
    successor.adopt(runner.process(), folder)
    assert (successor.poll(), successor.uid, successor.waiting) == (None, runner.uid, "")
    assert KubernetesRunner.can_adopt(runner.process())
    successor.kill()


def test_an_earlier_job_of_the_run_is_gone_before_the_next_is_created(start: Start, cluster: Standin) -> None:
    earlier, folder = start(DEAF, run=7, grace=600)
    here(earlier, folder, times=2)
    bystander, beside = start(LISTENS, run=8)
    here(bystander, beside)
    later, later_folder = start(LISTENS, run=7, token=3)
    assert (later.uid, later.waiting) == ("", "an earlier job of the run is still ending")
    here(later, later_folder)
    assert sorted(name.rpartition("-")[2] for name in names(cluster)) == ["1", "3"]
    stale, _ = start(LISTENS, run=7, token=2)
    assert (ended(stale), stale.uid) == (75, "")
    assert (later.poll(), bystander.poll()) == (None, None)


def test_a_job_whose_pod_is_taken_away_says_why(start: Start, cluster: Standin, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    slow = f"import pathlib\nwhile not pathlib.Path({str(seen)!r}).exists(): time.sleep(0.05)\nsys.exit(75)"
    stops = f"import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: exec({slow!r})); "
    runner, folder = start(f"{stops}print('here', flush=True); time.sleep(600)", grace=PATIENCE)
    here(runner, folder)
    [pod] = cluster.core.list_namespaced_pod(NAMESPACE).items
    cluster.do(lambda c: c.evict(pod.metadata.name, NAMESPACE))
    # The reason goes with the pod, so the runner must have looked before.
    wait_for(lambda: runner.poll() is None and runner._lost_for is not None, "the reason")
    seen.touch()
    assert ended(runner) == 75
    assert runner.end_reason == EndReason.PREEMPTED


def test_a_job_that_its_queue_takes_back_is_not_started_once_more(start: Start, cluster: Standin) -> None:
    runner, folder = start(LISTENS, options={"local_queue": "gpus"})
    here(runner, folder)
    cluster.do(lambda c: c.jobs.held.add("gpus"))
    name = names(cluster)[0]
    cluster.batch.patch_namespaced_job(name, NAMESPACE, {"spec": {"suspend": True}})
    assert ended(runner) == 75
    assert (runner.end_reason, said(folder).count("here")) == (EndReason.PREEMPTED, 1)
    wait_for(lambda: names(cluster) == [], "the end of the job")


def test_two_nodes_meet_and_end_together(start: Start, tmp_path: Path) -> None:
    code = (
        "import socket, sys, time; at = sys.argv[sys.argv.index('--rendezvous') + 1]; host, port = at.split(':')\n"
        "number = sys.argv[sys.argv.index('--host') + 1]\n"
        "if number == '0':\n"
        "    server = socket.create_server((host, int(port))); other, _ = server.accept(); print(other.recv(9))\n"
        "else:\n"
        "    while True:\n"
        "        try: socket.create_connection((host, int(port))).send(b'met'); break\n"
        "        except OSError: time.sleep(0.1)\n"
    )
    (tmp_path / "config.yml").write_text("data: {prepared: /data/there}\n")
    runner, folder = start(code, "train", str(tmp_path / "config.yml"), gpus=16, nodes=2)
    assert ended(runner) == 0
    assert said(folder) == "b'met'\n"


def test_data_that_a_node_cannot_prepare_end_the_run_with_the_trainers_sentence(
    start: Start, cluster: Standin, tmp_path: Path
) -> None:
    (tmp_path / "config.yml").write_text("data: {prepared: null}\n")
    for node, status, transient in ((0, Status.CONFIG, False), (1, Status.CONFIG, False), (1, Status.FAILED, True)):
        failing = tmp_path / f"failing-{node}-{status}"
        code = (
            f"import os, pathlib, sys, time; failing = pathlib.Path({str(failing)!r})\n"
            "while not failing.exists(): time.sleep(0.05)\n"
            "if failing.read_text() not in sys.argv[-1]: time.sleep(600)\n"
            f"os.write(2, b'at work\\nThe corpus is gone.\\n'); sys.exit({status:d})"
        )
        runner, folder = start(code, "train", str(tmp_path / "config.yml"), gpus=16, nodes=2)
        here = {"label_selector": f"{INDEX}={node}", "field_selector": "status.phase=Running"}
        wait_for(lambda: cluster.core.list_namespaced_pod(NAMESPACE, **here).items, "the pod of the node")  # noqa: B023
        [pod] = cluster.core.list_namespaced_pod(NAMESPACE, **here).items
        (tmp_path / "uid").write_text(pod.metadata.uid)
        (tmp_path / "uid").rename(failing)
        assert ended(runner) == status
        told = json.loads((folder / "outcome.json").read_text())
        assert (told["reason"], told["transient"]) == ("The corpus is gone.", transient)


def test_a_job_that_is_stopped_while_its_nodes_prepare_data_ends_as_stopped(start: Start, tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text("data: {prepared: null}\n")
    code = (
        f"import os, pathlib, time; pathlib.Path({str(tmp_path)!r}, f'began{{os.getpid()}}').touch(); time.sleep(600)"
    )
    runner, folder = start(code, "train", str(tmp_path / "config.yml"), gpus=16, nodes=2, grace=600)
    wait_for(lambda: runner.poll() is None and len(list(tmp_path.glob("began*"))) == 2, "two nodes at work")
    runner.stop()
    assert ended(runner) == 75
    assert json.loads((folder / "outcome.json").read_text())["reason"] == "it was asked to stop before it had begun"


@pytest.fixture
def run(lab: Lab, cluster: Standin) -> int:
    """A queued run on a pool of Kubernetes'."""
    return queued(lab, POOL, "kubernetes", OPTIONS)


@contextmanager
def supervised(
    lab: Lab, cluster: Standin, home: Path, run: int, last: int | None = None, *, lease: float = LEASE
) -> Iterator[tuple[Forked, int, Path]]:
    """A supervisor of the run's next attempt, its token and folder."""
    token, folder = admitted(lab, home, run, lease)
    with supervisor_of(lab, cluster, home, lease, last, run, token) as supervisor:
        yield supervisor, token, folder


def supervisor_of(
    lab: Lab, cluster: Standin, home: Path, lease: float, last: int | None, *arguments: int
) -> AbstractContextManager[Forked]:
    """A supervisor of a run and token, after one of a generation; the image has the stand-in's trainer, if any."""
    python = python_with_trainer(home, TRAINER.replace("LAST", str(last))) if last else Path(sys.executable)
    cluster.use(python)
    places = {"STOA_STORE": f"file://{home}/store", "KUBECONFIG": str(cluster.kubeconfig)}
    return supervised_by(lab, Path(sys.executable), home, lease, places, *arguments)


@ONCE
def test_the_trainer_itself_runs_in_a_pod(lab: Lab, cluster: Standin, tmp_path: Path, run: int) -> None:
    cluster.fork_trainers()
    with supervised(lab, cluster, tmp_path, run) as (supervisor, token, folder):
        assert supervisor.wait(PATIENCE) == 0
    assert lab.run(run).state == RunState.FINISHED, said(folder)
    assert lab.row(run).step == 4
    row = attempt(lab, run, token)
    assert (row.boot_id, row.waiting) == ("kubernetes", "")
    assert charged(lab, run, token) > 0


def test_a_run_that_waits_in_kubernetes_is_not_charged_and_says_why(
    lab: Lab, cluster: Standin, tmp_path: Path, run: int
) -> None:
    cluster.do(lambda c: c.pods.lost.update(("n1", "n2")))
    with supervised(lab, cluster, tmp_path, run, 20) as (supervisor, token, _):
        wait_for(lambda: "Unschedulable" in attempt(lab, run, token).waiting, "the reason of the wait")
        first = attempt(lab, run, token).lease_until
        wait_for(lambda: attempt(lab, run, token).lease_until != first, "a renewal")
        assert lab.run(run).state == RunState.STARTING
        assert charged(lab, run, token) == 0
        cluster.do(lambda c: c.pods.lost.clear())
        assert supervisor.wait(PATIENCE) == 0
    assert lab.run(run).state == RunState.FINISHED
    assert "run.started" in lab.kinds(1)


@ONCE
def test_a_cancelled_run_leaves_a_checkpoint_in_the_store(lab: Lab, cluster: Standin, tmp_path: Path, run: int) -> None:
    with supervised(lab, cluster, tmp_path, run, 10000) as (supervisor, _, folder):
        wait_for(lambda: lab.row(run).step > 10, "steps")
        lab.cancel(run)
        assert supervisor.wait(PATIENCE) == 0
    assert lab.run(run).state == RunState.CANCELLED
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert list((tmp_path / "store").glob(f"runs/*/attempt-1/checkpoints/step{last}/whole"))


@ONCE
def test_a_run_goes_on_from_the_store_though_a_lost_node_lives_on(
    lab: Lab, cluster: Standin, tmp_path: Path, run: int
) -> None:
    """The cluster gives the node up, and nobody can reach what runs there: it writes on, and no one reads it."""
    with supervised(lab, cluster, tmp_path, run, 10000) as (supervisor, token, _):
        wait_for(lambda: lab.row(run).step > 10, "a checkpoint")
        [pod] = cluster.core.list_namespaced_pod(NAMESPACE).items
        cluster.do(lambda c: c.lose(pod.spec.node_name))
        cluster.do(forget_grace)
        assert supervisor.wait(PATIENCE) == 0
    first = attempt(lab, run, token)
    assert lab.run(run).state == RunState.QUEUED
    assert first.end_reason == EndReason.NODE_FAILED
    store = Store(get_settings())
    [run_folder] = store.names("runs")
    metrics = f"runs/{run_folder}/attempt-1/metrics.jsonl"
    seen = len(pieces.tail(store, metrics, PIECE) or b"")
    with supervised(lab, cluster, tmp_path, run, 10000) as (supervisor, _, new):
        wait_for(lambda: "from step" in said(new), "the second attempt")
        assert int(said(new).split()[2]) >= 10
        wait_for(lambda: len(pieces.tail(store, metrics, PIECE) or b"") > seen, "what the lost node writes on")
        wait_for(lambda: len(lab.payloads(1, "run.started")) == 2, "the record of the second start")
        assert lab.payloads(1, "run.started")[-1]["from_step"] == int(said(new).split()[2])
        paid = charged(lab, run, token)
        lab.cancel(run)
        assert supervisor.wait(PATIENCE) == 0
    assert lab.run(run).state == RunState.CANCELLED
    assert charged(lab, run, token) == paid
    assert lab.row(run).step == json.loads((new / "metrics.jsonl").read_text().splitlines()[-1])["step"]


def forget_grace(cluster: Any) -> None:
    """Let the pods that are to end be overdue since long."""
    from sandbox.kubernetes.objects import PODS

    for pod in cluster.objects.all(PODS):
        with cluster.objects.edit(PODS, pod):
            pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"


@ONCE
def test_a_job_that_an_operator_deletes_goes_on_later_from_its_checkpoint(
    lab: Lab, cluster: Standin, tmp_path: Path, run: int
) -> None:
    with supervised(lab, cluster, tmp_path, run, 10000) as (supervisor, token, folder):
        wait_for(lambda: lab.row(run).step > 10, "a checkpoint")
        cluster.batch.delete_namespaced_job(names(cluster)[0], NAMESPACE, propagation_policy="Background")
        assert supervisor.wait(PATIENCE) == 0
    assert lab.run(run).state == RunState.QUEUED
    assert attempt(lab, run, token).end_reason == EndReason.RUNNER_ENDED
    assert json.loads((folder / "outcome.json").read_text())["status"] == 75
    # Without its checkpoints it does not start over.
    for path in (tmp_path / "store").glob("runs/*/attempt-1/checkpoints"):
        shutil.rmtree(path)
    with supervised(lab, cluster, tmp_path, run, 10000) as (supervisor, _, _):
        assert supervisor.wait(PATIENCE) == 0
    assert lab.run(run).state == RunState.FAILED
    assert lab.run(run).reason.endswith("are neither on this host nor in the store; it does not start over by itself")
    wait_for(lambda: names(cluster) == [], "the end of the first job")


@ONCE
def test_what_only_the_store_has_is_published_and_forked(lab: Lab, cluster: Standin, tmp_path: Path, run: int) -> None:
    with supervised(lab, cluster, tmp_path, run, 10) as (supervisor, _, folder):
        assert supervisor.wait(PATIENCE) == 0
    told = folder / "checkpoints" / "step10"
    with fetched.checkpoint(settings(tmp_path, store=get_settings().store), lab.db, run, told) as published:
        assert (published / "weights").read_text() == "10"
        assert (published.parents[1] / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()
    forked = fork(lab, run, 10, overrides="steps=20, batch=2, micro_batch=2, sequence_length=32").run_id
    with supervised(lab, cluster, tmp_path, forked, 20) as (supervisor, _, folder):
        assert supervisor.wait(PATIENCE) == 0
    assert (lab.run(forked).state, said(folder)) == (RunState.FINISHED, "from step 10\n")


@ONCE
def test_a_job_outlives_its_supervisor_and_gets_another(lab: Lab, cluster: Standin, tmp_path: Path, run: int) -> None:
    arguments = (10000, run, 1, 1)
    with supervised(lab, cluster, tmp_path, run, 10000, lease=60) as (first, token, folder):
        wait_for(lambda: lab.row(run).step > 2, "some steps")
        job = attempt(lab, run, token).pid
        first.kill()
        first.wait()
        with supervisor_of(lab, cluster, tmp_path, LEASE, *arguments) as successor:
            wait_for(lambda: attempt(lab, run, token).generation == 2, "the successor")
            seen = lab.row(run).step
            wait_for(lambda: lab.row(run).step > seen + 2, "more steps")
            lab.cancel(run)
            assert successor.wait(PATIENCE) == 0
    assert lab.run(run).state == RunState.CANCELLED
    assert attempt(lab, run, token).pid == job
    assert json.loads((folder / "outcome.json").read_text())["status"] == 75
    assert lab.kinds(1).count("run.started") == 1


@ONCE
def test_a_job_whose_attempt_is_given_up_is_ended_though_no_other_follows(
    lab: Lab, cluster: Standin, tmp_path: Path, run: int
) -> None:
    conf, pool = settings(tmp_path), lab.row(run).pool_id
    with supervised(lab, cluster, tmp_path, run, 10000) as (supervisor, token, _):
        wait_for(lambda: lab.run(run).state == RunState.RUNNING, "the run")
        supervisor.kill()
        supervisor.wait()
        assert reaper.end_strays(conf, lab.db, pool) == 0
        lab.cancel(run)
        until = attempt(lab, run, token).lease_until
        assert until is not None
        wait_for(lambda: utcnow() > until, "the end of the lease")
        lab.expire(run, token)
        assert lab.run(run).state == RunState.CANCELLED
        assert reaper.end_strays(conf, lab.db, pool) == 1
        wait_for(lambda: names(cluster) == [], "the end of the job")
        assert reaper.end_strays(conf, lab.db, pool) == 0


def test_doctor_learns_whether_the_cluster_answers(
    cluster: Standin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = {"kubeconfig": os.environ["KUBECONFIG"]}
    answers = Check("the API server answers (v1.34.0-standin)")
    assert (KubernetesRunner.check({}), KubernetesRunner.check(own)) == (answers, answers)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nowhere"))
    assert "KUBECONFIG" in KubernetesRunner.check({}).advice
    assert KubernetesRunner.check(own) == answers
    monkeypatch.setenv("STOA_STORE", "")
    get_settings.cache_clear()
    assert "STOA_STORE" in KubernetesRunner.check(own).advice


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("namespace", "Lab"),
        ("namespace", ""),
        ("image", "stoa; id"),
        ("image", ""),
        ("node_selector", "gpu"),
        ("node_selector", "gpu=h200,"),
        ("tolerations", "a:Sometimes"),
        ("tolerations", "a,,b"),
        ("claim", "corpora"),
        ("pod_cpus", "0"),
        ("pod_memory_gib", "64Gi"),
        ("kubeconfig", "cloud.yml"),
        ("store_secret", "Keys"),
        ("lab", "lab.example:8443"),
        ("lab_certificate", "machines.pem"),
        ("lab", "http://lab.example:8440"),
        ("lab", "https://lab.example:8443/$(id)"),
    ],
)
def test_a_pool_of_kubernetes_is_checked(lab: Lab, name: str, wrong: str) -> None:
    before = lab.everything()
    with pytest.raises(InvalidError) as caught, lab.db.write() as session:
        pools.add_pool(session, name=POOL, gpu_type="h200", gpus=16, runner="kubernetes", runner_options={name: wrong})
    assert str(caught.value) in {option.refusal for option in KubernetesRunner.pool_options}
    assert lab.everything() == before


def test_the_story_for_a_real_cluster_plays_on_the_stand_in(cluster: Standin, tmp_path: Path) -> None:
    options = ["--namespace", NAMESPACE, "--image", IMAGE, "--store-secret", KEYS]
    environment = bare() | {"STOA_ENV_FILE": "", "STOA_STORE": f"file://{tmp_path}/store"}
    here = environment | {"KUBECONFIG": str(cluster.kubeconfig)}
    done = run_module("tests.kubernetes_real", here, *options)
    assert (done.returncode, done.stdout.count(": well, in ")) == (0, 4), done.stdout + done.stderr
    phases = {pod.status.phase for pod in cluster.core.list_namespaced_pod(NAMESPACE).items}
    assert phases <= {"Succeeded", "Failed"}
    nowhere = run_module("tests.kubernetes_real", environment | {"KUBECONFIG": "/nowhere"}, *options)
    assert (nowhere.returncode, nowhere.stderr.count("\n")) == (2, 1)
    assert "set KUBECONFIG" in nowhere.stderr
