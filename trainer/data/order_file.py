"""The order of a run's data as a file of each checkpoint, so that others can replay what every step read."""

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from trainer.contract import ORDER_FILE
from trainer.data.corpus import Corpus, Tokens

ROWS_AT_ONCE = 1 << 18


def write(folder: Path, corpus: Corpus, since: int, step: int) -> None:
    """Write into a checkpoint's folder what the steps after `since` up to `step` read; nothing where there are none.

    `source` and `row`, [steps, batch] both, are the number of each row's source, in the order of `sources`, and the
    row's number among that source's training rows. `first_step`, counted from 1, and `sources` are in the file's
    metadata. Raises OSError.
    """
    if step == since:
        return
    batch = corpus.config.training.batch
    first, end = since * batch, step * batch
    sources, rows = np.empty(end - first, dtype=np.int32), np.empty(end - first, dtype=np.int64)
    for start in range(first, end, ROWS_AT_ONCE):  # so that what is computed on the way takes little memory
        read = corpus.order.places(start, min(ROWS_AT_ONCE, end - start))
        part = slice(start - first, start - first + len(read.numbers))
        sources[part], rows[part] = read.sources, read.numbers
    if int(rows.max()) <= np.iinfo(np.int32).max:
        rows = rows.astype(np.int32)
    content: dict[str, Tokens] = {"source": sources.reshape(-1, batch), "row": rows.reshape(-1, batch)}
    said = {"first_step": str(since + 1), "sources": json.dumps([source.name for source in corpus.sources])}
    try:
        save_file(content, folder / ORDER_FILE, metadata=said)
    except SafetensorError as error:
        raise OSError(str(error)) from error  # the library has one error for everything
