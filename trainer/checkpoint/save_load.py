"""Saving and loading a checkpoint: weights as transformers reads them, Adam's moments, a probe of logits, metadata.

Tensors are written whole, not as the parts that ranks hold, so that any layout of ranks can go on from a checkpoint.
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
from trainer.checkpoint import adapter, folders
from trainer.code_version import code_commit, code_version
from trainer.config import ConfigError, TrainConfig
from trainer.contract import CHECKPOINT_METADATA_FILE, PROBE_FILE, TRAINER_FOLDER
from trainer.data import tokenizer
from trainer.engine.base import Engine, ReadTensor, TensorKind
from trainer.families import Family, family_of
from trainer.memory import FILE_BYTES
from trainer.model.initialise import draw
from trainer.model.transformer import Transformer, shapes
from trainer.schema import check_readable

WEIGHTS = "model"
GENERATION = "generation_config.json"
MOMENTS = f"{TRAINER_FOLDER}/optimizer"


def build(config: TrainConfig) -> Transformer:
    """The model of a configuration on the CPU, its weights not initialised."""
    return Transformer(config.model, config.vocabulary, config.context)


def family(config: TrainConfig) -> Family:
    """The names that the model's weights have in a checkpoint."""
    return family_of(config.model, config.vocabulary, config.context)


def load_weights(model: Transformer, folder: Path, config: TrainConfig) -> None:
    """Load a checkpoint's weights into the model. Raises ConfigError if the checkpoint is damaged or of another
    model."""
    read = reader(folder, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(read("weight", name))


def fresh(config: TrainConfig) -> ReadTensor:
    """The weights of step 0, drawn from the configuration's seed."""
    whole = shapes(config.model, config.vocabulary, config.context)

    def read(kind: TensorKind, name: str) -> Tensor:
        assert kind == "weight"
        return draw(name, whole[name], config.model, config.training.seed)

    return read


def reader(folder: Path, config: TrainConfig) -> ReadTensor:
    """The tensors of a checkpoint, each read from disk when it is asked for.

    Raises ConfigError, also when a tensor is read, if it is missing or of another shape than the model's.
    """
    theirs = family(config)
    whole = shapes(config.model, config.vocabulary, config.context)
    weights = tensors(folder, WEIGHTS)
    moments = tensors(folder, MOMENTS) if (folder / MOMENTS).parent.is_dir() else weights

    def read(kind: TensorKind, name: str) -> Tensor:
        try:
            tensor = theirs.fetch(name, weights) if kind == "weight" else moments(f"{kind}.{name}")
        except (KeyError, SafetensorError, OSError) as error:
            raise ConfigError(f"The checkpoint {folder} is damaged: it lacks {kind} of {name}; use another.") from error
        if tensor.shape != whole.get(name, tensor.shape):
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
    is_main: bool,
    metadata: dict[str, Any],
    data: Path,
    write_order: Callable[[Path], None],
) -> None:
    """Write the checkpoint of `step` into the run folder `out`, whole or not at all. All ranks call it together, and
    the main rank writes.

    `probe_BL` are token ids whose logits go into the probe, `metadata` what the metadata say beside the configuration,
    `data` the folder with the tokenizer; `write_order` writes into the checkpoint's folder what the steps before it
    read. Raises OSError if the checkpoint cannot be written.
    """
    logits_BLV = engine.logits(probe_BL)
    kinds: tuple[TensorKind, ...] = ("weight", "exp_avg", "exp_avg_sq") if step else ("weight",)
    if config.lora is not None and step:
        kinds = (*kinds, "adapter")
    if not is_main:
        for kind in kinds:
            for _ in engine.gather(kind):
                pass
        return
    theirs = family(config)
    with folders.staged(out, step) as folder:
        exported = (pair for name, whole in engine.gather("weight") for pair in theirs.export(name, whole).items())
        write_tensors(folder, WEIGHTS, exported)
        _save({"ids": probe_BL.cpu(), "logits": logits_BLV.float().cpu()}, folder / PROBE_FILE)
        if step:
            (folder / MOMENTS).parent.mkdir()
            moments = ((f"{kind}.{name}", whole) for kind in kinds[1:] for name, whole in engine.gather(kind))
            write_tensors(folder, MOMENTS, moments)
        if config.lora is not None and theirs.refusal is None:
            adapter.write(folder, config, theirs, dict(engine.gather("adapter")))
        write_order(folder)
        write_description(config, folder, step, metadata, data)


def write_description(config: TrainConfig, folder: Path, step: int, metadata: dict[str, Any], data: Path) -> None:
    """Write tokenizer, `config.json` and metadata beside the weights; see `save` for the arguments."""
    theirs = family(config)
    bpe, token = tokenizer.load(data), config.data.tokenizer.end_of_document
    end = tokenizer.end_of_document(bpe, token)
    tokenizer.save(bpe, folder, config.context, token, data)
    if theirs.refusal is None:
        begin = tokenizer.begin_of_text(bpe, folder)
        _write_json(folder / "config.json", theirs.config_json(end=end) | {"bos_token_id": begin})
        _write_generation(folder, begin, end)
    content = {
        "step": step,
        "seed": config.training.seed,
        "config": config.model_dump(mode="json"),
        "opens_in_transformers": theirs.refusal or theirs.architecture,
        **metadata,
        "code_version": code_version(),
        "code_commit": code_commit(),
        "torch_version": torch.__version__,
        "files": files.checksums(folder, (path for path in folder.rglob("*") if path.is_file())),
    }
    _write_json(folder / CHECKPOINT_METADATA_FILE, content)


def ends_of_generation(folder: Path) -> list[int]:
    """The ids of the tokens that end a generated text, by a checkpoint's settings of generation."""
    ends = (_generation(folder) or {}).get("eos_token_id")
    return [end for end in (ends if isinstance(ends, list) else [ends]) if isinstance(end, int)]


def _generation(folder: Path) -> dict[str, Any] | None:
    """The settings of generation in a folder; None where it has none that can be read."""
    try:
        return dict(json.loads((folder / GENERATION).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _write_generation(folder: Path, begin: int | None, end: int) -> None:
    """Write the settings of generation; where the folder has some already, only see that `end` is among their ends."""
    settings = _generation(folder)
    if settings is None:
        settings = {"bos_token_id": begin, "eos_token_id": end}
    elif end not in ends_of_generation(folder):
        settings["eos_token_id"] = end
    _write_json(folder / GENERATION, settings)


def write_tensors(folder: Path, stem: str, pairs: Iterable[tuple[str, Tensor]]) -> None:
    """Write tensors to STEM.safetensors, or to numbered files with an index, as transformers names them. Raises
    OSError."""
    written: list[list[str]] = []
    for batch in _batches(pairs):
        _save(batch, folder / f"{stem}.{len(written)}.part")
        written.append(list(batch))
        batch.clear()  # before the tensors of the next file are gathered
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
    """Returns a function that reads a tensor, by its name, of those that `write_tensors` wrote. Raises ConfigError if a
    file cannot be opened."""
    check_readable(folder)
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
    file_of = {name: file for file in opened for name in file.keys()}  # type: ignore[no-untyped-call]  # noqa: SIM118
    return lambda name: cast(Tensor, file_of[name].get_tensor(name))  # type: ignore[no-untyped-call]


def _batches(pairs: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """The tensors of each file, of at most FILE_BYTES unless one tensor is larger."""
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
        # The library has one error for everything; a full disk is the likeliest cause.
        raise OSError(str(error)) from error


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
