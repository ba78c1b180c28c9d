"""A small GPT, written out: pre-norm, linear position biases (ALiBi), fused query-key-value, GELU MLP."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of a :class:`GPT`."""

    vocab: int = 96
    context: int = 96
    width: int = 64
    layers: int = 3
    heads: int = 4
    mlp: int = 256

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads ({self.heads}), got {self.width}")

    def to_dict(self) -> dict[str, int]:
        """Return the sizes as plain numbers."""
        return asdict(self)


class Attention(nn.Module):
    """Causal self-attention with one fused projection."""

    bias: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        # Position enters only here: head h pays slope_h per character of distance (ALiBi, arXiv 2108.12409), from very
        # local to none. The local heads let a small model leave the bigram plateau in a tenth of the steps.
        slope = torch.tensor([2.0 * 4.0**-h if h < config.heads - 1 else 0.0 for h in range(config.heads)])
        at = torch.arange(config.context)
        bias = -slope.view(-1, 1, 1) * (at.view(-1, 1) - at.view(1, -1))
        self.register_buffer("bias", bias.masked_fill(at.view(-1, 1) < at.view(1, -1), -torch.inf), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, time, width] -> [batch, time, width]."""
        batch, time, width = x.shape
        q, k, v = self.qkv(x).split(width, dim=-1)
        q = q.view(batch, time, self.heads, width // self.heads).transpose(1, 2)
        k = k.view(batch, time, self.heads, width // self.heads).transpose(1, 2)
        v = v.view(batch, time, self.heads, width // self.heads).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias[:, :time, :time])
        mixed: Tensor = self.out(y.transpose(1, 2).reshape(batch, time, width))
        return mixed


class MLP(nn.Module):
    """Two linear maps with a GELU between them."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.mlp)
        self.down = nn.Linear(config.mlp, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, time, width] -> [batch, time, width]."""
        y: Tensor = self.down(F.gelu(self.up(x)))
        return y


class Block(nn.Module):
    """Attention and MLP, each added to the residual stream."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(config.width), Attention(config)
        self.norm2, self.mlp = nn.LayerNorm(config.width), MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, time, width] -> [batch, time, width]."""
        x = x + self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x


class GPT(nn.Module):
    """Tokens [batch, time] -> logits [batch, time, vocab]."""

    def __init__(self, config: GPTConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocab, bias=False)
        # Its own generator: the weights depend on the seed alone, not on what ran before.
        generator = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            if name == "tokens.weight":
                nn.init.normal_(p, std=0.5, generator=generator)
            elif name == "head.weight":  # small: training starts at the loss of a uniform guess
                nn.init.normal_(p, std=0.02, generator=generator)
            elif p.ndim == 2:
                scale = 0.5 if name.endswith(("out.weight", "down.weight")) else 0.8
                nn.init.normal_(p, std=scale * p.shape[1] ** -0.5, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens int64 [batch, time], time <= context -> logits [batch, time, vocab]."""
        if tokens.shape[1] > self.config.context:
            raise ValueError(f"tokens must hold at most {self.config.context} positions, got {tokens.shape[1]}")
        x = self.tokens(tokens)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits
