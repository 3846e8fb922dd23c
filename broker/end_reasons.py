"""Why attempts and runs end: one value for programs and statistics, beside the sentence that people read."""

from enum import StrEnum


class EndReason(StrEnum):
    """Why an attempt has ended, or why a run has ended, is stopping or is paused.

    An attempt has none of the last group; a run that no attempt ended has one of the last group, or `TIME_LIMIT`.
    """

    # What the trainer's exit status says.
    DONE = "done"
    """The last step is done."""
    TRAINER_FAILED = "trainer_failed"
    """The trainer failed in a way that another attempt would meet again."""
    TRAINER_FAULT = "trainer_fault"
    """The trainer failed, and another attempt from the last checkpoint may succeed."""
    CONFIG_REFUSED = "config_refused"
    """The trainer refused its configuration."""
    SIGNAL = "signal"
    """A signal ended the trainer that Stoa did not send, such as the SIGKILL of a host without memory."""
    STOP_REQUESTED = "stop_requested"
    """Somebody asked for it; the run's own reason says who or what."""

    # What the runner says.
    NOT_STARTED = "not_started"
    """The trainer could not be started."""
    CHECKPOINT_MISSING = "checkpoint_missing"
    """The run has done steps, and none of its checkpoints could be had where it was to go on."""
    RUNNER_REFUSED = "runner_refused"
    """The runner would not start the trainer, now or another time."""
    OUT_OF_MEMORY = "out_of_memory"
    """The runner ended the trainer because it used more memory than it may."""
    NODE_FAILED = "node_failed"
    """The runner lost the node."""
    PREEMPTED = "preempted"
    """The runner gave the node to somebody else, or the scheduler wants the run's GPUs for another one."""
    RUNNER_ENDED = "runner_ended"
    """The runner ended the trainer for another reason, or no longer knows it."""

    # What the supervisor, the scheduler and the reaper say.
    TIME_LIMIT = "time_limit"
    """The time limit is used up."""
    DISK_LOW = "disk_low"
    """The host's disk was nearly full."""
    HOST_DRAINED = "host_drained"
    """The host's operator drained it."""
    LEASE_EXPIRED = "lease_expired"
    """The lease was not renewed: the supervisor, its host or the database was away."""
    NOT_CLAIMED = "not_claimed"
    """No worker had claimed the attempt when its run was stopped."""

    # What is so for a run alone.
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    """As many attempts failed, or were lost one after the other, as may; the last one's reason says how."""
    CANCELLED = "cancelled"
    """A member cancelled the run."""
    PAUSED = "paused"
    """A member paused the run."""
    UNFUNDED = "unfunded"
    """The allocation cannot pay for the rest of the run."""
    ALLOCATION_EXPIRED = "allocation_expired"
    """The allocation has ended."""
    ALLOCATION_REVOKED = "allocation_revoked"
    """A reviewer revoked the allocation."""
    PROJECT_ENDED = "project_ended"
    """The project is over."""


INFRASTRUCTURE = frozenset(
    {EndReason.LEASE_EXPIRED, EndReason.NODE_FAILED, EndReason.PREEMPTED, EndReason.RUNNER_ENDED}
)
"""Ends by a fault of hosts, database or batch system, which says nothing about the run."""
