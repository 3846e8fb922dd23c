"""The carrier of an attempt: what is put into the store, in which order, and through cuts and a store that is away."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from broker import pieces
from broker.pieces import PIECE, Growing
from broker.runners import carrier, elsewhere
from broker.runners.carrier import CARRIER_LOG_FILE, DONE_FILE, LEFT_OVER, Watch
from broker.store import Store
from projects.settings import Settings
from tests.broker.lab import settings
from tests.broker.test_store import checkpoint, content
from tests.patience import PATIENCE, wait_for

ATTEMPT = "runs/7-a/attempt-1"


@pytest.fixture
def conf(tmp_path: Path) -> Settings:
    return settings(tmp_path / "home", store=f"file://{tmp_path}/store")


@pytest.fixture
def folder(conf: Settings) -> Path:
    """The folder of an attempt that has one checkpoint."""
    folder = conf.runs_dir / "7" / "attempt-1"
    checkpoint(folder / "checkpoints" / "step10")
    (folder / "metrics.jsonl").write_text('{"step": 10}\n')
    (folder / "trainer.log").write_text("began\n")
    return folder


@pytest.fixture
def watch(conf: Settings, folder: Path) -> Iterator[Watch]:
    watch = Watch(conf, folder)
    yield watch
    with suppress(ProcessLookupError):
        if watch.process is not None:
            watch.process.kill()
            watch.process.wait(PATIENCE)


def ended(watch: Watch, status: int) -> None:
    """The trainer has ended, and then its supervisor."""
    watch.end(status)
    assert watch.process is not None
    assert watch.process.stdin is not None
    watch.process.stdin.close()
    assert watch.process.wait(PATIENCE) == 0


def test_an_attempt_is_carried_and_its_outcome_comes_last(conf: Settings, folder: Path, watch: Watch) -> None:
    store = Store(conf)
    watch.begin(ATTEMPT, None)
    wait_for(lambda: store.is_whole(f"{ATTEMPT}/checkpoints/step10"), "the first checkpoint")
    checkpoint(folder / "checkpoints" / "step20")
    checkpoint(folder / "checkpoints" / ".step30.writing")
    wait_for(lambda: store.is_whole(f"{ATTEMPT}/checkpoints/step20"), "the second checkpoint")
    wait_for(lambda: pieces.tail(store, f"{ATTEMPT}/trainer.log", 100) == b"began\n", "the log")
    (folder / "outcome.json").write_text('{"status": 0}')
    with (folder / "trainer.log").open("a") as log:
        log.write("ended\n")
    ended(watch, 0)
    assert store.read(f"{ATTEMPT}/outcome.json") == b'{"status": 0}'
    assert pieces.tail(store, f"{ATTEMPT}/trainer.log", 100) == b"began\nended\n"
    assert pieces.read_from(store, f"{ATTEMPT}/metrics.jsonl", 0) == b'{"step": 10}\n'
    assert store.names(f"{ATTEMPT}/checkpoints") == ["step10", "step20"]
    assert json.loads(store.read(f"{ATTEMPT}/carrier") or b"")["done"]
    assert (folder / DONE_FILE).exists()


def test_a_carrier_that_was_killed_is_started_again(conf: Settings, folder: Path, watch: Watch) -> None:
    watch.again_seconds = 0.0
    watch.begin(ATTEMPT, None)
    first = watch.process
    assert first is not None
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait(PATIENCE) == -signal.SIGKILL
    watch.keep()
    assert watch.process is not first
    wait_for(lambda: Store(conf).is_whole(f"{ATTEMPT}/checkpoints/step10"), "the checkpoint")
    ended(watch, 75)


def test_what_a_stopped_host_has_left_is_carried_later(conf: Settings, folder: Path, watch: Watch) -> None:
    watch.begin(ATTEMPT, None)
    assert watch.process is not None
    os.kill(watch.process.pid, signal.SIGKILL)
    watch.process.wait(PATIENCE)
    watch.end(75)
    carrier.carry_left_over(conf)
    assert Store(conf).is_whole(f"{ATTEMPT}/checkpoints/step10")
    assert (folder / DONE_FILE).exists()


def test_what_is_being_carried_is_left_alone(conf: Settings, folder: Path, watch: Watch) -> None:
    watch.begin(ATTEMPT, None)
    wait_for(lambda: Store(conf).read(f"{ATTEMPT}/carrier"), "the carrier at work")
    carrier.spawn(conf, folder, LEFT_OVER).wait(PATIENCE)
    assert not (folder / DONE_FILE).exists()
    ended(watch, 0)


def test_a_store_that_is_away_is_tried_again_and_nothing_is_lost(conf: Settings, folder: Path, watch: Watch) -> None:
    place = Path(conf.store.removeprefix("file://"))
    place.write_text("no folder")
    watch.begin(ATTEMPT, None)
    wait_for(lambda: b"not carried yet; trying again" in (folder / CARRIER_LOG_FILE).read_bytes(), "a line in the log")
    watch.end(0)
    place.unlink()
    ended(watch, 0)
    assert Store(conf).is_whole(f"{ATTEMPT}/checkpoints/step10")


def test_prepared_data_are_carried_once_they_are_made(conf: Settings, folder: Path, watch: Watch) -> None:
    made = checkpoint(conf.data_dir / "songs" / "7-1")
    watch.begin(ATTEMPT, made)
    ended(watch, 0)
    assert Store(conf).pull(f"{ATTEMPT}/data", conf.home / "back")
    assert content(conf.home / "back") == content(made)


def test_data_of_an_attempt_that_failed_are_not_carried(conf: Settings, folder: Path, watch: Watch) -> None:
    watch.begin(ATTEMPT, checkpoint(conf.data_dir / "songs" / "7-1"))
    ended(watch, 70)
    assert not Store(conf).is_whole(f"{ATTEMPT}/data")


def test_a_growing_file_is_read_from_any_byte(conf: Settings, tmp_path: Path) -> None:
    path, store = tmp_path / "trainer.log", Store(conf)
    growing = Growing(store, path, "log")
    assert not growing.carry(), "there is no file yet"
    assert pieces.tail(store, "log", 10) is None
    written = b""
    for size in (10, PIECE, 5, 0, 3 * PIECE):
        written += os.urandom(size)
        path.write_bytes(written)
        assert growing.carry() == bool(size)
        read = b""
        while more := pieces.read_from(store, "log", len(read)):
            read += more
        assert read == written
        assert pieces.tail(store, "log", 1000) == written[-1000:]
    path.write_bytes(written + b"end")
    Growing(store, path, "log").carry()  # another carrier, which knows nothing
    assert pieces.tail(store, "log", 3) == b"end"


def test_a_checkpoint_on_its_way_is_waited_for(conf: Settings, folder: Path) -> None:
    store, place, target = Store(conf), f"{ATTEMPT}/checkpoints/step10", conf.home / "there" / "step10"
    store.write(f"{ATTEMPT}/carrier", b'{"beat": 1}')
    beats: list[str] = []

    def hold(why: str) -> None:
        beats.append(why)
        store.write(f"{ATTEMPT}/carrier", json.dumps({"beat": len(beats) + 1}).encode())
        if len(beats) == 2 * elsewhere.SILENT_POLLS:
            store.push(folder / "checkpoints" / "step10", place)

    target.parent.mkdir(parents=True)
    assert elsewhere.obtained(store, place, target, hold)
    assert beats[0] == "Another host still puts step10 into the store"
    assert content(target) == content(folder / "checkpoints" / "step10")


@pytest.mark.parametrize("said", [None, b'{"done": true}', b'{"beat": 3}'])
def test_a_checkpoint_that_nobody_carries_is_not_waited_for(conf: Settings, said: bytes | None) -> None:
    store = Store(conf)
    if said is not None:
        store.write(f"{ATTEMPT}/carrier", said)
    held: list[str] = []
    assert not elsewhere.obtained(store, f"{ATTEMPT}/checkpoints/step10", conf.home / "step10", held.append)
    assert len(held) == (elsewhere.SILENT_POLLS + 1 if said == b'{"beat": 3}' else 0)
