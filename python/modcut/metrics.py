"""What a labelling scores on a graph: passes over the blocks, never n x n, and the comparison with a null.

:class:`modcut.partition.Partition` is the public face; here a stack of labellings [s, n] is scored in one pass, so
that a null of many random partitions reads every weight once.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from modcut.graph.types import Block, WeightGraph
from modcut.graph.units import strength


@dataclass(frozen=True)
class Interface:
    """The edges between two modules i < j (undirected; sources are a matrix's columns, targets its rows)."""

    edges: int
    """Weights of positive strength (parallel ones, as a query's and a key's, count each)."""
    strength: float
    """Their total strength."""
    fraction: float
    """Share of the strength of the whole graph."""
    forward: float
    """Strength of the edges that lead from module i to module j."""
    backward: float
    """Strength of the edges that lead from module j to module i."""
    top: tuple[tuple[int, int, float], ...]
    """The strongest edges: (source vertex, target vertex, strength)."""


class Interfaces(dict[tuple[int, int], Interface]):
    """Interfaces by pair of modules; ``(j, i)`` finds the same as ``(i, j)``."""

    def __missing__(self, key: tuple[int, int]) -> Interface:
        if (key[1], key[0]) in self:
            return self[key[1], key[0]]
        raise KeyError(key)


@dataclass(frozen=True)
class Significance:
    """A metric beside the same metric of label-shuffled partitions of the same make-up."""

    metric: str
    value: float
    null_mean: float
    null_std: float
    z: float
    """(value - null_mean) / null_std: grows with the size of the network, so it is no effect size."""
    effect: float
    """(value - null_mean) / |null_mean|: the effect size."""
    p: float
    """One-sided, (1 + shuffles at least as good) / (1 + shuffles)."""
    shuffles: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Return the figure and its control as plain values."""
        return {**asdict(self), "n": self.shuffles, "control": "labels dealt at random inside every space"}


def adjusted_rand(a: Tensor, b: Tensor) -> float:
    """Return the adjusted Rand index of two labellings [m]: 1 the same partition, about 0 unrelated (Hubert 1985)."""
    a, b = torch.as_tensor(a).flatten(), torch.as_tensor(b).flatten()
    if a.shape != b.shape:
        raise ValueError(f"labellings must have the same length, got {a.numel()} and {b.numel()}")
    x, y = torch.unique(a, return_inverse=True)[1], torch.unique(b, return_inverse=True)[1]
    rows, cols = int(x.max()) + 1 if len(x) else 1, int(y.max()) + 1 if len(y) else 1
    table = torch.bincount(x * cols + y, minlength=rows * cols).reshape(rows, cols).double()

    def pairs(counts: Tensor) -> float:
        return float((counts * (counts - 1) / 2).sum())

    both, left, right, total = pairs(table), pairs(table.sum(1)), pairs(table.sum(0)), pairs(table.sum())
    expected = left * right / total if total else 0.0
    most = (left + right) / 2
    return 1.0 if most == expected else (both - expected) / (most - expected)


# -- passes over the weights ------------------------------------------------------------------------------------------


def _capacity(block: Block) -> Tensor:
    c = block.capacity().detach().to("cpu")
    c = c if c.dtype == torch.float64 else c.float()
    if block.rows == block.cols and not c.is_sparse:  # a sparse block is made without a diagonal
        c = c - torch.diag(torch.diagonal(c))
    return c


def _one_hot(labels: Tensor, k: int, dtype: torch.dtype) -> Tensor:
    """Indicators of a stack of labellings [s, m] side by side, [m, s * k]."""
    return torch.nn.functional.one_hot(labels, k).to(dtype).permute(1, 0, 2).flatten(1)


def tables(graph: WeightGraph, labels: Tensor, k: int) -> Tensor:
    """Strength between modules for a stack of labellings int64 [s, n]: float64 [s, k, k], both directions counted."""
    s = labels.shape[0]
    table = torch.zeros(s, k, k, dtype=torch.float64)
    for block in graph.blocks:
        c = _capacity(block)
        right = (c @ _one_hot(labels[:, block.cols.vertices], k, c.dtype)).reshape(-1, s, k)
        left = torch.nn.functional.one_hot(labels[:, block.rows.vertices], k).to(c.dtype)
        part = torch.einsum("sra,rsb->sab", left, right).double()
        table += part if block.symmetric else part + part.transpose(1, 2)
    return table


def ncut(table: Tensor) -> Tensor:
    """Return the normalised cut of each table [s, k, k]: sum of cut / volume, a module without volume counts 1."""
    volume, inside = table.sum(2), table.diagonal(dim1=1, dim2=2)
    share = torch.where(volume > 0, (volume - inside) / volume.clamp_min(1e-300), torch.ones_like(volume))
    return share.sum(1)


def modularity(table: Tensor) -> Tensor:
    """Return Newman's Q of each table [s, k, k]."""
    total = table.sum((1, 2)).clamp_min(1e-300)
    inside = table.diagonal(dim1=1, dim2=2).sum(1) / total
    return inside - ((table.sum(2) / total[:, None]) ** 2).sum(1)


def leaks(graph: WeightGraph, labels: Tensor) -> Tensor:
    """Contribution-share leak for a stack of labellings int64 [s, n], float64 [s]."""
    s, k = labels.shape[0], int(labels.max()) + 1 if labels.numel() else 1
    incoming = torch.zeros(graph.n, dtype=torch.float64)
    inside = torch.zeros(s, graph.n, dtype=torch.float64)
    statistics = graph.statistics
    observed = getattr(statistics, "input_mean_square", {})
    missing = set(getattr(statistics, "not_observed", ()))
    for m in graph.matrices:
        a = strength(m, None if m.name in missing else observed.get(m.name)).cpu()
        r, c = m.row_vertex.cpu(), m.col_vertex.cpu()
        a, r, c = a[r >= 0][:, c >= 0], r[r >= 0], c[c >= 0]
        if bool(torch.isin(r, c).any()):
            a = a * (r[:, None] != c)  # self-loops do not count, as everywhere in the graph
        if not r.numel() or not c.numel():
            continue
        right = (a @ _one_hot(labels[:, c], k, a.dtype)).reshape(-1, s, k)  # [rows, s, k]
        own = right.gather(2, labels[:, r].T[:, :, None]).squeeze(2)  # [rows, s]
        incoming.index_add_(0, r, a.sum(1).double())
        inside.index_add_(1, r, own.T.double())
    if not graph.matrices:  # a graph given as a matrix: every vertex is a target of all its edges
        for block in graph.blocks:
            a = _capacity(block)
            for x, rows, cols in ((a, block.rows, block.cols), (a.T, block.cols, block.rows)):
                right = (x @ _one_hot(labels[:, cols.vertices], k, x.dtype)).reshape(-1, s, k)
                own = right.gather(2, labels[:, rows.vertices].T[:, :, None]).squeeze(2)
                total = x.sum(1)
                incoming[rows.vertices] += (total.to_dense() if total.is_sparse else total).double()
                inside[:, rows.vertices] += own.T.double()
                if block.symmetric:
                    break
    means = []
    families: dict[str, Tensor] = {}
    for space in graph.spaces:
        live = families.setdefault(space.family or space.name, torch.zeros(graph.n, dtype=torch.bool))
        live[space.vertices] = incoming[space.vertices] > 0
    for live in families.values():
        if bool(live.any()):
            means.append((1 - inside[:, live] / incoming[live]).clamp_min(0).mean(1))
    return torch.stack(means).mean(0) if means else torch.zeros(s, dtype=torch.float64)


def compare(metric: str, values: Tensor, shuffles: int, seed: int) -> Significance:
    """Return the first of the values beside the others, its null; low is good, but for modularity."""
    value, null = float(values[0]), values[1:]
    mean, std = float(null.mean()), float(null.std(unbiased=False))
    # Rounding must not decide between a partition and its own relabelling.
    slack = 1e-9 * (abs(value) + abs(mean))
    good = null >= value - slack if metric == "modularity" else null <= value + slack
    z = (value - mean) / std if std > 0 else 0.0
    effect = (value - mean) / abs(mean) if mean else 0.0
    return Significance(metric, value, mean, std, z, effect, (1 + int(good.sum())) / (1 + shuffles), shuffles, seed)


def interfaces_of(graph: WeightGraph, labels: Tensor, k: int, top: int) -> Interfaces:
    """Return what connects each two modules, with the ``top`` strongest edges of each pair."""
    edges = torch.zeros(k, k, dtype=torch.int64)
    total = torch.zeros(k, k, dtype=torch.float64)  # [target module, source module]
    best: dict[tuple[int, int], list[tuple[int, int, float]]] = {}
    everything = 0.0
    for block in graph.blocks:
        c = _capacity(block)
        if block.symmetric:
            c = c.triu(1)
        everything += float(c.sum(dtype=torch.float64))
        rows, cols = labels[block.rows.vertices], labels[block.cols.vertices]
        # Sorted by label, every pair of modules is one contiguous sub-block: the whole pass reads each weight once.
        ro, co = rows.argsort(stable=True), cols.argsort(stable=True)
        rs, cs = torch.bincount(rows, minlength=k).tolist(), torch.bincount(cols, minlength=k).tolist()
        c = c[ro][:, co]
        i0 = 0
        for i in range(k):
            j0 = 0
            for j in range(k):
                part = c[i0 : i0 + rs[i], j0 : j0 + cs[j]]
                if i != j and part.numel():
                    edges[i, j] += int((part > 0).sum())
                    total[i, j] += float(part.sum(dtype=torch.float64))
                    found = part.flatten().topk(min(top, part.numel()))
                    for value, at in zip(found.values.tolist(), found.indices.tolist(), strict=True):
                        if value > 0:
                            target = int(ro[i0 + at // cs[j]]) + block.rows.offset
                            source = int(co[j0 + at % cs[j]]) + block.cols.offset
                            best.setdefault((min(i, j), max(i, j)), []).append((source, target, value))
                j0 += cs[j]
            i0 += rs[i]
    out = Interfaces()
    for i in range(k):
        for j in range(i + 1, k):
            strongest = sorted(best.get((i, j), []), key=lambda e: (-e[2], e[0], e[1]))[:top]
            weight = float(total[i, j] + total[j, i])
            out[i, j] = Interface(
                edges=int(edges[i, j] + edges[j, i]),
                strength=weight,
                fraction=weight / everything if everything > 0 else 0.0,
                forward=float(total[j, i]),
                backward=float(total[i, j]),
                top=tuple(strongest),
            )
    return out
