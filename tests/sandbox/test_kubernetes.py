"""The stand-in for Kubernetes as the official client sees it, over a real socket."""

import http.client
import json
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import urllib3
from kubernetes import client, watch
from kubernetes.client.exceptions import ApiException

from sandbox.kubernetes.objects import PODS
from tests.kubernetes import IMAGE, NAMESPACE, TOKEN, Standin, standin
from tests.patience import PATIENCE, wait_for

__all__ = ["standin"]

Watch: Any = watch.Watch  # without types, unlike the rest of the client
LISTENS = "trap 'echo asked; exit 75' TERM; echo here; while :; do sleep 0.05; done"
DEAF = "trap 'echo asked' TERM; echo here; while :; do sleep 0.05; done"


@pytest.fixture(autouse=True)
def clear(standin: Standin) -> Iterator[None]:
    yield
    standin.clear()


def job(name: str, script: str, hosts: int = 1, gpus: int = 1, grace: int = 600, **spec: Any) -> dict[str, Any]:
    """An Indexed Job that runs a shell script on each host."""
    container: dict[str, Any] = {"name": "main", "image": IMAGE, "command": ["sh", "-c", script]}
    container["resources"] = {"limits": {"nvidia.com/gpu": str(gpus)}}
    pod: dict[str, Any] = {"restartPolicy": "Never", "terminationGracePeriodSeconds": grace, "containers": [container]}
    pod |= spec.pop("pod", {})
    container |= spec.pop("container", {})
    template = {"metadata": {"labels": {"run": name}}, "spec": pod}
    whole: dict[str, Any] = {"completions": hosts, "parallelism": hosts, "completionMode": "Indexed", "backoffLimit": 0}
    whole |= {"podReplacementPolicy": "Failed", "template": template} | spec
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "labels": {"run": name}}, "spec": whole}


def start(standin: Standin, name: str, script: str, **spec: Any) -> Any:
    return standin.batch.create_namespaced_job(NAMESPACE, job(name, script, **spec))


def pods(standin: Standin, name: str) -> list[Any]:
    return list(standin.core.list_namespaced_pod(NAMESPACE, label_selector=f"job-name={name}").items)


def condition(standin: Standin, name: str) -> str:
    """The condition in which a job has ended; empty while it has not."""
    conditions = standin.batch.read_namespaced_job(name, NAMESPACE).status.conditions or []
    return next((f"{each.type} {each.reason}" for each in conditions if each.type in ("Complete", "Failed")), "")


def running(standin: Standin, name: str, hosts: int = 1) -> list[Any]:
    def all_here() -> bool:
        found = pods(standin, name)
        return len(found) == hosts and all("here" in said(standin, pod) for pod in found)

    wait_for(all_here, "pods that run")
    return pods(standin, name)


def said(standin: Standin, pod: Any) -> str:
    if pod.status.phase == "Pending":
        return ""
    return str(standin.core.read_namespaced_pod_log(pod.metadata.name, NAMESPACE))


def refused(call: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
    """The `Status` with which a call is refused."""
    with pytest.raises(ApiException) as caught:
        call(*arguments, **options)
    status: dict[str, Any] = json.loads(caught.value.body or "")
    assert (status["kind"], status["apiVersion"], status["status"]) == ("Status", "v1", "Failure")
    assert status["code"] == caught.value.status
    return status


def test_an_indexed_job_runs_a_pod_for_each_index_and_completes(standin: Standin) -> None:
    start(standin, "two", 'echo "$JOB_COMPLETION_INDEX of $HOME"', hosts=2)
    wait_for(lambda: condition(standin, "two"), "the end")
    assert condition(standin, "two") == "Complete CompletionsReached"
    found = pods(standin, "two")
    assert sorted(said(standin, pod).split()[0] for pod in found) == ["0", "1"]
    assert len({said(standin, pod).split()[2] for pod in found}) == 2, "each has a folder of its own"
    assert {pod.metadata.labels["batch.kubernetes.io/job-completion-index"] for pod in found} == {"0", "1"}
    assert {pod.spec.hostname for pod in found} == {"two-0", "two-1"}
    assert {pod.status.container_statuses[0].state.terminated.exit_code for pod in found} == {0}
    status = standin.batch.read_namespaced_job("two", NAMESPACE).status
    assert (status.succeeded, status.completed_indexes, status.active) == (2, "0,1", 0)


def test_one_failed_pod_ends_the_job_and_asks_the_others_to_stop(standin: Standin) -> None:
    script = f'[ "$JOB_COMPLETION_INDEX" = 0 ] && exit 3; {LISTENS}'
    start(standin, "fails", script, hosts=2)
    wait_for(lambda: condition(standin, "fails"), "the end")
    assert condition(standin, "fails") == "Failed BackoffLimitExceeded"
    wait_for(lambda: len(pods(standin, "fails")) == 1, "the other pod's end")
    assert pods(standin, "fails")[0].status.container_statuses[0].state.terminated.exit_code == 3


def test_a_deleted_job_keeps_its_pods_unless_it_is_told_otherwise(standin: Standin) -> None:
    start(standin, "orphan", LISTENS)
    running(standin, "orphan")
    standin.batch.delete_namespaced_job("orphan", NAMESPACE)
    assert refused(standin.batch.read_namespaced_job, "orphan", NAMESPACE)["reason"] == "NotFound"
    assert [pod.status.phase for pod in pods(standin, "orphan")] == ["Running"]


def test_a_job_that_is_deleted_in_the_foreground_is_there_until_its_pods_have_ended(standin: Standin) -> None:
    start(standin, "stop", "trap 'sleep 1; exit 75' TERM; echo here; while :; do sleep 0.05; done")
    running(standin, "stop")
    standin.batch.delete_namespaced_job("stop", NAMESPACE, propagation_policy="Foreground", grace_period_seconds=0)
    found = standin.batch.read_namespaced_job("stop", NAMESPACE)
    assert found.metadata.deletion_timestamp is not None
    assert found.metadata.finalizers == ["foregroundDeletion"]
    last = 0

    def gone() -> bool:
        nonlocal last
        for pod in pods(standin, "stop"):
            ended = (pod.status.container_statuses or [])[0].state.terminated
            last = ended.exit_code if ended else last
        return not standin.batch.list_namespaced_job(NAMESPACE).items

    wait_for(gone, "the end of the job", every=0.01)
    assert pods(standin, "stop") == [], "with its pods their exit codes are gone"


def test_a_deaf_pod_is_killed_when_its_grace_is_over_and_a_later_grace_shortens_it(standin: Standin) -> None:
    start(standin, "deaf", DEAF, grace=600)
    [pod] = running(standin, "deaf")
    with watching(standin, "deaf") as events:
        standin.core.delete_namespaced_pod(pod.metadata.name, NAMESPACE)
        wait_for(lambda: "asked" in said(standin, pod), "SIGTERM")
        assert pods(standin, "deaf")[0].metadata.deletion_timestamp is not None
        standin.core.delete_namespaced_pod(pod.metadata.name, NAMESPACE, grace_period_seconds=1)
        wait_for(lambda: condition(standin, "deaf"), "the end")
        wait_for(lambda: events and events[-1][0] == "DELETED", "the pod's end")
    assert events[-1][1].status.container_statuses[0].state.terminated.exit_code == 128 + signal.SIGKILL


def test_names_of_the_headless_service_lead_to_the_pods(standin: Standin) -> None:
    pod = {"subdomain": "meets"}
    start(standin, "meets", "echo here at meets-0.meets and meets-1.meets.lab.svc", hosts=2, pod=pod)
    wait_for(lambda: len(pods(standin, "meets")) == 2, "the pods")
    spec = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"job-name": "meets"}}
    standin.core.create_namespaced_service(NAMESPACE, {"metadata": {"name": "meets"}, "spec": spec})
    wait_for(lambda: condition(standin, "meets").startswith("Complete"), "the end")
    found = pods(standin, "meets")
    told = {said(standin, pod) for pod in found}
    ips = {pod.spec.hostname: pod.status.pod_ip for pod in found}
    assert told == {f"here at {ips['meets-0']} and {ips['meets-1']}\n"}
    assert len(set(ips.values())) == 2


def test_volumes_are_the_pods_own(standin: Standin) -> None:
    mount = {"volumeMounts": [{"name": "work", "mountPath": "/scratch"}], "workingDir": "/scratch"}
    pod = {"volumes": [{"name": "work", "emptyDir": {}}]}
    start(standin, "writes", "pwd; ls -A /scratch; touch /scratch/file", hosts=2, container=mount, pod=pod)
    wait_for(lambda: condition(standin, "writes").startswith("Complete"), "the end")
    folders = {said(standin, pod) for pod in pods(standin, "writes")}
    assert len(folders) == 2
    assert all(folder.startswith(f"{standin.root}/pods/") for folder in folders)


def test_what_fits_nowhere_is_pending_with_the_reason(standin: Standin) -> None:
    start(standin, "big", LISTENS, gpus=9)
    wait_for(lambda: pods(standin, "big") and pods(standin, "big")[0].status.conditions, "the reason")
    told = pods(standin, "big")[0].status.conditions[0]
    assert (told.type, told.status, told.reason) == ("PodScheduled", "False", "Unschedulable")
    assert told.message == "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."
    start(standin, "choosy", LISTENS, pod={"nodeSelector": {"gpu": "none"}})
    wait_for(lambda: pods(standin, "choosy") and pods(standin, "choosy")[0].status.conditions, "the reason")
    assert "didn't match" in pods(standin, "choosy")[0].status.conditions[0].message


def test_a_taint_wants_a_toleration(standin: Standin) -> None:
    taint = {"key": "donor", "value": "abci", "effect": "NoSchedule"}
    standin.do(lambda cluster: cluster.add_node("n3", taints=[taint], labels={"only": "here"}, gpus=8))
    chosen = {"nodeSelector": {"only": "here"}}
    start(standin, "shy", "true", pod=chosen)
    wait_for(lambda: pods(standin, "shy") and pods(standin, "shy")[0].status.conditions, "the reason")
    assert "untolerated taint {donor: abci}" in pods(standin, "shy")[0].status.conditions[0].message
    start(standin, "bold", "true", pod=chosen | {"tolerations": [{"key": "donor", "operator": "Exists"}]})
    wait_for(lambda: condition(standin, "bold") == "Complete CompletionsReached", "the end")


def test_a_quota_lets_no_pod_be_created_which_an_event_says(standin: Standin) -> None:
    standin.do(lambda cluster: setattr(cluster.jobs, "quota", 0))
    start(standin, "poor", "true")
    selector = "involvedObject.kind=Job,involvedObject.name=poor"
    wait_for(lambda: standin.core.list_namespaced_event(NAMESPACE, field_selector=selector).items, "the event")
    told = standin.core.list_namespaced_event(NAMESPACE, field_selector=selector).items[0]
    assert (told.reason, "exceeded quota" in told.message) == ("FailedCreate", True)
    assert pods(standin, "poor") == []
    standin.do(lambda cluster: setattr(cluster.jobs, "quota", None))
    wait_for(lambda: condition(standin, "poor") == "Complete CompletionsReached", "the end")


def test_a_queue_of_kueues_suspends_a_job_until_it_admits_it(standin: Standin) -> None:
    standin.do(lambda cluster: cluster.jobs.held.add("gpus"))
    held = job("held", "true")
    held["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "gpus"
    standin.batch.create_namespaced_job(NAMESPACE, held)
    wait_for(lambda: standin.batch.read_namespaced_job("held", NAMESPACE).status.conditions, "the condition")
    found = standin.batch.read_namespaced_job("held", NAMESPACE)
    assert (found.spec.suspend, found.status.conditions[0].type) == (True, "Suspended")
    assert pods(standin, "held") == []
    standin.do(lambda cluster: cluster.jobs.held.clear())
    wait_for(lambda: condition(standin, "held") == "Complete CompletionsReached", "the end")


def test_pods_of_a_lost_node_live_on_and_never_end(standin: Standin) -> None:
    start(standin, "lost", LISTENS)
    [pod] = running(standin, "lost")
    standin.do(lambda cluster: cluster.lose(pod.spec.node_name))
    [seen] = pods(standin, "lost")
    assert seen.status.phase == "Running"
    assert seen.metadata.deletion_timestamp is not None
    assert "DeletionByTaintManager" in {each.reason for each in seen.status.conditions}
    assert condition(standin, "lost") == ""
    assert "asked" not in said(standin, seen)
    standin.core.delete_namespaced_pod(pod.metadata.name, NAMESPACE, grace_period_seconds=0)
    assert pod.metadata.name not in {each.metadata.name for each in pods(standin, "lost")}, "the job makes a new one"


@pytest.mark.parametrize(
    ("container", "reason"),
    [
        ({"image": "elsewhere:1"}, "ImagePullBackOff"),
        ({"envFrom": [{"secretRef": {"name": "none"}}]}, "CreateContainerConfigError"),
    ],
)
def test_a_container_that_cannot_start_says_why(standin: Standin, container: dict[str, Any], reason: str) -> None:
    start(standin, "waits", "true", container=container)

    def waiting() -> str:
        [*found] = pods(standin, "waits")
        statuses = found[0].status.container_statuses if found else None
        return str(statuses[0].state.waiting.reason) if statuses else ""

    wait_for(lambda: waiting() == reason, "the reason")


def test_a_secret_reaches_the_environment(standin: Standin) -> None:
    standin.core.create_namespaced_secret(NAMESPACE, {"metadata": {"name": "keys"}, "stringData": {"KEY": "value"}})
    start(standin, "knows", 'echo "$KEY"', container={"envFrom": [{"secretRef": {"name": "keys"}}]})
    wait_for(lambda: condition(standin, "knows"), "the end")
    assert said(standin, pods(standin, "knows")[0]) == "value\n"


def test_a_secret_is_told_encoded_and_may_be_immutable(standin: Standin) -> None:
    core = standin.core
    body = {"metadata": {"name": "keys"}, "stringData": {"KEY": "value"}, "immutable": True}
    made = core.create_namespaced_secret(NAMESPACE, body)
    assert (made.data, made.string_data, made.type) == ({"KEY": "dmFsdWU="}, None, "Opaque")
    assert refused(core.create_namespaced_secret, NAMESPACE, body)["reason"] == "AlreadyExists"
    other = {"stringData": {"KEY": "another"}}
    assert refused(core.patch_namespaced_secret, "keys", NAMESPACE, other)["details"]["causes"][0]["field"] == "data"
    for data, code in (({"KEY": "no base64!"}, 400), ({"a key": ""}, 422), ({"KEY": "YWFh" * 2**19}, 422)):
        wrong = {"metadata": {"name": "wrong"}, "data": data}
        assert refused(core.create_namespaced_secret, NAMESPACE, wrong)["code"] == code
    assert core.read_namespaced_secret("keys", NAMESPACE).data == {"KEY": "dmFsdWU="}
    core.delete_namespaced_secret("keys", NAMESPACE)
    assert core.list_namespaced_secret(NAMESPACE).items == []


def test_a_pod_waits_for_the_key_of_a_secret_which_goes_with_the_job(standin: Standin) -> None:
    key = {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "KEY"}}}
    owner = start(standin, "waits", 'echo "here $KEY"; sleep 600', container={"env": [key]})

    def reason() -> str:
        found = pods(standin, "waits")
        statuses = found[0].status.container_statuses if found else None
        return str(statuses[0].state.waiting and statuses[0].state.waiting.message) if statuses else ""

    wait_for(lambda: "not found" in reason(), "the reason")
    reference = {"apiVersion": "batch/v1", "kind": "Job", "name": "waits", "uid": owner.metadata.uid}
    for content in ({"OTHER": "a"}, {"KEY": "value"}):
        secret = {"metadata": {"name": "keys", "ownerReferences": [reference]}, "stringData": content}
        standin.core.create_namespaced_secret(NAMESPACE, secret)
        if "KEY" not in content:
            wait_for(lambda: "couldn't find key KEY" in reason(), "the reason")
            standin.core.delete_namespaced_secret("keys", NAMESPACE)
    [pod] = running(standin, "waits")
    assert said(standin, pod) == "here value\n"
    standin.batch.delete_namespaced_job("waits", NAMESPACE, propagation_policy="Foreground")
    wait_for(lambda: not standin.core.list_namespaced_secret(NAMESPACE).items, "the end of the Secret")


def test_a_secret_may_be_a_volume(standin: Standin) -> None:
    items = [{"key": "KEY", "path": "key.txt"}]
    volume = {"volumes": [{"name": "keys", "secret": {"secretName": "keys", "items": items}}]}
    mount = {"volumeMounts": [{"name": "keys", "mountPath": "/keys"}], "workingDir": "/keys"}
    start(standin, "reads", "cat key.txt; ls", container=mount, pod=volume)
    wait_for(lambda: pods(standin, "reads") and pods(standin, "reads")[0].status.container_statuses, "a pod that waits")
    assert pods(standin, "reads")[0].status.container_statuses[0].state.waiting.reason == "ContainerCreating"
    body = {"metadata": {"name": "keys"}, "stringData": {"KEY": "value\n", "OTHER": "hidden"}}
    standin.core.create_namespaced_secret(NAMESPACE, body)
    wait_for(lambda: condition(standin, "reads"), "the end")
    assert said(standin, pods(standin, "reads")[0]) == "value\nkey.txt\n"


def test_refusals_are_status_objects(standin: Standin) -> None:
    batch = standin.batch
    status = refused(batch.read_namespaced_job, "none", NAMESPACE)
    assert (status["reason"], status["message"]) == ("NotFound", 'jobs.batch "none" not found')
    assert status["details"] == {"name": "none", "group": "batch", "kind": "jobs"}
    assert refused(batch.delete_namespaced_job, "none", NAMESPACE)["code"] == 404
    assert refused(batch.create_namespaced_job, "elsewhere", job("one", "true"))["message"].startswith("namespaces")
    first = start(standin, "one", LISTENS)
    status = refused(batch.create_namespaced_job, NAMESPACE, job("one", "true"))
    assert (status["code"], status["reason"]) == (409, "AlreadyExists")
    other = client.V1DeleteOptions(preconditions=client.V1Preconditions(uid="of-another"))
    status = refused(batch.delete_namespaced_job, "one", NAMESPACE, body=other)
    assert (status["code"], status["reason"]) == (409, "Conflict")
    stale = {"metadata": {"resourceVersion": "1", "labels": {"a": "b"}}}
    assert refused(batch.patch_namespaced_job, "one", NAMESPACE, stale)["reason"] == "Conflict"
    changed = {"spec": {"template": {"spec": {"restartPolicy": "OnFailure"}}}}
    status = refused(batch.patch_namespaced_job, "one", NAMESPACE, changed)
    assert (status["code"], status["details"]["causes"][0]["field"]) == (422, "spec.template")
    assert batch.read_namespaced_job("one", NAMESPACE).metadata.uid == first.metadata.uid


@pytest.mark.parametrize(
    ("change", "code", "what"),
    [
        ({"pod": {"restartPolicy": "Always"}}, 422, "spec.template.spec.restartPolicy"),
        ({"pod": {"containers": []}}, 422, "spec.template.spec.containers"),
        ({"completions": None}, 422, "spec.completions"),
        ({"completions": -1}, 422, "spec.completions"),
        ({"podReplacementPolicy": "Never"}, 422, "spec.podReplacementPolicy"),
        ({"container": {"volumeMounts": [{"name": "x", "mountPath": "/x"}]}}, 422, "volumeMounts[0].name"),
        ({"container": {"resources": {"requests": {"nvidia.com/gpu": "1"}}}}, 422, "resources.limits"),
        ({"container": {"resources": {"limits": {"memory": "lots"}}}}, 400, "quantities must match"),
    ],
)
def test_a_wrong_job_is_refused_with_the_field(standin: Standin, change: dict[str, Any], code: int, what: str) -> None:
    status = refused(start, standin, "wrong", "true", **change)
    assert (status["code"], what in status["message"]) == (code, True)
    assert standin.batch.list_namespaced_job(NAMESPACE).items == []


@pytest.mark.parametrize("name", ["Upper", "under_score", "x" * 64, ""])
def test_a_wrong_name_is_refused(standin: Standin, name: str) -> None:
    assert refused(start, standin, name, "true")["code"] == 422


def test_who_has_no_token_or_no_right_is_refused(standin: Standin) -> None:
    stranger = client.ApiClient(client.Configuration(host=standin.cluster.url))
    assert refused(client.BatchV1Api(stranger).list_namespaced_job, NAMESPACE)["reason"] == "Unauthorized"
    standin.do(lambda cluster: cluster.forbidden.add(("create", "jobs")))
    bounded = client.Configuration(host=standin.cluster.url, api_key={"authorization": f"Bearer {TOKEN}"})
    batch = client.BatchV1Api(client.ApiClient(bounded))
    status = refused(batch.create_namespaced_job, NAMESPACE, job("one", "true"))
    assert (status["code"], status["reason"]) == (403, "Forbidden")
    assert 'cannot create resource "jobs" in API group "batch" in the namespace "lab"' in status["message"]


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ("run=a", ["a"]),
        ("run in (a,b)", ["a", "b"]),
        ("run!=a", ["b", "c"]),
        ("run notin (a,b)", ["c"]),
        ("odd", ["b"]),
        ("!odd", ["a", "c"]),
        ("run in (a,b),odd", ["b"]),
        ("", ["a", "b", "c"]),
    ],
)
def test_labels_select(standin: Standin, selector: str, found: list[str]) -> None:
    for name in ("a", "b", "c"):
        body = job(name, LISTENS, suspend=True)
        body["metadata"]["labels"] |= {"odd": "yes"} if name == "b" else {}
        standin.batch.create_namespaced_job(NAMESPACE, body)
    listed = standin.batch.list_namespaced_job(NAMESPACE, label_selector=selector)
    assert [one.metadata.name for one in listed.items] == found
    assert refused(standin.batch.list_namespaced_job, NAMESPACE, label_selector="a b")["code"] == 400


def test_a_long_list_comes_in_pages(standin: Standin) -> None:
    for name in ("a", "b", "c"):
        start(standin, name, "true", suspend=True)
    first = standin.batch.list_namespaced_job(NAMESPACE, limit=2)
    rest = standin.batch.list_namespaced_job(NAMESPACE, limit=2, _continue=first.metadata._continue)
    assert [one.metadata.name for one in (*first.items, *rest.items)] == ["a", "b", "c"]
    assert (first.metadata.remaining_item_count, rest.metadata._continue) == (1, None)


class watching:  # noqa: N801 (used as a statement)
    """The events of a job's pods, as they come."""

    def __init__(self, standin: Standin, name: str) -> None:
        self._watch: Any = Watch()
        self._events: list[tuple[str, Any]] = []
        version = standin.core.list_namespaced_pod(NAMESPACE).metadata.resource_version
        options = {"label_selector": f"job-name={name}", "resource_version": version}

        def follow() -> None:
            for event in self._watch.stream(standin.core.list_namespaced_pod, NAMESPACE, **options):
                self._events.append((event["type"], event["object"]))
                if event["type"] == "DELETED":
                    return

        self._thread = threading.Thread(target=follow, daemon=True)

    def __enter__(self) -> list[tuple[str, Any]]:
        self._thread.start()
        return self._events

    def __exit__(self, *_: object) -> None:
        self._watch.stop()
        self._thread.join(PATIENCE)


def test_a_watch_tells_a_pods_life(standin: Standin) -> None:
    with watching(standin, "one") as events:
        start(standin, "other", "true")
        start(standin, "one", "true")
        wait_for(lambda: condition(standin, "one"), "the end")
        standin.batch.delete_namespaced_job("one", NAMESPACE, propagation_policy="Background")
        wait_for(lambda: events and events[-1][0] == "DELETED", "the last event")
    assert {event[1].metadata.labels["run"] for event in events} == {"one"}
    assert events[0][0] == "ADDED"
    phases = [event[1].status.phase for event in events]
    assert list(dict.fromkeys(phases)) == ["Pending", "Running", "Succeeded"]


def test_a_watch_from_a_forgotten_version_is_told_that_it_has_expired(standin: Standin) -> None:
    start(standin, "one", "true", suspend=True)
    version = standin.batch.list_namespaced_job(NAMESPACE).metadata.resource_version
    start(standin, "two", "true", suspend=True)
    standin.do(lambda cluster: cluster.objects.compact())
    stream = Watch().stream(standin.batch.list_namespaced_job, NAMESPACE, resource_version=version)
    with pytest.raises(ApiException) as caught:
        list(stream)
    assert caught.value.status == 410


def test_faults_are_answered_or_cut(standin: Standin) -> None:
    standin.fault("GET .*/jobs/", status=500)
    assert refused(standin.batch.read_namespaced_job, "one", NAMESPACE)["reason"] == "InternalError"
    standin.fault("GET .*/jobs/", status=429, retry_after=1)
    with pytest.raises(ApiException) as caught:
        standin.batch.read_namespaced_job("one", NAMESPACE, _request_timeout=PATIENCE)
    assert caught.value.status == 404, "the client's pool has waited and asked again"
    standin.fault("POST .*/jobs", cut=True)
    with pytest.raises((urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)):
        start(standin, "cut", "true", suspend=True)
    assert standin.batch.read_namespaced_job("cut", NAMESPACE).metadata.name == "cut", "the work was done"
    standin.fault("GET .*/jobs/", delay=PATIENCE, count=9)
    with pytest.raises(urllib3.exceptions.HTTPError):
        standin.batch.read_namespaced_job("cut", NAMESPACE, _request_timeout=0.2)


def test_nothing_of_a_pod_outlives_it(standin: Standin) -> None:
    start(standin, "parent", "sleep 600 & echo $!; echo here; wait")
    [pod] = running(standin, "parent")
    child = int(said(standin, pod).split()[0])
    standin.core.delete_namespaced_pod(pod.metadata.name, NAMESPACE, grace_period_seconds=0)
    wait_for(lambda: not alive(child), "the end of the child")
    assert standin.do(lambda cluster: cluster.objects.find(PODS, NAMESPACE, pod.metadata.name)) is None


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
