"""The stand-in for a Kubernetes cluster at work in a thread of the tests, and what a test asks of it."""

import asyncio
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
from kubernetes import client, config

from sandbox.faults import Fault
from sandbox.kubernetes.objects import EVENTS, JOBS, PODS, SECRETS, SERVICES
from sandbox.kubernetes.pods import Running, begin
from sandbox.kubernetes.server import Cluster, serve
from tests import forked
from tests.patience import PATIENCE, wait_for

NAMESPACE = "lab"
IMAGE = "stoa:standin"
POD = "broker.runners.pod"
TOKEN, ADMIN = "a-token-of-a-service-account", "a-token-of-an-operator"
T = TypeVar("T")
_new_client: Any = config.new_client_from_config  # without types, unlike the rest of the client


class Standin:
    """The running stand-in: two nodes of eight GPUs. `kubeconfig` leads Stoa to it; a test may do all.

    Pods are forked, which spares the seconds of their imports, and so are the trainers in them where a test says so
    (`fork_trainers`). A test that looks into a pod's own process needs one that begins anew (`begin_anew`).
    """

    def __init__(self, root: Path, programs: Path) -> None:
        self.root = root
        self._server: forked.Server | None = forked.PARTS
        self._begun: list[psutil.Process] = []
        self._python = Path(sys.executable)
        self.cluster = Cluster(root, TOKEN, ADMIN, {IMAGE: programs})
        self.cluster.pods.begin = self._begin
        self.kubeconfig = root / "kubeconfig"
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        ready = threading.Event()

        async def run() -> None:
            self.cluster.add_namespace(NAMESPACE)
            for name in ("n1", "n2"):
                self.cluster.add_node(name, gpus=8, labels={"gpu": "h200", "name": name})
            async with serve(self.cluster):
                self.kubeconfig.write_text(self.cluster.kubeconfig(NAMESPACE, TOKEN))
                (root / "operator").write_text(self.cluster.kubeconfig(NAMESPACE, ADMIN))
                ready.set()
                await self._ended.wait()

        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[run()])
        self._thread.start()
        assert ready.wait(PATIENCE)
        self.api = _new_client(str(root / "operator"))
        self.batch: Any = client.BatchV1Api(self.api)
        self.core: Any = client.CoreV1Api(self.api)

    def use(self, python: Path) -> None:
        """Let `python` in the image be this one."""
        forked.PARTS.warm()  # the API server answers nobody while a pod waits for its first process
        self._python = python
        script = self.root / "programs" / "python"
        script.write_text(f'#!/bin/sh\nexec "{python}" "$@"\n')
        script.chmod(0o755)

    def fork_trainers(self) -> None:
        """Have the trainers in pods forked until the test's end, too: pods begin in a process that has PyTorch."""
        forked.TRAINERS.warm()
        self._server = forked.TRAINERS

    def begin_anew(self) -> None:
        """Have pods begin as a Python does until the test's end, with an environment and a command line to be seen."""
        self._server = None

    def pods(self) -> list[psutil.Process]:
        """The first process of each pod that has not ended, whether its node is lost or not."""
        found = []
        for process in list(self._begun):
            with suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def _begin(self, command: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path) -> Running:
        process = self._started(command, folder, environment, log)
        with suppress(psutil.NoSuchProcess):
            self._begun.append(psutil.Process(process.pid))
        return process

    def _started(self, command: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path) -> Running:
        if self._server is None or command[1:3] != ["-m", POD]:
            return begin(command, folder, environment, log)
        into = f"import os; os.chdir({str(folder)!r})"
        process = forked.module(
            POD,
            log,
            environment,
            *command[3:],
            python=self._python,
            session=True,
            before=into,
            server=self._server,
            forks=True,
        )
        with suppress(ProcessLookupError):  # it has ended already
            while process.poll() is None and os.getpgid(process.pid) != process.pid:
                time.sleep(0.001)
        return process

    def do(self, what: Callable[[Cluster], T]) -> T:
        """The result of something done to the cluster, between two looks of its controllers."""

        async def done() -> T:
            return what(self.cluster)

        return asyncio.run_coroutine_threadsafe(done(), self._loop).result(PATIENCE)

    def fault(self, pattern: str, **what: object) -> None:
        """Order a fault of the next requests whose “METHOD /path” matches."""
        self.do(lambda cluster: cluster.faults.ordered.append(Fault(pattern, **what)))  # type: ignore[arg-type]

    def clear(self) -> None:
        """Take away all jobs and pods with their processes, faults and bans, and put all nodes to work."""

        def clear(cluster: Cluster) -> None:
            cluster.faults.clear()
            cluster.forbidden.clear()
            self._server = forked.PARTS
            self._begun.clear()
            cluster.jobs.quota = None
            cluster.jobs.held.clear()
            cluster.pods.lost.clear()
            for job in cluster.objects.all(JOBS):
                cluster.jobs.delete(job, "Background")
            for pod in cluster.objects.all(PODS):
                cluster.pods.delete(pod, 0)
            for kind in (SERVICES, SECRETS, EVENTS):
                for one in cluster.objects.all(kind):
                    cluster.objects.remove(kind, one)

        self.do(clear)
        wait_for(lambda: not self.do(lambda cluster: cluster.objects.all(PODS)), "an empty cluster")

    def stop(self) -> None:
        """End it, with the processes of all pods."""
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(PATIENCE)
        self.api.close()


@pytest.fixture(scope="module")
def standin() -> Iterator[Standin]:
    """The stand-in, with nothing in it and no program in its image."""
    root = Path(tempfile.mkdtemp(prefix="stoa-kubernetes-"))
    (root / "programs").mkdir()
    running = Standin(root, root / "programs")
    try:
        yield running
    finally:
        running.stop()
        shutil.rmtree(root, ignore_errors=True)
