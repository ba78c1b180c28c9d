"""The matched random control: where every "random module of the same make-up" in modcut is drawn.

A module is a set of vertices with a certain number in every space (one hidden layer, the residual stream) and certain
attention heads. Its control must keep those numbers, or the comparison measures the size or the depth of the module
instead of its choice of units. Whole heads stay whole and are dealt among the heads of their own layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from modcut.graph.types import Space, WeightGraph


def matched_permutation(graph: WeightGraph, generator: torch.Generator) -> Tensor:
    """Draw a random permutation of the vertices, uniform among those that keep every space and every head whole.

    Vertices move only inside their space. Where spaces belong to an attention head, heads of the same layer and make-up
    trade places as wholes (position by position), so a set of whole heads stays a set of whole heads.

    Args:
        graph: the graph whose ``spaces`` say what may trade places. [n] vertices.
        generator: the source of randomness (CPU); the draw is a function of its state alone.

    Returns:
        int64 [n]: vertex ``v`` plays the part of vertex ``permutation[v]``. O(n).
    """
    permutation = torch.arange(graph.n)
    heads: dict[str, list[Space]] = {}
    for space in graph.spaces:
        if space.head:
            heads.setdefault(space.head, []).append(space)
        else:
            permutation[space.vertices] = space.offset + torch.randperm(space.size, generator=generator)
    # Heads trade places only with heads of the same families and sizes: those of their own layer.
    alike: dict[tuple[tuple[str, int], ...], list[list[Space]]] = {}
    for spaces in heads.values():
        alike.setdefault(tuple((s.family, s.size) for s in spaces), []).append(spaces)
    for group in alike.values():
        for here, there in zip(group, torch.randperm(len(group), generator=generator).tolist(), strict=True):
            for a, b in zip(here, group[there], strict=True):
                permutation[a.vertices] = torch.arange(b.offset, b.offset + b.size)
    return permutation


def matched_labels(graph: WeightGraph, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return ``labels`` dealt out at random inside every space: a random partition of the same make-up, [n]."""
    return labels.cpu()[matched_permutation(graph, generator)]


def matched_units(graph: WeightGraph, units: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a random module with as many units in every space, and as many heads in every layer, as ``units`` has.

    The draw is from all units, so it may overlap the module: under the null hypothesis "the choice of units does not
    matter" the module and its controls are exchangeable, and a rank among them is an exact p-value.

    Args:
        graph: the graph the vertex ids belong to.
        units: int64 [size], vertex ids without repeats.
        generator: the source of randomness.

    Returns:
        int64 [size], sorted.
    """
    member = torch.zeros(graph.n, dtype=torch.bool)
    member[units.cpu()] = True
    return torch.nonzero(member[matched_permutation(graph, generator)]).flatten()
