"""Data prepared by several hosts that share a folder are those that one host prepares, to the bit."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.forked import Forked
from tests.patience import PATIENCE, wait_for
from tests.trainer.conftest import TINY, run_trainer, start_trainer
from tests.trainer.test_data_prepare import essay
from tests.trainer.test_data_sources import write_jsonl


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration of one source of four files and two of one, with near-duplicates over the files."""
    for number in range(4):
        texts = [" ".join(essay(seed, 120)) for seed in range(12 * number, 12 * number + 14 + 3 * number)]
        write_jsonl(tmp_path / f"many-{number}.jsonl.zst", texts)
    write_jsonl(tmp_path / "one.jsonl", [" ".join(essay(seed, 120)) for seed in range(500, 560)])
    sources = [
        {"name": "many", "path": "many-*.jsonl.zst", "weight": 2, "licence": "MIT"},
        {"name": "docs", "builtin": "python-docs", "weight": 1, "licence": "PSF-2.0", "max_bytes": 50_000},
        {"name": "one", "path": "one.jsonl", "weight": 1, "licence": "MIT"},
    ]
    data = TINY["data"] | {"root": str(tmp_path), "sources": sources, "dedupe": {"permutations": 32}}
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(TINY | {"data": data}))
    return path


STARTED: dict[Forked, Path] = {}
"""The hosts of a test, and what each has said."""


@pytest.fixture(autouse=True)
def _ended() -> Iterator[None]:
    """A host waits for the others without end, so a test that fails must not leave one."""
    yield
    while STARTED:
        STARTED.popitem()[0].kill()


def start(config: Path, out: Path, host: int, hosts: int) -> Forked:
    share = "--workers", "1", "--hosts", str(hosts), "--host", str(host)
    log = out.with_name(f"started{len(STARTED)}.log")
    log.touch()
    process = start_trainer("data", "prepare", config, "--out", out, *share, log=log)
    STARTED[process] = log
    return process


def ended(process: Forked) -> tuple[int, str]:
    return process.wait(PATIENCE), STARTED[process].read_text()


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def whole(parts: Path) -> list[str]:
    """The names of the parts that are whole."""
    names = [path.parent.name for path in parts.glob("*/*/described.json")]
    return [name for name in names if not name.endswith(".writing")]


def test_three_hosts_write_what_one_writes(config: Path, tmp_path: Path) -> None:
    one, three = tmp_path / "one", tmp_path / "three"
    alone = run_trainer("data", "prepare", config, "--out", one, "--workers", "1")
    assert alone.returncode == 0, alone.stderr
    manifest = json.loads((one / "manifest.json").read_text())
    assert manifest["sources"][0]["near_duplicates_removed"] > 5

    parts = tmp_path / ".three.parts"
    second = start(config, three, 1, 3)
    first = start(config, three, 0, 3)
    # Host 1 is killed once it has a part whole; host 0 waits for it and for host 2.
    wait_for(lambda: whole(parts))
    second.kill()
    second.wait()
    again = start(config, three, 1, 3)
    third = start(config, three, 2, 3)
    results = [ended(process) for process in (again, third, first)]
    assert [status for status, _ in results] == [0, 0, 0]
    assert content(three) == content(one)
    assert not parts.exists()
    # All is there: each host says so at once.
    assert [ended(start(config, three, host, 3))[0] for host in range(3)] == [0, 0, 0]


def test_a_part_that_is_whole_is_not_encoded_again(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    first = start(config, out, 0, 2)
    wait_for(lambda: whole(tmp_path / ".data.parts"))
    first.kill()
    first.wait()
    kept = whole(tmp_path / ".data.parts")
    first, second = start(config, out, 0, 2), start(config, out, 1, 2)
    results = [ended(process) for process in (second, first)]
    assert [status for status, _ in results] == [0, 0]
    said = results[0][1] + results[1][1]
    for name in kept:
        source, _, number = name.rpartition(".")
        assert not re.search(rf"encoding {source}, file {int(number) + 1}[,\n]", said)
    assert re.search(r"encoding \S+, file \d+, [1-9]\d?% done\n", said)
    alone = tmp_path / "alone"
    assert run_trainer("data", "prepare", config, "--out", alone, "--workers", "1").returncode == 0
    assert content(out) == content(alone)


def test_a_file_that_cannot_be_read_ends_all_hosts(config: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(config.read_text())
    values["data"] |= {"dedupe": None}
    config.write_text(yaml.safe_dump(values))
    (tmp_path / "many-3.jsonl.zst").write_bytes((tmp_path / "many-3.jsonl.zst").read_bytes()[:-20])
    second = start(config, tmp_path / "data", 1, 2)
    # A failure of host 0 that is older than host 1 itself would be that of an earlier try.
    wait_for(lambda: "waiting for host 0" in STARTED[second].read_text() or second.poll() is not None)
    assert second.poll() is None
    first = start(config, tmp_path / "data", 0, 2)
    results = [ended(second), ended(first)]
    assert [status for status, _ in results] == [78, 78]
    assert all("many-3.jsonl.zst is truncated or damaged; fetch it again." in said for _, said in results)
    assert sum("could not do its share" in said for _, said in results) == 1


def test_a_host_beyond_the_last_is_refused(config: Path, tmp_path: Path) -> None:
    status, said = ended(start(config, tmp_path / "data", 3, 3))
    assert (status, "--host is 3, and the hosts are numbered from 0 to 2." in said) == (78, True)
