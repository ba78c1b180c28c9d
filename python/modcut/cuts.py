"""Minimum cuts and Gomory-Hu trees of weighted graphs, weight matrices and models.

Every function takes a graph in any form :func:`modcut._problem.problem` reads, with ``bipartite=True`` for a
rectangular matrix and ``symmetrize=True`` for (W + W.T) / 2. Capacities are undirected, self-loops do not count. What
lies on another device is copied to the host for now. Every value is re-summed from the original weights over the edges
of the cut, and comes with a proven lower bound; ``exact`` means that the two meet (within 1e-12 relative in float64,
1e-6 in float32, exactly in integers).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from modcut._arrays import as_labels, vertex
from modcut._batch import CutTrees, gomory_hu_trees
from modcut._engine import lightest, solve, threads_of, tree_of
from modcut._isolate import isolate
from modcut._problem import Problem, is_weight_graph, iter_blocks, merged, problem, unread
from modcut._recertify import recertified
from modcut._recheck import rechecked, remember
from modcut.tree import Cut, CutTree

__all__ = [
    "Cut",
    "CutTrees",
    "global_min_cut",
    "gomory_hu_tree",
    "gomory_hu_trees",
    "isolating_cuts",
    "max_flow",
    "min_cut",
    "quotient_matrix",
    "quotient_tree",
    "recertify",
]

_T = TypeVar("_T")


def max_flow(g: Any, s: int, t: int, *, bipartite: bool = False, symmetrize: bool = False, threads: int = 1) -> Cut:
    """Return a maximum flow's value between ``s`` and ``t`` with the minimum cut that proves it.

    Args:
        g: graph of n vertices: a matrix, a WeightGraph or a model.
        s: source vertex, in [0, n).
        t: sink vertex, in [0, n), not ``s``.
        bipartite: ``g`` is [m, n]: its rows and columns are different vertices.
        symmetrize: take (W + W.T) / 2 of an asymmetric matrix.
        threads: worker threads; the result does not depend on it.

    Returns:
        ``.value`` (the cut's capacity), ``.lower`` (proven by the flow; equal to ``.value`` where ``.exact``, the gap
        that the tolerance allows being in ``.stats["gap"]``), ``.side`` (bool [n], True on the side of s), ``.exact``.
        O(n^2 sqrt(edges)) at worst, a few passes over the edges on dense networks.

    Raises:
        TypeError, ValueError: see :func:`modcut._problem.problem`; s == t; no such vertex.
        RuntimeError: the compiled engine is missing.
    """
    return _read_once(g, lambda p: solve(p, s, t, threads), bipartite, symmetrize)


def min_cut(g: Any, s: int, t: int, *, bipartite: bool = False, symmetrize: bool = False, threads: int = 1) -> Cut:
    """Return a minimum cut between ``s`` and ``t``: the same computation and result as :func:`max_flow`."""
    return max_flow(g, s, t, bipartite=bipartite, symmetrize=symmetrize, threads=threads)


def gomory_hu_tree(
    g: Any,
    method: Literal["exact", "approx"] = "exact",
    eps: float = 0.0,
    seed: int = 0,
    *,
    certificates: bool = True,
    bipartite: bool = False,
    symmetrize: bool = False,
    threads: int = 1,
) -> CutTree:
    """Return the Gomory-Hu tree: the minimum cut between every two of the n vertices in n - 1 edges.

    Args:
        g: graph of n vertices: a matrix, a WeightGraph or a model; n = 0, 1, 2 and disconnected graphs are fine.
        method: "exact", or "approx" for a tree whose weights are proven to be within a factor 1 + eps of the minimum
            cuts: ``lower <= minimum <= weight <= (1 + eps) * lower`` at every edge, and so for every pair. A flow may
            then stop, and a certificate suffice, at 1 / (1 + eps) of the cut. With eps = 0 the tree is the exact one.
        eps: the factor for "approx", in [0, 1]; must be 0 for "exact".
        seed: recorded with the result; nothing here is random.
        certificates: prove cuts without flows where the bounds and reductions of ``docs/mathematics`` reach; False runs
            every flow.
        bipartite: ``g`` is [m, n]: its rows and columns are different vertices.
        symmetrize: take (W + W.T) / 2 of an asymmetric matrix.
        threads: worker threads; the result does not depend on it.

    Returns:
        A :class:`modcut.CutTree`. At worst n - 1 flows (Gusfield's method, with the swap that makes it a cut tree).

    Raises:
        TypeError, ValueError: see :func:`modcut._problem.problem`; unknown method; bad eps.
        RuntimeError: the compiled engine is missing.
    """
    if method not in ("exact", "approx"):
        raise ValueError(f'method must be "exact" or "approx", got {method!r}')
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0.0 <= eps <= 1.0:
        raise ValueError(f"eps must be a number in [0, 1], got {eps!r}")
    if method == "exact" and eps != 0.0:
        raise ValueError(f'eps must be 0 with method="exact", got {eps:g}; use method="approx"')
    seed = operator.index(seed)

    def made(p: Problem) -> CutTree:
        tree = tree_of(p, certificates, threads, seed, float(eps))
        remember(p, tree)
        return tree

    return _read_once(g, made, bipartite, symmetrize)


def recertify(
    T: CutTree,
    g_new: Any,
    *,
    certificates: bool = True,
    bipartite: bool = False,
    symmetrize: bool = False,
    threads: int = 1,
) -> CutTree:
    """Return a Gomory-Hu tree of ``g_new``, taking from the tree ``T`` of slightly other weights all that still holds.

    Every edge of the result is proven for the new weights, as in a new tree: by the engine's certificates (for dense
    float weights one reading where they lie, with the strengths in ``T`` for a guess; otherwise a few passes), or by
    one flow that reaches the cut that an edge of ``T`` induces now. Edges that fail are drawn together and made anew.
    Where more than one vertex in eight would need a flow, a new tree is computed. Nothing of ``T`` is trusted.

    Args:
        T: a cut tree of as many vertices, of any earlier weights; from an earlier call of this function too.
        g_new: the graph now, in any form :func:`gomory_hu_tree` takes.
        certificates: as there.
        bipartite: as there.
        symmetrize: as there.
        threads: as there.

    Returns:
        The tree; its ``stats`` say how many edges were ``kept`` as they were, ``repaired`` or ``recomputed``.

    Raises:
        TypeError: ``T`` is no :class:`modcut.CutTree`, or ``g_new`` no graph.
        ValueError: ``g_new`` has another number of vertices, or see :func:`modcut._problem.problem`.
    """
    if not isinstance(T, CutTree):
        raise TypeError(f"T must be a modcut.CutTree, got {type(T).__name__}")
    if certificates and not symmetrize:
        made = rechecked(g_new, T, bipartite, threads_of(threads))
        if made is not None:
            return made
    p = problem(g_new, bipartite=bipartite, symmetrize=symmetrize)
    if p.n != T.n:
        raise ValueError(f"g_new must have as many vertices as the tree ({T.n}), got {p.n}")
    made = recertified(p, T, certificates, threads)
    remember(p, made)
    return made


def global_min_cut(g: Any, *, bipartite: bool = False, symmetrize: bool = False, threads: int = 1) -> Cut:
    """Return a minimum cut over all pairs. ``.s`` and ``.t`` are vertices of its two sides.

    Dense blocks are first tried with the tree's certificates, a few passes: where all vertices are proven, the weakest
    is the cut. Otherwise maximum adjacency scans shrink the graph until one vertex is left (Nagamochi and Ibaraki,
    1992; Stoer and Wagner, 1997; with the tests of Padberg and Rinaldi, 1990): no flow, O(edges log n) a scan, mostly a
    few scans, at worst n - 1. Exact as :func:`max_flow` is.

    Raises:
        ValueError: fewer than two vertices, or see :func:`modcut._problem.problem`.
    """
    p = problem(g, bipartite=bipartite, symmetrize=symmetrize)
    if p.n < 2:
        raise ValueError(f"g must have at least 2 vertices to be cut, got {p.n}")
    return lightest(p, threads)


def isolating_cuts(
    g: Any, terminals: Sequence[int] | Tensor, *, bipartite: bool = False, symmetrize: bool = False, threads: int = 1
) -> list[Cut]:
    """Return, for every terminal, a minimum cut between it and all other terminals, with the terminal's side.

    Sides are disjoint, and the smallest of their value. From 16 terminals on, ceil(log2 K) flows between halves of the
    K terminals first divide the graph into one region per terminal (Li and Panigrahi, 2020); then one flow per
    terminal, inside its region, whose outside is drawn together into one vertex. ``.t`` is the first of the other
    terminals; ``.stats`` holds the size of the region and the number of big flows. O(K + log K) flows at worst, those
    inside the regions together as large as the graph.

    Raises:
        TypeError, ValueError: fewer than two terminals, repeated ones, no such vertex; see :func:`max_flow`.
    """
    p = problem(g, bipartite=bipartite, symmetrize=symmetrize)
    chosen = [vertex(v, f"terminals[{i}]", p.n) for i, v in enumerate(terminals)]
    if len(chosen) < 2:
        raise ValueError(f"terminals must name at least 2 vertices, got {len(chosen)}")
    if len(set(chosen)) < len(chosen):
        twice = next(v for v in chosen if chosen.count(v) > 1)
        raise ValueError(f"terminals must be different vertices, got {twice} more than once")
    return isolate(p, chosen, threads)


def quotient_matrix(
    g: Any, labels: Any, *, k: int | None = None, bipartite: bool = False, symmetrize: bool = False
) -> Tensor:
    """Return the graph of modules: Q[a, b] is the sum of the capacities between vertices labelled a and labelled b.

    Q = Z.T W Z for the symmetric W with zero diagonal and Z the indicator of the labels, float64 [k, k]: the diagonal
    holds each inner edge twice, and row a sums to the volume (total strength) of module a. O(edges), block by block: a
    WeightGraph is never densified and only one of its blocks is in memory.

    Args:
        g: graph of n vertices: a matrix, a WeightGraph or a model.
        labels: int [n], or a :class:`modcut.Partition`; values in [0, k).
        k: number of modules; by default the largest label + 1 (or the partition's k).
        bipartite: ``g`` is [m, n]: its rows and columns are different vertices.
        symmetrize: take (W + W.T) / 2 of an asymmetric matrix.

    Raises:
        TypeError, ValueError: wrong labels, or see :func:`modcut._problem.problem`.
    """
    return _quotient(g, labels, k, bipartite, symmetrize).to(torch.float64)


def quotient_tree(
    g: Any,
    labels: Any,
    *,
    k: int | None = None,
    bipartite: bool = False,
    symmetrize: bool = False,
    threads: int = 1,
) -> CutTree:
    """Return the exact Gomory-Hu tree of the graph of modules (:func:`quotient_matrix`); vertex a is module a.

    Its cuts keep modules whole: the interfaces between groups of modules, over all routes and not only direct edges.
    """
    return tree_of(problem(_quotient(g, labels, k, bipartite, symmetrize)), True, threads, 0, 0.0)


def _read_once(g: Any, use: Callable[[Problem], _T], bipartite: bool, symmetrize: bool) -> _T:
    """Return ``use`` of the graph, checked by the engine as it reads it; where it refuses, checked and mended first."""
    try:
        p = None if symmetrize else unread(g, bipartite=bipartite)
        if p is not None:
            return use(p)
    except (TypeError, ValueError):
        pass  # problem() names what is wrong with the graph, and use() anything else, once more
    return use(problem(g, bipartite=bipartite, symmetrize=symmetrize))


def _quotient(g: Any, labels: Any, k: int | None, bipartite: bool, symmetrize: bool) -> Tensor:
    """Z.T W Z in int64 for integer graphs, else float64."""
    if isinstance(g, torch.nn.Module) or is_weight_graph(g):
        if isinstance(g, torch.nn.Module):
            import modcut  # the tracer lies above this layer: reached through its public name, when it is asked for

            g = modcut.weight_graph(g)
        sparse = any(b.weight.is_sparse for b in g.blocks)
        n, blocks, csr = int(g.n), iter(()) if sparse else iter_blocks(g), problem(g).csr if sparse else None
    else:
        p = problem(g, bipartite=bipartite, symmetrize=symmetrize)
        n, blocks, csr = p.n, iter(p.blocks), p.csr
    z, k = as_labels(labels, n, k)
    return merged(n, blocks, csr, z, k)
