"""The graph of units: heads become one vertex each, inputs and outputs leave. What trees on co-usage are read on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from modcut.graph.types import Block, Kind, Space, WeightGraph
from modcut.graph.units import units_of

INNER: tuple[Kind, ...] = ("hidden", "head", "residual")


@dataclass(frozen=True, eq=False)
class Contracted:
    """A graph whose vertices are units, and where each vertex of the original graph went."""

    graph: WeightGraph
    vertex: Tensor
    """int64 [n of the original]: the unit vertex, -1 for what is left out."""

    def expand(self, values: Tensor, missing: int | float | bool = 0) -> Tensor:
        """Give every original vertex the value [units] of its unit; ``missing`` where it has none."""
        out = torch.full((self.vertex.numel(),), missing, dtype=values.dtype)
        kept = self.vertex >= 0
        out[kept] = values[self.vertex[kept]]
        return out


def contract(graph: WeightGraph, kinds: Collection[str] = INNER) -> Contracted:
    """Return the graph of units: every attention head is one vertex, vertices of other ``kinds`` are left out.

    Capacities between two units are the sum over their vertices, computed now (not live). Where the chosen kinds share
    no edge (a network with one hidden layer and no residual stream), all kinds are kept.

    Capacity matrices keep their shape [units, units] per pair of families: never n x n.
    """
    units = units_of(graph)
    blocks = [b for b in graph.blocks if b.rows.kind in kinds and b.cols.kind in kinds]
    if not blocks:
        kinds, blocks = {s.kind for s in graph.spaces}, list(graph.blocks)
    new_id = torch.full((units.count,), -1, dtype=torch.int64)
    spaces: dict[int, Space] = {}
    offset = 0
    for i, (name, kind, ids) in enumerate(units.members()):
        if kind in kinds:
            new_id[ids] = torch.arange(offset, offset + ids.numel())
            spaces[i] = Space(name, ids.numel(), kind, offset, name)  # type: ignore[arg-type]
            offset += ids.numel()
    vertex = new_id[units.unit]
    capacity: dict[tuple[int, int], Tensor] = {}
    for b in blocks:
        c = b.capacity().detach().to("cpu", torch.float64)
        r, k = vertex[b.rows.vertices], vertex[b.cols.vertices]
        i, j = int(units.family[units.unit[b.rows.offset]]), int(units.family[units.unit[b.cols.offset]])
        if i > j or (i == j and b.symmetric):
            c, r, k, i, j = c.T, k, r, j, i
        a, z = spaces[i], spaces[j]
        rows = torch.zeros(a.size, c.shape[1], dtype=torch.float64).index_add_(0, r - a.offset, c)
        part = torch.zeros(a.size, z.size, dtype=torch.float64).index_add_(1, k - z.offset, rows)
        if i == j and not b.symmetric:
            part = part + part.T
        capacity[i, j] = capacity[i, j] + part if (i, j) in capacity else part
    new = tuple(
        Block(
            spaces[i],
            spaces[j],
            c,
            "contracted",
            torch.arange(spaces[i].size)[:, None],
            torch.arange(spaces[j].size)[:, None],
            lambda block: block.weight,
            symmetric=i == j,
        )
        for (i, j), c in capacity.items()
    )
    return Contracted(WeightGraph(tuple(spaces.values()), new, graph.edge), vertex)
