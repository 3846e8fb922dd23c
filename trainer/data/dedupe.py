"""Finding near-duplicates over all sources, by MinHash signatures and locality-sensitive hashing (LSH).

A document is the set of its word n-grams (words are lower-cased runs of letters and digits); its signature has
`permutations` minima (Broder 1997). Signatures are cut into bands (Leskovec, Rajaraman and Ullman, "Mining of Massive
Datasets", section 3.4), the widest ones for which two documents at the threshold still share a band with probability
0.95. Documents that share a band are compared over their whole signatures. A kept document takes about 2 KiB of memory,
and each document 4 bytes a permutation on disk.

Of a pair of near-duplicates the later one is removed. Held-out documents come first, so that no near-duplicate of one
is trained on.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasketch import LeanMinHash, MinHash, MinHashLSH
from numpy.typing import NDArray
from tokenizers import Tokenizer

from trainer.data.config import DedupeConfig
from trainer.data.readers import Document
from trainer.data.workers import Workers, batches

_WORDS = re.compile(r"\w+")
_RECALL = 0.95

Signatures = NDArray[np.uint32]


class Signer:
    """Computes the signatures of a batch of documents; documents of tokens are decoded to text first."""

    def __init__(self, config: DedupeConfig, tokenizer: str | None) -> None:
        self._config = config
        self._empty = MinHash(num_perm=config.permutations, seed=1)
        self._tokenizer = Tokenizer.from_str(tokenizer) if tokenizer else None

    def __call__(self, batch: list[Document]) -> tuple[Signatures, list[str], int]:
        """The documents' signatures [documents, permutations] and names, and their bytes in all."""
        signatures = np.stack([self._sign(document) for document in batch])
        return signatures, [document.name for document in batch], sum(document.size for document in batch)

    def _sign(self, document: Document) -> Signatures:
        text = document.text
        if document.tokens is not None:
            assert self._tokenizer is not None
            text = self._tokenizer.decode(document.tokens.tolist(), skip_special_tokens=True)
        signature = self._empty.copy()
        signature.update_batch([gram.encode() for gram in ngrams(text, self._config.ngram)])
        return np.asarray(signature.hashvalues, dtype=np.uint32)


def ngrams(text: str, size: int) -> set[str]:
    """The word n-grams of a text. A text of fewer than `size` words is one n-gram, a text without words is its own."""
    words = _WORDS.findall(text.lower())
    if not words:
        return {text}
    return {" ".join(words[start : start + size]) for start in range(max(1, len(words) - size + 1))}


def bands(threshold: float, permutations: int) -> tuple[int, int]:
    """The number of bands that a signature is cut into, and the minima of each."""
    for width in range(permutations // 2, 1, -1):
        count = permutations // width
        if 1 - (1 - threshold**width) ** count >= _RECALL:
            return count, width
    return permutations, 1


def duplicates(
    config: DedupeConfig,
    documents: Iterator[Document],
    is_held_out: Callable[[str], bool],
    spool: Path,
    tokenizer: str | None,
    workers: int,
    advance: Callable[[int], None],
) -> NDArray[np.bool_]:
    """For each document, whether it is a near-duplicate of a kept one, [documents].

    `spool` is a temporary file for the signatures, `tokenizer` the tokenizer.json of documents of tokens. `advance` is
    told the bytes of each batch.
    """
    held_out: list[bool] = []
    with spool.open("wb") as file, Workers(workers, Signer, config, tokenizer) as pool:
        for signatures, names, size in pool.map(batches(documents)):
            file.write(signatures.tobytes())
            held_out += map(is_held_out, names)
            advance(size)
    if not held_out:
        return np.zeros(0, dtype=bool)
    signed = np.memmap(spool, dtype=np.uint32, mode="r", shape=(len(held_out), config.permutations))
    # A stable sort brings the held-out documents to the front and keeps the order otherwise.
    removed = _alike(config, signed, np.argsort(~np.array(held_out), kind="stable"))
    spool.unlink()
    return removed


def _alike(config: DedupeConfig, signed: NDArray[Any], order: NDArray[np.int64]) -> NDArray[np.bool_]:
    removed = np.zeros(len(signed), dtype=bool)
    index = MinHashLSH(num_perm=config.permutations, params=bands(config.threshold, config.permutations))
    for number in order.tolist():
        signature = LeanMinHash(seed=1, hashvalues=signed[number], scheme="affine32")
        met = index.query(signature)
        if len(met) and ((signed[met] == signed[number]).mean(axis=1) >= config.threshold).any():
            removed[number] = True
        else:
            index.insert(number, signature, check_duplication=False)
    return removed
