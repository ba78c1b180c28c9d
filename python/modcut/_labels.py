"""Labels for the modularity loss: found by function or by weights, given, renamed to match older ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from modcut.clustering import functional_labels, spectral_labels
from modcut.graph.statistics import Statistics
from modcut.graph.types import WeightGraph
from modcut.graph.units import CLUSTERED, check_labels, units_of
from modcut.partition import Partition


def find_labels(
    graph: WeightGraph,
    k: int,
    seed: int,
    statistics: Statistics | None,
    measured: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, str]:
    """Return labels int64 [n] and where they come from: function where there are statistics, else the weights.

    Functional labels need samples in which usage varies; the sentence says what was missing. ``measured``: running mean
    squares of the matrices' inputs, for labels from the weights.
    """
    why = "no usage was gathered and no data given"
    if statistics is not None:
        observed = {m: x for m, x in statistics.input_mean_square.items() if m not in statistics.not_observed}
        if statistics.windows < 2:
            why = f"{statistics.windows} samples with a backward pass were seen, at least 2 are needed"
        else:
            try:
                labels = functional_labels(graph, statistics.profile, k, seed, input_mean_square=observed)
                return labels, f"functional, from {statistics.windows} samples"
            except ValueError as error:
                why = str(error)
    labels = spectral_labels(graph, k, seed, input_mean_square=measured)
    return labels, f"spectral, from the weights alone ({why})"


def largest_layer(graph: WeightGraph) -> int:
    """Return the number of units (neurons or whole heads) of the largest layer."""
    return max((ids.numel() for _, kind, ids in units_of(graph).members() if kind in CLUSTERED), default=0)


def check_k(graph: WeightGraph, k: int) -> None:
    """Raise ValueError unless the graph can be cut into k modules."""
    most = largest_layer(graph)
    if isinstance(k, bool) or not isinstance(k, int) or k < 1 or (most and k > most):
        raise ValueError(f"k must be between 1 and the number of units of the largest layer ({most}), got {k}")


def given_labels(graph: WeightGraph, partition: Partition | Tensor) -> tuple[Tensor, int]:
    """Return the labels int64 [n] of a partition, or of a tensor of labels, and the number of modules.

    Raises:
        TypeError, ValueError: they are not labels of this graph.
    """
    if isinstance(partition, Partition):
        mine = [(s.name, s.size, s.offset) for s in graph.spaces]
        if [(s.name, s.size, s.offset) for s in partition.graph.spaces] != mine:
            raise ValueError(
                f"partition must be of this model's graph ({graph.n} vertices in {len(mine)} spaces), "
                f"got one of {partition.graph.n} vertices in {len(partition.graph.spaces)} spaces"
            )
        return partition.labels, partition.k
    labels, found = check_labels(graph, partition)
    return labels, found


def aligned(old: Tensor, new: Tensor, k: int) -> Tensor:
    """Rename the modules of ``new`` so that they overlap most with ``old``."""
    overlap = torch.zeros(k, k, dtype=torch.int64).index_put_((new, old), torch.ones_like(new), accumulate=True)
    rows, cols = linear_sum_assignment(-overlap.numpy())
    rename = torch.from_numpy(np.asarray(cols)[np.argsort(rows)])
    return rename[new]
