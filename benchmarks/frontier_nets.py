"""Tasks of the frontier whose networks are not plain stacks of layers: char GPT, modular addition, CNN on digits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from modcut.organisms import text
from modcut.organisms.gpt import GPT, GPTConfig

Batch = tuple[Tensor, Tensor]


@dataclass
class Net:
    """One task: data, a network, what is divided, and how the same function is written with other weights."""

    k: int
    steps: int
    rate: float
    decay: float
    model: Callable[[bool], nn.Module]
    """Takes whether the network is narrow: as many weights in the divided matrices as k blocks of the full one."""
    batches: Callable[[], Iterator[Batch]]
    """Training batches without end, the same for every arm."""
    held: dict[str, list[Batch]]
    """validation (chooses settings) and test (is reported)."""
    slices: Callable[[list[Batch]], dict[str, list[Batch]]]
    accuracy: bool
    rescale: Callable[[nn.Module, torch.Generator], None]
    """Change the weights in place so that the function stays the same."""
    w_in: Callable[[str], bool] = field(default=lambda name: False)
    """Which matrices the clusterability loss was published on."""
    warmup: int | None = None
    graph: dict[str, Any] = field(default_factory=lambda: {"include_inputs": False, "include_outputs": False})
    clip: float = 1.0
    find: int = 16
    """Batches in which modules of finished networks are looked for."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())


def _spread(generator: torch.Generator, n: int) -> Tensor:
    """Factors 10^u, u uniform in [-1, 1]."""
    return 10 ** (2 * torch.rand(n, generator=generator) - 1)


# ---- character GPT ---------------------------------------------------------------------------------------------------
@torch.no_grad()
def rescale_gpt(model: nn.Module, g: torch.Generator) -> None:
    """Move factors between norms and the maps that read them, and between values and the output map."""
    for block in model.blocks:  # type: ignore[union-attr]
        attention, mlp = block.attention, block.mlp
        for norm, reader in ((block.norm1, attention.qkv), (block.norm2, mlp.up)):
            c = _spread(g, len(norm.weight))
            norm.weight.mul_(c)
            norm.bias.mul_(c)
            reader.weight.div_(c)
        width = attention.out.in_features
        c = _spread(g, width)
        attention.qkv.weight[2 * width :].mul_(c[:, None])
        attention.qkv.bias[2 * width :].mul_(c)
        attention.out.weight.div_(c)


def char_gpt(seed: int) -> Net:
    """Characters of English prose and Python source, half the windows each; two layers, width 64, eight heads."""
    context, batch, sources = 96, 16, []
    for source in (text.english(), text.python_source()):
        tokens = text.encode(source.text)
        n = len(tokens)
        sources.append((tokens[: n * 9 // 10], tokens[n * 9 // 10 : n * 19 // 20], tokens[n * 19 // 20 :]))

    def windows(part: int, counts: tuple[int, int], g: torch.Generator) -> Batch:
        rows = []
        for tokens, count in zip((s[part] for s in sources), counts, strict=True):
            at = torch.randint(len(tokens) - context - 1, (count,), generator=g)
            rows.append(tokens[at[:, None] + torch.arange(context + 1)].long())
        both = torch.cat(rows)
        return both[:, :-1], both[:, 1:]

    def batches() -> Iterator[Batch]:
        g = torch.Generator().manual_seed(seed + 1000)
        while True:
            yield windows(0, (batch // 2, batch // 2), g)

    def held(part: int) -> list[Batch]:
        g = torch.Generator().manual_seed(77 + part)  # the same windows for all seeds
        return [windows(part, (32, 32), g) for _ in range(8)]

    def model(narrow: bool) -> nn.Module:
        sizes = {"width": 32, "heads": 4, "mlp": 128} if narrow else {"width": 64, "heads": 8, "mlp": 256}
        return GPT(GPTConfig(layers=2, context=context, **sizes), seed=seed)

    return Net(
        k=4, steps=800, rate=4e-3, decay=0.01, model=model, batches=batches,
        held={"validation": held(1), "test": held(2)},
        slices=lambda part: {
            "English": [(x[:24], y[:24]) for x, y in part[:1]], "Python": [(x[32:56], y[32:56]) for x, y in part[:1]]
        },
        accuracy=False, rescale=rescale_gpt, w_in=lambda name: "mlp.up" in name, find=24,
    )  # fmt: skip


# ---- modular addition ------------------------------------------------------------------------------------------------
class Adder(nn.Module):
    """Two numbers in, their sum modulo p out: summed embeddings, two hidden ReLU layers."""

    def __init__(self, p: int, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Embedding(p, width), nn.Embedding(p, width)
        self.one, self.two, self.out = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, p)
        for table in (self.first, self.second):
            nn.init.normal_(table.weight, std=0.5)

    def forward(self, x: Tensor) -> Tensor:
        """x int64 [batch, 2] -> logits [batch, p]."""
        h = self.first(x[:, 0]) + self.second(x[:, 1])
        out: Tensor = self.out(F.relu(self.two(F.relu(self.one(F.relu(h))))))
        return out


@torch.no_grad()
def rescale_adder(model: Any, g: torch.Generator) -> None:
    layers = (model.one, model.two, model.out)
    for first, second in itertools.pairwise(layers):
        c = _spread(g, first.out_features)
        first.weight.mul_(c[:, None])
        first.bias.mul_(c)
        second.weight.div_(c)


def modular_addition(seed: int, p: int = 113) -> Net:
    """a + b modulo p from 80 % of all pairs."""
    pairs = torch.cartesian_prod(torch.arange(p), torch.arange(p))
    order = torch.randperm(p * p, generator=torch.Generator().manual_seed(seed))
    pairs, sums = pairs[order], pairs[order].sum(1) % p
    n, m = p * p * 8 // 10, p * p // 10

    def batches() -> Iterator[Batch]:
        g = torch.Generator().manual_seed(seed + 1000)
        while True:
            i = torch.randint(n, (512,), generator=g)
            yield pairs[i], sums[i]

    def slices(part: list[Batch]) -> dict[str, list[Batch]]:
        x, y = part[0]
        return {f"sum in quarter {q}": [(x[y * 4 // p == q], y[y * 4 // p == q])] for q in range(4)}

    return Net(
        k=4, steps=4000, rate=3e-3, decay=1.0, model=lambda narrow: Adder(p, 64 if narrow else 128), batches=batches,
        held={"validation": [(pairs[n : n + m], sums[n : n + m])], "test": [(pairs[n + m :], sums[n + m :])]},
        slices=slices, accuracy=True, rescale=rescale_adder, find=2,
    )  # fmt: skip


# ---- CNN on digits ---------------------------------------------------------------------------------------------------
class Cnn(nn.Module):
    """8 x 8 digits: three convolutions, mean over positions, one hidden layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, 1, 8, 8] -> logits [batch, 10]."""
        out: Tensor = self.body(x)
        return out


@torch.no_grad()
def rescale_cnn(model: Any, g: torch.Generator) -> None:
    layers = [m for m in model.body if isinstance(m, nn.Conv2d | nn.Linear)]
    for first, second in itertools.pairwise(layers):
        c = _spread(g, len(first.weight))
        first.weight.mul_(c.view(-1, *[1] * (first.weight.ndim - 1)))
        first.bias.mul_(c)
        second.weight.div_(c.view(1, -1, *[1] * (second.weight.ndim - 2)))


def cnn(seed: int) -> Net:
    """The digits of the MLP's task, through convolutions; channels, hidden neurons and classes are divided."""
    from frontier_tasks import digits

    splits = {name: (x.view(-1, 1, 8, 8), y) for name, (x, y) in digits(seed).splits.items()}

    def batches() -> Iterator[Batch]:
        x, y = splits["train"]
        g = torch.Generator().manual_seed(seed + 1000)
        while True:
            i = torch.randint(0, len(x), (64,), generator=g)
            yield x[i], y[i]

    return Net(
        k=4, steps=1000, rate=3e-3, decay=0.0, model=lambda narrow: Cnn(16 if narrow else 32), batches=batches,
        held={"validation": [splits["validation"]], "test": [splits["test"]]},
        slices=lambda part: {str(c): [(x[y == c], y[y == c]) for x, y in part] for c in range(10)},
        accuracy=True, rescale=rescale_cnn, graph={"include_inputs": False}, find=16,
    )  # fmt: skip


NETS: dict[str, Callable[[int], Net]] = {"char_gpt": char_gpt, "modular_addition": modular_addition, "cnn": cnn}
