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

from modcut import _notebook
from modcut import metrics as _metrics
from modcut.controls import matched_labels
from modcut.graph.types import WeightGraph
from modcut.graph.units import check_labels, units_of
from modcut.metrics import Interfaces, Significance
from modcut.metrics import adjusted_rand as adjusted_rand

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
        return _metrics.tables(self.graph, self.labels[None], self.k)[0]

    @property
    def leak(self) -> float:
        """Share of a target vertex's incoming strength that comes from other modules.

        Mean over the live vertices of each family, then over families. Strength is contribution ``|W| rms(input)``
        where the graph carries statistics, else folded ``|W|``. No rescaling of sources or targets moves the former.
        """
        self._measurable()
        return float(_metrics.leaks(self.graph, self.labels[None])[0])

    @property
    def ncut(self) -> float:
        """Normalised cut, sum over modules of cut / volume, in [0, k]; a module without volume counts 1."""
        self._measurable()
        return float(_metrics.ncut(self.table[None])[0])

    @property
    def modularity(self) -> float:
        """Newman's Q: share of strength inside modules minus its expectation at the same degrees."""
        self._measurable()
        return float(_metrics.modularity(self.table[None])[0])

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
        return _metrics.interfaces_of(self.graph, self.labels, self.k, top=5)

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
            tables = _metrics.tables(self.graph, labels, self.k) if {"ncut", "modularity"} & set(wanted) else None
            for m in wanted:
                if m == "leak":
                    values[m].append(_metrics.leaks(self.graph, labels))
                elif tables is not None:
                    values[m].append(_metrics.ncut(tables) if m == "ncut" else _metrics.modularity(tables))
        return {m: _metrics.compare(m, torch.cat(v), shuffles, seed) for m, v in values.items()}

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
            "ncut": float(_metrics.ncut(t[None])[0]) if known else None,
            "modularity": float(_metrics.modularity(t[None])[0]) if known else None,
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
        origin = "".join(f", {key}={self.meta[key]!r}" for key in ("method", "seed") if key in self.meta)
        return f"Partition(k={self.k}, n={self.n}, sizes={sizes}, edge={self.graph.edge!r}{origin})"

    def _repr_html_(self) -> str:
        """Show the modules in a notebook: units, and how much of their strength leaves them."""
        known = bool(self.graph.blocks)
        sizes = torch.bincount(self.labels, minlength=self.k).tolist()
        parts = self.conductance.tolist() if known else [None] * self.k
        figures = f"leak {self.leak:.3g}, n-cut {self.ncut:.3g} of {self.k}, Q {self.modularity:.3g}" if known else ""
        note = f"{figures}; no control measured: see P.significance()" if known else "without edges: nothing measured"
        rows = zip(range(self.k), sizes, parts, strict=True)
        return _notebook.table(["module", "units", "conductance"], rows, caption=repr(self), note=note)

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


def _spaces(graph: WeightGraph) -> list[dict[str, Any]]:
    return [asdict(s) for s in graph.spaces]
