"""A cut tree of yesterday's weights, checked and mended for today's.

1. *Star.* Where a lower bound nu on the second eigenvalue of the normalised Laplacian N is known, the deficiency
   theorem (``docs/mathematics``, section 3) proves the strengths of most vertices in one pass. nu comes from the
   Frobenius norm, or from the tree: it was proven for remembered weights, and by Weyl's inequality |nu' - nu| <= |E|_2,
   E = N' - N. |E|_2 is at most |E|_F, and at most the largest (1/x_i) sum over j of |E_ij| x_j, for any positive x (the
   norm of D^-1 E D, D = diag(x), whose eigenvalues are those of E); here x = sqrt(d). One more pass, no factorisation.
2. *Edges.* Every other edge of the tree is proven by one flow between its ends that reaches the cut it induces.
3. *Repair.* Edges that fail are drawn together. What is left are cuts that do not cross, each minimal between two
   vertices: a state of Gomory and Hu's algorithm, which goes on from there, one flow per vertex drawn together.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modcut._engine import TOLERANCE, finished, relative_gap, solve, threads_of, tree_of
from modcut._problem import Problem
from modcut._remember import normalised
from modcut._settle import induced_cuts
from modcut.tree import Cut, CutTree, Memory, TreeStats

_SHARE = 8  # a new tree is cheaper than flows for more than one vertex in so many
_MARGIN = 1e-9  # covers the rounding of strengths and ratios, as in the engine
_FLOW, _DEFICIENCY = 0, 1


def recertified(p: Problem, tree: CutTree, certificates: bool, threads: int) -> CutTree:
    """Return a cut tree of ``p``, taking from ``tree`` (of as many vertices) all that can be proven again."""
    start = time.perf_counter()
    threads_of(threads)
    if p.n < 2:
        return replace(tree, integer=p.integer, exact=True, eps=0.0, stats=TreeStats())
    degree = p.degree().to(torch.float64)
    star = _star(p, degree, tree.memory) if certificates else None
    proven = torch.zeros(p.n, dtype=torch.bool) if star is None else star.proven
    hung = _hung(tree, int(torch.argmax(degree)), proven)
    unsure = torch.nonzero((hung.parent >= 0) & ~proven).flatten().tolist()
    if len(unsure) > max(p.n / _SHARE, 4):
        fresh = tree_of(p, certificates, threads, tree.seed, 0.0, remember=tree.memory is not None)
        return replace(fresh, stats=replace(fresh.stats, recomputed=p.n - 1, seconds=time.perf_counter() - start))
    weight = torch.where(proven, degree, induced_cuts(p, hung) if unsure else degree)
    lower = torch.where(proven, weight, 0.0)
    weight[hung.root] = lower[hung.root] = math.inf
    certified = torch.where(proven, _DEFICIENCY, _FLOW).to(torch.uint8)
    failed: dict[tuple[int, int], Cut] = {}
    for v in unsure:
        cut = solve(p, v, int(hung.parent[v]), threads)
        lower[v] = min(float(cut.lower), float(weight[v]))
        if float(weight[v] - lower[v]) > TOLERANCE[p.dtype] * float(weight[v]):
            failed[v, int(hung.parent[v])] = cut
    made = replace(hung, weight=weight, lower=lower, certified=certified, integer=p.integer, eps=0.0)
    flows = len(unsure)
    if failed:
        made, more = _mended(p, made, failed, degree, threads)
        flows += more
    gap = relative_gap(made)
    stats = TreeStats(
        flows=flows,
        certified=int(proven.sum()),
        gap=gap,
        native={"nu": star.nu if star else 0.0, "nu_proof": star.proof if star else "none"},
    )
    made = replace(made, exact=gap <= TOLERANCE[p.dtype], stats=stats)
    made = made if not unsure else finished(p, made, threads)
    if not unsure:  # a star of strengths: nothing to sum again
        made = replace(
            made,
            lower=made.weight.clone(),
            stats=replace(stats, certified_by={"deficiency": p.n - 1}, trivial_fraction=1.0),
        )
    kept = int(np.isin(_names(made), _names(tree)).sum())
    stats = replace(made.stats, kept=kept, repaired=p.n - 1 - kept, seconds=time.perf_counter() - start)
    return replace(made, stats=stats, memory=tree.memory)


def _names(tree: CutTree) -> np.ndarray[Any, Any]:
    """For every edge a number that tells its cut from others, whichever way the tree is rooted, int64 [n - 1]."""
    number = torch.randint(1, 2**40, (tree.n,), generator=torch.Generator().manual_seed(0))
    below = tree.subtree_sums(number)[tree.edges]
    return torch.minimum(below, number.sum() - below).numpy()


def _hung(tree: CutTree, hub: int, proven: Tensor) -> CutTree:
    """The tree rooted at ``hub``, the proven vertices its leaves, the rest below their nearest ancestor that is left.

    Vertices whose strength is a minimum cut may be split off first (Lemma 4), whatever the tree was.
    """
    at = tree.rooted(hub)
    if not bool((proven & (at.parent != hub)).any()):
        return at
    above, gone = at.parent.tolist(), proven.tolist()
    home = list(range(tree.n))  # for every vertex, the nearest one at or above it that is left
    for v in at._order[1:]:
        if gone[v]:
            home[v] = home[above[v]]
    parent = [hub if gone[v] else (-1 if v == hub else home[above[v]]) for v in range(tree.n)]
    return replace(at, parent=torch.tensor(parent, dtype=torch.int64))


# --- the star ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Star:
    proven: Tensor
    """bool [n]: the minimum cut between the vertex and the hub is its strength."""
    nu: float
    proof: str


def _star(p: Problem, degree: Tensor, memory: Memory | None) -> _Star | None:
    """What the deficiency theorem proves, O(edges); None where it proves nothing or the graph is sparse."""
    if p.csr is not None or not p.blocks or not bool((degree > 0).all()):
        return None
    scale = degree.rsqrt()
    overlap = _overlap(p)
    ratio = torch.zeros(
        p.n, dtype=torch.float64
    )  # max over u of w(i, u) / d(u); the sum over parallel blocks bounds it
    squares, change = [], []
    shapes = [b.values.shape for b in p.blocks]
    root, moved = degree.sqrt(), torch.zeros(p.n, dtype=torch.float64)
    usable = memory is not None and [x.shape for x in memory.blocks] == shapes
    for i, (b, a) in enumerate(zip(p.blocks, normalised(p), strict=True)):
        rows, cols = b.values.shape
        r, c = slice(b.row_offset, b.row_offset + rows), slice(b.col_offset, b.col_offset + cols)
        both = 1.0 if b.symmetric else 2.0
        squares.append(both * _square(a))
        if memory is not None and usable:
            e = a - memory.blocks[i]
            change.append(both * _square(e))
            e = e.abs_()
            moved[r] += (e @ root[c].to(e.dtype)).double()
            if not b.symmetric:
                moved[c] += (root[r].to(e.dtype) @ e).double()
        if rows and cols:  # w(i, u) / d(u) = a(i, u) sqrt(d(i)) / sqrt(d(u))
            by_row = (a * scale[c].to(a.dtype)).amax(1).double() / scale[r]
            ratio[r] = ratio[r] + by_row if overlap else torch.maximum(ratio[r], by_row)
            if not b.symmetric:
                by_col = (a * scale[r].to(a.dtype)[:, None]).amax(0).double() / scale[c]
                ratio[c] = ratio[c] + by_col if overlap else torch.maximum(ratio[c], by_col)
    # Rounding: a float32 product of three factors is off by less than 4e-7 of itself.
    slack = 1e-6 if any(b.values.dtype == torch.float32 for b in p.blocks) else 1e-13

    def norm(parts: list[float]) -> float:
        return (sum(math.sqrt(x) for x in parts) if overlap else math.sqrt(sum(parts))) * (1 + slack)

    frobenius = norm(squares)
    best, proof = 1 - math.sqrt(max(frobenius**2 - 1, 0.0)), "frobenius"
    if memory is not None and usable:
        change_norm = min(norm(change), float((moved / root).max()) * (1 + slack))
        remembered = memory.nu - change_norm - 2 * slack * frobenius
        if remembered > best:
            best, proof = remembered, "remembered"
    ratio *= 1 + slack
    left = best - 2 * degree / degree.sum() - _MARGIN
    hub = int(torch.argmax(degree))
    proven = (2 * ratio <= left) & (2 * ratio[hub] <= left)
    proven[hub] = False
    return _Star(proven, best, proof) if bool(proven.any()) else None


def _square(a: Tensor) -> float:
    """Sum of squares, added in float64 row by row."""
    return float(torch.linalg.vector_norm(a, dim=1).double().square().sum()) if a.numel() else 0.0


def _overlap(p: Problem) -> bool:
    """Whether two blocks may hold the same pair of vertices."""
    seen: list[tuple[int, int, int, int]] = []
    for b in p.blocks:
        rows, cols = b.values.shape
        a = (b.row_offset, b.row_offset + rows, b.col_offset, b.col_offset + cols)
        for box in (a, (*a[2:], *a[:2])):
            if any(box[0] < x[1] and x[0] < box[1] and box[2] < x[3] and x[2] < box[3] for x in seen):
                return True
        seen.append(a)
    return False


# --- repair -----------------------------------------------------------------------------------------------------------

Edge = tuple[float, float, int]  # weight, lower bound, how it was proven


def _mended(
    p: Problem, tree: CutTree, failed: dict[tuple[int, int], Cut], degree: Tensor, threads: int
) -> tuple[CutTree, int]:
    """Gomory and Hu's algorithm (Gusfield's way) from the state in which the failed edges are drawn together."""
    near: list[dict[int, Edge]] = [{} for _ in range(tree.n)]
    home = list(range(tree.n))
    for v in tree._order[1:]:
        up = int(tree.parent[v])
        if (v, up) in failed:
            home[v] = home[up]
        else:
            near[v][up] = near[up][v] = (float(tree.weight[v]), float(tree.lower[v]), int(tree.certified[v]))
    parts: dict[int, list[int]] = {}
    for v, top in enumerate(home):
        parts.setdefault(top, []).append(v)
    known = {frozenset(ends): (ends[0], cut.side, cut) for ends, cut in failed.items()}
    flows = 0
    for part in parts.values():
        if len(part) == 1:
            continue
        order = sorted(part, key=lambda v: (-float(degree[v]), v))
        root = order[0]
        above = {v: root for v in order[1:]}
        edge: dict[int, Edge] = {}
        for v in part:  # everything outside hangs on the root and follows its own end of the cuts
            for u, e in near[v].items():
                above[u], edge[u] = root, e
                del near[u][v]
            near[v] = {}
        for s in order[1:]:
            t = above[s]
            if frozenset((s, t)) in known:
                first, side, cut = known[frozenset((s, t))]
                side = side if first == s else ~side
            else:
                cut = solve(p, s, t, threads)
                side, flows = cut.side, flows + 1
            new: Edge = (float(cut.value), float(cut.lower), _FLOW)
            for x, up in above.items():
                if up == t and x != s and side[x]:
                    above[x] = s
            if t in above and side[above[t]]:
                above[s], above[t] = above[t], s
                edge[s], edge[t] = edge[t], new
            else:
                edge[s] = new
        for v, up in above.items():
            near[v][up] = near[up][v] = edge[v]
    parent, weight, lower = tree.parent.clone(), tree.weight.clone(), tree.lower.clone()
    certified = tree.certified.clone()
    queue, seen = [tree.root], {tree.root}
    for v in queue:
        for u, (w, low, code) in near[v].items():
            if u not in seen:
                seen.add(u)
                queue.append(u)
                parent[u], weight[u], lower[u], certified[u] = v, w, min(low, w), code
    return replace(tree, parent=parent, weight=weight, lower=lower, certified=certified), flows
