"""The parts of `stoa up` are tended one by one: none is stopped for another's trouble, and none is given up."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli import tending
from cli.services import Part, Parts
from cli.tending import Tended, Tending
from tests.broker.lab import settings
from tests.patience import wait_for

FALLS = [sys.executable, "-c", "import sys; sys.exit('It is no use.')"]
LIVES = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(600)"]


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    found = Parts(tmp_path / "logs")
    yield found
    found.stop()


def tended(parts: Parts, name: str, command: list[str]) -> Tended:
    def launch() -> Part:
        return parts.launch(name, command, {}, lambda: b"ready" in (parts.logs / f"{name}.log").read_bytes())

    return Tended(name, launch)


def rounds(tending: Tending, what: Callable[[], object]) -> None:
    """Go round until something is so."""

    def once() -> object:
        tending.round()
        return what()

    wait_for(once)


def test_a_part_that_falls_again_and_again_is_tried_without_end_and_harms_no_other(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tending, "FIRST_PAUSE", 0.05)
    said: list[str] = []
    tends = Tending(parts, settings(tmp_path), said.append)
    falling, living = tended(parts, "scheduler", FALLS), tended(parts, "bot", LIVES)
    falling.pause = 0.05
    tends.tended = [falling, living]
    pauses: set[float] = set()

    def five() -> bool:
        pauses.add(falling.pause)
        return len(pauses) >= 5

    rounds(tends, five)
    pid = parts.running["bot"].popen.pid
    assert sorted(pauses) == [0.05 * 2**n for n in range(5)], "the pauses grow"
    assert (parts.running["bot"].popen.poll(), parts.running["bot"].popen.pid) == (None, pid)
    about = [line for line in said if "scheduler" in line]
    assert len(about) == 1, "one and the same trouble is said once"
    assert "It is no use." in about[0]
    assert not tends.all_up
    falling.launch = tended(parts, "scheduler", LIVES).launch
    rounds(tends, lambda: tends.all_up)
    assert said[-1].startswith("Stoa is up.")


def test_while_a_part_starts_the_others_are_watched(parts: Parts, tmp_path: Path) -> None:
    said: list[str] = []
    tends = Tending(parts, settings(tmp_path), said.append)
    slow = tended(parts, "worker", [sys.executable, "-c", "import time; time.sleep(600)"])
    living = tended(parts, "bot", LIVES)
    tends.tended = [slow, living]
    rounds(tends, lambda: living.up)
    parts.running["bot"].popen.kill()
    rounds(tends, lambda: any("the bot ended unexpectedly and is started again" in line for line in said))
    rounds(tends, lambda: living.up)
    assert not slow.up


def test_what_a_part_waits_for_is_said_once(parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tending, "WAITS_SECONDS", 0.0)
    monkeypatch.setattr(tending, "LOOK_AGAIN_SECONDS", 0.0)
    said: list[str] = []
    tends = Tending(parts, settings(tmp_path, redis_url="redis://127.0.0.1:1/0"), said.append)
    assert [part.name for part in tends.tended] == ["scheduler", "worker", "publisher", "bot"]
    tends.tended = [tended(parts, "worker", [sys.executable, "-c", "import time; time.sleep(600)"])]
    rounds(tends, lambda: said)
    for _ in range(5):
        tends.round()
        time.sleep(0.1)
    assert said == ["the worker waits: Redis does not answer. Start it, or correct STOA_REDIS_URL."]
