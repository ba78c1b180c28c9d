"""One flow, one tree: what the compiled engine returns, as checked results."""

from __future__ import annotations

import math
import operator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modcut._arrays import capsule, native, vertex
from modcut._problem import Problem
from modcut.tree import CERTIFICATES, Cut, CutTree, TreeStats

TREE_INTEGER = 2**53
"""Weights of trees are float64, which holds every integer up to here."""
TOLERANCE = {torch.int64: 0.0, torch.float64: 1e-12, torch.float32: 1e-6}
"""What the bounds of an exact cut may differ by, relative to it."""


REPAIRS = 50
"""Tree edges to mend, at most, where rounding put a vertex on the wrong side; each costs a flow and a pass."""


def solve(p: Problem, s: Any, t: Any, threads: int = 1, **settings: Any) -> Cut:
    """Return a minimum cut between two vertices; ``settings`` go to the engine."""
    if p.n == 0:
        raise ValueError("g must have vertices s and t, got an empty graph")
    s, t = vertex(s, "s", p.n), vertex(t, "t", p.n)
    if s == t:
        raise ValueError(f"s and t must be different vertices, got {s} twice")
    side = torch.zeros(p.n, dtype=torch.bool)
    settings = {"threads": threads_of(threads), **settings}
    r = native().max_flow(p.n, p.native_blocks(), p.native_csr(), s, t, capsule(side), settings)
    known = ("value", "lower", "exact")
    return _cut(p, r, side, s, t, {key: value for key, value in r.items() if key not in known})


def tree_of(p: Problem, certificates: bool, threads: int, seed: int, eps: float) -> CutTree:
    """Return the cut tree of a checked graph; with eps > 0 every lower bound is at least weight / (1 + eps)."""
    return _told(_built(p, certificates, threads, seed, eps, flows=True))


def proven_part(p: Problem, certificates: bool, threads: int, seed: int) -> CutTree:
    """Return what certificates prove: vertices they say nothing of are leaves with ``lower`` 0 and code 0."""
    return _built(p, certificates, threads, seed, 0.0, flows=False)


def _built(p: Problem, certificates: bool, threads: int, seed: int, eps: float, flows: bool) -> CutTree:
    degree = p.degree() if p.integer else None
    if degree is not None and p.n and int(degree.max()) >= TREE_INTEGER:
        raise ValueError(
            f"integer strengths must be below 2^53 for a tree (its weights are float64), got {int(degree.max())}; "
            "pass floats instead"
        )
    n = p.n
    parent = torch.full((n,), -1, dtype=torch.int64)
    weight = torch.full((n,), math.inf, dtype=torch.float64)
    lower = torch.full((n,), math.inf, dtype=torch.float64)
    certified = torch.zeros(n, dtype=torch.uint8)
    settings: dict[str, Any] = {
        "certificates": bool(certificates),
        "reductions": bool(certificates),
        "threads": threads_of(threads),
        "seed": seed,
        "repairs": REPAIRS,
    }
    settings |= ({"eps": eps} if eps else {}) | ({} if flows else {"flows": False})
    r: dict[str, Any] = {"flows": 0, "certified": 0, "passes": 0.0, "seconds": 0.0, "exact": True, "gap": 0.0}
    if n > 1:
        outputs = [capsule(x) for x in (parent, weight, lower, certified)]
        r = native().gomory_hu(n, p.native_blocks(), p.native_csr(), *outputs, settings)
    known = ("flows", "certified", "passes", "seconds", "gap", "exact", "root")
    stats = TreeStats(
        flows=int(r["flows"]),
        certified=int(r["certified"]),
        passes=float(r["passes"]),
        seconds=float(r["seconds"]),
        gap=float(r["gap"]),
        native={key: value for key, value in r.items() if key not in known},
    )
    return CutTree(parent, weight, lower, certified, bool(r["exact"]), p.integer, seed, eps, stats)


def finished(p: Problem, tree: CutTree, threads: int) -> CutTree:
    """Return a tree of this graph with weights that are its induced cuts, and say whether it is exact."""
    exact, gap = tree.exact, tree.stats.gap
    if not p.integer and p.n > 2:
        tree, settled_gap = _settled(p, tree, {"threads": threads_of(threads), "repairs": REPAIRS})
        gap = max(gap, settled_gap)
        exact = exact and gap <= TOLERANCE[p.dtype]
    return _told(replace(tree, exact=exact, stats=replace(tree.stats, gap=gap)))


def induced_cuts(p: Problem, tree: CutTree) -> Tensor:
    """The capacity between the two sides of every edge of a tree, re-summed from the weights, [n] (root: 0)."""
    weight = _settled(p, tree, {"repairs": 0})[0].weight.clone() if p.n > 1 else torch.zeros(p.n, dtype=torch.float64)
    weight[tree.parent < 0] = 0.0
    return weight


def _settled(p: Problem, tree: CutTree, settings: dict[str, Any]) -> tuple[CutTree, float]:
    """The tree whose weights are its induced cuts, and the largest (weight - lower) / weight."""
    parent, weight, lower, certified = (x.clone() for x in (tree.parent, tree.weight, tree.lower, tree.certified))
    outputs = [capsule(x) for x in (parent, weight, lower, certified)]
    gap = native().settle_tree(p.n, p.native_blocks(), p.native_csr(), *outputs, settings)
    return replace(tree, parent=parent, weight=weight, lower=lower, certified=certified), float(gap)


def _told(tree: CutTree) -> CutTree:
    """Fill in what the statistics say about a tree that nobody else holds yet."""
    codes = np.bincount(tree.certified.numpy(), minlength=max(CERTIFICATES) + 1)
    codes[0] -= tree.n > 0  # the root has no edge
    counts = {name: int(codes[code]) for code, name in CERTIFICATES.items() if codes[code]}
    stats = replace(tree.stats, certified_by=counts, trivial_fraction=tree.trivial_fraction)
    object.__setattr__(tree, "stats", stats)
    # Exact means that the bounds meet up to the rounding of sums; that gap stays in stats.gap.
    if tree.exact:
        object.__setattr__(tree, "lower", tree.weight.clone())
    return tree


def relative_gap(tree: CutTree) -> float:
    """The largest (weight - lower) / weight."""
    positive = (tree.parent >= 0) & (tree.weight > 0)
    return float(torch.where(positive, 1 - tree.lower / tree.weight, 0.0).max()) if tree.n else 0.0


def lightest(p: Problem, threads: int, *, certify: bool | None = None) -> Cut:
    """Return a minimum cut over all pairs; ``certify`` says whether to try certificates before scans."""
    if p.csr is None if certify is None else certify:
        tree = proven_part(p, True, threads, 0)
        if bool((tree.lower >= tree.weight).all()):
            v = int(torch.argmin(tree.weight))
            cut = finished(p, replace(tree, exact=True), threads).min_cut(v, int(tree.parent[v]))
            return replace(cut, stats={"method": "certificates", "seconds": tree.stats.seconds})
    side = torch.zeros(p.n, dtype=torch.bool)
    settings = {"threads": threads_of(threads)}
    r = native().global_cut(p.n, p.native_blocks(), p.native_csr(), capsule(side), settings)
    known = ("value", "lower", "exact")
    stats = {"method": "scans"} | {key: value for key, value in r.items() if key not in known}
    return _cut(p, r, side, int(torch.argmax(side.int())), int(torch.argmin(side.int())), stats)


def _cut(p: Problem, r: dict[str, Any], side: Tensor, s: int, t: int, stats: dict[str, Any]) -> Cut:
    """The engine's cut; exact means that its bounds meet up to the rounding of sums, a gap that stays in stats."""
    value, lower = r["value"], min(r["lower"], r["value"])
    gap = float((value - lower) / value) if value > 0 else 0.0
    exact = bool(r["exact"])
    return Cut(p.number(value), side, p.number(value if exact else lower), exact, s, t, stats | {"gap": gap})


def threads_of(threads: Any) -> int:
    """Return a number of threads, checked."""
    count = operator.index(threads)
    if count < 1:
        raise ValueError(f"threads must be at least 1, got {count}")
    return count
