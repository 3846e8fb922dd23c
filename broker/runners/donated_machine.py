"""A donated machine at work: it claims runs from a lab, one after another, and runs each in a pod of its own.

It holds a token of the lab's API, and neither a database nor a store nor a queue. A pod is given a key of its attempt's
folder alone, and its trainer no key at all. Where this process dies, or the lab does not answer for as long as the
order allows, the shim ends the pod.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import httpx2
from pydantic import BaseModel, TypeAdapter, ValidationError

from broker import corpus_copies
from broker.lab_store import TIMEOUT, is_private
from broker.runners import donated_presence, host_gpus, processes, shim
from broker.runners.base import PASSED_ON
from broker.runners.donated_orders import Granted, Renewal, Settled, Told, Wanted
from broker.runners.pod import DRIVERS, GIVEN_UP
from projects import cleaning

ASK_SECONDS = 5.0
KEEP_COPIES = timedelta(days=14)
"""How long a copy of a corpus stays that no run has used."""
POLL_SECONDS = 0.1
RENEWALS_A_SILENCE = 6
RENEW_SECONDS = 5.0
"""At the latest, so that a stop reaches the trainer soon."""
MOST_SAID = 300
M = TypeVar("M", bound=BaseModel)


class LabError(Exception):
    """The lab will not have this machine; the text is one sentence."""


class AwayError(Exception):
    """The lab does not answer now; the text says why."""


class OverError(Exception):
    """The lab has given the attempt up, or the machine's token is no longer good."""


class DonatedMachine:
    """Runs a lab's runs on `devices`, the numbers of this machine's GPUs, such as “0,1”, or on its CPUs.

    Of a pool of CPUs it takes runs of at most `processes` of them. `say` is told each thing that changes, in one line.
    """

    def __init__(
        self, lab: str, token: str, home: Path, say: Callable[[str], None], *, devices: str = "", processes: int = 1
    ) -> None:
        if not is_private(lab):
            raise LabError("The lab's address must begin with https://, or name this machine itself.")
        self.lab, self.home, self.devices, self.say = lab.rstrip("/"), home.resolve(), devices, say
        self.gpus = len(devices.split(",")) if devices else processes
        self.about = donated_presence.of_this_machine(devices)
        self.leaves, self.leaves_at_once = threading.Event(), threading.Event()
        self.was_away, self.copies_trouble = "", ""
        self._client = httpx2.Client(base_url=f"{self.lab}/", timeout=TIMEOUT)
        self._token = token

    def run(self) -> None:
        """Work until asked to leave; raises LabError."""
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / ".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LabError(f"Another process works in {self.home}; give this one another --home.") from None
            self._clear()
            self.say(f"ready for runs of {self.lab} on {f'the GPUs {self.devices}' if self.devices else 'its CPUs'}")
            while not self.leaves.is_set():
                granted = self._trying(self._claim)
                if granted is None:
                    self._remove_copies()
                    self.leaves.wait(ASK_SECONDS)
                else:
                    Pod(self, granted).run()
        self.say("left")

    def leave(self, _number: int = 0, _frame: FrameType | None = None) -> None:
        """Take no more runs, and give the one that is under way back with a checkpoint; asked again, without one."""
        if self.leaves.is_set():
            self.leaves_at_once.set()
        self.leaves.set()

    def post(self, place: str, secret: str, said: BaseModel) -> Any:
        """The lab's answer; raises AwayError, OverError, and LabError where the lab says why it takes none of it."""
        try:
            headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
            answer = self._client.post(place, content=said.model_dump_json(), headers=headers)
        except httpx2.HTTPError as error:
            raise AwayError(f"the lab does not answer ({error})") from None
        if answer.status_code in (401, 403, 410):
            raise OverError
        if answer.status_code == 409:
            raise LabError(_sentence(answer))
        if answer.status_code != 200:
            raise AwayError(f"the lab answers {answer.status_code}")
        self.note("")
        try:
            return answer.json()
        except ValueError:
            raise AwayError("what answers is not the lab") from None

    def _claim(self) -> Granted | None:
        try:
            answer = self.post("claims", self._token, Wanted(gpus=self.gpus, about=self.about))
            return TypeAdapter(Granted | None).validate_python(answer)
        except OverError:
            raise LabError("The lab does not take this machine's token: it is wrong, or was revoked.") from None
        except ValidationError:
            raise AwayError("what answers is not the lab") from None

    def _trying(self, work: Callable[[], Granted | None]) -> Granted | None:
        """The result of work, None where the lab is away."""
        try:
            return work()
        except AwayError as away:
            self.note(str(away))
            return None

    def note(self, away: str) -> None:
        """Say once that the lab is away, and once that it is back."""
        if bool(away) != bool(self.was_away):
            self.say(f"{away}; it is asked again" if away else "the lab answers again")
        self.was_away = away

    def _remove_copies(self) -> None:
        """Remove the copies of corpora that no run has used here for a while: none is under way."""
        home, trouble = self.home / corpus_copies.FOLDER, ""
        try:
            corpus_copies.clear_removed(home)
            for copy in corpus_copies.here(home):
                if datetime.now(UTC) - copy.used_at > KEEP_COPIES and corpus_copies.remove(home, copy.name):
                    self.say(f"{copy.name} was removed, as no run has used it for {KEEP_COPIES.days} days")
        except OSError as error:
            trouble = f"copies of corpora could not be removed: {error}"
        if trouble not in ("", self.copies_trouble):
            self.say(trouble)
        self.copies_trouble = trouble

    def _clear(self) -> None:
        """End what another process has left running here, whose claims are no longer renewed."""
        for place in (self.home / "pods").glob("*"):
            for process in processes.named_by(str(place)):
                processes.kill_group(process)
            shutil.rmtree(place, ignore_errors=True)


class Pod:
    """One attempt on this machine, with a folder of its own that goes with it."""

    def __init__(self, machine: DonatedMachine, granted: Granted) -> None:
        self.machine, self.granted = machine, granted
        self.place = machine.home / "pods" / f"{granted.run}-{granted.attempt}"
        self.named = f"run {granted.run.partition('-')[0]}, {granted.attempt.replace('-', ' ')}"
        self.address = f"attempts/{granted.run}/{granted.attempt}"
        self.told_to_stop = False

    def run(self) -> None:
        """See the attempt through to its end."""
        say, every = self.machine.say, min(RENEW_SECONDS, self.granted.silence_seconds / RENEWALS_A_SILENCE)
        self.place.mkdir(parents=True)
        copies = self.machine.home / corpus_copies.FOLDER  # which outlive the pod
        copies.mkdir(exist_ok=True)
        begun_at = datetime.now(UTC)
        (self.place / corpus_copies.FOLDER).symlink_to(copies)
        popen = self._start()
        say(f"{self.named}: started")
        try:
            while popen.poll() is None and not self.machine.leaves_at_once.is_set():
                asked_at = time.monotonic()
                self._renew(popen)
                while popen.poll() is None and time.monotonic() < asked_at + every:
                    if (self.machine.leaves.is_set() and not self.told_to_stop) or self.machine.leaves_at_once.is_set():
                        break
                    time.sleep(POLL_SECONDS)
            status = self._end(popen)
            if status == GIVEN_UP:
                raise OverError
            with suppress(OverError):  # the outcome has told the lab of the end already
                self._settle(status)
            say(f"{self.named}: ended with status {status}")
        except OverError:
            say(f"{self.named}: the lab has closed it")
        finally:
            self._end(popen)
            shutil.rmtree(self.place, ignore_errors=True)
            with suppress(OSError):
                for copy in corpus_copies.here(copies):
                    if copy.used_at >= begun_at:  # by this run, which has needed it up to now
                        corpus_copies.mark(copies, copy.name)

    def _end(self, popen: "subprocess.Popen[bytes]") -> int:
        """Leave no process of the pod; its exit status, which the shim leaves in the folder as it ends itself."""
        with suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        ended = popen.wait()
        with suppress(OSError, ValueError, LookupError):
            return int(json.loads((self.place / shim.EXIT_FILE).read_text())["status"])
        return ended

    def _start(self) -> "subprocess.Popen[bytes]":
        """Start the pod below a shim, which ends it where nobody renews its lease."""
        shim.write(self.place / shim.LEASE_FILE, shim.since_boot() + self.granted.silence_seconds)
        program = [sys.executable, "-m", "broker.runners.pod", f"runs/{self.granted.run}/{self.granted.attempt}"]
        limits = [str(self.granted.grace_seconds), "0"]
        with (self.place / "pod.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", shim.__file__, str(self.place), *limits, *program, "localhost"],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _environment(self) -> dict[str, str]:
        """What the pod is given: this machine's drivers, and the key of its attempt in the place of the token."""
        own = {
            name: value
            for name, value in os.environ.items()
            if name in (*PASSED_ON, "SSL_CERT_FILE") or name.startswith(DRIVERS)
        }
        programs = f"{Path(sys.executable).parent}:{own.get('PATH', os.defpath)}"
        return (
            own
            | host_gpus.visible(self.machine.devices)
            | {
                "PATH": programs,
                "STOA_ENV_FILE": "",
                "STOA_HOME": str(self.place),
                "STOA_POD_FOLDER": str(self.place),
                "STOA_STORE": f"{self.machine.lab}/{self.address}",
                "STOA_STORE_SECRET": self.granted.key,
            }
        )

    def _renew(self, popen: "subprocess.Popen[bytes]") -> None:
        """Renew the claim, and with it the pod's lease; pass a stop on. Raises OverError."""
        if self.machine.leaves.is_set() and not self.told_to_stop:
            self._stop(popen, "its owner takes the machine back")
        asked_at = shim.since_boot()
        try:
            answer = self.machine.post(
                f"{self.address}/renew", self.granted.key, Renewal(leaves=self.machine.leaves.is_set())
            )
            told = Told.model_validate(answer)
        except (AwayError, ValidationError) as away:
            self.machine.note(str(away))
            return
        shim.write(self.place / shim.LEASE_FILE, asked_at + self.granted.silence_seconds)
        if told.stop and not self.told_to_stop:
            self._stop(popen, "the lab asks for a checkpoint and its end")

    def _stop(self, popen: "subprocess.Popen[bytes]", why: str) -> None:
        self.machine.say(f"{self.named}: {why}")
        popen.terminate()
        self.told_to_stop = True

    def _settle(self, status: int) -> None:
        """Tell the lab that the pod has ended, for as long as the lab waits for a word. Raises OverError."""
        until = time.monotonic() + self.granted.silence_seconds
        while time.monotonic() < until:
            try:
                self.machine.post(f"{self.address}/settle", self.granted.key, Settled(status=status))
                return
            except AwayError as away:
                self.machine.note(str(away))
                time.sleep(min(ASK_SECONDS, self.granted.silence_seconds / RENEWALS_A_SILENCE))


def _sentence(answer: httpx2.Response) -> str:
    """What the lab says, as one line of a terminal."""
    said = ""
    with suppress(ValueError, LookupError, TypeError):
        said = cleaning.name(str(answer.json()["detail"]))[:MOST_SAID]
    return said or "The lab does not take this machine, and does not say why."
