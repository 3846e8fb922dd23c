"""Megatron's .bin/.idx: against golden bytes, and against a small reader and writer of the published layout."""

import struct
from collections.abc import Callable
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest

from trainer.data.indexed import Indexed, Writer, describe
from trainer.schema import ConfigError

# As Megatron-core 0.16.1 writes the documents 0..4, 0..8 and 0 in uint16.
GOLDEN = bytes.fromhex(
    "4d4d49444944580000" "0100000000000000" "08" "0300000000000000" "0400000000000000"
    "05000000" "09000000" "01000000"
    "0000000000000000" "0a00000000000000" "1c00000000000000"
    "0000000000000000" "0100000000000000" "0200000000000000" "0300000000000000"
)  # fmt: skip
DOCUMENTS = [list(range(5)), list(range(9)), [0]]


def write(prefix: Path, documents: list[list[int]], dtype: str = "<u2") -> Path:
    with Writer(prefix, dtype) as writer:
        for document in documents:
            writer.add(np.array(document), np.array([len(document)], dtype=np.int32))
    return prefix


def foreign_write(prefix: Path, documents: list[list[list[int]]], code: int, kind: str) -> Path:
    """Documents of several sequences each, by struct alone."""
    sequences = [sequence for document in documents for sequence in document]
    width = struct.calcsize(f"<{kind}")
    body, places, at = b"", [], 0
    for sequence in sequences:
        places.append(at)
        body += struct.pack(f"<{len(sequence)}{kind}", *sequence)
        at += width * len(sequence)
    first = [sum(len(document) for document in documents[:n]) for n in range(len(documents) + 1)]
    head = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, len(sequences), len(first))
    index = struct.pack(f"<{len(sequences)}i", *map(len, sequences)) + struct.pack(f"<{len(sequences)}q", *places)
    prefix.with_name(prefix.name + ".bin").write_bytes(body)
    prefix.with_name(prefix.name + ".idx").write_bytes(head + index + struct.pack(f"<{len(first)}q", *first))
    return prefix


def foreign_read(prefix: Path) -> list[list[int]]:
    """The documents, by struct alone."""
    index = prefix.with_name(prefix.name + ".idx").read_bytes()
    body = prefix.with_name(prefix.name + ".bin").read_bytes()
    _magic, version, code, sequences, first_count = struct.unpack_from("<9sQBQQ", index)
    assert version == 1
    kind = {1: "B", 4: "i", 8: "H"}[code]
    sizes = struct.unpack_from(f"<{sequences}i", index, 34)
    places = struct.unpack_from(f"<{sequences}q", index, 34 + 4 * sequences)
    first = struct.unpack_from(f"<{first_count}q", index, 34 + 12 * sequences)
    read = [list(struct.unpack_from(f"<{size}{kind}", body, place)) for size, place in zip(sizes, places, strict=True)]
    return [list(chain(*read[start:end])) for start, end in pairwise(first)]


def test_golden_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a.train", DOCUMENTS)
    assert (tmp_path / "a.train.idx").read_bytes() == GOLDEN
    assert (tmp_path / "a.train.bin").read_bytes() == struct.pack("<15H", *chain(*DOCUMENTS))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.train.bin", "a.train.idx"]


@pytest.mark.parametrize("dtype", ["u1", "<u2", "<i4"])
def test_others_read_what_is_written(tmp_path: Path, dtype: str) -> None:
    documents = [[1, 2, 3], [], [200] * 9, [7]]
    assert foreign_read(write(tmp_path / "a", documents, dtype)) == documents
    assert [list(document) for document in Indexed(tmp_path / "a").documents()] == documents


@pytest.mark.parametrize(("code", "kind"), [(1, "B"), (2, "b"), (3, "h"), (4, "i"), (5, "q"), (8, "H")])
def test_what_others_write_is_read(tmp_path: Path, code: int, kind: str) -> None:
    indexed = Indexed(foreign_write(tmp_path / "a", [[[1, 2], [3]], [[4]], [[5, 6, 7], [8], [9]]], code, kind))
    assert [list(document) for document in indexed.documents()] == [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    assert list(indexed.document(1)) == [4]
    assert len(indexed) == 3
    assert [indexed.sequence_at(token) for token in (0, 1, 2, 3, 8)] == [(0, 0), (0, 0), (1, 2), (2, 3), (5, 8)]
    assert describe(indexed.prefix)["sequences"] == 6


def test_empty_pair(tmp_path: Path) -> None:
    indexed = Indexed(write(tmp_path / "a", []))
    assert (len(indexed), len(indexed.tokens), list(indexed.documents())) == (0, 0, [])


def cut(name: str, to: int) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:to])

    return spoil


def patch(at: int, content: bytes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        held = bytearray((folder / "a.idx").read_bytes())
        held[at : at + len(content)] = content
        (folder / "a.idx").write_bytes(held)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "a.bin").unlink(), r"a\.bin is missing; put it beside .*a\.idx, or prepare"),
        (lambda folder: (folder / "a.idx").unlink(), r"a\.idx is missing; put it beside .*a\.bin, or prepare"),
        (cut("a.bin", 29), r"a\.bin should have 30 bytes, as a\.idx says, and has 29; fetch both again"),
        (cut("a.idx", 100), r"a\.idx should have 102 bytes for its 3 sequences and has 100; fetch it"),
        (cut("a.idx", 20), r"a\.idx is no index of Megatron's format"),
        (patch(0, b"TNTIDX"), r"a\.idx is no index of Megatron's format"),
        (patch(9, b"\x02"), r"a\.idx has version 2 and type 8, and version 1 and types 1 to 8 are known"),
        (patch(17, b"\x09"), r"a\.idx has version 1 and type 9"),
        (patch(34, b"\x06"), r"a\.idx does not fit .*a\.bin: its documents do not lie one after the other"),
        (patch(34 + 36, b"\x09"), r"a\.idx does not fit .*a\.bin"),
    ],
)
def test_damage_is_named(tmp_path: Path, spoil: Callable[[Path], None], said: str) -> None:
    write(tmp_path / "a", DOCUMENTS)
    spoil(tmp_path)
    with pytest.raises(ConfigError, match=said) as caught:
        describe(tmp_path / "a")
    assert "\n" not in str(caught.value)


def test_an_error_while_writing_leaves_no_index(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Writer(tmp_path / "a", "<u2"):
        raise ZeroDivisionError
    assert not (tmp_path / "a.idx").exists()
