"""The matched random control: where every "random module of the same make-up" in modcut is drawn.

A module is a set of vertices with a certain number in every axis class (`Space.family`: one hidden layer, all heads of
one attention layer, the residual stream). Its control must keep those numbers, or the comparison measures the size or
the depth of the module instead of its choice of units. Whole heads stay whole.
"""

from __future__ import annotations

import torch
from torch import Tensor

from modcut.graph.types import Space, WeightGraph


def family_permutation(graph: WeightGraph, generator: torch.Generator) -> Tensor:
    """Draw a random permutation of the vertices, uniform among those that keep every axis class and every head whole.

    Vertices move only inside their family. Where spaces belong to an attention head, heads of equal make-up trade
    places as wholes (position by position), so a set of whole heads stays a set of whole heads.

    Args:
        graph: the graph whose ``spaces`` say what may trade places. [n] vertices.
        generator: the source of randomness (CPU); the draw is a function of its state alone.

    Returns:
        int64 [n]: vertex ``v`` plays the part of vertex ``permutation[v]``. O(n).
    """
    permutation = torch.arange(graph.n)
    loose: dict[str, list[Tensor]] = {}
    heads: dict[str, list[Space]] = {}
    for space in graph.spaces:
        if space.head:
            heads.setdefault(space.head, []).append(space)
        else:
            ids = torch.arange(space.offset, space.offset + space.size)
            loose.setdefault(space.family or space.name, []).append(ids)
    for parts in loose.values():
        ids = torch.cat(parts)
        permutation[ids] = ids[torch.randperm(len(ids), generator=generator)]
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
    """Return ``labels`` dealt out at random inside every axis class: a random partition of the same make-up, [n]."""
    return labels.cpu()[family_permutation(graph, generator)]


def matched_units(graph: WeightGraph, units: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a random module with as many units in every axis class as ``units`` has.

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
    return torch.nonzero(member[family_permutation(graph, generator)]).flatten()
