"""One decoder-only transformer for GPT-Neo, GPT-J, GPT-NeoX and Llama. Names of tensors end in their shapes:

B batch, L sequence, D hidden size, H this rank's heads of queries, G this rank's heads of keys and values, Q heads of
queries for each of those, K head size, V vocabulary.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from trainer.model import loss
from trainer.model.attention import BlockedAttention
from trainer.model.config import ModelConfig
from trainer.model.packing import Packing
from trainer.model.positions import RelativeBias, Rotary, alibi_slopes, sinusoids
from trainer.model.tensor_parallel import ALONE, RowLinear, TensorParallel


class Attention(nn.Module):
    """Causal attention (Vaswani et al. 2017) on x [B, L, D]. The rows of `qkv` are [G, (Q queries, key, value), K],
    which is GPT-NeoX's layout where Q is 1. `relative_bias` belongs to the whole model."""

    def __init__(
        self,
        config: ModelConfig,
        local: bool,
        rotary: Rotary | None,
        relative_bias: RelativeBias | None,
        tp: TensorParallel,
    ) -> None:
        super().__init__()
        self.groups, self.queries = config.groups // tp.size, config.heads // config.groups
        self.head_size, self.scale, self.rotary, self.tp = config.head_size, config.scale, rotary, tp
        self.window = config.window if local else None
        slopes = alibi_slopes(config.heads) if config.positions == "alibi" else None
        self.slopes_H = None if slopes is None else tp.part(slopes, 0)
        # As a method, which does not make the module, and its parameter, this layer's own.
        self.relative_bias = relative_bias and relative_bias.__call__
        rows = self.groups * (self.queries + 2) * self.head_size
        self.qkv = nn.Linear(config.hidden_size, rows, bias=config.qkv_bias)
        self.out = RowLinear(config.hidden_size, config.hidden_size, config.attention_bias, tp)
        # An engine may replace this by a compiled form.
        self.heads = self.split

    def forward(self, x_BLD: Tensor, seen_B1LL: Tensor | None = None) -> Tensor:
        """`seen` [B, 1, L, L] says which keys each query sees, where that is less than all before it."""
        B, L, _ = x_BLD.shape
        q_BHLK, k_BGLK, v_BGLK = self.heads(self.qkv(self.tp.enter(x_BLD)))
        bias_HLL = self.bias(L, x_BLD)
        if seen_B1LL is not None:
            bias_HLL = seen_B1LL if bias_HLL is None else bias_HLL.where(seen_B1LL, -torch.inf)
        if self._uses_blocked_attention(x_BLD) and bias_HLL is None:
            inputs = (part.flatten(0, 1) for part in (q_BHLK, k_BGLK, v_BGLK))
            y_NLK: Tensor = BlockedAttention.apply(*inputs, self.scale)  # type: ignore[no-untyped-call]
            y_BHLK = y_NLK.view(B, -1, L, self.head_size)
        else:
            y_BHLK = functional.scaled_dot_product_attention(
                q_BHLK,
                k_BGLK,
                v_BGLK,
                attn_mask=bias_HLL,
                is_causal=bias_HLL is None,
                scale=self.scale,
                enable_gqa=self.queries > 1,
            )
        out_BLD: Tensor = self.out(y_BHLK.transpose(1, 2).reshape(B, L, -1))
        return out_BLD

    def split(self, qkv_BLX: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, L, K], keys and values [B, G, L, K] from the rows of `qkv`, queries and keys rotated."""
        B, L, _ = qkv_BLX.shape
        qkv_BLGxK = qkv_BLX.view(B, L, self.groups, self.queries + 2, self.head_size)
        q_BLGQK, k_BLGK, v_BLGK = torch.split(qkv_BLGxK, [self.queries, 1, 1], dim=3)
        q_BHLK, k_BGLK, v_BGLK = (part.flatten(2, 3).transpose(1, 2) for part in (q_BLGQK, k_BLGK, v_BLGK))
        if self.rotary:
            q_BHLK, k_BGLK = self.rotary(q_BHLK), self.rotary(k_BGLK)
        return q_BHLK, k_BGLK, v_BGLK

    def _uses_blocked_attention(self, x_BLD: Tensor) -> bool:
        """Whether `BlockedAttention` computes it, which is faster than PyTorch's kernel in training in 16 bits on
        a CPU."""
        return (
            x_BLD.device.type == "cpu"
            and x_BLD.dtype in (torch.bfloat16, torch.float16)
            and self.queries == 1
            and torch.is_grad_enabled()
        )

    def bias(self, length: int, like: Tensor) -> Tensor | None:
        """The mask and the bias of ALiBi or T5 [1 or H, L, L] to add to the logits, None where the causal mask alone is
        needed."""
        if self.relative_bias:
            return _by_distance(self.relative_bias(length), self.window).to(like.dtype)
        windowed = self.window is not None and self.window < length
        if self.slopes_H is None and not windowed:
            return None
        position_L = torch.arange(length, device=like.device)
        distance_LL = position_L[:, None] - position_L[None, :]
        seen_LL = (distance_LL >= 0) & (distance_LL < self.window) if self.window else distance_LL >= 0
        bias_LL = torch.zeros(length, length, dtype=like.dtype, device=like.device).masked_fill_(~seen_LL, -torch.inf)
        if self.slopes_H is None:
            return bias_LL[None]
        return bias_LL - (self.slopes_H.to(like.device)[:, None, None] * distance_LL).to(like.dtype)


def _by_distance(bias_HL: Tensor, window: int | None) -> Tensor:
    """The matrix [H, L, L] of what each query adds for each key, from the biases [H, L] of the distances between them;
    -inf for keys after the query, and for those at the distance `window` or more."""
    length = bias_HL.shape[1]
    if window is not None and window < length:
        bias_HL = functional.pad(bias_HL[:, :window], (0, length - window), value=-torch.inf)
    # Row i of the matrix is the part of these numbers that begins at L - 1 - i.
    numbers_HN = functional.pad(bias_HL.flip(1), (0, length - 1), value=-torch.inf)
    return numbers_HN.unfold(1, length, 1).flip(1)


class MLP(nn.Module):
    """Two layers on x [B, L, D] with GELU between them, or SwiGLU (Shazeer 2020) with a third, `gate`."""

    def __init__(self, config: ModelConfig, tp: TensorParallel) -> None:
        super().__init__()
        width = config.inner_size // tp.size
        self.tp = tp
        self.tanh = config.activation == "gelu-tanh"
        # An engine may replace this by a compiled form.
        self.gelu: Callable[[Tensor], Tensor] = partial(functional.gelu, approximate="tanh" if self.tanh else "none")
        self.gate = nn.Linear(config.hidden_size, width, config.mlp_bias) if config.activation == "swiglu" else None
        self.up = nn.Linear(config.hidden_size, width, config.mlp_bias)
        self.down = RowLinear(config.inner_size, config.hidden_size, config.mlp_bias, tp)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """From x [B, L, D] to the sum [B, L, D] that is added to the residual stream."""
        x_BLD = self.tp.enter(x_BLD)
        if self.gate is not None:
            inner = functional.silu(self.gate(x_BLD)) * self.up(x_BLD)
        else:
            inner = self.gelu(self.up(x_BLD))
        out_BLD: Tensor = self.down(inner)
        return out_BLD


def _norm(config: ModelConfig) -> nn.Module:
    kind = nn.LayerNorm if config.norm == "layernorm" else nn.RMSNorm
    return kind(config.hidden_size, eps=config.norm_eps)


class Block(nn.Module):
    """Attention and MLP, added to the residual stream x [B, L, D]. With `recompute` the backward pass computes the
    activations again instead of keeping them (Chen et al. 2016)."""

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        rotary: Rotary | None,
        relative_bias: RelativeBias | None,
        tp: TensorParallel,
    ) -> None:
        super().__init__()
        self.parallel_residual, self.recompute = config.parallel_residual, False
        self.shared_input = config.parallel_residual and config.norms != "two"
        self.attention_norm = _norm(config)
        self.attention = Attention(config, config.is_local(layer), rotary, relative_bias, tp)
        self.mlp_norm = _norm(config) if config.norms == "two" else None
        self.mlp = MLP(config, tp)

    def forward(self, x_BLD: Tensor, seen_B1LL: Tensor | None = None) -> Tensor:
        """The residual stream [B, L, D] after this layer. `seen` [B, 1, L, L] is as in `Attention.forward`."""
        if self.recompute and torch.is_grad_enabled():
            out_BLD: Tensor = checkpoint(self._forward, x_BLD, seen_B1LL, use_reentrant=False)
            return out_BLD
        return self._forward(x_BLD, seen_B1LL)

    def _forward(self, x_BLD: Tensor, seen_B1LL: Tensor | None) -> Tensor:
        normed_BLD = self.attention_norm(x_BLD)
        attended_BLD = x_BLD + self.attention(normed_BLD, seen_B1LL)
        if not self.shared_input:
            mlp_norm = self.attention_norm if self.mlp_norm is None else self.mlp_norm
            normed_BLD = mlp_norm(x_BLD if self.parallel_residual else attended_BLD)
        out_BLD: Tensor = attended_BLD + self.mlp(normed_BLD)
        return out_BLD


class Embedding(nn.Module):
    """Token ids [B, L] to hidden states [B, L, D]. The rows of the vocabulary are split over the tensor-parallel
    ranks."""

    def __init__(self, config: ModelConfig, vocabulary: int, context: int, tp: TensorParallel) -> None:
        super().__init__()
        self.tp = tp
        self.tokens = _embedding(vocabulary // tp.size, config.hidden_size)
        self.positions = _embedding(context, config.hidden_size) if config.positions == "learned" else None
        self.sinusoids_LD = sinusoids(context, config.hidden_size) if config.positions == "sinusoidal" else None

    def forward(self, ids_BL: Tensor) -> Tensor:
        """Hidden states [B, L, D] of token ids [B, L], positions included."""
        return self.add_positions(self.look_up(ids_BL))

    def add_positions(self, x_BLD: Tensor, positions_BL: Tensor | None = None) -> Tensor:
        """Add learned or sinusoidal positions to the embeddings [B, L, D]; the others act in attention. Without
        `positions` they count from the first token."""
        if positions_BL is None:
            positions_BL = torch.arange(x_BLD.shape[1], device=x_BLD.device)
        if self.positions is not None:
            x_BLD = x_BLD + self.positions(positions_BL)
        elif self.sinusoids_LD is not None:
            x_BLD = x_BLD + self.sinusoids_LD.to(x_BLD)[positions_BL]
        return x_BLD

    def look_up(self, ids_BL: Tensor) -> Tensor:
        """The embeddings [B, L, D] of token ids [B, L], without positions."""
        if self.tp.size == 1:
            out_BLD: Tensor = self.tokens(ids_BL)
            return out_BLD
        rows = self.tokens.num_embeddings
        local_BL = ids_BL - self.tp.rank * rows
        elsewhere_BL = (local_BL < 0) | (local_BL >= rows)
        x_BLD = self.tokens(local_BL.masked_fill(elsewhere_BL, 0)).masked_fill(elsewhere_BL[..., None], 0)
        return self.tp.leave(x_BLD)


def _embedding(rows: int, width: int) -> nn.Embedding:
    # Without `_weight` it would draw weights, which on the meta device imports torch's compiler and takes seconds.
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width))


class Head(nn.Module):
    """Hidden states [B, L, D] to logits, or to the loss without holding all logits. `tied` is the embedding's weight
    where the head shares it."""

    def __init__(
        self, config: ModelConfig, vocabulary: int, tp: TensorParallel, tied: nn.Parameter | None = None
    ) -> None:
        super().__init__()
        rows = vocabulary // tp.size
        self.tp = tp
        self.norm = _norm(config)
        self.weight = nn.Parameter(torch.empty(rows, config.hidden_size)) if tied is None else tied
        # What the mean loss will be multiplied by in the backward pass, in fp16; the gradients of the logits need it.
        self.loss_scale: float | None = None
        self.bias = nn.Parameter(torch.empty(rows)) if config.head_bias else None

    def forward(self, x_BLD: Tensor, targets_BL: Tensor | None = None, mean: bool = True) -> Tensor:
        """Without targets the logits [B, L, V] of the whole vocabulary, without a gradient. With targets [B, L] their
        mean cross-entropy in nats, or where not `mean` the cross-entropy [B, L] of each, without a gradient."""
        x_BLD = self.norm(x_BLD)
        if targets_BL is None:
            with torch.no_grad():
                return self.tp.join(functional.linear(x_BLD, self.weight, self.bias), dim=-1)
        x_ND = self.tp.enter(x_BLD).flatten(0, 1)
        inputs = (x_ND, self.weight, self.bias, targets_BL.flatten(), self.tp)
        if not mean:
            return loss.nll(*inputs).view(targets_BL.shape)
        scale = 1.0 if self.loss_scale is None else self.loss_scale / targets_BL.numel()
        total: Tensor = loss.FusedLoss.apply(*inputs, scale)  # type: ignore[no-untyped-call]
        return total / targets_BL.numel()


class Transformer(nn.Module):
    """The whole model, or this rank's tensor-parallel part of every matrix. Its weights are not initialised."""

    def __init__(self, config: ModelConfig, vocabulary: int, context: int, tp: TensorParallel = ALONE) -> None:
        super().__init__()
        self.rotary = Rotary(config, context) if config.positions == "rotary" else None
        self.embed = Embedding(config, vocabulary, context, tp)
        self.relative_bias = RelativeBias(config, context, tp) if config.positions == "t5" else None
        shared = (self.rotary, self.relative_bias)
        self.blocks = nn.ModuleList(Block(config, layer, *shared, tp) for layer in range(config.layers))
        tied = self.embed.tokens.get_parameter("weight") if config.tied_head else None
        self.head = Head(config, vocabulary, tp, tied)

    def hidden(self, ids_BL: Tensor, packing: Packing | None) -> Tensor:
        """Hidden states [B, L, D], ready for the head, of rows of which each segment is a text of its own."""
        seen_B1LL, positions_BL = packing or (None, None)
        x_BLD = self.embed.add_positions(self.embed.look_up(ids_BL), positions_BL)
        for block in self.blocks:
            x_BLD = block(x_BLD, seen_B1LL)
        out_BLD: Tensor = self.head.norm(x_BLD)
        return out_BLD

    def forward(self, ids_BL: Tensor, targets_BL: Tensor | None = None, mean: bool = True) -> Tensor:
        """Logits [B, L, V] of ids [B, L]; with targets [B, L] their cross-entropy, see `Head.forward`."""
        x_BLD: Tensor = self.embed(ids_BL)
        for block in self.blocks:
            x_BLD = block(x_BLD)
        out: Tensor = self.head(x_BLD, targets_BL, mean)
        return out


def shapes(config: ModelConfig, vocabulary: int, context: int) -> dict[str, torch.Size]:
    """The shape of each whole parameter by its name, without allocating weights."""
    with torch.device("meta"):
        model = Transformer(config, vocabulary, context)
    return {name: parameter.shape for name, parameter in model.named_parameters()}
