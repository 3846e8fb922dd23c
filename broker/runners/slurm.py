"""The runner `slurm`: trainers as jobs of Slurm. Each attempt is one job, named after the attempt's folder.

Slurm never requeues a job: a run starts again as a new attempt, in a folder of its own. So a node that was given up
but lives on writes only where nobody reads any more.
"""

import json
import math
import os
import re
import signal
import subprocess
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

import structlog

from broker.end_reasons import EndReason
from broker.runners import slurm_job
from broker.runners.base import PASSED_ON, Check, Job, JobSpec, Runner, UnavailableError
from broker.runners.processes import Process
from trainer.contract import LOG_FILE, OUTCOME_FILE, Status

ENDED = frozenset(
    {
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"),
        *("NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
    }
)
END_REASONS = {
    "BOOT_FAIL": EndReason.NODE_FAILED,
    "NODE_FAIL": EndReason.NODE_FAILED,
    "OUT_OF_MEMORY": EndReason.OUT_OF_MEMORY,
    "PREEMPTED": EndReason.PREEMPTED,
}
"""The enumerated reasons of the states in which Slurm, and not the trainer, ended the job; `RUNNER_ENDED` of others."""
GONE_SECONDS = 90.0  # Slurm's default KillWait is 30 seconds, and a node needs a moment to tell of the end
SHORTEST_SECONDS = 2.0
CHECK_SECONDS = 10.0
RENEWALS_A_LEASE = 6  # Slurm is asked as often as a supervisor renews
MARK = "slurm-job"
BOOT = "slurm"  # instead of a boot id: the pid is a job's number, not that of a process
_LATER = re.compile(
    r"unable to contact|timed out|temporarily|zero bytes|connection refused|transport endpoint|standby|"
    r"communication|try again|munge|authentication",
    re.IGNORECASE,
)
"""What scancel says where it has reached nobody; anything else means that the job is over."""
_NEVER = re.compile(
    r"invalid partition name|no partition specified|requested nodes not in this partition|"
    r"invalid account|invalid qos|invalid wckey|invalid .*specification|specification invalid|"
    r"(unrecognized|invalid|ambiguous) option|generic resource|"
    r"requested node configuration is not available|requested time limit is invalid|"
    r"more processors requested than permitted|(can not|cannot) be satisfied|"
    r"memory required by task is not available|pathname .* too long",
    re.IGNORECASE,
)
"""What sbatch says of a job that no wait helps. With all else, such as a drained partition, it is submitted again."""
NEVER_STARTS = {
    "PartitionTimeLimit": "its time limit is beyond its partition's",
    "InvalidAccount": "its account is not valid",
    "InvalidQOS": "its QOS is not valid",
}
"""Slurm's reasons for which an accepted job waits for ever."""

log = structlog.get_logger()


class SlurmRunner(Runner):
    """The trainer as a batch job. Slurm may be away for a while at any moment: what was asked of it is asked again.

    Slurm is asked six times a lease at most, and waited for about twice as long as that takes.
    """

    name = "slurm"
    queue = "Slurm"
    several_nodes = True
    environment = ("SLURM_CONF",)
    pool_options = slurm_job.OPTIONS

    def __init__(self, spec: JobSpec) -> None:
        super().__init__(spec)
        self.job: int | None = None
        self.waiting = "it is being submitted to Slurm"  # stays the last reason where the job ends without having run
        self._every = spec.lease_seconds / RENEWALS_A_LEASE
        self._patience = max(SHORTEST_SECONDS, self._every * 2)
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
        """See `Runner`; the job is known by its number, and no other is ever submitted instead."""
        self.job, self._folder, self.waiting = process.pid, folder, waiting
        self.poll()

    def process(self) -> Process:
        """The job's number instead of a pid; 0 until the job has one."""
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

    def renew(self, seconds: float) -> None:
        """See `Runner`. Slurm knows no lease: the job ends at its time limit, or the reaper cancels it."""

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

    @classmethod
    def can_adopt(cls, process: Process) -> bool:
        """See `Runner`. A job is reached from every host that has Slurm's commands."""
        return process.boot_id == BOOT

    @classmethod
    def check(cls, options: Mapping[str, str]) -> Check:
        """Whether the controller of the pool's cluster answers this host."""
        advice = "Install Slurm's commands on this host, set SLURM_CONF to the cluster's, and start its slurmctld."
        try:
            done = _slurm(["squeue", "--me", "--noheader"], CHECK_SECONDS, options=options)
        except UnavailableError as error:
            return Check(str(error), advice)
        if done.returncode != 0:
            return Check(f"Slurm: {_sentence(done.stderr)}", advice)
        return Check("the controller answers")

    @classmethod
    def living(cls, runs_dir: Path, options: Mapping[str, str]) -> Sequence[Job]:
        """See `Runner`; a job that is completing needs no cancelling."""
        return [job for job in jobs(runs_dir, options=options) if job.state not in ENDED and job.state != "COMPLETING"]

    @classmethod
    def cancel(cls, job: Job, options: Mapping[str, str]) -> None:
        """Have Slurm end a job: SIGTERM, and SIGKILL after its KillWait; raises UnavailableError."""
        done = _slurm(["scancel", job.id], SHORTEST_SECONDS, options=options)
        if done.returncode != 0:
            raise UnavailableError(f"Slurm: {_sentence(done.stderr)}")

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
        except UnavailableError as away:
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
        if mark.exists() and (text := mark.read_bytes()).isdigit():
            return int(text)
        siblings = self._siblings()
        for job, token, _ in siblings:
            if token == self._token():
                return self._marked(job)
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
            *(f"--output={LOG_FILE}", f"--chdir={self._folder}", f"--job-name={self._job_name()}"),
            *slurm_job.sbatch_options(self.spec),
        ]
        done = self._slurm(command, slurm_job.script(self.spec, self._command, self._folder.parents[2]))
        if done.returncode == 0:
            number = re.search(r"^(\d+)(;\S*)?$", done.stdout, re.ASCII | re.MULTILINE)
            if number is None:
                raise UnavailableError("Slurm: sbatch has not said the job's number")  # squeue knows it by its name
            return self._marked(int(number[1]))
        sentence = _sentence(done.stderr)
        if _NEVER.search(sentence):
            self._end(Status.REFUSED, f"Slurm refused the job: {sentence}")
            return None
        raise UnavailableError(f"Slurm: {sentence}")

    def _marked(self, job: int) -> int:
        """Note a job's number in the folder; where the disk has no room for it, squeue knows the job by its name."""
        with suppress(OSError):
            (self._folder / MARK).write_text(str(job))
        return job

    def _look(self, job: int) -> None:
        """Read the job's state from Slurm."""
        done = self._slurm(["scontrol", "show", "job", "-o", str(job)])
        if done.returncode != 0:
            sentence = _sentence(done.stderr)
            if "invalid job id" not in sentence.lower():
                raise UnavailableError(f"Slurm: {sentence}")
            self._lose("Slurm no longer knows the job")
            return
        seen = dict(reversed(re.findall(r"(\w+)=(\S*)", done.stdout)))  # the first counts of a key that comes twice
        if "JobName" not in seen or not seen.get("JobState"):
            raise UnavailableError("Slurm: scontrol has not said the job's state")
        if seen["JobName"] != self._job_name():
            self._lose("Slurm no longer knows the job, and has given its number away")
            return
        state = seen["JobState"]
        if state in ("PENDING", "CONFIGURING"):
            reason = seen.get("Reason", "None")
            if reason in NEVER_STARTS and not self._to_stop:
                self._scancel(str(job))
                self._end(Status.REFUSED, f"Slurm would never start the job: {NEVER_STARTS[reason]} ({reason})")
                return
            self.waiting = f"Slurm: {state}" + ("" if reason == "None" else f" ({reason})")
            return
        if _nodes(seen):
            self.waiting, self._ran = "", _seconds(seen.get("RunTime", "0"))
        self._runs_since = time.monotonic() if state == "RUNNING" else None
        if state in ENDED:
            self._end(*self._ending(state, seen))

    def _ending(self, state: str, seen: Mapping[str, str]) -> tuple[int, str]:
        """The exit status that Slurm's last state amounts to, and a sentence where the trainer gave no reason."""
        code = re.fullmatch(r"(\d+):(\d+)", seen.get("ExitCode", ""), re.ASCII)
        if state in ("COMPLETED", "FAILED") and code is not None:
            return _status(int(code[1]), int(code[2])), ""
        if self._to_kill:
            return -signal.SIGKILL, ""
        where = f" on {_nodes(seen)}" if _nodes(seen) else ""
        sentence = f"Slurm ended the job: {state}{where}"
        self.end_reason = END_REASONS.get(state, EndReason.RUNNER_ENDED)
        if self.end_reason == EndReason.OUT_OF_MEMORY:
            sentence = f"the job used more memory than Slurm gave it{where}"
        asked = state == "PREEMPTED" or (state == "CANCELLED" and self._to_stop)
        return self._by_outcome(Status.STOPPED if asked else Status.FAILED, sentence)

    def _lose(self, sentence: str) -> None:
        """End as the trainer's outcome says, or else as failed: Slurm has forgotten the job."""
        self.end_reason = EndReason.RUNNER_ENDED
        self._end(*self._by_outcome(Status.FAILED, sentence))

    def _by_outcome(self, status: int, sentence: str) -> tuple[int, str]:
        """The status that the trainer has left in its folder, or else the given one.

        The sentence goes with it where it says more than the trainer did, which cannot know why Slurm asked it to stop.
        """
        with suppress(OSError, ValueError, RecursionError, TypeError, KeyError):
            said = int(json.loads((self._folder / OUTCOME_FILE).read_bytes())["status"])
            stopped = said == Status.STOPPED and not self._to_stop
            knows_more = stopped or (said == Status.FAILED and self.end_reason == EndReason.OUT_OF_MEMORY)
            return said, sentence if knows_more else ""
        return status, sentence

    def _end(self, status: int, sentence: str) -> None:
        self._status, self.ended, self._runs_since = status, sentence, None

    def _ask_to_stop(self, job: int) -> None:
        """Tell Slurm in two calls, since a job may begin to run between a look and a call."""
        self._scancel("--state=PENDING", str(job))
        self._scancel("--batch", "--signal=TERM", str(job))
        self._told_to_stop = True

    def _kill(self, job: int) -> None:
        """End trainers of several nodes and the script at once, then all else, or a job that only waits."""
        if self.spec.nodes > 1:
            self._scancel("--signal=KILL", f"{job}.0")
        self._scancel("--batch", "--signal=KILL", str(job))
        self._scancel(str(job))

    def _scancel(self, *arguments: str) -> None:
        """Call scancel; a job that is over already is no error."""
        done = self._slurm(["scancel", *arguments])
        if done.returncode != 0 and _LATER.search(_sentence(done.stderr)):
            raise UnavailableError(f"Slurm: {_sentence(done.stderr)}")

    def _slurm(self, command: Sequence[str], given: str = "") -> subprocess.CompletedProcess[str]:
        return _slurm(command, self._patience, given, self.spec.options)

    def _siblings(self) -> list[tuple[int, int, str]]:
        """The number, token and state of every job of the run that Slurm remembers."""
        run = self._folder.parent
        found = jobs(run.parent, self._patience, self.spec.options)
        return [(int(job.id), job.token, job.state) for job in found if str(job.run_id) == run.name]

    def _job_name(self) -> str:
        """The job's name: `stoa-INSTALLATION-RUN-TOKEN`."""
        run = self._folder.parent
        return f"{_installation(run.parent)}{run.name}-{self._token()}"

    def _token(self) -> int:
        return int(self._folder.name.rpartition("-")[2])


def jobs(
    runs_dir: Path, patience: float = SHORTEST_SECONDS, options: Mapping[str, str] = MappingProxyType({})
) -> list[Job]:
    """All jobs for the runs of this folder on a pool's cluster, ended ones too as long as Slurm remembers them.

    Raises UnavailableError.
    """
    asked = ["squeue", "--me", "--noheader", "--states=all", "--format=%A %T %j"]
    done = _slurm(asked, patience, options=options)
    if done.returncode != 0:
        raise UnavailableError(f"Slurm: {_sentence(done.stderr)}")
    name = re.compile(rf"(\d+) (\S+) {_installation(runs_dir)}(\d+)-(\d+)")
    found = [name.fullmatch(line.strip()) for line in done.stdout.splitlines()]
    return [Job(job[1], int(job[3]), int(job[4]), job[2]) for job in found if job]


def _installation(runs_dir: Path) -> str:
    """What the names of this installation's jobs begin with."""
    return f"stoa-{zlib.crc32(os.fsencode(runs_dir.resolve())):08x}-"  # hosts may reach one folder by links


def _slurm(
    command: Sequence[str], timeout: float, given: str = "", options: Mapping[str, str] = MappingProxyType({})
) -> subprocess.CompletedProcess[str]:
    """Call one of Slurm's commands on a pool's cluster; it sees no more of the environment than a job may.

    Raises UnavailableError.
    """
    passed_on = (*PASSED_ON, *SlurmRunner.environment)
    environment = {name: os.environ[name] for name in passed_on if name in os.environ}
    if conf := options.get("slurm_conf"):
        environment["SLURM_CONF"] = conf
    try:
        return subprocess.run(
            command,
            env=environment,
            input=given,
            capture_output=True,
            encoding="utf-8",
            errors="replace",  # others' jobs may have names in any encoding
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"Slurm: {command[0]} has not answered in {timeout:g} seconds") from None
    except FileNotFoundError:
        raise UnavailableError(f"Slurm: there is no {command[0]} on this host; install Slurm's commands") from None
    except OSError as error:
        raise UnavailableError(f"Slurm: {command[0]} could not be called ({error.strerror})") from None


def _sentence(stderr: str) -> str:
    """The last line that a command of Slurm's has complained with, without its own name."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return re.sub(r"^(\w+: )?((slurm_\w+ )?error: )*", "", lines[-1]) if lines else "no reason given"


def _status(code: int, by_signal: int) -> int:
    """The status of a script, negative for a signal; a shell and srun tell a signal by a status above 128."""
    return -by_signal or (128 - code if code > 128 else code)


def _nodes(seen: Mapping[str, str]) -> str:
    """Where the job has run; empty if it never has."""
    return seen.get("NodeList", "").replace("(null)", "")


def _seconds(clock: str) -> float:
    """Seconds of Slurm's `[days-]hours:minutes:seconds`."""
    days, _, rest = clock.rpartition("-")
    total = 0
    for part in rest.split(":"):
        total = total * 60 + int(part) if part.isdecimal() else total
    return float(total + 86_400 * int(days if days.isdecimal() else 0))
