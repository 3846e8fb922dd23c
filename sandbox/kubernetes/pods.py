"""The scheduler and the kubelets: pods find a node, run as processes of this host, and end."""

import base64
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from sandbox.kubernetes.errors import Json
from sandbox.kubernetes.objects import NODES, PODS, SECRETS, SERVICES, Objects, now

DEFAULT_GRACE = 30
ENDED = frozenset({"Succeeded", "Failed"})
INDEX = "batch.kubernetes.io/job-completion-index"
OF_THE_MACHINE = ("OMP_WAIT_POLICY",)
"""What pods are given of this process's environment, as they share its machine."""


class Running(Protocol):
    """The process of a pod, as `subprocess.Popen` gives it."""

    pid: int

    def poll(self) -> int | None:
        """The exit status, if it has ended."""

    def wait(self) -> int:
        """Wait for its end."""


def begin(command: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path) -> Running:
    """Start the process of a pod, as a session of its own, in a folder. Raises OSError."""
    with log.open("ab") as said:
        return subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )


Begin = Callable[[Sequence[str], Path, Mapping[str, str], Path], Running]


@dataclass
class Container:
    """The process of a pod. `kill_at` is when it gets SIGKILL, in seconds of the monotonic clock."""

    process: Running
    folder: Path
    began: float = field(default_factory=time.monotonic)
    kill_at: float | None = None
    killed_for: str = ""


class Pods:
    """Starts, watches and ends the processes of all pods, one container each.

    `images` are folders of programs by the name of the image. `lost` are nodes that nobody reaches: their pods live on
    and are no longer reported. `begin` starts a process.
    """

    def __init__(self, objects: Objects, root: Path, images: Mapping[str, Path], begin: Begin = begin) -> None:
        self.objects = objects
        self.begin = begin
        self.images = images
        self.lost: set[str] = set()
        self._root = root
        self._containers: dict[str, Container] = {}
        self._addresses: dict[tuple[str, str], str] = {}

    def step(self) -> None:
        """One look at all pods."""
        for pod in self.objects.all(PODS):
            if pod["spec"].get("nodeName") in self.lost:
                continue
            if pod["status"]["phase"] == "Pending":
                self._begin(pod)
            elif pod["status"]["phase"] == "Running":
                self._watch(pod)

    def sweep(self) -> None:
        """Forget deleted pods that have ended, once their Jobs have counted them."""
        for pod in self.objects.all(PODS):
            if "deletionTimestamp" in pod["metadata"] and pod["status"]["phase"] in ENDED:
                self.objects.remove(PODS, pod)

    def delete(self, pod: Json, grace: int | None = None) -> None:
        """Ask a pod to end within its grace; at once where it is 0. A later, shorter grace shortens the wait."""
        spec_grace = pod["spec"].get("terminationGracePeriodSeconds")
        seconds = grace if grace is not None else DEFAULT_GRACE if spec_grace is None else spec_grace
        container = self._containers.get(pod["metadata"]["uid"])
        until = time.monotonic() + seconds
        reachable = pod["spec"].get("nodeName") not in self.lost
        if container is not None and container.process.poll() is None and reachable:
            if container.kill_at is None:
                with suppress(ProcessLookupError):
                    os.kill(container.process.pid, signal.SIGTERM)
            container.kill_at = until if container.kill_at is None else min(container.kill_at, until)
        if seconds == 0:
            if container is not None and reachable:
                self._end(container)
            self.objects.remove(PODS, pod)
            return
        due = (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
        with self.objects.edit(PODS, pod):
            pod["metadata"]["deletionTimestamp"] = min(due, pod["metadata"].get("deletionTimestamp", due))
            pod["metadata"]["deletionGracePeriodSeconds"] = seconds
            if container is None and reachable:
                pod["status"]["phase"] = "Failed"

    def evict(self, pod: Json, reason: str, message: str) -> None:
        """Delete a pod on somebody's behalf, which a condition of it says."""
        with self.objects.edit(PODS, pod):
            condition(pod, "DisruptionTarget", "True", reason, message)
        self.delete(pod)

    def said(self, pod: Json) -> bytes:
        """The output of a pod's process."""
        path = self._folder(pod) / "log"
        return path.read_bytes() if path.exists() else b""

    def close(self) -> None:
        """End all processes."""
        for container in self._containers.values():
            self._end(container)

    def _begin(self, pod: Json) -> None:
        """Find a node, then start the process, as far as both can be had now."""
        if "deletionTimestamp" in pod["metadata"]:
            return
        if not pod["spec"].get("nodeName"):
            self._schedule(pod)
        if not pod["spec"].get("nodeName"):
            return
        main = pod["spec"]["containers"][0]
        if main["image"] not in self.images:
            self._wait(pod, "ImagePullBackOff", f'Back-off pulling image "{main["image"]}"')
            return
        try:
            environment = self._environment(pod, main)
        except LookupError as missing:
            self._wait(pod, "CreateContainerConfigError", str(missing.args[0]))
            return
        if not self._is_named(pod) or not self._has_secrets(pod):
            self._wait(pod, "ContainerCreating", "")
            return
        folder = self._folder(pod)
        folder.mkdir(parents=True)
        inside = self._inside(pod, main)
        command = [inside(word) for word in [*main.get("command", []), *main.get("args", [])]]
        paths = f"{self.images[main['image']]}:{os.environ['PATH']}"
        own = {name: os.environ[name] for name in OF_THE_MACHINE if name in os.environ}
        own |= {"PATH": paths, "HOME": str(folder)}
        environment = own | {name: inside(told) for name, told in environment.items()}
        try:
            program = shutil.which(command[0], path=paths) or command[0]
            place = Path(inside(main["workingDir"])) if main.get("workingDir") else folder
            process = self.begin([program, *command[1:]], place, environment, folder / "log")
        except OSError as error:
            self._report(pod, 128, "StartError", str(error))
            return
        self._containers[pod["metadata"]["uid"]] = Container(process, folder)
        with self.objects.edit(PODS, pod):
            status = pod["status"]
            status |= {"phase": "Running", "startTime": now(), "podIP": self._address(pod)}
            status["containerStatuses"] = [_container(main, {"running": {"startedAt": now()}}, ready=True)]
            condition(pod, "Ready", "True")

    def _watch(self, pod: Json) -> None:
        container = self._containers[pod["metadata"]["uid"]]
        limit = pod["spec"].get("activeDeadlineSeconds")
        if limit is not None and container.kill_at is None and time.monotonic() - container.began > limit:
            container.killed_for = "DeadlineExceeded"
            os.kill(container.process.pid, signal.SIGTERM)
            container.kill_at = time.monotonic() + pod["spec"].get("terminationGracePeriodSeconds", DEFAULT_GRACE)
        status = container.process.poll()
        if status is None:
            if container.kill_at is not None and time.monotonic() >= container.kill_at:
                self._end(container)
            return
        self._end(container)
        code = 128 - status if status < 0 else status
        why = "Completed" if code == 0 else "Error"
        self._report(pod, code, why, "", container.killed_for)

    def _report(self, pod: Json, code: int, why: str, message: str, pod_reason: str = "") -> None:
        main = pod["spec"]["containers"][0]
        before = (pod["status"].get("containerStatuses") or [{}])[0].get("state", {})
        began = before.get("running", {}).get("startedAt", now())
        ended = {"exitCode": code, "reason": why, "message": message, "startedAt": began, "finishedAt": now()}
        with self.objects.edit(PODS, pod):
            pod["status"]["phase"] = "Succeeded" if code == 0 and not pod_reason else "Failed"
            pod["status"]["containerStatuses"] = [_container(main, {"terminated": ended})]
            if pod_reason:
                pod["status"]["reason"] = pod_reason
            condition(pod, "Ready", "False", "PodFailed" if code else "PodCompleted")

    def _schedule(self, pod: Json) -> None:
        """Put a pod on the first node that has room for it, or say why there is none."""
        against: dict[str, int] = {}
        nodes = self.objects.all(NODES)
        for node in nodes:
            why = self._unfit(pod, node)
            if not why:
                with self.objects.edit(PODS, pod):
                    pod["spec"]["nodeName"] = node["metadata"]["name"]
                    condition(pod, "PodScheduled", "True")
                return
            against[why] = against.get(why, 0) + 1
        reasons = ", ".join(f"{count} {why}" for why, count in against.items())
        with self.objects.edit(PODS, pod):
            message = f"0/{len(nodes)} nodes are available: {reasons}."
            condition(pod, "PodScheduled", "False", "Unschedulable", message)

    def _unfit(self, pod: Json, node: Json) -> str:
        """Why a pod may not run on a node; empty where it may."""
        name, labels = node["metadata"]["name"], node["metadata"].get("labels") or {}
        if name in self.lost or node["spec"].get("unschedulable"):
            return "node(s) were unschedulable"
        tolerations = pod["spec"].get("tolerations") or []
        for taint in node["spec"].get("taints") or []:
            if not any(_tolerates(toleration, taint) for toleration in tolerations):
                return f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}"
        if any(labels.get(key) != value for key, value in (pod["spec"].get("nodeSelector") or {}).items()):
            return "node(s) didn't match Pod's node affinity/selector"
        others = [
            other
            for other in self.objects.all(PODS)
            if other["spec"].get("nodeName") == name and other["status"]["phase"] not in ENDED
        ]
        for resource, wanted in _limits(pod).items():
            used = sum(_limits(other).get(resource, 0) for other in others)
            if used + wanted > int(node["status"]["allocatable"].get(resource, "0")):
                return f"Insufficient {resource}"
        return ""

    def _wait(self, pod: Json, reason: str, message: str) -> None:
        with self.objects.edit(PODS, pod):
            state = {"waiting": {"reason": reason, "message": message}}
            pod["status"]["containerStatuses"] = [_container(pod["spec"]["containers"][0], state)]

    def _environment(self, pod: Json, container: Json) -> dict[str, str]:
        """The variables of a container; raises LookupError for a Secret, or a key of one, that is missing."""
        namespace = pod["metadata"]["namespace"]
        found: dict[str, str] = {}
        for source in container.get("envFrom") or []:
            if reference := source.get("secretRef"):
                found |= self._secret(namespace, reference)
        for variable in container.get("env") or []:
            origin = variable.get("valueFrom") or {}
            if "secretKeyRef" in origin:
                reference = origin["secretKeyRef"]
                values = self._secret(namespace, reference)
                if reference["key"] in values:
                    found[variable["name"]] = values[reference["key"]]
                elif not reference.get("optional"):
                    raise LookupError(f"couldn't find key {reference['key']} in Secret {namespace}/{reference['name']}")
            elif "fieldRef" in origin:
                found[variable["name"]] = _field(pod, origin["fieldRef"]["fieldPath"])
            else:
                found[variable["name"]] = variable.get("value", "")
        return found

    def _secret(self, namespace: str, reference: Json) -> dict[str, str]:
        secret = self.objects.find(SECRETS, namespace, reference["name"])
        if secret is None:
            if reference.get("optional"):
                return {}
            raise LookupError(f'secret "{reference["name"]}" not found')
        return {name: base64.b64decode(value).decode() for name, value in (secret.get("data") or {}).items()}

    def _has_secrets(self, pod: Json) -> bool:
        """Whether the Secrets are there that are volumes of a pod, with the keys that it names."""
        namespace = pod["metadata"]["namespace"]
        for volume in pod["spec"].get("volumes") or []:
            if reference := volume.get("secret"):
                secret = self.objects.find(SECRETS, namespace, reference["secretName"])
                keys = {item["key"] for item in reference.get("items") or []}
                if secret is None or not keys <= set(secret.get("data") or {}):
                    return False
        return True

    def _is_named(self, pod: Json) -> bool:
        """Whether a pod that counts on the names of a headless Service has one that gives them in time."""
        subdomain = pod["spec"].get("subdomain")
        if not subdomain:
            return True
        service = self.objects.find(SERVICES, pod["metadata"]["namespace"], subdomain)
        if service is None or service["spec"].get("clusterIP") != "None":
            return False
        labels = pod["metadata"].get("labels") or {}
        selected = all(labels.get(key) == value for key, value in (service["spec"].get("selector") or {}).items())
        return selected and bool(service["spec"].get("publishNotReadyAddresses"))

    def _address(self, pod: Json, host: str = "") -> str:
        """The loopback address of a pod, or of another host of its Service, whether that runs yet or not."""
        key = (pod["metadata"]["namespace"], host or pod["spec"].get("hostname") or pod["metadata"]["name"])
        if key not in self._addresses:
            number = len(self._addresses) + 1
            self._addresses[key] = f"127.{77 + number // 62_500}.{number // 250 % 250}.{number % 250 + 1}"
        return self._addresses[key]

    def _inside(self, pod: Json, container: Json) -> "_Inside":
        folder = self._folder(pod)
        paths: dict[str, str] = {}
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes") or []}
        for mount in container.get("volumeMounts") or []:
            volume = volumes[mount["name"]]
            claim = (volume.get("persistentVolumeClaim") or {}).get("claimName")
            place = self._root / "claims" / claim if claim else folder / "volumes" / mount["name"]
            place.mkdir(parents=True, exist_ok=True)
            paths[mount["mountPath"]] = str(place)
            if reference := volume.get("secret"):
                values = self._secret(pod["metadata"]["namespace"], {"name": reference["secretName"]})
                for item in reference.get("items") or [{"key": name, "path": name} for name in values]:
                    (place / item["path"]).write_text(values[item["key"]])
        return _Inside(self, pod, paths)

    def _folder(self, pod: Json) -> Path:
        return self._root / "pods" / str(pod["metadata"]["uid"])

    @staticmethod
    def _end(container: Container) -> None:
        """Kill what is left of a container: nothing of it outlives its first process."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(container.process.pid, signal.SIGKILL)
        container.process.wait()


class _Inside:
    """Replaces, in a text of a pod, the paths of volumes by folders and the names of its Service by addresses."""

    def __init__(self, pods: Pods, pod: Json, paths: Mapping[str, str]) -> None:
        self._pods, self._pod, self._paths = pods, pod, paths

    def __call__(self, text: str) -> str:
        for path in sorted(self._paths, key=len, reverse=True):
            text = re.sub(rf"(?<![\w/.-]){re.escape(path)}(?=$|[/@:,])", self._paths[path], text)
        if subdomain := self._pod["spec"].get("subdomain"):
            name = rf"\b([a-z0-9][-a-z0-9]*)\.{re.escape(subdomain)}(?![-\w])(\.[a-z0-9-]+\.svc(\.cluster\.local)?)?"
            text = re.sub(name, lambda found: self._pods._address(self._pod, found[1]), text)
        return text


def _limits(pod: Json) -> dict[str, int]:
    """The extended resources that a pod asks for, such as nvidia.com/gpu."""
    found: dict[str, int] = {}
    for container in pod["spec"]["containers"]:
        for name, amount in ((container.get("resources") or {}).get("limits") or {}).items():
            if "/" in name:
                found[name] = found.get(name, 0) + int(amount)
    return found


def _tolerates(toleration: Json, taint: Json) -> bool:
    if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return toleration.get("key") in (None, taint["key"])
    return (toleration.get("key"), toleration.get("value", "")) == (taint["key"], taint.get("value", ""))


def _field(pod: Json, path: str) -> str:
    if found := re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path):
        return str((pod["metadata"].get(found[1]) or {}).get(found[2], ""))
    value: object = pod
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return str(value or "")


def _container(container: Json, state: Json, *, ready: bool = False) -> Json:
    told = {"name": container["name"], "image": container["image"], "imageID": "", "restartCount": 0}
    return told | {"ready": ready, "started": ready, "state": state, "lastState": {}}


def condition(one: Json, kind: str, status: str, reason: str = "", message: str = "") -> None:
    """Set a condition of a pod or a Job; its time changes with its status only."""
    conditions = one["status"].setdefault("conditions", [])
    told = next((each for each in conditions if each["type"] == kind), None)
    if told is None:
        told = {"type": kind, "lastTransitionTime": now()}
        conditions.append(told)
    elif told["status"] != status:
        told["lastTransitionTime"] = now()
    told |= {"status": status, **({"reason": reason} if reason else {}), **({"message": message} if message else {})}


def alive(pods: list[Json]) -> Iterator[Json]:
    """The pods among `pods` that have not ended."""
    return (pod for pod in pods if pod["status"]["phase"] not in ENDED)
