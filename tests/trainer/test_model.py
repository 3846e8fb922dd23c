"""Our model is transformers' GPT-NeoX: the same logits from the same weights, and the way back."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import GPTNeoXForCausalLM

from trainer import hf, state
from trainer.config import ModelConfig, TrainConfig
from trainer.model import initialise


@pytest.mark.parametrize("activation", ["gelu-tanh", "gelu-erf"])
@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize(("rotary_pct", "base"), [(0.25, 10_000), (1.0, 500)])
def test_logits_equal_transformers(
    config: TrainConfig, tmp_path: Path, activation: str, parallel: bool, rotary_pct: float, base: float
) -> None:
    shape = ModelConfig.model_validate(
        config.model.model_dump()
        | {"activation": activation, "parallel_residual": parallel, "rotary_pct": rotary_pct, "rotary_base": base}
    )
    config = config.model_copy(update={"model": shape})
    ours = state.build(config)
    initialise(ours, seed=3)
    generator = torch.Generator().manual_seed(4)
    for parameter in ours.parameters():
        # Large enough that the two activations, and every bias and norm, show in the logits.
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    (tmp_path / "config.json").write_text(json.dumps(hf.config_to_hf(config, 0)))
    save_file(hf.to_hf(ours.state_dict()), tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs = GPTNeoXForCausalLM.from_pretrained(tmp_path).eval()
    ids_BL = torch.randint(config.vocabulary, (2, config.data.sequence_length), generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids_BL), theirs(ids_BL).logits, atol=1e-4, rtol=0)


def test_names_go_both_ways(config: TrainConfig) -> None:
    weights = state.build(config).state_dict()
    back = hf.from_hf(hf.to_hf(weights))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_initial_scale(config: TrainConfig) -> None:
    model = state.build(config)
    initialise(model, seed=0)
    weights = model.state_dict()
    assert weights["embed.weight"].std() == pytest.approx((2 / (5 * 32)) ** 0.5, rel=0.05)
    assert weights["blocks.1.mlp.down.weight"].std() == pytest.approx(2 / (2 * 32**0.5), rel=0.05)
    assert not weights["blocks.0.attention.qkv.bias"].any()


def test_a_position_sees_only_its_past(config: TrainConfig) -> None:
    model = state.build(config)
    initialise(model, seed=0)
    ids_BL = torch.arange(16)[None]
    other_BL = ids_BL.clone()
    other_BL[0, 9:] = 99
    assert torch.equal(model(ids_BL)[:, :9], model(other_BL)[:, :9])
    assert not torch.equal(model(ids_BL)[:, 9], model(other_BL)[:, 9])
