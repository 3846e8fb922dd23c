"""What an analysis keeps from one checkpoint to the next, as files: a study that goes on after a kill finds it."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.files import sync


class Shelf:
    """Named sets of tensors in a folder, each written whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a set of tensors. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        # What a kill leaves of it is overwritten: one process at a time writes the folder.
        temporary = self._folder / f".{name}.writing"
        save_file({key: tensor.contiguous().cpu() for key, tensor in tensors.items()}, temporary)
        sync(temporary)
        temporary.replace(self._path(name))

    def take(self, name: str) -> dict[str, Tensor] | None:
        """The tensors of that name, on the CPU; None where there are none."""
        return load_file(self._path(name)) if self._path(name).is_file() else None

    def names(self) -> list[str]:
        """The names of all sets."""
        return sorted(path.stem for path in self._folder.glob("[!.]*.safetensors"))

    def drop(self, name: str) -> None:
        """Remove a set."""
        self._path(name).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all sets."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"
