"""`induction`: a constructed induction head, a model whose loss falls by position, patterns against the attention."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.study.world import config, drawn, measured, opened, study_of, zeros
from trainer.model.transformer import Attention, Transformer
from trainer.schema import ConfigError
from trainer.study.attention import pattern
from trainer.study.induction import Induction

TOKENS, WINDOW = 27, 16


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"positions": "alibi", "kv_heads": 1},
        {"positions": "t5", "attention": ["local"], "window": 3},
        {"positions": "learned", "attention": ["local"], "window": 3, "logit_scale": 0.5},
    ],
)
def test_a_pattern_is_what_the_attention_reads_by(tmp_path: Path, switches: dict[str, Any]) -> None:
    settings = config(tmp_path, **switches)
    model = Transformer(settings.model, settings.vocabulary, settings.context)
    model.load_state_dict(drawn(settings))
    attention = model.blocks[0].get_submodule("attention")
    assert isinstance(attention, Attention)
    x_BLD = torch.randn(2, 7, 32)
    with torch.no_grad():
        _, _, v_BGLK = attention.heads(attention.qkv(x_BLD))
        read = pattern(attention, x_BLD) @ v_BGLK.repeat_interleave(attention.queries, 1)
        assert torch.allclose(attention.out(read.transpose(1, 2).flatten(2)), attention(x_BLD), atol=1e-5)


def test_a_constructed_induction_head(run_folder: Path, tmp_path: Path) -> None:
    """The first layer's head copies each token to the next position; the second one's looks for where the present
    token was copied to, which is right after it stood."""
    size = 2 * TOKENS + WINDOW
    settings = config(run_folder, hidden_size=size, heads=1, positions="learned", norm="rmsnorm")
    weights = zeros(settings)
    token, previous, place = slice(0, TOKENS), slice(TOKENS, 2 * TOKENS), slice(2 * TOKENS, size)
    weights["embed.tokens.weight"][:TOKENS, token] = torch.eye(TOKENS)
    weights["embed.positions.weight"][:, place] = torch.eye(WINDOW)
    first, second = (weights[f"blocks.{layer}.attention.qkv.weight"].view(3, size, size) for layer in (0, 1))
    first[0, : WINDOW - 1, place][:, 1:] = 50 * torch.eye(WINDOW - 1)
    first[1, :WINDOW, place] = torch.eye(WINDOW)
    first[2, :TOKENS, token] = torch.eye(TOKENS)
    weights["blocks.0.attention.out.weight"][previous, :TOKENS] = torch.eye(TOKENS) / 5
    second[0, :TOKENS, token] = 50 * torch.eye(TOKENS)
    second[1, :TOKENS, previous] = torch.eye(TOKENS)
    found = measured(Induction(), opened(tmp_path, settings, weights), study_of(run_folder, tmp_path))
    [[copies], [looks]] = found["prefix_matching"]
    assert looks == pytest.approx(1, abs=1e-3)
    assert copies == pytest.approx(0, abs=1e-3)
    assert found["prefix_matching_max"] == looks


def test_heads_that_read_all_tokens_alike(run_folder: Path, tmp_path: Path) -> None:
    """4 copies of 3 tokens after one: token i reads i + 1 tokens, of which 1, 2 or 3 came after the same one."""
    settings = config(run_folder)
    found = measured(Induction(), opened(tmp_path, settings, zeros(settings)), study_of(run_folder, tmp_path))
    expected = sum(((at - 1) // 3) / (at + 1) for at in range(4, 13)) / 9
    assert found["prefix_matching"] == [pytest.approx([expected] * 2)] * 2


def test_the_in_context_score_of_a_model_that_knows_more_at_the_end(run_folder: Path, tmp_path: Path) -> None:
    """At the first position it takes all 320 rows of the vocabulary for equally likely, at the last one 27."""
    settings = config(run_folder, positions="learned", norm="rmsnorm")
    weights = zeros(settings)
    weights["embed.tokens.weight"][:, 0] = 1
    weights["embed.positions.weight"][WINDOW - 1, 1] = 1
    weights["head.weight"][TOKENS:, 1] = -100
    found = measured(Induction(rows=9), opened(tmp_path, settings, weights), study_of(run_folder, tmp_path))
    assert found["in_context_score"] == pytest.approx(math.log(TOKENS / 320), abs=1e-5)
    assert found["in_context_score_stderr"] == pytest.approx(0, abs=1e-5)
    assert found["late_loss"] == pytest.approx(math.log(TOKENS), abs=1e-5)
    assert (found["early_token"], found["late_token"]) == (1, WINDOW)


def test_a_context_that_is_too_short(run_folder: Path, tmp_path: Path) -> None:
    settings = config(run_folder)
    checkpoint = replace(opened(tmp_path, settings, zeros(settings)), window=12)
    with pytest.raises(ConfigError, match="is 12 tokens, and prefix matching needs 13; leave induction out"):
        Induction().measure(checkpoint, study_of(run_folder, tmp_path))
