"""Minimum cuts and Gomory-Hu trees of weighted graphs, weight matrices and models.

Every function takes a graph in any form :func:`modcut._problem.problem` reads, with ``bipartite=True`` for a
rectangular matrix and ``symmetrize=True`` for (W + W.T) / 2. Capacities are undirected, self-loops do not count. What
lies on another device is copied to the host for now. Every value is re-summed from the original weights over the edges
of the cut, and comes with a proven lower bound; ``exact`` means that the two meet (within 1e-12 relative in float64,
1e-6 in float32, exactly in integers).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from modcut._arrays import as_labels, capsule, native, vertex
from modcut._problem import Problem, is_weight_graph, iter_blocks, merged, problem
from modcut._settle import settled
from modcut.tree import CERTIFICATES, Cut, CutTree, TreeStats

__all__ = [
    "Cut",
    "global_min_cut",
    "gomory_hu_tree",
    "isolating_cuts",
    "max_flow",
    "min_cut",
    "quotient_matrix",
    "quotient_tree",
]

_TREE_INTEGER = 2**53  # weights of trees are float64, which holds every integer up to here
_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}  # what "exact" may differ by, relative to the cut


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
    return _solve(problem(g, bipartite=bipartite, symmetrize=symmetrize), s, t, threads)


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
        method: "exact", or "approx" for a tree whose weights are proven to be within a factor 1 + eps. For now "approx"
            computes the exact tree, which meets every eps.
        eps: the factor for "approx", in [0, 1]; must be 0 for "exact".
        seed: recorded with the result; nothing here is random.
        certificates: prove stars without flows where the bounds of ``docs/mathematics`` reach; False runs every flow.
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
    return _tree(problem(g, bipartite=bipartite, symmetrize=symmetrize), certificates, threads, seed, float(eps))


def global_min_cut(g: Any, *, bipartite: bool = False, symmetrize: bool = False, threads: int = 1) -> Cut:
    """Return a minimum cut over all pairs: the lightest edge of the Gomory-Hu tree, whose cost it has.

    Raises:
        ValueError: fewer than two vertices, or see :func:`gomory_hu_tree`.
    """
    p = problem(g, bipartite=bipartite, symmetrize=symmetrize)
    if p.n < 2:
        raise ValueError(f"g must have at least 2 vertices to be cut, got {p.n}")
    tree = _tree(p, True, threads, 0, 0.0)
    v = int(torch.argmin(tree.weight))
    return tree.min_cut(v, int(tree.parent[v]))


def isolating_cuts(
    g: Any, terminals: Sequence[int] | Tensor, *, bipartite: bool = False, symmetrize: bool = False, threads: int = 1
) -> list[Cut]:
    """Return, for every terminal, a minimum cut between it and all other terminals, with the terminal's side.

    One flow per terminal, against the others tied to one extra vertex by edges too strong to be cut. ``.t`` is the
    first of the others.

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
    cuts = []
    for v in chosen:
        others = [u for u in chosen if u != v]
        cut = _solve(p.with_super_vertices([others]), v, p.n, threads)
        cuts.append(replace(cut, side=cut.side[: p.n].clone(), t=others[0]))
    return cuts


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
    return _tree(problem(_quotient(g, labels, k, bipartite, symmetrize)), True, threads, 0, 0.0)


# --- the engine -------------------------------------------------------------------------------------------------------


def _solve(p: Problem, s: Any, t: Any, threads: int) -> Cut:
    if p.n == 0:
        raise ValueError("g must have vertices s and t, got an empty graph")
    s, t = vertex(s, "s", p.n), vertex(t, "t", p.n)
    if s == t:
        raise ValueError(f"s and t must be different vertices, got {s} twice")
    side = torch.zeros(p.n, dtype=torch.bool)
    settings = {"threads": _threads(threads)}
    r = native().max_flow(p.n, p.native_blocks(), p.native_csr(), s, t, capsule(side), settings)
    known = ("value", "lower", "exact")
    value, lower = r["value"], min(r["lower"], r["value"])
    gap = float((value - lower) / value) if value > 0 else 0.0
    return Cut(
        value=p.number(value),
        side=side,
        # Exact means that the bounds meet up to the rounding of sums; that gap stays in stats["gap"].
        lower=p.number(value if r["exact"] else lower),
        exact=bool(r["exact"]),
        s=s,
        t=t,
        stats={key: value for key, value in r.items() if key not in known} | {"gap": gap},
    )


def _tree(p: Problem, certificates: bool, threads: int, seed: int, eps: float) -> CutTree:
    degree = p.degree() if p.integer else None
    if degree is not None and p.n and int(degree.max()) >= _TREE_INTEGER:
        raise ValueError(
            f"integer strengths must be below 2^53 for a tree (its weights are float64), got {int(degree.max())}; "
            "pass floats instead"
        )
    n = p.n
    parent = torch.full((n,), -1, dtype=torch.int64)
    weight = torch.full((n,), math.inf, dtype=torch.float64)
    lower = torch.full((n,), math.inf, dtype=torch.float64)
    certified = torch.zeros(n, dtype=torch.uint8)
    settings = {"certificates": bool(certificates), "threads": _threads(threads), "seed": seed}
    r: dict[str, Any] = {"flows": 0, "certified": 0, "passes": 0.0, "seconds": 0.0, "exact": True, "gap": 0.0}
    if n > 1:
        outputs = [capsule(x) for x in (parent, weight, lower, certified)]
        r = native().gomory_hu(n, p.native_blocks(), p.native_csr(), *outputs, settings)
    exact, gap = bool(r["exact"]), float(r["gap"])
    tree = CutTree(parent, weight, torch.minimum(lower, weight), certified, False, p.integer, seed, eps)
    if not p.integer and n > 2:
        tree = settled(p, tree, lambda u, v: _solve(p, u, v, threads).side)
        positive = (tree.parent >= 0) & (tree.weight > 0)
        gap = max(gap, float(torch.where(positive, 1 - tree.lower / tree.weight, 0.0).max()))
        exact = exact and gap <= _TOLERANCE[p.dtype]
    # Exact means that the bounds meet up to the rounding of sums; that gap stays in stats.gap.
    lower = tree.weight if exact else tree.lower
    certified, edges = tree.certified, tree.edges
    codes = certified[edges].tolist()
    counts = {name: codes.count(code) for code, name in CERTIFICATES.items() if code in codes}
    first = ("flows", "certified", "passes", "seconds", "gap", "exact", "root")
    stats = TreeStats(
        flows=int(r["flows"]),
        certified=int(r["certified"]),
        certified_by=counts,
        passes=float(r["passes"]),
        seconds=float(r["seconds"]),
        gap=gap,
        native={key: value for key, value in r.items() if key not in first},
    )
    return replace(tree, lower=lower.clone(), exact=exact, stats=replace(stats, trivial_fraction=tree.trivial_fraction))


def _threads(threads: Any) -> int:
    count = operator.index(threads)
    if count < 1:
        raise ValueError(f"threads must be at least 1, got {count}")
    return count


def _quotient(g: Any, labels: Any, k: int | None, bipartite: bool, symmetrize: bool) -> Tensor:
    """Z.T W Z in int64 for integer graphs, else float64."""
    if isinstance(g, torch.nn.Module) or is_weight_graph(g):
        if isinstance(g, torch.nn.Module):
            import modcut  # the tracer lies above this layer: reached through its public name, when it is asked for

            g = modcut.weight_graph(g)
        n, blocks, csr = int(g.n), iter_blocks(g), None
    else:
        p = problem(g, bipartite=bipartite, symmetrize=symmetrize)
        n, blocks, csr = p.n, iter(p.blocks), p.csr
    z, k = as_labels(labels, n, k)
    return merged(n, blocks, csr, z, k)
