"""What a network is as a graph: spaces of neurons, blocks of weights between them, and where to observe both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

Kind = Literal["input", "output", "hidden", "residual", "head"]


@dataclass(frozen=True)
class Space:
    """A set of neurons that share one basis; its vertices are ``offset .. offset + size - 1``."""

    name: str
    size: int
    kind: Kind
    offset: int
    family: str = ""
    """The axis class inside which labels are balanced: the name of the layer's hidden axis, all heads of one layer."""
    head: str = ""
    """The attention head (or key-value group) the space belongs to; all spaces of one head carry one label."""
    fixed: str = ""
    """Why fewer than all permutations leave the model's function unchanged; empty where all of them do."""

    @property
    def vertices(self) -> slice:
        """The vertex ids of the space."""
        return slice(self.offset, self.offset + self.size)


@dataclass(frozen=True)
class Matrix:
    """One parameter as a linear map from source vertices (columns) to target vertices (rows)."""

    name: str
    """Qualified name of the parameter (with a suffix where it holds several maps, as grouped convolutions do)."""
    weight: Tensor
    """Live view of the parameter, [rows, cols, *kernel]: writing to it changes the model."""
    row_vertex: Tensor
    """int64 [rows]: the vertex of every row, -1 where it has none."""
    col_vertex: Tensor
    """int64 [cols]: the vertex of every column, -1 where it has none."""
    gain: Callable[[], Tensor] | None = None
    """Current strength of what multiplies the sources before this map (normalisation gains), [cols], or None."""
    row_gain: Callable[[], Tensor] | None = None
    """Current strength of what multiplies the targets after this map (batch norm), [rows], or None."""
    source: str = ""
    """Qualified name of the parameter the map lives in (without a suffix)."""
    view: Callable[[Tensor], Tensor] | None = field(default=None, repr=False, compare=False)
    """Takes that parameter, or its gradient, and returns the map's [rows, cols, *kernel] view (differentiable)."""

    def folded(self) -> Tensor:
        """Return the weight with the gains of adjacent normalisations multiplied in, [rows, cols, *kernel]."""
        w, extra = self.weight, self.weight.ndim - 2
        if self.gain is not None:
            w = w * self.gain().to(w.dtype).reshape(1, -1, *[1] * extra)
        if self.row_gain is not None:
            w = w * self.row_gain().to(w.dtype).reshape(-1, 1, *[1] * extra)
        return w


@dataclass(frozen=True)
class Tap:
    """A place where the activations of vertices can be read or replaced by a forward hook."""

    module: str
    """Qualified name of the submodule."""
    side: Literal["input", "output"]
    """``input``: the first positional argument (what the module's weights read); ``output``: what it returns."""
    dim: int
    """The feature dimension of that tensor (negative, counted from the end; -3 for conv channels)."""
    vertex: Tensor
    """int64 [size of dim]: the vertex at each position, -1 where there is none."""


@dataclass(frozen=True)
class Axis:
    """One axis of a parameter or buffer, tied position by position to vertices."""

    name: str
    tensor: Tensor
    axis: int
    vertex: Tensor
    """int64 [tensor.shape[axis]], -1 where the position has no vertex."""


Strength = Callable[["Block"], Tensor]


@dataclass(frozen=True)
class Block:
    """The weights between two spaces."""

    rows: Space
    cols: Space
    weight: Tensor
    """Signed live view, [rows.size, cols.size, *kernel] (trailing axes: kernel taps or repeats; most have none)."""
    source: str
    """Name of the :class:`Matrix` it is a part of."""
    row_index: Tensor
    """int64 [rows.size, repeats]: positions of the block's rows in that matrix."""
    col_index: Tensor
    """int64 [cols.size, repeats]: positions of its columns."""
    strength: Strength = field(repr=False, compare=False)
    symmetric: bool = False
    """weight[i, j] and weight[j, i] are the same edge (a graph given as a symmetric matrix)."""

    def capacity(self) -> Tensor:
        """Return the non-negative edge strengths, [rows.size, cols.size]."""
        return self.strength(self)

    def signed(self) -> Tensor | None:
        """Return a view whose absolute values are the capacities, where there is one: to be read without a copy."""
        of: Callable[[Block], Tensor | None] | None = getattr(self.strength, "signed", None)
        return None if of is None else of(self)


@dataclass
class WeightGraph:
    """A neural network, or a matrix, as an undirected weighted graph whose blocks are live views of the weights.

    Vertex ``space.offset + i`` is neuron ``i`` of a space. Two blocks between the same spaces add up; self-loops do not
    count. Build one with :func:`modcut.weight_graph` or :meth:`from_matrix`.
    """

    spaces: tuple[Space, ...]
    blocks: tuple[Block, ...]
    edge: str = "abs"
    matrices: tuple[Matrix, ...] = ()
    taps: tuple[Tap, ...] = ()
    axes: tuple[Axis, ...] = ()
    not_covered: tuple[tuple[str, str], ...] = ()
    statistics: Any = None

    @property
    def n(self) -> int:
        """Number of vertices."""
        return sum(s.size for s in self.spaces)

    def capacities(self) -> Iterator[tuple[Block, Tensor]]:
        """Yield every block with its capacities [rows.size, cols.size]."""
        for block in self.blocks:
            yield block, block.capacity()

    @property
    def num_edges(self) -> int:
        """Number of vertex pairs with positive capacity."""
        return int(sp.triu(self.to_scipy(), k=1).nnz)

    def degree(self) -> Tensor:
        """Return the strength of every vertex (sum of its capacities), float64 [n]. O(edges), nothing is densified."""
        d = torch.zeros(self.n, dtype=torch.float64)
        for b, c in self.capacities():
            c = c.detach().to("cpu", torch.float64)
            if c.is_sparse:  # made without a diagonal
                d[b.rows.vertices].index_add_(0, c.indices()[0], c.values())
                if not b.symmetric:
                    d[b.cols.vertices].index_add_(0, c.indices()[1], c.values())
                continue
            if b.rows == b.cols:
                c = c - torch.diag(torch.diagonal(c))
            d[b.rows.vertices] += c.sum(1)
            if not b.symmetric:
                d[b.cols.vertices] += c.sum(0)
        return d

    def to_dense(self) -> Tensor:
        """Return the symmetric capacity matrix with zero diagonal, float64 [n, n]. For small graphs."""
        a = torch.zeros(self.n, self.n, dtype=torch.float64)
        for b, c in self.capacities():
            c = c.detach().to("cpu", torch.float64)
            c = c.to_dense() if c.is_sparse else c
            a[b.rows.vertices, b.cols.vertices] += c
            if not b.symmetric:
                a[b.cols.vertices, b.rows.vertices] += c.T
        return a.fill_diagonal_(0.0)

    def to_scipy(self) -> sp.csr_array:
        """Return the symmetric capacity matrix with zero diagonal, float64 CSR [n, n]."""
        rows, cols, values = [], [], []
        for b, c in self.capacities():
            block = _coo(c.detach().to("cpu", torch.float64))
            r, k = block.coords[0] + b.rows.offset, block.coords[1] + b.cols.offset
            rows += [r] if b.symmetric else [r, k]
            cols += [k] if b.symmetric else [k, r]
            values += [block.data] if b.symmetric else [block.data, block.data]
        if not rows:
            return sp.csr_array((self.n, self.n), dtype=np.float64)
        i, j, x = np.concatenate(rows), np.concatenate(cols), np.concatenate(values)
        keep = i != j
        return sp.csr_array(sp.coo_array((x[keep], (i[keep], j[keep])), shape=(self.n, self.n)))

    def permute_(self, space: Space | str, perm: Any) -> None:
        """Replace neuron i of ``space`` by what was neuron ``perm[i]``, in every parameter and buffer, in place.

        The model's function does not change (the test of the tracer).

        Raises:
            ValueError: ``perm`` is no permutation of the space, or the space's symmetry is smaller than all
                permutations: ``space.fixed`` is the reason.
        """
        from modcut.graph.permute import permute_

        permute_(self, space, perm)

    @classmethod
    def from_matrix(cls, weights: Any) -> WeightGraph:
        """Return the graph of a matrix (torch, NumPy, CuPy or SciPy sparse).

        A sparse matrix (SciPy, torch, CuPy by its host copy) of more than 2^22 entries stays sparse: the cut functions,
        ``degree``, ``to_scipy`` and a :class:`modcut.Partition`'s metrics never make it dense. A smaller one becomes
        dense.

        A symmetric matrix (up to rounding) is an undirected graph on one space; any other is bipartite between its rows
        (vertices ``0 .. R-1``) and its columns (``R .. R+C-1``). Blocks are views of dense input. Strength is ``|W|``.

        Raises:
            TypeError: not an array of numbers.
            ValueError: not a matrix, or not finite.
        """
        from modcut.graph.matrix import from_matrix

        return from_matrix(weights)

    def space_of(self, vertex: int) -> tuple[Space, int]:
        """Return the space of a vertex and the neuron's index inside it."""
        for s in self.spaces:
            if s.offset <= vertex < s.offset + s.size:
                return s, vertex - s.offset
        raise IndexError(f"vertex must be in [0, {self.n}), got {vertex}")


def _coo(c: Tensor) -> sp.coo_array:
    if not c.is_sparse:
        return sp.coo_array(c.numpy())
    i, j = c.indices().numpy()
    return sp.coo_array((c.values().numpy(), (i, j)), shape=tuple(c.shape))
