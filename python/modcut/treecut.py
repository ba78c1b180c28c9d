"""The exact Gomory-Hu tree on co-usage capacities, read as skills: its edges ranked by cut / volume."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modcut.graph.contract import Contracted, contract
from modcut.graph.edges import with_edge
from modcut.graph.statistics import Statistics
from modcut.graph.types import WeightGraph


@dataclass(frozen=True, eq=False)
class TreeCut:
    """An exact Gomory-Hu tree on the co-usage capacities of units, its edges ranked by cut / volume."""

    tree: Any
    """:class:`modcut.tree.CutTree` on the units (neurons, whole heads, residual channels)."""
    contracted: Contracted
    """The graph of units, and which unit every vertex of the model's graph is."""
    edges: Tensor
    """int64: tree edges (their lower unit), best first."""
    conductance: list[float]
    """Cut / smaller volume of those edges; 1 is what any single unit has."""

    def side(self, rank: int = 0) -> Tensor:
        """Return one side of the ``rank``-th best edge, bool [n] over the model's vertices (False where left out)."""
        return self.contracted.expand(self.tree.side(int(self.edges[rank])), False)

    def smaller(self, rank: int = 0) -> int:
        """Number of units on the smaller side of the ``rank``-th best edge."""
        side: Tensor = self.tree.side(int(self.edges[rank]))
        return min(int(side.sum()), int((~side).sum()))

    def labels(self, k: int) -> Tensor:
        """Return the parts left by cutting the k - 1 best edges, int64 [n]; -1 where left out or without strength."""
        if not 1 <= k <= self.tree.n:
            raise ValueError(f"k must be between 1 and the number of units ({self.tree.n}), got {k}")
        # Which of the cut edges a unit lies below is a name for its part.
        names = torch.zeros(self.tree.n, dtype=torch.int64)
        for edge in self.edges[: k - 1].tolist():
            names = torch.unique(names * 2 + self.tree.side(edge).long(), return_inverse=True)[1]
        names[self.contracted.graph.degree() <= 0] = -1
        return self.contracted.expand(names, -1)


def tree_cut(graph: WeightGraph, statistics: Statistics | None = None, *, power: float = 4) -> TreeCut:
    """Return the exact Gomory-Hu tree on co-usage capacities between units, its edges ranked by cut / volume.

    Inputs and outputs are left out (every skill reads and writes them), heads are one vertex each. Read it beside the
    same call on :func:`modcut.graph.edges.shuffled` statistics: weak cuts appear by chance. Where every edge is a
    single vertex's (a star), the best conductance is 1 and there is nothing to see.
    """
    from modcut.cuts import gomory_hu_tree

    contracted = contract(with_edge(graph, "cousage", statistics, power=power))
    tree = gomory_hu_tree(contracted.graph)
    edges, conductance = tree.edges_by_conductance(contracted.graph)
    return TreeCut(tree, contracted, edges, conductance.tolist())
