"""What a supervisor tells of a trainer: its progress, its checkpoints, and how it ended."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from broker.end_reasons import EndReason
from broker.runs import series
from trainer.contract import Measured, Status

END_REASONS: dict[int, EndReason] = {
    Status.STOPPED: EndReason.STOP_REQUESTED,
    Status.CONFIG: EndReason.CONFIG_REFUSED,
    Status.REFUSED: EndReason.RUNNER_REFUSED,
}


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint that an attempt wrote."""

    step: int
    folder: str


@dataclass(frozen=True)
class Spike:
    """A loss far above the `usual` one, both in nats per token."""

    step: int
    loss: float
    usual: float


class Result(NamedTuple):
    """A metric of a task on the checkpoint of a step, with its standard error where there is one, on so many
    `documents` after so many examples, `shots`, by this version of the task."""

    step: int
    task: str
    metric: str
    value: float
    stderr: float | None = None
    documents: int | None = None
    shots: int | None = None
    version: str = ""


@dataclass(frozen=True)
class Progress:
    """What a supervisor read of the trainer's output since its last renewal.

    `metrics_read` and `events_read` are the bytes of `metrics.jsonl` and `events.jsonl` read so far; `more` says that
    more can be read at once. `phase` is what the trainer has begun to do, such as “building the model”.
    """

    metrics_read: int
    events_read: int
    step: int | None = None
    tokens: int | None = None
    unigram_entropy: float | None = None
    points: Sequence[series.Measured] = ()
    checkpoints: Sequence[Checkpoint] = ()
    spikes: Sequence[Spike] = ()
    results: Sequence[Result] = ()
    phase: str | None = None
    more: bool = False


@dataclass(frozen=True)
class PreparedData:
    """The folder of prepared data on its host, and what it holds."""

    path: str
    measured: Measured


@dataclass(frozen=True)
class Ending:
    """How a trainer ended. `status` is its exit status, or the negative number of a signal.

    `transient` says that another attempt may succeed. `known` is what the runner or the supervisor knows of the reason
    beyond the status, `prepared` what a preparation has made, `sample` what a sample has written from the checkpoint of
    `sample_step`.
    """

    status: int
    reason: str = ""
    transient: bool = False
    timed_out: bool = False
    sample: str = ""
    sample_step: int | None = None
    known: EndReason | None = None
    prepared: PreparedData | None = None

    @property
    def fault(self) -> bool:
        """Whether the infrastructure ended the trainer, and neither its own computation nor a request to stop."""
        return not self.timed_out and (self.status < 0 or (self.status == Status.FAILED and self.transient))

    @property
    def end_reason(self) -> EndReason:
        """The enumerated reason of the attempt's end."""
        if self.status == Status.DONE:
            return EndReason.DONE
        if self.timed_out:
            return EndReason.TIME_LIMIT
        if self.known is not None:
            return self.known
        if self.status < 0:
            return EndReason.SIGNAL
        failed = EndReason.TRAINER_FAULT if self.transient else EndReason.TRAINER_FAILED
        return END_REASONS.get(self.status, failed)
