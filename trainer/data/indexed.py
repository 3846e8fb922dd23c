"""Megatron's indexed dataset, which Megatron-LM and GPT-NeoX read and write: PREFIX.bin holds the tokens one after the
other, PREFIX.idx says where each sequence lies.

The .idx has the magic, the version (uint64), a code for the type of the tokens (one byte), the number of sequences and
the length of the document index (uint64 each); then the length of each sequence (int32) and its offset in bytes
(int64); then the first sequence of each document, and last the number of sequences (int64). All is little-endian.
"""

import bisect
import hashlib
import os
import struct
import weakref
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from trainer.schema import ConfigError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
# Megatron-LM and GPT-NeoX disagree on 6 and 7, the floats; tokens are integers.
CODES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f8", 7: "<f4", 8: "<u2"}

_HEADER = struct.Struct("<9sQBQQ")
_AT_ONCE = 1 << 20

Array = NDArray[Any]


def paths_of(prefix: Path) -> tuple[Path, Path]:
    """The paths of the .bin and of the .idx."""
    return prefix.with_name(f"{prefix.name}.bin"), prefix.with_name(f"{prefix.name}.idx")


def token_type(vocabulary: int) -> str:
    """The smallest of the format's types that holds every token id."""
    return "<u2" if vocabulary <= 2**16 else "<i4"


class Writer:
    """Writes a pair as a stream, each document one sequence, in constant memory.

    It is a context manager; leaving it without an error completes the pair and syncs it to disk.
    """

    def __init__(self, prefix: Path, dtype: str) -> None:
        self.dtype = np.dtype(dtype)
        self._code = next(code for code, name in CODES.items() if np.dtype(name) == self.dtype)
        self._bin_path, self._idx_path = paths_of(prefix)
        self._sizes_path = self._idx_path.with_name(f".{self._idx_path.name}.sizes")
        self._bin = self._bin_path.open("wb")
        self._sizes = self._sizes_path.open("w+b")
        self._digest = hashlib.sha256()
        self.sequences = 0
        self.tokens = 0

    def add(self, tokens: Array, sizes: NDArray[np.int32]) -> None:
        """Add documents: their tokens [N] one after the other, and the number of tokens of each [documents], N in
        all."""
        content = np.ascontiguousarray(tokens, dtype=self.dtype).tobytes()
        self._bin.write(content)
        self._digest.update(content)
        self._sizes.write(sizes.astype("<i4").tobytes())
        self.sequences += len(sizes)
        self.tokens += len(tokens)

    @property
    def sha256(self) -> str:
        """The SHA-256 of the .bin so far, in hexadecimal."""
        return self._digest.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._bin, self._sizes:
            if error is None:
                self._sizes.flush()
                self._write_index()
                _sync(self._bin.fileno(), self._bin)
        self._sizes_path.unlink()

    def _write_index(self) -> None:
        sizes = _map(self._sizes_path, "<i4", self.sequences)
        with self._idx_path.open("wb") as file:
            file.write(_HEADER.pack(MAGIC, VERSION, self._code, self.sequences, self.sequences + 1))
            for part in _parts(sizes):
                file.write(part.tobytes())
            offset = 0
            for part in _parts(sizes):
                ends = offset + np.cumsum(part, dtype=np.int64) * self.dtype.itemsize
                file.write(np.concatenate([[offset], ends[:-1]]).astype("<i8").tobytes())
                offset = int(ends[-1])
            for start in range(0, self.sequences + 1, _AT_ONCE):
                file.write(np.arange(start, min(start + _AT_ONCE, self.sequences + 1), dtype="<i8").tobytes())
            _sync(file.fileno(), file)


class Indexed:
    """A pair: `tokens` [N] are all tokens, `sizes`, `offsets` and `document_index` the arrays of the .idx, each
    memory-mapped when it is first used, which takes a file descriptor. `count` is the number of tokens.

    Raises ConfigError if a file is missing or truncated, or if the two disagree.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self._bin_path, self._idx_path = paths_of(prefix)
        for path, other in ((self._idx_path, self._bin_path), (self._bin_path, self._idx_path)):
            if not path.is_file():
                raise ConfigError(f"{path} is missing; put it beside {other}, or prepare the data again.")
        size = self._idx_path.stat().st_size
        with self._idx_path.open("rb") as file:
            header = file.read(_HEADER.size)
        if not header.startswith(MAGIC) or len(header) < _HEADER.size:
            raise ConfigError(f"{self._idx_path} is no index of Megatron's format; fetch it or prepare the data again.")
        _, version, code, sequences, documents = _HEADER.unpack(header)
        if version != VERSION or code not in CODES:
            raise ConfigError(
                f"{self._idx_path} has version {version} and type {code}, and version {VERSION} and types 1 to 8 are "
                "known; write it with Megatron-LM, GPT-NeoX or this trainer."
            )
        self.dtype = np.dtype(CODES[code])
        expected = _HEADER.size + 12 * sequences + 8 * documents
        if size != expected:
            raise ConfigError(
                f"{self._idx_path} should have {expected} bytes for its {sequences} sequences and has {size}; fetch it "
                "or prepare the data again."
            )
        self.sequence_count, self._documents = sequences, documents
        there = self._bin_path.stat().st_size
        wanted = self._end_of_last() if sequences else 0
        if there != wanted:
            raise ConfigError(
                f"{self._bin_path} should have {wanted} bytes, as {self._idx_path.name} says, and has {there}; fetch "
                "both again or prepare the data again."
            )
        self.count = there // self.dtype.itemsize

    @cached_property
    def sizes(self) -> Array:
        return _map(self._idx_path, "<i4", self.sequence_count, _HEADER.size)

    @cached_property
    def offsets(self) -> Array:
        return _map(self._idx_path, "<i8", self.sequence_count, _HEADER.size + 4 * self.sequence_count)

    @cached_property
    def document_index(self) -> Array:
        return _map(self._idx_path, "<i8", self._documents, _HEADER.size + 12 * self.sequence_count)

    @cached_property
    def tokens(self) -> Array:
        return _map(self._bin_path, self.dtype.str, self.count)

    def __len__(self) -> int:
        """The number of documents."""
        return max(0, int(self._documents) - 1)

    def read(self, start: int, count: int) -> Array:
        """The `count` tokens from token `start` on. Unlike the memory map, it reads no pages around them, which is
        faster for rows in random order."""
        size = self.dtype.itemsize
        return np.frombuffer(os.pread(self._descriptor, count * size, start * size), dtype=self.dtype)

    @cached_property
    def _descriptor(self) -> int:
        descriptor = os.open(self._bin_path, os.O_RDONLY)
        weakref.finalize(self, os.close, descriptor)
        return descriptor

    def sequences(self) -> Iterator[Array]:
        """Every sequence in turn, whatever document it is of. Raises ConfigError if they do not lie one after the
        other."""
        expected = 0
        for start in range(0, self.sequence_count, _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            for size, offset in zip(self.sizes[part].tolist(), self.offsets[part].tolist(), strict=True):
                if offset != expected * self.dtype.itemsize or size < 0:
                    raise self._disagrees()
                yield self.tokens[expected : expected + size]
                expected += size

    def document(self, number: int) -> Array:
        """The tokens of a document, counted from 0."""
        start, end = self._span(number)
        return self.tokens[start:end]

    def documents(self) -> Iterator[Array]:
        """Every document in turn. Raises ConfigError if they do not lie one after the other."""
        expected = 0
        for number in range(len(self)):
            start, end = self._span(number)
            if start != expected or end < start or end > len(self.tokens):
                raise self._disagrees()
            expected = end
            yield self.tokens[start:end]
        if expected != len(self.tokens):
            raise self._disagrees()

    def sequence_at(self, token: int) -> tuple[int, int]:
        """The number of the sequence that has token number `token`, and the number of that sequence's first token."""
        number = bisect.bisect_right(self.offsets, token * self.dtype.itemsize) - 1
        return number, int(self.offsets[number]) // self.dtype.itemsize

    def _span(self, number: int) -> tuple[int, int]:
        first, after = int(self.document_index[number]), int(self.document_index[number + 1])
        if not 0 <= first <= after <= len(self.sizes):
            raise self._disagrees()
        if first == after:
            # An empty document begins where the one before it ended.
            end = self._end(first - 1) if first else 0
            return end, end
        return int(self.offsets[first]) // self.dtype.itemsize, self._end(after - 1)

    def _end(self, sequence: int) -> int:
        return int(self.offsets[sequence]) // self.dtype.itemsize + int(self.sizes[sequence])

    def _end_of_last(self) -> int:
        """The byte at which the last sequence ends, by the .idx."""
        with self._idx_path.open("rb") as file:
            file.seek(_HEADER.size + 4 * (self.sequence_count - 1))
            size = int.from_bytes(file.read(4), "little", signed=True)
            file.seek(_HEADER.size + 12 * self.sequence_count - 8)
            offset = int.from_bytes(file.read(8), "little", signed=True)
        return offset + size * self.dtype.itemsize

    def _disagrees(self) -> ConfigError:
        return ConfigError(
            f"{self._idx_path} does not fit {self._bin_path}: its documents do not lie one after the other; fetch both "
            "again or prepare the data again."
        )


def describe(prefix: Path) -> dict[str, str | int]:
    """Type, counts, highest token and SHA-256 of a pair, all of which is read. Raises ConfigError if its files
    disagree."""
    indexed = Indexed(prefix)
    for _ in indexed.documents():
        pass
    digest, highest = hashlib.sha256(), 0
    for part in _parts(indexed.tokens):
        digest.update(part.tobytes())
        highest = max(highest, int(part.max()))
    return {
        "type": indexed.dtype.name,
        "documents": len(indexed),
        "sequences": len(indexed.sizes),
        "tokens": len(indexed.tokens),
        "highest token": highest,
        "sha256": digest.hexdigest(),
    }


def _map(path: Path, dtype: str, count: int, offset: int = 0) -> Array:
    if not count:
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=(count,))


def _parts(array: Array) -> Iterator[Array]:
    return (array[start : start + _AT_ONCE] for start in range(0, len(array), _AT_ONCE))


def _sync(descriptor: int, file: Any) -> None:
    file.flush()
    os.fsync(descriptor)
