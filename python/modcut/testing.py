"""Graphs to test cuts on, slow truths to test them against, and the validator of Gomory-Hu trees.

The references know nothing of the compiled engine: brute force over subsets, and augmenting paths in exact integer
arithmetic (floats are scaled to integers without rounding, so a float's reference has no tolerance either).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modcut._arrays import vertex
from modcut._problem import Problem, problem
from modcut._require import require
from modcut.tree import CutTree

__all__ = [
    "FAMILIES",
    "Validation",
    "brute_force_min_cut",
    "cycle",
    "dense",
    "double_cycle",
    "grid",
    "heavy_tailed",
    "hub",
    "known_graph",
    "mlp",
    "mlp_graph",
    "path",
    "planted",
    "pruned",
    "reference_min_cut",
    "reference_tree",
    "sparse",
    "tree",
    "validate_cut_tree",
]

# --- graphs: symmetric float64 [n, n] with zero diagonal, equal seeds give equal graphs -------------------------------


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _symmetric(upper: Tensor) -> Tensor:
    w = torch.triu(upper, 1)
    return w + w.T


def _from_edges(n: int, pairs: Sequence[tuple[int, int]], weights: Tensor) -> Tensor:
    """Build [n, n] from edges; a pair given twice adds up, a pair of one vertex does not count."""
    w = torch.zeros(n, n, dtype=torch.float64)
    for (i, j), x in zip(pairs, weights.tolist(), strict=True):
        if i != j:
            w[i, j] += x
            w[j, i] += x
    return w


def _weights(count: int, seed: int) -> Tensor:
    return torch.rand(count, generator=_generator(seed), dtype=torch.float64) + 0.5


def dense(n: int, seed: int = 0, power: float = 1.0) -> Tensor:
    """Complete graph with weights |normal|^power, as an untrained fully connected layer has them."""
    return _symmetric(torch.randn(n, n, generator=_generator(seed), dtype=torch.float64).abs() ** power)


def heavy_tailed(n: int, seed: int = 0) -> Tensor:
    """Complete graph with weights |normal|^6: a few edges carry most of the strength."""
    return dense(n, seed, power=6.0)


def sparse(n: int, density: float = 0.2, seed: int = 0) -> Tensor:
    """Random graph: each pair is an edge with probability ``density``, weights in [0.5, 1.5)."""
    generator = _generator(seed)
    kept = torch.rand(n, n, generator=generator, dtype=torch.float64) < density
    return _symmetric((torch.rand(n, n, generator=generator, dtype=torch.float64) + 0.5) * kept)


def planted(n: int, modules: int = 4, ratio: float = 0.01, seed: int = 0) -> Tensor:
    """``modules`` equal dense groups; weights between groups are ``ratio`` times those inside."""
    label = torch.arange(n) * modules // max(n, 1)
    inside = label[:, None] == label[None, :]
    return dense(n, seed) * torch.where(inside, 1.0, ratio)


def mlp(widths: Sequence[int], seed: int = 0, keep: float = 1.0) -> Tensor:
    """|weights| of a multi-layer perceptron at its usual initialisation, the strongest share ``keep`` of each layer."""
    n, offset = sum(widths), 0
    w = torch.zeros(n, n, dtype=torch.float64)
    for block in mlp_weights(widths, seed, keep):
        rows, cols = block.shape
        w[offset + cols : offset + cols + rows, offset : offset + cols] = block.abs().double()
        offset += cols
    return w + w.T


def pruned(widths: Sequence[int], seed: int = 0, keep: float = 0.1) -> Tensor:
    """A perceptron of which pruning left the strongest share ``keep`` of each layer's weights."""
    return mlp(widths, seed, keep)


def mlp_weights(widths: Sequence[int], seed: int = 0, keep: float = 1.0) -> list[Tensor]:
    """The signed weight matrices of such a perceptron, float32 [widths[i + 1], widths[i]]."""
    generator, weights = _generator(seed), []
    for cols, rows in pairwise(widths):
        w = torch.randn(rows, cols, generator=generator) / max(cols, 1) ** 0.5
        dropped = w.numel() - round(keep * w.numel())
        if dropped:
            w[w.abs() <= torch.kthvalue(w.abs().flatten(), dropped).values] = 0.0
        weights.append(w)
    return weights


def mlp_graph(widths: Sequence[int], seed: int = 0, keep: float = 1.0) -> Any:
    """The same perceptron as a :class:`modcut.WeightGraph`: layer x layer blocks, nothing densified."""
    from modcut.graph.types import Block, Space, WeightGraph  # above this layer: only for whoever asks for such a graph

    offsets = np.cumsum([0, *widths]).tolist()
    spaces = tuple(Space(f"layer{i}", w, "hidden", offsets[i], family=f"layer{i}") for i, w in enumerate(widths))
    blocks = []
    for i, w in enumerate(mlp_weights(widths, seed, keep)):
        rows, cols = spaces[i + 1], spaces[i]
        index = torch.arange(rows.size)[:, None], torch.arange(cols.size)[:, None]
        blocks.append(Block(rows, cols, w, f"w{i}", *index, strength=lambda block: block.weight.abs()))
    return WeightGraph(spaces, tuple(blocks))


def path(n: int, seed: int = 0) -> Tensor:
    """Path 0 - 1 - ... - (n - 1)."""
    return _from_edges(n, [(i, i + 1) for i in range(n - 1)], _weights(max(n - 1, 0), seed))


def cycle(n: int, seed: int = 0) -> Tensor:
    """Cycle: no cut is a bound on another, so certificates fail."""
    return _from_edges(n, [(i, (i + 1) % n) for i in range(n)], _weights(n, seed))


def double_cycle(n: int, seed: int = 0) -> Tensor:
    """Cycle with a lighter chord from each vertex to the one n/2 - 1 further (Goldberg and Tsioutsiouliklis, 2001)."""
    pairs = [(i, (i + 1) % n) for i in range(n)] + [(i, (i + max(n // 2 - 1, 1)) % n) for i in range(n)]
    return _from_edges(n, pairs, torch.cat([2 * _weights(n, seed), _weights(n, seed + 1)]))


def tree(n: int, seed: int = 0) -> Tensor:
    """Random recursive tree, its vertices shuffled; it is its own Gomory-Hu tree."""
    generator = _generator(seed)
    name = torch.randperm(n, generator=generator).tolist()
    above = [int(torch.randint(i, (), generator=generator)) for i in range(1, n)]
    pairs = [(name[i + 1], name[a]) for i, a in enumerate(above)]
    return _from_edges(n, pairs, _weights(max(n - 1, 0), seed))


def grid(rows: int, cols: int, seed: int = 0) -> Tensor:
    """Rectangular grid."""
    right = [(r * cols + c, r * cols + c + 1) for r in range(rows) for c in range(cols - 1)]
    down = [(r * cols + c, (r + 1) * cols + c) for r in range(rows - 1) for c in range(cols)]
    return _from_edges(rows * cols, right + down, _weights(len(right + down), seed))


def hub(n: int, seed: int = 0, strength: float = 1e6) -> Tensor:
    """Sparse graph in which vertex 0 reaches everything with weights ``strength`` times larger."""
    w = sparse(n, 0.3, seed)
    if n > 1:
        w[0, 1:] = w[1:, 0] = strength * _weights(n - 1, seed)
    return w


def known_graph() -> Tensor:
    """The six-vertex example of the literature, whose tree weighs 6, 8, 6, 7, 8 in some order; int64."""
    edges = {(0, 1): 1, (0, 2): 7, (1, 2): 1, (1, 3): 3, (1, 4): 2, (2, 4): 4, (3, 4): 1, (3, 5): 6, (4, 5): 2}
    return _from_edges(6, list(edges), torch.tensor(list(edges.values()), dtype=torch.float64)).to(torch.int64)


FAMILIES: dict[str, Callable[[int, int], Tensor]] = {
    "dense": dense,
    "heavy_tailed": heavy_tailed,
    "sparse": lambda n, seed: sparse(n, 0.2, seed),
    "planted": lambda n, seed: planted(n, 3, 0.01, seed),
    "mlp": lambda n, seed: mlp([n - 2 * (n // 3), n // 3, n // 3], seed),
    "pruned": lambda n, seed: pruned([n - 2 * (n // 3), n // 3, n // 3], seed, keep=0.3),
    "path": path,
    "cycle": cycle,
    "double_cycle": double_cycle,
    "tree": tree,
    "grid": lambda n, seed: grid(max(n // 3, 1), min(n, 3), seed),
    "hub": hub,
}
"""Every family as a function (n, seed) -> [about n, about n]."""


# --- slow truths ------------------------------------------------------------------------------------------------------


def _matrix(p: Problem) -> np.ndarray[Any, Any]:
    """The symmetric capacity matrix with zero diagonal, in Python's exact numbers (object dtype), [n, n]."""
    out = np.full((p.n, p.n), Fraction(0), dtype=object)
    entries = [(b.values.numpy(), b.row_offset, b.col_offset, b.symmetric) for b in p.blocks]
    if p.csr is not None:
        entries.append((p.csr.toarray(), 0, 0, True))
    for values, row, col, symmetric in entries:
        for i, j in zip(*np.nonzero(values), strict=True):
            x = Fraction(values[i, j].item())
            out[row + i, col + j] += x
            if not symmetric:
                out[col + j, row + i] += x
    for i in range(p.n):
        out[i, i] = Fraction(0)
    return out


def _integers(p: Problem) -> tuple[list[dict[int, int]], int]:
    """Adjacency with integer capacities and the scale they were multiplied by; nothing is rounded."""
    w = _matrix(p)
    scale = max((int(x.denominator) for x in w.flat), default=1)  # powers of two: the largest is a multiple of all
    return [{j: int(w[i, j] * scale) for j in np.flatnonzero(w[i]).tolist()} for i in range(p.n)], scale


def _augment(adjacency: list[dict[int, int]], s: int, t: int) -> tuple[int, list[bool]]:
    """Maximum flow by shortest augmenting paths (Edmonds and Karp, 1972); returns it and the source's side."""
    residual = [dict(row) for row in adjacency]
    value = 0
    while True:
        came_from: dict[int, int] = {s: s}
        queue = [s]
        for u in queue:
            for v, r in residual[u].items():
                if r and v not in came_from:
                    came_from[v] = u
                    queue.append(v)
        if t not in came_from:
            return value, [v in came_from for v in range(len(adjacency))]
        steps, v = [], t
        while v != s:
            steps.append((came_from[v], v))
            v = came_from[v]
        amount = min(residual[u][v] for u, v in steps)
        for u, v in steps:
            residual[u][v] -= amount
            residual[v][u] += amount
        value += amount


def brute_force_min_cut(g: Any, s: int, t: int, **how: Any) -> float | int:
    """The minimum cut between ``s`` and ``t`` over all 2^(n - 2) subsets, in exact arithmetic; for n up to about 12."""
    p = problem(g, **how)
    w = _matrix(p)
    rest = [v for v in range(p.n) if v not in (s, t)]
    best: Fraction | None = None
    for size in range(len(rest) + 1):
        for chosen in combinations(rest, size):
            side = [s, *chosen]
            other = [v for v in range(p.n) if v not in side]
            value = sum((w[i, j] for i in side for j in other), Fraction(0))
            best = value if best is None else min(best, value)
    if best is None:
        raise ValueError("g must have at least 2 vertices")
    return p.number(int(best) if p.integer else float(best))


def reference_min_cut(g: Any, s: int, t: int, **how: Any) -> tuple[float | int, Tensor]:
    """A minimum cut by augmenting paths in exact arithmetic: its value and the side of ``s`` (bool [n])."""
    p = problem(g, **how)
    adjacency, scale = _integers(p)
    value, side = _augment(adjacency, vertex(s, "s", p.n), vertex(t, "t", p.n))
    return (value if p.integer else float(Fraction(value, scale))), torch.tensor(side)


def reference_tree(g: Any, *, swap: bool = True, **how: Any) -> CutTree:
    """Gusfield's tree (1990) over :func:`reference_min_cut`. O(n) exact flows: for n up to about 60.

    ``swap=False`` leaves out the exchange of parents. What comes then gives every minimum cut's value but not its sides
    (an equivalent flow tree): the classic bug, kept here so that tests can show that the validator finds it.
    """
    p = problem(g, **how)
    n = p.n
    adjacency, scale = _integers(p)
    parent, flow = [0] * n, [0] * n
    for s in range(1, n):
        t = parent[s]
        flow[s], side = _augment(adjacency, s, t)
        for i in range(n) if swap else range(s + 1, n):
            if i != s and side[i] and parent[i] == t:
                parent[i] = s
        if swap and side[parent[t]]:
            parent[s], parent[t] = parent[t], s
            flow[s], flow[t] = flow[t], flow[s]
    weight = torch.tensor([float(Fraction(f, scale)) for f in flow], dtype=torch.float64)
    above = torch.tensor(parent, dtype=torch.int64)
    if n:
        root = next(v for v in range(n) if parent[v] == v)
        above[root], weight[root] = -1, float("inf")
    return CutTree(above, weight, weight.clone(), torch.zeros(n, dtype=torch.uint8), True, p.integer)


# --- the validator ----------------------------------------------------------------------------------------------------


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
    edges = T.edges.tolist()
    degree, size = p.degree(), T.subtree_sums(torch.ones(T.n, dtype=torch.int64))
    worst_cut = 0.0
    for v in edges:
        cut = float(degree[v]) if size[v] == 1 else float(p.cut_value(T.side(v)))
        gap = _relative(float(T.weight[v]), cut)
        worst_cut = max(worst_cut, gap)
        if gap > (0.0 if p.integer else _CUT_TOLERANCE):
            raise AssertionError(
                f"not a cut tree: edge {v} - {int(T.parent[v])} weighs {float(T.weight[v])!r}, "
                f"but the cut it induces is {cut!r}"
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


def igraph_tree_weights(ig: Any, p: Problem) -> list[float]:
    """The weights of igraph's Gomory-Hu tree of a checked graph."""
    pairs, capacity = edge_list(p)
    graph = ig.Graph(n=p.n, edges=pairs.tolist())
    return list(graph.gomory_hu_tree(capacity=capacity.tolist()).es["flow"])


def edge_list(p: Problem) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """All edges of a checked graph, [m, 2], once per block that holds them, and their float64 capacities [m]."""
    pairs, capacity = [np.zeros((0, 2), dtype=np.int64)], [np.zeros(0)]
    for b in p.blocks:
        values = torch.triu(b.values, 1) if b.symmetric else b.values
        at = torch.nonzero(values)
        capacity.append(values[at[:, 0], at[:, 1]].double().numpy())
        pairs.append((at + torch.tensor([b.row_offset, b.col_offset])).numpy())
    if p.csr is not None:
        coo = p.csr.tocoo()
        once = coo.coords[0] < coo.coords[1]
        pairs.append(np.stack([c[once] for c in coo.coords], axis=1).astype(np.int64))
        capacity.append(coo.data[once].astype(np.float64))
    return np.concatenate(pairs), np.concatenate(capacity)
