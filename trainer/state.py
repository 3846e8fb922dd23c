"""What a checkpoint holds: weights as transformers reads them, a probe of logits, how it was made, Adam's moments."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer import checkpoint, hf, tokenizer
from trainer.config import TrainConfig
from trainer.model import Transformer

WEIGHTS = "model.safetensors"
MOMENTS = "trainer/optimizer.safetensors"
PROBE = "probe.safetensors"


def build(config: TrainConfig) -> Transformer:
    """The model of a configuration, weights not drawn."""
    return Transformer(config.model, config.vocabulary, config.data.sequence_length)


def load_weights(model: Transformer, folder: Path) -> None:
    model.load_state_dict(hf.from_hf(load_file(folder / WEIGHTS)))


def load_moments(folder: Path) -> dict[str, Tensor]:
    """Adam's moments by `{moment}.{parameter}`, whole. There are none at step 0."""
    return load_file(folder / MOMENTS)


def save(
    config: TrainConfig,
    out: Path,
    step: int,
    model: Transformer,
    moments: dict[str, Tensor],
    probe_BL: Tensor,
    manifest: dict[str, Any],
    data: Path,
) -> None:
    """Write the checkpoint of `step` whole or not at all.

    The moments are whole too, not a rank's part of them, so that any number of ranks can go on from them.
    """
    bpe = tokenizer.load(data)
    end = tokenizer.end_of_document(bpe)
    with torch.no_grad():
        logits_BLV = model(probe_BL)
    made = {
        "step": step,
        "tokens": step * config.tokens_per_step,
        "seed": config.training.seed,
        "config": config.model_dump(mode="json"),
        "data": manifest,
        "code_version": code_version(),
        "torch_version": torch.__version__,
    }
    with checkpoint.staged(out, step) as folder:
        (folder / "trainer").mkdir()
        weights = {name: value.detach().cpu() for name, value in hf.to_hf(model.state_dict()).items()}
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
        save_file({"ids": probe_BL.cpu(), "logits": logits_BLV.cpu()}, folder / PROBE)
        if step:
            save_file(moments, folder / MOMENTS)
        tokenizer.save(bpe, folder, config.data.sequence_length)
        _write_json(folder / "config.json", hf.config_to_hf(config, end))
        _write_json(folder / "generation_config.json", {"bos_token_id": end, "eos_token_id": end})
        _write_json(folder / "how.json", made)


def code_version() -> str:
    """A hash of the trainer's own source, which names the code whether or not it lies in a repository."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return f"sha256:{digest.hexdigest()}"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
