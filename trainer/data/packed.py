"""Packed data: pairs of .bin/.idx whose sequences are rows of one length and not documents, as Pythia's published,
pre-shuffled files are. They are read row by row as they are stored, so that their order can be replayed."""

import math
from collections.abc import Iterator
from itertools import islice

import numpy as np

from trainer.data.config import SourceConfig
from trainer.data.indexed import Indexed
from trainer.data.readers import Document
from trainer.schema import ConfigError

SHORTEST = 9
"""Tokens of the shortest row: data.sequence_length is at least 8."""
_LOOKED_AT = 1000


def row_length(indexed: Indexed, end: int) -> int | None:
    """The tokens of each row of packed data, None for documents: rows are of one length, and most of them do not end
    with the end-of-document token `end`."""
    sizes = indexed.sizes
    if len(sizes) < 2 or sizes[0] < SHORTEST or (sizes != sizes[0]).any():
        return None
    length = int(sizes[0])
    last = np.array([indexed.tokens[(row + 1) * length - 1] for row in range(min(len(sizes), _LOOKED_AT))])
    return length if (last == end).mean() < 0.5 else None


def is_packed(source: SourceConfig, indexed: Indexed, end: int, packed: bool | None, sequence_length: int) -> bool:
    """Whether a source of tokens is read as rows: where `packed` is true, or None and the pair looks like it.

    Raises ConfigError where it is, and its rows are not of sequence_length + 1 tokens.
    """
    if packed is False or not indexed.sequence_count or (packed is None and row_length(indexed, end) is None):
        return False
    wanted = sequence_length + 1
    shortest, longest = int(indexed.sizes.min()), int(indexed.sizes.max())
    if shortest == longest == wanted:
        return True
    have = f"rows of {longest:,} tokens" if shortest == longest else f"sequences of {shortest:,} to {longest:,} tokens"
    fix = f"set data.sequence_length to {longest - 1}, or " if shortest == longest else ""
    raise ConfigError(
        f"The source {source.name} holds {have}, and packed data are rows of data.sequence_length + 1 = {wanted:,}; "
        f"{fix}set data.packed to false to read it as documents."
    )


def rows(source: SourceConfig, indexed: Indexed, held_out: float) -> Iterator[Document]:
    """The rows in the order of the file, named by their numbers, until `max_bytes` is reached; the last ones, a share
    of `held_out`, are held out."""
    count = indexed.sequence_count
    if source.max_bytes is not None:
        count = min(count, math.ceil(source.max_bytes / (int(indexed.sizes[0]) * indexed.dtype.itemsize)))
    first = count - max(1, round(count * held_out))
    for number, tokens in enumerate(islice(indexed.sequences(), count)):
        yield Document(f"{source.name}/{number}", "", tokens, held_out=number >= first, is_row=True)
