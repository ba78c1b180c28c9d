"""Which weights the modularity loss reads, and how they lie in its flat vectors.

A *term* is one matrix with the columns of one sort: inner (neurons of the network) or boundary (inputs, outputs).
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modcut.graph.types import Block, Matrix, WeightGraph


class LiveWeight:
    """A matrix of the graph, looked up in the model each time: survives ``.to()``, loading and parametrisations.

    Holds the owning submodule weakly, so that a loss never keeps its model alive.
    """

    def __init__(self, model: nn.Module, matrix: Matrix | Block) -> None:
        holder = matrix.name if isinstance(matrix, Matrix) else matrix.source
        name, parameter = _parameter_of(model, matrix.weight, holder)
        owner_name, _, self._attribute = name.rpartition(".")
        self.name, self.matrix, self.owner_name = name, holder, owner_name
        self._owner = weakref.ref(model.get_submodule(owner_name))
        w = matrix.weight
        self._shape, self._stride = tuple(parameter.shape), parameter.stride()
        self._size, self._steps = tuple(w.shape), w.stride()
        self._offset = w.storage_offset() - parameter.storage_offset()
        self._whole = self._size == self._shape and self._steps == self._stride and not self._offset
        self._transposed = (
            w.ndim == 2 and self._size == self._shape[::-1] and self._steps == self._stride[::-1] and not self._offset
        )

    @property
    def owner(self) -> nn.Module:
        """The submodule that holds the parameter."""
        owner = self._owner()
        if owner is None:
            raise RuntimeError(f"the model whose parameter {self.name} this loss reads no longer exists")
        return owner

    def parameter(self) -> Tensor:
        """Return the parameter as it is now.

        Raises:
            RuntimeError: the model is gone, or the parameter changed its shape or memory layout.
        """
        p: Tensor = getattr(self.owner, self._attribute)
        if p.shape != self._shape or p.stride() != self._stride:
            raise RuntimeError(
                f"parameter {self.name} must keep the shape and strides it had when the loss was built, "
                f"{list(self._shape)} {list(self._stride)}, got {list(p.shape)} {list(p.stride())}: build a new loss"
            )
        return p

    def view(self, p: Tensor) -> Tensor:
        """Return the part of a tensor laid out like the parameter that is the matrix, [rows, cols, *kernel]."""
        if self._whole:
            return p
        if self._transposed:
            return p.t()
        return p.as_strided(self._size, self._steps, p.storage_offset() + self._offset)

    def get(self) -> Tensor:
        """Return the matrix as a differentiable view of the parameter, [rows, cols, *kernel]."""
        return self.view(self.parameter())


def _parameter_of(model: nn.Module, weight: Tensor, holder: str) -> tuple[str, Tensor]:
    storage = weight.untyped_storage().data_ptr()
    here = [
        (name, p)
        for name, p in model.named_parameters(remove_duplicate=False)
        if p.untyped_storage().data_ptr() == storage
    ]
    # Several names: tied parameters, or views of one flat buffer. The graph's own name decides.
    named = [x for x in here if holder == x[0] or holder.startswith(x[0])]
    if not here:
        raise ValueError(
            f"graph must have been traced from this model: none of its parameters holds the weights of {holder}"
        )
    return max(named, key=lambda x: len(x[0])) if named else here[0]


@dataclass(frozen=True)
class Terms:
    """The terms of the loss, one after the other: R rows, C columns, G groups in all."""

    weights: tuple[LiveWeight, ...]
    matrices: tuple[Matrix, ...]
    row_vertex: Tensor
    """int64 [R], -1: not part of the term."""
    col_vertex: Tensor
    """int64 [C], -1: not part of the term."""
    row_group: Tensor
    """int64 [R]: the axis class a row is averaged in."""
    group_weight: Tensor
    """float64 [G]: 1 for inner classes, the dial for classes at inputs or outputs."""
    group_names: tuple[str, ...]
    widths: tuple[int, ...]
    """Columns of every term."""
    heights: tuple[int, ...]
    """Rows of every term."""
    witnesses: tuple[Matrix, ...]
    """Matrices that are no term and read inner neurons: their inputs show which neurons are dead."""


def terms_of(model: nn.Module, graph: WeightGraph, inputs: float, outputs: float) -> Terms:
    """Lay out every matrix of the graph that the loss reads.

    Rows are averaged inside axis classes: the family of the target space; in a residual stream, which many layers write
    to, each writing matrix is a class of its own (otherwise all writers together would count as much as one reader).
    Weights that start at an input, or end at an output, are classes of their own, counted with the dials ``inputs`` and
    ``outputs``; at 0 they are left out. Rows and columns without a vertex belong to no term.
    """
    space_of = torch.full((graph.n + 1,), -1, dtype=torch.int64)
    outer = torch.zeros(graph.n + 1, dtype=torch.bool)
    for i, s in enumerate(graph.spaces):
        space_of[s.vertices] = i
        outer[s.vertices] = s.kind in ("input", "output")
    weights, matrices, rows, cols, groups = [], [], [], [], []
    names: dict[tuple[str, str], int] = {}
    dials = {"": 1.0, "inputs": inputs, "outputs": outputs}
    for m in graph.matrices:
        row, col = m.row_vertex.cpu(), m.col_vertex.cpu()
        inner_row, inner_col = torch.where(outer[row], -1, row), torch.where(outer[col], -1, col)
        sorts = (
            ("", inner_row, inner_col),
            ("inputs", inner_row, torch.where(outer[col], col, -1)),
            ("outputs", torch.where(outer[row], row, -1), col),
        )
        live = None
        for end, r, c in sorts:
            if not dials[end] or not bool((r >= 0).any()) or not bool((c >= 0).any()):
                continue
            live = LiveWeight(model, m) if live is None else live
            group = torch.zeros_like(r)
            for i in sorted(set(space_of[r[r >= 0]].tolist())):
                space = graph.spaces[i]
                key = (m.name if space.kind == "residual" else space.family or space.name, end)
                group[(space_of[r] == i) & (r >= 0)] = names.setdefault(key, len(names))
            weights.append(live)
            matrices.append(m)
            rows.append(r)
            cols.append(c)
            groups.append(group)
    none = torch.zeros(0, dtype=torch.int64)
    return Terms(
        weights=tuple(weights),
        matrices=tuple(matrices),
        row_vertex=torch.cat(rows or [none]),
        col_vertex=torch.cat(cols or [none]),
        row_group=torch.cat(groups or [none]),
        group_weight=torch.tensor([dials[end] for _, end in names], dtype=torch.float64),
        group_names=tuple(f"{name} ({end})" if end else name for name, end in names),
        widths=tuple(c.numel() for c in cols),
        heights=tuple(r.numel() for r in rows),
        witnesses=tuple(
            m
            for m in graph.matrices
            if all(m is not other for other in matrices)
            and bool(((m.col_vertex.cpu() >= 0) & ~outer[m.col_vertex.cpu()]).any())
        ),
    )
