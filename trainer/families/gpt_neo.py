"""transformers' GPTNeoForCausalLM: GPT-Neo."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from trainer.families import base
from trainer.families.base import Adapter
from trainer.model.config import ModelConfig
from trainer.model.positions import sinusoids


class GPTNeo(Adapter):
    """Learned positions, two LayerNorms in sequence, GELU, local layers between global ones, no factor of logits."""

    architecture = "GPTNeoForCausalLM"
    model_type = "gpt_neo"
    layers = "transformer.h"
    names: ClassVar[Mapping[str, str]] = {
        "embed.tokens": "transformer.wte",
        "embed.positions": "transformer.wpe",
        "attention_norm": "ln_1",
        "q": "attn.attention.q_proj",
        "k": "attn.attention.k_proj",
        "v": "attn.attention.v_proj",
        "attention.out": "attn.attention.out_proj",
        "mlp_norm": "ln_2",
        "mlp.up": "mlp.c_fc",
        "mlp.down": "mlp.c_proj",
        "head.norm": "transformer.ln_f",
        "head": "lm_head",
    }
    positions = ("learned", "sinusoidal")
    residuals = (False,)
    local = True
    biases = frozenset({"attention.out", "mlp.up", "mlp.down"})
    scale = 1.0

    def export(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        parts = super().export(name, tensor)
        if name == "embed.tokens.weight" and self.model.positions == "sinusoidal":
            parts["transformer.wpe.weight"] = sinusoids(self.context, self.model.hidden_size).to(tensor)
        return parts

    def shape_json(self) -> dict[str, Any]:
        model = self.model
        kinds = ["local" if local else "global" for local in self.local_layers]
        return {
            "max_position_embeddings": self.context,
            "hidden_size": model.hidden_size,
            "num_layers": model.layers,
            "num_heads": model.heads,
            "intermediate_size": model.inner_size,
            "attention_types": [[kinds, 1]],
            "attention_layers": kinds,
            "window_size": model.window,
            "activation_function": self.activation_json,
            "layer_norm_epsilon": model.norm_eps,
            "resid_dropout": 0.0,
            "embed_dropout": 0.0,
            "attention_dropout": 0.0,
        }

    @classmethod
    def read(cls, theirs: Any) -> ModelConfig:
        return ModelConfig(
            layers=theirs.num_layers,
            hidden_size=theirs.hidden_size,
            heads=theirs.num_heads,
            mlp_size=theirs.intermediate_size,
            vocabulary=theirs.vocab_size,
            context=theirs.max_position_embeddings,
            positions="learned",
            parallel_residual=False,
            norm_eps=theirs.layer_norm_epsilon,
            activation=base.gelu(theirs.activation_function),
            qkv_bias=False,
            attention=_pattern(theirs.attention_layers),
            window=theirs.window_size,
            logit_scale=1.0,
            tied_head=theirs.tie_word_embeddings,
            init=base.init(theirs),
        )


def _pattern(kinds: list[Any]) -> tuple[Any, ...]:
    """The shortest pattern that gives the kinds of all layers when it is repeated."""
    period = next(p for p in range(1, len(kinds) + 1) if kinds == (kinds[:p] * len(kinds))[: len(kinds)])
    return tuple(kinds[:period])
