"""The GPT-NeoX transformer. Tensor names carry their shapes:

B batch, L sequence, D hidden size, H heads, K head size, R rotated dimensions of a head, V vocabulary.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.config import ModelConfig


class Rotary(nn.Module):
    """Rotary positions over the first R dimensions of each head, halves rotated together (Su et al. 2021)."""

    def __init__(self, config: ModelConfig, context: int) -> None:
        super().__init__()
        half = torch.arange(0, config.rotary_size, 2, dtype=torch.float32) / config.rotary_size
        angles = torch.outer(torch.arange(context, dtype=torch.float32), 1.0 / config.rotary_base**half)
        angles_LR = torch.cat([angles, angles], dim=-1)
        self.size = config.rotary_size
        self.cos_LR = nn.Buffer(angles_LR.cos(), persistent=False)
        self.sin_LR = nn.Buffer(angles_LR.sin(), persistent=False)

    def forward(self, x_BHLK: Tensor) -> Tensor:
        length = x_BHLK.shape[-2]
        x_BHLR, rest = x_BHLK[..., : self.size], x_BHLK[..., self.size :]
        first, second = x_BHLR.chunk(2, dim=-1)
        turned_BHLR = torch.cat([-second, first], dim=-1)
        x_BHLR = x_BHLR * self.cos_LR[:length] + turned_BHLR * self.sin_LR[:length]
        return torch.cat([x_BHLR, rest], dim=-1)


class Attention(nn.Module):
    """Causal attention. `qkv` is fused per head: its rows are [H, (q, k, v), K], as in GPT-NeoX."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x_BLD: Tensor, rotary: Rotary) -> Tensor:
        B, L, _ = x_BLD.shape
        qkv_BHLx = self.qkv(x_BLD).view(B, L, self.heads, -1).transpose(1, 2)
        q_BHLK, k_BHLK, v_BHLK = qkv_BHLx.chunk(3, dim=-1)
        y_BHLK = functional.scaled_dot_product_attention(rotary(q_BHLK), rotary(k_BHLK), v_BHLK, is_causal=True)
        y_BLD = y_BHLK.transpose(1, 2).reshape(B, L, -1)
        out_BLD: Tensor = self.out(y_BLD)
        return out_BLD


class MLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, 4 * config.hidden_size)
        self.gelu = nn.GELU(approximate="tanh" if config.activation == "gelu-tanh" else "none")
        self.down = nn.Linear(4 * config.hidden_size, config.hidden_size)

    def forward(self, x_BLD: Tensor) -> Tensor:
        out_BLD: Tensor = self.down(self.gelu(self.up(x_BLD)))
        return out_BLD


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.parallel_residual = config.parallel_residual
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x_BLD: Tensor, rotary: Rotary) -> Tensor:
        attended_BLD = x_BLD + self.attention(self.attention_norm(x_BLD), rotary)
        mlp_input_BLD = x_BLD if self.parallel_residual else attended_BLD
        out_BLD: Tensor = attended_BLD + self.mlp(self.mlp_norm(mlp_input_BLD))
        return out_BLD


class Transformer(nn.Module):
    """Token ids [B, L] to logits [B, L, V], for L up to `context`."""

    def __init__(self, config: ModelConfig, vocabulary: int, context: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, config.hidden_size)
        self.rotary = Rotary(config, context)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = nn.Linear(config.hidden_size, vocabulary, bias=False)

    def forward(self, ids_BL: Tensor) -> Tensor:
        x_BLD = self.embed(ids_BL)
        for block in self.blocks:
            x_BLD = block(x_BLD, self.rotary)
        logits_BLV: Tensor = self.head(self.final_norm(x_BLD))
        return logits_BLV


def initialise(model: Transformer, seed: int) -> None:
    """Draw the weights in place: small_init, √(2/5d) (Nguyen & Salazar 2019), for all matrices but those that write
    to the residual stream, which get 2/(layers·√d) (Wang & Komatsuzaki 2021). Biases are 0, norms 1."""
    generator = torch.Generator().manual_seed(seed)
    hidden, layers = model.embed.embedding_dim, len(model.blocks)
    for name, parameter in model.named_parameters():
        if name.endswith(("attention.out.weight", "mlp.down.weight")):
            nn.init.normal_(parameter, std=2 / (layers * math.sqrt(hidden)), generator=generator)
        elif parameter.ndim == 2:
            nn.init.normal_(parameter, std=math.sqrt(2 / (5 * hidden)), generator=generator)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.ones_(parameter)
