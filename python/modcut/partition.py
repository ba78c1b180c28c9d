"""A partition of a graph's vertices into modules."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from modcut.graph.types import WeightGraph


@dataclass(frozen=True)
class Module:
    """One module: a set of vertices."""

    index: int
    units: Tensor
    """int64 [size]: vertex ids."""

    @property
    def size(self) -> int:
        """Number of vertices."""
        return int(self.units.numel())


@dataclass(frozen=True, eq=False)
class Partition:
    """Labels of the vertices of ``graph``; every vertex is in one module (whole attention heads share one label)."""

    labels: Tensor
    """int64 [n], values 0 .. k-1."""
    graph: WeightGraph
    k: int

    @property
    def modules(self) -> tuple[Module, ...]:
        """The modules, in label order."""
        return tuple(Module(i, torch.nonzero(self.labels == i).flatten()) for i in range(self.k))
