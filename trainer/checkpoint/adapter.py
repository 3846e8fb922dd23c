"""A checkpoint's adapters in the format of PEFT, which opens them over the base."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from trainer.config import TrainConfig
from trainer.families import Family
from trainer.model import lora

FOLDER = "adapter"


def write(folder: Path, config: TrainConfig, family: Family, adapters: Mapping[str, Tensor]) -> None:
    """Write the adapters, whose parameters go by their names, beside a checkpoint's weights, under the names that the
    layers have in transformers. One that stands for several layers there, such as queries, keys and values, is cut."""
    assert config.lora is not None
    content: dict[str, Tensor] = {}
    modules: list[str] = []
    for name, b_OR in adapters.items():
        layer, _, part = name.rpartition(".")
        if part == lora.A:
            continue
        for theirs, rows_OR in family.export(f"{layer}.weight", b_OR).items():
            module, _, kind = theirs.rpartition(".")
            if kind == "weight":
                modules.append(module)
                content[f"base_model.model.{module}.lora_A.weight"] = adapters[f"{layer}.{lora.A}"].clone()
                content[f"base_model.model.{module}.lora_B.weight"] = rows_OR.clone()
    (folder / FOLDER).mkdir()
    save_file(content, folder / FOLDER / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = lora.peft_config(config.lora, str(config.base), modules)
    (folder / FOLDER / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
