"""A partition of a graph's vertices into modules, its metrics, and the null that belongs beside each."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modcut.controls import matched_labels
from modcut.graph.types import Block, WeightGraph
from modcut.graph.units import check_labels, strength, units_of

_FORMAT = "modcut-partition-1"
# Label-shuffled partitions are scored together, so that each block is read once per so many shuffles.
_TOGETHER = 16


@dataclass(frozen=True)
class Module:
    """One module: a set of vertices."""

    index: int
    units: Tensor
    """int64 [size]: vertex ids."""

    @property
    def size(self) -> int:
        """Number of vertices."""
        return int(self.units.numel())


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


@dataclass(frozen=True, eq=False)
class Partition:
    """Labels of the vertices of ``graph``; every vertex is in one module (whole attention heads share one label).

    Metrics are computed from the live weights each time they are asked for, one pass over the blocks, never n x n.
    """

    labels: Tensor
    """int64 [n], values 0 .. k-1."""
    graph: WeightGraph
    k: int
    meta: dict[str, Any] = field(default_factory=dict)
    """Where the partition came from: method, seed, control, versions."""

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise ValueError(f"k must be an integer of at least 1, got {self.k!r}")
        labels, _ = check_labels(self.graph, self.labels, self.k)
        object.__setattr__(self, "labels", labels)

    @property
    def n(self) -> int:
        """Number of vertices."""
        return int(self.labels.numel())

    @property
    def modules(self) -> tuple[Module, ...]:
        """The modules, in label order."""
        return tuple(Module(i, torch.nonzero(self.labels == i).flatten()) for i in range(self.k))

    @property
    def table(self) -> Tensor:
        """Strength between every two modules, float64 [k, k], symmetric; the diagonal counts inner edges twice."""
        return _tables(self.graph, self.labels[None], self.k)[0]

    @property
    def leak(self) -> float:
        """Share of a target vertex's incoming strength that comes from other modules.

        Mean over the live vertices of each family, then over families. Strength is contribution ``|W| rms(input)``
        where the graph carries statistics, else folded ``|W|``. No rescaling of sources or targets moves the former.
        """
        self._measurable()
        return float(_leaks(self.graph, self.labels[None])[0])

    @property
    def ncut(self) -> float:
        """Normalised cut, sum over modules of cut / volume, in [0, k]; a module without volume counts 1."""
        self._measurable()
        return float(_ncut(self.table[None])[0])

    @property
    def modularity(self) -> float:
        """Newman's Q: share of strength inside modules minus its expectation at the same degrees."""
        self._measurable()
        return float(_modularity(self.table[None])[0])

    def _measurable(self) -> None:
        if self.n and not self.graph.blocks:
            raise ValueError(
                "P.graph must have edges to be measured, it has none "
                "(a loaded partition needs them: Partition.load(path, modcut.weight_graph(model)))"
            )

    @property
    def conductance(self) -> Tensor:
        """Cut / min(volume, rest of the volume) of every module, float64 [k]; 1 where either is empty."""
        t = self.table
        volume, inside = t.sum(1), t.diagonal()
        least = torch.minimum(volume, volume.sum() - volume)
        return torch.where(least > 0, (volume - inside) / least.clamp_min(1e-300), torch.ones_like(least))

    @property
    def balance(self) -> dict[str, Tensor]:
        """Units (neurons, channels, whole heads) of every module in each family, int64 [k] per family."""
        units = units_of(self.graph)
        label = torch.zeros(units.count, dtype=torch.int64)
        label[units.unit] = self.labels
        return {name: torch.bincount(label[ids], minlength=self.k) for name, _, ids in units.members()}

    @property
    def dead(self) -> Tensor:
        """Vertices whose strength is below 1e-3 of their family's median (or zero), int64 [m]."""
        degree, out = self.graph.degree(), []
        families: dict[str, list[Tensor]] = {}
        for s in self.graph.spaces:
            families.setdefault(s.family or s.name, []).append(torch.arange(s.offset, s.offset + s.size))
        for parts in families.values():
            ids = torch.cat(parts)
            d = degree[ids]
            if d.numel():
                out.append(ids[(d <= 0) | (d < 1e-3 * d.median())])
        return torch.cat(out).sort().values if out else torch.zeros(0, dtype=torch.int64)

    @property
    def interfaces(self) -> Interfaces:
        """What connects each two modules; the five strongest edges by name of vertex. One pass over the blocks."""
        return _interfaces(self.graph, self.labels, self.k, top=5)

    def significance(
        self, shuffles: int = 100, seed: int = 0, metrics: Iterable[str] = ("leak", "ncut", "modularity")
    ) -> dict[str, Significance]:
        """Compare with partitions of the same make-up whose labels are dealt at random inside every space.

        Whole heads stay whole. Note what this does not show: a z-score against shuffles is not an effect size, and
        structure in the weights is not specialisation.

        Args:
            shuffles: Number of random partitions, at least 1.
            seed: Seed of the shuffles.
            metrics: Among leak, ncut (lower is better) and modularity (higher is better).
        """
        self._measurable()
        if shuffles < 1:
            raise ValueError(f"shuffles must be at least 1, got {shuffles}")
        wanted = tuple(metrics)
        unknown = [m for m in wanted if m not in ("leak", "ncut", "modularity")]
        if unknown:
            raise ValueError(f"metrics must be among leak, ncut, modularity, got {unknown[0]!r}")
        generator = torch.Generator().manual_seed(seed)
        stack = [self.labels] + [matched_labels(self.graph, self.labels, generator) for _ in range(shuffles)]
        values: dict[str, list[Tensor]] = {m: [] for m in wanted}
        for i in range(0, len(stack), _TOGETHER):
            labels = torch.stack(stack[i : i + _TOGETHER])
            tables = _tables(self.graph, labels, self.k) if {"ncut", "modularity"} & set(wanted) else None
            for m in wanted:
                if m == "leak":
                    values[m].append(_leaks(self.graph, labels))
                elif tables is not None:
                    values[m].append(_ncut(tables) if m == "ncut" else _modularity(tables))
        return {m: _compare(m, torch.cat(v), shuffles, seed) for m, v in values.items()}

    def summary(self, *, interfaces: bool = False) -> dict[str, Any]:
        """Return the metrics as plain numbers (two passes over the weights; interfaces are a third)."""
        t = self.table
        balance = self.balance
        # Without edges (a file loaded without its model) there is nothing to measure, and 0 would read as perfect.
        known = bool(self.graph.blocks)
        out: dict[str, Any] = {
            "n": self.n,
            "k": self.k,
            "edge": self.graph.edge,
            "sizes": torch.bincount(self.labels, minlength=self.k).tolist(),
            "leak": self.leak if known else None,
            "ncut": float(_ncut(t[None])[0]) if known else None,
            "modularity": float(_modularity(t[None])[0]) if known else None,
            "conductance": self.conductance.tolist() if known else None,
            "largest_imbalance": max((int(c.max() - c.min()) for c in balance.values()), default=0),
            "dead": int(self.dead.numel()) if known else None,
        }
        if interfaces:
            out["interfaces"] = [{"modules": list(pair), **asdict(x)} for pair, x in self.interfaces.items()]
        return out

    def to_dict(self) -> dict[str, Any]:
        """Return metrics, interfaces and origin as plain values for JSON (labels are saved by :meth:`save`)."""
        return {**self.summary(interfaces=True), "meta": dict(self.meta)}

    def __repr__(self) -> str:
        sizes = torch.bincount(self.labels, minlength=self.k).tolist()
        return f"Partition(k={self.k}, n={self.n}, sizes={sizes}, edge={self.graph.edge!r}, meta={self.meta})"

    # -- files --------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write labels, the graph's spaces and the origin to one safetensors file (no weights, no code)."""
        from safetensors.torch import save_file

        header = {
            "format": _FORMAT,
            "k": str(self.k),
            "spaces": json.dumps(_spaces(self.graph)),
            "meta": json.dumps(self.meta, default=str),
        }
        save_file({"labels": self.labels.contiguous()}, str(path), metadata=header)

    @staticmethod
    def load(path: str | os.PathLike[str], graph: WeightGraph | None = None) -> Partition:
        """Read a partition; without a ``graph`` it has the vertices of the saved one but no edges.

        Raises:
            ValueError: not a modcut partition, or one of another model's graph.
            FileNotFoundError: no such file.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise FileNotFoundError(f"no file {path}")
        try:
            with safe_open(str(path), framework="pt") as file:
                header = file.metadata() or {}
                if header.get("format") != _FORMAT:
                    raise ValueError(f"{path} must be a modcut partition ({_FORMAT}), got {header.get('format')!r}")
                labels = file.get_tensor("labels")
                k, saved, meta = int(header["k"]), json.loads(header["spaces"]), json.loads(header["meta"])
        except (SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} must be a modcut partition, but cannot be read as one: {error}") from error
        if graph is None:
            from modcut.graph.types import Space

            graph = WeightGraph(tuple(Space(**s) for s in saved), (), edge="none")
        elif (here := _spaces(graph)) != saved:
            differs = next((a for a, b in zip(saved, here, strict=False) if a != b), {"name": "their number"})
            raise ValueError(
                f"{path} belongs to another model: it has {labels.numel()} vertices in {len(saved)} spaces, the graph "
                f"{graph.n} in {len(graph.spaces)} (first difference: {differs['name']})"
            )
        return Partition(labels, graph, k, meta)


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


def cross_masks(graph: WeightGraph, labels: Tensor) -> dict[str, Tensor]:
    """Return which weights cross modules: per matrix name, bool [rows, cols], True where both ends' labels differ.

    Rows and columns without a vertex are False. Raises ValueError for labels of the wrong length.
    """
    labels, _ = check_labels(graph, labels)
    masks = {}
    for m in graph.matrices:
        r, c = m.row_vertex.cpu(), m.col_vertex.cpu()
        row, col = labels[r.clamp_min(0)], labels[c.clamp_min(0)]
        masks[m.name] = (row[:, None] != col[None, :]) & (r >= 0)[:, None] & (c >= 0)[None, :]
    return masks


# -- passes over the weights ------------------------------------------------------------------------------------------


def _capacity(block: Block) -> Tensor:
    c = block.capacity().detach().to("cpu")
    c = c if c.dtype == torch.float64 else c.float()
    if block.rows == block.cols:
        c = c - torch.diag(torch.diagonal(c))
    return c


def _one_hot(labels: Tensor, k: int, dtype: torch.dtype) -> Tensor:
    """Indicators of a stack of labellings [s, m] side by side, [m, s * k]."""
    return torch.nn.functional.one_hot(labels, k).to(dtype).permute(1, 0, 2).flatten(1)


def _tables(graph: WeightGraph, labels: Tensor, k: int) -> Tensor:
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


def _ncut(table: Tensor) -> Tensor:
    volume, inside = table.sum(2), table.diagonal(dim1=1, dim2=2)
    share = torch.where(volume > 0, (volume - inside) / volume.clamp_min(1e-300), torch.ones_like(volume))
    return share.sum(1)


def _modularity(table: Tensor) -> Tensor:
    total = table.sum((1, 2)).clamp_min(1e-300)
    inside = table.diagonal(dim1=1, dim2=2).sum(1) / total
    return inside - ((table.sum(2) / total[:, None]) ** 2).sum(1)


def _leaks(graph: WeightGraph, labels: Tensor) -> Tensor:
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
                incoming[rows.vertices] += x.sum(1).double()
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


def _compare(metric: str, values: Tensor, shuffles: int, seed: int) -> Significance:
    value, null = float(values[0]), values[1:]
    mean, std = float(null.mean()), float(null.std(unbiased=False))
    # Rounding must not decide between a partition and its own relabelling.
    slack = 1e-9 * (abs(value) + abs(mean))
    good = null >= value - slack if metric == "modularity" else null <= value + slack
    z = (value - mean) / std if std > 0 else 0.0
    effect = (value - mean) / abs(mean) if mean else 0.0
    return Significance(metric, value, mean, std, z, effect, (1 + int(good.sum())) / (1 + shuffles), shuffles, seed)


def _interfaces(graph: WeightGraph, labels: Tensor, k: int, top: int) -> Interfaces:
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


def _spaces(graph: WeightGraph) -> list[dict[str, Any]]:
    return [asdict(s) for s in graph.spaces]
