"""Find modules in a network and test what they do: the public face of clustering, surgery and ablation."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from modcut import _batches, provenance
from modcut.clustering import attach_by_weight, choose_k, functional_labels, slice_labels, spectral_labels
from modcut.controls import matched_labels
from modcut.graph import interventions
from modcut.graph.contract import Contracted, contract
from modcut.graph.edges import shuffled, usage, with_edge
from modcut.graph.statistics import Statistics, collect
from modcut.graph.types import WeightGraph
from modcut.graph.units import CLUSTERED
from modcut.partition import Partition
from modcut.surgery import Healed, cut_and_heal, cut_and_run

__all__ = [
    "Healed",
    "Specialisation",
    "TreeCut",
    "cut_and_heal",
    "cut_and_run",
    "find_modules",
    "specialisation",
    "tree_cut",
]

Method = Literal["auto", "functional", "spectral", "tree"]


def find_modules(
    model_or_graph: nn.Module | WeightGraph,
    k: int | Literal["auto"] = "auto",
    *,
    data: _batches.Data | None = None,
    method: Method = "auto",
    seed: int = 0,
    loss_fn: _batches.LossFn | None = None,
    example_inputs: Any = None,
    statistics: Statistics | None = None,
    max_k: int = 8,
    max_batches: int | None = None,
    power: float = 4,
    progress: bool = False,
) -> Partition:
    """Partition a network's vertices into modules, balanced inside every layer, whole heads together.

    - ``functional``: clusters units by how ``|activation x gradient|`` varies over the windows of ``data``; no labels.
      A dict of loaders gives labelled slices: with k = their number (or "auto"), module i is what slice i uses most.
    - ``spectral``: layer-stratified spectral clustering of the weights; needs no data, and often finds nothing that the
      network does (structure follows function, not the other way).
    - ``tree``: exact Gomory-Hu tree on co-usage capacities, its k - 1 best edges by cut / volume; not balanced. For
      networks of a few thousand vertices. Its shuffled-profile null is in ``meta``.
    - ``auto``: functional where there are data or statistics, else spectral.

    Args:
        model_or_graph: A model, or its graph (then statistics come from ``statistics`` or the graph, not from data).
        k: Number of modules; "auto" takes the largest gap of the spectrum (2 .. max_k).
        data: Batches (or a dict of slices).
        method: See above.
        seed: Seed of everything random; equal seeds give equal labels.
        loss_fn: ``loss_fn(model, batch) -> scalar`` where the model returns no loss.
        example_inputs: For tracing the model; default the first batch of ``data``.
        statistics: Gathered before (:func:`modcut.graph.statistics.collect`, ``Recorder.statistics()``).
        max_k: Largest k that "auto" considers.
        max_batches: Use at most so many batches of each slice.
        power: Exponent of the co-usage correlation for ``tree``.
        progress: Show a progress bar while statistics are gathered.

    Returns:
        The partition. Found in data, its graph carries the statistics and contribution edges; ``meta`` says how it was
        found and what the null of the same size is.

    Raises:
        ValueError: k out of range, unknown method, missing data, no hidden units, NaN in weights or loss.
        TypeError: neither a model nor a graph.
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    if k != "auto":
        if isinstance(k, bool) or not hasattr(k, "__index__"):
            raise TypeError(f'k must be an integer or "auto", got {k!r}')
        k = operator.index(k)
    graph, model, data = _graph(model_or_graph, data, example_inputs)
    if data is not None and model is None:
        raise ValueError("data needs the model: call find_modules(model, data=...), or pass statistics=")
    if method == "spectral":
        statistics = None
    elif data is not None and model is not None and statistics is None:
        statistics = collect(graph, model, data, loss_fn, max_batches=max_batches, progress=progress)
    elif statistics is None and isinstance(graph.statistics, Statistics) and graph.statistics.windows:
        statistics = graph.statistics
    if method == "auto":
        method = "functional" if statistics is not None else "spectral"
    meta: dict[str, Any] = {"method": method, "seed": seed, "k_chosen_by": "caller"}
    if model is not None:
        meta["model"] = provenance.digest(model)
    meta["stamp"] = provenance.stamp()
    if method == "spectral":
        if k == "auto":
            k, meta["spectrum"] = choose_k(graph, max_k=max_k, seed=seed)
            meta["k_chosen_by"] = "eigengap"
        return Partition(spectral_labels(graph, k, seed), graph, k, meta)
    if statistics is None:
        raise ValueError(f'method="{method}" needs data (or statistics gathered before), got none')
    meta["statistics"] = statistics.to_dict()
    meta["units_without_usage"] = _unused(graph, statistics)
    if isinstance(model_or_graph, WeightGraph):
        graph = replace(graph, statistics=statistics)
    else:
        graph = with_edge(graph, "contribution", statistics)
    squares = {n: s for n, s in statistics.input_mean_square.items() if n not in statistics.not_observed}
    slices = len(statistics.slice_names)
    labelled = method == "functional" and slices > 1 and k in ("auto", slices)
    if k == "auto":
        if labelled:
            k, meta["k_chosen_by"] = slices, "slices"
        else:
            k, meta["spectrum"] = choose_k(graph, statistics.profile, max_k=max_k, seed=seed)
            meta["k_chosen_by"] = "eigengap"
            # A gap exists in any spectrum: the same eigenvalue with every profile shuffled says what chance gives.
            null = choose_k(graph, shuffled(statistics, seed, graph).profile, max_k=max_k, seed=seed)[1]
            meta["null_spectrum"] = null
    if labelled:
        meta["slices"] = list(statistics.slice_names)
        labels = slice_labels(graph, statistics.profile, statistics.slice, input_mean_square=squares)
    elif method == "functional":
        meta["control"] = "null_spectrum: profiles shuffled over windows" if "null_spectrum" in meta else None
        labels = functional_labels(graph, statistics.profile, k, seed, input_mean_square=squares)
    else:
        real = tree_cut(graph, statistics, power=power)
        null_cut = tree_cut(graph, shuffled(statistics, seed, graph), power=power)
        labels = attach_by_weight(graph, real.labels(k), k)
        meta |= {
            "conductance": real.conductance[: k - 1],
            "null_conductance": null_cut.conductance[: k - 1],
            "trivial_fraction": real.tree.trivial_fraction,
            "control": f"profiles shuffled over windows, seed {seed}",
        }
    return Partition(labels, graph, k, meta)


def _graph(
    model_or_graph: Any, data: _batches.Data | None, example_inputs: Any
) -> tuple[WeightGraph, nn.Module | None, _batches.Data | None]:
    """Return the graph, the model, and the data with whatever was looked at put back."""
    if isinstance(model_or_graph, WeightGraph):
        return model_or_graph, None, data
    if not isinstance(model_or_graph, nn.Module):
        raise TypeError(f"the first argument must be a model or its WeightGraph, got {type(model_or_graph).__name__}")
    from modcut.graph.trace import weight_graph

    model = _batches.unwrap(model_or_graph)
    if example_inputs is None and data is not None:
        batch, data = _batches.peek(data)
        batch = _batches.to_device(batch, _batches.device_of(model_or_graph))
        # The shape is what tracing needs; two samples keep it quick.
        size = _batches.batch_size(batch)
        if isinstance(batch, Mapping):
            example_inputs = {
                key: v[:2] if isinstance(v, Tensor) and v.ndim and v.shape[0] == size else v for key, v in batch.items()
            }
        else:
            example_inputs = _batches.inputs_of(batch)[:2]
    return weight_graph(model, example_inputs), model, data


def _unused(graph: WeightGraph, statistics: Statistics) -> int:
    """Number of neurons and heads that no window used (or no hook could see): their labels only keep the balance."""
    z, units = usage(graph, statistics.profile)
    clustered = torch.zeros(units.count, dtype=torch.bool)
    for _, kind, ids in units.members():
        clustered[ids] = kind in CLUSTERED
    return int((clustered & ~z.any(0)).sum())


# -- tree readout -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class TreeCut:
    """An exact Gomory-Hu tree on the co-usage capacities of units, its edges ranked by cut / volume."""

    tree: Any
    """:class:`modcut.tree.CutTree` on the units (neurons, whole heads, residual channels)."""
    contracted: Contracted
    """The graph of units, and which unit every vertex of the model's graph is."""
    edges: Tensor
    """int64: tree edges (their lower unit), best first."""
    conductance: list[float]
    """Cut / smaller volume of those edges; 1 is what any single unit has."""

    def side(self, rank: int = 0) -> Tensor:
        """Return one side of the ``rank``-th best edge, bool [n] over the model's vertices (False where left out)."""
        return self.contracted.expand(self.tree.side(int(self.edges[rank])), False)

    def smaller(self, rank: int = 0) -> int:
        """Number of units on the smaller side of the ``rank``-th best edge."""
        side: Tensor = self.tree.side(int(self.edges[rank]))
        return min(int(side.sum()), int((~side).sum()))

    def labels(self, k: int) -> Tensor:
        """Return the parts left by cutting the k - 1 best edges, int64 [n]; -1 where left out or without strength."""
        if not 1 <= k <= self.tree.n:
            raise ValueError(f"k must be between 1 and the number of units ({self.tree.n}), got {k}")
        # Which of the cut edges a unit lies below is a name for its part.
        names = torch.zeros(self.tree.n, dtype=torch.int64)
        for edge in self.edges[: k - 1].tolist():
            names = torch.unique(names * 2 + self.tree.side(edge).long(), return_inverse=True)[1]
        names[self.contracted.graph.degree() <= 0] = -1
        return self.contracted.expand(names, -1)


def tree_cut(graph: WeightGraph, statistics: Statistics | None = None, *, power: float = 4) -> TreeCut:
    """Return the exact Gomory-Hu tree on co-usage capacities between units, its edges ranked by cut / volume.

    Inputs and outputs are left out (every skill reads and writes them), heads are one vertex each. Read it beside the
    same call on :func:`modcut.graph.edges.shuffled` statistics: weak cuts appear by chance. Where every edge is a
    single vertex's (a star), the best conductance is 1 and there is nothing to see.
    """
    from modcut.cuts import gomory_hu_tree

    contracted = contract(with_edge(graph, "cousage", statistics, power=power))
    tree = gomory_hu_tree(contracted.graph)
    edges, conductance = tree.edges_by_conductance(contracted.graph)
    return TreeCut(tree, contracted, edges, conductance.tolist())


# -- specialisation ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Specialisation:
    """How differently the slices of the data depend on the modules, beside random partitions of the same make-up."""

    tv: float
    """Half the L1 distance between two slices' damage shares (mean over pairs): 0 = same modules, 1 = disjoint."""
    random_tv: tuple[float, ...]
    """The same for random partitions: the control."""
    damage: dict[str, tuple[float, ...]]
    """Loss increase of each slice when each module is ablated."""
    base_loss: dict[str, float]
    ablation: str
    seed: int
    n: int
    k: int
    model: str = ""
    """Digest of the model."""

    @property
    def random_mean(self) -> float:
        """Mean of the control, over the random partitions that have shares (nan where none has)."""
        known = [r for r in self.random_tv if not math.isnan(r)]
        return sum(known) / len(known) if known else math.nan

    @property
    def p(self) -> float:
        """One-sided rank p-value, (1 + random partitions at least as high) / (1 + random partitions)."""
        # A partition without shares (nan) never counts as worse.
        return (1 + sum(not r < self.tv for r in self.random_tv)) / (1 + len(self.random_tv))

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return {
            "tv": _number(self.tv),
            "random_tv": [_number(r) for r in self.random_tv],
            "random_mean": _number(self.random_mean),
            "p": self.p,
            "damage": {name: list(d) for name, d in self.damage.items()},
            "base_loss": self.base_loss,
            "ablation": self.ablation,
            "seed": self.seed,
            "n": self.n,
            "k": self.k,
            "control": f"{len(self.random_tv)} random partitions of the same make-up",
            "model": self.model,
            "stamp": provenance.stamp(),
        }


def _number(x: float) -> float | None:
    """JSON has no nan."""
    return None if math.isnan(x) else x


def specialisation(
    model: nn.Module,
    P: Partition,
    slices: Mapping[str, Any],
    loss_fn: _batches.LossFn | None = None,
    *,
    random: int = 20,
    mode: interventions.Mode = "zero",
    reference: Any = None,
    max_loss: float | Mapping[str, float] | None = None,
    max_batches: int | None = None,
    seed: int = 0,
) -> Specialisation:
    """Ablate each module's units and compare which modules each slice of the data needs.

    Units are hidden neurons, channels and attention heads (residual channels carry everything and are left alone).
    Costs (1 + random) x k + 1 evaluations of all slices.

    Args:
        model: The model that ``P.graph`` was traced from.
        P: The partition.
        slices: Two or more named iterables of batches.
        loss_fn: ``loss_fn(model, batch) -> scalar``.
        random: Number of random partitions (same number of units in every space and module).
        mode: How to ablate, see :func:`modcut.graph.interventions.replace`.
        reference: For mean and resample ablation.
        max_loss: Loss below which a slice counts as learned (one number, or one per slice).
        max_batches: Use at most so many batches of each slice.
        seed: Seed of the random partitions.

    Raises:
        ValueError: fewer than two slices, a random count below 1.
        RuntimeError: a slice is not learned (``max_loss``): what it uses would be noise.
    """
    model = _batches.unwrap(model)
    if len(slices) < 2:
        raise ValueError(f"slices must name at least 2 parts of the data, got {len(slices)}")
    if random < 1:
        raise ValueError(f"random must be at least 1 (no score without its control), got {random}")
    device = _batches.device_of(model)
    batches = {
        name: [_batches.to_device(b, device) for _, b in _batches.iterate(part, max_batches=max_batches)]
        for name, part in slices.items()
    }
    if mode in ("mean", "resample", "noise") and reference is not None and not hasattr(reference, "means"):
        reference = interventions.collect_reference(model, P.graph, reference, keep_samples=mode == "resample")
    causal = interventions.read_vertices(P.graph)
    for s in P.graph.spaces:
        if s.kind not in CLUSTERED:
            causal[s.vertices] = False

    def losses() -> dict[str, float]:
        with torch.no_grad(), interventions.evaluation(model):
            return {
                name: sum(float(_batches.loss_of(model, b, loss_fn)) * _batches.batch_size(b) for b in part)
                / sum(_batches.batch_size(b) for b in part)
                for name, part in batches.items()
            }

    base = losses()
    for name, loss in base.items():
        limit = max_loss.get(name) if isinstance(max_loss, Mapping) else max_loss
        if limit is not None and not loss <= limit:
            raise RuntimeError(
                f"slice {name!r} must be learned before its specialisation means anything: "
                f"loss {loss:.4g}, max_loss {limit:.4g}"
            )

    def damage(labels: Tensor) -> dict[str, list[float]]:
        out: dict[str, list[float]] = {name: [] for name in batches}
        for c in range(P.k):
            with interventions.replace(
                model, P.graph, causal & (labels == c), mode, reference=reference, scale=1.0 if mode == "noise" else 0.0
            ):
                for name, loss in losses().items():
                    out[name].append(loss - base[name])
        return out

    own = damage(P.labels)
    generator = torch.Generator().manual_seed(seed)
    null = tuple(_tv(damage(matched_labels(P.graph, P.labels, generator))) for _ in range(random))
    lost = {name: tuple(d) for name, d in own.items()}
    return Specialisation(_tv(own), null, lost, base, mode, seed, P.graph.n, P.k, provenance.digest(model))


def _tv(damage: Mapping[str, Sequence[float]]) -> float:
    shares = []
    for d in damage.values():
        hurt = torch.tensor(list(d), dtype=torch.float64).clamp_min(0)
        if float(hurt.sum()) <= 0:
            return math.nan  # a slice that no ablation hurts has no shares
        shares.append(hurt / hurt.sum())
    pairs = [(a, b) for i, a in enumerate(shares) for b in shares[i + 1 :]]
    return float(torch.stack([(a - b).abs().sum() / 2 for a, b in pairs]).mean())
