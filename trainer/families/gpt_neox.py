"""transformers' GPTNeoXForCausalLM: GPT-NeoX and Pythia."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from trainer.families import base, rope
from trainer.families.base import Adapter, GetTensor
from trainer.model.config import ModelConfig


class GPTNeoX(Adapter):
    """Rotary positions by halves, two LayerNorms, GELU, a tied or untied head without a bias."""

    architecture = "GPTNeoXForCausalLM"
    model_type = "gpt_neox"
    layers = "gpt_neox.layers"
    names: ClassVar[Mapping[str, str]] = {
        "embed.tokens": "gpt_neox.embed_in",
        "attention_norm": "input_layernorm",
        "attention.qkv": "attention.query_key_value",
        "attention.out": "attention.dense",
        "mlp_norm": "post_attention_layernorm",
        "mlp.up": "mlp.dense_h_to_4h",
        "mlp.down": "mlp.dense_4h_to_h",
        "head.norm": "gpt_neox.final_layer_norm",
        "head": "embed_out",
    }
    residuals = (True, False)

    @property
    def biases(self) -> frozenset[str]:
        attention = {"attention.qkv", "attention.out"} if self._attention_bias else set()
        return frozenset({"mlp.up", "mlp.down"} | attention)

    @property
    def _attention_bias(self) -> bool:
        return self.model.qkv_bias or self.model.attention_bias

    def shape_json(self) -> dict[str, Any]:
        model = self.model
        rope_fields = rope.write(model)
        rope_fields["rope_parameters"]["partial_rotary_factor"] = model.rotary_pct
        return {
            "hidden_size": model.hidden_size,
            "num_hidden_layers": model.layers,
            "num_attention_heads": model.heads,
            "intermediate_size": model.inner_size,
            "hidden_act": self.activation_json,
            "max_position_embeddings": self.context,
            "layer_norm_eps": model.norm_eps,
            "use_parallel_residual": model.parallel_residual,
            "attention_bias": self._attention_bias,
            **rope_fields,
            # transformers 4 reads these names.
            "rotary_pct": model.rotary_pct,
            "rotary_emb_base": model.rotary_base,
            "attention_dropout": 0.0,
            "hidden_dropout": 0.0,
        }

    @classmethod
    def read(cls, theirs: Any) -> ModelConfig:
        return ModelConfig(
            layers=theirs.num_hidden_layers,
            hidden_size=theirs.hidden_size,
            heads=theirs.num_attention_heads,
            mlp_size=theirs.intermediate_size,
            vocabulary=theirs.vocab_size,
            context=theirs.max_position_embeddings,
            **rope.read(theirs),
            parallel_residual=theirs.use_parallel_residual,
            norm_eps=theirs.layer_norm_eps,
            activation=base.gelu(theirs.hidden_act),
            qkv_bias=theirs.attention_bias,
            attention_bias=theirs.attention_bias,
            tied_head=theirs.tie_word_embeddings,
            init=base.init(theirs),
        )

    def _split_qkv(self, tensor: Tensor) -> dict[str, Tensor]:
        """One matrix, its rows [H, (query, key, value), K]."""
        return {self.names["attention.qkv"]: torch.stack(self._heads(tensor), dim=1).flatten(0, 2)}

    def _join_qkv(self, get: GetTensor) -> Tensor:
        parts = base.split_rows(get(self.names["attention.qkv"]), -1, 3, self.model.head_size)
        return self._rows(*parts.unbind(1))
