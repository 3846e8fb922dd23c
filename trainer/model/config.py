"""The `model` section of the configuration: the switches between GPT-Neo, GPT-J, GPT-NeoX and Llama. Imports no
torch."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from trainer.schema import Section


class YarnConfig(Section):
    """Rotary positions stretched past the context they were trained on (Peng et al. 2023, YaRN).

    `factor` is the stretch, `original_context` the context in tokens before it. Dimensions that turn more than
    `beta_fast` times in the original context are kept, those that turn fewer than `beta_slow` times are stretched.
    """

    factor: float = Field(gt=1, le=1e6)
    original_context: int = Field(ge=8, le=1_048_576)
    beta_fast: float = Field(default=32.0, gt=0, le=1e6)
    beta_slow: float = Field(default=1.0, gt=0, le=1e6)


class InitConfig(Section):
    """The standard deviation of the matrices' first weights; d is the hidden size, L the number of layers.

    `matrices`: `small` is √(2/5d) (Nguyen & Salazar 2019), `normal` is `std`. `residual`, for the matrices that write
    to the residual stream: `wang` is 2/(L·√d) (Wang & Komatsuzaki 2021), `scaled` is std/√(2L) (Radford et al. 2019),
    `same` is that of the other matrices.
    """

    matrices: Literal["small", "normal"] = "small"
    std: float = Field(default=0.02, gt=0, le=1e3)
    residual: Literal["wang", "scaled", "same"] = "wang"


class ModelConfig(Section):
    """A decoder-only transformer; the defaults are GPT-NeoX's.

    `heads` of queries share `kv_heads` of keys and values (grouped-query attention, Ainslie et al. 2023); by default
    each has its own. `mlp_size` is 4 × `hidden_size` by default. `vocabulary` counts the rows of the embedding, by
    default the tokenizer's vocabulary padded to a multiple of 128. `context` is the longest sequence in tokens, by
    default data.sequence_length.

    `norms` is `two` a block, or `one`, whose output attention and MLP share in a parallel residual, or `tied`, one set
    of weights before both. `attention` is a pattern repeated over the layers; a `local` layer sees `window` tokens, the
    present one included. `logit_scale` multiplies attention's logits, by default by 1/√head_size.

    With `positions` t5 a learned number a head is added to the logits, by the bucket of the distance between the two
    tokens (Raffel et al. 2020, section 2.1): one table for all layers, with half of `t5_buckets` for single distances
    and the other half for spans that grow with the logarithm, up to `t5_max_distance`.
    """

    layers: int = Field(ge=1, le=512)
    hidden_size: int = Field(ge=8, le=65536)
    heads: int = Field(ge=1, le=1024)
    kv_heads: int | None = Field(default=None, ge=1, le=1024)
    mlp_size: int | None = Field(default=None, ge=8, le=1_048_576)
    vocabulary: int | None = Field(default=None, ge=2, le=1_048_576)
    context: int | None = Field(default=None, ge=8, le=1_048_576)
    positions: Literal["rotary", "learned", "sinusoidal", "alibi", "t5"] = "rotary"
    rotary_pct: float = Field(default=0.25, gt=0, le=1)
    rotary_base: float = Field(default=10_000.0, gt=1, le=1e15)
    rotary_layout: Literal["half", "interleaved"] = "half"
    yarn: YarnConfig | None = None
    t5_buckets: int = Field(default=32, ge=2, le=4096)
    t5_max_distance: int = Field(default=128, ge=2, le=1_048_576)
    parallel_residual: bool = True
    norms: Literal["two", "one", "tied"] = "two"
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_eps: float = Field(default=1e-5, gt=0, le=1)
    activation: Literal["gelu-tanh", "gelu-erf", "swiglu"] = "gelu-tanh"
    qkv_bias: bool = True
    attention_bias: bool = True
    mlp_bias: bool = True
    head_bias: bool = False
    attention: tuple[Literal["global", "local"], ...] = Field(default=("global",), min_length=1)
    window: int = Field(default=256, ge=1, le=1_048_576)
    logit_scale: float | None = Field(default=None, gt=0, le=1e6)
    tied_head: bool = False
    init: InitConfig = InitConfig()

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.heads

    @property
    def groups(self) -> int:
        """The number of heads of keys and values."""
        return self.kv_heads or self.heads

    @property
    def inner_size(self) -> int:
        """The width of the MLP's hidden layer."""
        return self.mlp_size or 4 * self.hidden_size

    @property
    def rotary_size(self) -> int:
        """How many dimensions of each head are rotated."""
        return int(self.head_size * self.rotary_pct)

    @property
    def scale(self) -> float:
        """The factor of attention's logits."""
        return self.logit_scale or self.head_size**-0.5

    @property
    def computed(self) -> dict[str, Any]:
        """What decides what the model computes from its weights: each key with the value that it has where it is left
        out, without those that another key leaves unused. How far positions reach is left out."""
        unused = {"vocabulary", "context", "yarn", "init", "attention"}
        unused |= {"rotary_pct", "rotary_base", "rotary_layout"} if self.positions != "rotary" else set()
        unused |= {"t5_buckets", "t5_max_distance"} if self.positions != "t5" else set()
        local = [self.is_local(layer) for layer in range(self.layers)]
        unused |= set() if any(local) else {"window"}
        values = self.model_dump(mode="json", exclude=unused)
        spelt_out = {"kv_heads": self.groups, "mlp_size": self.inner_size, "logit_scale": self.scale}
        return values | spelt_out | {"attention": ["local" if each else "global" for each in local]}

    def is_local(self, layer: int) -> bool:
        """Whether layer `layer`, counted from 0, sees only the last `window` tokens."""
        return self.attention[layer % len(self.attention)] == "local"

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.hidden_size % self.heads:
            raise ValueError(
                f"model.hidden_size ({self.hidden_size}) must be a multiple of model.heads ({self.heads})."
            )
        if self.heads % self.groups:
            raise ValueError(f"model.heads ({self.heads}) must be a multiple of model.kv_heads ({self.groups}).")
        return self

    @model_validator(mode="after")
    def _positions_fit(self) -> Self:
        if self.positions == "rotary" and (self.rotary_size < 2 or self.rotary_size % 2):
            raise ValueError(
                f"model.rotary_pct ({self.rotary_pct}) must rotate an even number of a head's {self.head_size} "
                f"dimensions, not {self.rotary_size}."
            )
        if self.yarn and self.positions != "rotary":
            raise ValueError(
                f"model.yarn stretches rotary positions; leave it out with model.positions {self.positions}."
            )
        if self.positions == "sinusoidal" and self.hidden_size % 2:
            raise ValueError(f"model.hidden_size ({self.hidden_size}) must be even with model.positions sinusoidal.")
        if self.positions == "t5" and self.t5_max_distance <= self.t5_buckets // 2:
            raise ValueError(
                f"model.t5_max_distance ({self.t5_max_distance}) must be more than half of model.t5_buckets "
                f"({self.t5_buckets})."
            )
        return self

    @model_validator(mode="after")
    def _switches_fit(self) -> Self:
        if self.norms == "one" and not self.parallel_residual:
            raise ValueError("model.norms one needs model.parallel_residual; use two or tied.")
        if self.tied_head and self.head_bias:
            raise ValueError("model.head_bias goes with an untied head; set model.tied_head or model.head_bias false.")
        return self
