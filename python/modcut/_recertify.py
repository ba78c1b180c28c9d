"""A cut tree of yesterday's weights, checked and mended for today's.

1. *Certificates.* What the engine proves without flows is proven again for the new weights: a few passes.
2. *Edges.* Between the vertices that are left the old tree's edges stay, each proven by one flow between its ends that
   reaches the cut that the edge induces now.
3. *Repair.* Edges that fail are drawn together. What is left are cuts that do not cross, each minimal between two
   vertices: a state of Gomory and Hu's algorithm, which goes on from there, one flow per vertex drawn together.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

import torch
from torch import Tensor

from modcut._engine import TOLERANCE, finished, induced_cuts, proven_part, relative_gap, solve, threads_of, tree_of
from modcut._problem import Problem
from modcut._recheck import same_cuts
from modcut.tree import Cut, CutTree, TreeStats

_SHARE = 8  # a new tree is cheaper than flows for more than one vertex in so many
_FLOW = 0


def recertified(p: Problem, tree: CutTree, certificates: bool, threads: int) -> CutTree:
    """Return a cut tree of ``p``, taking from ``tree`` (of as many vertices) all that can be proven again."""
    start = time.perf_counter()
    threads_of(threads)
    if p.n < 2:
        return replace(tree, integer=p.integer, exact=True, eps=0.0, stats=TreeStats())
    first = proven_part(p, certificates, threads, tree.seed)
    proven = (first.certified != _FLOW) & (first.lower >= first.weight)
    unsure = torch.nonzero((first.parent >= 0) & ~proven).flatten().tolist()
    if not unsure:
        made = finished(p, replace(first, exact=True), threads)
        return _told(made, tree, start)
    if len(unsure) > max(p.n / _SHARE, 4):
        fresh = tree_of(p, certificates, threads, tree.seed, 0.0)
        return replace(fresh, stats=replace(fresh.stats, recomputed=p.n - 1, seconds=time.perf_counter() - start))
    hung = _hung(tree, first, proven)
    weight = torch.where(proven, first.weight, induced_cuts(p, hung))
    lower = torch.where(proven, first.lower, 0.0)
    weight[hung.root] = lower[hung.root] = math.inf
    failed: dict[tuple[int, int], Cut] = {}
    for v in unsure:
        cut = solve(p, v, int(hung.parent[v]), threads)
        lower[v] = min(float(cut.lower), float(weight[v]))
        if float(weight[v] - lower[v]) > TOLERANCE[p.dtype] * float(weight[v]):
            failed[v, int(hung.parent[v])] = cut
    made = replace(hung, weight=weight, lower=lower, certified=torch.where(proven, first.certified, _FLOW))
    flows = len(unsure)
    if failed:
        made, more = _mended(p, made, failed, threads)
        flows += more
    gap = relative_gap(made)
    stats = replace(first.stats, flows=flows, gap=gap)
    made = finished(p, replace(made, exact=gap <= TOLERANCE[p.dtype], stats=stats), threads)
    return _told(made, tree, start)


def _told(made: CutTree, before: CutTree, start: float) -> CutTree:
    """The tree with an account of what it took from the one before."""
    kept = same_cuts(made, before)
    stats = replace(made.stats, kept=kept, repaired=made.n - 1 - kept, seconds=time.perf_counter() - start)
    return replace(made, stats=stats)


def _hung(tree: CutTree, first: CutTree, proven: Tensor) -> CutTree:
    """The proven edges, and between the vertices that these leave together the edges of ``tree``.

    Proven cuts may be made first, whatever the tree was (Lemma 4). They leave parts, each an anchor and what no
    certificate has split from it: there every vertex hangs on its nearest ancestor in ``tree`` of the same part.
    """
    above, up = first.parent.tolist(), tree.rooted(first.root).parent.tolist()
    split = proven.tolist()
    part = list(range(tree.n))  # the anchor of every vertex
    for v in first._order[1:]:
        if not split[v]:
            part[v] = part[above[v]]
    parent = list(above)
    for v in range(tree.n):
        if part[v] != v:
            x = up[v]
            while x >= 0 and part[x] != part[v]:
                x = up[x]
            parent[v] = x if x >= 0 else part[v]
    return replace(first, parent=torch.tensor(parent, dtype=torch.int64))


# --- repair -----------------------------------------------------------------------------------------------------------

Edge = tuple[float, float, int]  # weight, lower bound, how it was proven


def _mended(p: Problem, tree: CutTree, failed: dict[tuple[int, int], Cut], threads: int) -> tuple[CutTree, int]:
    """Gomory and Hu's algorithm (Gusfield's way) from the state in which the failed edges are drawn together."""
    degree = p.degree()
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
