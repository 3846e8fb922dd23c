"""`import`: a model folder of transformers becomes a run folder with a checkpoint of step 0."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from pydantic import ValidationError
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from trainer.checkpoint import folders, save_load
from trainer.config import TrainConfig, dump, load_recipe
from trainer.contract import CONFIG_FILE, PROBE_FILE, checkpoint_folder
from trainer.data import tokenizer as bpe
from trainer.families import Family, family_of
from trainer.families.hf_config import HFModel, read_folder
from trainer.families.hf_weights import HFWeights
from trainer.files import write_atomically
from trainer.model.config import ModelConfig
from trainer.model.transformer import shapes
from trainer.schema import ConfigError, check_readable

PROBE_ROWS, PROBE_LENGTH = 2, 16
TOLERANCE = 1e-4
"""The largest difference allowed between our logits and theirs, as a share of the largest logit."""

# Masks and angles, which older versions of transformers kept beside the weights.
_BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")

Advance = Callable[[str, float], None]
"""Is told a stage and the share of it that was just done."""


class Imported(NamedTuple):
    """`difference` is the largest between our logits and those of transformers; each of `notes` is a sentence about
    something that was not taken over."""

    folder: Path
    difference: float
    notes: list[str]


def import_folder(source: Path, out: Path, recipe: str, advance: Advance) -> Imported:
    """Write `config.yml`, `tokenizer.json` and the checkpoint of step 0 into `out`.

    The configuration has the model and tokenizer of `source`, and the rest of the recipe. Raises ConfigError, with
    nothing left behind, if a file is missing or damaged or our configuration cannot express the model.
    """
    check_readable(source)
    found = read_folder(source)
    tokens = _tokenizer(source)
    config = _config(found, tokens, _end(source, found, tokens), out.absolute() / "tokenizer.json", recipe)
    family = family_of(config.model, config.vocabulary, config.context)
    weights = HFWeights(source)
    whole = shapes(config.model, config.vocabulary, config.context)
    _check(weights, family, whole, config.model)

    def converted() -> Iterator[tuple[str, Tensor]]:
        for name in whole:
            for theirs, tensor in family.export(name, family.fetch(name, weights.get)).items():
                if not tensor.isfinite().all():
                    raise ConfigError(
                        f"{theirs} in {source} holds {'NaN' if tensor.isnan().any() else 'infinity'}, so the model "
                        "computes nothing; convert or fetch the weights again."
                    )
                yield theirs, tensor
            advance("weights", 1 / len(whole))

    probe = (PROBE_ROWS, min(PROBE_LENGTH, config.context))
    ids_BL = torch.randint(config.vocabulary, probe, generator=torch.Generator().manual_seed(0))
    with folders.staged(out, 0) as folder:
        save_load.write_tensors(folder, save_load.WEIGHTS, converted())
        logits_BLV = _our_logits(config, folder, ids_BL)
        advance("logits against transformers", 0.5)
        difference = _compare(logits_BLV, _their_logits(source, ids_BL))
        advance("logits against transformers", 0.5)
        save_file({"ids": ids_BL, "logits": logits_BLV}, folder / PROBE_FILE, metadata={"format": "pt"})
        save_load.write_description(config, folder, 0, _metadata(source, config, tokens), source)
        bpe.save(tokens, out, config.context, config.data.tokenizer.end_of_document, source)
        write_atomically(out / CONFIG_FILE, dump(config))
    return Imported(checkpoint_folder(out, 0), difference, found.notes)


def _tokenizer(source: Path) -> Tokenizer:
    path = source / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(
            f"{source} has no tokenizer.json; transformers' AutoTokenizer.from_pretrained and save_pretrained write it."
        )
    try:
        return bpe.load(source)
    except Exception as error:  # the library raises a bare Exception
        raise ConfigError(f"{path} is no tokenizer.json of the tokenizers library; fetch it again.") from error


def _end(source: Path, found: HFModel, tokens: Tokenizer) -> str:
    """The token that ends a document: the tokenizer's own, or else the model's."""
    end = bpe.content_of(bpe.settings_of(source).get("eos_token"))
    if end is None and found.end is not None:
        end = tokens.id_to_token(found.end)
    if end is None or tokens.token_to_id(end) is None:
        raise ConfigError(f"{source} names no token that ends a document; set eos_token in its tokenizer_config.json.")
    return str(end)


def _config(found: HFModel, tokens: Tokenizer, end: str, file: Path, recipe: str) -> TrainConfig:
    """The recipe with this model and tokenizer. Raises ConfigError if they do not fit together."""
    values = load_recipe(recipe).model_dump(mode="json", include={"data", "optimizer", "training", "checkpoints"})
    size, context = bpe.size(tokens), found.model.context
    if found.model.vocabulary is not None and size > found.model.vocabulary:
        raise ConfigError(
            f"The tokenizer has {size} tokens and the model's vocabulary {found.model.vocabulary}; give the folder "
            "the model's own tokenizer.json."
        )
    data = values["data"]
    data["tokenizer"] = {"vocabulary": size, "file": str(file), "end_of_document": end}
    data["sequence_length"] = min(data["sequence_length"], context or data["sequence_length"])
    try:
        return TrainConfig.model_validate(values | {"model": found.model})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        problem = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"With the recipe {recipe}: {key}{': ' if key else ''}{problem}") from None


def _check(weights: HFWeights, family: Family, whole: dict[str, torch.Size], model: ModelConfig) -> None:
    """Raise ConfigError unless the weights have the names and shapes that the configuration implies."""
    expected: dict[str, torch.Size] = {}
    for name, shape in whole.items():
        parts = family.export(name, torch.empty(shape, device="meta"))
        expected |= {theirs: part.shape for theirs, part in parts.items()}
    for name, shape in expected.items():
        if weights.shape(name) != tuple(shape):
            raise ConfigError(
                f"{name} is {list(weights.shape(name))} in {weights.folder} and config.json makes it {list(shape)}; "
                "the two must be of one model."
            )
    tied = {"lm_head.weight", "embed_out.weight"} if model.tied_head else set()
    for name in sorted(weights.names - expected.keys() - tied):
        if not name.endswith(_BUFFERS):
            raise ConfigError(f"{weights.folder} holds {name}, which {family.architecture} has not by its config.json.")


@torch.no_grad()
def _our_logits(config: TrainConfig, folder: Path, ids_BL: Tensor) -> Tensor:
    model = save_load.build(config)
    save_load.load_weights(model, folder, config)
    logits_BLV: Tensor = model(ids_BL)
    return logits_BLV


@torch.no_grad()
def _their_logits(source: Path, ids_BL: Tensor) -> Tensor:
    from transformers import AutoModelForCausalLM, logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, local_files_only=True)
        logits_BLV: Tensor = model.eval()(ids_BL).logits
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0].rstrip(".")
        raise ConfigError(f"transformers itself cannot open {source} or compute its logits ({reason}).") from error
    return logits_BLV


def _compare(ours_BLV: Tensor, theirs_BLV: Tensor) -> float:
    """The largest difference between two sets of logits. Raises ConfigError if it is more than TOLERANCE allows."""
    difference, largest = (ours_BLV - theirs_BLV).abs().max().item(), theirs_BLV.abs().max().item()
    # The negation also refuses NaN.
    if not difference <= TOLERANCE * max(1.0, largest):
        raise ConfigError(
            f"Our logits differ from transformers' by {difference:.2g}, of {largest:.2g} at most; this model is not "
            "what its config.json says."
        )
    return difference


def _metadata(source: Path, config: TrainConfig, tokens: Tokenizer) -> dict[str, Any]:
    """The checkpoint's metadata beyond its configuration; what it was trained on is not known."""
    end = config.data.tokenizer.end_of_document
    described = {"sha256": bpe.digest(tokens), "vocabulary": bpe.size(tokens), "end_of_document": end}
    return {
        "tokens": 0,
        "parent": None,
        "imported": source.absolute().name,
        "licence": _licence(source),
        "data": {"tokenizer": described, "sources": []},
    }


def _licence(source: Path) -> str | None:
    """The licence that the model card of a folder names, by the Hub's identifier; None where it names none."""
    try:
        text = (source / "README.md").read_text(encoding="utf-8")
        known = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else {}
    except (OSError, ValueError, IndexError, yaml.YAMLError):
        return None
    licence = known.get("license") if isinstance(known, dict) else None
    name = known.get("license_name") if licence == "other" else None
    return str(name or licence) if isinstance(licence, str) else None
