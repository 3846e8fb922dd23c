"""Trainers as jobs of Slurm: each attempt is one job, known by a name that its folder gives it.

A job is never requeued by Slurm: what starts again is a new attempt, in a folder of its own. So a node that was given
up but lives on writes only where nobody reads any more.
"""

import json
import math
import os
import re
import shlex
import signal
import subprocess
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from broker.runs.attempts import Process
from trainer.contract import LOG_FILE, OUTCOME_FILE, Status

PASSED_ON = ("PATH", "HOME", "LANG", "TMPDIR", "OMP_WAIT_POLICY", "SLURM_CONF")
ENDED = frozenset(
    {
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"),
        *("NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
    }
)
GONE_SECONDS = 90.0  # Slurm's default KillWait is 30 seconds, and a node needs a moment to tell of the end
SHORTEST_SECONDS = 2.0
SIGNAL_EARLY_SECONDS = 60  # “the signal may be sent up to 60 seconds earlier than specified” (man sbatch)
MARK = "slurm-job"
BOOT = "slurm"  # in the place of a boot id: the number is a job's, and no process of a host is meant
_LATER = re.compile(
    r"unable to contact|timed out|temporarily|zero bytes|connection refused|transport endpoint|standby|"
    r"communication|try again|QOSMax|AssocMax|submit limit|job limit",
    re.IGNORECASE,
)

log = structlog.get_logger()


class AwayError(Exception):
    """Slurm does not answer just now, or will not take the job yet; the text says which."""


@dataclass(frozen=True)
class Wanted:
    """What a job asks Slurm for. `seconds` is the trainer's time limit; `grace` its time to stop, in seconds."""

    gpus: int
    seconds: float
    grace: float
    partition: str = ""
    gres: str = "gpu"

    def options(self) -> list[str]:
        """The options of sbatch. Slurm's end of time asks for a checkpoint too, should nobody else be left to do so."""
        minutes = math.ceil((self.seconds + self.grace + SIGNAL_EARLY_SECONDS) / 60)
        options = ["--nodes=1", "--ntasks=1", f"--cpus-per-task={self.gpus}", f"--time={minutes}"]
        options.append(f"--signal=B:TERM@{math.ceil(self.grace)}")
        if self.partition:
            options.append(f"--partition={self.partition}")
        if self.gres:
            options.append(f"--gres={self.gres}:{self.gpus}")
        return options


class SlurmLauncher:
    """The trainer as a batch job. Slurm may be away for a while at any moment: what was asked of it is asked again.

    Slurm is asked at most once in `every` seconds, and waited for about twice that long at most.
    """

    def __init__(self, wanted: Wanted, *, every: float = 5.0) -> None:
        self.job: int | None = None
        self.waiting = "it is being submitted to Slurm"  # and where the job ends without having run, its last reason
        self.ended = ""
        self._wanted = wanted
        self._every = every
        self._patience = max(SHORTEST_SECONDS, every * 2)
        self._folder = Path()
        self._command: Sequence[str] = ()
        self._asked_at = -math.inf
        self._ran = 0.0
        self._runs_since: float | None = None
        self._status: int | None = None
        self._to_stop = False
        self._told_to_stop = False
        self._to_kill = False
        self._lock = threading.RLock()  # re-entrant: a signal handler of the main thread may stop what it just polls

    def start(self, command: Sequence[str], folder: Path, devices: str) -> Process:
        """Submit `command`, or find the job that was submitted for `folder` before. Slurm assigns the devices."""
        self._command, self._folder = command, folder
        self.poll()
        return self.process()

    def adopt(self, process: Process, folder: Path, waiting: str = "") -> None:
        """See `Launcher`; the job is known by its number, and no other is ever submitted in its place."""
        self.job, self._folder, self.waiting = process.pid, folder, waiting
        self.poll()

    def process(self) -> Process:
        """The job's number in the place of a process's; 0 until it has one."""
        return Process(BOOT, BOOT, self.job or 0, 0)

    def poll(self) -> int | None:
        """The exit status, as of the last time that Slurm was asked; None while the job waits or runs."""
        with self._lock:
            if self._status is None and time.monotonic() - self._asked_at >= self._every:
                self._ask()
            return self._status

    def seconds(self) -> float:
        """How long the job has run by Slurm's clock, to the second; 0 while it waits."""
        with self._lock:
            return self._ran + (0.0 if self._runs_since is None else time.monotonic() - self._runs_since)

    def keep(self, seconds: float) -> None:
        """See `Launcher`. The job has its time limit from Slurm."""

    def stop(self) -> None:
        """Ask the trainer for a checkpoint and its end; a job that has not begun is cancelled."""
        with self._lock:
            self._to_stop = True
            if self._status is None:
                self._ask()

    def kill(self) -> None:
        """End the job with all its processes, and wait until Slurm says that they are gone."""
        with self._lock:
            self._to_stop = self._to_kill = True
            begun = self.job is not None or bool(self._command)
            if self._status is None and begun:
                self._ask()
        until = time.monotonic() + GONE_SECONDS
        while begun and self.poll() is None:
            if time.monotonic() > until:
                log.error("a job is still not gone; scancel it and look at its node", job=self.job)
                return
            time.sleep(0.1)

    def _ask(self) -> None:
        """Do what is due: submit, pass the stop on, look how the job does."""
        try:
            if self.job is None:
                self.job = self._submit()
            if self.job is not None:
                if self._to_kill:
                    self._kill(self.job)
                elif self._to_stop and not self._told_to_stop:
                    self._ask_to_stop(self.job)
                self._look(self.job)
        except AwayError as away:
            if self.waiting:
                self.waiting = str(away)
            log.warning("Slurm could not be asked; trying again", job=self.job, why=str(away))
        self._asked_at = time.monotonic()

    def _submit(self) -> int | None:
        """The job of this folder; None where it must wait to be submitted, or never will be.

        It may be there already: a supervisor, or the answer to sbatch, may have been lost. Earlier jobs of the run must
        be gone.
        """
        mark = self._folder / MARK
        if mark.exists() and (text := mark.read_text()).isdigit():
            return int(text)
        siblings = self._siblings()
        for job, token, _ in siblings:
            if token == self._token():
                mark.write_text(str(job))
                return job
        if self._to_stop or any(token > self._token() for _, token, _ in siblings):
            self._end(Status.STOPPED, "it was stopped before Slurm had it")
            return None
        earlier = [job for job, _, state in siblings if state not in ENDED]
        for job in earlier:
            self._kill(job)
        if earlier:
            self.waiting = "an earlier job of the run is still ending"
            return None
        command = [
            *("sbatch", "--parsable", "--no-requeue", "--export=ALL", "--input=/dev/null", "--open-mode=append"),
            *(f"--output={LOG_FILE}", f"--chdir={self._folder}", f"--job-name={self._name()}"),
            *self._wanted.options(),
        ]
        script = f"#!/bin/sh\nexec {shlex.join(self._command)}\n"
        done = _slurm(command, self._patience, script)
        if done.returncode == 0:
            job = int(done.stdout.strip().partition(";")[0])
            mark.write_text(str(job))
            return job
        sentence = _sentence(done.stderr)
        if _LATER.search(sentence):
            raise AwayError(f"Slurm: {sentence}")
        self._end(Status.REFUSED, f"Slurm refused the job: {sentence}")
        return None

    def _look(self, job: int) -> None:
        """Take Slurm's word on the job."""
        done = _slurm(["scontrol", "show", "job", "-o", str(job)], self._patience)
        if done.returncode != 0:
            sentence = _sentence(done.stderr)
            if "invalid job id" not in sentence.lower():
                raise AwayError(f"Slurm: {sentence}")
            self._end(*self._by_outcome(Status.FAILED, "Slurm no longer knows the job"))
            return
        seen = dict(reversed(re.findall(r"(\w+)=(\S*)", done.stdout)))  # of a key met twice, the first is meant
        if seen.get("JobName") != self._name():
            self._end(*self._by_outcome(Status.FAILED, "Slurm no longer knows the job, and has given its number away"))
            return
        state = seen["JobState"]
        if state in ("PENDING", "CONFIGURING"):
            reason = seen.get("Reason", "None")
            self.waiting = f"Slurm: {state}" + ("" if reason == "None" else f" ({reason})")
            return
        if _nodes(seen):
            self.waiting, self._ran = "", _seconds(seen.get("RunTime", "0"))
        self._runs_since = time.monotonic() if state == "RUNNING" else None
        if state in ENDED:
            self._end(*self._ending(state, seen))

    def _ending(self, state: str, seen: Mapping[str, str]) -> tuple[int, str]:
        """The exit status that Slurm's last word amounts to, and a sentence where that word is Slurm's own."""
        status, _, number = seen.get("ExitCode", "0:0").partition(":")
        if state in ("COMPLETED", "FAILED"):
            return -int(number) or int(status), ""
        if self._to_kill:
            return -signal.SIGKILL, ""
        sentence = f"Slurm ended the job: {state}" + (f" on {_nodes(seen)}" if _nodes(seen) else "")
        asked = state == "PREEMPTED" or (state == "CANCELLED" and self._to_stop)
        return self._by_outcome(Status.STOPPED if asked else Status.FAILED, sentence)

    def _by_outcome(self, status: int, sentence: str) -> tuple[int, str]:
        """What the trainer has left as its own last word, or else these."""
        outcome = self._folder / OUTCOME_FILE
        return (int(json.loads(outcome.read_text())["status"]), "") if outcome.exists() else (status, sentence)

    def _end(self, status: int, sentence: str) -> None:
        self._status, self.ended, self._runs_since = status, sentence, None

    def _ask_to_stop(self, job: int) -> None:
        """Two calls, since between a look and a call a job may begin to run."""
        self._scancel("--state=PENDING", str(job))
        self._scancel("--batch", "--signal=TERM", str(job))
        self._told_to_stop = True

    def _kill(self, job: int) -> None:
        """The script first, at once, with what its process group holds; then whatever there is, and what only waits."""
        self._scancel("--batch", "--signal=KILL", str(job))
        self._scancel(str(job))

    def _scancel(self, *arguments: str) -> None:
        """Tell Slurm; that the job is over already is no error."""
        done = _slurm(["scancel", *arguments], self._patience)
        if done.returncode != 0 and _LATER.search(_sentence(done.stderr)):
            raise AwayError(f"Slurm: {_sentence(done.stderr)}")

    def _siblings(self) -> list[tuple[int, int, str]]:
        """The number, token and state of every job of the run that Slurm remembers."""
        run = self._folder.parent
        found = jobs(run.parent, self._patience)
        return [(job.number, job.token, job.state) for job in found if str(job.run_id) == run.name]

    def _name(self) -> str:
        """The job's name: `stoa-INSTALLATION-RUN-TOKEN`."""
        run = self._folder.parent
        return f"{_installation(run.parent)}{run.name}-{self._token()}"

    def _token(self) -> int:
        return int(self._folder.name.rpartition("-")[2])


@dataclass(frozen=True)
class Job:
    """A job of this installation that Slurm remembers."""

    number: int
    run_id: int
    token: int
    state: str


def jobs(runs_dir: Path, patience: float = SHORTEST_SECONDS) -> list[Job]:
    """All jobs for the runs of this folder, ended ones too as long as Slurm remembers them; raises AwayError."""
    done = _slurm(["squeue", "--me", "--noheader", "--states=all", "--format=%A %T %j"], patience)
    if done.returncode != 0:
        raise AwayError(f"Slurm: {_sentence(done.stderr)}")
    name = re.compile(rf"(\d+) (\S+) {_installation(runs_dir)}(\d+)-(\d+)")
    found = [name.fullmatch(line.strip()) for line in done.stdout.splitlines()]
    return [Job(int(job[1]), int(job[3]), int(job[4]), job[2]) for job in found if job]


def cancel(job: Job, patience: float = SHORTEST_SECONDS) -> None:
    """Have Slurm end a job: SIGTERM, and SIGKILL after its KillWait; raises AwayError."""
    done = _slurm(["scancel", str(job.number)], patience)
    if done.returncode != 0:
        raise AwayError(f"Slurm: {_sentence(done.stderr)}")


def _installation(runs_dir: Path) -> str:
    """What the names of this installation's jobs begin with."""
    return f"stoa-{zlib.crc32(os.fsencode(runs_dir)):08x}-"


def _slurm(command: Sequence[str], timeout: float, given: str = "") -> subprocess.CompletedProcess[str]:
    """One call of Slurm's commands, which see no more of the environment than a job may; raises AwayError."""
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    try:
        return subprocess.run(
            command, env=environment, input=given, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        raise AwayError(f"Slurm: {command[0]} has not answered in {timeout:g} seconds") from None
    except FileNotFoundError:
        raise AwayError(f"Slurm: there is no {command[0]} on this host; install Slurm's commands") from None


def _sentence(stderr: str) -> str:
    """The last line that a command of Slurm's has complained with, without its own name."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return re.sub(r"^(\w+: )?((slurm_\w+ )?error: )*", "", lines[-1]) if lines else "no reason given"


def _nodes(seen: Mapping[str, str]) -> str:
    """Where the job has run; empty if it never has."""
    return seen.get("NodeList", "").replace("(null)", "")


def _seconds(clock: str) -> float:
    """Seconds of Slurm's `[days-]hours:minutes:seconds`."""
    days, _, rest = clock.rpartition("-")
    total = 0
    for part in rest.split(":"):
        total = total * 60 + int(part) if part.isdigit() else total
    return float(total + 86_400 * int(days or 0))
