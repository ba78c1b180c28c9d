"""The exact cut tree of a coarse graph: super-nodes of neurons, the cuts between them, and the parts they leave."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SUPERNODES = 32
"""Modules of s neurons show in a tree of K super-nodes where K is a few times their number; all neurons give a star."""


@dataclass(frozen=True)
class CoarseTree:
    """The best cuts of the exact Gomory-Hu tree on super-nodes."""

    node: Tensor
    """int64 [n]: the super-node of every vertex."""
    sides: Tensor
    """bool [cuts, K]: one side of each chosen tree edge."""
    trivial: float
    """Share of the tree's edges that cut a single super-node off (1: a star)."""

    @property
    def size(self) -> int:
        """Number of super-nodes."""
        return int(self.sides.shape[1])

    def labels(self) -> Tensor:
        """Return the parts that the chosen cuts leave, int64 [n]."""
        names = torch.zeros(self.size, dtype=torch.int64)
        for side in self.sides:
            names = torch.unique(names * 2 + side.long(), return_inverse=True)[1]
        return names[self.node]


def coarse_tree(node: Tensor, table: Tensor, k: int) -> CoarseTree:
    """Cut the graph of super-nodes: its exact tree, and the k - 1 best balanced edges by cut / volume.

    A side is balanced where its volume is at least 1 / (4 k) of the whole; where too few are, the best of the others
    follow. Ranked by conductance, never by value: the lightest cut is that of the weakest super-node.

    Args:
        node: int64 [n].
        table: strengths between super-nodes [K, K], symmetric.
        k: number of parts.
    """
    from modcut.cuts import gomory_hu_tree

    w = table.detach().double().cpu()
    w = (w + w.T) / 2
    volume = w.sum(1)
    inner = w - torch.diag(w.diagonal())
    tree = gomory_hu_tree(inner)
    sides = torch.stack([tree.side(int(e)) for e in tree.edges]) if tree.n > 1 else torch.zeros(0, 1, dtype=torch.bool)
    inside = sides.double() @ volume
    least = torch.minimum(inside, volume.sum() - inside)
    value = torch.stack([inner[s][:, ~s].sum() for s in sides]) if len(sides) else torch.zeros(0)
    conductance = torch.where(least > 0, value / torch.where(least > 0, least, 1.0), torch.inf)
    small = least < volume.sum() / (4 * k)
    # Balanced ones first, then by conductance (stable: equal edges keep their order).
    order = torch.argsort(conductance, stable=True)
    order = order[torch.argsort(small[order].long(), stable=True)]
    return CoarseTree(node.cpu(), sides[order[: k - 1]], float(tree.trivial_fraction))
