"""Progress on the terminal: a bar on a terminal, short lines elsewhere. Imports no torch."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from trainer.contract import Event
from trainer.events import append_event

SECONDS_BETWEEN_LINES = 10.0


@contextlib.contextmanager
def bars() -> Iterator[Callable[[str, float], None]]:
    """A function that advances the bar of a name by a share of the whole; bars are shown if standard error is a
    terminal."""
    console = Console(stderr=True)
    with Bar(console=console, transient=True, disable=not console.is_terminal) as bar:
        lines: dict[str, TaskID] = {}

        def advance(name: str, share: float) -> None:
            if name not in lines:
                lines[name] = bar.add_task(name, total=1.0)
            bar.advance(lines[name], share)

        yield advance


class Progress:
    """A run's progress. On ranks other than the main one it is not `shown` and does nothing."""

    def __init__(self, out: Path, steps: int, shown: bool) -> None:
        self._out, self._steps, self._shown = out, steps, shown
        self._console = Console(quiet=not shown)
        self._next_line = 0.0
        self._bar: Bar | None = None

    def stage(self, message: str) -> None:
        """Tell on the terminal and as an event that a stage of the set-up or of the run begins."""
        if self._shown:
            append_event(self._out, Event.PROGRESS, message=message)
        self.say(message)

    def say(self, message: str) -> None:
        """Print a line."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)

    def step(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Update the bar, or print a line where the last one is SECONDS_BETWEEN_LINES old."""
        if not self._shown:
            return
        if self._console.is_terminal:
            self._update_bar(step, f"loss {loss:.3f} · {tokens_per_second:,.0f} tokens/s")
        elif time.monotonic() >= self._next_line or step == self._steps:
            self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            self.say(f"step {step}/{self._steps}: loss {loss:.3f}, {tokens_per_second:,.0f} tokens/s")

    def close(self) -> None:
        """Remove the bar."""
        if self._bar:
            self._bar.stop()

    def _update_bar(self, step: int, state: str) -> None:
        if self._bar is None:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self._bar = Bar(*columns, console=self._console)
            self._bar.add_task(state, total=self._steps)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=step, description=state)
