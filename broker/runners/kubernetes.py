"""The runner `kubernetes`: trainers as Indexed Jobs, a pod for each node, whose disks nobody else sees.

All that passes between a supervisor and its pods lies in the object store, below the attempt's own folder: what to do
(`job.json`), what the trainer writes (`live/`, `checkpoints/`), and how it has ended (`outcome.json`), for a deleted
pod keeps no exit status. The API server may be away for a while at any moment: what was asked of it is asked again.
"""

import json
import math
import os
import re
import signal
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import structlog
import yaml

from broker import store as stores
from broker.end_reasons import EndReason
from broker.runners import kubernetes_manifest as manifest
from broker.runners import live
from broker.runners.base import Check, Job, JobSpec, PoolOption, Runner, UnavailableError
from broker.runners.kubernetes_pod import JOB_FILE
from broker.runners.processes import Process
from broker.store import Store, StoreError
from projects.settings import get_settings
from trainer import contract
from trainer.contract import Status

MARK = "kubernetes-job"
BOOT = "kubernetes"  # instead of a boot id: the pid is made from the Job's uid, and is not that of a process
RENEWALS_A_LEASE = 6  # the API server is asked as often as a supervisor renews
SHORTEST_SECONDS = 2.0
CHECK_SECONDS = 10.0
GONE_SECONDS = 90.0
LOST_SECONDS = 60.0
"""How long beyond its grace a deleted pod may be there until its node is taken for lost."""
LIVE = (contract.LOG_FILE, contract.METRICS_FILE, contract.EVENTS_FILE)
NODE_REASONS = {
    "DeletionByTaintManager": EndReason.NODE_FAILED,
    "DeletionByPodGC": EndReason.NODE_FAILED,
    "TerminationByKubelet": EndReason.NODE_FAILED,
    "EvictionByEvictionAPI": EndReason.RUNNER_ENDED,
    "PreemptionByScheduler": EndReason.PREEMPTED,
}
"""Reasons of the condition DisruptionTarget of a pod."""
NEVER_STARTS = frozenset({"InvalidImageName", "ErrImageNeverPull"})
"""Kubernetes' reasons for which a container waits for ever."""
NOT_NOW = (401, 403, 408, 409, 425, 429)
"""Statuses between 400 and 499 that a later call may not meet: rights and quotas change."""
ITEM = r"[A-Za-z0-9]([\w./-]*[A-Za-z0-9])?"
NAME = r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?"

log = structlog.get_logger()


class KubernetesRunner(Runner):
    """The trainer as an Indexed Job; see the module."""

    name = "kubernetes"
    queue = "Kubernetes"
    several_nodes = True
    environment = ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT")
    pool_options = (
        PoolOption(
            "kubeconfig",
            help="The file that leads to the cluster; KUBECONFIG when not given.",
            pattern=r"(/[^\0\n]*)?",
            refusal="The kubeconfig is a whole path, such as /etc/stoa/cloud.yml.",
        ),
        PoolOption(
            "context",
            help="A context of the kubeconfig; its current one when not given.",
            pattern=r"[\w.@:/-]*",
            refusal="A context's name has letters, digits and “._@:/-” only.",
        ),
        PoolOption(
            "namespace",
            help="Kubernetes' namespace.",
            pattern=NAME,
            refusal="A namespace of Kubernetes has small letters, digits and dashes only.",
            default="stoa",
        ),
        PoolOption(
            "image",
            help="Stoa's image, as the cluster pulls it.",
            pattern=r"[\w./:@-]+",
            refusal="An image is written as registry/name:tag.",
            default="stoa",
        ),
        PoolOption(
            "gpu_resource",
            help="What Kubernetes calls these GPUs; empty asks for none.",
            pattern=rf"({ITEM})?",
            refusal="A resource of Kubernetes is written as nvidia.com/gpu or amd.com/gpu.",
            default="nvidia.com/gpu",
        ),
        PoolOption(
            "pod_cpus",
            help="CPUs for each GPU; as the cluster has it when not given.",
            pattern=r"([1-9][0-9]{0,3})?",
            refusal="The CPUs for each GPU are a whole number, such as 8.",
        ),
        PoolOption(
            "pod_memory_gib",
            help="GiB of memory for each GPU; as the cluster has it when not given.",
            pattern=r"([1-9][0-9]{0,4})?",
            refusal="The memory for each GPU is a whole number of GiB, such as 64.",
        ),
        PoolOption(
            "local_queue",
            help="A queue of Kueue's that admits the jobs; none when not given.",
            pattern=rf"({NAME})?",
            refusal="A queue of Kueue's has small letters, digits and dashes only.",
        ),
        PoolOption(
            "node_selector",
            help="Labels that the nodes must have: key=value,key=value.",
            pattern=rf"({ITEM}=[\w.-]*(,{ITEM}=[\w.-]*)*)?",
            refusal="A node selector is written as key=value,key=value.",
        ),
        PoolOption(
            "tolerations",
            help="Taints that the pods tolerate: key, key=value or key=value:NoSchedule, with commas between.",
            pattern=rf"({ITEM}(=[\w.-]*)?(:(NoSchedule|NoExecute|PreferNoSchedule))?(,(?=.)|$))*",
            refusal="Tolerations are written as key, key=value or key=value:NoSchedule, with commas between.",
        ),
        PoolOption(
            "service_account",
            help="The pods' service account; the namespace's default when not given. Its token is not mounted.",
            pattern=rf"({NAME})?",
            refusal="A service account has small letters, digits and dashes only.",
        ),
        PoolOption(
            "store_secret",
            help="The Secret with STOA_STORE_KEY and STOA_STORE_SECRET for the pods.",
            pattern=rf"({NAME})?",
            refusal="A Secret's name has small letters, digits and dashes only.",
        ),
        PoolOption(
            "claim",
            help="A volume claim with the pool's corpora and where it is mounted: name:/path.",
            pattern=rf"({NAME}:/[\w./-]+)?",
            refusal="A volume claim is written as name:/path, such as corpora:/data.",
        ),
    )

    def __init__(self, spec: JobSpec) -> None:
        super().__init__(spec)
        self.uid = ""
        self.waiting = "it is being submitted to Kubernetes"
        self._every = spec.lease_seconds / RENEWALS_A_LEASE
        self._patience = max(SHORTEST_SECONDS, self._every * 2)
        self._cluster = _Cluster(spec.options, self._patience)
        self._store: Store | None = None
        self._folder = Path()
        self._command: Sequence[str] = ()
        self._asked_at = -math.inf
        self._known_pid = 0
        self._ran = 0.0
        self._runs_since: float | None = None
        self._status: int | None = None
        self._lost_for: tuple[EndReason, str] | None = None
        self._has_service = False
        self._to_stop = self._told_to_stop = self._to_kill = False
        self._lock = threading.RLock()  # re-entrant: a signal handler of the main thread may stop what it just polls

    def start(self, command: Sequence[str], folder: Path, devices: str) -> Process:
        """Create the Job of `command`, or find the one of `folder` that is there. Kubernetes assigns the devices."""
        self._command, self._folder = command, folder
        self.poll()
        return self.process()

    def adopt(self, process: Process, folder: Path, waiting: str = "") -> None:
        """See `Runner`; the Job is known by its name and uid, and no other is ever created instead."""
        self._known_pid, self._folder, self.waiting = process.pid, folder, waiting
        self.poll()

    def process(self) -> Process:
        """A number made from the Job's uid instead of a pid; 0 until there is a Job."""
        return Process(BOOT, BOOT, _pid(self.uid) if self.uid else self._known_pid, 0)

    def poll(self) -> int | None:
        """The exit status, as of the last time that the cluster was asked; None while the Job waits or runs."""
        with self._lock:
            if self._status is None and time.monotonic() - self._asked_at >= self._every:
                self._ask()
            return self._status

    def seconds(self) -> float:
        """How long all pods have run by the cluster's clocks, to the second; 0 while one of them waits."""
        with self._lock:
            return self._ran + (0.0 if self._runs_since is None else time.monotonic() - self._runs_since)

    def renew(self, seconds: float) -> None:
        """See `Runner`. Kubernetes knows no lease: the pods end at their deadline, or the reaper deletes the Job."""

    def stop(self) -> None:
        """Delete the Job: its pods are asked for a checkpoint, and have their grace to send it to the store."""
        with self._lock:
            self._to_stop = True
            if self._status is None:
                self._ask()

    def kill(self) -> None:
        """End all pods at once, and wait until they are gone."""
        with self._lock:
            self._to_stop = self._to_kill = True
            begun = bool(self.uid or self._known_pid or self._command)
            if self._status is None and begun:
                self._ask()
        until = time.monotonic() + GONE_SECONDS
        while begun and self.poll() is None:
            if time.monotonic() > until:
                log.error("a Job is still not gone; look at its pods and their nodes", job=self._job_name())
                return
            time.sleep(0.1)

    @classmethod
    def can_adopt(cls, process: Process) -> bool:
        """See `Runner`. A Job is reached from every host that has the cluster's kubeconfig."""
        return process.boot_id == BOOT

    @classmethod
    def check(cls) -> Check:
        """Whether there is a store, and whether the cluster of KUBECONFIG answers."""
        advice = "Set KUBECONFIG to the cluster's file, or give the pool its own with --kubeconfig."
        if not get_settings().store:
            return Check("there is no object store", "Set STOA_STORE: pods have no disk that a lab could read.")
        try:
            version = _Cluster({}, CHECK_SECONDS).version()
        except UnavailableError as error:
            return Check(str(error), advice)
        return Check(f"the API server answers ({version})")

    @classmethod
    def living(cls, runs_dir: Path, options: Mapping[str, str]) -> Sequence[Job]:
        """See `Runner`; a Job that is being deleted needs no cancelling."""
        found = _Cluster(options, SHORTEST_SECONDS).jobs({manifest.INSTALLATION: _installation()})
        living = [job for job in found if not _ended(job) and job.metadata.deletion_timestamp is None]
        return [Job(str(job.metadata.name), int(job.metadata.labels[manifest.RUN]), _token(job)) for job in living]

    @classmethod
    def cancel(cls, job: Job, options: Mapping[str, str]) -> None:
        """Delete a Job, whose pods have their grace; raises UnavailableError."""
        _Cluster(options, SHORTEST_SECONDS).end(job.id)

    def _ask(self) -> None:
        """Do what is due: create the Job, pass the stop on, look how it does."""
        try:
            if not self.uid and not self._known_pid:
                self.uid = self._submit()
            if (self.uid or self._known_pid) and self._status is None:
                if self._to_kill:
                    self._cluster.end(self._job_name(), at_once=True)
                elif self._to_stop and not self._told_to_stop:
                    self._cluster.end(self._job_name())
                    self._told_to_stop = True
                self._look()
        except (UnavailableError, StoreError, OSError) as away:
            if self.waiting:
                self.waiting = str(away)
            log.warning("Kubernetes or the store could not be asked; trying again", why=str(away))
        self._asked_at = time.monotonic()

    def _submit(self) -> str:
        """The uid of this folder's Job; empty where it must wait to be created, or never will be.

        It may be there already: a supervisor, or the answer to its creation, may have been lost. Earlier Jobs of the
        run must be gone.
        """
        if not self.spec.store_folder:
            self._end(Status.REFUSED, "pods have no disk that the lab can read; set STOA_STORE to an object store")
            return ""
        mark = self._folder / MARK
        if mark.exists() and (uid := mark.read_text().strip()):
            return uid
        siblings = self._cluster.jobs({manifest.INSTALLATION: _installation(), manifest.RUN: self._folder.parent.name})
        for job in siblings:
            if _token(job) == self._token():
                return self._marked(job)
        if self._to_stop or any(_token(job) > self._token() for job in siblings):
            self._end(Status.STOPPED, "it was stopped before Kubernetes had it")
            return ""
        earlier = [job for job in siblings if not _ended(job)]
        for job in earlier:
            self._cluster.end(str(job.metadata.name), at_once=True)
        if earlier:
            self.waiting = "an earlier job of the run is still ending"
            return ""
        self._open_store().write(f"{self.spec.store_folder}/{JOB_FILE}", json.dumps(self._what_to_do()).encode())
        body = manifest.job(self.spec, self._job_name(), self._labels(), _store_address())
        try:
            return self._marked(self._cluster.create_job(body))
        except _RefusedError as refused:
            self._end(Status.REFUSED, f"Kubernetes refused the job: {refused}")
            return ""

    def _what_to_do(self) -> dict[str, Any]:
        """What the pods are to do, with places on this host as places in a pod; see `kubernetes_pod`.

        Raises OSError where the configuration cannot be read.
        """
        home = self._folder.parents[2]
        folders: dict[str, str] = {}
        files: dict[str, str] = {}
        results: dict[str, str] = {}
        command = ["python", *self._command[1:]]
        for number, word in enumerate(command):
            path = Path(word.partition("@")[0])
            if not path.is_absolute() or not path.is_relative_to(home):
                continue
            name = path.relative_to(home).as_posix()
            command[number] = f"\0{name}{word[len(str(path)) :]}"
            if path.name == contract.CONFIG_FILE:
                files[name] = self._configuration(path, home, folders)
            elif contract.checkpoint_step(path) is not None:
                folders[_checkpoint(self.spec.store_folder, path)] = name
            elif "@" in word:
                step = int(word.rpartition("@")[2])
                path = contract.checkpoint_folder(path, step)
                folders[_checkpoint(self.spec.store_folder, path)] = path.relative_to(home).as_posix()
            elif path != self._folder:
                results[name] = name
        return {
            "command": command,
            "out": self._folder.relative_to(home).as_posix(),
            "files": files,
            "folders": folders,
            "results": results,
            "nodes": self.spec.nodes,
            "seconds": self.spec.seconds + manifest.SIGNAL_SECONDS / 2,
        }

    def _configuration(self, path: Path, home: Path, folders: dict[str, str]) -> str:
        """The text of a configuration; prepared data of this host become those that a pod fetches."""
        text = path.read_text()
        values = yaml.safe_load(text)
        prepared = Path(values["data"].get("prepared") or "/")
        if not prepared.is_relative_to(home):
            return text
        name = prepared.relative_to(home).as_posix()
        folders[name] = name
        values["data"]["prepared"] = f"{manifest.FOLDER}/{name}"
        return yaml.safe_dump(values, sort_keys=False)

    def _marked(self, job: Any) -> str:
        """Note a Job's uid in the folder; on a full disk, the cluster knows the Job by its labels."""
        uid = str(job.metadata.uid)
        with suppress(OSError):
            (self._folder / MARK).write_text(uid)
        return uid

    def _look(self) -> None:
        """Read how the Job does, and what its trainer has written."""
        job, now = self._cluster.job(self._job_name())
        if job is not None and not self.uid and _pid(str(job.metadata.uid)) == self._known_pid:
            self.uid = str(job.metadata.uid)
        ours = job is not None and str(job.metadata.uid) == self.uid
        pods = self._cluster.pods(self._job_name()) if ours else []
        said = self._read_outcome()
        live.fetch(self._open_store(), self.spec.store_folder, LIVE, self._folder)
        if not ours:
            self._gone(said)
            return
        assert job is not None
        self._serve()
        self._see(pods, now)
        if _ended(job):
            self._over(job, said)
        elif self._ran and job.spec.suspend:
            # Its queue has taken the nodes back, and would start the same attempt once more.
            self._lost_for = self._lost_for or (EndReason.PREEMPTED, "Kubernetes ended the job: it was suspended")
            self._cluster.end(self._job_name())
        elif _is_overdue(pods, now):
            self._lost_for = self._lost_for or (EndReason.NODE_FAILED, "Kubernetes has lost a node of the job")
            self._cluster.end(self._job_name(), at_once=True)
        elif self.waiting:
            self._wait(job, pods)

    def _see(self, pods: Sequence[Any], now: datetime) -> None:
        """Learn from the pods since when all of them run, and why one was taken away."""
        began = [at for pod in pods if (at := _began(pod)) is not None]
        if len(began) == self.spec.nodes and pods:
            self.waiting = ""
            ended = [at for pod in pods if (at := _finished(pod)) is not None]
            until = max(ended) if len(ended) == len(pods) else now
            self._ran = max(self._ran, (until - max(began)).total_seconds())
            self._runs_since = None if len(ended) == len(pods) else time.monotonic()
        for pod in pods:
            self._lost_for = self._lost_for or _why_lost(pod)

    def _wait(self, job: Any, pods: Sequence[Any]) -> None:
        """Learn why the Job has not begun."""
        if job.spec.suspend:
            self.waiting = f"Kubernetes: the queue {self.spec.options.get('local_queue') or 'of the job'} holds it"
            return
        for pod in pods:
            reason, message = _why_waits(pod)
            if reason in NEVER_STARTS and not self._to_stop:
                self._cluster.end(self._job_name(), at_once=True)
                self._end(Status.REFUSED, f"Kubernetes would never start the job: {message} ({reason})")
                return
            if reason:
                self.waiting = f"Kubernetes: {reason}" + (f" ({message})" if message else "")
                return
        told = self._cluster.warning(self._job_name()) if not pods else ""
        self.waiting = f"Kubernetes: {told}" if told else "Kubernetes: the pods are being started"

    def _gone(self, said: int | None) -> None:
        """End as the outcome says: the Job, with its pods and their exit statuses, is gone."""
        if said is None and self.waiting and self._to_stop:
            self._end(Status.STOPPED, "")
        elif said is None and self._to_kill:
            self._end(-signal.SIGKILL, "")
        else:
            reason, sentence = self._lost_for or (EndReason.RUNNER_ENDED, "Kubernetes no longer knows the job")
            if said is None or (said == Status.STOPPED and not self._to_stop):
                self.end_reason = reason
            self._end(Status.FAILED if said is None else said, "" if said is not None else sentence)

    def _over(self, job: Any, said: int | None) -> None:
        """End as the outcome says, or else as the Job's last condition does."""
        last = _ended(job)
        reason, sentence = self._lost_for or (
            EndReason.RUNNER_ENDED,
            f"Kubernetes ended the job: {last.reason or last.type}",
        )
        if said is None or (said == Status.STOPPED and not self._to_stop):
            self.end_reason = reason
        self._end(Status.FAILED if said is None else said, "" if said is not None else sentence)

    def _read_outcome(self) -> int | None:
        """The status of the outcome in the store, which is then in the folder too; None where there is none yet."""
        store = self._open_store()
        data = store.read(f"{self.spec.store_folder}/{contract.OUTCOME_FILE}")
        with suppress(ValueError, RecursionError, TypeError, KeyError):
            status = int(json.loads(data or b"null")["status"])
            if sample := store.read(f"{self.spec.store_folder}/{contract.SAMPLE_FILE}"):
                (self._folder / contract.SAMPLE_FILE).write_bytes(sample)
            (self._folder / contract.OUTCOME_FILE).write_bytes(data or b"")
            return status
        return None

    def _serve(self) -> None:
        """See that the Service is there which gives the pods their names."""
        if not self._has_service:
            self._cluster.create_service(manifest.service(self._job_name(), self._labels(), self.uid))
            self._has_service = True

    def _end(self, status: int, sentence: str) -> None:
        self._status, self.ended, self._runs_since = status, sentence, None

    def _open_store(self) -> Store:
        self._store = self._store or Store(get_settings())
        return self._store

    def _labels(self) -> dict[str, Any]:
        return manifest.labels(_installation(), int(self._folder.parent.name), self._token())

    def _job_name(self) -> str:
        """The Job's name: `stoa-INSTALLATION-RUN-TOKEN`."""
        return f"stoa-{_installation()}-{self._folder.parent.name}-{self._token()}"

    def _token(self) -> int:
        return int(self._folder.name.rpartition("-")[2])


class _RefusedError(Exception):
    """The API server will never take this; the text is its sentence."""


class _Cluster:
    """Calls of the API server, each of which waits for `patience` seconds at most and raises UnavailableError."""

    def __init__(self, options: Mapping[str, str], patience: float) -> None:
        self._options = options
        self._patience = patience
        self._namespace = options.get("namespace", "stoa")
        self._client: Any = None

    def version(self) -> str:
        """The API server's version, once it has answered with the rights of this lab."""
        with self._asking() as api:
            api.BatchV1Api(self._client).list_namespaced_job(self._namespace, limit=1, **self._within())
            return str(api.VersionApi(self._client).get_code(**self._within()).git_version)

    def jobs(self, labels: dict[str, str]) -> list[Any]:
        """The Jobs with these labels, ended ones too as long as they are kept."""
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        with self._asking() as api:
            found = api.BatchV1Api(self._client).list_namespaced_job(
                self._namespace, label_selector=selector, **self._within()
            )
        return list(found.items)

    def job(self, name: str) -> tuple[Any | None, datetime]:
        """A Job, or None where there is none of that name, and the API server's time."""
        with self._asking() as api:
            try:
                job, _, headers = api.BatchV1Api(self._client).read_namespaced_job_with_http_info(
                    name, self._namespace, **self._within()
                )
            except api.ApiException as error:
                if error.status != 404 or "not found" not in _sentence(error):
                    raise
                return None, datetime.now(UTC)
        return job, _date(headers)

    def pods(self, job: str) -> list[Any]:
        """The pods of a Job."""
        with self._asking() as api:
            found = api.CoreV1Api(self._client).list_namespaced_pod(
                self._namespace, label_selector=f"batch.kubernetes.io/job-name={job}", **self._within()
            )
        return list(found.items)

    def warning(self, job: str) -> str:
        """The last warning about a Job, such as that of a quota; empty where there is none."""
        selector = f"involvedObject.kind=Job,involvedObject.name={job},type=Warning"
        with self._asking() as api:
            found = api.CoreV1Api(self._client).list_namespaced_event(
                self._namespace, field_selector=selector, **self._within()
            )
        return f"{found.items[-1].reason} ({found.items[-1].message})" if found.items else ""

    def create_job(self, body: dict[str, Any]) -> Any:
        """The Job that was created, or was there already; raises _RefusedError."""
        with self._asking() as api:
            batch = api.BatchV1Api(self._client)
            try:
                return batch.create_namespaced_job(self._namespace, body, **self._within())
            except api.ApiException as error:
                if error.status == 409:
                    return batch.read_namespaced_job(body["metadata"]["name"], self._namespace, **self._within())
                if 400 <= (error.status or 0) < 500 and error.status not in NOT_NOW:
                    raise _RefusedError(_sentence(error)) from None
                raise

    def create_service(self, body: dict[str, Any]) -> None:
        """Create a Service, unless it is there already."""
        with self._asking() as api:
            try:
                api.CoreV1Api(self._client).create_namespaced_service(self._namespace, body, **self._within())
            except api.ApiException as error:
                if error.status != 409:
                    raise

    def end(self, job: str, *, at_once: bool = False) -> None:
        """Delete a Job; it is gone once its pods are, which have their grace, or a second with `at_once`.

        Pods that should have been gone for long are those of a node that nobody reaches: they are forgotten.
        """
        with self._asking() as api, _absent(api):
            api.BatchV1Api(self._client).delete_namespaced_job(
                job, self._namespace, propagation_policy="Foreground", **self._within()
            )
        if not at_once:
            return
        found, now = self.pods(job), self.job(job)[1]
        grace = 0 if _is_overdue(found, now) else 1
        for pod in found:
            with self._asking() as api, _absent(api):
                api.CoreV1Api(self._client).delete_namespaced_pod(
                    pod.metadata.name, self._namespace, grace_period_seconds=grace, **self._within()
                )

    def _within(self) -> dict[str, float]:
        return {"_request_timeout": self._patience}

    @contextmanager
    def _asking(self) -> Iterator[Any]:
        """The client's package, ready to ask; raises UnavailableError in the place of what it raises."""
        import urllib3
        from kubernetes import client, config
        from kubernetes.client.exceptions import ApiException
        from kubernetes.config.config_exception import ConfigException

        try:
            if self._client is None:
                self._client = self._connect(client, config)
            yield client
        except ApiException as error:
            if error.status == 401:
                self._client = None  # a token may have been renewed
            raise UnavailableError(f"Kubernetes: {_sentence(error)}") from None
        except ConfigException as error:
            raise UnavailableError(f"Kubernetes: the kubeconfig cannot be used ({error})") from None
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            why = "has not answered" if isinstance(error, urllib3.exceptions.HTTPError) else f"failed ({error})"
            raise UnavailableError(f"Kubernetes: the API server {why}") from None

    def _connect(self, client: Any, config: Any) -> Any:
        """A client by the pool's kubeconfig, KUBECONFIG, or the pod that this process runs in. It asks only once."""
        path = self._options.get("kubeconfig") or os.environ.get("KUBECONFIG")
        settings = client.Configuration()
        if not path and "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(client_configuration=settings)
        else:
            context = self._options.get("context") or None
            config.load_kube_config(config_file=path, context=context, client_configuration=settings)
        settings.retries = False
        return client.ApiClient(settings)


@contextmanager
def _absent(api: Any) -> Iterator[None]:
    """Let what is not there be no error."""
    try:
        yield
    except api.ApiException as error:
        if error.status != 404:
            raise


def _installation() -> str:
    """What tells this lab's jobs from those of another lab: its store, which no two labs share."""
    return f"{zlib.crc32(get_settings().store.encode()):08x}"


def _store_address() -> dict[str, str]:
    """The variables that lead a pod to the store, without its keys."""
    settings = get_settings()
    found = {"STOA_STORE": settings.store, "STOA_STORE_ENDPOINT": settings.store_endpoint}
    return {"STOA_ENV_FILE": "", **{name: value for name, value in found.items() if value}}


def _checkpoint(attempt: str, path: Path) -> str:
    """The folder in the store of a checkpoint at this path: of an earlier attempt of the run, or of another run.

    Raises OSError where another run's folder does not say whose it is.
    """
    step = contract.checkpoint_step(path)
    assert step is not None
    folder = path.parents[1]
    run, token = int(folder.parent.name), int(folder.name.rpartition("-")[2])
    owner = (folder.parent / "owner").read_text() if (folder.parent / "owner").exists() else None
    if owner is None:
        return stores.checkpoint_folder(f"{attempt.rpartition('/')[0]}/attempt-{token}", step)
    return stores.checkpoint_folder(stores.attempt_folder(run, owner, token), step)


def _pid(uid: str) -> int:
    """A number that stands for a Job's uid in the place of a pid; never 0."""
    return zlib.crc32(uid.encode()) & 0x7FFFFFFF | 1


def _token(job: Any) -> int:
    return int(job.metadata.labels[manifest.ATTEMPT])


def _ended(job: Any) -> Any:
    """The condition in which a Job has ended, with all its pods; None while it has not."""
    conditions = job.status.conditions or [] if job.status else []
    return next((each for each in conditions if each.type in ("Complete", "Failed") and each.status == "True"), None)


def _state(pod: Any) -> Any:
    """The state of a pod's container; None while it has none."""
    statuses = pod.status.container_statuses if pod.status else None
    return statuses[0].state if statuses else None


def _began(pod: Any) -> datetime | None:
    state = _state(pod)
    ran = (state.running or state.terminated) if state else None
    return ran.started_at if ran else None


def _finished(pod: Any) -> datetime | None:
    state = _state(pod)
    return state.terminated.finished_at if state and state.terminated else None


def _why_waits(pod: Any) -> tuple[str, str]:
    """Kubernetes' reason for which a pod does not run yet, and its words; empty where it gives none."""
    state = _state(pod)
    if state and state.waiting and state.waiting.reason != "ContainerCreating":
        return state.waiting.reason or "", state.waiting.message or ""
    for told in (pod.status.conditions or []) if pod.status else []:
        if told.type == "PodScheduled" and told.status == "False":
            return told.reason or "", told.message or ""
    return "", ""


def _why_lost(pod: Any) -> tuple[EndReason, str] | None:
    """Why a pod was taken away or ended, where it was not the trainer's doing."""
    state = _state(pod)
    if state and state.terminated and state.terminated.reason == "OOMKilled":
        return EndReason.OUT_OF_MEMORY, "Kubernetes ended the job: out of memory"
    for told in (pod.status.conditions or []) if pod.status else []:
        if told.type == "DisruptionTarget" and told.status == "True":
            reason = NODE_REASONS.get(told.reason or "", EndReason.RUNNER_ENDED)
            return reason, f"Kubernetes ended the job: {told.reason} on {pod.spec.node_name}"
    return None


def _is_overdue(pods: Sequence[Any], now: datetime) -> bool:
    """Whether a pod is still there long after the end of its grace: nobody reaches its node."""
    due = [pod.metadata.deletion_timestamp for pod in pods if pod.metadata.deletion_timestamp]
    return any((now - at).total_seconds() > LOST_SECONDS for at in due)


def _date(headers: Any) -> datetime:
    """The API server's time, by which its own times are read."""
    with suppress(TypeError, ValueError):
        return parsedate_to_datetime(headers.get("Date"))
    return datetime.now(UTC)


def _sentence(error: Any) -> str:
    """What the API server says in a `Status`, in one line."""
    with suppress(ValueError, TypeError, AttributeError):
        if message := json.loads(error.body).get("message"):
            return re.sub(r"\s+", " ", str(message))
    return f"the API server has answered {error.status} {error.reason or ''}".strip()
