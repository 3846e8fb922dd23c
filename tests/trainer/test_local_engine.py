"""The engine of one process, beside the same model under PyTorch's own AdamW and clipping."""

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.trainer.conftest import TINY
from trainer.checkpoint import save_load
from trainer.config import TrainConfig
from trainer.distributed.parallel_dims import ParallelDims
from trainer.engine.base import NonFiniteError, ReadTensor, TensorKind
from trainer.engine.local import LocalEngine
from trainer.model.attention import BLOCK, BlockedAttention
from trainer.model.loss import CHUNK, FusedLoss
from trainer.model.tensor_parallel import ALONE
from trainer.model.transformer import Transformer

HERE = ParallelDims(0, 1, torch.device("cpu"))
RATE = 2e-3
KINDS: tuple[TensorKind, ...] = ("weight", "exp_avg", "exp_avg_sq")
POISONED = 7
"""A token whose embedding is not finite, in some tests."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The models are so small that threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def configured(model: dict[str, Any] | None = None, **training: Any) -> TrainConfig:
    return TrainConfig.model_validate(
        TINY
        | {"model": TINY["model"] | (model or {})}
        | {"optimizer": {"learning_rate": RATE, "clip": 0.5}}
        | {"training": TINY["training"] | {"micro_batch": 8} | training}
    )


def engine_of(config: TrainConfig, read: ReadTensor | None = None) -> LocalEngine:
    engine = LocalEngine(config, HERE)
    engine.load(read or save_load.fresh(config), 0)
    return engine


def batch(config: TrainConfig, step: int) -> list[Tensor]:
    """The micro-batches of a step: random tokens, none of them the poisoned one."""
    shape = config.training.batch, config.data.sequence_length + 1
    generator = torch.Generator().manual_seed(step)
    rows = torch.randint(POISONED + 1, config.vocabulary, shape, generator=generator)
    return list(torch.split(rows, config.training.micro_batch))


def run(engine: LocalEngine, config: TrainConfig, steps: Iterable[int]) -> list[tuple[float, float]]:
    taken = [engine.step(batch(config, step), RATE) for step in steps]
    return [(loss, norm) for loss, norm in taken]


def reference(config: TrainConfig, steps: Iterable[int]) -> list[tuple[float, float]]:
    model = Transformer(config.model, config.vocabulary, config.context)
    read = save_load.fresh(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(read("weight", name))
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.optimizer.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=RATE,
        betas=config.optimizer.betas,
        eps=config.optimizer.eps,
    )
    done = []
    for step in steps:
        rows = torch.cat(batch(config, step))
        x_BLD = model.embed(rows[:, :-1])
        for block in model.blocks:
            x_BLD = block(x_BLD)
        logits_BLV = functional.linear(model.head.norm(x_BLD), model.head.weight, model.head.bias)
        loss = functional.cross_entropy(logits_BLV.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(parameters, config.optimizer.clip)
        optimizer.step()
        done.append((loss.item(), norm.item()))
    return done


def tensors(engine: LocalEngine) -> dict[str, Tensor]:
    """Everything that a step may change: masters, moments, and the weights that the model computes with."""
    kept = {f"{kind}.{name}": tensor.clone() for kind in KINDS for name, tensor in engine.gather(kind)}
    return kept | {f"computing.{name}": p.detach().clone() for name, p in engine.model.named_parameters()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return all(torch.equal(left[name].nan_to_num(1e9), right[name].nan_to_num(1e9)) for name in left | right)


SWITCHES: list[dict[str, Any]] = [
    {},
    {"tied_head": True},
    {"head_bias": True, "norms": "tied", "positions": "learned"},
    {"positions": "t5", "t5_buckets": 8, "attention": ["global", "local"], "window": 9},
    {"positions": "alibi", "norm": "rmsnorm", "activation": "swiglu", "kv_heads": 1, "parallel_residual": False},
]


def plain_steps(model: dict[str, Any]) -> list[tuple[float, float]]:
    """The reference's first 20 steps of a model of SWITCHES; micro-batches and recomputing make no difference to it."""
    return _plain_steps(SWITCHES.index(model))


@cache
def _plain_steps(number: int) -> list[tuple[float, float]]:
    return reference(configured(SWITCHES[number]), range(20))


@pytest.mark.parametrize("training", [{}, {"micro_batch": 2}, {"micro_batch": 4, "recompute": True}], ids=str)
@pytest.mark.parametrize("model", SWITCHES, ids=str)
def test_fp32_is_the_plain_step_to_1e5(model: dict[str, Any], training: dict[str, Any]) -> None:
    config = configured(model, **training)
    ours, plain = run(engine_of(config), config, range(20)), plain_steps(model)
    assert max(norm for _, norm in plain) > config.optimizer.clip
    for (loss, norm), (plain_loss, plain_norm) in zip(ours, plain, strict=True):
        assert loss == pytest.approx(plain_loss, abs=1e-5)
        assert norm == pytest.approx(plain_norm, rel=1e-5)


def test_a_gradient_within_the_clip_is_not_scaled() -> None:
    config = configured()
    config = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"clip": 100.0})})
    ours, plain = run(engine_of(config), config, range(4)), reference(config, range(4))
    assert [loss for loss, _ in ours] == pytest.approx([loss for loss, _ in plain], abs=1e-5)


@pytest.mark.parametrize("training", [{}, {"micro_batch": 2}, {"micro_batch": 4, "recompute": True}], ids=str)
@pytest.mark.parametrize("model", SWITCHES, ids=str)
def test_bf16_stays_within_a_hundredth_of_fp32(model: dict[str, Any], training: dict[str, Any]) -> None:
    config = configured(model, precision="bf16", **training)
    ours, plain = run(engine_of(config), config, range(20)), plain_steps(model)
    for (loss, norm), (plain_loss, plain_norm) in zip(ours, plain, strict=True):
        assert loss == pytest.approx(plain_loss, abs=1e-2)
        assert norm == pytest.approx(plain_norm, rel=2e-2)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.chaos)])
def test_compiled_is_the_same_step(precision: str) -> None:
    config = configured(precision=precision)
    compiled = configured(precision=precision, compile=True)
    tolerance = 1e-5 if precision == "fp32" else 2e-3
    for left, right in zip(
        run(engine_of(config), config, range(4)), run(engine_of(compiled), compiled, range(4)), strict=True
    ):
        assert left == pytest.approx(right, rel=tolerance)


def test_without_a_compiler_training_goes_on_with_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from torch._inductor import config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    config = configured(compile=True)
    assert run(engine_of(config), config, range(2)) == run(engine_of(configured()), config, range(2))
    assert [record.message for record in caplog.records if "C++ compiler" in record.message] == [
        "training.compile needs a C++ compiler and there is none; training goes on without it, more slowly. "
        "Install g++ or set training.compile false."
    ]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_changes_nothing(precision: str, value: float) -> None:
    config = configured(precision=precision, micro_batch=4)
    fresh = save_load.fresh(config)

    def read(kind: TensorKind, name: str) -> Tensor:
        tensor = fresh(kind, name)
        if name == "embed.tokens.weight":
            tensor[POISONED] = value
        return tensor

    engine, untroubled = engine_of(config, read), engine_of(config, read)
    run(engine, config, range(2))
    run(untroubled, config, range(2))
    before = tensors(engine)
    bad = batch(config, 2)
    bad[1][2, 5] = POISONED
    with pytest.raises(NonFiniteError, match="loss is nan"):
        engine.step(bad, RATE)
    assert same(tensors(engine), before)
    assert run(engine, config, range(3, 5)) == run(untroubled, config, range(3, 5))
    assert same(tensors(engine), tensors(untroubled))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gradient_norm_that_is_not_finite_changes_nothing(precision: str) -> None:
    config = configured(precision=precision)
    fresh = save_load.fresh(config)

    def read(kind: TensorKind, name: str) -> Tensor:
        """The logits stay small, and the gradient by what makes them so is beyond fp32 when squared."""
        scale = {"head.norm.weight": 1e-30, "head.weight": 1e30}
        return fresh(kind, name) * scale.get(name, 1.0)

    engine = engine_of(config, read)
    before = tensors(engine)
    with pytest.raises(NonFiniteError, match="gradient norm is inf"):
        engine.step(batch(config, 0), RATE)
    assert same(tensors(engine), before)


@pytest.mark.parametrize("training", [{}, {"precision": "bf16"}, {"precision": "bf16", "micro_batch": 2}], ids=str)
def test_resumes_to_the_bit(training: dict[str, Any]) -> None:
    config = configured(**training)
    whole = engine_of(config)
    expected = run(whole, config, range(6))
    first = engine_of(config)
    run(first, config, range(3))
    kept = {(kind, name): tensor.clone() for kind in KINDS for name, tensor in first.gather(kind)}
    second = LocalEngine(config, HERE)
    second.load(lambda kind, name: kept[kind, name], 3)
    assert run(second, config, range(3, 6)) == expected[3:]
    assert same(tensors(second), tensors(whole))


def test_looks_through_the_masters() -> None:
    config = configured(precision="bf16")
    engine = engine_of(config)
    run(engine, config, range(2))
    model = Transformer(config.model, config.vocabulary, config.context)
    model.load_state_dict(dict(engine.gather("weight")))
    rows = batch(config, 9)[0]
    torch.testing.assert_close(engine.logits(rows[:, :-1]), model(rows[:, :-1]))
    logits_BLV = model(rows[:, :-1])
    expected = functional.cross_entropy(logits_BLV.transpose(1, 2), rows[:, 1:], reduction="none")
    torch.testing.assert_close(engine.nll(rows), expected)


@pytest.mark.parametrize("length", [1, BLOCK, 2 * BLOCK + 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_blocked_attention_is_attention(length: int, dtype: torch.dtype) -> None:
    torch.manual_seed(length)
    parts = [torch.randn(3, length, 8).to(dtype).requires_grad_() for _ in range(3)]
    exact = [part.detach().double().requires_grad_() for part in parts]
    ours = BlockedAttention.apply(*parts, 0.3)  # type: ignore[no-untyped-call]
    query, key, value = exact
    theirs = functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3)
    towards = torch.randn_like(ours)
    gradients = torch.autograd.grad(ours, parts, towards)
    expected = torch.autograd.grad(theirs, exact, towards.double())
    for left, right in zip((ours, *gradients), (theirs, *expected), strict=True):
        error = (left.double() - right).norm() / right.norm().clamp(min=1e-3)
        assert error < (1e-6 if dtype == torch.float32 else 1e-2)


def test_the_loss_by_chunks_is_cross_entropy() -> None:
    torch.manual_seed(0)
    tokens = 2 * CHUNK + 5
    x_ND, weight_VD, bias_V = (torch.randn(shape).requires_grad_() for shape in ((tokens, 8), (40, 8), (40,)))
    targets_N = torch.randint(40, (tokens,))
    ours = FusedLoss.apply(x_ND, weight_VD, bias_V, targets_N, ALONE, 1.0)  # type: ignore[no-untyped-call]
    theirs = functional.cross_entropy(functional.linear(x_ND, weight_VD, bias_V), targets_N, reduction="sum")
    torch.testing.assert_close(ours, theirs)
    inputs = [x_ND, weight_VD, bias_V]
    gradients, expected = torch.autograd.grad(ours * 3, inputs), torch.autograd.grad(theirs * 3, inputs)
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-4)
