"""transformers' GPTJForCausalLM: GPT-J."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from trainer.families import base
from trainer.families.base import Adapter
from trainer.model.config import ModelConfig
from trainer.schema import ConfigError


class GPTJ(Adapter):
    """Rotary positions by interleaved pairs, one LayerNorm for attention and MLP in parallel, GELU, an untied head with
    a bias."""

    architecture = "GPTJForCausalLM"
    model_type = "gptj"
    layers = "transformer.h"
    names: ClassVar[Mapping[str, str]] = {
        "embed.tokens": "transformer.wte",
        "attention_norm": "ln_1",
        "q": "attn.q_proj",
        "k": "attn.k_proj",
        "v": "attn.v_proj",
        "attention.out": "attn.out_proj",
        "mlp.up": "mlp.fc_in",
        "mlp.down": "mlp.fc_out",
        "head.norm": "transformer.ln_f",
        "head": "lm_head",
    }
    residuals = (True,)
    layout = "interleaved"
    biases = frozenset({"mlp.up", "mlp.down", "head"})

    def missing_features(self) -> Iterator[str]:
        yield from super().missing_features()
        if self.model.norms == "two":
            yield "second norm a block"
        if self.model.tied_head:
            yield "tied head"
        if self.model.rotary_base != 10_000:
            yield "rotary base but 10000"
        if self.model.yarn:
            yield "YaRN"

    def shape_json(self) -> dict[str, Any]:
        model = self.model
        return {
            "n_positions": self.context,
            "n_embd": model.hidden_size,
            "n_layer": model.layers,
            "n_head": model.heads,
            "n_inner": model.inner_size,
            "rotary_dim": model.rotary_size,
            "activation_function": self.activation_json,
            "layer_norm_epsilon": model.norm_eps,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        }

    @classmethod
    def read(cls, theirs: Any) -> ModelConfig:
        if theirs.tie_word_embeddings:
            raise ConfigError("The model's head is tied and has a bias; ours has a bias only on an untied head.")
        return ModelConfig(
            layers=theirs.n_layer,
            hidden_size=theirs.n_embd,
            heads=theirs.n_head,
            mlp_size=theirs.n_inner,
            vocabulary=theirs.vocab_size,
            context=theirs.n_positions,
            rotary_pct=_share(theirs.rotary_dim, theirs.n_embd // theirs.n_head),
            rotary_layout="interleaved",
            norms="one",
            norm_eps=theirs.layer_norm_epsilon,
            activation=base.gelu(theirs.activation_function),
            qkv_bias=False,
            attention_bias=False,
            head_bias=True,
            init=base.init(theirs),
        )


def _share(part: int, whole: int) -> float:
    """The float that, times `whole` and rounded down, is `part`."""
    share = part / whole
    return share if int(whole * share) == part else math.nextafter(share, 2)
