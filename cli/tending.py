"""Tending of the parts of `stoa up`: each by itself is started, watched, and started again after growing pauses.

No part is stopped because another cannot start. What a part waits for, such as Redis, is said once.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from cli.services import Part, Parts, last_line
from projects.settings import Settings

PARTS = ("scheduler", "worker", "publisher", "bot")
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0
"""Seconds before a part that has ended is started again; the pause doubles until the part has stayed up."""
STAYED_SECONDS = 600.0
"""A part that was up for so long has mended: its next pause is the first one."""
WAITS_SECONDS = 20.0
"""Seconds without being ready after which it is looked up what a part waits for."""
LOOK_AGAIN_SECONDS = 30.0


@dataclass
class Tended:
    """A part as it is tended: how to start it, and what has befallen it so far."""

    name: str
    launch: Callable[[], Part]
    part: Part | None = None
    pause: float = FIRST_PAUSE
    again_at: float = 0.0
    launched_at: float = 0.0
    up: bool = False
    said: str = ""
    looked_at: float = 0.0


class Tending:
    """Tends the parts in rounds that wait for nothing, and says what changes in one line each."""

    def __init__(self, parts: Parts, settings: Settings, say: Callable[[str], None]) -> None:
        self.parts = parts
        self.settings = settings
        self.say = say
        serves = bool(settings.machines_address)
        self.tended: Sequence[Tended] = [
            *([] if settings.redis_url else [Tended("valkey", partial(parts.launch_valkey, settings))]),
            *(Tended(name, partial(parts.launch_stoa, settings, name)) for name in PARTS),
            *([Tended("machine", partial(parts.launch_stoa, settings, "machine", "serve"))] if serves else []),
        ]
        self.all_up = False

    def round(self) -> None:
        """Start what is due, notice what has ended or is ready, and say so."""
        for tended in self.tended:
            self._tend(tended, time.monotonic())
        if not self.all_up and all(tended.up for tended in self.tended):
            self.all_up = True
            self.say("Stoa is up. Ctrl-C stops it; runs that are under way go on.")

    def _tend(self, tended: Tended, now: float) -> None:
        part = tended.part
        if part is None:
            if now >= tended.again_at:
                self._launch(tended, now)
        elif part.popen.poll() is not None:
            self._ended(tended, part, now)
        elif not tended.up and part.ready():
            tended.up, tended.said = True, ""
            self.say(f"{tended.name} is up")
        elif not tended.up and now - tended.launched_at > WAITS_SECONDS:
            self._look(tended, now)

    def _launch(self, tended: Tended, now: float) -> None:
        tended.launched_at = now
        try:
            tended.part = tended.launch()
        except OSError as error:
            self._later(tended, now)
            self._say_once(tended, f"the {tended.name} cannot be started ({error}); it is tried again")

    def _ended(self, tended: Tended, part: Part, now: float) -> None:
        self.parts.clear(tended.name)
        if tended.up and now - tended.launched_at > STAYED_SECONDS:
            tended.pause = FIRST_PAUSE
        said = f"the {tended.name} ended unexpectedly and is started again"
        why = f"status {part.popen.returncode}: {last_line(part.log)}; its log is {part.log}"
        if tended.up:
            self.say(f"{said} ({why})")
        else:
            self._say_once(tended, f"{said}, after growing pauses ({why})")
        tended.part, tended.up = None, False
        self._later(tended, now)

    def _later(self, tended: Tended, now: float) -> None:
        tended.again_at = now + tended.pause
        tended.pause = min(tended.pause * 2, LONGEST_PAUSE)

    def _look(self, tended: Tended, now: float) -> None:
        """Find out in a thread what a part waits for, and say it once."""
        if now - tended.looked_at < LOOK_AGAIN_SECONDS:
            return
        tended.looked_at = now

        def look() -> None:
            if (missing := missing_for(self.settings, tended.name)) and not tended.up:
                self._say_once(tended, f"the {tended.name} waits: {missing}")

        threading.Thread(target=look, daemon=True).start()

    def _say_once(self, tended: Tended, said: str) -> None:
        if said != tended.said:
            tended.said = said
            self.say(said)


def missing_for(settings: Settings, name: str) -> str:
    """What a part needs and that does not answer, as a sentence; empty where all of it does."""
    from cli import doctor

    if name in ("worker", "publisher") and not (queue := doctor.check_queue(settings)).ok:
        return f"{queue.found}. {queue.advice}"
    if name in ("scheduler", "bot") and not (database := doctor.check_database(settings)).ok:
        return f"{database.found}. {database.advice}"
    return ""
