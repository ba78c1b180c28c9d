"""Kinds of window as exact cuts: the Gomory-Hu tree of the graph that joins windows which use the same units.

Units overlap (every skill needs some of what the others need), windows do not: a graph of units has no small cut, the
graph of windows has one for every kind. Windows are joined to their nearest neighbours in the leading directions of
usage; the tree's edges are exact minimum cuts, ranked by cut / volume. Under shuffled usage the tree is a star: no edge
but single windows, conductance 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modcut.graph.types import WeightGraph
from modcut.skills.kinds import FEWEST, leading

CLEAR = 0.05
"""Conductance below which an edge counts: on 15 networks of 2 to 5 skills (seeds 0-2 of benchmarks/skill_trees.py)
the edges that part skills had at most .003, shuffled usage 1."""
SMALLEST = 0.02
"""Share of the windows below which a part is no kind: edges next to each other cut off nearly the same windows."""


@dataclass(frozen=True, eq=False)
class WindowTree:
    """An exact Gomory-Hu tree on windows, its edges ranked by cut / volume."""

    tree: Any
    """:class:`modcut.tree.CutTree` on the windows."""
    edges: Tensor
    """int64: tree edges (their lower window), best first."""
    conductance: list[float]
    """Cut / smaller volume of those edges; 1 is what a single window has."""

    def labels(self, k: int | None = None) -> Tensor:
        """Return the parts left by cutting the best edges, int64 [windows].

        An edge that would leave a part of fewer than 8 windows, or 2 % of them, is passed over. Without ``k``, every
        edge below :data:`CLEAR` is cut, and one part is an answer.
        """
        n = int(self.tree.n)
        if k is not None and not 1 <= k <= n:
            raise ValueError(f"k must be between 1 and the number of windows ({n}), got {k}")
        names = torch.zeros(n, dtype=torch.int64)
        least = max(FEWEST // 2, round(SMALLEST * n))
        for edge, conductance in zip(self.edges.tolist(), self.conductance, strict=True):
            if (k is None and conductance >= CLEAR) or (k is not None and int(names.max()) + 1 >= k):
                break
            finer = torch.unique(names * 2 + self.tree.side(edge).long(), return_inverse=True)[1]
            if int(finer.max()) > int(names.max()) and int(torch.bincount(finer).min()) >= least:
                names = finer
        return names


def window_tree(z: Tensor, *, directions: int = 16, neighbours: int = 10) -> WindowTree:
    """Return the exact cut tree of windows by usage.

    Args:
        z: float [windows, units], standardised usage (:func:`modcut.clustering.unit_profiles`).
        directions: Leading directions of usage in which windows are compared.
        neighbours: A window is joined to so many nearest ones, and to those that it is nearest to, by
            ``exp(-d^2 / (r_i r_j))`` with r the distance of the last neighbour.

    Raises:
        ValueError: z is not a finite matrix; fewer than 16 windows; neighbours out of range.

    Complexity: one eigendecomposition O(windows^3), then an exact tree of ``windows * neighbours`` edges.
    """
    from modcut.cuts import gomory_hu_tree

    if z.ndim != 2 or not bool(torch.isfinite(z).all()):
        raise ValueError(f"z must be a finite matrix [windows, units], got shape {list(z.shape)}")
    n = z.shape[0]
    if n < FEWEST:
        raise ValueError(f"z must have at least {FEWEST} windows, got {n}")
    if not 1 <= neighbours < n:
        raise ValueError(f"neighbours must be between 1 and windows - 1 = {n - 1}, got {neighbours}")
    x = z.double().cpu()
    place = x @ torch.from_numpy(leading(x.numpy(), directions)[1].copy())
    distance = torch.cdist(place, place)
    distance.fill_diagonal_(torch.inf)
    reach = distance.topk(neighbours, largest=False).values[:, -1].clamp_min(1e-12)
    near = (distance <= reach[:, None]) | (distance <= reach[None])
    strength = torch.where(near, torch.exp(-distance.square() / (reach[:, None] * reach[None])), 0.0)
    graph = WeightGraph.from_matrix((strength + strength.T) / 2)
    tree = gomory_hu_tree(graph)
    edges, conductance = tree.edges_by_conductance(graph)
    return WindowTree(tree, edges, conductance.tolist())
