"""The documents that a run kept out of its training, as text."""

from pathlib import Path

from trainer.data import tokenizer
from trainer.data.indexed import Indexed


def documents(data: Path, source: str, are_rows: bool = False, most: int | None = None) -> list[str]:
    """The texts of a source's held-out documents, or rows of packed data; empty ones are left out. With `most`, of at
    most so many, spaced evenly. Raises ConfigError."""
    bpe = tokenizer.load(data)
    held_out = Indexed(data / f"{source}.held_out")
    documents = held_out.documents()
    if most is not None and most < len(held_out):
        documents = (held_out.document(at * len(held_out) // most) for at in range(most))
    # The last token of a document is the end-of-document token.
    tokens = (document if are_rows else document[:-1] for document in documents)
    texts = (bpe.decode(document.tolist(), skip_special_tokens=False) for document in tokens)
    return [text for text in texts if text]
