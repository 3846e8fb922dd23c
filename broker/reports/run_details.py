"""What `/run show` says of a run beyond its card: its held-out loss in other units, how it was made, how to load it."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker import configs, publications
from broker.publications import Disk, Repository
from broker.publishing import model_card
from broker.runs import runs, series
from broker.runs.kinds.kind import named
from broker.runs.runs import Run, RunView
from projects.errors import InvalidError
from trainer import contract
from trainer.config import TrainConfig

MOST_NATS = 100
"""The highest loss that is told as a perplexity too."""


@dataclass(frozen=True)
class RunDetails:
    """The newest held-out loss as perplexity and as bits per byte, the newest MFU that the trainer measured, the seed,
    the version of the trainer's code, and the Python code that loads the newest published checkpoint; each is None or
    empty where it is not known. `loss_scale` is the newest of fp16, and `skipped` the steps that have overflowed.

    `code_commit` is the git commit of that code, by the newest checkpoint, and `hub_commit` the commit on the Hub of
    the newest published one; each is empty where it was not recorded, and None while there is no such checkpoint.
    """

    perplexity: float | None = None
    bits_per_byte: float | None = None
    mfu: float | None = None
    seed: int | None = None
    code_version: str = ""
    loading: str = ""
    code_commit: str | None = None
    hub_commit: str | None = None
    loss_scale: float | None = None
    skipped: int | None = None


def details(session: Session, run: RunView) -> RunDetails:
    """What is known of a run; nothing of one that does not train."""
    if not named(run.kind).trains:
        return RunDetails()
    row, repository = runs.load(session, run.id), session.get(Repository, run.id)
    metadata, config = _metadata(session, run.id), _config(row.config)
    published = publications.newest_published(session, run.id)
    code_commit = metadata.get("code_commit") or (published.code_commit if published else "")
    scale, skipped = (
        session.scalar(select(series.newest(col(Run.id), name)).where(Run.id == run.id))
        for name in ("loss_scale", "skipped")
    )
    nats = run.held_out if run.held_out is not None and run.held_out < MOST_NATS else None
    return RunDetails(
        perplexity=None if nats is None else math.exp(nats),
        bits_per_byte=None if nats is None else _bits(nats, metadata),
        mfu=session.scalar(select(series.newest(col(Run.id), "mfu")).where(Run.id == run.id)),
        seed=None if config is None else config.training.seed,
        code_version=str(metadata.get("code_version", "")),
        code_commit=str(code_commit)[:64] if metadata or published else None,
        hub_commit=None if published is None else published.hub_commit,
        loss_scale=scale,
        skipped=None if skipped is None else int(skipped),
        loading=model_card.loading(repository.name, run.checkpoints[-1].step) if repository and run.checkpoints else "",
    )


def _bits(nats: float, metadata: dict[str, Any]) -> float | None:
    try:
        return model_card.bits_per_byte(nats, metadata)
    except (AttributeError, KeyError, TypeError):
        return None


def _config(text: str) -> TrainConfig | None:
    """A run's configuration; None where an earlier version wrote one that is refused today."""
    try:
        return configs.read(text)
    except InvalidError:
        return None


def _metadata(session: Session, run_id: int) -> dict[str, Any]:
    """What the run's newest checkpoint says of how it was made; nothing where this host has it no more."""
    newest = publications.newest(session, run_id)
    if newest is None or newest.disk != Disk.KEPT:
        return {}
    try:
        return dict(json.loads((Path(newest.folder) / contract.CHECKPOINT_METADATA_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return {}
