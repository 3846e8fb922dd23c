"""Why a trainer has ended, in a sentence for people: the cause, and after a semicolon what would help.

The trainer's own sentence comes first where it knows more than its runner. No sentence has a secret that is part of an
address, or the path of a host's home.
"""

import errno
import re
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from broker.end_reasons import EndReason
from projects import text
from projects.log import without_secrets
from trainer import check
from trainer.config import ConfigError, load
from trainer.contract import CONFIG_FILE, LOG_FILE, Status

MOST_SAID = 4000
LAST_BYTES = 16 * 1024
TRACEBACK = "Traceback (most recent call last):\n"
SIGNALS: Mapping[int, str] = {
    signal.SIGKILL: "which the kernel sends when a host runs out of memory",
    signal.SIGABRT: "by a library that gave up, as NCCL does where another rank does not answer; the log may say more",
    signal.SIGBUS: "as happens when /dev/shm is full or a file was cut short while it was read",
    signal.SIGSEGV: "by a fault in a library, a driver or the host's memory",
    signal.SIGILL: "probably because the host's CPU lacks an instruction that a library uses",
}
"""What commonly ends a process by each signal."""


@dataclass(frozen=True)
class Room:
    """The memory that a run has: on each of its `gpus`, or processes where it is on CPUs, and on each host for those on
    GPUs, in bytes; None where nobody has said."""

    gpus: int
    nodes: int
    on_cpus: bool
    each: int
    host: int | None

    def advice(self, config: Path) -> str:
        """What a configuration needs of a host's memory, and what would fit; empty where it cannot be said."""
        with suppress(OSError, ConfigError):
            settings = load(config)
            if self.on_cpus:
                return _joined(check.what_fits(settings, self.gpus, self.each, "cpu"))
            if self.host is not None:
                return _joined(check.what_fits_host(settings, self.gpus // self.nodes, self.each, self.host))
            needed = check.check(settings, self.gpus, device="cuda", nodes=self.nodes).host_memory
            return f"its processes need about {check.readable(needed)} of a host's memory"
        return ""


def sentence(
    folder: Path,
    status: int,
    *,
    said: str = "",
    runner: str = "",
    known: EndReason | None = None,
    room: Room | None = None,
) -> str:
    """Why the trainer in `folder` has ended with `status`: by what it has `said`, by its `runner`, by its log, and by
    what is `known`; empty of one that has done all its steps."""
    if status == Status.STOPPED:  # the runner knows why it asked
        found = runner or said or "it was asked to stop"
    elif known == EndReason.OUT_OF_MEMORY and status != Status.DONE:
        found = said if "memory" in said.lower() else f"{runner or 'out of memory'}{_advice(folder, room)}"
    else:
        found = said or runner or ("" if status == Status.DONE else _unsaid(folder, status))
    return public(found, folder)


def public(said: str, folder: Path) -> str:
    """A sentence about the trainer in `folder`, without secrets in addresses and the path of the host's home."""
    home = folder.parents[2] if len(folder.parents) > 3 else None  # HOME/runs/RUN/ATTEMPT
    said = without_secrets(text.cleaned(said))
    return (said.replace(str(home), "…") if home else said)[:MOST_SAID]


def of_error(error: Exception) -> str:
    """An error in words, as far as it is one of the machine that everybody meets; else as it says itself."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "its host's disk is full; an operator makes room"
    if isinstance(error, OSError) and error.strerror:
        # Without its folder, which may name a person.
        return f"{error.strerror}{f': {Path(error.filename).name}' if isinstance(error.filename, str) else ''}"
    return without_secrets(str(error))


def of_signal(number: int) -> str:
    """The sentence that a signal ended the trainer, with the usual cause of that signal."""
    name = signal.Signals(number).name if number in list(signal.Signals) else f"signal {number}"
    usual = SIGNALS.get(number)
    return f"the trainer was ended by {name}{f', {usual}' if usual else ''}"


def _unsaid(folder: Path, status: int) -> str:
    """The cause by the status and the log alone."""
    if status < 0:
        return of_signal(-status)
    tail = _tail(folder / LOG_FILE)
    if status == Status.CONFIG and (
        last := next((line for line in reversed(tail.split("\n")) if text.cleaned(line)), "")
    ):
        return last
    if raised := _raised(tail):
        return f"the trainer ended with {raised}"
    return f"the trainer ended with status {status} and gave no reason; its log may say more"


def _raised(tail: str) -> str:
    """The error of the last traceback in a log, with the file and line that it came from; empty without one."""
    place = ""
    for line in tail.rpartition(TRACEBACK)[2].splitlines() if TRACEBACK in tail else ():
        if found := re.match(r'\s+File "(.+)", line (\d+)', line):
            place = f" ({'/'.join(Path(found[1]).parts[-2:])}, line {found[2]})"
        elif line.strip() and not line[0].isspace():
            missing = line.startswith(("ModuleNotFoundError", "ImportError"))
            return f"{line.strip()}{place}" + ("; the host's Python environment is incomplete" if missing else "")
    return ""


def _tail(path: Path) -> str:
    """The end of a log, cleaned; empty where there is none."""
    with suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LAST_BYTES))
        return file.read().decode(errors="replace")
    return ""


def _advice(folder: Path, room: Room | None) -> str:
    found = "" if room is None else room.advice(folder.parent / CONFIG_FILE)
    return f"; {found}" if found else ""


def _joined(sentence: str) -> str:
    """A sentence as a part of another."""
    return f"{sentence[0].lower()}{sentence[1:]}".removesuffix(".")
