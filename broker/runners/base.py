"""What a runner is: it starts trainers somewhere, knows them again, and ends them.

`local`, `slurm`, `kubernetes` and `donated` are four; docs/how-to-add-a-runner.md says how to write another. A runner
knows no database: what it may know of an attempt is in its `JobSpec` and its folder.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from broker.end_reasons import EndReason
from broker.runners import processes
from broker.runners.processes import Process
from projects.errors import InvalidError
from trainer import contract

PASSED_ON = ("PATH", "HOME", "LANG", "TMPDIR", "OMP_WAIT_POLICY", contract.COMMIT_VARIABLE)
"""Names of the environment variables that a trainer is given; none of them holds a secret."""
SIGNAL_SECONDS = 60
"""What a pod, which sees no disk of the lab, gets beyond the time limit and the grace: Stoa's own limit comes first."""
PORT = 29_500
"""At which the pod of index 0 listens for the others; each pod has an address of its own."""


class UnavailableError(Exception):
    """What the runner builds on does not answer now, or will not take the trainer yet; the text says which."""


@dataclass(frozen=True)
class PoolOption:
    """A field that pools of one runner have beside the fields of every pool. `refusal` is said of a wrong value.

    `pattern` is the regular expression that a whole value must match, in ASCII.
    """

    name: str
    help: str
    pattern: str
    refusal: str
    default: str = ""

    def check(self, value: str) -> None:
        """Raise InvalidError where the value is not one."""
        if not re.fullmatch(self.pattern, value, re.ASCII):
            raise InvalidError(self.refusal)


@dataclass(frozen=True)
class JobSpec:
    """What the trainer of one attempt needs. `options` are those of the pool, by the names of its runner's options.

    `gpus` are those on all `nodes`, the same number on each. Where there are several nodes, the runner gives the job
    all of them or none, and starts the command once on each, with what `node_options` adds.

    `seconds` is the time limit, `grace_seconds` the time to stop, `lease_seconds` how long the trainer may run on
    without a renewal. `memory` is the most bytes for each process of the trainer, None for no bound; a runner that
    starts processes itself holds them to it. `store_folder` is the attempt's folder in the object store, empty where
    there is no store. `pool` is the pool's name.
    """

    gpus: int = 1
    nodes: int = 1
    seconds: float = 3600.0
    grace_seconds: float = 60.0
    lease_seconds: float = 60.0
    memory: int | None = None
    store_folder: str = ""
    pool: str = ""
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def node_gpus(self) -> int:
        """How many GPUs it has on each node."""
        return self.gpus // self.nodes

    def node_options(self, node: str, rendezvous: str) -> list[str]:
        """What the command has at its end on the node of this number, from 0; none where there is one node.

        Node 0 listens at `rendezvous` (ADDRESS:PORT), which all nodes reach. Both may be what a shell fills in.
        """
        if self.nodes == 1:
            return []
        return ["--hosts", str(self.nodes), "--host", node, "--rendezvous", rendezvous]


@dataclass(frozen=True)
class Job:
    """A trainer that the runner's own queue knows, by the attempt that it is for; `state` is in the queue's word."""

    id: str
    run_id: int
    token: int
    state: str = ""


@dataclass(frozen=True)
class Check:
    """What `stoa doctor` has found about a runner; `advice` says what to do, and is empty where all is well."""

    found: str
    advice: str = ""


class Runner(ABC):
    """Starts the trainer of one attempt and ends it. A trainer's process sees no token and no database address.

    `waiting`: why the trainer has not begun yet, empty once it has; that time costs nothing. `ended`: how the trainer
    ended, where the runner knows more than the exit status says, and `end_reason` the same for programs.
    """

    name: ClassVar[str]
    """What an operator types, and what the pool's column holds."""
    queue: ClassVar[str] = ""
    """The queue that decides when a trainer begins, as people read it, such as Slurm; empty where Stoa decides."""
    uses_host_gpus: ClassVar[bool] = False
    """Whether its pools share out the GPUs of the worker's host by their numbers."""
    bound_to_host: ClassVar[bool] = False
    """Whether only the host of a trainer can end it; else, a new attempt's runner ends the earlier ones first."""
    several_nodes: ClassVar[bool] = False
    """Whether one run of its pools may have several nodes."""
    lent: ClassVar[bool] = False
    """Whether machines that others lend take its runs, each by a token of its own."""
    fills_store: ClassVar[bool] = False
    """Whether it puts what a trainer writes, and checkpoints before they are told, into the store by itself."""
    pool_options: ClassVar[Sequence[PoolOption]] = ()
    environment: ClassVar[Sequence[str]] = ()
    """Names of environment variables that the runner needs beside `PASSED_ON`."""

    waiting: str = ""
    ended: str = ""
    end_reason: EndReason | None = None

    def __init__(self, spec: JobSpec) -> None:
        self.spec = spec

    @abstractmethod
    def start(self, command: Sequence[str], folder: Path, devices: str) -> Process:
        """Start `command` in `folder`, its output going to `trainer.log` there.

        `devices` are the numbers of the host's GPUs, such as “0,1”; empty where the runner assigns none. A
        `command` for several nodes lacks only the `node_options` of each.
        """

    @abstractmethod
    def adopt(self, process: Process, folder: Path, waiting: str = "") -> None:
        """Take over a trainer that another supervisor's runner started in `folder`: `waiting`, running or over."""

    @abstractmethod
    def process(self) -> Process:
        """The started trainer; its `pid` is 0 while there is nothing yet to adopt."""

    @abstractmethod
    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while the trainer waits or runs.

        `Status.REFUSED` of the trainer's contract means that the runner would not start it, now or another time.
        """

    @abstractmethod
    def seconds(self) -> float:
        """How long the trainer has run."""

    @abstractmethod
    def renew(self, seconds: float) -> None:
        """Let the trainer run for so many seconds more without another renewal."""

    @abstractmethod
    def stop(self) -> None:
        """Ask the trainer to write a checkpoint and exit (SIGTERM)."""

    @abstractmethod
    def kill(self) -> None:
        """End the trainer and all that it has started at once, and wait until they are gone."""

    @classmethod
    def checked_options(cls, given: Mapping[str, str]) -> dict[str, str]:
        """The options of a pool of this runner, with the defaults of those not given; raises InvalidError."""
        known = {option.name: option for option in cls.pool_options}
        for name, value in given.items():
            if name not in known:
                its = f"its own fields are: {', '.join(known)}" if known else "it has no fields of its own"
                raise InvalidError(f"A pool of the runner {cls.name} has no “{name}”; {its}.")
            known[name].check(value)
        return {name: given.get(name, option.default) for name, option in known.items()}

    @classmethod
    def can_adopt(cls, process: Process) -> bool:
        """Whether a supervisor of this host can take over the trainer `process`."""
        return processes.of_this_host(process)

    @classmethod
    def check(cls, options: Mapping[str, str]) -> Check | None:
        """What `stoa doctor` tells of the runner where a pool of these options uses it; None for nothing to look at."""
        return None

    @classmethod
    def living(cls, runs_dir: Path, options: Mapping[str, str]) -> Sequence[Job]:
        """The jobs of this installation that have not ended; none where every trainer ends with its lease.

        `options` are those of a pool, which may say where its jobs are. Raises UnavailableError.
        """
        return ()

    @classmethod
    def cancel(cls, job: Job, options: Mapping[str, str]) -> None:
        """End a job of a pool with these options that nobody supervises any more; raises UnavailableError."""
        raise NotImplementedError(f"{cls.name} has no job to cancel: {job}")
