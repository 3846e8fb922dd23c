"""Reading the weights of a model folder one tensor at a time, so that a large model is never in memory whole."""

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trainer.schema import ConfigError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

T = TypeVar("T")


class HFWeights:
    """The tensors of a folder: safetensors or pytorch_model.bin, in one file or in shards.

    Every method raises ConfigError if a file or a tensor is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, _Tensors | _Pickle] = {}
        self._file_of = self._find()

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, its values not read from safetensors."""
        return self._read(name, lambda file: file.shape(name))

    def get(self, name: str) -> Tensor:
        """The tensor in fp32 on the CPU."""
        return self._read(name, lambda file: file.get(name)).float()

    def _find(self) -> Mapping[str, str]:
        """The name of each tensor's file."""
        for single, index in ((SINGLE, INDEX), ("pytorch_model.bin", "pytorch_model.bin.index.json")):
            if (self.folder / index).is_file():
                return self._index(index)
            if (self.folder / single).is_file():
                return dict.fromkeys(self._open(single).names, single)
        raise ConfigError(f"{self.folder} has no weights; it must have {SINGLE}, {INDEX} or pytorch_model.bin.")

    def _index(self, index: str) -> Mapping[str, str]:
        try:
            found: dict[str, str] = json.loads((self.folder / index).read_text(encoding="utf-8"))["weight_map"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.folder / index} is not an index of weights; fetch it again.") from error
        for file in set(found.values()):
            if Path(file).name != file or not (self.folder / file).is_file():
                raise ConfigError(f"{self.folder} has no {file}, which its index names; fetch it.")
        return found

    def _open(self, file: str) -> "_Tensors | _Pickle":
        if file not in self._files:
            kind = _Tensors if file.endswith(".safetensors") else _Pickle
            try:
                self._files[file] = kind(self.folder / file)
            except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
                raise ConfigError(
                    f"{self.folder / file} is truncated or no file of weights; fetch it again."
                ) from error
        return self._files[file]

    def _read(self, name: str, what: "Callable[[_Tensors | _Pickle], T]") -> T:
        if name not in self._file_of:
            raise ConfigError(f"The weights in {self.folder} lack {name}; fetch them again.")
        try:
            return what(self._open(self._file_of[name]))
        except (SafetensorError, KeyError) as error:
            raise ConfigError(f"{self._file_of[name]} in {self.folder} lacks {name}; fetch it again.") from error


class _Tensors:
    def __init__(self, path: Path) -> None:
        self._file: Any = safe_open(path, framework="pt")
        self.names = list(self._file.keys())  # type: ignore[no-untyped-call]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def get(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        return tensor


class _Pickle:
    def __init__(self, path: Path) -> None:
        self._tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        self.names = list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def get(self, name: str) -> Tensor:
        return self._tensors[name]
