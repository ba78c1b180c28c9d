"""Soft labels: every unit in several modules at once, equally many units per module, ever harder as they cool."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from modcut.clustering import affinity_of
from modcut.graph.types import WeightGraph
from modcut.graph.units import units_of

HOT, COLD = 1.0, 0.05
"""Temperatures at the start and the end of the ramp."""


def sinkhorn(scores: Tensor, temperature: float, *, rounds: int = 200, tolerance: float = 1e-6) -> Tensor:
    """Return exp(scores / temperature) scaled to rows that sum to 1 and columns that sum to units / k.

    Sinkhorn's algorithm in logarithms (Cuturi 2013): no temperature overflows. As it falls, the labels go to the
    balanced assignment of largest total score.

    Args:
        scores: [units, k].
        temperature: above 0.
        rounds: at most so many; stops where columns are right to ``tolerance``.
        tolerance: relative.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    units, k = scores.shape
    x = scores.double() / temperature
    target = torch.log(torch.tensor(units / k, dtype=x.dtype))
    for _ in range(rounds):
        x = x - torch.logsumexp(x, 0, keepdim=True) + target
        x = x - torch.logsumexp(x, 1, keepdim=True)
        if bool(((x.exp().sum(0) / (units / k) - 1).abs() <= tolerance).all()):
            break
    return x.exp().to(scores.dtype)


def temperature_at(weight: float) -> float:
    """Return the temperature where the schedule's weight is in [0, 1]: geometric from hot to cold."""
    return float(HOT * (COLD / HOT) ** min(max(weight, 0.0), 1.0))


def mean_field(
    graph: WeightGraph,
    labels: Tensor,  # [n, k], rows sum to 1
    temperature: float,
    mean_square: Mapping[str, Tensor] | None = None,
) -> Tensor:  # [n, k]
    """Let every layer in turn take the soft labels that its neighbours' labels pull it to (deterministic annealing).

    A layer's pulls are doubly normalised weights times its neighbours' labels, divided by their spread, so that one
    temperature fits all layers; whole heads share a row.
    """
    units = units_of(graph)
    k = labels.shape[1]
    size = units.size.to(labels.dtype).clamp_min(1)
    s = torch.zeros(units.count, k, dtype=torch.float32)
    s.index_add_(0, units.unit, labels.float().cpu())
    s = s / size[:, None].float().cpu()
    pull_of = affinity_of(graph, units, mean_square)
    for family in range(len(units.families)):
        ids = torch.nonzero(units.family == family).flatten()
        pull = pull_of(s, family)[ids]
        pull = pull - pull.mean(1, keepdim=True)
        spread = float(pull.square().mean().sqrt())
        s[ids] = sinkhorn(pull / spread if spread > 0 else pull, temperature)
    return s[units.unit].to(labels.dtype)
