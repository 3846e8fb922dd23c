"""The adapter between our model and a class of transformers, and what all four adapters have in common.

"Ours" is a parameter or module of `trainer.model.transformer`, "theirs" that of the class. H heads of queries, G heads
of keys and values, K head size.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from trainer.model.config import InitConfig, ModelConfig
from trainer.schema import ConfigError

GetTensor = Callable[[str], Tensor]
"""Returns the whole tensor of a name that transformers uses."""

_TERMS = {
    "alibi": "ALiBi positions",
    "t5": "relative positions like T5's",
    "learned": "learned positions",
    "sinusoidal": "sinusoidal positions",
    "rotary": "rotary positions",
    "layernorm": "LayerNorm",
    "rmsnorm": "RMSNorm",
    "gelu-tanh": "GELU",
    "gelu-erf": "GELU",
    "swiglu": "SwiGLU",
}
_PARTS = {"attention.qkv": "queries, keys and values", "attention.out": "attention's output", "mlp.up": "the MLP"}
_GELU = {
    "gelu": "gelu-erf",
    "gelu_python": "gelu-erf",
    "gelu_new": "gelu-tanh",
    "gelu_fast": "gelu-tanh",
    "gelu_accurate": "gelu-tanh",
    "gelu_pytorch_tanh": "gelu-tanh",
}
_ACTIVATIONS = {"gelu-erf": "gelu", "gelu-tanh": "gelu_pytorch_tanh", "swiglu": "silu"}


class Family(Protocol):
    """How a model of ours is exported and read back, one whole parameter at a time."""

    @property
    def architecture(self) -> str | None:
        """The name of the class of transformers that opens the model, None where none does."""

    @property
    def refusal(self) -> str | None:
        """A sentence why no class of transformers computes the same, None where one does."""

    def export(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Our parameter `name` under their names, contiguous and unshared, with the tensors that only they have."""

    def fetch(self, name: str, get: GetTensor) -> Tensor:
        """Our parameter `name` from their tensors: the inverse of `export`, exact to the bit. Raises what `get`
        raises."""

    def config_json(self, *, end: int, dtype: str = "float32") -> dict[str, Any]:
        """The content of their `config.json`, valid for transformers 4 and 5; `end` is the id of the token that begins
        and ends a document. Raises ConfigError where there is a refusal."""


class Adapter(ABC):
    """Implements `Family` for one class of transformers; a subclass describes that class."""

    architecture: ClassVar[str]
    model_type: ClassVar[str]
    layers: ClassVar[str]
    names: ClassVar[Mapping[str, str]]
    """Their module's name by ours; within a block without the block's prefix."""
    positions: ClassVar[tuple[str, ...]] = ("rotary",)
    norm: ClassVar[str] = "layernorm"
    activations: ClassVar[tuple[str, ...]] = ("gelu-tanh", "gelu-erf")
    residuals: ClassVar[tuple[bool, ...]]
    """The values of `model.parallel_residual` that the class has."""
    layout: ClassVar[Literal["half", "interleaved"]] = "half"
    grouped: ClassVar[bool] = False
    local: ClassVar[bool] = False
    refusal: str | None = None

    def __init__(self, model: ModelConfig, vocabulary: int, context: int) -> None:
        self.model, self.vocabulary, self.context = model, vocabulary, context

    @property
    @abstractmethod
    def biases(self) -> frozenset[str]:
        """Our modules that have a bias in the class."""

    @property
    def scale(self) -> float:
        """The factor of attention's logits in the class."""
        return float(self.model.head_size**-0.5)

    @property
    def local_layers(self) -> list[bool]:
        """For each layer, whether it sees less than the whole context."""
        return [self.model.is_local(i) and self.model.window < self.context for i in range(self.model.layers)]

    @abstractmethod
    def shape_json(self) -> dict[str, Any]:
        """The fields of `config.json` that not all classes have."""

    @classmethod
    @abstractmethod
    def read(cls, theirs: Any) -> ModelConfig:
        """Our configuration from transformers' configuration of this class. Raises ConfigError if ours cannot express
        it."""

    def missing_features(self) -> Iterator[str]:
        """Features of the model that the class does not have, in words. The class computes the same where there is
        none."""
        model = self.model
        if model.positions not in self.positions:
            yield _TERMS[model.positions]
        if model.norm != self.norm:
            yield _TERMS[model.norm]
        if model.activation not in self.activations:
            yield _TERMS[model.activation]
        if model.parallel_residual not in self.residuals:
            yield "parallel residual" if model.parallel_residual else "sequential residual"
        if any(self.local_layers) and not self.local:
            yield "local attention"
        for part, words in _PARTS.items():
            if _has_bias(model, part) and part not in self.biases:
                yield f"bias on {words}"
        if model.head_bias and "head" not in self.biases:
            yield "bias on the head"
        # Queries can absorb a factor without rounding, and give it back, only where it is a power of two.
        if math.frexp(model.scale / self.scale)[0] != 0.5:
            yield f"logit scale of {model.scale:g}"

    def export(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        prefix, module, kind = self._locate(name)
        if module == "attention.qkv":
            parts = {f"{prefix}{theirs}.{kind}": part for theirs, part in self._split_qkv(tensor).items()}
        else:
            parts = {f"{prefix}{self.names[module]}.{kind}": tensor}
        if module == "attention_norm" and self.model.norms != "two" and "mlp_norm" in self.names:
            parts[f"{prefix}{self.names['mlp_norm']}.{kind}"] = tensor.clone()
        if kind == "weight" and module in self.biases and not _has_bias(self.model, module):
            parts |= {f"{theirs[:-6]}bias": part.new_zeros(part.shape[0]) for theirs, part in parts.items()}
        return {theirs: part.contiguous() for theirs, part in parts.items()}

    def fetch(self, name: str, get: GetTensor) -> Tensor:
        prefix, module, kind = self._locate(name)
        if module == "attention.qkv":
            return self._join_qkv(lambda theirs: get(f"{prefix}{theirs}.{kind}"))
        return get(f"{prefix}{self.names[module]}.{kind}")

    def config_json(self, *, end: int, dtype: str = "float32") -> dict[str, Any]:
        init = self.model.init
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "vocab_size": self.vocabulary,
            **self.shape_json(),
            "initializer_range": (2 / (5 * self.model.hidden_size)) ** 0.5 if init.matrices == "small" else init.std,
            "tie_word_embeddings": self.model.tied_head,
            "bos_token_id": end,
            "eos_token_id": end,
            "dtype": dtype,
            # transformers 4 reads this name.
            "torch_dtype": dtype,
        }

    @property
    def activation_json(self) -> str:
        return _ACTIVATIONS[self.model.activation]

    def _locate(self, name: str) -> tuple[str, str, str]:
        """For our parameter: their prefix of its block, empty outside blocks; our module within the block; weight or
        bias."""
        module, _, kind = name.rpartition(".")
        if not module.startswith("blocks."):
            return "", module, kind
        _, layer, inner = module.split(".", 2)
        return f"{self.layers}.{layer}.", inner, kind

    def _split_qkv(self, tensor: Tensor) -> dict[str, Tensor]:
        """Our `attention.qkv` under their names: three matrices, unless a subclass has one."""
        q, k, v = (part.flatten(0, 1) for part in self._heads(tensor))
        return {self.names["q"]: q, self.names["k"]: k, self.names["v"]: v}

    def _join_qkv(self, get: GetTensor) -> Tensor:
        size = self.model.head_size
        q, k, v = (split_rows(get(self.names[part]), -1, size) for part in ("q", "k", "v"))
        return self._rows(q, k, v)

    def _heads(self, tensor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [H, K, …] in their layout, keys and values [G, K, …] where the class has groups."""
        model = self.model
        parts = split_rows(tensor, model.groups, -1, model.head_size)
        q, k, v = parts[:, :-2].flatten(0, 1), parts[:, -2], parts[:, -1]
        if not self.grouped:
            copies = model.heads // model.groups
            k, v = k.repeat_interleave(copies, 0), v.repeat_interleave(copies, 0)
        order = self._order()
        return q[:, order] * (model.scale / self.scale), k[:, order], v

    def _rows(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The inverse of `_heads`."""
        model = self.model
        if not self.grouped:
            copies = model.heads // model.groups
            k, v = k[::copies], v[::copies]
        order = self._order().argsort()
        q, k = q[:, order] * (self.scale / model.scale), k[:, order]
        q = split_rows(q, model.groups, -1)
        return torch.cat([q, k[:, None], v[:, None]], dim=1).flatten(0, 2)

    def _order(self) -> Tensor:
        """For each dimension of a head in their layout of rotary pairs the dimension in ours, [K]."""
        model = self.model
        order = torch.arange(model.head_size)
        if model.positions == "rotary" and model.rotary_layout != self.layout:
            pairs = (-1, 2) if model.rotary_layout == "interleaved" else (2, -1)
            order[: model.rotary_size] = order[: model.rotary_size].view(pairs).T.flatten()
        return order


class OwnNames:
    """Implements `Family` with our own names, for a model that no class of transformers computes."""

    architecture = None

    def __init__(self, refusal: str) -> None:
        self.refusal = refusal

    def export(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        return {name: tensor.contiguous()}

    def fetch(self, name: str, get: GetTensor) -> Tensor:
        return get(name)

    def config_json(self, *, end: int, dtype: str = "float32") -> dict[str, Any]:
        raise ConfigError(self.refusal)


def split_rows(tensor: Tensor, *sizes: int) -> Tensor:
    """The tensor with its first dimension split into dimensions of these sizes."""
    return tensor.reshape(*sizes, *tensor.shape[1:])


def _has_bias(model: ModelConfig, module: str) -> bool:
    match module:
        case "attention.qkv":
            return model.qkv_bias
        case "attention.out":
            return model.attention_bias
        case "head":
            return model.head_bias
    return model.mlp_bias


def gelu(theirs: str) -> Literal["gelu-tanh", "gelu-erf"]:
    """Our switch for an activation of transformers. Raises ConfigError."""
    if theirs not in _GELU:
        raise ConfigError(f"The activation {theirs} is none of ours; the model must have one of {', '.join(_GELU)}.")
    return "gelu-erf" if _GELU[theirs] == "gelu-erf" else "gelu-tanh"


def init(theirs: Any) -> InitConfig:
    """Our initialisation from a configuration of transformers, which has one deviation for all matrices."""
    return InitConfig(matrices="normal", std=theirs.initializer_range, residual="same")
