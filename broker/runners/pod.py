"""What runs in each pod of an attempt: it fetches what the trainer needs, starts it, and carries what it writes away.

`python -m broker.runners.pod FOLDER HEAD`, where FOLDER is the attempt's in the store, and HEAD the name of
the pod of index 0, where the others meet it. The pod's disk goes with it, and nobody can ask it for anything: all that
outlives it is in the store, `outcome.json` last. The trainer's environment holds no key of the store.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TypeVar

import structlog
import yaml

from broker import corpus_copies
from broker import store as stores
from broker.pieces import Growing
from broker.runners import causes, task
from broker.runners.base import PASSED_ON, PORT
from broker.runners.task import TASK_FILE, Task
from broker.store import ClosedError, DamagedError, Store, StoreError
from projects import log as log_format
from projects.settings import get_settings
from trainer import contract
from trainer.contract import Outcome, Status

EVERY_SECONDS = 2.0
POLL_SECONDS = 0.1
LOOK_SECONDS = 10.0
"""How often a pod looks whether the lab still takes what it sends, though it has nothing to send."""
GIVEN_UP = 69
"""The exit status of a pod whose attempt the lab has given up; EX_UNAVAILABLE of sysexits.h.

It has the number of `Status.REFUSED` but another meaning: nobody reads it for the outcome of the attempt, which the lab
has closed already, while REFUSED is what a runner reports for a trainer that it could not start.
"""
DRIVERS = ("CUDA_", "NVIDIA_", "NCCL_", "HIP_", "HSA_", "ROCR_", "UCX_", "FI_", "LD_LIBRARY_PATH")
"""Beginnings of the names of variables that an image sets for the libraries of its GPUs."""
T = TypeVar("T")

log = structlog.get_logger()


class StoppedError(Exception):
    """The pod was asked to end."""


class UnpreparedError(Exception):
    """The data could not be prepared; how that ended, and why in a sentence."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Pod:
    """One pod of an attempt; `index` is the node's number. Node 0 writes events, checkpoints and the outcome; where
    another cannot begin, that one writes the outcome, as Kubernetes then ends node 0."""

    def __init__(self, store: Store, folder: str, head: str, index: int, place: Path) -> None:
        self.store, self.folder, self.head, self.index = store, folder, head, index
        self.place = place
        self.asked = False
        self.task = Task(command=[], out="", nodes=1, seconds=0)
        self.out = place
        self.process: subprocess.Popen[bytes] | None = None
        self.pushed: set[int] = set()
        self.looked_at = time.monotonic()

    def run(self) -> int:
        """The exit status of the pod."""
        try:
            return self.follow()
        except ClosedError:
            log.warning("the lab has given the attempt up")
            return GIVEN_UP

    def follow(self) -> int:
        """See the attempt through to its end; the exit status of the pod. Raises ClosedError."""
        try:
            if self.trying(lambda: self.store.read(f"{self.folder}/{contract.OUTCOME_FILE}")) is not None:
                return Status.STOPPED  # the attempt is over: a pod that was started once more may not go on with it
            self.prepare()
            status = self.train()
        except StoppedError:
            if self.index == 0:
                self.end(Outcome(status=Status.STOPPED, reason="it was asked to stop before it had begun"))
            return Status.STOPPED
        except UnpreparedError as error:
            transient = error.status != Status.CONFIG
            return self.end(Outcome(status=error.status, reason=error.reason, transient=transient))
        except DamagedError as error:
            return self.end(Outcome(status=Status.FAILED, reason=str(error), transient=True))
        except (OSError, subprocess.SubprocessError) as error:
            reason = f"The pod could not be made ready: {error}."
            return self.end(Outcome(status=Status.FAILED, reason=reason, transient=True))
        return status

    def stop(self, _number: int = 0, _frame: FrameType | None = None) -> None:
        """Ask the trainer for a checkpoint and its end."""
        self.asked = True
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def trying(self, work: Callable[[], T]) -> T:
        """The result of work with the store, tried until it succeeds.

        Raises StoppedError, ClosedError and DamagedError.
        """
        while True:
            if self.asked:
                raise StoppedError
            try:
                return work()
            except (ClosedError, DamagedError):
                raise
            except StoreError as error:
                log.warning("the store could not be used; trying again", error=str(error))
                self.sleep(EVERY_SECONDS)

    def sleep(self, seconds: float) -> None:
        """Wait, though not on after the pod was asked to end."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.asked:
            time.sleep(POLL_SECONDS)

    def prepare(self) -> None:
        """Fetch the job, its files and the folders that it goes on from."""
        told = self.trying(lambda: self.store.read(f"{self.folder}/{TASK_FILE}"))
        if told is None:
            raise DamagedError("The store has lost what the trainer was to do.")
        self.task = Task.model_validate_json(told)
        self.out = self.place / self.task.out
        self.out.mkdir(parents=True, exist_ok=True)
        for name, text in self.task.files.items():
            path = self.place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(task.placed(text, self.place) if path.name == contract.CONFIG_FILE else text)
        for folder, name in self.task.folders.items():
            target = self.place / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if folder.startswith(f"{corpus_copies.FOLDER}/"):
                self.trying(lambda target=target: self.copy(target))  # type: ignore[misc]
            elif not self.trying(lambda folder=folder, target=target: self.store.pull(folder, target)):  # type: ignore[misc]
                raise DamagedError(f"The store has lost {folder}, from which the run was to go on.")

    def copy(self, target: Path) -> None:
        """Fetch the copy of a corpus, unless an earlier pod of this machine has."""
        corpus_copies.fetch(self.store, target.name, target.parent, lambda _: self.sleep(EVERY_SECONDS))

    def train(self) -> int:
        """Start the trainer and carry away what it writes; its exit status."""
        command = [task.in_pod(word, self.place) for word in self.task.command]
        self.place_data(command)
        if self.task.nodes > 1:
            self.meet()
            command += ["--hosts", str(self.task.nodes), "--host", str(self.index)]
            command += ["--rendezvous", f"{self.head}:{PORT}"]
        own_log = contract.LOG_FILE if self.index == 0 else f"trainer-{self.index}.log"
        with (self.out / own_log).open("ab") as out:
            self.process = subprocess.Popen(
                command, cwd=self.out, env=environment(), stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        if self.asked:
            self.process.terminate()
        names = [own_log] if self.index else [own_log, contract.METRICS_FILE]
        growing = [self.growing(name) for name in names]
        events = self.growing(contract.EVENTS_FILE)
        over = threading.Event()
        checkpoints = threading.Thread(target=self.push_checkpoints, args=[over])
        if self.index == 0:
            checkpoints.start()
        until, pause = time.monotonic() + self.task.seconds, POLL_SECONDS
        while (status := self.process.poll()) is None:
            self.carry(growing, events)
            if time.monotonic() > until:
                self.stop()  # no supervisor has stopped it at its time limit
            pause = min(2 * pause, EVERY_SECONDS)  # the first lines are soon there
            self.wait(pause)
        over.set()
        if self.index == 0:
            checkpoints.join()
            if status == Status.DONE:
                for name, folder in self.task.results.items():
                    self.insisting(lambda name=name, folder=folder: self.store.push(self.place / name, folder))  # type: ignore[misc]
            return self.settle(status, [*growing, events])
        self.carry(growing, events)
        return status if status >= 0 else 128 - status

    def meet(self) -> None:
        """Wait until the name of the pod of index 0 leads somewhere; it does once that pod has an address."""
        while not self.asked:
            try:
                socket.getaddrinfo(self.head, PORT)
            except OSError:
                self.sleep(POLL_SECONDS)
            else:
                return
        raise StoppedError

    def place_data(self, command: Sequence[str]) -> None:
        """On several nodes, prepare data that are not prepared yet: none sees the disk of node 0."""
        if "train" not in command or self.task.nodes == 1:
            return
        config, prepared = Path(command[command.index("train") + 1]), self.place / "prepared"
        values = yaml.safe_load(config.read_text())
        if values["data"].get("prepared"):
            return
        prepare = [*command[: command.index("train")], "data", "prepare", str(config), "--out", str(prepared)]
        with tempfile.TemporaryFile() as said:
            self.process = subprocess.Popen(prepare, env=environment(), stdin=subprocess.DEVNULL, stderr=said)
            if self.asked:
                self.process.terminate()
            status = self.process.wait()
            said.seek(0)
            text = said.read().decode(errors="replace")
        sys.stderr.write(text)
        if self.asked:
            raise StoppedError
        if status:
            how = f"signal {-status}" if status < 0 else f"status {status}"
            lines = [f"the preparation of the data was ended by {how}", *filter(str.strip, text.splitlines())]
            raise UnpreparedError(_as_status(status), lines[-1] if status > 0 else lines[0])
        values["data"]["prepared"] = str(prepared)
        config.write_text(yaml.safe_dump(values, sort_keys=False))

    def wait(self, seconds: float) -> None:
        """Wait for the trainer's end, at most so long."""
        assert self.process is not None
        until = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < until:
            time.sleep(POLL_SECONDS)

    def growing(self, name: str) -> Growing:
        """A file of the trainer's folder that grows, and goes to the store as it does."""
        return Growing(self.store, self.out / name, f"{self.folder}/{name}")

    def carry(self, growing: Sequence[Growing], events: Growing) -> None:
        """Send what is new. Events wait for the checkpoint that they tell of, so that what is told is in the store."""
        try:
            for file in growing:
                file.carry()
            if self.index == 0:
                events.carry(self.told())
            if time.monotonic() - self.looked_at > LOOK_SECONDS:
                self.looked_at = time.monotonic()
                self.store.size(f"{self.folder}/{TASK_FILE}")
        except ClosedError:
            self.give_up()
        except StoreError as error:
            log.warning("the store could not be used; trying again", error=str(error))

    def told(self) -> int:
        """The byte of the events up to which each checkpoint is in the store."""
        path, end = self.out / contract.EVENTS_FILE, 0
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
            if not line.endswith(b"\n") or self.waits(line):
                break
            end += len(line)
        return end

    def waits(self, line: bytes) -> bool:
        try:
            event = json.loads(line)
        except ValueError:
            return False
        return bool(event.get("event") == contract.Event.CHECKPOINT and event.get("step") not in self.pushed)

    def push_checkpoints(self, over: threading.Event) -> None:
        """Send each whole checkpoint until the trainer has ended and all are there."""
        while True:
            last = over.is_set()
            found = [
                path for path in contract.checkpoints(self.out) if contract.checkpoint_step(path) not in self.pushed
            ]
            for path in found:
                step = contract.checkpoint_step(path)
                assert step is not None
                try:
                    self.store.push(path, stores.checkpoint_folder(self.folder, step))
                    self.pushed.add(step)
                except ClosedError:
                    self.give_up()
                    return
                except (StoreError, OSError) as error:
                    log.warning("a checkpoint could not be sent; trying again", step=step, error=str(error))
                    break
            else:
                self.clear()
                if last:
                    return
            over.wait(POLL_SECONDS if not last else EVERY_SECONDS)

    def clear(self) -> None:
        """Remove the checkpoints that are in the store, but for the newest: the pod's disk is small."""
        for path in contract.checkpoints(self.out)[:-1]:
            if contract.checkpoint_step(path) in self.pushed:
                shutil.rmtree(path, ignore_errors=True)

    def give_up(self) -> None:
        """End the trainer at once: whatever it does is for nothing."""
        if self.process is not None:
            self.process.kill()

    def settle(self, status: int, growing: Sequence[Growing]) -> int:
        """Send all that is left, the outcome last: whoever finds that one finds everything."""
        path = self.out / contract.OUTCOME_FILE
        for file in growing:
            self.insisting(file.carry)
        sample = self.out / contract.SAMPLE_FILE
        if sample.exists():
            self.insisting(lambda: self.store.write(f"{self.folder}/{contract.SAMPLE_FILE}", sample.read_bytes()))
        if path.exists():
            self.say(path.read_bytes())
            return status if status >= 0 else 128 - status
        chosen = status in (Status.DONE, Status.STOPPED, Status.CONFIG)
        reason = None if chosen else causes.sentence(self.out, status)
        outcome = Outcome(
            status=_as_status(status), reason=reason, transient=status not in (Status.DONE, Status.CONFIG)
        )
        return self.end(outcome)

    def end(self, outcome: Outcome) -> int:
        """Say how the attempt has ended; the exit status of the pod."""
        self.say(outcome.model_dump_json().encode())
        return int(outcome.status)

    def say(self, outcome: bytes) -> None:
        """Put the outcome there, unless another pod has said why it could not begin."""
        name = f"{self.folder}/{contract.OUTCOME_FILE}"

        def put() -> None:
            if self.store.read(name) is None:
                self.store.write(name, outcome)

        self.insisting(put)

    def insisting(self, work: Callable[[], object]) -> None:
        """Do work with the store until it succeeds, or the pod is killed; raises ClosedError."""
        while True:
            try:
                work()
                return
            except ClosedError:
                raise
            except StoreError as error:
                log.warning("the store could not be used; trying again", error=str(error))
                time.sleep(EVERY_SECONDS)


def environment() -> dict[str, str]:
    """The trainer's environment."""
    return {key: value for key, value in os.environ.items() if key in PASSED_ON or key.startswith(DRIVERS)}


def _as_status(status: int) -> Status:
    try:
        return Status(status)
    except ValueError:
        return Status.FAILED


def main() -> None:
    """Be a pod."""
    log_format.configure()
    index = int(os.environ.get("JOB_COMPLETION_INDEX", "0"))
    place = Path(os.environ["STOA_POD_FOLDER"])
    pod = Pod(Store(get_settings()), sys.argv[1], sys.argv[2], index, place)
    signal.signal(signal.SIGTERM, pod.stop)
    sys.exit(pod.run())


if __name__ == "__main__":
    main()
