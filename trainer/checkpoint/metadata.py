"""A checkpoint's metadata, `how.json`: how it was made, and the checksums of its files. Imports no torch.

It holds no words of people about the run, such as its name and tags. These may change or be blanked, and the model
card, which is rewritten then, says them; `how.json` stays as it was committed with the weights.
"""

import json
from pathlib import Path
from typing import Any

from trainer import files
from trainer.contract import CHECKPOINT_METADATA_FILE, TRAINER_FOLDER
from trainer.schema import ConfigError


def read(folder: Path) -> dict[str, Any]:
    """The metadata, its content unchecked. Raises ConfigError if the folder has none."""
    try:
        metadata: dict[str, Any] = json.loads((folder / CHECKPOINT_METADATA_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder} is not a whole checkpoint of this trainer; give one of its step folders."
        ) from error
    return metadata


def has_state(folder: Path) -> bool:
    """Whether a checkpoint has the optimizer's state beside its weights, which most on the Hub have not."""
    return (folder / TRAINER_FOLDER).is_dir()


def read_verified(folder: Path, *, weights_only: bool = False) -> dict[str, Any]:
    """The metadata with at least `step`, `tokens` and `config`. Raises ConfigError if they or any file are damaged;
    with `weights_only`, what only training needs may be missing."""
    metadata = read(folder)
    kinds = {"step": int, "tokens": int, "config": dict}
    for key, kind in kinds.items():
        if not isinstance(metadata, dict) or not isinstance(metadata.get(key), kind):
            raise ConfigError(_damaged(folder, f"{CHECKPOINT_METADATA_FILE} lacks {key}"))
    if folder.name not in (f"step{metadata['step']}", folder.name.removeprefix("step")):
        raise ConfigError(_damaged(folder, f"{CHECKPOINT_METADATA_FILE} is of step {metadata['step']}"))
    (verify_weights if weights_only else verify)(folder, metadata)
    return metadata


def verify(folder: Path, metadata: dict[str, Any]) -> None:
    """Raise ConfigError unless every file of the checkpoint has the checksum that its metadata say."""
    if found := files.find_damage(folder, metadata.get("files", {})):
        raise ConfigError(_damaged(folder, found))


def verify_weights(folder: Path, metadata: dict[str, Any]) -> None:
    """Raise ConfigError unless every file has its checksum, but for what only training needs: that is not published."""
    listed = metadata.get("files", {})
    needed = {name: told for name, told in listed.items() if not name.startswith(f"{TRAINER_FOLDER}/")}
    verify(folder, metadata | {"files": needed})


def _damaged(folder: Path, problem: str) -> str:
    return f"The checkpoint {folder} is damaged: {problem}; remove it and go on from the one before."
