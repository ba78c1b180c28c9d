"""Small models whose graphs are written by hand: a reference for everything above the tracer, independent of it."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from modcut.graph.types import Block, Matrix, Space, Tap, WeightGraph


def _strength(block: Block) -> Tensor:
    c = block.weight.detach().abs()
    return c.flatten(2).sum(2) if c.ndim > 2 else c


class Builder:
    def __init__(self) -> None:
        self.spaces: list[Space] = []
        self.matrices: list[Matrix] = []
        self.blocks: list[Block] = []
        self.taps: list[Tap] = []

    def space(self, name: str, size: int, kind: str, family: str = "", head: str = "") -> Space:
        offset = sum(s.size for s in self.spaces)
        self.spaces.append(Space(name, size, kind, offset, family or name, head))
        return self.spaces[-1]

    def matrix(self, name: str, weight: Tensor, rows: list[Space], cols: list[Space]) -> None:
        r = torch.cat([torch.arange(s.offset, s.offset + s.size) for s in rows])
        c = torch.cat([torch.arange(s.offset, s.offset + s.size) for s in cols])
        self.matrices.append(Matrix(name, weight, r, c))
        i = 0
        for a in rows:
            j = 0
            for b in cols:
                ri, ci = torch.arange(i, i + a.size)[:, None], torch.arange(j, j + b.size)[:, None]
                view = weight[i : i + a.size, j : j + b.size]
                self.blocks.append(Block(a, b, view, name, ri, ci, _strength))
                j += b.size
            i += a.size

    def tap(self, module: str, side: str, spaces: list[Space], dim: int = -1) -> None:
        v = torch.cat([torch.arange(s.offset, s.offset + s.size) for s in spaces])
        self.taps.append(Tap(module, side, dim, v))

    def graph(self) -> WeightGraph:
        return WeightGraph(tuple(self.spaces), tuple(self.blocks), "abs", tuple(self.matrices), tuple(self.taps))


def mlp(sizes: tuple[int, ...] = (6, 8, 8, 4), seed: int = 0) -> tuple[nn.Sequential, WeightGraph]:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    b = Builder()
    kinds = ["input", *["hidden"] * (len(sizes) - 2), "output"]
    spaces = [b.space(f"layer{i}", n, kind) for i, (n, kind) in enumerate(zip(sizes, kinds, strict=True))]
    for i in range(len(sizes) - 1):
        b.matrix(f"{2 * i}.weight", model[2 * i].weight.detach(), [spaces[i + 1]], [spaces[i]])
        b.tap(str(2 * i), "input", [spaces[i]])
    b.tap(str(2 * (len(sizes) - 2)), "output", [spaces[-1]])
    return model, b.graph()


class _Layer(nn.Module):
    def __init__(self, d: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        self.up, self.down = nn.Linear(d, hidden), nn.Linear(hidden, d)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        y = self.ln1(x)
        q, k, v = (f(y).view(b, t, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, d)
        x = x + self.o(a)
        return x + self.down(F.gelu(self.up(self.ln2(x))))


class GPT(nn.Module):
    """Hand-written pre-norm transformer: tokens [batch, time] -> logits [batch, time, vocabulary]."""

    def __init__(self, vocab: int = 12, d: int = 16, heads: int = 4, layers: int = 2, hidden: int = 24, time: int = 16):
        super().__init__()
        self.emb, self.pos = nn.Embedding(vocab, d), nn.Embedding(time, d)
        self.layers = nn.ModuleList(_Layer(d, heads, hidden) for _ in range(layers))
        self.ln, self.head = nn.LayerNorm(d), nn.Linear(d, vocab, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.emb(tokens) + self.pos(torch.arange(tokens.shape[1], device=tokens.device))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.ln(x))


def gpt(seed: int = 0, **sizes: int) -> tuple[GPT, WeightGraph]:
    torch.manual_seed(seed)
    model = GPT(**sizes)
    return model, gpt_graph(model)


def gpt_graph(model: GPT) -> WeightGraph:
    vocab, d = model.emb.weight.shape
    b = Builder()
    tokens, stream = b.space("tokens", vocab, "input"), b.space("residual", d, "residual")
    b.matrix("emb.weight", model.emb.weight.detach().T, [stream], [tokens])
    for i, layer in enumerate(model.layers):
        p, m = f"layers.{i}", layer.heads
        qk = [b.space(f"{p}.qk{h}", d // m, "head", f"{p}.heads", f"{p}.head{h}") for h in range(m)]
        v = [b.space(f"{p}.v{h}", d // m, "head", f"{p}.heads", f"{p}.head{h}") for h in range(m)]
        hidden = b.space(f"{p}.mlp", layer.up.out_features, "hidden")
        for name, linear, rows, cols in (
            ("q", layer.q, qk, [stream]),
            ("k", layer.k, qk, [stream]),
            ("v", layer.v, v, [stream]),
            ("o", layer.o, [stream], v),
            ("up", layer.up, [hidden], [stream]),
            ("down", layer.down, [stream], [hidden]),
        ):
            b.matrix(f"{p}.{name}.weight", linear.weight.detach(), rows, cols)
            b.tap(f"{p}.{name}", "input", cols)
        b.tap(f"{p}.q", "output", qk)
        b.tap(f"{p}.k", "output", qk)
    out = b.space("logits", vocab, "output")
    b.matrix("head.weight", model.head.weight.detach(), [out], [stream])
    b.tap("head", "input", [stream])
    b.tap("head", "output", [out])
    return b.graph()
