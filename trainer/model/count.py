"""The number of parameters of a model, from its configuration alone. Imports no torch."""

from collections.abc import Collection

from trainer.model.config import ModelConfig


def parameters(model: ModelConfig, vocabulary: int, context: int) -> int:
    """All trained parameters, embeddings included; a tied head counts once."""
    hidden = model.hidden_size
    table = vocabulary * hidden
    embedding = table + (context * hidden if model.positions == "learned" else 0)
    head = _norm(model) + (0 if model.tied_head else table) + (vocabulary if model.head_bias else 0)
    return embedding + relative_bias(model) + model.layers * block(model) + head


def relative_bias(model: ModelConfig) -> int:
    """The parameters of T5's relative positions, which all blocks share."""
    return model.t5_buckets * model.heads if model.positions == "t5" else 0


def block(model: ModelConfig) -> int:
    """The parameters of one block."""
    hidden, inner = model.hidden_size, model.inner_size
    norms = _norm(model) * (2 if model.norms == "two" else 1)
    qkv = _linear(hidden, (model.heads + 2 * model.groups) * model.head_size, model.qkv_bias)
    out = _linear(hidden, hidden, model.attention_bias)
    up = _linear(hidden, inner, model.mlp_bias) * (2 if model.activation == "swiglu" else 1)
    return norms + qkv + out + up + _linear(inner, hidden, model.mlp_bias)


def adapters(model: ModelConfig, rank: int, targets: Collection[str]) -> int:
    """The parameters of low-rank adapters on the modules `targets` of every block."""
    hidden, inner = model.hidden_size, model.inner_size
    sizes = {
        "attention.qkv": hidden + (model.heads + 2 * model.groups) * model.head_size,
        "attention.out": 2 * hidden,
        "mlp.gate": hidden + inner,
        "mlp.up": hidden + inner,
        "mlp.down": hidden + inner,
    }
    return model.layers * rank * sum(sizes[target] for target in set(targets))


def _linear(inputs: int, outputs: int, bias: bool) -> int:
    return outputs * (inputs + bias)


def _norm(model: ModelConfig) -> int:
    return model.hidden_size * (2 if model.norm == "layernorm" else 1)
