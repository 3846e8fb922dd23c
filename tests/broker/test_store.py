"""The object store, on a real S3 server and on a folder: whole folders, cuts, and a store that does not do its part."""

import hashlib
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from broker import store
from broker.store import SENT, WHOLE, DamagedError, Store, StoreError
from projects.settings import Settings, SettingsError, get_settings
from tests.broker.lab import settings
from tests.seaweed import READER, READERS_SECRET, SECRET, Seaweed, server

STEP = "runs/7-a/attempt-1/checkpoints/step40"


@pytest.fixture(params=["file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings with a store of their own, on each of the two kinds."""
    own = settings(tmp_path / "home")
    if request.param == "file":
        return own.model_copy(update={"store": f"file://{tmp_path}/store"})
    server: Seaweed = request.getfixturevalue("seaweed")
    return server.settings(own, prefix=tmp_path.name)


def checkpoint(folder: Path, size: int = 100_000) -> Path:
    """A folder with a file in a folder of its own, as a checkpoint has it."""
    (folder / "trainer").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(os.urandom(size))
    (folder / "trainer" / "optimizer.safetensors").write_bytes(os.urandom(size))
    (folder / "empty.json").write_bytes(b"")
    return folder


def content(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_folder_comes_back_as_it_was(place: Settings, tmp_path: Path) -> None:
    here, there = checkpoint(tmp_path / "step40", 12_000_000), Store(place)
    assert not there.pull(STEP, tmp_path / "back" / "step40"), "nothing is there yet"
    there.push(here, STEP)
    assert there.is_whole(STEP)
    assert Store(place).pull(STEP, tmp_path / "back" / "step40")
    assert content(tmp_path / "back" / "step40") == content(here)
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["step40"]
    assert there.names("runs/7-a/attempt-1/checkpoints") == ["step40"]
    assert there.names("runs/8-b") == []


def test_objects_are_written_read_and_replaced(place: Settings) -> None:
    there = Store(place)
    assert there.read("a/outcome.json") is None
    assert there.size("a/outcome.json") is None
    there.write("a/outcome.json", b"first")
    there.write("a/outcome.json", b"later")
    assert (there.read("a/outcome.json"), there.size("a/outcome.json")) == (b"later", 5)
    there.remove("a/outcome.json")
    there.remove("a/outcome.json")
    assert there.read("a/outcome.json") is None


def test_what_was_sent_before_a_cut_is_not_sent_again(place: Settings, tmp_path: Path) -> None:
    here, there = checkpoint(tmp_path / "step40"), Store(place)
    missing = here / "model.safetensors"
    kept = missing.read_bytes()
    there.push(here, STEP)
    # What a cut leaves: all but one file, and the list of these.
    sent = there.read(f"{STEP}/{WHOLE}") or b""
    there.write(f"{STEP}/{SENT}", sent)
    there.remove(f"{STEP}/{WHOLE}")
    there.remove(f"{STEP}/model.safetensors")
    there.write(f"{STEP}/trainer/optimizer.safetensors", b"\0" * 100_000)  # of the same size: seen if it is sent again
    there.push(here, STEP)
    assert there.read(f"{STEP}/model.safetensors") == kept
    assert there.read(f"{STEP}/trainer/optimizer.safetensors") == b"\0" * 100_000
    assert there.is_whole(STEP)


def test_what_was_fetched_before_a_cut_is_not_fetched_again(place: Settings, tmp_path: Path) -> None:
    here, there = checkpoint(tmp_path / "step40"), Store(place)
    there.push(here, STEP)
    good = (here / "model.safetensors").read_bytes()
    there.write(f"{STEP}/model.safetensors", b"other")
    target = tmp_path / "back" / "step40"
    with pytest.raises(DamagedError, match=r"other bytes as .*model\.safetensors than were put there"):
        there.pull(STEP, target)
    assert not target.exists()
    there.write(f"{STEP}/model.safetensors", good)
    there.remove(f"{STEP}/trainer/optimizer.safetensors")  # which was fetched and is good
    assert there.pull(STEP, target)
    assert content(target) == content(here)


def test_a_folder_that_lost_an_object_is_not_whole_and_is_mended(place: Settings, tmp_path: Path) -> None:
    here, there = checkpoint(tmp_path / "step40"), Store(place)
    there.push(here, STEP)
    there.remove(f"{STEP}/model.safetensors")
    assert not there.is_whole(STEP)
    with pytest.raises(DamagedError, match=r"has lost .*model\.safetensors"):
        there.pull(STEP, tmp_path / "back" / "step40")
    there.push(here, STEP)
    assert there.is_whole(STEP)
    assert there.pull(STEP, tmp_path / "back" / "step40")


def test_a_manifest_leads_nowhere_else(place: Settings, tmp_path: Path) -> None:
    there = Store(place)
    there.write(f"{STEP}/{WHOLE}", b'{"../../outside": {"size": 1, "sha256": ""}}')
    assert not there.pull(STEP, tmp_path / "back" / "step40")


def test_attempts_of_runs_of_two_databases_have_folders_of_their_own() -> None:
    assert store.attempt_folder(7, "1234", 1) != store.attempt_folder(7, "5678", 1)
    assert store.attempt_folder(7, "1234", 2).startswith("runs/7-")


def test_a_store_that_refuses_says_so_in_one_sentence(seaweed: Seaweed, tmp_path: Path) -> None:
    def refusal(**changed: Any) -> str:
        with pytest.raises(StoreError) as refused:
            Store(seaweed.settings(settings(tmp_path), prefix="refused", **changed)).write("a", b"x")
        assert READERS_SECRET not in str(refused.value)
        assert SECRET not in str(refused.value)
        return str(refused.value)

    assert "refuses this" in refusal(store_key=READER, store_secret=READERS_SECRET)
    assert "does not take STOA_STORE_KEY" in refusal(store_secret="wrong")
    assert "does not take STOA_STORE_KEY" in refusal(store_key="nobody")
    assert "go together" in refusal(store_secret="")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        assert "does not answer" in refusal(store_endpoint=f"http://127.0.0.1:{taken.getsockname()[1]}")


def test_a_store_that_is_full_says_so_and_keeps_what_it_has(tmp_path: Path) -> None:
    with server() as seaweed:
        there = Store(seaweed.settings(settings(tmp_path), prefix="full"))
        there.push(checkpoint(tmp_path / "step40"), STEP)
        seaweed.stop()
        seaweed.options = ("-volume.minFreeSpace=1000000GiB",)
        seaweed.start()
        with pytest.raises(StoreError, match=r"has a fault of its own, or is full: could not write b \("):
            there.write("b", os.urandom(100_000))
        assert there.read("b") is None
        assert there.pull(STEP, tmp_path / "back")


def test_a_full_disk_here_is_not_the_stores_fault(place: Settings, tmp_path: Path) -> None:
    there = Store(place)
    there.push(checkpoint(tmp_path / "step40"), STEP)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="file"):
        there.pull(STEP, tmp_path / "file" / "step40")


def test_a_store_that_hangs_is_waited_for(seaweed: Seaweed, tmp_path: Path) -> None:
    there = Store(seaweed.settings(settings(tmp_path), prefix="slow"))
    seaweed.hang()
    try:
        threading.Timer(3, seaweed.go_on).start()
        there.push(checkpoint(tmp_path / "step40"), STEP)
    finally:
        seaweed.go_on()
    assert there.is_whole(STEP)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("bucket/prefix", "must be like s3://"),
        ("s3://", "must be like s3://"),
        ("s3://key:secret@bucket/prefix", "must hold no key"),
        ("s3://bucket?access_key=a", "must hold no key"),
        ("file://relative/folder", "must name a folder by its whole path"),
        ("cloud://bucket", "must begin with s3://"),
    ],
)
def test_a_wrong_address_is_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, clear: Callable[[], None], address: str, said: str
) -> None:
    monkeypatch.setenv("STOA_ENV_FILE", "")
    monkeypatch.setenv("STOA_STORE", address)
    with pytest.raises(SettingsError) as wrong:
        get_settings()
    assert f"STOA_STORE {said}" in str(wrong.value)
    assert "secret@" not in str(wrong.value)


@pytest.fixture
def clear() -> Any:
    get_settings.cache_clear()
    yield get_settings.cache_clear
    get_settings.cache_clear()


def test_a_store_whose_package_is_missing_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="begins with abfs://, for which a package is missing"):
        Store(settings(tmp_path, store="abfs://container/prefix"))
