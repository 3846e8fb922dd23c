"""Encoding documents: which split a document belongs to, and the tokens of a batch of documents."""

import hashlib
import math
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer

from trainer.data import tokenizer
from trainer.data.config import DataConfig
from trainer.data.indexed import token_type
from trainer.data.readers import Document
from trainer.schema import ConfigError

SPLITS = ("train", "held_out")
PIECE = 1 << 20
"""Characters of a text that are encoded at once; a longer text is cut where that changes nothing."""
_AFTER_WORD = re.compile(r"(?<=[^\W\d_])(?=\n| [^\W\d_])")
_BEFORE_WORD = re.compile(r"(?<=[^\W\d_])(?= [^\W\d_])")


def is_held_out(name: str, share: float) -> bool:
    """Whether the document of this name is kept for evaluation, with probability `share`. The name alone decides."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) < share * 2**64


def is_kept_out(document: Document, share: float) -> bool:
    """Whether a document is kept for evaluation: by its reader's word, or by its name."""
    return is_held_out(document.name, share) if document.held_out is None else document.held_out


def split_end(document: Document, share: float) -> tuple[Document, Document]:
    """A document in two: what is trained on, and its end, a share of about `share`, that is held out. A text is cut at
    the end of a line or a word where there is one near."""
    end = f"{document.name}:end"
    if document.tokens is not None:
        at = len(document.tokens) - math.ceil(len(document.tokens) * share)
        head, tail = document.tokens[:at], document.tokens[at:]
        return document._replace(tokens=head, held_out=False), Document(end, "", tail, held_out=True)
    text = document.text
    at = int(len(text) * (1 - share))
    for mark in ("\n", " "):
        near = text.find(mark, at, min(at + 1000, len(text) - 1))
        if near >= 0:
            at = near + 1
            break
    return document._replace(text=text[:at], held_out=False), Document(end, text[at:], held_out=True)


def pieces(text: str, size: int, drops_space: bool) -> Iterator[str]:
    """The text in pieces of at least `size` characters, each cut after a word, before the space or the end of line
    that follows: most tokenizers part words there. Where `drops_space`, the cuts are at spaces alone, which are left
    out. A word of 8 × `size` characters is cut within.
    """
    mark = _BEFORE_WORD if drops_space else _AFTER_WORD
    start = 0
    while start < len(text):
        found = mark.search(text, start + size)
        at = min(found.start() if found else len(text), start + 8 * size)
        yield text[start:at]
        start = at + (drops_space and found is not None and at == found.start())


class Encoded(NamedTuple):
    """The documents of a batch in one split: `tokens` [N], `sizes` [documents] in tokens, `names`, and bytes of text in
    all."""

    tokens: NDArray[Any]
    sizes: NDArray[np.int32]
    names: list[bytes]
    text_bytes: int


class Encoder:
    """Encodes a batch of documents, each followed by the end-of-document token. Calling it returns the splits by
    name."""

    def __init__(self, bpe: str, data: DataConfig) -> None:
        self._bpe = Tokenizer.from_str(bpe)
        # The end-of-document token in the text of a document is plain text, also where the tokenizer does not call it
        # special.
        self._bpe.add_special_tokens([AddedToken(data.tokenizer.end_of_document, special=True)])
        self._bpe.encode_special_tokens = True
        self._end = tokenizer.end_of_document(self._bpe, data.tokenizer.end_of_document)
        self._size = tokenizer.size(self._bpe)
        self._dtype = token_type(data.tokenizer.vocabulary)
        self._held_out = data.held_out

    def __call__(self, batch: list[Document]) -> dict[str, Encoded]:
        split: dict[str, list[Document]] = {name: [] for name in SPLITS}
        for document in batch:
            split["held_out" if is_kept_out(document, self._held_out) else "train"].append(document)
        return {name: self._encode(documents) for name, documents in split.items()}

    def _encode(self, documents: list[Document]) -> Encoded:
        texts = iter(self._tokens([document for document in documents if document.tokens is None]))
        arrays, text_bytes = [np.empty(0, self._dtype)], 0
        for document in documents:
            if document.tokens is None:
                arrays.append(np.append(next(texts), self._end).astype(self._dtype))
                text_bytes += document.size
            else:
                tokens = self._checked(document)
                arrays.append((tokens if document.is_row else np.append(tokens, self._end)).astype(self._dtype))
                text_bytes += len(self._bpe.decode(tokens.tolist(), skip_special_tokens=False).encode())
        return Encoded(
            np.concatenate(arrays),
            np.array([len(array) for array in arrays[1:]], dtype=np.int32),
            [document.name.encode() for document in documents],
            text_bytes,
        )

    def _tokens(self, documents: list[Document]) -> Iterator[NDArray[Any]]:
        """The tokens of each text [N], without the end-of-document token. A long text is encoded in pieces, as the
        library takes a hundred bytes of memory for each of a text, where that gives the same tokens."""
        whole: list[str] = []
        for document in documents:
            if len(document.text) > PIECE and self._drops_space is not None:
                yield from self._encoded(whole, document)
                whole = []
                cut = pieces(document.text, PIECE, self._drops_space)
                yield np.concatenate([ids for piece in cut for ids in self._encoded([piece], document)])
            else:
                whole.append(document.text)
        if whole:
            yield from self._encoded(whole, documents[-1])

    @cached_property
    def _drops_space(self) -> bool | None:
        """How a long text is cut into pieces that have its tokens, as `pieces` takes it: a tokenizer that puts a space
        before every text needs the space left out. None where neither is right."""
        for drops_space in (False, True):
            if all(
                self._ids(text) == [token for piece in pieces(text, 5, drops_space) for token in self._ids(piece)]
                for text in ("a word\nanother  one\n\n\tand, 12 of\n so on", "é ü\né\n", " the end\n", "x y  z")
            ):
                return drops_space
        return None

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._bpe.encode(text, add_special_tokens=False).ids
        return ids

    def _encoded(self, texts: list[str], document: Document) -> Iterator[NDArray[Any]]:
        try:
            encodings = self._bpe.encode_batch_fast(texts, add_special_tokens=False)
        except Exception as error:  # the library raises a bare Exception
            raise ConfigError(
                f"The tokenizer cannot encode the text of {document.name} or of one before it ({error}); give it an "
                "unknown token, or take another."
            ) from None
        return (np.array(encoding.ids, dtype=self._dtype) for encoding in encodings)

    def _checked(self, document: Document) -> NDArray[Any]:
        """The tokens of a document without the end-of-document token, or of a row as they are. Raises ConfigError if
        the tokenizer lacks one of them."""
        assert document.tokens is not None
        tokens = np.asarray(document.tokens)
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < self._size:
            raise ConfigError(
                f"The document {document.name} holds the token {int(tokens.max())} and the tokenizer has "
                f"{self._size}; set data.tokenizer.file to the tokenizer.json that made it."
            )
        ends = len(tokens) and tokens[-1] == self._end and not document.is_row
        return tokens[:-1] if ends else tokens
