"""The order of a run's data as a file of each checkpoint, so that others can replay what every step read."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from trainer.contract import ORDER_FILE
from trainer.data.corpus import Corpus


def write(folder: Path, corpus: Corpus, since: int, step: int) -> None:
    """Write into a checkpoint's folder what the steps after `since` up to `step` read; nothing where there are none.

    `source` and `row`, [steps, batch] both, are the number of each row's source, in the order of `sources`, and the
    row's number among that source's training rows. `first_step`, counted from 1, and `sources` are in the file's
    metadata. Raises OSError.
    """
    if step == since:
        return
    batch = corpus.config.training.batch
    places = corpus.order.places(since * batch, (step - since) * batch)
    shape = (step - since, batch)
    wide = np.int64 if int(places.numbers.max()) > np.iinfo(np.int32).max else np.int32
    save_file(
        {
            "source": places.sources.astype(np.int32).reshape(shape),
            "row": places.numbers.astype(wide).reshape(shape),
        },
        folder / ORDER_FILE,
        metadata={"first_step": str(since + 1), "sources": json.dumps([source.name for source in corpus.sources])},
    )
