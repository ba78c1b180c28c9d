"""The validator of Gomory-Hu trees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from modcut._problem import Problem, problem
from modcut._require import require
from modcut.testing.references import edge_list, igraph_tree_weights, reference_tree
from modcut.tree import CutTree


@dataclass(frozen=True)
class Validation:
    """What :func:`validate_cut_tree` compared; it exists only for trees that passed."""

    n: int
    edges: int
    reference: str
    """Where the trusted weights came from."""
    worst_cut: float
    """Largest relative difference between an edge's weight and its induced cut."""
    worst_weight: float
    """Largest relative difference to the trusted tree's weights."""


# Values are compensated sums of the original weights, in float64 whatever the dtype: summing again differs by rounding.
_CUT_TOLERANCE = 1e-12
# Weights may exceed the minimum by the exactness contract (1e-12 and 1e-6), igraph's by its own rounding.
_WEIGHT_TOLERANCE = {torch.int64: 0.0, torch.float64: 1e-9, torch.float32: 2e-6}
_SLOW_LIMIT = 40
_DIRECT_SECONDS = 30.0  # estimated; all at once takes some 60 bytes per edge


def validate_cut_tree(T: CutTree, g: Any, reference: CutTree | float | None = None, **how: Any) -> Validation:
    """Prove that ``T`` is a Gomory-Hu tree of ``g``, or raise.

    A tree whose edges (1) weigh what their induced cuts weigh, re-summed from ``g``, and (2) have together the weight
    of a trusted tree, is a Gomory-Hu tree. Proof: let m(u, v) be the minimum cuts and c(u, v) the lightest edge on T's
    path; by (1) c >= m. T is a maximum spanning tree for c, a trusted tree R one for m. Hence w(R) = sum over R of m
    <= sum over R of c <= w(T), and (2) makes c = m on R's edges and R a maximum spanning tree for c too, so c = m for
    all pairs. The sorted weights of all Gomory-Hu trees of a graph are equal, so they are compared one by one where
    ``reference`` is a tree: small weights then count as much as large ones. A tree that says it is not exact may exceed
    them by the gap that it states.

    Args:
        T: the tree.
        g: its graph, in any form :func:`modcut.gomory_hu_tree` takes; cuts cost O(n edges) in all, a star O(edges).
        reference: a trusted tree, or the weight of one. By default :func:`reference_tree` (exact arithmetic) for up to
            40 vertices, igraph above.
        **how: ``bipartite`` and ``symmetrize``, as for :func:`modcut.gomory_hu_tree`.

    Raises:
        AssertionError: it is not one, with the first edge or weight that is wrong.
    """
    p = problem(g, **how)
    if T.n != p.n:
        raise AssertionError(f"the tree has {T.n} vertices, the graph {p.n}")
    edges, (induced, rounding) = T.edges.tolist(), _induced_cuts(p, T)
    worst_cut = 0.0
    for v in edges:
        weight, cut = float(T.weight[v]), float(induced[v])
        gap = _relative(weight, cut)
        worst_cut = max(worst_cut, gap)
        if gap > _CUT_TOLERANCE * (not p.integer) and abs(weight - cut) > float(rounding[v]):
            raise AssertionError(
                f"not a cut tree: edge {v} - {int(T.parent[v])} weighs {weight!r}, but the cut it induces is {cut!r}"
            )
    if T.exact and not torch.equal(T.lower, T.weight):
        raise AssertionError("the tree says that it is exact, but its lower bounds differ from its weights")
    weights = np.sort(T.weight[T.edges].numpy())
    trusted, name = _trusted(p, g, reference, how)
    if trusted.size == 1 != weights.size:
        weights = np.array([weights.sum()])
    gaps = [_relative(a, b) for a, b in zip(weights.tolist(), trusted.tolist(), strict=True)]
    worst_weight = max(gaps, default=0.0)
    admitted = (
        0.0 if T.exact else T.stats.gap * (1 + 1e-9)
    )  # c >= m >= (1 - gap) c for all pairs, hence for sorted weights too
    if worst_weight > max(admitted, _WEIGHT_TOLERANCE[p.dtype]):
        i = int(np.argmax(gaps))
        raise AssertionError(f"sorted weight {i} is {weights[i]!r}, in the trusted tree ({name}) it is {trusted[i]!r}")
    return Validation(T.n, len(edges), name, worst_cut, worst_weight)


def _induced_cuts(p: Problem, T: CutTree) -> tuple[Any, Any]:
    """The cut that every edge induces, [n], and what rounding may have added to it, [n].

    One sum over the edges of the graph for every edge of the tree that is no leaf: nothing is subtracted. Where that
    would be too many, all at once: a subtree's cut is its strength without twice what lies inside, and an edge lies
    inside the subtrees of all vertices above its ends' lowest common one. That is exact for integers; for floats the
    differences round, by at most a few units in the last place of the subtree's strength.
    """
    degree, size = p.degree(), T.subtree_sums(torch.ones(T.n, dtype=torch.int64))
    inner = [v for v in T.edges.tolist() if size[v] != 1]
    entries = sum(b.values.numel() for b in p.blocks) + (p.csr.nnz if p.csr is not None else 0)
    if len(inner) * (3e-9 * entries + 150e-9 * T.n) <= _DIRECT_SECONDS:
        induced = degree.clone()
        for v in inner:
            induced[v] = p.cut_value(T.side(v))
        return induced, torch.zeros(T.n, dtype=torch.float64)
    pairs, capacity = edge_list(p)
    weight = torch.from_numpy(capacity).to(degree.dtype)
    inside = torch.zeros_like(degree).index_add_(0, torch.from_numpy(_meeting_points(T, pairs)), weight)
    volume = T.subtree_sums(degree)
    slack = torch.zeros(T.n, dtype=torch.float64) if p.integer else 1e-12 * volume
    return volume - 2 * T.subtree_sums(inside), slack


def _meeting_points(T: CutTree, pairs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The lowest common vertex above each pair's ends, [m], by doubling steps; O((n + m) log depth)."""
    depth = np.array(T.depth)
    parent = T.parent.numpy().copy()
    parent[T.root] = T.root
    jumps = [parent]
    while 2 ** len(jumps) <= int(depth.max(initial=0)):
        jumps.append(jumps[-1][jumps[-1]])
    x, y = pairs[:, 0].copy(), pairs[:, 1].copy()
    swap = depth[x] < depth[y]
    x[swap], y[swap] = y[swap], x[swap]
    for k in reversed(range(len(jumps))):
        deeper = depth[x] - depth[y] >= 2**k
        x[deeper] = jumps[k][x[deeper]]
    for k in reversed(range(len(jumps))):
        apart = jumps[k][x] != jumps[k][y]
        x[apart], y[apart] = jumps[k][x[apart]], jumps[k][y[apart]]
    same = x == y
    return np.asarray(np.where(same, x, parent[x]))


def _relative(a: float, b: float) -> float:
    return 0.0 if a == b else abs(a - b) / max(abs(a), abs(b))


def _trusted(p: Problem, g: Any, reference: CutTree | float | None, how: dict[str, Any]) -> tuple[Any, str]:
    """Sorted weights of a trusted tree (or their sum alone), and where they came from."""
    if isinstance(reference, CutTree):
        return np.sort(reference.weight[reference.edges].numpy()), "given tree"
    if reference is not None:
        return np.array([float(reference)]), "given weight"
    if p.n <= _SLOW_LIMIT:
        slow = reference_tree(g, **how)
        return np.sort(slow.weight[slow.edges].numpy()), "augmenting paths in exact arithmetic"
    ig = require("igraph", extra="test", why=f"a trusted tree of {p.n} vertices")
    return np.sort(np.array(igraph_tree_weights(ig, p))), "igraph"
