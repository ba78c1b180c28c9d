"""A hand-made net whose two modules are known: the ground truth of the reading and reporting tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modcut.graph.types import Block, Matrix, Space, Tap, WeightGraph
from modcut.partition import Partition

VOCAB, WIDTH = 20, 8


class TwoSkills(nn.Module):
    """Predicts the next letter of two interleaved alphabets: tokens 0-9 by units 0-3, tokens 10-19 by units 4-7."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.up = nn.Linear(WIDTH, WIDTH, bias=False)
        self.down = nn.Linear(WIDTH, VOCAB, bias=False)
        own = torch.zeros(VOCAB, WIDTH)
        own[:10, :4], own[10:, 4:] = 1.0, 1.0
        block = torch.zeros(WIDTH, WIDTH)
        block[:4, :4], block[4:, 4:] = 1.0, 1.0
        with torch.no_grad():
            self.embed.weight.copy_(torch.randn(VOCAB, WIDTH, generator=g) * own)
            self.up.weight.copy_(torch.randn(WIDTH, WIDTH, generator=g) * block)
            self.down.weight.copy_(torch.randn(VOCAB, WIDTH, generator=g) * own)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(self.embed(x))))


class Vectors(nn.Module):
    """Two regressions side by side: output 0 reads inputs 0-3 through units 0-3, output 1 inputs 4-7 through 4-7."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.up = nn.Linear(8, 8)
        self.down = nn.Linear(8, 2)
        block = torch.zeros(8, 8)
        block[:4, :4], block[4:, 4:] = 1.0, 1.0
        with torch.no_grad():
            self.up.weight.copy_(torch.rand(8, 8, generator=g) * block)
            self.up.bias.zero_()
            self.down.weight.copy_(torch.tensor([[1.0] * 4 + [0.0] * 4, [0.0] * 4 + [1.0] * 4]))
            self.down.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))


def partition_of(model: TwoSkills | Vectors) -> Partition:
    """The true partition, on a graph written by hand."""
    first = "input" if isinstance(model, Vectors) else "residual"
    outputs = model.down.weight.shape[0]
    spaces = (
        Space("in", 8, first, 0, family="in"),  # type: ignore[arg-type]
        Space("hidden", 8, "hidden", 8, family="hidden"),
        Space("out", outputs, "output", 16, family="out"),
    )
    vertex = [torch.arange(s.offset, s.offset + s.size) for s in spaces]
    matrices, blocks = [], []
    for name, rows, cols in (("up.weight", 1, 0), ("down.weight", 2, 1)):
        weight = model.get_parameter(name).detach()
        matrices.append(Matrix(name, weight, vertex[rows], vertex[cols]))
        index = [torch.arange(n)[:, None] for n in weight.shape]
        strength = lambda b: b.weight.detach().abs()  # noqa: E731
        blocks.append(Block(spaces[rows], spaces[cols], weight, name, index[0], index[1], strength))
    taps = (
        Tap("up", "input", -1, vertex[0]),
        Tap("down", "input", -1, vertex[1]),
        Tap("down", "output", -1, vertex[2]),
    )
    graph = WeightGraph(spaces, tuple(blocks), matrices=tuple(matrices), taps=taps)
    half = [torch.arange(s.size) >= s.size // 2 for s in spaces]
    return Partition(torch.cat(half).to(torch.int64), graph, 2)


def letters(windows: int = 24, seed: int = 0) -> dict[str, list[Tensor]]:
    """Two slices of text, one per alphabet."""
    g = torch.Generator().manual_seed(seed)
    return {
        "low": [torch.randint(0, 10, (windows, 12), generator=g)],
        "high": [torch.randint(10, 20, (windows, 12), generator=g)],
    }


def mixed(windows: int = 48, seed: int = 0) -> list[Tensor]:
    """Text in which both alphabets alternate freely."""
    return [torch.randint(0, VOCAB, (windows, 12), generator=torch.Generator().manual_seed(seed))]
