"""Models drawn at random over the switches of each class of transformers, with weights that show them all."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from trainer.families import ADAPTERS, Family
from trainer.families.base import Adapter
from trainer.model.config import ModelConfig
from trainer.model.transformer import Transformer

VOCABULARY, CONTEXT = 96, 48
END = 3

Switches = dict[str, Any]


def _common(rng: Random) -> Switches:
    heads, size = rng.choice([(1, 64), (2, 16), (4, 16), (4, 16)])
    return {
        "layers": rng.choice([1, 2, 3]),
        "hidden_size": heads * size,
        "heads": heads,
        "mlp_size": rng.choice([None, 40, 96]),
        "norm_eps": rng.choice([1e-5, 1e-2]),
        "activation": rng.choice(["gelu-tanh", "gelu-erf"]),
        "mlp_bias": rng.random() < 0.7,
        "kv_heads": rng.choice([None, 1, max(1, heads // 2)]),
        "tied_head": rng.random() < 0.3,
        # Not more than the context, so that it is none; a power of two times the usual.
        "attention": rng.choice([["global"], ["global"], ["local"]]),
        "window": CONTEXT,
        "logit_scale": rng.choice([None, None, 0.5 * size**-0.5]),
    }


def _rotary(rng: Random) -> Switches:
    stretch = {
        "factor": rng.choice([2, 4.0, 16]),
        "original_context": rng.choice([8, 16, 40]),
        "beta_fast": rng.choice([32, 4]),
        "beta_slow": rng.choice([1, 0.1]),
    }
    return {
        "rotary_pct": rng.choice([0.25, 0.5, 1.0]),
        "rotary_base": rng.choice([10_000, 500]),
        "rotary_layout": rng.choice(["half", "interleaved"]),
        "yarn": rng.choice([None, stretch]),
    }


def _neox(rng: Random) -> Switches:
    parallel = rng.random() < 0.6
    return {
        **_common(rng),
        **_rotary(rng),
        "parallel_residual": parallel,
        "norms": rng.choice(["two", "two", "tied", "one" if parallel else "tied"]),
        "qkv_bias": rng.random() < 0.6,
        "attention_bias": rng.random() < 0.6,
    }


def _gptj(rng: Random) -> Switches:
    plain = {"rotary_base": 10_000, "yarn": None, "tied_head": False, "head_bias": True}
    return {
        **_common(rng),
        **_rotary(rng),
        **plain,
        "norms": rng.choice(["one", "tied"]),
        "qkv_bias": False,
        "attention_bias": False,
    }


def _neo(rng: Random) -> Switches:
    return {
        **_common(rng),
        "positions": rng.choice(["learned", "learned", "sinusoidal"]),
        "parallel_residual": False,
        "norms": rng.choice(["two", "two", "tied"]),
        "qkv_bias": False,
        "attention_bias": rng.random() < 0.7,
        "attention": rng.choice([["global"], ["global", "local"], ["local", "local", "global"]]),
        "window": rng.choice([1, 5, 31, 300]),
        "logit_scale": rng.choice([1.0, 1.0, None]),
    }


def _llama(rng: Random) -> Switches:
    return {
        **_common(rng),
        **_rotary(rng),
        "rotary_pct": 1.0,
        "parallel_residual": False,
        "norms": rng.choice(["two", "two", "tied"]),
        "norm": "rmsnorm",
        "activation": "swiglu",
        "qkv_bias": rng.random() < 0.4,
        "attention_bias": rng.random() < 0.4,
    }


SWITCHES: dict[str, Callable[[Random], Switches]] = {
    "GPTNeoXForCausalLM": _neox,
    "GPTJForCausalLM": _gptj,
    "GPTNeoForCausalLM": _neo,
    "LlamaForCausalLM": _llama,
}


def adapter_of(architecture: str) -> type[Adapter]:
    return next(adapter for adapter in ADAPTERS if adapter.architecture == architecture)


def transformer(model: ModelConfig, seed: int) -> Transformer:
    """A model of ours; every weight, bias and norm is far from what would hide it."""
    ours = Transformer(model, VOCABULARY, CONTEXT)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in ours.named_parameters():
        middle = 1 if name.endswith("norm.weight") else 0
        deviation = 1.5 * parameter.shape[1] ** -0.5 if parameter.dim() > 1 else 0.25
        parameter.data = middle + deviation * torch.randn(parameter.shape, generator=generator)
    return ours


def write(ours: Transformer, family: Family, folder: Path) -> dict[str, Tensor]:
    """The folder that transformers opens; the tensors in it by their names there."""
    theirs: dict[str, Tensor] = {}
    for name, parameter in ours.named_parameters():
        theirs |= family.export(name, parameter.detach())
    save_file(theirs, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(family.config_json(end=END)))
    return theirs


def ids(seed: int, length: int = CONTEXT) -> Tensor:
    return torch.randint(VOCABULARY, (2, length), generator=torch.Generator().manual_seed(seed))


def assert_same_logits(ours: Tensor, theirs: Tensor, what: object) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0, msg=lambda said: f"{said}\n{what}")
