"""Find the skills of a small GPT without telling it, or modcut, what they are.

A two-layer GPT learns four skills from one stream of windows: writing five digits backwards, sorting them, adding three
to each, and their running maximum. Then one call asks which parts serve which windows. About a minute on one core:

    python examples/find_skills.py
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import modcut

SKILLS = {
    "reverse": lambda x: x.flip(-1),
    "sort": lambda x: x.sort(-1).values,
    "add three": lambda x: (x + 3) % 10,
    "running maximum": lambda x: x.cummax(-1).values,
}
EQUALS = 10 + len(SKILLS)  # tokens: ten digits, a mark per skill, "="


class Layer(nn.Module):
    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in self.qkv(self.norm1(x)).split(d, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    def __init__(self, d: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(EQUALS + 1, d), nn.Embedding(24, d)
        self.layers = nn.ModuleList(Layer(d, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, EQUALS + 1, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def windows(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two problems (mark, five digits, =, five answers) of one skill each, int64 [n, 24], and the skill, kept aside."""
    skill = torch.randint(len(SKILLS), (n,), generator=generator)
    x = torch.randint(10, (n, 2, 5), generator=generator)
    y = torch.stack([f(x) for f in SKILLS.values()])[skill, torch.arange(n)]
    mark = (skill[:, None, None] + 10).expand(n, 2, 1)
    return torch.cat([mark, x, torch.full((n, 2, 1), EQUALS), y], 2).flatten(1), skill


def loss_fn(model: nn.Module, tokens: Tensor) -> Tensor:
    """Cross-entropy of the answers."""
    answer = torch.arange(1, tokens.shape[1]) % 12 > 6
    return F.cross_entropy(model(tokens[:, :-1])[:, answer].flatten(0, 1), tokens[:, 1:][:, answer].flatten())


def main(steps: int = 1000, seed: int = 0, windows_shown: int = 768) -> modcut.Partition:
    """Train, find, show."""
    torch.manual_seed(seed)
    model, generator = GPT(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(steps):
        loss = loss_fn(model, windows(64, generator)[0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 200 == 0 or step == steps - 1:
            print(f"step {step:4d}  loss {loss.item():.4f}", flush=True)

    tokens, skill = windows(windows_shown, generator)
    P = modcut.find_modules(model, data=list(tokens.split(64)), loss_fn=loss_fn, progress=True)  # prints the evidence
    if "windows" not in P.meta:
        return P
    kinds = torch.tensor(P.meta["windows"])  # shown also where the verdict is that they have no modules of their own
    for kind in range(int(kinds.max()) + 1):
        share = {name: float((skill[kinds == kind] == i).double().mean()) for i, name in enumerate(SKILLS)}
        print(f"kind {kind}: " + ", ".join(f"{v:.0%} {n}" for n, v in share.items() if v > 0.005) + "; most typical:")
        for i in P.meta["typical"][kind][:3]:
            print("   ", " ".join(str(t) if t < 10 else "=" if t == EQUALS else "?" for t in tokens[i, :12].tolist()))
    return P


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    main(args.steps, args.seed)
