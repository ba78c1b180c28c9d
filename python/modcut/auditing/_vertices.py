"""How every function of this package names a set of vertices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from modcut.partition import Module, Partition

Which = int | Module | Sequence[int] | slice | Tensor
"""A module index, several of them, a :class:`Module`, or vertices: a slice of ids, int64 ids, or a bool mask [n]."""


def vertices_of(P: Partition, modules: Which | Sequence[Module]) -> Tensor:
    """Return the vertices that ``modules`` names, int64 ascending without repeats, on the CPU.

    Integers and sequences of integers are module indices; a tensor or a slice holds vertex ids.

    Raises:
        TypeError: ``modules`` is none of these.
        ValueError: an index is out of range, or no vertex is named.
    """
    n = P.graph.n
    labels = P.labels.to("cpu")
    if labels.numel() != n:
        raise ValueError(f"P.labels must have one label per vertex of P.graph ({n}), got {labels.numel()}")
    if isinstance(modules, slice):
        units = torch.arange(n)[modules]
    elif isinstance(modules, Tensor) and modules.dtype == torch.bool:
        if modules.shape != (n,):
            raise ValueError(f"a mask of vertices must have shape [{n}], got {list(modules.shape)}")
        units = torch.nonzero(modules.to("cpu")).flatten()
    elif isinstance(modules, Tensor):
        if modules.is_floating_point() or modules.ndim != 1:
            raise TypeError(f"vertex ids must be an integer tensor [count], got {modules.dtype} {list(modules.shape)}")
        units = torch.unique(modules.to("cpu", torch.int64))
        if units.numel() and not (int(units[0]) >= 0 and int(units[-1]) < n):
            raise ValueError(f"vertex ids must be in [0, {n}), got {int(units[0])} .. {int(units[-1])}")
    else:
        wanted = _indices(modules)
        for i in wanted:
            if not 0 <= i < P.k:
                raise ValueError(f"modules must be indices in [0, {P.k}), got {i}")
        units = torch.nonzero(torch.isin(labels, torch.tensor(wanted, dtype=labels.dtype))).flatten()
    if not units.numel():
        raise ValueError(f"modules must name at least one vertex, but {_brief(modules)} is empty")
    return units


def _indices(modules: object) -> list[int]:
    if isinstance(modules, (int, np.integer)) and not isinstance(modules, bool):
        return [int(modules)]
    if isinstance(modules, Module):
        return [modules.index]
    if isinstance(modules, Sequence) and not isinstance(modules, (str, bytes)):
        found = []
        for m in modules:
            if isinstance(m, bool) or not isinstance(m, (int, np.integer, Module)):
                break
            found.append(m.index if isinstance(m, Module) else int(m))
        else:
            return found
    raise TypeError(
        "modules must be a module index, a sequence of them, a Module, a slice of vertex ids, or a tensor of vertex "
        f"ids or a bool mask, got {_brief(modules)}"
    )


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
