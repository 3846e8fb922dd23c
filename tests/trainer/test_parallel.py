"""Every layout of ranks trains as one process does: losses to 1e-5, gradient norms to a relative 1e-5, 20 steps."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

from tests.trainer.conftest import TINY
from tests.trainer.ranks_parallel import Ranks, drawn, rows_of, step_nowhere_in_bf16, train, train_without
from trainer.config import ParallelConfig, TrainConfig
from trainer.engine.deepspeed_setup import safe_zero_stage
from trainer.model.transformer import Transformer

STEPS = range(20)
FEW = range(4)  # enough for what would be wrong to show
# Three layers do not divide by two stages, nor an MLP of 102 by the partitions of four ranks.
SHAPE = {"layers": 3, "hidden_size": 60, "heads": 4, "rotary_pct": 0.4, "mlp_size": 102, "vocabulary": 512}
MODELS: dict[str, dict[str, Any]] = {
    "neox": {},
    "gptj": {"norms": "one", "rotary_layout": "interleaved", "head_bias": True, "attention_bias": False},
    "neo": {
        "positions": "learned",
        "parallel_residual": False,
        "tied_head": True,
        "qkv_bias": False,
        "attention": ["global", "local"],
        "window": 4,
    },
    "llama": {
        "parallel_residual": False,
        "norm": "rmsnorm",
        "activation": "swiglu",
        "kv_heads": 2,
        "qkv_bias": False,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "alibi": {"positions": "alibi", "kv_heads": 2, "tied_head": True, "norms": "tied"},
    "t5": {
        "positions": "t5",
        "t5_buckets": 6,
        "t5_max_distance": 12,
        "kv_heads": 2,
        "tied_head": True,
        "attention": ["global", "local"],
        "window": 5,
        # Larger than usual, so that the table's part in the norm shows.
        "init": {"matrices": "normal", "std": 0.2},
    },
}


def config_of(model: str, zero: int = 1, pipeline: int = 1, tensor: int = 1, **training: Any) -> TrainConfig:
    values = {
        "model": SHAPE | MODELS[model],
        "data": TINY["data"] | {"sequence_length": 16},
        "optimizer": {"learning_rate": 0.003, "clip": 0.5},
        "training": {"steps": 20, "batch": 4, "micro_batch": 1, "evaluation_tokens": 512} | training,
        "parallel": {"zero_stage": zero, "pipeline": pipeline, "tensor": tensor},
    }
    return TrainConfig.model_validate(values)


@cache
def alone(model: str, batch: int = 4) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step in one process, with torch and no engine."""
    config = config_of(model, batch=batch)
    module = Transformer(config.model, config.vocabulary, config.context)
    read = drawn(config)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(read("weight", name))
    parameters = list(module.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.optimizer.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, config.optimizer.learning_rate, config.optimizer.betas, config.optimizer.eps)
    done = []
    for step in STEPS:
        rows = rows_of(config, step)
        adamw.zero_grad()
        loss = module(rows[:, :-1], rows[:, 1:])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.optimizer.clip)
        adamw.step()
        done.append((loss.item(), norm.item()))
    assert all(norm > config.optimizer.clip for _, norm in done)
    return done


@pytest.fixture(scope="module")
def two() -> Iterator[Ranks]:
    with Ranks(2) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def four() -> Iterator[Ranks]:
    with Ranks(4) as ranks:
        yield ranks


def check(ranks: Ranks, model: str, **layout: Any) -> None:
    done, *others = ranks.call(train, config_of(model, **layout), STEPS)
    assert all(other == done for other in others)
    for (loss, norm), (wanted_loss, wanted_norm) in zip(done, alone(model, layout.get("batch", 4)), strict=True):
        assert loss == pytest.approx(wanted_loss, abs=1e-5, rel=0)
        assert norm == pytest.approx(wanted_norm, rel=1e-5)


@pytest.mark.parametrize(
    ("model", "layout"),
    [
        ("neox", {"zero": 0}),
        ("gptj", {"zero": 1}),
        ("neo", {"zero": 2, "recompute": True}),
        ("llama", {"zero": 3, "recompute": True}),
        ("alibi", {"zero": 3}),
        ("t5", {"zero": 0}),
        ("t5", {"zero": 2, "recompute": True}),
        ("t5", {"zero": 3, "recompute": True}),
        ("t5", {"tensor": 2, "micro_batch": 2, "recompute": True}),
        ("t5", {"pipeline": 2, "zero": 0}),
        ("t5", {"pipeline": 2, "micro_batch": 2, "recompute": True}),
        ("gptj", {"tensor": 2, "micro_batch": 2, "zero": 0}),
        ("alibi", {"tensor": 2, "micro_batch": 2, "recompute": True}),
        ("neox", {"pipeline": 2, "zero": 0}),
        ("neo", {"pipeline": 2, "micro_batch": 2}),
    ],
    ids=str,
)
def test_two_ranks_train_as_one(two: Ranks, model: str, layout: dict[str, Any]) -> None:
    check(two, model, **layout)


@pytest.mark.parametrize(
    ("model", "layout"),
    [
        ("neo", {"zero": 3, "batch": 8, "micro_batch": 2}),
        ("llama", {"pipeline": 2, "recompute": True}),
        ("llama", {"tensor": 2, "zero": 2}),
        ("neo", {"tensor": 2, "zero": 3}),
        ("alibi", {"pipeline": 2, "tensor": 2}),
        ("t5", {"pipeline": 2, "tensor": 2, "micro_batch": 2}),
        ("t5", {"tensor": 2, "micro_batch": 2, "zero": 3}),
    ],
    ids=str,
)
def test_four_ranks_train_as_one(four: Ranks, model: str, layout: dict[str, Any]) -> None:
    check(four, model, **layout)


def test_eight_ranks_train_as_one_in_data_pipeline_and_tensor_parallel_together() -> None:
    with Ranks(8) as eight:
        check(eight, "alibi", pipeline=2, tensor=2, recompute=True)
        check(eight, "gptj", pipeline=2, tensor=2, zero=0)


def worst(done: list[tuple[float, float]], model: str) -> float:
    """The largest relative error of a gradient norm."""
    return max(abs(norm / wanted - 1) for (_, norm), (_, wanted) in zip(done, alone(model), strict=False))


def test_a_pipeline_at_zero_0_would_clip_by_its_first_stage(two: Ranks) -> None:
    done = two.call(train_without, "safe_zero_stage", config_of("neox", zero=0, pipeline=2), FEW)[0]
    assert worst(done, "neox") > 5e-3


def test_bf16_at_zero_0_would_do_a_step_as_it_starts(two: Ranks) -> None:
    assert two.call(step_nowhere_in_bf16, 0) == [True, True]
    stage = safe_zero_stage(ParallelConfig(zero_stage=0), "bf16")
    assert two.call(step_nowhere_in_bf16, stage) == [False, False]


@pytest.mark.parametrize("layout", [{"zero": 1}, {"zero": 3}], ids=str)
def test_parts_that_are_not_marked_would_be_left_out_of_the_norm(two: Ranks, layout: dict[str, Any]) -> None:
    done = two.call(train_without, "mark_sharded", config_of("neox", tensor=2, **layout), FEW)[0]
    assert worst(done, "neox") > 0.05


@pytest.mark.parametrize(
    ("model", "layout"),
    [
        ("neo", {"zero": 0}),
        ("neo", {"zero": 2}),
        ("neo", {"zero": 3}),
        ("neo", {"tensor": 2, "pipeline": 2, "micro_batch": 2}),
        ("neo", {"pipeline": 2, "micro_batch": 2}),
        ("t5", {"pipeline": 2, "micro_batch": 2}),
    ],
    ids=str,
)
def test_bf16_trains_as_fp32_does_but_for_rounding(four: Ranks, model: str, layout: dict[str, Any]) -> None:
    done = four.call(train, config_of(model, precision="bf16", batch=8, **layout), range(6))[0]
    for (loss, norm), (wanted_loss, wanted_norm) in zip(done, alone(model, 8), strict=False):
        assert abs(loss - wanted_loss) > 1e-6, "it trained in fp32"
        assert loss == pytest.approx(wanted_loss, abs=0.02)
        assert norm == pytest.approx(wanted_norm, rel=0.02)
