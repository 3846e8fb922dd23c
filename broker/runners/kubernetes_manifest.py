"""The manifests of an attempt on Kubernetes: an Indexed Job with a pod for each node, a headless Service, and a Secret.

But for the Secret they hold no secret, and nothing that a member typed: what the trainer is to do lies in the store, in
the attempt's own folder, where `broker/runners/pod.py` reads it.
"""

import math
from collections.abc import Mapping
from typing import Any

from broker.runners.base import PORT, SIGNAL_SECONDS, JobSpec

Json = dict[str, Any]

INSTALLATION, RUN, ATTEMPT = "stoa/installation", "stoa/run", "stoa/attempt"
"""Labels of the Job and its pods, by which a supervisor finds them again."""
QUEUE = "kueue.x-k8s.io/queue-name"
FOLDER = "/stoa"
"""Where a pod keeps the folders of runs: a disk of its own, gone with it."""
CERTIFICATE, CERTIFICATES = "lab.pem", "/stoa-lab"
"""The lab's own certificate in the attempt's Secret, and where the pods have it."""
USER = 1000
"""The user of the image (Dockerfile)."""
KEY = "STOA_STORE_SECRET"
"""The variable of the pods that holds the key of their attempt, and its name in the attempt's Secret."""
KEPT_SECONDS = 86_400
"""How long an ended Job is kept for an operator to look at."""


def labels(installation: str, run: int, token: int) -> Json:
    """The labels of everything that belongs to an attempt."""
    own = {INSTALLATION: installation, RUN: str(run), ATTEMPT: str(token)}
    return {"app.kubernetes.io/managed-by": "stoa", **own}


def job(spec: JobSpec, name: str, labels: Json, store: Mapping[str, str]) -> Json:
    """The Job of an attempt. `store` are the variables that say where the store is, without its keys."""
    queue = {QUEUE: spec.options["local_queue"]} if spec.options.get("local_queue") else {}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": {**labels, **queue}},
        "spec": {
            "completionMode": "Indexed",
            "completions": spec.nodes,
            "parallelism": spec.nodes,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "ttlSecondsAfterFinished": KEPT_SECONDS,
            **({"suspend": True} if queue else {}),
            "template": {"metadata": {"labels": labels}, "spec": _pod(spec, name, store)},
        },
    }


def service(name: str, labels: Json, uid: str) -> Json:
    """The Service that gives the pods of a Job their names."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _owned(name, labels, uid),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,  # the nodes meet before any of them is ready
            "selector": {"batch.kubernetes.io/job-name": name},
            "ports": [{"name": "rendezvous", "port": PORT}],
        },
    }


def secret(name: str, labels: Json, uid: str, key: str, certificate: str = "") -> Json:
    """The Secret with the key of an attempt, for which the pods of its Job wait, and the lab's own certificate."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": _owned(name, labels, uid),
        "type": "Opaque",
        "immutable": True,
        "stringData": {KEY: key, **({CERTIFICATE: certificate} if certificate else {})},
    }


def _owned(name: str, labels: Json, uid: str) -> Json:
    """The metadata of what has the name of a Job and goes with it."""
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid}
    return {"name": name, "labels": labels, "ownerReferences": [owner]}


def _pod(spec: JobSpec, name: str, store: Mapping[str, str]) -> Json:
    options = spec.options
    claim, _, mount = options.get("claim", "").partition(":")
    volumes: list[Json] = [
        {"name": "stoa", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
        *([{"name": "claim", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}] if claim else []),
    ]
    mounts: list[Json] = [
        {"name": "stoa", "mountPath": FOLDER},
        {"name": "shm", "mountPath": "/dev/shm"},  # where the processes of a host exchange data
        *([{"name": "claim", "mountPath": mount, "readOnly": True}] if claim else []),
    ]
    container: Json = {
        "name": "trainer",
        "image": options["image"],
        "command": ["python", "-m", "broker.runners.pod", spec.store_folder, f"{name}-0.{name}"],
        "workingDir": FOLDER,
        "env": [{"name": key, "value": value} for key, value in {**store, "STOA_POD_FOLDER": FOLDER}.items()],
        "resources": _resources(spec),
        "volumeMounts": mounts,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    if options.get("lab_certificate"):
        items = [{"key": CERTIFICATE, "path": CERTIFICATE}]
        volumes.append({"name": "lab", "secret": {"secretName": name, "items": items}})
        mounts.append({"name": "lab", "mountPath": CERTIFICATES, "readOnly": True})
        container["env"].append({"name": "SSL_CERT_FILE", "value": f"{CERTIFICATES}/{CERTIFICATE}"})
    if options.get("lab"):
        container["env"].append({"name": KEY, "valueFrom": {"secretKeyRef": {"name": name, "key": KEY}}})
    elif keys := options.get("store_secret"):
        container["envFrom"] = [{"secretRef": {"name": keys}}]
    pod: Json = {
        "restartPolicy": "Never",
        "subdomain": name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": math.ceil(spec.grace_seconds),
        "activeDeadlineSeconds": math.ceil(spec.seconds + spec.grace_seconds + SIGNAL_SECONDS),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": volumes,
    }
    if account := options.get("service_account"):
        pod["serviceAccountName"] = account
    if selector := options.get("node_selector"):
        pod["nodeSelector"] = dict(each.split("=", 1) for each in selector.split(","))
    if tolerations := options.get("tolerations"):
        pod["tolerations"] = [_toleration(each) for each in tolerations.split(",")]
    return pod


def _resources(spec: JobSpec) -> Json:
    """What each pod asks for, as strings: the client refuses numbers."""
    gpus, asked = spec.node_gpus, {}
    if cpus := spec.options.get("pod_cpus"):
        asked["cpu"] = str(int(cpus) * gpus)
    if memory := spec.options.get("pod_memory_gib"):
        asked["memory"] = f"{int(memory) * gpus}Gi"
    resource = spec.options.get("gpu_resource", "")
    limits = {
        **({"memory": asked["memory"]} if "memory" in asked else {}),
        **({resource: str(gpus)} if resource else {}),
    }
    return {key: told for key, told in (("requests", asked), ("limits", limits)) if told}


def _toleration(text: str) -> Json:
    """A toleration written as `key`, `key:Effect`, `key=value` or `key=value:Effect`."""
    rest, _, effect = text.partition(":")
    key, equal, value = rest.partition("=")
    how = {"operator": "Equal", "value": value} if equal else {"operator": "Exists"}
    return {"key": key, **how, **({"effect": effect} if effect else {})}
