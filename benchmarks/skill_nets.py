"""Networks whose skills are known, for benchmarks/skills.py: trained in the ordinary way, kept in a folder.

A *skill* is a map from five symbols to five symbols, named by the mark before them. A document repeats problems of one
skill (``mark x x x x x = y y y y y``); a window is cut from it anywhere, so answers stand at no fixed place. The loss
counts the answers of the problems that begin inside the window. Vocabularies are shared or each skill's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

SYMBOLS, LENGTH = 10, 5
PROBLEM = 2 * LENGTH + 2
CONTEXT = 2 * PROBLEM
SKILLS: dict[str, Callable[[Tensor], Tensor]] = {
    "reverse": lambda x: x.flip(-1),
    "sort": lambda x: x.sort(-1).values,
    "add three": lambda x: (x + 3) % SYMBOLS,
    "running maximum": lambda x: x.cummax(-1).values,
    "rotate": lambda x: x.roll(2, -1),
    "mirror digits": lambda x: (SYMBOLS - 1 - x).roll(-1, -1),
}


class Layer(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, d: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, hidden), nn.Linear(hidden, d)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in self.qkv(self.norm1(x)).split(d, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Tokens [batch, time] -> logits [batch, time, vocabulary]."""

    def __init__(self, vocabulary: int, d: int = 64, heads: int = 4, layers: int = 2, hidden: int = 256) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, d), nn.Embedding(CONTEXT, d)
        self.layers = nn.ModuleList(Layer(d, heads, hidden) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


@dataclass(frozen=True)
class Tasks:
    """``count`` skills, with one vocabulary for all or one each."""

    count: int
    shared: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(SKILLS)[: self.count]

    @property
    def vocabulary(self) -> int:
        return SYMBOLS * (1 if self.shared else self.count) + self.count + 1

    def windows(self, skill: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Windows of the given skills, int64 [n]: tokens and targets, int64 [n, CONTEXT]; -100 where nothing counts."""
        n, problems = skill.numel(), 3
        x = torch.randint(SYMBOLS, (n, problems, LENGTH), generator=generator)
        y = torch.empty_like(x)
        for i, name in enumerate(self.names):
            y[skill == i] = SKILLS[name](x[skill == i])
        shift = 0 if self.shared else SYMBOLS * skill[:, None, None]
        first = SYMBOLS * (1 if self.shared else self.count)
        mark = (first + skill)[:, None, None].expand(n, problems, 1)
        equals = torch.full_like(mark, first + self.count)
        stream = torch.cat([mark, x + shift, equals, y + shift], 2).flatten(1)
        answer = torch.zeros(problems, PROBLEM, dtype=torch.bool)
        answer[:, LENGTH + 2 :] = True
        start = torch.randint(PROBLEM, (n,), generator=generator)
        at = start[:, None] + torch.arange(CONTEXT + 1)
        tokens = stream.gather(1, at)
        counts = answer.flatten()[at] & (at // PROBLEM * PROBLEM >= start[:, None])
        targets = torch.where(counts, tokens, -100)[:, 1:]
        return tokens[:, :-1], targets

    def mixed(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """n windows of random skills: tokens, targets and the skill of each (kept aside, to judge)."""
        skill = torch.randint(self.count, (n,), generator=generator)
        return *self.windows(skill, generator), skill


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of the answers."""
    return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten(), ignore_index=-100)


def step_of(model: nn.Module, tasks: Tasks, seed: int, steps: int, rate: float = 2e-3, size: int = 64):
    """An optimizer's step on fresh windows, ``f(i) -> loss``."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1)
    generator = torch.Generator().manual_seed(1000 + seed)

    def step(i: int, penalty: Callable[[], Tensor] | None = None) -> float:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (i + 1) / 50) * (1 - 0.9 * i / steps)
        tokens, targets, _ = tasks.mixed(size, generator)
        loss = loss_fn(model, (tokens, targets))
        optimizer.zero_grad()
        (loss if penalty is None else loss + penalty()).backward()
        optimizer.step()
        return loss.item()

    return step, optimizer


def trained(tasks: Tasks, seed: int, steps: int, folder: Path | None, **sizes: int) -> GPT:
    """The network of a seed, trained or read."""
    torch.manual_seed(seed)
    model = GPT(tasks.vocabulary, **sizes)
    kind = "shared" if tasks.shared else "disjoint"
    extra = "".join(f"-{k}{v}" for k, v in sizes.items())
    path = None if folder is None else folder / f"gpt-{tasks.count}-{kind}-{steps}{extra}-{seed}.safetensors"
    if path is not None and path.is_file():
        model.load_state_dict(load_file(path))
        return model
    step, _ = step_of(model, tasks, seed, steps)
    for i in range(steps):
        loss = step(i)
        if i % 500 == 0:
            print(f"    {tasks} seed {seed} step {i} loss {loss:.3f}", flush=True)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), path)
    return model


def losses(model: nn.Module, tasks: Tasks, seed: int = 99, n: int = 256) -> list[float]:
    """Loss of every skill on fresh windows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        return [loss_fn(model, tasks.windows(torch.full((n,), i), generator)).item() for i in range(tasks.count)]
