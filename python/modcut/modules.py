"""Find modules in a network and test what they do: the public face of clustering, surgery and ablation."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from modcut import _batches, provenance
from modcut.clustering import attach_by_weight, choose_k, slice_labels, spectral_labels
from modcut.graph.edges import shuffled, usage, with_edge
from modcut.graph.statistics import Statistics, collect
from modcut.graph.types import WeightGraph
from modcut.graph.units import CLUSTERED
from modcut.partition import Partition
from modcut.skills.evidence import Kept
from modcut.skills.finder import find
from modcut.specialise import Specialisation, specialisation
from modcut.surgery import Healed, cut_and_heal, cut_and_run
from modcut.treecut import TreeCut, tree_cut

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
# Windows whose batches are remembered for the ablations that test what was found.
_REMEMBERED = 4096


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
    controls: int = 19,
    progress: bool = False,
) -> Partition:
    """Partition a network's vertices into modules, balanced inside every layer, whole heads together.

    - ``functional``: finds kinds of window by what units do on them (``|activation x gradient|``), and for each the
      units it uses most: module i belongs to kind i. No labels. A dict of loaders gives labelled slices: with k = their
      number (or "auto"), module i is what slice i uses most.
    - ``spectral``: layer-stratified spectral clustering of the weights; needs no data, and often finds nothing that the
      network does (structure follows function, not the other way).
    - ``tree``: exact Gomory-Hu tree on co-usage capacities, its k - 1 best edges by cut / volume; not balanced. For
      networks of a few thousand vertices. Its shuffled-profile null is in ``meta``.
    - ``auto``: functional where there are data or statistics, else spectral.

    Args:
        model_or_graph: A model, or its graph (then statistics come from ``statistics`` or the graph, not from data).
        k: Number of modules. "auto", functional: the number of kinds of window that one half of the data predicts of
            the other; 1 = no skills found, also where the modules do no better on held-out windows than random ones.
            "auto", from weights: the largest gap of the spectrum. A number is obeyed, whatever the evidence says.
        data: Batches (or a dict of slices).
        method: See above.
        seed: Seed of everything random; equal seeds give equal labels.
        loss_fn: ``loss_fn(model, batch) -> scalar`` where the model returns no loss.
        example_inputs: For tracing the model; default the first batch of ``data``.
        statistics: Gathered before (:func:`modcut.graph.statistics.collect`, ``Recorder.statistics()``).
        max_k: Largest k that "auto" considers.
        max_batches: Use at most so many batches of each slice.
        power: Exponent of the co-usage correlation for ``tree``.
        controls: Random partitions that ablation damage on held-out windows is compared with (functional, unlabelled
            ``data``); costs about ``2 * (controls + 2) * k`` evaluations of at most 256 windows. 0 = no ablation.
            Fewer than 19 can never reach p = .05.
        progress: Show a progress bar while statistics are gathered.

    Returns:
        The partition. Found in data, its graph carries the statistics and contribution edges; ``meta`` says how it was
        found: ``meta["verdict"]`` in words, ``meta["evidence"]`` (:class:`modcut.skills.Evidence` as plain values) with
        the kinds of window, shuffled null, stability and ablation beside random partitions, ``meta["windows"]`` the
        kind of every window and ``meta["typical"]`` the most typical windows of each.

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
    if isinstance(controls, bool) or not isinstance(controls, int) or controls < 0:
        raise ValueError(f"controls must be an integer of at least 0, got {controls!r}")
    kept: Kept | None = None
    if method == "spectral":
        statistics = None
    elif data is not None and model is not None and statistics is None:
        if controls > 0 and method in ("auto", "functional") and k != 1 and not _sliced(data):
            data = kept = Kept(data, windows=_REMEMBERED)
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
    if k == "auto" and method == "tree":
        k, meta["spectrum"] = choose_k(graph, statistics.profile, max_k=max_k, seed=seed)
        meta["k_chosen_by"] = "eigengap"
        # A gap exists in any spectrum: the same eigenvalue with every profile shuffled says what chance gives.
        meta["null_spectrum"] = choose_k(graph, shuffled(statistics, seed, graph).profile, max_k=max_k, seed=seed)[1]
    if labelled:
        meta |= {"slices": list(statistics.slice_names), "k_chosen_by": "slices" if k == "auto" else "caller"}
        k = slices
        labels = slice_labels(graph, statistics.profile, statistics.slice, input_mean_square=squares)
    elif method == "functional":
        found = find(
            graph, statistics, k, model=model, kept=kept, loss_fn=loss_fn, controls=controls, max_k=max_k, seed=seed,
            input_mean_square=squares,
        )  # fmt: skip
        k, labels = found.k, found.labels
        meta |= found.meta
        if progress:
            print(found.evidence)
    else:
        assert k != "auto"
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


def _sliced(data: _batches.Data) -> bool:
    return isinstance(data, Mapping) and not all(isinstance(v, Tensor) for v in data.values())


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
