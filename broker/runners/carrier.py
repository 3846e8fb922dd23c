"""The carrier beside a trainer: a process that puts into the store what an attempt leaves in its folder.

`python -m broker.runners.carrier FOLDER`, where FOLDER/carry.json is a `Plan`. It puts there each whole checkpoint, the
logs and metrics as they grow, the data that the attempt prepared, and, last of all, how it ended. It goes on until the
attempt is over and all of it is there; a store that refuses or does not answer is tried again, and no trainer and no
supervisor waits for it. Standard input is held open by the supervisor for as long as it lives.
"""

import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog
from pydantic import BaseModel

from broker import store as stores
from broker.pieces import CARRIER, Growing
from broker.runners.base import PASSED_ON
from broker.store import Store, StoreError
from projects import log as log_format
from projects.log import Seldom
from projects.settings import Settings, get_settings
from trainer import contract

TROUBLE_FILE = "carrier.trouble"
"""What the store does not do, while it does not."""
PLAN_FILE, DONE_FILE, OVER_FILE, LOCK_FILE = "carry.json", "carried", "over", ".carrier.lock"
CARRIER_LOG_FILE = "carrier.log"
LEFT_OVER = "--left-over"
GROWING = (contract.METRICS_FILE, contract.EVENTS_FILE, contract.LOG_FILE)
AT_END = (contract.SAMPLE_FILE, contract.RESULTS_FILE, contract.OUTCOME_FILE)
"""Files that are put there when all else is: the outcome says that nothing more comes."""
POLL_SECONDS = 1.0
BEAT_SECONDS = 5.0
LONGEST_PAUSE = 60.0
AGAIN_SECONDS = 10.0
TELL_SECONDS = 30.0
MOST_TOLD = 200
PART = "putting checkpoints and logs into the store"
"""What the admins are told of, where the store does not take what is carried there."""
QUIET_SECONDS = 300.0
"""Without a supervisor, an attempt counts as over once its folder has been still for so long."""

log = structlog.get_logger()


class Plan(BaseModel):
    """What a carrier is to do: `attempt` is the attempt's folder in the store, `data` the folder here of what it
    prepares."""

    attempt: str
    data: Path | None = None


class Carrier:
    """Carries one attempt."""

    def __init__(self, settings: Settings, folder: Path, plan: Plan) -> None:
        self.settings, self.folder, self.plan = settings, folder, plan
        self.store: Store | None = None
        self.growing: list[Growing] = []
        self.carried: set[str] = set()
        self.alone = threading.Event()
        self.all_there = threading.Event()
        self.log_again = Seldom()
        self.changed_at = time.monotonic()

    def run(self) -> None:
        """Carry until the attempt is over and all of it is in the store."""
        threading.Thread(target=self._watch_supervisor, daemon=True).start()
        small = threading.Thread(target=self._carry_small, daemon=True)
        small.start()
        pause = POLL_SECONDS
        while True:
            over = self._is_over()
            well = self._try(self._carry_checkpoints)
            if well:
                (self.folder / TROUBLE_FILE).unlink(missing_ok=True)
            if over and well and self._try(self._carry_data):
                break
            pause = POLL_SECONDS if well else min(2 * pause, LONGEST_PAUSE)
            time.sleep(pause)
        self.all_there.set()
        small.join()
        while not self._try(self._carry_end):
            pause = min(2 * pause, LONGEST_PAUSE)
            time.sleep(pause)
        (self.folder / DONE_FILE).touch()

    def _opened(self) -> Store:
        if self.store is None:
            self.store = Store(self.settings)
            self.growing = [Growing(self.store, self.folder / name, f"{self.plan.attempt}/{name}") for name in GROWING]
        return self.store

    def _watch_supervisor(self) -> None:
        with suppress(OSError):
            while os.read(0, 1):
                pass
        self.alone.set()

    def _is_over(self) -> bool:
        """Whether nothing more comes into the folder."""
        if any((self.folder / name).exists() for name in (contract.OUTCOME_FILE, OVER_FILE)) and self.alone.is_set():
            return True
        return self.alone.is_set() and time.monotonic() - self.changed_at > QUIET_SECONDS

    def _carry_small(self) -> None:
        """Carry what grows, in a thread beside the checkpoints, and say that the carrier is at work."""
        beat = 0
        while not self.all_there.wait(BEAT_SECONDS if beat else 0):
            beat += 1
            if self._try(self._carry_growing):
                self._try(lambda number=beat: self._say(beat=number))  # type: ignore[misc]

    def _carry_growing(self) -> None:
        self._opened()
        for file in self.growing:
            if file.carry():
                self.changed_at = time.monotonic()

    def _carry_checkpoints(self) -> None:
        """Carry the whole checkpoints, the newest first: a run goes on from it."""
        for path in reversed(contract.checkpoints(self.folder)):
            if path.name not in self.carried:
                self.changed_at = time.monotonic()
                with suppress(FileNotFoundError):  # it left the disk meanwhile: it is on the Hub
                    self._opened().push(path, f"{self.plan.attempt}/{contract.CHECKPOINTS_FOLDER}/{path.name}")
                    log.info("a checkpoint is in the store", checkpoint=path.name)
                self.carried.add(path.name)

    def _carry_data(self) -> None:
        """Carry the data that the attempt prepared, if it came to its end."""
        status = None
        with suppress(OSError, ValueError):
            status = json.loads((self.folder / OVER_FILE).read_text())
        if status == contract.Status.DONE and self.plan.data is not None:
            self._opened().push(self.plan.data, f"{self.plan.attempt}/{contract.DATA_FOLDER}")

    def _carry_end(self) -> None:
        self._carry_growing()
        for name in AT_END:
            if (self.folder / name).exists():
                self._opened().write(f"{self.plan.attempt}/{name}", (self.folder / name).read_bytes())
        self._say(done=True)

    def _say(self, **said: Any) -> None:
        said["home"] = str(self.settings.home)
        self._opened().write(f"{self.plan.attempt}/{CARRIER}", json.dumps(said).encode())

    def _try(self, work: Callable[[], object]) -> bool:
        """Whether the work was done; the trouble is logged once a minute, and left in a file for the supervisor."""
        try:
            work()
        except (StoreError, OSError) as error:
            if self.log_again.is_due(str(error)[:60]):
                log.warning("not carried yet; trying again", error=str(error))
            with suppress(OSError):
                (self.folder / TROUBLE_FILE).write_text(str(error))
            return False
        return True


class Watch:
    """The carrier of an attempt, for its supervisor: started again where it ends before its time."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings, self._folder = settings, folder
        self.process: subprocess.Popen[bytes] | None = None
        self.again_seconds = AGAIN_SECONDS
        self._begun = False
        self._tried_at = self._told_at = -math.inf

    def begin(self, attempt: str, data: Path | None) -> None:
        """Let what the attempt leaves here be carried to the folder `attempt` of the store."""
        try:
            plan = Plan(attempt=attempt, data=data)
            (self._folder / PLAN_FILE).write_text(plan.model_dump_json())
        except OSError as error:
            log.error("nothing is carried to the store: the plan could not be written", error=str(error))
            return
        self._begun = True
        self.keep()

    def keep(self) -> None:
        """See that the carrier is there, once it has begun."""
        there = self.process is not None and self.process.poll() is None
        if not self._begun or there or time.monotonic() - self._tried_at < self.again_seconds:
            return
        self._tried_at = time.monotonic()
        try:
            self.process = spawn(self._settings, self._folder, stdin=subprocess.PIPE)
        except OSError as error:
            log.error("the carrier could not be started; trying again", error=str(error))

    def trouble(self, *, at_once: bool = False) -> str:
        """Why the carrier cannot put something into the store now, in a sentence; empty where it can, or, unless
        `at_once`, where that was said a moment ago."""
        said = ""
        if at_once or time.monotonic() - self._told_at >= TELL_SECONDS:
            said = trouble_in(self._folder)
        if said:
            self._told_at = time.monotonic()
        return said

    def end(self, status: int | None) -> None:
        """Tell the carrier, which goes on until all is in the store, that the trainer has ended with `status`."""
        if self._begun:
            with suppress(OSError):
                (self._folder / OVER_FILE).write_text(json.dumps(status))


def trouble_in(folder: Path) -> str:
    """Why what an attempt leaves in its folder cannot be put into the store now, in a sentence; empty where it can."""
    with suppress(OSError):
        return (folder / TROUBLE_FILE).read_text()[:MOST_TOLD]
    return ""


def troubles(settings: Settings) -> Iterator[str]:
    """Why what attempts have left on this disk cannot be put into the store now."""
    for path in sorted(settings.runs_dir.glob(f"*/attempt-*/{TROUBLE_FILE}")):
        if not (path.parent / DONE_FILE).exists() and (said := trouble_in(path.parent)):
            yield said


def spawn(settings: Settings, folder: Path, *options: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    """Start the carrier of an attempt as a session of its own, with the store's keys and no other secret."""
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    environment |= {"STOA_ENV_FILE": "", "STOA_HOME": str(settings.home), **stores.environment(settings)}
    with (folder / CARRIER_LOG_FILE).open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "broker.runners.carrier", str(folder), *options],
            env=environment,
            stdin=stdin,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


def carry_left_over(settings: Settings) -> None:
    """Carry, one after the other, what the attempts on this disk that nobody carries now have not got into the store: a
    host may have been stopped before, or the store's keys have changed."""
    for path in sorted(settings.runs_dir.glob(f"*/attempt-*/{PLAN_FILE}")):
        if (path.parent / DONE_FILE).exists():
            continue
        if (path.parent / OVER_FILE).exists():
            _end_with_old_keys(settings, path.parent)
        if not _is_locked(path.parent):
            spawn(settings, path.parent, LEFT_OVER).wait()


def _end_with_old_keys(settings: Settings, folder: Path) -> None:
    """End the carrier of an attempt that was started with other settings of the store than these: it would try for
    ever."""
    ours = {f"{name}={value}".encode() for name, value in stores.environment(settings).items()}
    names = (b"STOA_STORE", *(name.encode() for each in stores.KEYS.values() for name in each))
    with suppress(OSError, ValueError):
        process = Path("/proc") / str(int((folder / LOCK_FILE).read_text()))
        is_carrier = str(folder).encode() in (process / "cmdline").read_bytes().split(b"\0")
        variables = (process / "environ").read_bytes().split(b"\0")
        if is_carrier and {each for each in variables if each.startswith(names)} != ours:
            log.info("a carrier with old settings of the store is replaced", folder=str(folder))
            os.kill(int(process.name), signal.SIGTERM)


def _is_locked(folder: Path) -> bool:
    """Whether a carrier is at work on an attempt."""
    with (folder / LOCK_FILE).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def main() -> None:
    """Carry the attempt in the folder that the command line names; wait while another carrier does, or, with
    LEFT_OVER, leave it alone then."""
    log_format.configure()
    os.nice(10)
    folder, *options = sys.argv[1:]
    place = Path(folder)
    with (place / LOCK_FILE).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (fcntl.LOCK_NB if LEFT_OVER in options else 0))
        except BlockingIOError:
            return
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        Carrier(get_settings(), place, Plan.model_validate_json((place / PLAN_FILE).read_bytes())).run()


if __name__ == "__main__":
    main()
