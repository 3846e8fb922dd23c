"""transformers' LlamaForCausalLM: Llama and Comma."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from trainer.families import base, rope
from trainer.families.base import Adapter
from trainer.model.config import ModelConfig
from trainer.schema import ConfigError


class Llama(Adapter):
    """Rotary positions by halves over the whole head, two RMSNorms in sequence, SwiGLU, grouped queries, all biases or
    none."""

    architecture = "LlamaForCausalLM"
    model_type = "llama"
    layers = "model.layers"
    names: ClassVar[Mapping[str, str]] = {
        "embed.tokens": "model.embed_tokens",
        "attention_norm": "input_layernorm",
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "attention.out": "self_attn.o_proj",
        "mlp_norm": "post_attention_layernorm",
        "mlp.gate": "mlp.gate_proj",
        "mlp.up": "mlp.up_proj",
        "mlp.down": "mlp.down_proj",
        "head.norm": "model.norm",
        "head": "lm_head",
    }
    norm = "rmsnorm"
    activations = ("swiglu",)
    residuals = (False,)
    grouped = True

    @property
    def biases(self) -> frozenset[str]:
        attention = {"attention.qkv", "attention.out"} if self._attention_bias else set()
        mlp = {"mlp.gate", "mlp.up", "mlp.down"} if self.model.mlp_bias else set()
        return frozenset(attention | mlp)

    @property
    def _attention_bias(self) -> bool:
        return self.model.qkv_bias or self.model.attention_bias

    def missing_features(self) -> Iterator[str]:
        yield from super().missing_features()
        if self.model.positions == "rotary" and self.model.rotary_size != self.model.head_size:
            yield "rotation of a part of each head"

    def shape_json(self) -> dict[str, Any]:
        model = self.model
        return {
            "hidden_size": model.hidden_size,
            "intermediate_size": model.inner_size,
            "num_hidden_layers": model.layers,
            "num_attention_heads": model.heads,
            "num_key_value_heads": model.groups,
            "head_dim": model.head_size,
            "hidden_act": self.activation_json,
            "max_position_embeddings": self.context,
            "rms_norm_eps": model.norm_eps,
            "attention_bias": self._attention_bias,
            "mlp_bias": model.mlp_bias,
            **rope.write(model),
            # transformers 4 reads this name.
            "rope_theta": model.rotary_base,
            "attention_dropout": 0.0,
        }

    @classmethod
    def read(cls, theirs: Any) -> ModelConfig:
        if theirs.hidden_act not in ("silu", "swish"):
            raise ConfigError(f"The activation {theirs.hidden_act} is none of ours in this shape; it must be silu.")
        if theirs.head_dim * theirs.num_attention_heads != theirs.hidden_size:
            raise ConfigError(
                f"The model's head_dim ({theirs.head_dim}) is not hidden_size / num_attention_heads, as ours must be."
            )
        return ModelConfig(
            layers=theirs.num_hidden_layers,
            hidden_size=theirs.hidden_size,
            heads=theirs.num_attention_heads,
            kv_heads=theirs.num_key_value_heads,
            mlp_size=theirs.intermediate_size,
            vocabulary=theirs.vocab_size,
            context=theirs.max_position_embeddings,
            **rope.read(theirs) | {"rotary_pct": 1.0},
            parallel_residual=False,
            norm="rmsnorm",
            norm_eps=theirs.rms_norm_eps,
            activation="swiglu",
            qkv_bias=theirs.attention_bias,
            attention_bias=theirs.attention_bias,
            mlp_bias=theirs.mlp_bias,
            tied_head=theirs.tie_word_embeddings,
            init=base.init(theirs),
        )
