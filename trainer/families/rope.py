"""Rotary positions in `config.json`: transformers 5 has them in `rope_parameters`, transformers 4 in several fields."""

import math
from typing import Any

from trainer.model.config import ModelConfig, YarnConfig
from trainer.schema import ConfigError


def write(model: ModelConfig) -> dict[str, Any]:
    """The fields for our rotary positions that GPT-NeoX and Llama have in common."""
    yarn = model.yarn
    stretch: dict[str, Any] = {"rope_type": "default"}
    if yarn is not None:
        stretch = {
            "rope_type": "yarn",
            "factor": yarn.factor,
            "original_max_position_embeddings": yarn.original_context,
            "beta_fast": yarn.beta_fast,
            "beta_slow": yarn.beta_slow,
        }
    parameters = stretch | {"rope_theta": model.rotary_base}
    return {"rope_parameters": parameters} | ({"rope_scaling": stretch} if yarn else {})


def read(theirs: Any) -> dict[str, Any]:
    """Our fields of ModelConfig from a configuration of transformers. Raises ConfigError if ours cannot express it."""
    values: dict[str, Any] = theirs.rope_parameters
    kind = values.get("rope_type", "default")
    switches = {"rotary_base": values["rope_theta"], "rotary_pct": values.get("partial_rotary_factor", 1.0)}
    if kind == "default":
        return switches
    if kind != "yarn":
        raise ConfigError(f"The rope type {kind} is none of ours; the model must have default or yarn.")
    usual = 0.1 * math.log(values["factor"]) + 1
    if (
        not math.isclose(values.get("attention_factor") or usual, usual, rel_tol=1e-6)
        or (values.get("mscale") and values.get("mscale_all_dim"))
        or not values.get("truncate", True)
    ):
        raise ConfigError("The model's YaRN has a temperature or a ramp that is not the paper's, which ours is.")
    yarn = YarnConfig(
        factor=values["factor"],
        original_context=values["original_max_position_embeddings"],
        beta_fast=values.get("beta_fast") or 32.0,
        beta_slow=values.get("beta_slow") or 1.0,
    )
    return switches | {"yarn": yarn}
