"""The Job controller and the garbage collector."""

import copy
import time
from datetime import UTC, datetime
from typing import Any

from sandbox.kubernetes.errors import Json
from sandbox.kubernetes.objects import EVENTS, JOBS, PODS, Objects, ResourceType, now, suffix
from sandbox.kubernetes.pods import ENDED, INDEX, Pods, condition

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
FOREGROUND = "foregroundDeletion"


class Jobs:
    """Keeps every Job at the pods that it should have.

    `quota` is the most pods that may exist in all, None for no bound. `held` are names of Kueue's queues that admit no
    job now: Kueue suspends a Job with its label until its queue admits it.
    """

    def __init__(self, objects: Objects, pods: Pods) -> None:
        self.objects = objects
        self.quota: int | None = None
        self.held: set[str] = set()
        self._pods = pods
        self._counted: dict[str, set[str]] = {}
        self._failures: dict[str, int] = {}

    @staticmethod
    def prepare(job: Json) -> None:
        """Fill in what the API server and Kueue's webhook add to a new Job."""
        spec = job["spec"]
        if (job["metadata"].get("labels") or {}).get(QUEUE_LABEL):
            spec["suspend"] = True
        spec.setdefault("parallelism", 1)
        spec.setdefault("backoffLimit", 6)
        spec.setdefault("completionMode", "NonIndexed")
        spec.setdefault("podReplacementPolicy", "TerminatingOrFailed")
        job["status"] = {}

    def label(self, job: Json) -> None:
        """Add the selector and the labels that carry the Job's own uid, once it has one."""
        uid, name = job["metadata"]["uid"], job["metadata"]["name"]
        labels = {"controller-uid": uid, "job-name": name}
        labels |= {f"batch.kubernetes.io/{key}": value for key, value in labels.items()}
        template = job["spec"]["template"].setdefault("metadata", {})
        template["labels"] = (template.get("labels") or {}) | labels
        job["spec"]["selector"] = {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}

    def step(self) -> None:
        """One look at all Jobs, and at what has lost its owner."""
        for job in self.objects.all(JOBS):
            with self.objects.edit(JOBS, job):
                self._reconcile(job)
            if FOREGROUND in (job["metadata"].get("finalizers") or []) and not self._of(job):
                self.objects.remove(JOBS, job)
        self._collect()

    def delete(self, job: Json, policy: str) -> bool:
        """Delete a Job in the way of a `propagationPolicy`; returns whether it is gone at once."""
        if policy == "Foreground":
            with self.objects.edit(JOBS, job):
                job["metadata"].setdefault("deletionTimestamp", now())
                job["metadata"]["finalizers"] = [FOREGROUND]
            for kind, one in list(self.objects.owned_by(job["metadata"]["uid"])):
                if kind is not PODS:
                    self.objects.remove(kind, one)
            return False
        if policy == "Orphan":
            for kind, one in list(self.objects.owned_by(job["metadata"]["uid"])):
                with self.objects.edit(kind, one):
                    del one["metadata"]["ownerReferences"]
        self.objects.remove(JOBS, job)
        return True

    def _of(self, job: Json) -> list[Json]:
        """The pods of a Job."""
        return [one for kind, one in self.objects.owned_by(job["metadata"]["uid"]) if kind is PODS]

    def _reconcile(self, job: Json) -> None:
        spec, status, pods = job["spec"], job["status"], self._of(job)
        if "deletionTimestamp" in job["metadata"]:
            self._end(pods)
            return
        self._count(job, pods)
        living = [pod for pod in pods if pod["status"]["phase"] not in ENDED]
        status["active"] = sum("deletionTimestamp" not in pod["metadata"] for pod in living)
        status["terminating"] = len(living) - status["active"]
        status["ready"] = sum(pod["status"]["phase"] == "Running" for pod in living)
        if _holds(job, "Complete") or _holds(job, "Failed"):
            self._expire(job)
            return
        if (queue := (job["metadata"].get("labels") or {}).get(QUEUE_LABEL)) and queue not in self.held:
            spec["suspend"] = False
        if spec.get("suspend"):
            self._end(living)
            condition(job, "Suspended", "True", "JobSuspended", "Job suspended")
            status.pop("startTime", None)
            return
        if _holds(job, "Suspended"):
            condition(job, "Suspended", "False", "JobResumed", "Job resumed")
        status.setdefault("startTime", now())
        if target := _holds(job, "FailureTarget"):
            self._end(living)
            if not living:
                condition(job, "Failed", "True", target["reason"], target["message"])
            return
        limit = spec.get("activeDeadlineSeconds")
        if limit is not None and _age(status["startTime"]) > limit:
            message = "Job was active longer than specified deadline"
            condition(job, "FailureTarget", "True", "DeadlineExceeded", message)
        elif status.get("failed", 0) > spec["backoffLimit"]:
            message = "Job has reached the specified backoff limit"
            condition(job, "FailureTarget", "True", "BackoffLimitExceeded", message)
        elif status.get("succeeded", 0) >= spec.get("completions", 1) and not living:
            condition(
                job, "SuccessCriteriaMet", "True", "CompletionsReached", "Reached expected number of succeeded pods"
            )
            condition(job, "Complete", "True", "CompletionsReached", "Reached expected number of succeeded pods")
            status["completionTime"] = now()
        else:
            self._create(job, pods)

    def _count(self, job: Json, pods: list[Json]) -> None:
        """Count the pods that have ended since; a terminating one counts by the policy of the Job."""
        counted = self._counted.setdefault(job["metadata"]["uid"], set())
        early = job["spec"]["podReplacementPolicy"] == "TerminatingOrFailed"
        for pod in pods:
            uid, phase = pod["metadata"]["uid"], pod["status"]["phase"]
            over = phase in ENDED or (early and "deletionTimestamp" in pod["metadata"])
            if over and uid not in counted:
                counted.add(uid)
                key = "succeeded" if phase == "Succeeded" else "failed"
                job["status"][key] = job["status"].get(key, 0) + 1
        done = sorted(int(_index(pod)) for pod in pods if pod["status"]["phase"] == "Succeeded" and _index(pod))
        if done:
            job["status"]["completedIndexes"] = ",".join(map(str, done))

    def _create(self, job: Json, pods: list[Json]) -> None:
        """Create the pods of the indexes that have none which runs, waits, ends or has succeeded."""
        taken = {_index(pod) for pod in pods if pod["status"]["phase"] != "Failed"}
        wanted = [str(number) for number in range(job["spec"].get("completions") or 1) if str(number) not in taken]
        room = job["spec"]["parallelism"] - sum(pod["status"]["phase"] not in ENDED for pod in pods)
        for index in wanted[: max(0, room)]:
            if self.quota is not None and len(self.objects.all(PODS)) >= self.quota:
                self._event(job, "FailedCreate", "Error creating: pods is forbidden: exceeded quota: pods")
                return
            self._create_pod(job, index)

    def _create_pod(self, job: Json, index: str) -> None:
        template, name = copy.deepcopy(job["spec"]["template"]), job["metadata"]["name"]
        metadata, spec = template.setdefault("metadata", {}), template["spec"]
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": job["metadata"]["uid"]}
        metadata["ownerReferences"] = [owner | {"controller": True, "blockOwnerDeletion": True}]
        metadata["name"] = f"{name}-{suffix()}"
        if job["spec"]["completionMode"] == "Indexed":
            metadata["name"] = f"{name}-{index}-{suffix()}"
            metadata["labels"][INDEX] = index
            metadata["annotations"] = (metadata.get("annotations") or {}) | {INDEX: index}
            spec["hostname"] = f"{name}-{index}"
            for container in spec["containers"]:
                told = {"name": "JOB_COMPLETION_INDEX", "value": index}
                container["env"] = [*(container.get("env") or []), told]
        self.objects.create(PODS, job["metadata"]["namespace"], template | {"status": {"phase": "Pending"}})

    def _end(self, pods: list[Json]) -> None:
        for pod in pods:
            if "deletionTimestamp" not in pod["metadata"]:
                self._pods.delete(pod)

    def _expire(self, job: Json) -> None:
        ttl = job["spec"].get("ttlSecondsAfterFinished")
        ended = _holds(job, "Complete") or _holds(job, "Failed")
        if ttl is not None and _age(ended["lastTransitionTime"]) > ttl:
            job["metadata"] |= {"deletionTimestamp": now(), "finalizers": [FOREGROUND]}

    def _collect(self) -> None:
        """Delete what names owners of which none is left."""
        kinds: tuple[ResourceType, ...] = tuple({change.kind for change in self.objects.changes})
        uids = {job["metadata"]["uid"] for job in self.objects.all(JOBS)}
        for kind in kinds:
            for one in self.objects.all(kind):
                owners = one["metadata"].get("ownerReferences") or []
                if not owners or any(owner["uid"] in uids for owner in owners):
                    continue
                if kind is not PODS:
                    self.objects.remove(kind, one)
                elif "deletionTimestamp" not in one["metadata"]:
                    self._pods.delete(one)

    def _event(self, job: Json, reason: str, message: str) -> None:
        """Tell of something that befell a Job; a repeated event is counted."""
        namespace, about = job["metadata"]["namespace"], job["metadata"]["name"]
        known = self.objects.find(EVENTS, namespace, f"{about}.{reason}".lower())
        if known is not None:
            known["count"] += 1
            known["lastTimestamp"] = now()
            return
        involved = {"kind": "Job", "name": about, "namespace": namespace, "uid": job["metadata"]["uid"]}
        told = {"reason": reason, "message": message, "type": "Warning", "count": 1, "lastTimestamp": now()}
        body = {"metadata": {"name": f"{about}.{reason}".lower()}, "involvedObject": involved}
        self.objects.create(EVENTS, namespace, body | told)


def _holds(job: Json, kind: str) -> dict[str, Any]:
    """A condition of a Job that holds; empty where it does not."""
    conditions = job["status"].get("conditions") or []
    return next((each for each in conditions if each["type"] == kind and each["status"] == "True"), {})


def _index(pod: Json) -> str:
    return str((pod["metadata"].get("annotations") or {}).get(INDEX, ""))


def _age(at: str) -> float:
    return time.time() - datetime.strptime(at, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
