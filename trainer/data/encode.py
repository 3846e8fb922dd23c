"""Encoding documents: which split a document belongs to, and the tokens of a batch of documents."""

import hashlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from trainer.data import tokenizer
from trainer.data.config import DataConfig
from trainer.data.indexed import token_type
from trainer.data.readers import Document
from trainer.schema import ConfigError

SPLITS = ("train", "held_out")


def is_held_out(name: str, share: float) -> bool:
    """Whether the document of this name is kept for evaluation, with probability `share`. The name alone decides."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) < share * 2**64


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
        # The end-of-document token in the text of a document is plain text.
        self._bpe.encode_special_tokens = True
        self._end = tokenizer.end_of_document(self._bpe, data.tokenizer.end_of_document)
        self._size = tokenizer.size(self._bpe)
        self._dtype = token_type(data.tokenizer.vocabulary)
        self._held_out = data.held_out

    def __call__(self, batch: list[Document]) -> dict[str, Encoded]:
        split: dict[str, list[Document]] = {name: [] for name in SPLITS}
        for document in batch:
            split["held_out" if is_held_out(document.name, self._held_out) else "train"].append(document)
        return {name: self._encode(documents) for name, documents in split.items()}

    def _encode(self, documents: list[Document]) -> Encoded:
        texts = [document.text for document in documents if document.tokens is None]
        encodings = iter(self._bpe.encode_batch_fast(texts, add_special_tokens=False))
        arrays, text_bytes = [np.empty(0, self._dtype)], 0
        for document in documents:
            if document.tokens is None:
                arrays.append(np.array([*next(encodings).ids, self._end], dtype=self._dtype))
                text_bytes += document.size
            else:
                tokens = self._checked(document)
                arrays.append(np.append(tokens, self._end).astype(self._dtype))
                text_bytes += len(self._bpe.decode(tokens.tolist(), skip_special_tokens=False).encode())
        return Encoded(
            np.concatenate(arrays),
            np.array([len(array) for array in arrays[1:]], dtype=np.int32),
            [document.name.encode() for document in documents],
            text_bytes,
        )

    def _checked(self, document: Document) -> NDArray[Any]:
        """The document's tokens without the end-of-document token. Raises ConfigError if the tokenizer lacks one of
        them."""
        assert document.tokens is not None
        tokens = np.asarray(document.tokens)
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < self._size:
            raise ConfigError(
                f"The document {document.name} holds the token {int(tokens.max())} and the tokenizer has "
                f"{self._size}; set data.tokenizer.file to the tokenizer.json that made it."
            )
        return tokens[:-1] if len(tokens) and tokens[-1] == self._end else tokens
