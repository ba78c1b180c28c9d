"""Modules of modules: a binary tree over the modules, and the evidence of every group, merged from its children's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modcut.reading.contexts import Decode, inputs
from modcut.reading.observe import Observation
from modcut.reading.scores import correlation, detection, pooled, row, signature, simulation
from modcut.reading.sketch import CANDIDATES, Sketch, Table


def hierarchy(matrix: NDArray[np.float64]) -> list[tuple[int, int, float]]:
    """Merge the two groups that are joined most strongly for their sizes until one is left.

    Args:
        matrix: [k, k] strengths between modules (either direction); the diagonal does not count.

    Returns:
        k - 1 merges ``(a, b, s)``: ids below k are modules, merge ``n`` makes the group ``k + n``; ``s`` is the
        strength between a and b over its expectation from their total strengths (1 = as at random). O(k^3).
    """
    s = matrix + matrix.T
    np.fill_diagonal(s, 0.0)
    groups = {i: [i] for i in range(len(s))}
    volume, whole = s.sum(1), float(s.sum()) or 1.0
    merges: list[tuple[int, int, float]] = []
    for new in range(len(s), 2 * len(s) - 1):
        best: tuple[float, int, int] | None = None
        ids = sorted(groups)
        for n, a in enumerate(ids):
            for b in ids[n + 1 :]:
                between = float(s[np.ix_(groups[a], groups[b])].sum())
                expected = float(volume[groups[a]].sum() * volume[groups[b]].sum()) / whole
                value = between / expected if expected > 0 else 0.0
                if best is None or value > best[0]:
                    best = (value, a, b)
        assert best is not None
        value, a, b = best
        merges.append((a, b, value))
        groups[new] = sorted(groups.pop(a) + groups.pop(b))
    return merges


def group_evidence(
    seen: Observation, matrix: NDArray[np.float64], decode: Decode, controls: int, seed: int
) -> list[dict[str, Any]]:
    """Return every group of :func:`hierarchy` but the last (the whole network) with evidence and scores.

    Nothing is run again: shares, token tables and features of a group are sums of its modules'; its contexts are chosen
    anew among their candidates. Effects are not: ablating a group is not the sum of ablating its parts, and is not
    measured here.
    """
    k = len(matrix)
    members: dict[int, list[int]] = {i: [i] for i in range(k)}
    both = matrix + matrix.T
    out = []
    for n, (a, b, strength) in enumerate(hierarchy(matrix)[:-1]):
        members[k + n] = modules = sorted(members[a] + members[b])
        rest = [i for i in range(k) if i not in modules]
        merged = merged_sketch(seen.sketch, modules)
        part = replace(seen, sketch=merged, windows=merged.sample)
        total, windows, _ = merged.use(None, selection=False)
        whole = total.sum(-1)
        shares = [float(total[r, 0] / whole[r]) if whole[r] > 0 else None for r in range(len(total))]
        own, sample = signature(merged, 0, 0), merged.sample
        others = [signature(merged, r, 0) for r in range(1, controls + 1)]
        scores = {}
        for name, pairs_of, value_of in (("detection", detection, pooled), ("simulation", simulation, correlation)):
            random = [value_of(pairs_of(sample, r, 0, s)) for r, s in enumerate(others, start=1)]
            shuffled = [value_of(pairs_of(sample, 0, 0, signature(merged, 0, 1)))]
            scores[name] = row(f"{name} of the group", pairs_of(sample, 0, 0, own), value_of, shuffled, random, seed)
        leaving = float(both[np.ix_(modules, rest)].sum())
        inside = float(both[np.ix_(modules, modules)].sum())
        volume = leaving + inside
        out.append(
            {
                "group": k + n,
                "children": [a, b],
                "modules": modules,
                "evidence": {
                    "strength": strength,
                    "use": {"share": shares[0], "controls": shares[1:], "windows": windows},
                    "inputs": inputs(part, 0, own, decode),
                    "cut": {"leaving": leaving, "leaving_share": leaving / volume if volume > 0 else None},
                },
                "scores": scores,
            }
        )
    return out


def merged_sketch(s: Sketch, modules: Sequence[int]) -> Sketch:
    """Return a sketch of two modules: the given ones as one (0), and all others as one (1)."""
    rest = [i for i in range(s.k) if i not in modules]

    def two(x: NDArray[Any]) -> NDArray[Any]:
        return np.stack([x[..., list(modules)].sum(-1), x[..., rest].sum(-1)], axis=-1)

    out = Sketch(2, s.draws, s.seed, s.keep, s.windows, s.held, s.positions)
    out.sums, out.counts = {at: two(x) for at, x in s.sums.items()}, s.counts
    out.known, out.share, out.x = s.known, two(s.share), s.x
    out.xy = None if s.xy is None else two(s.xy)
    out.table = Table(s.draws, 2, s.table.row, s.table.count, two(s.table.share) if len(s.table.row) else s.table.share)
    out.kept = {at: [(h, replace(w, use=two(w.use))) for h, w in kept] for at, kept in s.kept.items()}
    # The second moment of a sum is not the sum of second moments: taken from the kept windows, as a mean.
    selection = [w for w in out.sample if w.selection]
    if selection:
        parts = np.concatenate([w.use for w in selection]).astype(np.float64)
        total = parts.sum(-1, keepdims=True)
        y = np.divide(parts, total, out=np.zeros_like(parts), where=total > 0)
        out.square = np.square(y).mean(0) * out.known[:, None]
    spots = {(x.window, x.position): x for i in modules for x in s.spots[i]}
    chosen = []
    for x in spots.values():
        use = two(x.use)
        whole = float(use.sum())
        chosen.append(replace(x, use=use, score=float(use[0]) ** 2 / whole if whole > 0 else 0.0))
    out.spots[0] = sorted(chosen, key=lambda x: x.order)[:CANDIDATES]
    return out
