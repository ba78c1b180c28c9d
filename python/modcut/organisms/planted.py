"""Nets whose modules are planted in the weights: tier T0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modcut._together import generator_of
from modcut.graph.trace import weight_graph
from modcut.graph.types import WeightGraph


@dataclass(frozen=True, eq=False)
class Planted:
    """A random net with blocks; see :func:`planted`."""

    model: nn.Sequential
    graph: WeightGraph
    labels: Tensor
    """int64 [n]: the block of every vertex, inputs and outputs included."""
    rho: float
    record: dict[str, Any]


def planted(rho: float, seed: int = 0, *, sizes: Sequence[int] = (32, 48, 48, 48, 32), k: int = 4) -> Planted:
    """Return a ReLU net with Gaussian weights, those between different blocks ``rho`` times as strong; units permuted.

    Only strength tells the blocks apart: every weight is there, of random sign. At ``rho`` 1 nothing is planted.

    Args:
        rho: standard deviation of weights between blocks over that inside them, 0 to 1.
        seed: of weights and permutation.
        sizes: units of every layer; each is dealt evenly to the blocks.
        k: number of blocks.

    Raises:
        ValueError: ``rho`` outside [0, 1]; ``k`` larger than a layer.
    """
    if not 0 <= rho <= 1:
        raise ValueError(f"rho must be in [0, 1], got {rho}")
    if k < 1 or k > min(sizes):
        raise ValueError(f"k must be in [1, {min(sizes)}] (the smallest layer), got {k}")
    g = generator_of(seed, 2)
    labels = [(torch.arange(n) % k)[torch.randperm(n, generator=g)] for n in sizes]
    layers: list[nn.Module] = []
    for a, b, here, there in zip(sizes[:-1], sizes[1:], labels[:-1], labels[1:], strict=True):
        linear = nn.Linear(a, b)
        with torch.no_grad():
            same = there[:, None] == here[None, :]
            strength = torch.where(same, 1.0, rho)
            linear.weight.copy_(torch.randn(b, a, generator=g) * strength * (a / k) ** -0.5)
            linear.bias.zero_()
        layers += [linear, nn.ReLU()]
    model = nn.Sequential(*layers[:-1]).eval()
    graph = weight_graph(model, torch.zeros(2, sizes[0]))
    found = torch.empty(graph.n, dtype=torch.int64)
    for m, here, there in zip(graph.matrices, labels[:-1], labels[1:], strict=True):
        found[m.col_vertex], found[m.row_vertex] = here, there
    return Planted(
        model, graph, found, rho, {"kind": "planted", "rho": rho, "seed": seed, "sizes": list(sizes), "k": k}
    )


__all__ = ["Planted", "planted"]
