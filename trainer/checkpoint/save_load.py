"""What a checkpoint holds: weights as transformers reads them, a probe of logits, how it was made, Adam's moments.

Everything is written whole, not a rank's part of it, so that any layout of ranks can go on from it.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trainer import files
from trainer.checkpoint import folders
from trainer.code_version import code_version
from trainer.config import ConfigError, TrainConfig
from trainer.contract import CHECKPOINT_METADATA_FILE
from trainer.data import tokenizer
from trainer.engine.base import Engine, ReadTensor, TensorKind
from trainer.families import Family, family_of
from trainer.model.initialise import draw
from trainer.model.transformer import Transformer, shapes

WEIGHTS = "model"
MOMENTS = "trainer/optimizer"
PROBE = "probe.safetensors"
FILE_BYTES = 5 * 10**9
"""What a file of tensors holds at most, unless one tensor is larger."""


def build(config: TrainConfig) -> Transformer:
    """The model of a configuration, weights not drawn."""
    return Transformer(config.model, config.vocabulary, config.context)


def family(config: TrainConfig) -> Family:
    return family_of(config.model, config.vocabulary, config.context)


def load_weights(model: Transformer, folder: Path, config: TrainConfig) -> None:
    """Fill the model from a checkpoint. Raises ConfigError if it is not whole or not of this model."""
    read = reader(folder, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(read("weight", name))


def fresh(config: TrainConfig) -> ReadTensor:
    """The weights of step 0, drawn by the seed."""
    whole = shapes(config.model, config.vocabulary, config.context)

    def read(kind: TensorKind, name: str) -> Tensor:
        assert kind == "weight"
        return draw(name, whole[name], config.model, config.training.seed)

    return read


def reader(folder: Path, config: TrainConfig) -> ReadTensor:
    """A checkpoint's tensors, read as they are asked for. Raises ConfigError if one is missing or misshapen."""
    theirs = family(config)
    whole = shapes(config.model, config.vocabulary, config.context)
    weights = tensors(folder, WEIGHTS)
    moments = tensors(folder, MOMENTS) if (folder / MOMENTS).parent.is_dir() else weights

    def read(kind: TensorKind, name: str) -> Tensor:
        try:
            tensor = theirs.fetch(name, weights) if kind == "weight" else moments(f"{kind}.{name}")
        except (KeyError, SafetensorError, OSError) as error:
            raise ConfigError(f"The checkpoint {folder} is damaged: it lacks {kind} of {name}; use another.") from error
        if tensor.shape != whole[name]:
            raise ConfigError(
                f"The checkpoint {folder} is of another model: {name} is {list(tensor.shape)} there and "
                f"{list(whole[name])} here."
            )
        return tensor.float()

    return read


def save(
    config: TrainConfig,
    out: Path,
    step: int,
    engine: Engine,
    probe_BL: Tensor,
    leads: bool,
    made: dict[str, Any],
    data: Path,
) -> None:
    """Write the checkpoint of `step` whole or not at all; all ranks together, the leading one writes.

    `made` is what is known of its making beyond the configuration. Raises OSError if it cannot be written.
    """
    logits_BLV = engine.logits(probe_BL)
    kinds: tuple[TensorKind, ...] = ("weight", "exp_avg", "exp_avg_sq") if step else ("weight",)
    if not leads:
        for kind in kinds:
            for _ in engine.gather(kind):
                pass
        return
    theirs = family(config)
    with folders.staged(out, step) as folder:
        exported = (pair for name, whole in engine.gather("weight") for pair in theirs.export(name, whole).items())
        write_tensors(folder, WEIGHTS, exported)
        _save({"ids": probe_BL.cpu(), "logits": logits_BLV.float().cpu()}, folder / PROBE)
        if step:
            (folder / MOMENTS).parent.mkdir()
            moments = ((f"{kind}.{name}", whole) for kind in kinds[1:] for name, whole in engine.gather(kind))
            write_tensors(folder, MOMENTS, moments)
        describe(config, folder, step, made, data)


def describe(config: TrainConfig, folder: Path, step: int, made: dict[str, Any], data: Path) -> None:
    """Put beside the weights what others need to open them, and how they were made."""
    theirs = family(config)
    bpe, token = tokenizer.load(data), config.data.tokenizer.end_of_document
    end = tokenizer.end_of_document(bpe, token)
    tokenizer.save(bpe, folder, config.context, token)
    if theirs.refusal is None:
        _write_json(folder / "config.json", theirs.config_json(end=end))
        _write_json(folder / "generation_config.json", {"bos_token_id": end, "eos_token_id": end})
    how = {
        "step": step,
        "seed": config.training.seed,
        "config": config.model_dump(mode="json"),
        "opens_in_transformers": theirs.refusal or theirs.architecture,
        **made,
        "code_version": code_version(),
        "torch_version": torch.__version__,
        "files": files.checksums(folder, (path for path in folder.rglob("*") if path.is_file())),
    }
    _write_json(folder / CHECKPOINT_METADATA_FILE, how)


def write_tensors(folder: Path, stem: str, pairs: Iterable[tuple[str, Tensor]]) -> None:
    """One file, or numbered ones with an index, as transformers names them."""
    written: list[list[str]] = []
    for batch in _batches(pairs):
        _save(batch, folder / f"{stem}.{len(written)}.part")
        written.append(list(batch))
    if len(written) == 1:
        (folder / f"{stem}.0.part").rename(folder / f"{stem}.safetensors")
        return
    index: dict[str, str] = {}
    for number, names in enumerate(written):
        path = folder / f"{stem}-{number + 1:05}-of-{len(written):05}.safetensors"
        (folder / f"{stem}.{number}.part").rename(path)
        index |= dict.fromkeys(names, path.name)
    _write_json(folder / f"{stem}.safetensors.index.json", {"metadata": {}, "weight_map": index})


def tensors(folder: Path, stem: str) -> Callable[[str], Tensor]:
    """What `write_tensors` wrote, by name. Raises ConfigError if a file cannot be opened."""
    index = folder / f"{stem}.safetensors.index.json"
    single = folder / f"{stem}.safetensors"
    try:
        if single.exists() or not index.exists():
            paths = {single}
        else:
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            paths = {single.parent / name for name in names.values()}
        opened = [safe_open(path, framework="pt") for path in sorted(paths)]
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise ConfigError(
            f"The checkpoint {folder} is damaged: {stem}.safetensors is missing or cut short; use another step."
        ) from error
    places = {name: file for file in opened for name in file.keys()}  # type: ignore[no-untyped-call]  # noqa: SIM118
    return lambda name: cast(Tensor, places[name].get_tensor(name))  # type: ignore[no-untyped-call]


def _batches(pairs: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    batch: dict[str, Tensor] = {}
    size = 0
    for name, tensor in pairs:
        if batch and size + tensor.nbytes > FILE_BYTES:
            yield batch
            batch, size = {}, 0
        batch[name] = tensor
        size += tensor.nbytes
    yield batch


def _save(content: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(content, path, metadata={"format": "pt"})
    except SafetensorError as error:
        # A full disk, most likely; the library has one error for everything.
        raise OSError(str(error)) from error


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
