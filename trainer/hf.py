"""The adapter between our model and transformers' GPTNeoXForCausalLM: names both ways, and its configuration."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from trainer.config import TrainConfig

_TOP = {"embed": "gpt_neox.embed_in", "final_norm": "gpt_neox.final_layer_norm", "head": "embed_out"}
_BLOCK = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "attention.qkv": "attention.query_key_value",
    "attention.out": "attention.dense",
    "mlp.up": "mlp.dense_h_to_4h",
    "mlp.down": "mlp.dense_4h_to_h",
}
_ACTIVATIONS = {"gelu-tanh": "gelu_pytorch_tanh", "gelu-erf": "gelu"}


def to_hf(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under the names that GPT-NeoX checkpoints carry on disk; the layouts are the same."""
    return {_rename(name, _TOP, _BLOCK, "blocks", "gpt_neox.layers"): value for name, value in weights.items()}


def from_hf(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Such a state dict under our names."""
    top, block = ({theirs: ours for ours, theirs in names.items()} for names in (_TOP, _BLOCK))
    return {_rename(name, top, block, "gpt_neox.layers", "blocks"): value for name, value in weights.items()}


def config_to_hf(config: TrainConfig, end_of_document: int) -> dict[str, Any]:
    """The `config.json` that opens our weights as GPTNeoXForCausalLM."""
    model = config.model
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": config.vocabulary,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "intermediate_size": 4 * model.hidden_size,
        "hidden_act": _ACTIVATIONS[model.activation],
        "max_position_embeddings": config.data.sequence_length,
        "layer_norm_eps": model.layer_norm_eps,
        "use_parallel_residual": model.parallel_residual,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": model.rotary_base,
            "partial_rotary_factor": model.rotary_pct,
        },
        # The names that transformers 4 reads.
        "rotary_pct": model.rotary_pct,
        "rotary_emb_base": model.rotary_base,
        "attention_bias": True,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "tie_word_embeddings": False,
        "bos_token_id": end_of_document,
        "eos_token_id": end_of_document,
        "dtype": "float32",
    }


def _rename(name: str, top: Mapping[str, str], block: Mapping[str, str], source: str, target: str) -> str:
    module, _, kind = name.rpartition(".")
    if module in top:
        return f"{top[module]}.{kind}"
    index, _, inner = module.removeprefix(f"{source}.").partition(".")
    return f"{target}.{index}.{block[inner]}.{kind}"
