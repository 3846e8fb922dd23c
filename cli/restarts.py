"""Restarting the services of `stoa up`: each is started by itself, watched, and started again after growing pauses.

No service is stopped because another cannot start. What a service waits for, such as Redis, is said once.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from cli.services import Service, Services, last_line
from projects.settings import Settings

SERVICES = ("scheduler", "worker", "publisher", "bot")
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0
"""Seconds before a service that has ended is started again; the pause doubles until the service has stayed up."""
STAYED_SECONDS = 600.0
"""A service that was up for so long has mended: its next pause is the first one."""
WAITS_SECONDS = 20.0
"""Seconds without being ready after which it is looked up what a service waits for."""
LOOK_AGAIN_SECONDS = 30.0


@dataclass
class Watched:
    """A service as it is watched: how to start it, and what has befallen it so far."""

    name: str
    launch: Callable[[], Service]
    service: Service | None = None
    pause: float = FIRST_PAUSE
    again_at: float = 0.0
    launched_at: float = 0.0
    up: bool = False
    said: str = ""
    looked_at: float = 0.0


class Restarts:
    """Watches the services in rounds that wait for nothing, and says what changes in one line each."""

    def __init__(self, services: Services, settings: Settings, say: Callable[[str], None]) -> None:
        self.services = services
        self.settings = settings
        self.say = say
        serves = bool(settings.machines_address)
        self.watched: Sequence[Watched] = [
            *([] if settings.redis_url else [Watched("valkey", partial(services.launch_valkey, settings))]),
            *(Watched(name, partial(services.launch_stoa, settings, name)) for name in SERVICES),
            *([Watched("machine", partial(services.launch_stoa, settings, "machine", "serve"))] if serves else []),
        ]
        self.all_up = False

    def round(self) -> None:
        """Start what is due, notice what has ended or is ready, and say so."""
        for watched in self.watched:
            self._watch(watched, time.monotonic())
        if not self.all_up and all(watched.up for watched in self.watched):
            self.all_up = True
            self.say("Stoa is up. Ctrl-C stops it; runs that are under way go on.")

    def _watch(self, watched: Watched, now: float) -> None:
        service = watched.service
        if service is None:
            if now >= watched.again_at:
                self._launch(watched, now)
        elif service.popen.poll() is not None:
            self._ended(watched, service, now)
        elif not watched.up and service.ready():
            watched.up, watched.said = True, ""
            self.say(f"{watched.name} is up")
        elif not watched.up and now - watched.launched_at > WAITS_SECONDS:
            self._look(watched, now)

    def _launch(self, watched: Watched, now: float) -> None:
        watched.launched_at = now
        try:
            watched.service = watched.launch()
        except OSError as error:
            self._later(watched, now)
            self._say_once(watched, f"the {watched.name} cannot be started ({error}); it is tried again")

    def _ended(self, watched: Watched, service: Service, now: float) -> None:
        self.services.clear(watched.name)
        if watched.up and now - watched.launched_at > STAYED_SECONDS:
            watched.pause = FIRST_PAUSE
        said = f"the {watched.name} ended unexpectedly and is started again"
        why = f"status {service.popen.returncode}: {last_line(service.log)}; its log is {service.log}"
        if watched.up:
            self.say(f"{said} ({why})")
        else:
            self._say_once(watched, f"{said}, after growing pauses ({why})")
        watched.service, watched.up = None, False
        self._later(watched, now)

    def _later(self, watched: Watched, now: float) -> None:
        watched.again_at = now + watched.pause
        watched.pause = min(watched.pause * 2, LONGEST_PAUSE)

    def _look(self, watched: Watched, now: float) -> None:
        """Find out in a thread what a service waits for, and say it once."""
        if now - watched.looked_at < LOOK_AGAIN_SECONDS:
            return
        watched.looked_at = now

        def look() -> None:
            if (missing := missing_for(self.settings, watched.name)) and not watched.up:
                self._say_once(watched, f"the {watched.name} waits: {missing}")

        threading.Thread(target=look, daemon=True).start()

    def _say_once(self, watched: Watched, said: str) -> None:
        if said != watched.said:
            watched.said = said
            self.say(said)


def missing_for(settings: Settings, name: str) -> str:
    """What a service needs and that does not answer, as a sentence; empty where all of it does."""
    from cli import doctor

    if name in ("worker", "publisher") and not (queue := doctor.check_queue(settings)).ok:
        return f"{queue.found}. {queue.advice}"
    if name in ("scheduler", "bot") and not (database := doctor.check_database(settings)).ok:
        return f"{database.found}. {database.advice}"
    return ""
