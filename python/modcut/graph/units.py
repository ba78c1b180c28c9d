"""What moves as one when vertices are labelled: single neurons, and whole attention heads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from modcut.graph.types import Kind, Matrix, WeightGraph

CLUSTERED: tuple[Kind, ...] = ("hidden", "head")
"""Kinds of vertices that belong to one layer and are clustered by function; the others follow them by weight."""


@dataclass(frozen=True, eq=False)
class Units:
    """Units of a graph and the families (axis classes) inside which their labels are balanced."""

    unit: Tensor
    """int64 [n]: the unit of every vertex."""
    family: Tensor
    """int64 [units]: the family of every unit."""
    families: tuple[str, ...]
    kinds: tuple[str, ...]
    """Kind of each family (that of its first space)."""
    size: Tensor
    """int64 [units]: vertices per unit."""

    @property
    def count(self) -> int:
        """Number of units."""
        return int(self.family.numel())

    def members(self) -> Iterator[tuple[str, str, Tensor]]:
        """Yield (family, kind, unit ids int64) of every family, in vertex order."""
        for i, (name, kind) in enumerate(zip(self.families, self.kinds, strict=True)):
            yield name, kind, torch.nonzero(self.family == i).flatten()

    def sum(self, values: Tensor) -> Tensor:
        """Add up values [..., n] over the vertices of each unit, [..., units]."""
        out = torch.zeros(*values.shape[:-1], self.count, dtype=values.dtype)
        return out.index_add_(-1, self.unit, values.cpu())


def units_of(graph: WeightGraph) -> Units:
    """Return the graph's units: every space of an attention head is one unit, every other vertex its own. O(n)."""
    unit = torch.full((graph.n,), -1, dtype=torch.int64)
    family: list[Tensor] = []
    names: dict[str, int] = {}
    kinds: list[str] = []
    heads: dict[str, int] = {}
    count = 0
    # A head's family is that of its first space, so that its query-key and value spaces agree.
    for s in graph.spaces:
        if s.head and s.head in heads:
            unit[s.vertices] = heads[s.head]
            continue
        name = s.family or s.name
        if name not in names:
            names[name] = len(names)
            kinds.append(s.kind)
        if s.head:
            heads[s.head] = count
            unit[s.vertices] = count
            family.append(torch.tensor([names[name]]))
            count += 1
        else:
            unit[s.vertices] = torch.arange(count, count + s.size)
            family.append(torch.full((s.size,), names[name]))
            count += s.size
    ids = torch.cat(family) if family else torch.zeros(0, dtype=torch.int64)
    return Units(unit, ids, tuple(names), tuple(kinds), torch.bincount(unit, minlength=count))


def check_labels(graph: WeightGraph, labels: Tensor, k: int | None = None) -> tuple[Tensor, int]:
    """Return labels as int64 [n] on the CPU and the number of modules.

    Raises:
        TypeError: labels are not integers.
        ValueError: wrong length, negative, or not below ``k``.
    """
    labels = torch.as_tensor(labels)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    if labels.shape != (graph.n,):
        raise ValueError(f"labels must have one entry per vertex, shape [{graph.n}], got {list(labels.shape)}")
    labels = labels.detach().to("cpu", torch.int64)
    top = int(labels.max()) + 1 if labels.numel() else 0
    if labels.numel() and int(labels.min()) < 0:
        raise ValueError(f"labels must be in [0, k), got {int(labels.min())}")
    if k is not None and top > k:
        raise ValueError(f"labels must be in [0, {k}), got {top - 1}")
    return labels, max(top, 1) if k is None else k


def strength(matrix: Matrix, input_mean_square: Tensor | None = None) -> Tensor:
    """Return the non-negative strength of every entry of a matrix, float32 [rows, cols].

    ``|W|`` with the gains of adjacent normalisations folded in; with ``input_mean_square`` [cols], ``|W|`` times the
    root mean square of the actual input (which already holds the gain before the matrix). Trailing kernel axes add up.

    Raises:
        ValueError: the weights hold NaN or infinity.
    """
    w = matrix.weight.detach()
    a = w.abs().float()
    a = a.flatten(2).sum(2) if a.ndim > 2 else a
    if not bool(torch.isfinite(a).all()):
        raise ValueError(f"the weights of {matrix.name} must be finite, got NaN or infinity")
    if input_mean_square is not None:
        a = a * input_mean_square.to(a.device).float().sqrt()
    elif matrix.gain is not None:
        a = a * matrix.gain().detach().to(a.device).float().abs()
    if matrix.row_gain is not None:
        a = a * matrix.row_gain().detach().to(a.device).float().abs().reshape(-1, 1)
    return a
