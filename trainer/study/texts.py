"""The held-out rows that analyses read, and whether the prepared data are of the checkpoint's tokenizer."""

import hashlib
import json
from pathlib import Path

from trainer.data import tokenizer
from trainer.data.corpus import Corpus, Tokens
from trainer.data.prepare import content_of, manifest_of
from trainer.evaluation.open_checkpoint import OpenCheckpoint
from trainer.schema import ConfigError
from trainer.study.analysis import Study


def digest(data: Path) -> dict[str, str]:
    """What an analysis that reads prepared data says of them in `reads`. Raises ConfigError."""
    content = json.dumps(content_of(manifest_of(data)))
    return {"data_sha256": hashlib.sha256(content.encode()).hexdigest()}


def corpus(opened: OpenCheckpoint, study: Study) -> Corpus:
    """The prepared data as the run reads them. Raises ConfigError where they are not for this checkpoint."""
    check_tokenizer(opened, study.data)
    return Corpus(opened.config, study.data)


def check_tokenizer(opened: OpenCheckpoint, data: Path) -> None:
    """Raise ConfigError unless prepared data were made with the checkpoint's tokenizer."""
    if manifest_of(data)["tokenizer"]["sha256"] != tokenizer.digest(opened.tokenizer):
        raise ConfigError(
            f"The data in {data} were made with another tokenizer than that of {opened.folder}; give --data that was "
            "prepared with its tokenizer.json."
        )


def held_out(opened: OpenCheckpoint, study: Study, most: int) -> Tokens:
    """Rows [R, sequence_length + 1] of those that the run's evaluations read, `most` at most, spaced evenly."""
    rows = corpus(opened, study).evaluation
    count = min(most, len(rows))
    return rows[[at * len(rows) // count for at in range(count)]]
