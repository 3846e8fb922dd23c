"""The calls of Kubernetes' API server that the runner `kubernetes` makes, and what its answers mean."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import urllib3

from broker.end_reasons import EndReason
from broker.runners.base import UnavailableError

LOST_SECONDS = 60.0
"""How long beyond its grace a deleted pod may be there until its node is taken for lost."""
NODE_REASONS = {
    "DeletionByTaintManager": EndReason.NODE_FAILED,
    "DeletionByPodGC": EndReason.NODE_FAILED,
    "TerminationByKubelet": EndReason.NODE_FAILED,
    "EvictionByEvictionAPI": EndReason.RUNNER_ENDED,
    "PreemptionByScheduler": EndReason.PREEMPTED,
}
"""Reasons of the condition DisruptionTarget of a pod."""
NOT_NOW = (401, 403, 408, 409, 425, 429)
"""Statuses between 400 and 499 that a later call may not meet: rights and quotas change."""


class RefusedError(Exception):
    """The API server will never take this; the text is its sentence."""


class Cluster:
    """Calls of the API server, each of which waits for `patience` seconds at most and raises UnavailableError."""

    def __init__(self, options: Mapping[str, str], patience: float) -> None:
        from kubernetes import client, config  # takes seconds, for which the command line need not wait

        self._api, self._config = client, config
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
                return None, _date(error.headers)
        return job, _date(headers)

    def pods(self, job: str, uid: str = "") -> list[Any]:
        """The pods of a Job, which may be gone; of another one of its name, too, where its uid is not known."""
        owner = f",batch.kubernetes.io/controller-uid={uid}" if uid else ""
        with self._asking() as api:
            found = api.CoreV1Api(self._client).list_namespaced_pod(
                self._namespace, label_selector=f"batch.kubernetes.io/job-name={job}{owner}", **self._within()
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
        """The Job that was created, or was there already; raises RefusedError."""
        with self._asking() as api:
            batch = api.BatchV1Api(self._client)
            try:
                return batch.create_namespaced_job(self._namespace, body, **self._within())
            except api.ApiException as error:
                if error.status == 409:
                    return batch.read_namespaced_job(body["metadata"]["name"], self._namespace, **self._within())
                if 400 <= (error.status or 0) < 500 and error.status not in NOT_NOW:
                    raise RefusedError(_sentence(error)) from None
                raise

    def create_service(self, body: dict[str, Any]) -> None:
        """Create a Service, unless it is there already."""
        with self._asking() as api, _there(api):
            api.CoreV1Api(self._client).create_namespaced_service(self._namespace, body, **self._within())

    def create_secret(self, body: dict[str, Any]) -> None:
        """Create a Secret, unless one of its name is there already."""
        with self._asking() as api, _there(api):
            api.CoreV1Api(self._client).create_namespaced_secret(self._namespace, body, **self._within())

    def end(self, job: str, *, at_once: bool = False) -> None:
        """Delete a Job; it is gone once its pods are, which have their grace, or a second with `at_once`.

        Pods that should have been gone for long are those of a node that nobody reaches: they are forgotten.
        """
        with self._asking() as api, _absent(api):
            api.BatchV1Api(self._client).delete_namespaced_job(
                job, self._namespace, propagation_policy="Foreground", **self._within()
            )
        if at_once:
            self.end_pods(self.pods(job), self.job(job)[1])

    def end_pods(self, pods: Sequence[Any], now: datetime) -> None:
        """Delete pods with a second's grace, and those of a node that nobody reaches without any."""
        grace = 0 if is_overdue(pods, now) else 1
        for pod in pods:
            with self._asking() as api, _absent(api):
                api.CoreV1Api(self._client).delete_namespaced_pod(
                    pod.metadata.name, self._namespace, grace_period_seconds=grace, **self._within()
                )

    def _within(self) -> dict[str, float]:
        return {"_request_timeout": self._patience}

    @contextmanager
    def _asking(self) -> Iterator[Any]:
        """The client's package, ready to ask; raises UnavailableError in the place of what it raises."""
        try:
            if self._client is None:
                self._client = self._connect()
            yield self._api
        except self._api.ApiException as error:
            if error.status == 401:
                self._client = None  # a token may have been renewed
            raise UnavailableError(f"Kubernetes: {_sentence(error)}") from None
        except self._config.ConfigException as error:
            raise UnavailableError(f"Kubernetes: the kubeconfig cannot be used ({error})") from None
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            why = "has not answered" if isinstance(error, urllib3.exceptions.HTTPError) else f"failed ({error})"
            raise UnavailableError(f"Kubernetes: the API server {why}") from None

    def _connect(self) -> Any:
        """A client by the pool's kubeconfig, KUBECONFIG, or the pod that this process runs in. It asks only once."""
        path = self._options.get("kubeconfig") or os.environ.get("KUBECONFIG")
        settings = self._api.Configuration()
        if not path and "KUBERNETES_SERVICE_HOST" in os.environ:
            self._config.load_incluster_config(client_configuration=settings)
        else:
            context = self._options.get("context") or None
            self._config.load_kube_config(config_file=path, context=context, client_configuration=settings)
        settings.retries = False
        return self._api.ApiClient(settings)


@contextmanager
def _absent(api: Any) -> Iterator[None]:
    """Let what is not there be no error."""
    with _no_error(api, 404):
        yield


@contextmanager
def _there(api: Any) -> Iterator[None]:
    """Let what is there already be no error."""
    with _no_error(api, 409):
        yield


@contextmanager
def _no_error(api: Any, status: int) -> Iterator[None]:
    try:
        yield
    except api.ApiException as error:
        if error.status != status:
            raise


def ended(job: Any) -> Any:
    """The condition in which a Job has ended, with all its pods; None while it has not."""
    conditions = job.status.conditions or [] if job.status else []
    return next((each for each in conditions if each.type in ("Complete", "Failed") and each.status == "True"), None)


def _state(pod: Any) -> Any:
    """The state of a pod's container; None while it has none."""
    statuses = pod.status.container_statuses if pod.status else None
    return statuses[0].state if statuses else None


def began(pod: Any) -> datetime | None:
    state = _state(pod)
    ran = (state.running or state.terminated) if state else None
    return ran.started_at if ran else None


def finished(pod: Any) -> datetime | None:
    state = _state(pod)
    return state.terminated.finished_at if state and state.terminated else None


def why_waits(pod: Any) -> tuple[str, str]:
    """Kubernetes' reason for which a pod does not run yet, and its words; empty where it gives none."""
    state = _state(pod)
    if state and state.waiting and state.waiting.reason != "ContainerCreating":
        return state.waiting.reason or "", state.waiting.message or ""
    for told in (pod.status.conditions or []) if pod.status else []:
        if told.type == "PodScheduled" and told.status == "False":
            return told.reason or "", told.message or ""
    return "", ""


def why_lost(pod: Any) -> tuple[EndReason, str] | None:
    """Why a pod was taken away or ended, where it was not the trainer's doing."""
    state = _state(pod)
    if state and state.terminated and state.terminated.reason == "OOMKilled":
        return EndReason.OUT_OF_MEMORY, "the pod used more memory than Kubernetes gave it"
    for told in (pod.status.conditions or []) if pod.status else []:
        if told.type == "DisruptionTarget" and told.status == "True":
            reason = NODE_REASONS.get(told.reason or "", EndReason.RUNNER_ENDED)
            return reason, f"Kubernetes ended the job: {told.reason} on {pod.spec.node_name}"
    return None


def is_overdue(pods: Sequence[Any], now: datetime) -> bool:
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
