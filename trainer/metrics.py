"""`metrics.jsonl`: throughput and MFU of the steps since the last line, and the file itself. Imports no torch."""

import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

from trainer.config import TrainConfig
from trainer.contract import METRICS_FILE
from trainer.files import append_json_line, write_atomically
from trainer.model import count

LONGEST_LINE = 1024
"""Bytes that a line has at most."""


class Interval(NamedTuple):
    """The steps since the last line of the metrics: tokens over all ranks, seconds, and of these `data_wait`, the
    seconds that the main rank waited for its next batch."""

    tokens: int = 0
    seconds: float = 0.0
    data_wait: float = 0.0

    def extended(self, tokens: int, seconds: float, data_wait: float) -> "Interval":
        """This interval with one more step."""
        return Interval(self.tokens + tokens, self.seconds + seconds, self.data_wait + data_wait)

    @property
    def tokens_per_second(self) -> float:
        """Throughput over all ranks."""
        return self.tokens / self.seconds


def parameters(config: TrainConfig) -> int:
    """Trained parameters, embeddings and head included."""
    return count.parameters(config.model, config.vocabulary, config.context)


def flops_per_token(config: TrainConfig) -> int:
    """FLOPs a token of forward and backward pass, without what recomputation adds: 6N + 12·L·H·Q·T.

    N counts the parameters that multiply every token: the head's, but not those of embeddings and positions. L are the
    layers, H·Q heads times head size (the hidden size), T the sequence length (Chowdhery et al. 2022, PaLM,
    appendix B).
    """
    model = config.model
    table = config.vocabulary * model.hidden_size
    embedding = 0 if model.tied_head else table
    if model.positions == "learned":
        embedding += config.context * model.hidden_size
    embedding += count.relative_bias(model)
    attention = 12 * model.layers * model.hidden_size * config.data.sequence_length
    return 6 * (parameters(config) - embedding) + attention


def model_flops_utilization(config: TrainConfig, tokens_per_second: float, peak_flops: float) -> float:
    """MFU: the share of `peak_flops`, the FLOP/s of all devices together, that the model's own FLOPs use (Chowdhery et
    al. 2022, PaLM, section 4.1)."""
    return flops_per_token(config) * tokens_per_second / peak_flops


def append_metrics(out: Path, **fields: Any) -> None:
    """Append a line with the present time (seconds since 1970) to the run folder `out`. Raises OSError."""
    append_json_line(out / METRICS_FILE, {"time": time.time(), **fields})


def last_metrics(out: Path, lines: int) -> list[dict[str, Any]]:
    """The last `lines` lines of the run folder `out`, fewer where there are fewer, none where they cannot be read."""
    try:
        with (out / METRICS_FILE).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LONGEST_LINE * (lines + 1)))
            found = file.read().splitlines()[-lines:]
            # The seek may have cut the first line, and a kill the last.
            return [json.loads(line) for line in found if line.startswith(b"{") and line.endswith(b"}")]
    except (OSError, ValueError):
        return []


def drop_metrics_after(out: Path, step: int) -> None:
    """Remove the lines of steps after `step`, which a resumed run does again, and a line that a kill cut short."""
    path = out / METRICS_FILE
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    if len(kept) < len(lines):
        write_atomically(path, "".join(kept))
