"""Isolating cuts: for every terminal the smallest minimum cut between it and all the others.

Li and Panigrahi, *Deterministic min-cut in poly-logarithmic max-flows*, 2020: number the terminals; for every bit of
the numbers take a minimum cut between those with 0 and those with 1. The cuts divide the vertices into regions, one
terminal in each, and the smallest isolating cut of a terminal lies inside its region: for a minimum cut X between
two sets and the smallest isolating cut S of a terminal in X, cut(S & X) + cut(S | X) <= cut(S) + cut(X), where S | X
divides the two sets too, so cut(S & X) <= cut(S). One flow inside each region finds it, its outside drawn together.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from modcut._arrays import capsule, native
from modcut._contract import contracted
from modcut._engine import TOLERANCE, solve, threads_of
from modcut._problem import DenseBlock, Problem
from modcut.tree import Cut

_BITS_PAY = 16
"""From so many terminals on, dividing the graph first is faster (measured on dense, layered and sparse graphs)."""


def isolate(p: Problem, terminals: list[int], threads: int, *, divide: bool | None = None) -> list[Cut]:
    """Return the isolating cuts of different terminals, two or more; ``divide`` says whether to find regions first."""
    threads_of(threads)
    if len(terminals) >= _BITS_PAY if divide is None else divide:
        regions, big = _regions(p, terminals, threads)
    else:
        regions, big = None, 0
    sides = torch.full((p.n,), len(terminals), dtype=torch.int64)
    cuts = []
    others = torch.zeros(p.n, dtype=torch.bool)
    others[terminals] = True
    for i, v in enumerate(terminals):
        inside = ~others if regions is None else regions == i
        inside[v] = True
        cuts.append(_inside(p, torch.nonzero(inside).flatten(), v, threads))
        sides[torch.nonzero(cuts[-1].side).flatten()] = i
    # The sides are disjoint, so one pass sums all of them again from the original weights.
    value = torch.zeros(len(terminals) + 1, dtype=torch.float64)
    native().cut_values(p.n, p.native_blocks(), p.native_csr(), capsule(sides), capsule(value), {})
    return [_checked(p, c, c.value if p.integer else float(value[i]), terminals, i, big) for i, c in enumerate(cuts)]


def _checked(p: Problem, cut: Cut, value: float | int, terminals: list[int], i: int, big: int) -> Cut:
    """The cut with its value as summed from the original weights; exact if the flow's bound meets that one."""
    gap = abs(cut.value - value)
    exact = cut.exact and gap <= TOLERANCE[p.dtype] * value
    stats = dict(cut.stats) | {"big_flows": big}
    return Cut(
        value=p.number(value),
        side=cut.side,
        lower=p.number(value if exact else min(cut.lower, value)),
        exact=exact,
        s=terminals[i],
        t=terminals[1] if i == 0 else terminals[0],
        stats=stats,
    )


def _regions(p: Problem, terminals: list[int], threads: int) -> tuple[Tensor, int]:
    """For every vertex the number of the terminal whose region it is in (int64 [n], -1 for none), and the flows run."""
    code = torch.zeros(p.n, dtype=torch.int64)
    number = torch.arange(len(terminals))
    bits = (len(terminals) - 1).bit_length()
    for bit in range(bits):
        group = torch.full((p.n,), -1, dtype=torch.int64)
        group[terminals] = (number >> bit) & 1
        small, kept = contracted(p, group, 2)
        cut = solve(small, len(kept), len(kept) + 1, threads)
        code[kept] |= (~cut.side[: len(kept)]).to(torch.int64) << bit
        code[terminals] |= group[terminals] << bit
    code[code >= len(terminals)] = -1
    return code, bits


def _inside(p: Problem, inside: Tensor, v: int, threads: int) -> Cut:
    """The smallest minimum cut between ``v`` and everything that is not ``inside``; its value is that of the flow."""
    group = torch.zeros(p.n, dtype=torch.int64)
    group[inside] = -1
    small, kept = contracted(p, group, 1)
    outside = len(kept)
    s = int(torch.searchsorted(kept, v))
    # The engine's flow leaves the weaker end, and its side is then the smallest that there is: one more vertex, hung on
    # the outside alone, makes that the stronger end and takes part in no cut.
    weight = small.degree()[s].clamp(min=1).reshape(1, 1)
    small = Problem(
        small.n + 1, small.dtype, (*small.blocks, DenseBlock(weight, small.n, outside, False)), _one_more(small)
    )
    cut = solve(small, s, outside, threads, flow="augment")
    side = torch.zeros(p.n, dtype=torch.bool)
    side[kept[cut.side[:outside]]] = True
    stats = dict(cut.stats) | {"region": len(kept)}
    return Cut(cut.value, side, cut.lower, cut.exact, v, -1, stats)


def _one_more(p: Problem) -> sp.csr_array | None:
    if p.csr is None:
        return None
    a = p.csr
    return sp.csr_array((a.data, a.indices, np.append(a.indptr, a.indptr[-1])), shape=(p.n + 1, p.n + 1))
