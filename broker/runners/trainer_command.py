"""The command line of the trainer of an attempt."""

import sys
from collections.abc import Sequence
from pathlib import Path

from broker import publications
from broker.publications import Publication
from broker.runs import folders, generation, preparing
from broker.runs.progress import Checkpoint
from broker.runs.runs import Run, RunKind
from projects.db.database import Database
from projects.settings import Settings
from trainer.contract import CONFIG_FILE

SAMPLE_PROMPT = "The "


def trainer_command(
    settings: Settings,
    db: Database,
    run: Run,
    folder: Path,
    before: Sequence[Checkpoint],
    nodes: int = 1,
    *,
    in_store: bool = False,
) -> list[str]:
    """The command line on each node of the attempt in `folder`, to go on from the last checkpoint of `before`.

    With `in_store`, other runs' checkpoints are those of the store, and need not be on this disk.

    Writes the configuration that it names. Raises OSError where a file that it needs is missing or cannot be written.
    """
    trainer = [sys.executable, "-m", "trainer"]
    out = ["--out", str(folder)]
    if run.kind == RunKind.SAMPLE:
        with db.read() as session:
            checkpoint = publications.newest(session, run.parent_id or 0)
        if checkpoint is None:
            raise FileNotFoundError(f"run {run.parent_id} has left no checkpoint to sample from")
        kept = folders.on_disk(settings, checkpoint.run_id, checkpoint.folder)
        return [*trainer, "generate", str(kept), f"--prompt={run.prompt or SAMPLE_PROMPT}", *_drawn(), *out]
    config = folder.parent / CONFIG_FILE
    with db.read() as session:
        config.write_text(preparing.using(settings, session, run))
    if run.kind == RunKind.PREPARE:
        place = preparing.folder(settings, run)
        place.parent.mkdir(parents=True, exist_ok=True)
        return [*trainer, "data", "prepare", str(config), "--out", str(place), "--workers", str(run.gpus // nodes)]
    command = [*trainer, "train", str(config), *out, "--gpus", str(run.gpus // nodes)]
    if before:
        return [*command, "--resume", before[-1].folder]
    return command if run.fork_step is None else [*command, "--fork", _origin(settings, db, run, in_store)]


def _drawn() -> list[str]:
    """How the tokens of a sample are drawn."""
    return [f"--temperature={generation.TEMPERATURE}", f"--seed={generation.SEED}"]


def _origin(settings: Settings, db: Database, run: Run, in_store: bool) -> str:
    """The checkpoint that a fork goes on from, as the trainer reads it: FOLDER@STEP."""
    with db.read() as session:
        kept = session.get(Publication, (run.parent_id, run.fork_step))
    folder = None if kept is None else folders.on_disk(settings, kept.run_id, kept.folder)
    if folder is None or not (in_store or folder.is_dir()):
        raise FileNotFoundError(f"step {run.fork_step} of run {run.parent_id} is no longer on this disk")
    return f"{folder.parents[1]}@{run.fork_step}"
