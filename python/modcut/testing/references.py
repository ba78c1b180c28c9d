"""Slow truths, which know nothing of the compiled engine.

Brute force over subsets, and augmenting paths in exact integer arithmetic (floats are scaled to integers without
rounding, so a float's reference has no tolerance either); igraph for what is too large for either.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modcut._arrays import vertex
from modcut._problem import Problem, problem
from modcut.tree import CutTree


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
