"""What an engine of several ranks gives and takes: weights and moments whole, evaluation, a stop before harm."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.ranks_parallel import Ranks, evaluate, from_file, look, stumble, train
from tests.trainer.test_parallel import alone, config_of
from trainer.config import TrainConfig
from trainer.model.transformer import Transformer, shapes


@pytest.fixture(scope="module")
def two() -> Iterator[Ranks]:
    with Ranks(2) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def four() -> Iterator[Ranks]:
    with Ranks(4) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def at_ten(two: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights and moments of "neo" after 10 steps on a pipeline of two."""
    path = tmp_path_factory.mktemp("at_ten") / "state"
    two.call(train, config_of("neo", pipeline=2), range(10), None, {10: path})
    return path


LAYOUTS_OF_TWO: list[dict[str, Any]] = [
    {"zero": 0},
    {"zero": 1},
    {"zero": 2},
    {"zero": 3},
    {"tensor": 2, "micro_batch": 2},
    {"tensor": 2, "micro_batch": 2, "zero": 3},
    {"pipeline": 2},
    {"zero": 1, "precision": "bf16"},
    {"zero": 3, "precision": "bf16"},
    {"pipeline": 2, "precision": "bf16"},
]


@pytest.mark.parametrize("layout", LAYOUTS_OF_TWO, ids=str)
def test_a_run_goes_on_bit_for_bit_on_the_same_layout_and_is_evaluated(
    two: Ranks, tmp_path: Path, layout: dict[str, Any]
) -> None:
    config = config_of("neo", **layout)
    saves = {2: tmp_path / "at two", 4: tmp_path / "at four"}
    whole = two.call(train, config, range(4), None, saves)[0]
    rows = torch.randint(config.vocabulary, (5, 13), generator=torch.Generator().manual_seed(1))
    leading, other = two.call(look, config, saves[2], rows, range(2, 4), tmp_path / "again")
    # That it was evaluated before and after each step has changed nothing.
    assert leading[2] == other[2] == whole[2:]
    first, second = load_file(saves[4]), load_file(tmp_path / "again")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    # The leading rank gave them all, each whole.
    expected = shapes(config.model, config.vocabulary, config.context)
    assert {name: first[f"weight.{name}"].shape for name in expected} == expected
    assert len(first) == 3 * len(expected)
    assert torch.equal(leading[0], other[0])
    if config.training.precision == "fp32":
        model = plain(config, saves[2])
        with torch.no_grad():
            torch.testing.assert_close(leading[0], model(rows[:, :-1], rows[:, 1:], mean=False), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(leading[1], model(rows[:, :-1]), atol=1e-5, rtol=1e-5)


def check_onwards(ranks: Ranks, model: str, start: Path, **layout: Any) -> None:
    done = ranks.call(train, config_of(model, **layout), range(10, 20), start)[0]
    for (loss, norm), (wanted_loss, wanted_norm) in zip(done, alone(model)[10:], strict=True):
        assert loss == pytest.approx(wanted_loss, rel=1e-5)
        assert norm == pytest.approx(wanted_norm, rel=1e-5)


def test_a_run_goes_on_with_twice_the_data_parallel_ranks(two: Ranks, four: Ranks, tmp_path: Path) -> None:
    two.call(train, config_of("gptj", zero=2), range(10), None, {10: tmp_path / "state"})
    check_onwards(four, "gptj", tmp_path / "state", zero=3)


@pytest.mark.parametrize("layout", [{"zero": 0}, {"zero": 3}, {"tensor": 2}], ids=str)
def test_a_run_goes_on_without_its_pipeline(two: Ranks, at_ten: Path, layout: dict[str, Any]) -> None:
    check_onwards(two, "neo", at_ten, **layout)


def test_a_run_goes_on_without_tensor_parallelism(two: Ranks, tmp_path: Path) -> None:
    two.call(train, config_of("llama", tensor=2), range(10), None, {10: tmp_path / "state"})
    check_onwards(two, "llama", tmp_path / "state", zero=1)


def test_a_run_goes_on_with_all_three_changed(four: Ranks, two: Ranks, tmp_path: Path) -> None:
    four.call(train, config_of("alibi", pipeline=2, tensor=2), range(10), None, {10: tmp_path / "state"})
    check_onwards(four, "alibi", tmp_path / "state", zero=2)


def test_evaluation_keeps_data_parallel_ranks_apart(four: Ranks, at_ten: Path) -> None:
    config = config_of("neo", pipeline=2)
    model = plain(config, at_ten)
    rows = torch.randint(config.vocabulary, (2, 3, 9), generator=torch.Generator().manual_seed(1))
    for rank, nll in enumerate(four.call(evaluate, config, at_ten, rows)):
        own = rows[rank % 2]
        with torch.no_grad():
            torch.testing.assert_close(nll, model(own[:, :-1], own[:, 1:], mean=False), atol=1e-5, rtol=1e-5)


def plain(config: TrainConfig, state: Path) -> Transformer:
    """One process's model with the weights of a file."""
    model = Transformer(config.model, config.vocabulary, config.context)
    read = from_file(state)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(read("weight", name))
    return model


NOT_A_NUMBER = {"blocks.1.mlp.up.weight": float("nan")}
# Attention adds nothing, and has a gradient past the largest number.
HUGE = {
    "blocks.1.attention_norm.weight": 0.0,
    "blocks.1.attention_norm.bias": 0.0,
    "blocks.1.attention.qkv.weight": 1e25,
    "blocks.1.attention.out.weight": 1e25,
}


@pytest.mark.parametrize(
    "layout",
    [
        {"zero": 0},
        {"zero": 1},
        {"zero": 2},
        {"zero": 3},
        {"tensor": 2, "zero": 0},
        {"pipeline": 2},
        {"zero": 1, "precision": "bf16"},
        {"zero": 2, "precision": "bf16"},
        {"zero": 3, "precision": "bf16"},
        {"pipeline": 2, "precision": "bf16"},
    ],
    ids=str,
)
def test_what_is_not_finite_stops_every_rank_before_the_weights_change(
    two: Ranks, tmp_path: Path, layout: dict[str, Any]
) -> None:
    config = config_of("neox", **layout)
    for factors, what in ((NOT_A_NUMBER, "loss"), (HUGE, "gradient norm")):
        for raised in two.call(stumble, config, factors, tmp_path):
            assert raised is not None
            assert raised[0] == what
            assert not math.isfinite(raised[1])
        before, after = load_file(tmp_path / "before"), load_file(tmp_path / "after")
        assert all(torch.equal(before[name].nan_to_num(), after[name].nan_to_num()) for name in before)
