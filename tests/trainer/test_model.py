"""The transformer against a plain reading of its formulas where transformers has none; its first weights."""

import math
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch
import transformers
from pydantic import ValidationError
from torch import Tensor
from transformers.models.t5.modeling_t5 import T5Attention

from tests.trainer.drawn import CONTEXT, SWITCHES, VOCABULARY, ids, transformer
from trainer.model.config import ModelConfig
from trainer.model.count import parameters
from trainer.model.initialise import draw
from trainer.model.positions import RelativeBias, Rotary, alibi_slopes, distance_buckets, sinusoids
from trainer.model.tensor_parallel import ALONE
from trainer.model.transformer import Attention, shapes

SHAPE: dict[str, Any] = {"layers": 2, "hidden_size": 64, "heads": 4}


def attention_by_hand(
    attention: Attention, model: ModelConfig, x_LD: Tensor, bias: Callable[[int, int], Tensor]
) -> Tensor:
    """One token, one head at a time: softmax of scale · q·k + `bias` of head and distance over the tokens in sight."""
    rows = attention.qkv(x_LD).view(len(x_LD), model.groups, -1, model.head_size)
    out = torch.zeros(len(x_LD), model.heads, model.head_size)
    for head in range(model.heads):
        group, query = divmod(head, model.heads // model.groups)
        for now in range(len(x_LD)):
            sight = range(max(0, now - model.window + 1), now + 1)
            logits = torch.stack(
                [
                    rows[now, group, query] @ rows[then, group, -2] * model.scale + bias(head, now - then)
                    for then in sight
                ]
            )
            values = rows[list(sight), group, -1]
            out[now, head] = logits.softmax(0) @ values
    by_hand: Tensor = attention.out(out.flatten(1))
    return by_hand


@pytest.mark.parametrize("kv_heads", [None, 2, 1])
@pytest.mark.parametrize("window", [1, 7, 300])
@torch.no_grad()
def test_alibi_with_windows_and_groups(window: int, kv_heads: int | None) -> None:
    model = ModelConfig(
        **SHAPE, positions="alibi", attention=("local",), window=window, kv_heads=kv_heads, logit_scale=0.4
    )
    attention = transformer(model, seed=0).blocks[0].attention
    assert isinstance(attention, Attention)
    x_LD = torch.randn(20, 64, generator=torch.Generator().manual_seed(1))
    slopes = alibi_slopes(4)
    by_hand = attention_by_hand(attention, model, x_LD, lambda head, distance: -slopes[head] * distance)
    torch.testing.assert_close(attention(x_LD[None])[0], by_hand, atol=1e-5, rtol=1e-5)


def t5_bucket(distance: int, buckets: int, max_distance: int) -> int:
    """Raffel et al. 2020, by the formula."""
    exact = buckets // 2
    if distance < exact:
        return distance
    share = math.log(distance / exact) / math.log(max_distance / exact)
    return min(exact + int(share * (buckets - exact)), buckets - 1)


@pytest.mark.parametrize(("kv_heads", "window"), [(None, 1), (2, 7), (1, 7), (2, 300), (None, 300)])
@torch.no_grad()
def test_t5_with_windows_and_groups(window: int, kv_heads: int | None) -> None:
    relative = {"positions": "t5", "t5_buckets": 8, "t5_max_distance": 15}
    switches = {"attention": ("local",), "window": window, "kv_heads": kv_heads, "logit_scale": 1.0}
    model = ModelConfig.model_validate(SHAPE | relative | switches)
    ours = transformer(model, seed=0)
    assert ours.relative_bias is not None
    table = ours.relative_bias.weight
    assert table.shape == (8, 4)
    x_LD = torch.randn(20, 64, generator=torch.Generator().manual_seed(1))
    for block in ours.blocks:
        attention = block.attention
        assert isinstance(attention, Attention)
        by_hand = attention_by_hand(
            attention, model, x_LD, lambda head, distance: table[t5_bucket(distance, 8, 15), head]
        )
        torch.testing.assert_close(attention(x_LD[None])[0], by_hand, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("buckets", "furthest"), [(32, 128), (2, 2), (5, 100), (64, 4096), (32, 17)])
def test_t5_s_biases_are_those_of_transformers(buckets: int, furthest: int) -> None:
    config = transformers.T5Config(
        d_model=64,
        num_heads=4,
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=furthest,
        is_decoder=True,
    )
    theirs = T5Attention(config, has_relative_attention_bias=True)
    relative = {"positions": "t5", "t5_buckets": buckets, "t5_max_distance": furthest}
    model = ModelConfig.model_validate(SHAPE | relative)
    length = 600
    ours = RelativeBias(model, length, ALONE)
    torch.nn.init.normal_(ours.weight, generator=torch.Generator().manual_seed(1))
    theirs.relative_attention_bias.weight = ours.weight
    theirs_HLL = theirs.compute_bias(length, length)[0]  # type: ignore[no-untyped-call]
    ours_HLL = Attention(model, False, None, ours, ALONE).bias(length, torch.zeros(()))
    assert ours_HLL is not None
    past = torch.ones(length, length, dtype=torch.bool).tril()
    assert torch.equal(ours_HLL[:, past], theirs_HLL[:, past])
    assert (ours_HLL[:, ~past] == -torch.inf).all()
    distances = torch.arange(5000)
    assert torch.equal(
        distance_buckets(5000, buckets, furthest),
        T5Attention._relative_position_bucket(-distances, False, buckets, furthest),  # type: ignore[no-untyped-call]
    )
    # The gradient of a number is the sum over all places that it stands at.
    towards_HLL = torch.randn(4, length, length, generator=torch.Generator().manual_seed(2)).tril()
    [gradient] = torch.autograd.grad(ours_HLL.tril(), ours.weight, towards_HLL)
    [expected] = torch.autograd.grad(theirs_HLL.tril(), ours.weight, towards_HLL)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-2)


def test_alibi_slopes_are_the_paper_s() -> None:
    assert alibi_slopes(8).tolist() == [2**-n for n in range(1, 9)]
    # Not a power of two: the nearest below, then every other of the next.
    assert alibi_slopes(12).tolist() == pytest.approx(
        [2**-n for n in range(1, 9)] + [2 ** -(n - 0.5) for n in (1, 2, 3, 4)]
    )


def test_sinusoids_are_the_paper_s() -> None:
    table = sinusoids(CONTEXT, 8)
    for position in (0, 1, 47):
        angles = [position / 10_000 ** (2 * i / 8) for i in range(4)]
        expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        assert table[position].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_rotary_logits_depend_on_the_distance_alone(layout: str) -> None:
    model = ModelConfig.model_validate(SHAPE | {"rotary_layout": layout, "rotary_pct": 0.5})
    turn = Rotary(model, CONTEXT)
    q_K, k_K = torch.randn(2, model.head_size, generator=torch.Generator().manual_seed(0))
    q_LK, k_LK = (turn(x_K.expand(1, 1, CONTEXT, -1))[0, 0] for x_K in (q_K, k_K))
    logits_LL = q_LK @ k_LK.T
    for distance in (0, 3, 20):
        diagonal = logits_LL.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5, rtol=0)
    assert not torch.allclose(logits_LL.diagonal(0)[0], logits_LL.diagonal(-3)[0])
    # Half of each head stays as it is.
    assert torch.equal(q_LK[5, model.rotary_size :], q_K[model.rotary_size :])


@pytest.mark.parametrize("architecture", SWITCHES)
@torch.no_grad()
def test_a_position_sees_only_its_past(architecture: str) -> None:
    rng = Random(architecture)
    for seed in range(5):
        ours = transformer(ModelConfig.model_validate(SWITCHES[architecture](rng)), seed)
        first = ids(0)
        other = first.clone()
        other[:, 30:] = (other[:, 30:] + 1) % VOCABULARY
        torch.testing.assert_close(ours(first)[:, :30], ours(other)[:, :30], atol=1e-5, rtol=0)
        assert not torch.allclose(ours(first)[:, 30], ours(other)[:, 30], atol=1e-3)


@pytest.mark.parametrize("architecture", SWITCHES)
def test_parameters_are_counted_without_torch(architecture: str) -> None:
    rng = Random(architecture)
    for _ in range(30):
        positions = {"positions": "t5", "yarn": None} if rng.random() < 0.2 else {}
        model = ModelConfig.model_validate(SWITCHES[architecture](rng) | positions)
        whole = shapes(model, VOCABULARY, CONTEXT).values()
        assert parameters(model, VOCABULARY, CONTEXT) == sum(shape.numel() for shape in whole), model


@pytest.mark.parametrize(
    ("init", "matrix", "residual"),
    [
        ({}, (2 / (5 * 64)) ** 0.5, 2 / (2 * 64**0.5)),
        ({"matrices": "normal", "std": 0.03, "residual": "same"}, 0.03, 0.03),
        ({"matrices": "normal", "std": 0.03, "residual": "scaled"}, 0.03, 0.03 / 4**0.5),
    ],
)
def test_first_weights(init: dict[str, Any], matrix: float, residual: float) -> None:
    model = ModelConfig.model_validate(SHAPE | {"init": init})
    whole = shapes(model, VOCABULARY, CONTEXT)
    weights = {name: draw(name, shape, model, seed=0) for name, shape in whole.items()}
    for name, weight in weights.items():
        if name.endswith("bias"):
            assert not weight.any()
        elif weight.dim() == 1:
            assert (weight == 1).all()
        else:
            writes = name.endswith(("attention.out.weight", "mlp.down.weight"))
            assert weight.std().item() == pytest.approx(residual if writes else matrix, rel=0.05), name
    again = draw("head.weight", whole["head.weight"], model, seed=0)
    assert torch.equal(again, weights["head.weight"])
    assert not torch.equal(again, draw("head.weight", whole["head.weight"], model, seed=1))
    assert not torch.equal(again, weights["embed.tokens.weight"])


@pytest.mark.parametrize(
    ("switches", "said"),
    [
        ({"heads": 5}, "model.hidden_size (64) must be a multiple of model.heads (5)."),
        ({"kv_heads": 3}, "model.heads (4) must be a multiple of model.kv_heads (3)."),
        ({"rotary_pct": 0.2}, "model.rotary_pct (0.2) must rotate an even number of a head's 16 dimensions, not 3."),
        ({"positions": "alibi", "yarn": {"factor": 2, "original_context": 16}}, "model.yarn stretches rotary"),
        ({"positions": "t5", "t5_max_distance": 16}, "model.t5_max_distance (16) must be more than half of"),
        ({"norms": "one", "parallel_residual": False}, "model.norms one needs model.parallel_residual"),
        ({"tied_head": True, "head_bias": True}, "model.head_bias goes with an untied head"),
    ],
)
def test_switches_that_do_not_go_together(switches: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as error:
        ModelConfig.model_validate(SHAPE | switches)
    assert said in error.value.errors()[0]["msg"]
