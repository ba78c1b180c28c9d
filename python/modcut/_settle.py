"""The last step of a cut tree over floats: every edge weighs exactly the cut that it induces.

The engine rounds capacities to 60 bits below the strength of a flow's source. A vertex held by less than that lands on
either side of a cut, which leaves that cut's value as it is; but a much lighter edge beside it may then induce another
cut than the one that was measured. Here such edges are found by re-summing all induced cuts, mended by moving what lies
on the wrong side, and, where that fails, given the weight that they really induce, so that nobody calls them exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from modcut._problem import ENTRIES, Problem, merged
from modcut.tree import CutTree

_RESUMMED = 1e-13  # two sums of the same positive float64 terms differ by less, however many there are in practice
_REPAIRS = 50  # each costs a flow and a pass over the weights


def settled(p: Problem, tree: CutTree, side_of: Callable[[int, int], Tensor]) -> CutTree:
    """Return a tree whose weights are its induced cuts, with its proven lower bounds; the same one where it has them.

    ``side_of(u, v)`` gives the side of u (bool [n]) of a minimum cut between two vertices. Lower bounds stay proven:
    the minimum cut between a moved vertex and its new parent is at least the smallest bound on the path that it had.
    """
    induced, excess = _excess(p, tree)
    tried: set[frozenset[int]] = set()
    for _ in range(_REPAIRS):
        ends = {v: frozenset((v, int(tree.parent[v]))) for v in torch.nonzero(excess > 0).flatten().tolist()}
        wrong = [v for v in ends if ends[v] not in tried]
        if not wrong:
            break
        v = min(wrong, key=lambda x: (float(induced[x]), x))
        tried.add(ends[v])
        moved = _moved(tree, v, side_of(v, int(tree.parent[v])))
        if moved is None:
            continue
        new_induced, new_excess = _excess(p, moved)
        if float(new_excess.sum()) < float(excess.sum()):
            tree, induced, excess = moved, new_induced, new_excess
    weight = torch.where(excess != 0, induced, tree.weight)
    return replace(tree, weight=weight, lower=torch.minimum(tree.lower, weight))


def _excess(p: Problem, tree: CutTree) -> tuple[Tensor, Tensor]:
    """The cuts that the edges induce, and how far these are, relatively, from the weights (0.0 up to rounding), [n]."""
    induced = induced_cuts(p, tree)
    gap = (induced - tree.weight).abs()
    off = torch.where(gap > _RESUMMED * tree.weight, gap / torch.maximum(induced, tree.weight), 0.0)
    off[tree.root] = 0.0
    return induced, off


def _rooted(tree: CutTree, v: int) -> CutTree:
    """The same tree with ``v`` as its root."""
    parent, weight, lower, code = (x.clone() for x in (tree.parent, tree.weight, tree.lower, tree.certified))
    x = v
    while (above := int(tree.parent[x])) >= 0:
        parent[above], weight[above], lower[above], code[above] = x, tree.weight[x], tree.lower[x], tree.certified[x]
        x = above
    parent[v], code[v] = -1, 0
    weight[v] = lower[v] = float("inf")
    return replace(tree, parent=parent, weight=weight, lower=lower, certified=code)


def _moved(tree: CutTree, v: int, side: Tensor) -> CutTree | None:
    """The tree with everything that ``side`` puts on the other side of edge ``v`` hung there; None if nothing moves."""
    above = int(tree.parent[v])
    tree = _rooted(tree, v)  # so that nothing that moves is above where it goes
    wrong = side == tree.side(above)
    parent, lower = tree.parent.clone(), tree.lower.clone()
    for top in torch.nonzero(wrong & ~wrong[tree.parent.clamp(min=0)]).flatten().tolist():
        home = v if side[top] else above
        lower[top] = torch.minimum(lower[top], _weakest(tree, int(tree.parent[top]), home))
        parent[top] = home
    if torch.equal(parent, tree.parent):
        return None
    return replace(tree, parent=parent, lower=torch.minimum(lower, tree.weight))


def _weakest(tree: CutTree, u: int, v: int) -> Tensor:
    """The smallest lower bound on the path between two vertices (inf for one and the same)."""
    bound = torch.tensor(float("inf"), dtype=torch.float64)
    while u != v:
        if tree.depth[u] < tree.depth[v]:
            u, v = v, u
        bound = torch.minimum(bound, tree.lower[u])
        u = int(tree.parent[u])
    return bound


def induced_cuts(p: Problem, tree: CutTree) -> Tensor:
    """The capacity between the two sides of every edge of a tree, re-summed from the weights, [n] (root: 0).

    Sums of positive terms only; O(edges + lengths of tree paths between vertices that are not leaves).
    """
    leaf = torch.ones(p.n, dtype=torch.bool)
    leaf[tree.parent[tree.edges]] = False
    leaf[tree.root] = False
    induced = torch.where(leaf, p.degree(), 0.0)
    inner = torch.nonzero(~leaf).flatten()
    if len(inner) > 1:  # a leaf joined with its parent changes no other edge's cut
        home = torch.where(leaf, tree.parent, torch.arange(p.n))
        depth, parent, total = np.array(tree.depth), tree.parent.numpy(), induced.numpy()
        for ends_x, ends_y, weights in _joined_edges(p, home, inner):
            x, y, w = ends_x.numpy(), ends_y.numpy(), weights.numpy()
            while len(w):  # up from both ends to where they meet
                step = depth[x] >= depth[y]
                np.add.at(total, np.where(step, x, y), w)
                x, y = np.where(step, parent[x], x), np.where(step, y, parent[y])
                apart = x != y
                x, y, w = x[apart], y[apart], w[apart]
    return induced


def _joined_edges(p: Problem, home: Tensor, inner: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The edges (x, y, float64 weight) between different homes, some homes' several edges possibly as one."""
    entries = sum(b.values.numel() for b in p.blocks)
    if len(inner) ** 2 <= max(entries, 2**20):
        number = torch.zeros(p.n, dtype=torch.int64)
        number[inner] = torch.arange(len(inner))
        q = torch.triu(merged(p.n, p.blocks, None, number[home], len(inner)), 1) if p.blocks else torch.zeros(0, 0)
        x, y = torch.nonzero(q).unbind(1)
        yield inner[x], inner[y], q[x, y].double()
    else:
        for b in p.blocks:
            step = max(1, ENTRIES // max(b.values.shape[1], 1))
            for i in range(0, b.values.shape[0], step):
                part = b.values[i : i + step]
                x, y = torch.nonzero(part).unbind(1)
                w = part[x, y].double()
                x, y = x + b.row_offset + i, y + b.col_offset
                keep = (home[x] != home[y]) & ((x < y) | (not b.symmetric))
                yield home[x[keep]], home[y[keep]], w[keep]
    if p.csr is not None:
        coo = p.csr.tocoo()
        x, y = (torch.from_numpy(c.astype(np.int64)) for c in coo.coords)
        keep = (x < y) & (home[x] != home[y])
        yield home[x[keep]], home[y[keep]], torch.from_numpy(coo.data)[keep].double()
