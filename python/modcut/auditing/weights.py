"""How far the weights of a set of units moved between two models of one architecture."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from modcut.graph.types import WeightGraph


def check_same_architecture(a: nn.Module, b: nn.Module) -> None:
    """Check that two models have the same parameters and buffers.

    Raises:
        TypeError: one is no module.
        ValueError: a name or a shape differs; the message names the first.
    """
    for model in (a, b):
        if not isinstance(model, nn.Module):
            raise TypeError(f"both models must be torch.nn.Modules, got {type(model).__name__}")
    one, two = a.state_dict(), b.state_dict()
    for name in one:
        if name not in two:
            raise ValueError(f"both models must have the same architecture: {name!r} is missing from the second")
        if one[name].shape != two[name].shape:
            raise ValueError(
                f"both models must have the same architecture: {name!r} has shape {list(one[name].shape)} in the first "
                f"and {list(two[name].shape)} in the second"
            )
    for name in two:
        if name not in one:
            raise ValueError(f"both models must have the same architecture: {name!r} is missing from the first")


def paired(graph: WeightGraph, a: nn.Module, b: nn.Module) -> Iterator[tuple[str, Tensor, Tensor, Tensor, Tensor]]:
    """Yield every matrix of the graph as it is in both models: ``(name, in a, in b, row_vertex, col_vertex)``.

    The graph holds views of the parameters of the model it was traced from; the same views are taken of the other's.

    Raises:
        ValueError: a matrix is a view of neither model's parameters.
    """
    names: dict[int, tuple[int, str]] = {}
    models = [dict(m.named_parameters(remove_duplicate=False)) for m in (a, b)]
    for owner, parameters in enumerate(models):
        for name, p in parameters.items():
            names.setdefault(p.untyped_storage().data_ptr(), (owner, name))
    for m in graph.matrices:
        found = names.get(m.weight.untyped_storage().data_ptr())
        if found is None:
            raise ValueError(
                f"P must have been found on one of the two models: its matrix {m.name!r} is no view of their parameters"
            )
        owner, name = found
        own, other = models[owner][name], models[1 - owner][name]
        if own.stride() != other.stride():
            raise ValueError(f"parameter {name!r} must be laid out in memory alike in both models")
        shift = m.weight.storage_offset() - own.storage_offset() + other.storage_offset()
        twin = torch.as_strided(other.detach(), m.weight.size(), m.weight.stride(), shift)
        here = m.weight.detach()
        first, second = (here, twin) if owner == 0 else (twin, here)
        yield m.name, first, second, m.row_vertex, m.col_vertex


def weight_change(graph: WeightGraph, a: nn.Module, b: nn.Module, sets: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far the weights inside, and at the border of, sets of vertices moved from ``a`` to ``b``.

    The change of a group of weights is ``|B - A| / sqrt((|A|^2 + |B|^2) / 2)`` with Frobenius norms: 0 for equal
    weights, at most 2. Inside are the weights between two vertices of the set, at the border those with one end in it.

    Args:
        graph: traced from ``a`` or ``b``.
        a: a model.
        b: another of the same architecture.
        sets: bool [m, n].

    Returns:
        (inside, border), float64 [m] each; 0 where a set has no such weight. O(m * weights).
    """
    member = torch.cat([sets.float(), torch.zeros(sets.shape[0], 1)], dim=1)  # the last column answers for "no vertex"
    sums = torch.zeros(2, 2, sets.shape[0], dtype=torch.float64)  # [moved or size, inside or border, set]
    for _, first, second, rows, cols in paired(graph, a, b):
        first, second = first.to("cpu", torch.float32), second.to("cpu", torch.float32)
        squares = ((second - first).square(), (first.square() + second.square()) / 2)
        r, c = member[:, rows.cpu()], member[:, cols.cpu()]
        for i, square in enumerate(squares):
            square = square.flatten(2).sum(2) if square.ndim > 2 else square
            read = r @ square  # what the rows in the set read, per column
            sums[i, 0] += (read * c).sum(1, dtype=torch.float64)
            # Not "all that touches the set minus twice the inside": an unmoved border must come out as zero.
            sums[i, 1] += (read * (1 - c)).sum(1, dtype=torch.float64)
            sums[i, 1] += (((1 - r) @ square) * c).sum(1, dtype=torch.float64)
    moved, size = sums
    change = torch.where(size > 0, (moved / size.clamp_min(torch.finfo(torch.float64).tiny)).sqrt(), 0.0)
    return change[0], change[1]


__all__ = ["check_same_architecture", "paired", "weight_change"]
