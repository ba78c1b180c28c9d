"""Better boundaries between given modules by maximum flows: never a worse conductance.

For a set A with at most half of the volume and a set S, let

    Q(S) = cut(S) / (vol(S & A) - theta vol(S - A)),  theta = vol(A) / vol(rest of A).

The denominator is at most min(vol(S), vol(rest of S)), so the conductance of S is at most Q(S), and Q(A) is the
conductance of A: a set with Q(S) < Q(A) is a better module. For a number alpha, cut(S) - alpha (vol(S & A) - theta
vol(S - A)) is, up to a constant, an s-t cut once every x in A is tied to s by alpha d(x) and every other x to t by
alpha theta d(x). Minimise, put alpha = Q(S), repeat until nothing improves (Dinkelbach): that is FlowImprove (Andersen
and Lang, 2008). With S held inside A it is MQI (Lang and Rao, 2004).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from modcut._arrays import as_labels, canonical
from modcut._contract import contracted
from modcut._engine import solve, threads_of
from modcut._problem import DenseBlock, Problem, is_weight_graph, merged, problem
from modcut.graph.types import WeightGraph
from modcut.graph.units import units_of
from modcut.partition import Partition
from modcut.provenance import stamp

__all__ = ["Improvement", "Refinement", "improve_partition"]

_PROGRESS = 1e-9  # a relative gain below this is rounding, not improvement
_NEWTON = 50  # Dinkelbach's iteration ends after a handful of steps; this only bounds it


@dataclass(frozen=True)
class Improvement:
    """What :func:`improve_partition` did."""

    conductance_before: tuple[float, ...]
    """Of every module: cut / min(volume, rest of the volume); 1 where either is empty."""
    conductance_after: tuple[float, ...]
    moved: int
    """Vertices whose label changed."""
    accepted: int
    """Sets that took the place of a module."""
    rounds: int
    """Passes over all pairs of modules; the last found nothing to improve."""
    flows: int
    seconds: float
    method: str
    balance: float

    def to_dict(self) -> dict[str, Any]:
        """Return the record in plain types, with the package's stamp."""
        return {"kind": "Improvement", **asdict(self), "stamp": stamp()}


class Refinement(NamedTuple):
    """Labels and how they came about; unpacks as ``labels, record``."""

    labels: Any
    """int64 [n]; a :class:`modcut.Partition` where one was given."""
    record: Improvement


def improve_partition(
    g: Any,
    labels: Any,
    *,
    k: int | None = None,
    method: Literal["flow", "mqi"] = "flow",
    balance: float = 0.0,
    rounds: int = 10,
    bipartite: bool = False,
    symmetrize: bool = False,
    threads: int = 1,
) -> Refinement:
    """Move vertices across the boundaries of modules where that lowers their conductance.

    Two modules: the conductance of the cut never rises. More: each two modules that share edges are refined against
    each other, the others left alone; a move is taken only if the sum of the two conductances falls and the larger of
    them does not rise, so neither does the largest of all. Repeated until nothing improves. A module is never emptied.

    Args:
        g: graph of n vertices: a matrix, a WeightGraph or a model.
        labels: int [n] with values in [0, k), or a :class:`modcut.Partition`. With a WeightGraph, whole attention heads
            move as one.
        k: number of modules; by default the largest label + 1 (or the partition's k).
        method: "flow" (FlowImprove: vertices may join and leave) or "mqi" (the smaller side may only give up vertices).
        balance: smallest share of the volume of two modules that each of them keeps, in [0, 0.5]; a side that has less
            from the start keeps what it has. Dense networks need it: their best conductance may be a few vertices.
        rounds: at most so many passes over all pairs.
        bipartite: ``g`` is [m, n]: its rows and columns are different vertices.
        symmetrize: take (W + W.T) / 2 of an asymmetric matrix.
        threads: worker threads; the result does not depend on it.

    Returns:
        ``labels, record``: labels like those given (a Partition for a Partition) and an :class:`Improvement`. A few
        flows per accepted set and pair.

    Raises:
        TypeError, ValueError: wrong labels, method, balance or rounds; the partition is of another graph; see
            :func:`modcut._problem.problem`.
    """
    start = time.perf_counter()
    if method not in ("flow", "mqi"):
        raise ValueError(f'method must be "flow" or "mqi", got {method!r}')
    if isinstance(balance, bool) or not isinstance(balance, int | float) or not 0.0 <= balance <= 0.5:
        raise ValueError(f"balance must be a number in [0, 0.5], got {balance!r}")
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"rounds must be an integer of at least 1, got {rounds!r}")
    threads_of(threads)
    if isinstance(g, torch.nn.Module):
        import modcut

        g = modcut.weight_graph(g)
    p = problem(g, bipartite=bipartite, symmetrize=symmetrize)
    given, k = as_labels(labels, p.n, k)
    unit = _unit(g, labels, given, p.n)
    work = _Work(p, given.clone(), k, unit, method, float(balance), threads)
    before = work.conductance()
    done, improved = 0, True
    while improved and done < rounds:
        improved = sum(work.refine(a, b) for a, b in work.pairs()) > 0
        done += 1
    record = Improvement(
        tuple(before.tolist()),
        tuple(work.conductance().tolist()),
        int((work.labels != given).sum()),
        work.accepted,
        done,
        work.flows,
        time.perf_counter() - start,
        method,
        float(balance),
    )
    if isinstance(labels, Partition):
        meta = {**labels.meta, "improved": record.to_dict()}
        return Refinement(replace(labels, labels=work.labels, meta=meta), record)
    return Refinement(work.labels, record)


def _unit(g: Any, labels: Any, given: Tensor, n: int) -> Tensor:
    """The unit of every vertex, int64 [n]: whole heads where the graph has them."""
    if not is_weight_graph(g):
        return torch.arange(n)
    graph: WeightGraph = g
    if isinstance(labels, Partition):
        mine, theirs = ([(s.name, s.size, s.offset) for s in x.spaces] for x in (graph, labels.graph))
        if mine != theirs:
            raise ValueError(
                f"labels must be a partition of g ({len(mine)} spaces), got one of a graph of {len(theirs)} spaces"
            )
    unit = units_of(graph).unit
    first = torch.zeros(int(unit.max()) + 1 if n else 0, dtype=torch.int64)
    first[unit] = given
    split = torch.nonzero(first[unit] != given).flatten()
    if len(split):
        raise ValueError(f"labels must be equal within an attention head, got two in that of vertex {int(split[0])}")
    return unit


class _Work:
    """Labels while they improve."""

    def __init__(
        self, p: Problem, labels: Tensor, k: int, unit: Tensor, method: str, balance: float, threads: int
    ) -> None:
        self.p, self.labels, self.k, self.unit = p, labels, k, unit
        self.method, self.balance, self.threads = method, balance, threads
        self.degree = p.degree().to(torch.float64)
        self.flows = self.accepted = 0
        self.failed: dict[tuple[int, int], int] = {}  # pairs that did not improve, and how often either had changed
        self.changes = [0] * k

    def table(self) -> Tensor:
        """Strength between modules, float64 [k, k], inner edges twice."""
        return merged(self.p.n, self.p.blocks, self.p.csr, self.labels, self.k).to(torch.float64)

    def conductance(self) -> Tensor:
        """Of every module, float64 [k]."""
        t = self.table()
        return _conductance(t.sum(1) - t.diagonal(), t.sum(1), t.sum())

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Pairs of modules that share edges, strongest first, without those known not to improve."""
        t = self.table()
        found = [(-float(t[a, b]), a, b) for a, b in combinations(range(self.k), 2) if t[a, b] > 0]
        for _, a, b in sorted(found):
            if self.failed.get((a, b)) != self.changes[a] + self.changes[b]:
                yield a, b

    def refine(self, a: int, b: int) -> bool:
        """Improve two modules against each other until nothing is found; whether anything was."""
        any_change = False
        while True:
            better = self._better(a, b)
            if better is None:
                self.failed[a, b] = self.changes[a] + self.changes[b]
                return any_change
            self.labels = better
            self.changes[a] += 1
            self.changes[b] += 1
            self.accepted += 1
            any_change = True

    def _better(self, a: int, b: int) -> Tensor | None:
        """Labels in which modules a and b are better, or None."""
        now = self._score(self.labels, a, b)
        for held in (False, True) if self.balance else (False,):
            for side in self._candidates(a, b, held):
                labels = self.labels.clone()
                both = (labels == a) | (labels == b)
                labels[both] = torch.where(side[both], a, b)
                volume = torch.stack([self.degree[labels == x].sum() for x in (a, b)])
                least = min(self.balance * float(volume.sum()), *self._volumes(a, b)) * (1 - 1e-12)
                if not (labels == a).any() or not (labels == b).any() or float(volume.min()) < least:
                    continue
                score = self._score(labels, a, b)
                if sum(score) < sum(now) * (1 - _PROGRESS) and max(score) <= max(now):
                    return labels
        return None

    def _volumes(self, a: int, b: int) -> tuple[float, float]:
        return float(self.degree[self.labels == a].sum()), float(self.degree[self.labels == b].sum())

    def _score(self, labels: Tensor, a: int, b: int) -> tuple[float, float]:
        total, out = self.degree.sum(), []
        for x in (a, b):
            side = labels == x
            cut = torch.tensor(float(self.p.cut_value(side)), dtype=torch.float64)
            out.append(float(_conductance(cut, self.degree[side].sum(), total)))
        return out[0], out[1]

    def _candidates(self, a: int, b: int, held: bool) -> Iterator[Tensor]:
        """Sets (bool [n], the side of a) that Dinkelbach's iteration passes through, the last and best first."""
        va, vb = self._volumes(a, b)
        if not va or not vb:
            return
        small, large = (a, b) if va <= vb else (b, a)
        inside, both = self.labels == small, (self.labels == a) | (self.labels == b)
        theta = min(va, vb) / max(va, vb)
        net = _Network(self, both, inside, self._core(small, large) if held else None)
        cut = net.cut_of(inside)
        alpha, found = cut / min(va, vb), []
        for _ in range(_NEWTON):
            if alpha <= 0:
                break
            side = net.minimum(alpha, theta)
            self.flows += 1
            gain = float(self.degree[side & inside].sum() - theta * self.degree[side & ~inside].sum())
            if gain <= 0:
                break
            quotient = net.cut_of(side) / gain
            if quotient >= alpha * (1 - _PROGRESS):
                break
            alpha = quotient
            found.append(side)
        for side in reversed(found):
            yield side if small == a else both & ~side

    def _core(self, small: int, large: int) -> Tensor:
        """The vertices deepest in each module, up to the share of the volume that it must keep, bool [n]."""
        total = sum(self._volumes(small, large))
        core = torch.zeros(self.p.n, dtype=torch.bool)
        for x, other in ((small, large), (large, small)):
            ids = torch.nonzero(self.labels == x).flatten()
            pull = _pull(self.p, self.labels == x) - _pull(self.p, self.labels == other)
            count = int(self.unit.max()) + 1
            depth, volume = (
                torch.zeros(count, dtype=torch.float64).index_add_(0, self.unit[ids], y[ids])
                for y in (pull, self.degree)
            )
            mine = torch.unique(self.unit[ids])
            mine = mine[torch.argsort(-(depth[mine] / volume[mine].clamp(min=1e-300)), stable=True)]
            enough = int((torch.cumsum(volume[mine], 0) < self.balance * total).sum()) + 1
            kept = torch.zeros(count, dtype=torch.bool)
            kept[mine[:enough]] = True
            core[ids] = kept[self.unit[ids]]
        return core


class _Network:
    """The two modules with every head drawn together, ready to be tied to a source and a sink."""

    def __init__(self, work: _Work, both: Tensor, inside: Tensor, core: Tensor | None) -> None:
        self.work, self.both, self.inside = work, both, inside
        sizes = torch.bincount(work.unit)
        wide = torch.unique(work.unit[both & (sizes[work.unit] > 1)])
        group = torch.full((work.p.n,), -1, dtype=torch.int64)
        number = torch.full((len(sizes),), -1, dtype=torch.int64)
        number[wide] = torch.arange(len(wide))
        group[both] = number[work.unit[both]]
        group[~both] = len(wide)  # all other modules: drawn together, and left out below
        small, self.kept = contracted(work.p, group, len(wide) + 1)
        self.small = _without_last(small)
        m = len(self.kept)
        self.at = torch.full((work.p.n,), -1, dtype=torch.int64)
        self.at[self.kept] = torch.arange(m)
        drawn = both & (group >= 0)
        self.at[drawn] = m + group[drawn]
        self.volume = self._sum(work.degree)
        self.within = torch.zeros(self.small.n, dtype=torch.bool)
        self.within[self.at[inside]] = True
        self.fixed = None if core is None else torch.zeros(self.small.n, dtype=torch.bool)
        if self.fixed is not None and core is not None:
            self.fixed[self.at[core & both]] = True
        self.strong = 2 * float(self.volume.sum())  # no cut costs as much

    def _sum(self, x: Tensor) -> Tensor:
        return torch.zeros(self.small.n, dtype=torch.float64).index_add_(0, self.at[self.both], x[self.both])

    def cut_of(self, side: Tensor) -> float:
        """Capacity between a set and the rest of the two modules."""
        mine = torch.zeros(self.small.n, dtype=torch.bool)
        mine[self.at[side & self.both]] = True
        return float(self.small.cut_value(mine))

    def minimum(self, alpha: float, theta: float) -> Tensor:
        """The set that minimises cut(S) - alpha (vol(S & A) - theta vol(S - A)), bool [n]."""
        w = self.small
        ties = torch.zeros(2, w.n, dtype=torch.float64)
        ties[0] = torch.where(self.within, alpha * self.volume, 0.0)
        shut = self.strong if self.work.method == "mqi" else 0.0
        ties[1] = torch.where(self.within, 0.0, alpha * theta * self.volume + shut)
        if self.fixed is not None:
            ties[0][self.fixed & self.within] += self.strong
            ties[1][self.fixed & ~self.within] += self.strong
        s, t = w.n, w.n + 1
        if w.csr is None:
            blocks = (*(_floats(b) for b in w.blocks), DenseBlock(ties, s, 0, False))
            tied = Problem(w.n + 2, torch.float64, blocks)
        else:
            i, j = torch.nonzero(ties).unbind(1)
            x = ties[i, j].numpy()
            a = w.csr.astype(np.float64).tocoo()
            ends = np.concatenate([a.coords[0], i + s, j]), np.concatenate([a.coords[1], j, i + s])
            rows = canonical(sp.coo_array((np.concatenate([a.data, x, x]), ends), shape=(w.n + 2, w.n + 2)))
            tied = Problem(w.n + 2, torch.float64, (), rows)
        side = solve(tied, s, t, self.work.threads).side
        return self.both & side[self.at.clamp(min=0)]


def _without_last(p: Problem) -> Problem:
    """The graph without its last vertex."""
    n = p.n - 1
    blocks = []
    for b in p.blocks:
        values = b.values[: n - b.row_offset, : n - b.col_offset]
        if values.numel():
            blocks.append(replace(b, values=values if values.stride(1) == 1 else values.contiguous()))
    return Problem(n, p.dtype, tuple(blocks), None if p.csr is None else canonical(p.csr[:n, :n]))


def _floats(b: DenseBlock) -> DenseBlock:
    return b if b.values.is_floating_point() else replace(b, values=b.values.to(torch.float64))


def _pull(p: Problem, side: Tensor) -> Tensor:
    """The capacity between every vertex and a set, float64 [n]."""
    out = torch.zeros(p.n, dtype=torch.float64)
    for b in p.blocks:
        r, c = (slice(o, o + size) for o, size in zip((b.row_offset, b.col_offset), b.values.shape, strict=True))
        kind = torch.float64 if p.integer else b.values.dtype
        values = b.values.to(kind)
        out[r] += (values @ side[c].to(kind)).double()
        if b.symmetric:
            out[r] -= torch.where(side[r], torch.diagonal(values), 0.0).double()
        else:
            out[c] += (side[r].to(kind) @ values).double()
    if p.csr is not None:
        out += torch.from_numpy(np.asarray(p.csr @ side.numpy().astype(np.float64)))
    return out


def _conductance(cut: Tensor, volume: Tensor, total: Tensor) -> Tensor:
    least = torch.minimum(volume, total - volume)
    return torch.where(least > 0, cut / least.clamp(min=1e-300), torch.ones_like(least))
