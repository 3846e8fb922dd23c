"""The story of the tests on a real Kubernetes cluster: jobs that run, stop, are adopted and are replaced.

    KUBECONFIG=… STOA_STORE=s3://… python -m tests.kubernetes_real --namespace stoa --image REGISTRY/stoa:TAG \\
      --lab https://lab.example:8443

The tests themselves have only a stand-in. This takes a namespace and a store made for it, and an image of this very
version; its jobs hold no GPU unless `--gpu-resource` names one, last for seconds, and are deleted at the end.
"""

import argparse
import secrets
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from broker.runners import donated_orders as orders
from broker.runners.base import JobSpec
from broker.runners.kubernetes import KubernetesRunner
from broker.store import Store
from projects.errors import InvalidError
from projects.settings import SettingsError, get_settings
from tests.patience import wait_for
from trainer.contract import Status

LISTENS = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); "
    "print('here', flush=True); time.sleep(600)"
)


class Story:
    """Jobs of one installation in a cluster, in folders of this run's own."""

    def __init__(self, root: Path, options: dict[str, str]) -> None:
        self._root, self._options = root, options
        self._mark = secrets.token_hex(6)
        self.runners: list[KubernetesRunner] = []

    def start(self, code: str, run: int, token: int = 1) -> tuple[KubernetesRunner, Path]:
        """Start a program as the job of an attempt."""
        folder = self._root / "runs" / str(run) / f"attempt-{token}"
        folder.mkdir(parents=True, exist_ok=True)
        place = f"runs/{run}-{self._mark}/attempt-{token}"
        spec = JobSpec(1, 1, seconds=300, grace_seconds=30, lease_seconds=12, store_folder=place, options=self._options)
        runner = KubernetesRunner(spec)
        runner.start(["python", "-c", code], folder, "")
        self.runners.append(runner)
        return runner, folder

    def running(self, runner: KubernetesRunner, folder: Path) -> None:
        """Wait until a job's program has said something."""

        def here() -> bool:
            status = runner.poll()
            if status is not None:
                refuse(f"A job that was to run has ended with {status}: {runner.ended or said(folder)}")
            print(f"  {runner.waiting or 'running'}          ", end="\r", flush=True)
            return "here" in said(folder)

        wait_for(here, "a job that runs", every=1)

    def over(self, runner: KubernetesRunner) -> int | None:
        """The exit status of a job, once it has ended."""
        wait_for(lambda: runner.poll() is not None, "the end of a job", every=1)
        return runner.poll()

    def runs_to_its_end(self) -> None:
        runner, folder = self.start("print('here')", 1)
        assert self.over(runner) == 0, runner.ended
        assert "here" in said(folder)
        assert runner.seconds() >= 0

    def stops_with_its_own_word(self) -> None:
        runner, folder = self.start(LISTENS, 2)
        self.running(runner, folder)
        runner.stop()
        assert self.over(runner) == Status.STOPPED, runner.ended

    def is_created_once_and_adopted(self) -> None:
        runner, folder = self.start(LISTENS, 3)
        self.running(runner, folder)
        again, _ = self.start(LISTENS, 3)
        assert again.uid == runner.uid
        successor = KubernetesRunner(runner.spec)
        successor.adopt(runner.process(), folder)
        assert (successor.poll(), successor.uid) == (None, runner.uid)
        successor.kill()
        assert successor.poll() is not None

    def gives_way_to_the_next_attempt(self) -> None:
        earlier, folder = self.start(LISTENS, 4)
        self.running(earlier, folder)
        later, later_folder = self.start(LISTENS, 4, token=2)
        assert later.uid == ""
        self.running(later, later_folder)
        assert self.over(earlier) is not None
        if self._options["lab"]:
            order = orders.read_order(Store(get_settings()), earlier.spec.store_folder)
            assert order is not None
            assert order.over, "the earlier attempt's key still opens its folder"

    def end(self) -> None:
        """End all that is left."""
        for runner in self.runners:
            runner.kill()


def said(folder: Path) -> str:
    log = folder / "trainer.log"
    return log.read_text() if log.exists() else ""


def refuse(sentence: str) -> NoReturn:
    """End with a sentence and status 2."""
    print(sentence, file=sys.stderr)
    sys.exit(2)


def main() -> None:
    """Play the story."""
    parser = argparse.ArgumentParser(prog="python -m tests.kubernetes_real", description=__doc__)
    for option in KubernetesRunner.pool_options:
        default = "" if option.name == "gpu_resource" else option.default
        parser.add_argument(f"--{option.name.replace('_', '-')}", default=default, help=option.help)
    try:
        options = KubernetesRunner.checked_options(vars(parser.parse_args()))
        if not get_settings().store:
            refuse("Set STOA_STORE to an object store that this host and the cluster's pods reach.")
        check = KubernetesRunner.check(options)
        if check.advice:
            refuse(f"{check.found}; {check.advice[0].lower()}{check.advice[1:]}")
    except (InvalidError, SettingsError) as error:
        refuse(str(error))
    with tempfile.TemporaryDirectory(prefix="stoa-real-") as root:
        story = Story(Path(root), options)
        steps: list[Callable[[], None]] = [
            story.runs_to_its_end,
            story.stops_with_its_own_word,
            story.is_created_once_and_adopted,
            story.gives_way_to_the_next_attempt,
        ]
        try:
            for step in steps:
                began = time.monotonic()
                step()
                print(f"a job {step.__name__.replace('_', ' ')}: well, in {time.monotonic() - began:.0f} s")
        finally:
            story.end()


if __name__ == "__main__":
    main()
