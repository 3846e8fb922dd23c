"""Every kind of source yields its named documents; what cannot be read is refused in one sentence."""

import bz2
import gzip
import json
import lzma
import os
import re
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import zstandard

from trainer.data import readers
from trainer.data.config import DataConfig, mixture, mixture_names
from trainer.data.readers import Document
from trainer.schema import ConfigError

TEXTS = ["One fine day.", "Ünïcode 🏛 and\nlines", "", "a third"]


def write_jsonl(path: Path, texts: Sequence[str], key: str = "text") -> Path:
    """One document a line, compressed as the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps({"id": number, key: text}) + "\n" for number, text in enumerate(texts)).encode()
    if path.suffix == ".gz":
        content = gzip.compress(content)
    elif path.suffix == ".zst":
        # Two frames, as tools that compress in parallel write them.
        half = len(content) // 2
        content = b"".join(zstandard.compress(part) for part in (content[:half], content[half:]))
    path.write_bytes(content)
    return path


def data_config(root: Path, *sources: dict[str, Any], **settings: Any) -> DataConfig:
    """A data section; each source gets what it leaves out."""
    filled = [{"name": f"s{number}", "licence": "MIT"} | source for number, source in enumerate(sources)]
    filled = [source if "epochs" in source else {"weight": 1} | source for source in filled]
    return DataConfig.model_validate(
        {"sequence_length": 16, "held_out": 0.2, "tokenizer": {"vocabulary": 400}, "root": str(root)}
        | {"sources": filled}
        | settings
    )


def read(root: Path, **source: Any) -> list[Document]:
    data = data_config(root, source)
    return list(readers.read(data.sources[0], data))


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_jsonl_is_read_line_by_line(tmp_path: Path, suffix: str) -> None:
    write_jsonl(tmp_path / f"a.jsonl{suffix}", TEXTS)
    documents = read(tmp_path, path=f"a.jsonl{suffix}")
    assert [document.text for document in documents] == TEXTS
    assert [document.name for document in documents] == [f"s0/a.jsonl{suffix}:{line}" for line in (1, 2, 3, 4)]


def test_a_line_longer_than_the_reader_takes_at_once(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl.zst", ["x" * 5_000_000, "after"])
    assert [len(document.text) for document in read(tmp_path, path="a.jsonl.zst")] == [5_000_000, 5]


def test_glob_folder_and_cap(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "a/1.jsonl"):
        write_jsonl(tmp_path / name, TEXTS[:1], key="body")
    assert [d.name for d in read(tmp_path, path="*/*.jsonl", text_key="body")] == ["s0/a/1.jsonl:1", "s0/b/2.jsonl:1"]
    for name in ("z.txt", "deep/a.md"):
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_text(name * 200)
    assert [d.name for d in read(tmp_path, path="texts")] == ["s0/deep/a.md", "s0/z.txt"]
    assert [d.name for d in read(tmp_path, path="texts", max_bytes=1_000)] == ["s0/deep/a.md"]


@pytest.mark.parametrize("saved", [True, False])
def test_hugging_face_dataset(tmp_path: Path, saved: bool) -> None:
    made = datasets.Dataset.from_dict({"text": TEXTS, "n": range(4)})
    if saved:
        made.save_to_disk(str(tmp_path / "set"))
    else:
        (tmp_path / "set").mkdir()
        made.to_parquet(str(tmp_path / "set" / "train-0.parquet"))
    assert read(tmp_path, dataset="set") == [Document(f"s0/train:{n}", text) for n, text in enumerate(TEXTS)]
    with pytest.raises(ConfigError, match=r"has no text in 'body' \(its columns are text, n\); set text_key"):
        read(tmp_path, dataset="set", text_key="body")
    if not saved:
        with pytest.raises(ConfigError, match=r"The dataset set of the source s0 cannot be read \(Bad split: test"):
            read(tmp_path, dataset="set", split="test")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def append(line: bytes) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        path.write_bytes(path.read_bytes() + line)

    return spoil


@pytest.mark.parametrize(
    ("name", "spoil", "said"),
    [
        ("a.jsonl.gz", truncate, r"a\.jsonl\.gz is truncated or damaged; fetch it again\."),
        ("a.jsonl.zst", truncate, r"a\.jsonl\.zst is truncated or damaged; fetch it again\."),
        ("a.jsonl.zst", append(b"rubbish"), r"a\.jsonl\.zst is truncated or damaged; fetch it again\."),
        ("a.jsonl", append(b'{"text": "cut'), r"a\.jsonl line 5 is not valid JSON; mend it or take it out\."),
        (
            "a.jsonl",
            append(b'{"body": "x"}'),
            r"line 5 has no text under 'text' \(it has the keys body\); set text_key",
        ),
        ("a.jsonl", append(b'{"text": 5}'), r"line 5 has int '5' under 'text', which is no text; set text_key"),
        ("a.jsonl", append(b"[1]"), r"line 5 has no text under 'text' \(it is no JSON object\)"),
        ("a.jsonl", lambda path: path.write_text("\n\n"), r"The source s0 is empty; take it out of data\.sources"),
        (
            "a.jsonl",
            Path.unlink,
            r"There is no file at .*a\.jsonl, the path of the source s0; correct it or data\.root",
        ),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, name: str, spoil: Callable[[Path], None], said: str) -> None:
    spoil(write_jsonl(tmp_path / name, TEXTS))
    with pytest.raises(ConfigError, match=said) as caught:
        read(tmp_path, path=name)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


LFS = b"version https://git-lfs.github.com/spec/v1\noid"


def by_windows(content: bytes) -> bytes:
    """A text file as Windows programs write it: with a byte-order mark and CRLF."""
    return b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.JSONL.GZ", gzip.compress),
        ("a.jsonl.bz2", bz2.compress),
        ("a.jsonl.xz", lzma.compress),
        ("a.jsonl", lzma.compress),
        ("a.jsonl", by_windows),
    ],
)
def test_what_a_file_is_shows_in_its_first_bytes(tmp_path: Path, name: str, write: Callable[[bytes], bytes]) -> None:
    (tmp_path / name).write_bytes(write(write_jsonl(tmp_path / "plain", TEXTS).read_bytes()))
    assert [document.text for document in read(tmp_path, path=name)] == TEXTS


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", LFS, "is a pointer of Git LFS and not the file itself"),
        ("a.jsonl.gz", LFS, "is a pointer of Git LFS"),
        ("a.parquet", LFS, "is a pointer of Git LFS"),
        ("a.jsonl", b"PK\x03\x04", "is a zip archive; unpack it"),
        ("a.jsonl.xz", lzma.compress(b"x" * 5000)[:-9], "is truncated or damaged"),
        ("a.jsonl.bz2", bz2.compress(b"x" * 5000)[:-9], "is truncated or damaged"),
        ("a.parquet", b"PAR1PAR1", "is truncated or damaged"),
        ("a.jsonl", b"\xff\xfe{\x00", "is UTF-16 text; convert it to UTF-8"),
        (
            "a.tar.gz",
            gzip.compress(b"a.txt".ljust(257, b"\0") + b"ustar\x0000", mtime=0),
            "is a tar archive; unpack it",
        ),
    ],
)
def test_a_kind_that_is_not_read_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        read(tmp_path, path=name)
    assert "\n" not in str(caught.value)


def test_parquet_is_read_by_its_column(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": [*TEXTS, None], "n": range(5)}).to_parquet(str(tmp_path / "a.parquet"))
    assert [(document.name, document.text) for document in read(tmp_path, path="*.parquet")] == [
        (f"s0/a.parquet:{number}", text) for number, text in enumerate(TEXTS, start=1)
    ]
    with pytest.raises(ConfigError, match=r"has no column 'body' \(its columns are text, n\); set text_key"):
        read(tmp_path, path="a.parquet", text_key="body")


def test_a_null_is_no_document_and_said(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": null}\n{"text": "three"}\n')
    data, said = data_config(tmp_path, {"path": "a.jsonl"}), list[str]()
    names = [document.name for document in readers.read(data.sources[0], data, said.append)]
    assert (names, said) == (
        ["s0/a.jsonl:1", "s0/a.jsonl:3"],
        ["left out of s0: 1 document whose text is null"],
    )


def test_hidden_files_and_folders_are_left_out_and_said(tmp_path: Path) -> None:
    for name in (".git/HEAD", "a.txt", "deep/.venv/lib/b.py", ".hidden"):
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_text("text")
    data, said = data_config(tmp_path, {"path": "texts"}), list[str]()
    assert [document.name for document in readers.read(data.sources[0], data, said.append)] == ["s0/a.txt"]
    assert said == ["left out of s0: 3 hidden files and folders (.git, .hidden, deep/.venv)"]


def test_a_byte_order_mark_is_no_text_and_line_ends_stay(tmp_path: Path) -> None:
    text = "a\r\nb"
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_bytes(text.encode("utf-8-sig"))
    write_jsonl(tmp_path / "a.jsonl", [f"\ufeff{text}"])
    datasets.Dataset.from_dict({"text": [f"\ufeff{text}"]}).to_parquet(str(tmp_path / "a.parquet"))
    assert [read(tmp_path, path=path)[0].text for path in ("texts", "a.jsonl", "a.parquet")] == [text] * 3


def test_names_that_are_not_utf8_and_brackets_in_folders(tmp_path: Path) -> None:
    root = tmp_path / "corpus[en]"
    write_jsonl(root / "a.jsonl", TEXTS[:1])
    write_jsonl(root / "b[1]" / "c.jsonl", TEXTS[:1])
    (root / "texts").mkdir()
    Path(os.fsdecode(bytes(root / "texts") + b"/caf\xe9.txt")).write_text("text")
    assert [document.name for document in read(root, path="*.jsonl")] == ["s0/a.jsonl:1"]
    assert [document.name for document in read(root, path="b[1]/*.jsonl")] == ["s0/c.jsonl:1"]
    assert [document.name for document in read(root, path="texts")] == ["s0/caf\\xe9.txt"]
    Path(os.fsdecode(bytes(root / "texts") + b"/\xe9.txt")).write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"/\\xe9\.txt is not UTF-8 text"):
        read(root, path="texts")


def test_zstandard_of_any_window(tmp_path: Path) -> None:
    lines = write_jsonl(tmp_path / "plain", TEXTS).read_bytes()
    settings = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=True)
    writer = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    (tmp_path / "a.jsonl.zst").write_bytes(writer.compress(lines) + writer.flush())
    assert [document.text for document in read(tmp_path, path="a.jsonl.zst")] == TEXTS


def test_a_bomb_takes_little_memory(tmp_path: Path) -> None:
    """A hundred megabytes of one line in a few kilobytes, in parts smaller than the reader's own."""
    content = zstandard.ZstdCompressor().compressobj()
    with (tmp_path / "a.jsonl.zst").open("wb") as file:
        file.write(content.compress(b'{"text": "first"}\n{"text": "'))
        for _ in range(100):
            file.write(content.compress(b"a" * (1 << 20)))
        file.write(content.flush())
    tracemalloc.start()
    with pytest.raises(ConfigError, match="has a line of more than 64 MiB, which no document may be; split it"):
        read(tmp_path, path="a.jsonl.zst")
    assert tracemalloc.get_traced_memory()[1] < 110 << 20
    tracemalloc.stop()


def test_folder_that_holds_no_texts(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(ConfigError, match="There is no file at"):
        read(tmp_path, path="a")
    (tmp_path / "a" / "picture").write_bytes(b"\x89PNG\xff")
    with pytest.raises(ConfigError, match="picture is not UTF-8 text"):
        read(tmp_path, path="a")
    write_jsonl(tmp_path / "a" / "a.jsonl.gz", TEXTS)
    with pytest.raises(ConfigError, match=r"for JSONL give the source s0 a path such as .*a/\*\.gz"):
        read(tmp_path, path="a")


def test_half_of_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "before \\ud83c after"}\n')
    assert read(tmp_path, path="a.jsonl")[0].text == "before \ufffd after"


@pytest.mark.parametrize(
    ("sources", "settings", "said"),
    [
        ([{"path": "a", "name": "A"}], {}, "The source name 'A' must be lower-case letters"),
        ([{"path": "a", "name": "../a"}], {}, "The source name '../a' must be"),
        ([{"path": "a", "licence": "free"}], {}, "The licence 'free' is no SPDX identifier such as CC-BY-4.0"),
        ([{}], {}, "The source s0 must name one place (builtin, path, dataset or tokens) and names none."),
        ([{"path": "a", "dataset": "b"}], {}, "and names path and dataset."),
        ([{"path": "a", "weight": None}], {}, "The source s0 must have a weight or epochs, one of the two."),
        ([{"path": "a", "weight": 1, "epochs": 1}], {}, "must have a weight or epochs, one of the two."),
        ([{"path": "a", "split": "x"}], {}, "The source s0 has a split, which only a dataset has"),
        ([{"path": "a"}, {"path": "b", "epochs": 2}], {}, "data.sources mixes weight and epochs (s0 and s1)"),
        ([{"path": "a"}, {"path": "b", "name": "s0"}], {}, "data.sources names s0 twice"),
        ([{"tokens": "a"}], {}, "The source s0 is tokens, and data.tokenizer.file is missing"),
        ([{"path": "a"}], {"mixture": "pile"}, "data.mixture and data.sources are both given"),
        (
            [{"path": "a"}],
            {"mixture": "heap", "sources": None},
            "There is no mixture 'heap'; the mixtures are common-pile, pile, pile-deduplicated.",
        ),
    ],
)
def test_refused_sources(tmp_path: Path, sources: list[dict[str, Any]], settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        data_config(tmp_path, *sources, **settings)


def test_mixtures(tmp_path: Path) -> None:
    assert mixture_names() == ["common-pile", "pile", "pile-deduplicated"]
    pile = data_config(tmp_path, mixture="pile", sources=None)
    assert len(pile.sources) == 22
    assert (pile.sources[0].name, pile.sources[0].epochs, pile.sources[0].weight) == ("pile-cc", 1, None)
    assert DataConfig.model_validate(pile.model_dump()) == pile
    common = data_config(tmp_path, mixture="common-pile", sources=None)
    # The Stack V2 is one source in two parts.
    assert len({source.name.removesuffix("_edu").removesuffix("_html") for source in common.sources}) == 30
    assert all(
        source.weight and source.dataset == f"common-pile/{source.dataset[12:]}"
        for source in common.sources
        if source.dataset
    )
    assert all(source["licence"] for name in mixture_names() for source in mixture(name))
