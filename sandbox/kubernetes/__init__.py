"""A stand-in for a Kubernetes cluster on loopback: an API server for Jobs, Pods, Services, Secrets and Events.

The official Python client talks to it over HTTP, unmodified. It stands in because no API server can be installed where
Stoa's tests run; `python -m tests.kubernetes_real` plays the same story on a real cluster. What it rests on:

| fact                                                                | source in the documentation of Kubernetes 1.34 |
|---------------------------------------------------------------------|------------------------------------------------|
| refusals are `Status` objects: 401, 403, 404, 409, 410, 422, 429    | API Conventions: Response Status Kind          |
| resourceVersion, watches, bookmarks, 410 Gone, pages of a list      | API Concepts: Efficient detection of changes   |
| a Job that is deleted through its API keeps its pods by default     | pkg/registry/batch/job/strategy.go; Jobs       |
| propagationPolicy: Orphan, Background, Foreground                   | Garbage Collection                             |
| a pod's grace: SIGTERM to its first process, then SIGKILL to all    | Pod Lifecycle: Termination of Pods             |
| gracePeriodSeconds of a Job is not that of its pods                 | API: DeleteOptions; Garbage Collection         |
| Indexed Jobs: labels, host names, JOB_COMPLETION_INDEX              | Jobs: Completion mode                          |
| `backoffLimit`, `podReplacementPolicy`, FailureTarget, then Failed  | Jobs: Pod backoff failure policy; replacement  |
| suspended Jobs have no pods; resuming starts new ones               | Jobs: Suspending a Job                         |
| a headless Service gives pods names; publishNotReadyAddresses       | DNS for Services and Pods                      |
| pods that fit nowhere are Pending, `Unschedulable`, with the reason | Assigning Pods to Nodes; Taints                |
| a quota lets no pod be created, which an event of the Job says      | Resource Quotas                                |
| pods of a lost node: DisruptionTarget, Terminating, never ended     | Nodes: Conditions; Disruptions                 |

Pods are processes of this host. Each has a folder of its own, a loopback address of its own, and no disk that another
one sees. Nothing isolates them: in a pod's command and environment, the paths of its volumes are replaced by folders
of its own, and names of the headless Service by addresses, so a pod that is named by a Service starts once that
exists. An image is a folder of programs. Not kept: probes, init containers, strategic merges of lists, roles (a test
may forbid a verb), server-side apply.
"""
