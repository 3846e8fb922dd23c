"""The runner `kubernetes`: trainers as Indexed Jobs, a pod for each node (see `pod_runner`).

A deleted pod keeps no exit status; the attempt's outcome in the store does.
"""

import signal
import ssl
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

from broker.end_reasons import EndReason
from broker.runners import kubernetes_manifest as manifest
from broker.runners.base import Check, Job, JobSpec, PoolOption, UnavailableError
from broker.runners.kubernetes_api import Cluster, RefusedError, began, ended, finished, is_overdue, why_lost, why_waits
from broker.runners.pod_runner import SHORTEST_SECONDS, PodRunner, pid_of, store_settings
from broker.runners.processes import Process
from projects.errors import InvalidError
from trainer.contract import Status

MARK = "kubernetes-job"
BOOT = "kubernetes"  # instead of a boot id: the pid is made from the Job's uid, and is not that of a process
CHECK_SECONDS = 10.0
PODS_ENDED = frozenset({"Succeeded", "Failed"})
NO_KEY = "CreateContainerConfigError"
"""Kubernetes' reason for which a container waits whose Secret is not there."""
NEVER_STARTS = frozenset({"InvalidImageName", "ErrImageNeverPull"})
"""Kubernetes' reasons for which a container waits for ever."""
ITEM = r"[A-Za-z0-9]([\w./-]*[A-Za-z0-9])?"
NAME = r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?"

log = structlog.get_logger()


class KubernetesRunner(PodRunner):
    """The trainer as an Indexed Job; see the module."""

    name = "kubernetes"
    queue = "Kubernetes"
    several_nodes = True
    environment = ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT")
    pool_options = (
        PoolOption(
            "kubeconfig",
            help="The file that leads to the cluster; KUBECONFIG otherwise.",
            pattern=r"(/[^\0\n]*)?",
            refusal="The kubeconfig is a whole path, such as /etc/stoa/cloud.yml.",
        ),
        PoolOption(
            "context",
            help="A context of the kubeconfig; its current context otherwise.",
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
            help="CPUs for each GPU; the cluster's own default otherwise.",
            pattern=r"([1-9][0-9]{0,3})?",
            refusal="The CPUs for each GPU are a whole number, such as 8.",
        ),
        PoolOption(
            "pod_memory_gib",
            help="GiB of memory for each GPU; the cluster's own default otherwise.",
            pattern=r"([1-9][0-9]{0,4})?",
            refusal="The memory for each GPU is a whole number of GiB, such as 64.",
        ),
        PoolOption(
            "local_queue",
            help="A queue of Kueue's that admits the jobs; none by default.",
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
            help="The pods' service account; the namespace's default otherwise. Its token is not mounted.",
            pattern=rf"({NAME})?",
            refusal="A service account has small letters, digits and dashes only.",
        ),
        PoolOption(
            "lab",
            help="The address at which the pods reach the lab's API, with a key of their own attempt.",
            pattern=r"(https://([\w.-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?(/[\w./-]*)?|http://(localhost|127\.0\.0\.1):[0-9]{1,5})?",
            refusal="The address of the lab's API begins with https://, such as https://lab.example:8443.",
        ),
        PoolOption(
            "lab_certificate",
            help="The file with the certificate of the lab's API, where no authority has signed it.",
            pattern=r"(/[^\0\n]*)?",
            refusal="The lab's certificate is a whole path, such as /etc/stoa/machines.pem.",
        ),
        PoolOption(
            "store_secret",
            help="Instead of --lab: the Secret with STOA_STORE_KEY and STOA_STORE_SECRET, which all pods then have.",
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
        self._cluster = Cluster(spec.options, self._patience)
        self._told_to_stop = self._has_service = self._has_secret = False
        self._key = ""

    def process(self) -> Process:
        """A number made from the Job's uid instead of a pid; 0 until there is a Job."""
        return Process(BOOT, BOOT, pid_of(self.uid) if self.uid else self._known_pid, 0)

    @classmethod
    def can_adopt(cls, process: Process) -> bool:
        """See `Runner`. A Job is reached from every host that has the cluster's kubeconfig."""
        return process.boot_id == BOOT

    @classmethod
    def checked_options(cls, given: Mapping[str, str]) -> dict[str, str]:
        """See `Runner`; the pods reach the store in exactly one way."""
        options = super().checked_options(given)
        if bool(options["lab"]) == bool(options["store_secret"]):
            raise InvalidError(
                "Pods reach the store in one of two ways: give either --lab, the address of the lab's API, or "
                "--store-secret, a Secret with the store's keys."
            )
        if options["lab_certificate"] and not options["lab"]:
            raise InvalidError("--lab-certificate goes with --lab, whose certificate it is.")
        return options

    @classmethod
    def check(cls, options: Mapping[str, str]) -> Check:
        """Whether there is a store, and whether the pool's cluster and the API that its pods use answer."""
        advice = "Set KUBECONFIG to the cluster's file, or give the pool its own with --kubeconfig."
        if not store_settings().store:
            return Check("there is no object store", "Set STOA_STORE: pods have no disk that a lab could read.")
        try:
            version = Cluster(options, CHECK_SECONDS).version()
        except UnavailableError as error:
            return Check(str(error), advice)
        found = f"the API server answers ({version})"
        if not (lab := options.get("lab", "")):
            return Check(found)
        trouble = _trouble_with(lab, options.get("lab_certificate", ""))
        return trouble or Check(f"{found}, and the lab's API at {lab}")

    @classmethod
    def living(cls, runs_dir: Path, options: Mapping[str, str]) -> Sequence[Job]:
        """See `Runner`; a Job that is being deleted needs no cancelling."""
        found = Cluster(options, SHORTEST_SECONDS).jobs({manifest.INSTALLATION: _installation()})
        living = [job for job in found if not ended(job) and job.metadata.deletion_timestamp is None]
        return [Job(str(job.metadata.name), int(job.metadata.labels[manifest.RUN]), _token(job)) for job in living]

    @classmethod
    def cancel(cls, job: Job, options: Mapping[str, str]) -> None:
        """Delete a Job, whose pods have their grace; raises UnavailableError."""
        Cluster(options, SHORTEST_SECONDS).end(job.id)

    def ask(self) -> None:
        """Create the Job, pass the stop on, look how it does."""
        if not self.uid and not self._known_pid:
            self.uid = self._submit()
        if (self.uid or self._known_pid) and self._status is None:
            if self._to_kill:
                self._cluster.end(self._job_name(), at_once=True)
            elif self._to_stop and not self._told_to_stop:
                self._cluster.end(self._job_name())
                self._told_to_stop = True
            self._look()

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
        self._close_earlier()
        earlier = [job for job in siblings if not ended(job)]
        for job in earlier:
            self._cluster.end(str(job.metadata.name), at_once=True)
        if earlier:
            self.waiting = "an earlier job of the run is still ending"
            return ""
        self._write_task()
        if self.spec.options.get("lab") and not self._open_folder():
            self._end(Status.STOPPED, "a later attempt of the run has begun")
            return ""
        body = manifest.job(self.spec, self._job_name(), self._labels(), self._store_address())
        try:
            return self._marked(self._cluster.create_job(body))
        except RefusedError as refused:
            self._end(Status.REFUSED, f"Kubernetes refused the job: {refused}")
            return ""

    def _close_earlier(self) -> None:
        """Close the folders of the run's earlier attempts to their pods, some of which may live on unreached."""
        from broker.runners import donated_orders as orders

        run = self.spec.store_folder.rpartition("/")[0]
        for token in range(self._token() - 1, 0, -1):
            order = orders.read_order(self._open_store(), f"{run}/attempt-{token}")
            if order is not None and order.over:
                return  # whoever opened that folder has closed those before
            orders.close(self._open_store(), f"{run}/attempt-{token}")

    def _open_folder(self) -> bool:
        """Whether the attempt's folder is open to its pods: it is not where the attempt was over before."""
        from broker.runners import donated_orders as orders

        store, folder = self._open_store(), self.spec.store_folder
        order = orders.read_order(store, folder)
        if order is None:
            order = orders.Order(pool=self.spec.pool, gpus=self.spec.gpus, grace_seconds=self.spec.grace_seconds)
            orders.write_order(store, folder, order)
        return not order.over

    def _end(self, status: int, sentence: str) -> None:
        """End, once no key opens the attempt's folder any more."""
        from broker.runners import donated_orders as orders

        if self.spec.store_folder:
            orders.close(self._open_store(), self.spec.store_folder)
        super()._end(status, sentence)

    def _marked(self, job: Any) -> str:
        """Note a Job's uid in the folder; on a full disk, the cluster knows the Job by its labels."""
        uid = str(job.metadata.uid)
        with suppress(OSError):
            (self._folder / MARK).write_text(uid)
        return uid

    def _look(self) -> None:
        """Read how the Job does, and what its trainer has written."""
        job, now = self._cluster.job(self._job_name())
        if job is not None and not self.uid and pid_of(str(job.metadata.uid)) == self._known_pid:
            self.uid = str(job.metadata.uid)
        ours = job is not None and str(job.metadata.uid) == self.uid
        pods = self._cluster.pods(self._job_name(), self.uid)
        said = self._read_outcome()
        self._fetch()
        if not ours:
            # Whoever has deleted the Job may have left its pods to end in their time.
            if all(pod.status.phase in PODS_ENDED for pod in pods):
                self._gone(said)
            elif is_overdue(pods, now):
                self._cluster.end_pods(pods, now)
            return
        assert job is not None
        self._serve()
        self._see(pods, now)
        if ended(job):
            self._over(job, said)
        elif not self.waiting and job.spec.suspend:
            # Its queue has taken the nodes back, and would start the same attempt once more.
            self._lost_for = self._lost_for or (EndReason.PREEMPTED, "Kubernetes ended the job: it was suspended")
            self._cluster.end(self._job_name())
        elif is_overdue(pods, now):
            self._lost_for = self._lost_for or (EndReason.NODE_FAILED, "Kubernetes has lost a node of the job")
            self._cluster.end(self._job_name(), at_once=True)
        elif self.waiting:
            self._wait(job, pods)

    def _see(self, pods: Sequence[Any], now: datetime) -> None:
        """Learn from the pods since when all of them run, and why one was taken away."""
        starts = [at for pod in pods if (at := began(pod)) is not None]
        if len(starts) == self.spec.nodes and pods:
            self.waiting = ""
            ends = [at for pod in pods if (at := finished(pod)) is not None]
            until = max(ends) if len(ends) == len(pods) else now
            self._ran = max(self._ran, (until - max(starts)).total_seconds())
            self._runs_since = None if len(ends) == len(pods) else time.monotonic()
        for pod in pods:
            self._lost_for = self._lost_for or why_lost(pod)

    def _wait(self, job: Any, pods: Sequence[Any]) -> None:
        """Learn why the Job has not begun."""
        if job.spec.suspend:
            self.waiting = f"Kubernetes: the queue {self.spec.options.get('local_queue') or 'of the job'} holds it"
            return
        for pod in pods:
            reason, message = why_waits(pod)
            self._has_secret = self._has_secret and reason != NO_KEY
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
            self._end_for(reason, sentence, said)

    def _over(self, job: Any, said: int | None) -> None:
        """End as the outcome says, or else as the Job's last condition does."""
        last = ended(job)
        reason, sentence = self._lost_for or (
            EndReason.RUNNER_ENDED,
            f"Kubernetes ended the job: {last.reason or last.type}",
        )
        self._end_for(reason, sentence, said)

    def _serve(self) -> None:
        """See that what the pods wait for is there: the Service that gives them their names, and the Secret."""
        if not self._has_service:
            self._cluster.create_service(manifest.service(self._job_name(), self._labels(), self.uid))
            self._has_service = True
        if self.waiting and not self._has_secret:
            self._give_key()
            self._has_secret = True

    def _give_key(self) -> None:
        """See that there is a Secret with a key of the attempt's folder, if the pods are to have one.

        It may hold the key of another supervisor, which is as good: each one lets the store know its key before.
        """
        from broker.runners import donated_orders as orders

        store, folder = self._open_store(), self.spec.store_folder
        if orders.read_order(store, folder) is None:
            return
        certificate = _certificate(self.spec.options.get("lab_certificate", ""))
        self._key = self._key or orders.new_secret()
        orders.add_key(store, folder, self._key)
        name, labels = self._job_name(), self._labels()
        self._cluster.create_secret(manifest.secret(name, labels, self.uid, self._key, certificate))

    def _store_address(self) -> dict[str, str]:
        """The variables that lead a pod to the store, or to its attempt in the lab's API, without keys."""
        settings, lab = store_settings(), self.spec.options.get("lab", "")
        own = f"{lab.rstrip('/')}/attempts/{self.spec.store_folder.removeprefix('runs/')}"
        found = {"STOA_STORE": settings.store, "STOA_STORE_ENDPOINT": settings.store_endpoint}
        found = {"STOA_STORE": own} if lab else found
        return {"STOA_ENV_FILE": "", **{name: value for name, value in found.items() if value}}

    def _labels(self) -> dict[str, Any]:
        return manifest.labels(_installation(), self._run(), self._token())

    def _job_name(self) -> str:
        """The Job's name: `stoa-INSTALLATION-RUN-TOKEN`."""
        return f"stoa-{_installation()}-{self._run()}-{self._token()}"


def _installation() -> str:
    """What tells this lab's jobs from those of another lab: its store, which no two labs share."""
    return f"{zlib.crc32(store_settings().store.encode()):08x}"


def _certificate(path: str) -> str:
    """The text of the lab's own certificate; empty where it has none. Raises UnavailableError."""
    try:
        return Path(path).read_text() if path else ""
    except (OSError, ValueError) as error:
        raise UnavailableError(f"the lab's certificate {path} cannot be read ({error})") from None


def _trouble_with(lab: str, certificate: str) -> Check | None:
    """What is wrong with the lab's API at an address; None where it answers."""
    import httpx2

    try:
        trusted = ssl.create_default_context(cadata=_certificate(certificate) or None)
    except (UnavailableError, ssl.SSLError) as error:
        return Check(f"the lab's certificate cannot be used: {error}", "Change --lab-certificate of the pool.")
    try:
        answer = httpx2.get(f"{lab.rstrip('/')}/claims", timeout=CHECK_SECONDS, verify=trusted)
    except httpx2.HTTPError:
        set_here = store_settings().machines_address
        told = "" if set_here else " STOA_MACHINES_ADDRESS, where it listens, is not set here."
        found = f"the lab's API does not answer at {lab}"
        return Check(found, f"Run `stoa machine serve` or `stoa up`; pods must reach it at that address.{told}")
    if answer.status_code != httpx2.codes.METHOD_NOT_ALLOWED:  # claims are made, not read
        return Check(f"what answers at {lab} is not the lab's API", "Change --lab of the pool to the API's address.")
    return None


def _token(job: Any) -> int:
    return int(job.metadata.labels[manifest.ATTEMPT])
