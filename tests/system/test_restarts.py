"""The services of `stoa up` are watched one by one: none is stopped for another's trouble, and none is given up."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli import restarts
from cli.restarts import Restarts, Watched
from cli.services import Service, Services
from tests.broker.lab import settings
from tests.patience import wait_for

FALLS = [sys.executable, "-c", "import sys; sys.exit('It is no use.')"]
LIVES = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(600)"]


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    found = Services(tmp_path / "logs")
    yield found
    found.stop()


def watched(services: Services, name: str, command: list[str]) -> Watched:
    def launch() -> Service:
        return services.launch(name, command, {}, lambda: b"ready" in (services.logs / f"{name}.log").read_bytes())

    return Watched(name, launch)


def rounds(restarts: Restarts, what: Callable[[], object]) -> None:
    """Go round until something is so."""

    def once() -> object:
        restarts.round()
        return what()

    wait_for(once)


def test_a_service_that_falls_again_and_again_is_tried_without_end_and_harms_no_other(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarts, "FIRST_PAUSE", 0.05)
    said: list[str] = []
    watching = Restarts(services, settings(tmp_path), said.append)
    falling, living = watched(services, "scheduler", FALLS), watched(services, "bot", LIVES)
    falling.pause = 0.05
    watching.watched = [falling, living]
    pauses: set[float] = set()

    def five() -> bool:
        pauses.add(falling.pause)
        return len(pauses) >= 5

    rounds(watching, five)
    pid = services.running["bot"].popen.pid
    assert sorted(pauses) == [0.05 * 2**n for n in range(5)], "the pauses grow"
    assert (services.running["bot"].popen.poll(), services.running["bot"].popen.pid) == (None, pid)
    about = [line for line in said if "scheduler" in line]
    assert len(about) == 1, "one and the same trouble is said once"
    assert "It is no use." in about[0]
    assert not watching.all_up
    falling.launch = watched(services, "scheduler", LIVES).launch
    rounds(watching, lambda: watching.all_up)
    assert said[-1].startswith("Stoa is up.")


def test_while_a_service_starts_the_others_are_watched(services: Services, tmp_path: Path) -> None:
    said: list[str] = []
    watching = Restarts(services, settings(tmp_path), said.append)
    slow = watched(services, "worker", [sys.executable, "-c", "import time; time.sleep(600)"])
    living = watched(services, "bot", LIVES)
    watching.watched = [slow, living]
    rounds(watching, lambda: living.up)
    services.running["bot"].popen.kill()
    rounds(watching, lambda: any("the bot ended unexpectedly and is started again" in line for line in said))
    rounds(watching, lambda: living.up)
    assert not slow.up


def test_what_a_service_waits_for_is_said_once(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarts, "WAITS_SECONDS", 0.0)
    monkeypatch.setattr(restarts, "LOOK_AGAIN_SECONDS", 0.0)
    said: list[str] = []
    watching = Restarts(services, settings(tmp_path, redis_url="redis://127.0.0.1:1/0"), said.append)
    assert [service.name for service in watching.watched] == ["scheduler", "worker", "publisher", "bot"]
    watching.watched = [watched(services, "worker", [sys.executable, "-c", "import time; time.sleep(600)"])]
    rounds(watching, lambda: said)
    for _ in range(5):
        watching.round()
        time.sleep(0.1)
    assert said == ["the worker waits: Redis does not answer. Start it, or correct STOA_REDIS_URL."]
