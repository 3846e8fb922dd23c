"""`stoa corpus add` of each kind of file that the trainer reads: the numbers that it measures and says."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from broker.allocations import corpora
from tests import forked
from tests.broker.lab import POOL, Lab
from tests.databases import ONCE
from tests.environment import bare
from tests.trainer.test_data_indexed import DOCUMENTS, write
from tests.trainer.test_data_prepare import build
from tests.trainer.test_data_sources import TEXTS, data_config, write_jsonl
from trainer.contract import CorpusKind
from trainer.data import tokenizer

TEXT_BYTES = sum(len(text.encode()) for text in TEXTS)
VOCABULARY = 257
"""Of a tokenizer that has a token for each byte, and one for the end of a document."""
ROWS, LENGTH = 20, 17
PAIR_HEADER, PAIR_BYTES = 34, 20
"""Bytes of the index of a Megatron pair, besides 8: its header, and what it has of each document."""


class Made(NamedTuple):
    """What lies at a path, the options that register it, and what is expected of it."""

    kind: CorpusKind
    path: Path
    expected: dict[str, Any]
    options: tuple[str, ...] = ()


def byte_tokenizer(folder: Path) -> Path:
    tokenizer.save(tokenizer.train([], VOCABULARY), folder, 64)
    return folder / "tokenizer.json"


def zst(folder: Path) -> Made:
    path, counter = write_jsonl(folder / "a.jsonl.zst", TEXTS, key="song"), byte_tokenizer(folder)
    expected = {"files": 1, "documents": 4, "text_bytes": TEXT_BYTES, "tokens": TEXT_BYTES + 4}
    return Made(CorpusKind.TEXT, path, expected, ("--text-key", "song", "--tokenizer", str(counter)))


def parquet(folder: Path) -> Made:
    for number in range(3):
        pq.write_table(pa.table({"text": TEXTS, "n": range(4)}), folder / f"part-{number}.parquet")
    expected = {"files": 3, "documents": 12, "text_bytes": 3 * TEXT_BYTES}
    return Made(CorpusKind.TEXT, folder / "part-?.parquet", expected)


def text_folder(folder: Path) -> Made:
    (folder / "deep").mkdir()
    (folder / "a.txt").write_text("la la")
    (folder / "deep" / "b.md").write_text("lá")
    (folder / ".hidden").write_text("not read")
    return Made(CorpusKind.TEXT, folder, {"files": 2, "bytes": 8, "documents": 2, "text_bytes": 8})


def pair(folder: Path) -> Made:
    size = 2 * 15 + PAIR_HEADER + 3 * PAIR_BYTES + 8
    expected = {"files": 2, "bytes": size, "documents": 3, "tokens": 15}
    return Made(CorpusKind.TOKENS, write(folder / "songs", DOCUMENTS), expected)


def packed_rows(folder: Path) -> Made:
    path = write(folder / "pile", [[row] * LENGTH for row in range(ROWS)])
    size = 2 * ROWS * LENGTH + PAIR_HEADER + ROWS * PAIR_BYTES + 8
    expected = {"files": 2, "bytes": size, "documents": ROWS, "tokens": ROWS * LENGTH}
    return Made(CorpusKind.TOKENS, path, expected)


def prepared(folder: Path) -> Made:
    texts = [f"Verse {number} of the song." for number in range(40)]
    write_jsonl(folder / "a.jsonl", texts)
    byte_tokenizer(folder)
    given = {"file": "tokenizer.json", "vocabulary": 320}
    build(data_config(folder, {"name": "songs", "path": "a.jsonl"}, tokenizer=given), folder / "data")
    size = sum(len(text) for text in texts)
    expected = {"documents": 40, "text_bytes": size, "tokens": size + 40, "vocabulary": VOCABULARY}
    return Made(CorpusKind.PREPARED, folder / "data", expected | {"sources": {"songs": "MIT"}})


def saved_dataset(folder: Path) -> Made:
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(folder / "set"))
    return Made(CorpusKind.DATASET, folder / "set", {"documents": 4, "text_bytes": TEXT_BYTES})


def dataset_of_parquet(folder: Path) -> Made:
    datasets.Dataset.from_dict({"text": TEXTS}).to_parquet(str(folder / "train-0.parquet"))
    return Made(CorpusKind.DATASET, folder, {"files": 1, "documents": 4, "text_bytes": TEXT_BYTES})


def tokenizer_file(folder: Path) -> Made:
    path = byte_tokenizer(folder)
    return Made(CorpusKind.TOKENIZER, path, {"files": 1, "bytes": path.stat().st_size, "vocabulary": VOCABULARY})


def stoa_corpus(lab: Lab, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = bare() | {
        "STOA_ENV_FILE": "",
        "STOA_HOME": str(home),
        "STOA_DATABASE_URL": lab.db.url.render_as_string(hide_password=False),
    }
    return forked.run_module("cli.main", environment, "corpus", *arguments)


@ONCE
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (zst, "4 documents, 48 tokens, "),
        (parquet, "12 documents, "),
        (text_folder, "2 documents, 8 bytes\n"),
        (pair, "3 documents, 15 tokens, 132 bytes\n"),
        (packed_rows, "20 documents, 340 tokens, 1.1 kB\n"),
        (prepared, "40 documents, "),
        (saved_dataset, "4 documents, "),
        (dataset_of_parquet, "4 documents, "),
        (tokenizer_file, ""),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_each_kind_is_registered_as_it_is_measured(
    lab: Lab, tmp_path: Path, make: Callable[[Path], Made], said: str
) -> None:
    lab.pool()
    (tmp_path / "data").mkdir()
    made = make(tmp_path / "data")
    arguments = ["songs", "--pool", POOL, "--path", str(made.path), "--kind", made.kind.value, *made.options]
    done = stoa_corpus(lab, tmp_path, "add", *arguments, "--licence", "MIT")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"songs on {POOL}: {said}")
    with lab.db.read() as session:
        [(pool, corpus)] = corpora.every(session)
    assert (pool, corpus.kind, corpus.path, corpus.licence) == (POOL, made.kind, str(made.path), "MIT")
    counted = dict.fromkeys(("documents", "text_bytes", "tokens", "vocabulary"))
    expected = counted | {"sources": {}} | made.expected
    assert {name: getattr(corpus, name) for name in expected} == expected
    assert corpus.bytes == sum(path.stat().st_size for path in files_of(made.path))


def files_of(path: Path) -> list[Path]:
    """The files at a path, a pattern or the prefix of a pair, without hidden ones."""
    if path.is_dir():
        return [each for each in path.rglob("*") if each.is_file() and not each.name.startswith(".")]
    return [path] if path.is_file() else sorted(path.parent.glob(path.name if "?" in path.name else f"{path.name}.*"))
