"""Corpora that a pool lacks: sent to the store where they lie, and copied from there by whoever trains on them."""

import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich import filesize

from broker import corpus_copies
from broker import store as stores
from broker.allocations import corpora
from broker.end_reasons import EndReason
from broker.reports import run_plan, why
from broker.runners import elsewhere
from broker.runners.staging import AskedToStop
from broker.runs.runs import RunState
from broker.store import ChangedError, DamagedError, Store, StoreError
from projects.errors import ConflictError
from projects.settings import Settings
from tests import forked
from tests.broker.copying import (
    HAS,
    LACKS,
    add,
    launch,
    losses,
    order,
    projects,
    propose,
    push,
    pushed,
    songs,
    supervised,
    told,
    trained,
)
from tests.broker.lab import ADA, Lab, request_id, settings
from tests.broker.supervised import attempt, charged
from tests.databases import ONCE
from tests.environment import bare
from tests.patience import PATIENCE, wait_for
from tests.seaweed import READER, READERS_SECRET, Seaweed
from tests.standin import python_with_trainer
from tests.trainer.test_data_indexed import write
from trainer.contract import CorpusKind
from trainer.data import measure, readers
from trainer.data.config import DataConfig, SourceConfig, TokenizerConfig

ENDS = "import json, pathlib, sys; pathlib.Path(sys.argv[4], 'outcome.json').write_text(json.dumps({'status': 0}))"
"""A trainer that ends well at once."""


class Counting(Store):
    """A store that knows what was read of it and written to it, and that can be `full` for one name."""

    def __init__(self, conf: Settings, full: str = "") -> None:
        super().__init__(conf)
        self.asked: list[str] = []
        self.written: list[str] = []
        self.full = full

    def writing(self, name: str) -> Any:
        """See Store."""
        if self.full and name.endswith(self.full):
            raise StoreError("The store is full.")
        self.written.append(name.partition("/")[2].partition("/")[2])
        return super().writing(name)

    def blocks(self, name: str) -> Iterator[bytes]:
        """See Store."""
        self.asked.append(name)
        return super().blocks(name)


def nobody(why: str) -> None:
    raise AssertionError(why)


def copy_of(store: Store, folder: Path) -> str:
    """The name of a copy in the store of what `songs` writes."""
    path = songs(folder)
    files = {each.relative_to(folder).as_posix(): each for each in measure.files_at(CorpusKind.TEXT, path)}
    described = corpus_copies.described_files(files, lambda _: None)
    copy = corpus_copies.copy_name("songs", corpus_copies.digest(described))
    store.push_files(files, corpus_copies.folder(copy), described)
    return copy


@pytest.fixture
def conf(tmp_path: Path) -> Settings:
    """The settings of the host that lacks the corpus, whose store is a folder."""
    return settings(tmp_path / "there", store=f"file://{tmp_path}/store")


def corpus_of(folder: Path, what: str) -> tuple[CorpusKind, Path]:
    """A corpus of one of the kinds that the trainer reads."""
    folder.mkdir()
    if what == "pair":
        write(folder / "songs", [[1, 2, 3], [4] * 9, [5, 6]])
        return CorpusKind.TOKENS, folder / "songs"
    if what == "parquet":
        for number in range(3):
            pq.write_table(pa.table({"text": [f"{number} la", "la la"]}), folder / f"part-{number}.parquet")
        return CorpusKind.TEXT, folder / "part-?.parquet"
    if what == "folder":
        (folder / ".hidden").write_text("not read")
        (folder / "[b]").mkdir()
        (folder / "[b]" / "x.txt").write_text("la")
        (folder / "a.txt").write_text("la la")
        return CorpusKind.TEXT, folder
    if what == "one file":
        songs(folder / "[old]")
        return CorpusKind.TEXT, folder / "[old]" / "a.jsonl"
    if what == "dataset":
        (folder / "train.jsonl").write_text('{"text": "la"}\n{"text": "lo"}\n')
        (folder / "README.md").write_text("# Songs")
        return CorpusKind.DATASET, folder
    return CorpusKind.TEXT, songs(folder)


@ONCE
@pytest.mark.parametrize("what", ["pattern", "one file", "folder", "parquet", "pair", "dataset"])
def test_a_copy_is_read_as_the_original_is(lab: Lab, conf: Settings, tmp_path: Path, what: str) -> None:
    lab.pool(HAS)
    kind, path = corpus_of(tmp_path / "data", what)
    add(lab, HAS, path, kind=kind)
    assert push(lab, conf).returncode == 0
    with lab.db.read() as session:
        corpus = corpora.named(session, pool=HAS, name="songs")
    corpus_copies.fetch(Store(conf), corpus.copy_name, conf.corpora_dir, nobody)

    def read(place: str) -> list[object]:
        key = "path" if kind == CorpusKind.TEXT else kind.value
        given = {"name": "songs", "licence": "MIT", "weight": 1, key: place}
        data = DataConfig(
            sequence_length=8,
            tokenizer=TokenizerConfig(vocabulary=320, file="of the pair" if kind == CorpusKind.TOKENS else None),
            sources=[SourceConfig.model_validate(given)],
        )
        found = readers.read(data.sources[0], data)
        return [(each.name, each.text, each.tokens if each.tokens is None else each.tokens.tolist()) for each in found]

    original = read(corpus.path)
    copy = corpus.place_for(corpus.pool_id + 1, conf.corpora_dir)
    assert original
    assert copy != corpus.path
    assert read(copy) == original
    assert len([each for each in (conf.corpora_dir / corpus.copy_name).rglob("*") if each.is_file()]) == corpus.files


@ONCE
def test_a_run_where_the_corpus_is_copied_has_the_losses_of_one_where_it_lies(
    lab: Lab, seaweed: Seaweed, tmp_path: Path
) -> None:
    project = projects(lab)
    add(lab, HAS, songs(tmp_path / "data"))
    propose(lab)
    here = seaweed.settings(settings(tmp_path / "here"), prefix="losses")
    there = seaweed.settings(settings(tmp_path / "there"), prefix="losses")
    before = lab.everything()
    with pytest.raises(
        ConflictError,
        match=r"needs songs, which the pool “lacks” lacks; the pool “has” has all, and an operator shares it with "
        r"`stoa corpus push songs --pool has`\.",
    ):
        launch(lab, project, LACKS)
    assert lab.everything() == before

    done = push(lab, here)
    assert (done.returncode, done.stdout) == (0, "songs of has is in the store: pools that lack it copy it\n"), (
        done.stderr
    )
    assert push(lab, here).returncode == 0, "a repeat changes nothing"
    listed = forked.run_module("cli.main", told(lab, here), "corpus", "list").stdout
    assert "in the store" in listed
    with lab.db.write() as session:
        size = corpora.named(session, pool=HAS, name="songs").bytes
        assert run_plan.plan_run(session, ADA, request_id(), order(lab, project, LACKS)).quote.copies == {"songs": size}
        assert not run_plan.plan_run(session, ADA, request_id(), order(lab, project, HAS)).quote.copies
    first, second = launch(lab, project, HAS), launch(lab, project, LACKS)
    original = losses(trained(lab, here, first))
    shutil.rmtree(tmp_path / "data")
    copied = trained(lab, there, second)
    assert len(original) == 4
    assert losses(copied) == original, "to the last bit"
    assert not (here.corpora_dir).exists(), "what lies there is not copied"
    [copy] = [path for path in there.corpora_dir.iterdir() if path.is_dir()]
    assert sorted(path.name for path in copy.rglob("*") if path.is_file()) == ["a.jsonl", "c.jsonl"]
    assert str(copy) in (copied.parent / "config.yml").read_text()

    third = launch(lab, project, LACKS)
    Store(there).remove(f"corpora/{copy.name}/whole")
    assert losses(trained(lab, there, third)) == original, "what is here is not copied again"


def test_what_was_sent_before_a_cut_is_not_sent_again(conf: Settings, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is full"):
        copy_of(Counting(conf, full="b/c.jsonl"), tmp_path / "data")
    store = Counting(conf)
    copy = copy_of(store, tmp_path / "data")
    assert store.written == ["b/c.jsonl", "whole"]
    corpus_copies.fetch(store, copy, conf.corpora_dir, nobody)


def test_a_file_that_changes_while_it_is_sent_is_no_copy(conf: Settings, tmp_path: Path) -> None:
    store, file = Store(conf), tmp_path / "a.jsonl"
    file.write_text("one")
    known = corpus_copies.described_files({"a.jsonl": file}, lambda _: None)
    file.write_text("two")
    for _ in range(2):
        with pytest.raises(ChangedError, match=r"a\.jsonl has changed while it was sent\.$"):
            store.push_files({"a.jsonl": file}, "corpora/songs-0", known)
        assert store.names("corpora/songs-0") == []


def test_one_copies_while_the_others_wait_and_say_for_whom(conf: Settings, tmp_path: Path) -> None:
    store = Counting(conf)
    copy = copy_of(store, tmp_path / "data")
    begun, go_on = threading.Event(), threading.Event()
    heard: list[str] = []

    def slowly(_size: int) -> None:
        begun.set()
        assert go_on.wait(PATIENCE)

    def wait(owner: str) -> None:
        heard.append(owner)
        go_on.set()

    one = threading.Thread(
        target=corpus_copies.fetch,
        args=(store, copy, conf.corpora_dir, nobody),
        kwargs={"owner": "Run 7", "advance": slowly},
    )
    one.start()
    assert begun.wait(PATIENCE)
    corpus_copies.fetch(store, copy, conf.corpora_dir, wait)
    go_on.set()
    one.join()
    assert set(heard) == {"Run 7"}
    assert len(store.asked) == 2, "each file once"


@ONCE
def test_a_run_that_waits_for_a_copy_costs_nothing_says_so_and_can_be_cancelled(
    lab: Lab, conf: Settings, tmp_path: Path
) -> None:
    project = pushed(lab, conf, tmp_path / "data")
    run = launch(lab, project, LACKS)
    with lab.db.read() as session:
        copy = corpora.named(session, pool=HAS, name="songs").copy_name
    conf.corpora_dir.mkdir(parents=True)
    with (
        corpus_copies.alone(conf.corpora_dir / f".{copy}.lock", "Run 99", nobody),
        supervised(lab, conf, run) as (supervisor, token, _),
    ):
        wait_for(lambda: attempt(lab, run, token).waiting, "a word on what it waits for")
        assert attempt(lab, run, token).waiting == "Run 99 copies songs from the store to this host"
        with lab.db.read() as session:
            assert why.why(session, run).reason == "Run 99 copies songs from the store to this host."
        lab.cancel(run)
        assert supervisor.wait(PATIENCE) == 0
    assert lab.run(run).state == RunState.CANCELLED
    assert charged(lab, run, token) == 0


@ONCE
def test_how_far_a_copy_is_is_told_and_one_that_is_stopped_goes_on_later(
    lab: Lab, conf: Settings, tmp_path: Path
) -> None:
    project = pushed(lab, conf, tmp_path / "data")
    run = lab.row(launch(lab, project, LACKS))
    size = filesize.decimal(sum(path.stat().st_size for path in (tmp_path / "data").rglob("*.jsonl")))

    def stop(why: str) -> None:
        raise AskedToStop

    with pytest.raises(AskedToStop):
        elsewhere.bring_corpora(conf, lab.db, run, nobody, stop)
    assert not list(conf.corpora_dir.glob("songs*"))
    heard: list[str] = []
    elsewhere.bring_corpora(conf, lab.db, run, nobody, heard.append)
    assert heard[-1] == f"Copying songs from the store: {size} of {size} are here"
    [copy] = conf.corpora_dir.glob("songs*")
    assert sorted(path.name for path in copy.rglob("*") if path.is_file()) == ["a.jsonl", "c.jsonl"]
    heard.clear()
    elsewhere.bring_corpora(conf, lab.db, run, nobody, heard.append)
    assert heard == [], "it is here"


def test_who_is_killed_while_copying_leaves_what_the_next_one_goes_on_from(conf: Settings, tmp_path: Path) -> None:
    store = Counting(conf)
    copy = copy_of(store, tmp_path / "data")
    staging = stores.staging_of(conf.corpora_dir / copy)
    code = f"""
import os, signal
from pathlib import Path
from broker import corpus_copies, store as stores
from projects.settings import get_settings
stores.AT_ONCE = 1
seen = []
def advance(size):
    seen.append(size)
    if len(seen) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
corpus_copies.fetch(stores.Store(get_settings()), {copy!r}, Path({str(conf.corpora_dir)!r}), print, advance=advance)
"""
    environment = bare() | {"STOA_ENV_FILE": "", "STOA_STORE": conf.store, "STOA_HOME": str(conf.home)}
    killed = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert sorted(path.suffix for path in staging.rglob("*") if path.is_file())[0] != ".jsonl", "a part of a file"
    corpus_copies.fetch(store, copy, conf.corpora_dir, nobody)
    assert store.asked == [f"corpora/{copy}/b/c.jsonl"], "the first file was here"
    found = sorted(path.name for path in (conf.corpora_dir / copy).rglob("*") if path.is_file())
    assert found == ["a.jsonl", "c.jsonl"]
    assert not staging.exists()


@ONCE
def test_what_the_store_has_damaged_is_told_tried_again_and_mended(lab: Lab, conf: Settings, tmp_path: Path) -> None:
    project = pushed(lab, conf, tmp_path / "data")
    run = launch(lab, project, LACKS)
    [object_] = (tmp_path / "store").rglob("c.jsonl")
    original = object_.read_bytes()
    object_.write_bytes(original[:-1] + b"!")
    with supervised(lab, conf, run) as (supervisor, token, _):
        assert supervisor.wait(PATIENCE) == 0
    copy = object_.parents[1].name
    assert attempt(lab, run, token).reason == (
        f"it could not be started: The store has other bytes as corpora/{copy}/b/c.jsonl than were put there; an "
        "operator sends it again with `stoa corpus push songs --pool has --again`"
    )
    assert (lab.run(run).state, attempt(lab, run, token).end_reason) == (RunState.QUEUED, EndReason.NOT_STARTED)
    assert charged(lab, run, token) == 0
    assert push(lab, conf, "--again").returncode == 0
    assert object_.read_bytes() == original
    python = python_with_trainer(tmp_path, ENDS)
    with supervised(lab, conf, run, python) as (supervisor, _, _):
        assert supervisor.wait(PATIENCE) == 0
    assert lab.run(run).state == RunState.FINISHED


def test_what_the_store_has_lost_or_replaced_is_never_copied(conf: Settings, tmp_path: Path) -> None:
    store = Store(conf)
    copy = copy_of(store, tmp_path / "data")
    whole = f"corpora/{copy}/whole"
    manifest = store.read(whole) or b""
    store.remove(f"corpora/{copy}/a.jsonl")
    with pytest.raises(DamagedError, match=rf"^The store has lost corpora/{copy}/a\.jsonl\.$"):
        corpus_copies.fetch(store, copy, conf.corpora_dir, nobody)
    store.write(whole, manifest.replace(b"b/c.jsonl", b"b/d.jsonl"))
    with pytest.raises(DamagedError, match=rf"^The store has other files as corpora/{copy} than were put there\.$"):
        corpus_copies.fetch(store, copy, conf.corpora_dir, nobody)
    store.remove(whole)
    with pytest.raises(DamagedError, match=rf"^The store has lost corpora/{copy}\.$"):
        corpus_copies.fetch(store, copy, conf.corpora_dir, nobody)
    assert not (conf.corpora_dir / copy).exists()


@ONCE
def test_a_disk_without_room_is_one_sentence(lab: Lab, conf: Settings, tmp_path: Path) -> None:
    project = pushed(lab, conf, tmp_path / "data")
    run = launch(lab, project, LACKS)
    with lab.db.read() as session:
        size = corpora.named(session, pool=HAS, name="songs").bytes
    with supervised(lab, conf, run, more={"STOA_DISK_FLOOR_GIB": "1000000"}) as (supervisor, token, _):
        assert supervisor.wait(PATIENCE) == 0
    assert attempt(lab, run, token).reason == (
        f"it could not be started: songs needs {size / 1000:.1f} kB of the disk here, of which 0 bytes may be used"
    )
    assert lab.run(run).state == RunState.QUEUED
    assert not list(conf.corpora_dir.glob("songs*"))


@ONCE
def test_a_corpus_that_has_changed_is_not_sent(lab: Lab, conf: Settings, tmp_path: Path) -> None:
    lab.pool(HAS)
    add(lab, HAS, songs(tmp_path / "data"))
    file = tmp_path / "data" / "a.jsonl"
    original = file.read_text()
    file.write_text(original + "\n")
    done = push(lab, conf)
    assert (done.returncode, "has changed since it was registered: 2 files of" in done.stderr) == (2, True)
    assert not (tmp_path / "store").exists()
    file.write_text(original)
    assert push(lab, conf).returncode == 0
    file.write_text(original.replace("frog", "toad"))
    done = push(lab, conf)
    expected = "“songs” has changed since it was sent to the store. Retire it and add it again.\n"
    assert (done.returncode, done.stderr) == (2, expected)
    assert len(list((tmp_path / "store" / "corpora").iterdir())) == 1
    lab.pool(LACKS)
    add(lab, LACKS, tmp_path / "data" / "**" / "*.jsonl")
    done = push(lab, conf, pool=LACKS)
    expected = "The store has another “songs”, that of the pool “has”: retire one of them, and add it again under a "
    assert (done.returncode, done.stderr) == (2, f"{expected}name of its own.\n")
    file.unlink()
    (tmp_path / "data" / "b" / "c.jsonl").unlink()
    done = push(lab, conf)
    assert (done.returncode, "There is no file at" in done.stderr) == (2, True)


@ONCE
def test_nonsense_is_refused_before_anything_is_read(lab: Lab, conf: Settings, tmp_path: Path) -> None:
    lab.pool(HAS)
    done = push(lab, settings(tmp_path))
    assert (done.returncode, done.stderr) == (2, "STOA_STORE is not set: it names the store that all hosts reach.\n")
    done = push(lab, conf)
    assert (done.returncode, "The pool “has” has no “songs”" in done.stderr) == (2, True)


@ONCE
@pytest.mark.parametrize(
    "name", [f"{'a' * 200}/{'b' * 200}/{'c' * 200}/{'d' * 200}", "back\\slash", "new\nline", "a\xa0b"]
)
def test_a_file_whose_name_other_hosts_could_not_be_given_is_not_sent(
    lab: Lab, conf: Settings, tmp_path: Path, name: str
) -> None:
    lab.pool(HAS)
    path = songs(tmp_path / "data")
    odd = tmp_path / "data" / f"{name}.jsonl"
    odd.parent.mkdir(parents=True, exist_ok=True)
    odd.write_text('{"text": "la"}')
    add(lab, HAS, path)
    done = push(lab, conf)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.startswith(f"Other hosts could not be given the file '{ascii(name)[1:-1][:40]}")
    assert "a name has at most 774 bytes, no backslash, and no character that cannot be shown." in done.stderr
    assert not (tmp_path / "store").exists()


@ONCE
def test_a_store_that_refuses_a_corpus_is_one_sentence(lab: Lab, seaweed: Seaweed, tmp_path: Path) -> None:
    lab.pool(HAS)
    add(lab, HAS, songs(tmp_path / "data"))
    keys = {"store_key": READER, "store_secret": READERS_SECRET}
    done = push(lab, seaweed.settings(settings(tmp_path), prefix="refused", **keys))
    assert done.returncode == 2
    assert done.stderr.startswith("The store refuses this with the keys that are set: could not write corpora/songs-")
    assert done.stderr.endswith(" What was sent need not be sent again: run the command again.\n")
    with lab.db.read() as session:
        assert not corpora.named(session, pool=HAS, name="songs").stored
