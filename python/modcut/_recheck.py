"""The tree after a small step of the weights, where one reading proves all of it.

The engine is told the strengths that the tree before had. With these as a guess it finds strengths, ratios and norms in
one reading of the new weights, where a new tree needs several; what it proves does not depend on the guess. Weights of
a network are read where they lie, signed.

A gap of the spectrum that only a factorisation could prove is carried over, less what the weights have moved since
(``docs/mathematics.md``, "After a step"). For this the last graph so proven is remembered, one copy of at most ``MOST``
bytes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modcut._arrays import capsule, native
from modcut._problem import Problem, is_weight_graph, unread
from modcut.tree import CERTIFICATES, CutTree, TreeStats

MOST = 2**26
"""Bytes of weights that are remembered at most."""

Blocks = Sequence[tuple[Tensor, int, int, bool]]


@dataclass(frozen=True)
class _Anchor:
    blocks: Blocks
    strengths: Tensor
    nu: float

    def fits(self, n: int, blocks: Blocks) -> bool:
        """Whether the engine can compare these weights with those."""
        return (
            self.strengths.numel() == n
            and len(blocks) == len(self.blocks)
            and all(
                a[1:] == b[1:] and a[0].shape == b[0].shape and a[0].dtype == b[0].dtype
                for a, b in zip(self.blocks, blocks, strict=True)
            )
        )


_last: _Anchor | None = None


def remember(p: Problem, tree: CutTree) -> None:
    """Keep the weights of a tree whose gap a factorisation proved, in the place of those kept before."""
    global _last
    if p.csr is not None or p.integer or tree.stats.native.get("nu_proof") not in ("norms", "cholesky"):
        return
    if sum(b.values.numel() * b.values.element_size() for b in p.blocks) > MOST:
        return
    blocks = [(b.values.clone(), b.row_offset, b.col_offset, b.symmetric) for b in p.blocks]
    _last = _Anchor(blocks, p.degree(), float(tree.stats.native["nu"]))


def rechecked(g: Any, tree: CutTree, bipartite: bool, threads: int) -> CutTree | None:
    """Return the tree of ``g``, all certified; None where that takes more than this, or ``g`` has to be checked."""
    start = time.perf_counter()
    n = tree.n
    found = _signed(g) if not bipartite and is_weight_graph(g) else None
    if found is None:
        p = unread(g, bipartite=bipartite)
        if p is None or p.csr is not None or p.integer:
            return None
        found = p.n, [(b.values, b.row_offset, b.col_offset, b.symmetric) for b in p.blocks], False
    size, blocks, magnitude = found
    if size != n or not blocks:
        return None
    parent = torch.empty(n, dtype=torch.int64)
    weight, lower = torch.empty(n, dtype=torch.float64), torch.empty(n, dtype=torch.float64)
    certified = torch.empty(n, dtype=torch.uint8)
    anchor = None
    if _last is not None and _last.fits(n, blocks):
        anchor = ([(capsule(t), *at) for t, *at in _last.blocks], capsule(_last.strengths), _last.nu)
    outputs = [capsule(x) for x in (parent, weight, lower, certified)]
    given = [(capsule(t), *at) for t, *at in blocks]
    r = native().recertify(n, given, capsule(tree.weight), anchor, magnitude, *outputs, {"threads": threads})
    if not r["made"] or not r["exact"]:
        return None
    if r["flows"]:
        lower = weight.clone()  # as in every exact tree; the gap stays in the stats
    star = r["star"]
    fields = {"parent": parent, "weight": weight, "lower": lower, "certified": certified, "seed": tree.seed}
    made = CutTree._proven(star, **fields)
    if star and tree._star:
        kept = n - 1 if tree.parent[r["root"]] < 0 else n - 2
    else:
        kept = same_cuts(made, tree)
    stats = TreeStats(
        flows=r["flows"],
        certified=r["certified"],
        certified_by={CERTIFICATES[code]: count for code, count in r["by"].items()},
        trivial_fraction=1.0 if star else made.trivial_fraction,
        passes=r["passes"],
        seconds=time.perf_counter() - start,
        gap=r["gap"],
        kept=kept,
        repaired=n - 1 - kept,
        native={key: r[key] for key in ("nu", "nu_proof", "components", "nontrivial")},
    )
    return CutTree._proven(star, **fields, stats=stats)


def _signed(g: Any) -> tuple[int, Blocks, bool] | None:
    """The blocks of a weight graph whose capacities are the absolute values of weights that lie ready to be read."""
    blocks = []
    for b in g.blocks:
        w = b.signed()
        if w is None or w.layout != torch.strided or w.dtype not in (torch.float32, torch.float64):
            return None
        rows, cols = w.shape
        own = b.rows.offset == b.cols.offset and not b.symmetric
        if own or w.device.type != "cpu" or (cols > 1 and w.stride(1) != 1) or (rows > 1 and w.stride(0) < cols):
            return None
        blocks.append((w.detach(), b.rows.offset, b.cols.offset, b.symmetric))
    return g.n, blocks, True


def same_cuts(made: CutTree, before: CutTree) -> int:
    """How many edges of a tree part the vertices as some edge of the other tree does."""
    return int(np.isin(_names(made), _names(before)).sum())


def _names(tree: CutTree) -> np.ndarray[Any, Any]:
    """For every edge a number that tells its cut from others, whichever way the tree is rooted, int64 [n - 1]."""
    number = torch.randint(1, 2**40, (tree.n,), generator=torch.Generator().manual_seed(0))
    below = tree.subtree_sums(number)[tree.edges]
    return torch.minimum(below, number.sum() - below).numpy()
