"""The folders of checkpoints: how one comes to be whole, and which is the newest. Imports no torch."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer import files
from trainer.contract import CHECKPOINTS_FOLDER, checkpoint_folder, checkpoints


def newest(out: Path) -> Path | None:
    """The whole checkpoint of the highest step in the run folder `out`, None where there is none."""
    found = checkpoints(out)
    return found[-1] if found else None


@contextmanager
def staged(out: Path, step: int) -> Iterator[Path]:
    """A folder to fill for the checkpoint of `step`. At the end it is synced to disk and renamed to `step{N}`; where
    filling it fails, nothing is left of it."""
    final = checkpoint_folder(out, step)
    staging = final.with_name(f".{final.name}.writing")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        for path in [*staging.rglob("*"), staging]:
            files.sync(path)
        staging.rename(final)
        files.sync(final.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def remove_partial(out: Path) -> None:
    """Remove the folders that a kill left half-written."""
    for path in (out / CHECKPOINTS_FOLDER).glob(".step*.writing"):
        shutil.rmtree(path)
