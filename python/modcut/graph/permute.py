"""Permute the neurons of a space in every parameter that knows them: the function must not change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from modcut.graph.types import Space, WeightGraph


def permute_(graph: WeightGraph, space: Space | str, perm: Sequence[int] | Tensor | np.ndarray) -> None:
    """Replace neuron i of a space by what was neuron ``perm[i]``, in all parameters and buffers, in place.

    A neuron with several positions on an axis (channels of a flattened image, queries that share a key) takes all of
    them along. Tied parameters move once. States of optimizers are not touched.

    Raises:
        ValueError: ``perm`` is no permutation of the space; the space is not in the graph; or fewer than all
            permutations leave the function unchanged (``space.fixed`` says why) and ``perm`` is not the identity.
    """
    found = next((s for s in graph.spaces if s == space or s.name == space), None)
    if found is None:
        raise ValueError(f"space must be one of the graph's {len(graph.spaces)} spaces, got {space!r}")
    order = torch.as_tensor(np.asarray(perm) if not isinstance(perm, Tensor) else perm).to("cpu", torch.int64)
    if order.shape != (found.size,) or not torch.equal(order.sort().values, torch.arange(found.size)):
        raise ValueError(f"perm must hold each of 0 .. {found.size - 1} once, got {order.tolist()}")
    if torch.equal(order, torch.arange(found.size)):
        return
    if found.fixed:
        raise ValueError(f"space {found.name} cannot be permuted: {found.fixed}")
    if not graph.axes:
        raise ValueError("the graph was made from a matrix: it has no parameters to permute")
    with torch.no_grad():
        for axis in graph.axes:
            local = axis.vertex - found.offset
            at = torch.nonzero((local >= 0) & (local < found.size)).flatten()
            if not at.numel():
                continue
            table = at[torch.argsort(local[at], stable=True)].reshape(found.size, -1)  # [neurons, positions]
            target, source = table.flatten(), table[order].flatten()
            device = axis.tensor.device
            moved = axis.tensor.index_select(axis.axis, source.to(device))
            axis.tensor.index_copy_(axis.axis, target.to(device), moved)
