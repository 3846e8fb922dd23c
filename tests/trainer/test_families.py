"""Our models are transformers' own: the same logits from the folder that we write, and the way back."""

from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import transformers

from tests.trainer.drawn import CONTEXT, SWITCHES, VOCABULARY, adapter_of, assert_same_logits, ids, transformer, write
from trainer.families import family_of
from trainer.model.config import ModelConfig
from trainer.schema import ConfigError

DRAWS = 30
SHAPE: dict[str, Any] = {"layers": 2, "hidden_size": 64, "heads": 4, "kv_heads": 2, "attention": ["global", "local"]}
NEO: dict[str, Any] = {"positions": "learned", "parallel_residual": False, "qkv_bias": False}

transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("architecture", SWITCHES)
@torch.no_grad()
def test_logits_equal_transformers(architecture: str, tmp_path: Path) -> None:
    rng = Random(architecture)
    for seed in range(DRAWS):
        model = ModelConfig.model_validate(SWITCHES[architecture](rng))
        family = adapter_of(architecture)(model, VOCABULARY, CONTEXT)
        assert not list(family.missing_features()), model
        ours = transformer(model, seed)
        written = write(ours, family, tmp_path)
        theirs, loaded = getattr(transformers, architecture).from_pretrained(tmp_path, output_loading_info=True)
        assert not any(loaded.values()), (loaded, model)
        inputs = ids(seed)
        assert_same_logits(ours(inputs), theirs.eval()(inputs).logits, model)
        for name, parameter in ours.named_parameters():
            assert torch.equal(family.fetch(name, written.__getitem__), parameter), (name, model)


@pytest.mark.parametrize(
    "change",
    [
        {"kv_heads": 4},
        {"rotary_pct": 0.5},
        {"rotary_base": 9_000},
        {"rotary_layout": "interleaved"},
        {"yarn": {"factor": 2, "original_context": 8}},
        {"yarn": {"factor": 4, "original_context": 40}},
        {"positions": "learned"},
        {"positions": "sinusoidal"},
        {"positions": "alibi"},
        {"positions": "t5"},
        {"parallel_residual": False},
        {"norms": "one"},
        {"norm": "rmsnorm"},
        {"norm_eps": 1e-3},
        {"activation": "gelu-erf"},
        {"activation": "swiglu"},
        {"qkv_bias": False},
        {"attention_bias": False},
        {"mlp_bias": False},
        {"head_bias": True},
        {"attention": ["global"]},
        {"window": 17},
        {"logit_scale": 0.3},
        {"tied_head": True},
    ],
    ids=str,
)
@torch.no_grad()
def test_every_switch_shows_in_the_logits(change: dict[str, Any]) -> None:
    """So that the equality above would fail if an adapter forgot one of them."""
    base = {**SHAPE, "window": 16}
    ours, other = (transformer(ModelConfig(**switches), seed=0) for switches in (base, base | change))
    # What both have is the same in both.
    shared = ours.state_dict()
    other.load_state_dict(
        {name: shared[name] for name, value in other.state_dict().items() if _fits(shared, name, value)}, strict=False
    )
    difference = (ours(ids(0)) - other(ids(0))).abs().max()
    assert difference > 5e-4


def _fits(shared: dict[str, torch.Tensor], name: str, value: torch.Tensor) -> bool:
    return name in shared and shared[name].shape == value.shape


@pytest.mark.parametrize(
    ("switches", "architecture"),
    [
        ({}, "GPTNeoXForCausalLM"),
        ({"norms": "one", "rotary_layout": "interleaved", "qkv_bias": False}, "GPTNeoXForCausalLM"),
        ({"norms": "one", "qkv_bias": False, "attention_bias": False, "head_bias": True}, "GPTJForCausalLM"),
        ({**NEO, "logit_scale": 1.0, "attention": ("global", "local")}, "GPTNeoForCausalLM"),
        (
            {"norm": "rmsnorm", "activation": "swiglu", "parallel_residual": False, "rotary_pct": 1.0, "kv_heads": 2},
            "LlamaForCausalLM",
        ),
    ],
)
def test_the_class_that_fits(switches: dict[str, Any], architecture: str) -> None:
    family = family_of(ModelConfig(layers=2, hidden_size=64, heads=4, window=8, **switches), VOCABULARY, CONTEXT)
    assert (family.refusal, family.architecture) == (None, architecture)
    assert family.config_json(end=3)["architectures"] == [architecture]


@pytest.mark.parametrize(
    ("switches", "said"),
    [
        ({"positions": "alibi"}, "GPTNeoXForCausalLM, has no ALiBi positions."),
        ({"positions": "t5"}, "GPTNeoXForCausalLM, has no relative positions like T5's."),
        ({"attention": ("local",), "window": 8}, "GPTNeoXForCausalLM, has no local attention."),
        ({"norm": "rmsnorm"}, "GPTNeoXForCausalLM, has no RMSNorm."),
        ({"head_bias": True}, "GPTNeoXForCausalLM, has no bias on the head."),
        ({"logit_scale": 0.3}, "GPTNeoXForCausalLM, has no logit scale of 0.3."),
        (
            {**NEO, "qkv_bias": True, "attention": ("local",), "window": 8},
            "GPTNeoForCausalLM, has no bias on queries, keys and values.",
        ),
        (
            {"norm": "rmsnorm", "activation": "swiglu", "parallel_residual": False},
            "LlamaForCausalLM, has no rotation of a part of each head.",
        ),
        (
            {"norms": "one", "head_bias": True, "qkv_bias": False, "attention_bias": False, "rotary_base": 500.0},
            "has no",
        ),
    ],
)
def test_what_no_class_computes_keeps_our_names(switches: dict[str, Any], said: str) -> None:
    family = family_of(ModelConfig(layers=2, hidden_size=64, heads=4, **switches), VOCABULARY, CONTEXT)
    assert family.refusal is not None
    assert family.refusal.startswith("No class of transformers computes this model: the nearest, ")
    assert said in family.refusal
    tensor = torch.zeros(2, 3)
    assert family.export("head.weight", tensor) == {"head.weight": tensor}
    assert family.fetch("head.weight", {"head.weight": tensor}.__getitem__) is tensor
    with pytest.raises(ConfigError, match="No class of transformers"):
        family.config_json(end=3)
