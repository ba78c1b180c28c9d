"""Anything that is a weighted graph -> the checked blocks and rows that the compiled cut engine reads.

Two shapes reach the engine: dense blocks of capacities between two ranges of vertices (a matrix is one block, a network
has one per weight matrix; nothing is ever densified) and CSR rows (sparse input stays sparse). One dtype for all: int64
(exact), float32 or float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from modcut._arrays import as_matrix, canonical, capsule, from_numpy, host

# w[i, j] and w[j, i] may differ by this much, relative to the larger, before a matrix counts as asymmetric: what
# rounding leaves in a product such as A @ A.T. Within it the two are averaged; integers must be equal.
ASYMMETRY = {torch.float64: 1e-9, torch.float32: 1e-5, torch.int64: 0.0}
# The engine's own limit, for edges counted from both ends: residuals (twice a capacity) and excesses stay in int64.
INTEGER_TOTAL = 2**60
ENTRIES = 2**22  # entries of a block worked on at once: their float64 copy is 32 MiB
_TILE = 512  # two 512 x 512 float64 tiles (4 MiB) stay in cache while a matrix is compared with its transpose


@dataclass(frozen=True)
class DenseBlock:
    """Capacities between the vertices ``row_offset ..`` and ``col_offset ..``."""

    values: Tensor
    """[R, C], int64, float32 or float64, on the host, rows contiguous."""
    row_offset: int
    col_offset: int
    symmetric: bool
    """Rows and columns are the same vertices, and every edge stands twice."""


@dataclass(frozen=True)
class Problem:
    """A checked undirected graph in the form the engine reads; a pair of vertices in several places adds up."""

    n: int
    dtype: torch.dtype
    blocks: tuple[DenseBlock, ...] = ()
    csr: sp.csr_array | None = None
    """Symmetric, canonical, without diagonal; data int64 or float64."""

    @property
    def integer(self) -> bool:
        """Whether capacities, and so all values, are exact integers."""
        return self.dtype == torch.int64

    def number(self, value: float) -> float | int:
        """Return a value of this graph in its own kind of number."""
        return int(value) if self.integer else float(value)

    def native_blocks(self) -> list[tuple[Any, int, int, bool]]:
        """Blocks as fresh DLPack capsules; a capsule is good for one call."""
        return [(capsule(b.values), b.row_offset, b.col_offset, b.symmetric) for b in self.blocks]

    def native_csr(self) -> tuple[Any, Any, Any] | None:
        """CSR rows as fresh DLPack capsules (indptr, indices, data)."""
        if self.csr is None:
            return None
        a = self.csr
        return capsule(from_numpy(a.indptr)), capsule(torch.from_numpy(a.indices)), capsule(from_numpy(a.data))

    def degree(self) -> Tensor:
        """Strength of every vertex (sum of its capacities, self-loops left out), [n], int64 or float64. O(edges)."""
        d = torch.zeros(self.n, dtype=self.sum_dtype)
        for b in self.blocks:
            rows, cols = b.values.shape
            d[b.row_offset : b.row_offset + rows] += b.values.sum(1, dtype=d.dtype)
            if b.symmetric:
                d[b.row_offset : b.row_offset + rows] -= torch.diagonal(b.values).to(d.dtype)
            else:
                d[b.col_offset : b.col_offset + cols] += b.values.sum(0, dtype=d.dtype)
        if self.csr is not None:
            d += from_numpy(np.asarray(self.csr.sum(axis=1)))
        return d

    def cut_value(self, side: Tensor) -> float | int:
        """Sum of the capacities that cross ``side`` (bool [n]), from the original weights. O(edges)."""
        total = torch.zeros((), dtype=self.sum_dtype)
        for b in self.blocks:
            rows, cols = b.values.shape
            r, c = side[b.row_offset : b.row_offset + rows], side[b.col_offset : b.col_offset + cols]
            total += b.values[r][:, ~c].sum(dtype=total.dtype)
            if not b.symmetric:
                total += b.values[~r][:, c].sum(dtype=total.dtype)
        value = total.item()
        if self.csr is not None:
            mask = side.numpy()
            value += self.csr[mask][:, ~mask].sum().item()
        return self.number(value)

    def with_super_vertices(self, groups: list[list[int]]) -> Problem:
        """Add one vertex per group (ids n, n + 1, ...) tied to its members more strongly than any cut of them costs."""
        d = self.degree()
        tie = torch.where(d > 0, 2 * d, torch.ones_like(d))
        blocks = []
        for i, members in enumerate(groups):
            row = torch.zeros(1, self.n, dtype=d.dtype)
            row[0, members] = tie[members]
            blocks.append(DenseBlock(row, self.n + i, 0, False))
        n = self.n + len(groups)
        csr = self.csr
        if csr is not None:
            indptr = np.concatenate([csr.indptr, np.full(len(groups), csr.indptr[-1])])
            csr = sp.csr_array((csr.data, csr.indices, indptr), shape=(n, n))
        grown = Problem(n, d.dtype, (*self.blocks, *blocks), csr)  # the engine takes float32 and float64 side by side
        _check_total(grown)
        return grown

    @property
    def sum_dtype(self) -> torch.dtype:
        """Dtype in which capacities are added: int64 stays exact, the rest is float64."""
        return torch.int64 if self.integer else torch.float64


def problem(g: Any, *, bipartite: bool = False, symmetrize: bool = False) -> Problem:
    """Return ``g`` as the checked blocks and rows of the engine.

    ``g`` is a square symmetric matrix [n, n] of capacities; a rectangular one [m, n] with ``bipartite=True``
    (vertices: the m rows, then the n columns); a :class:`modcut.WeightGraph`; or a model, which
    :func:`modcut.weight_graph` turns into one. Dense input may be torch (any device; what is not on the host is copied
    there), NumPy, CuPy or anything else with ``__dlpack__``, or nested lists; sparse input is SciPy's or torch's and
    stays sparse. Integers become int64 and all values stay exact; float32 and float64 are kept (float64 for sparse),
    shorter floats become float32. The diagonal is checked as every entry is, and then ignored. ``symmetrize=True``
    takes (W + W.T) / 2, in floating point.

    Raises:
        TypeError: ``g`` or its dtype is not a graph of real numbers.
        ValueError: wrong shape; NaN, infinite or negative capacities; asymmetric; sums that would overflow.
    """
    if isinstance(g, torch.nn.Module):
        import modcut  # the tracer lies above this layer: reached through its public name, when it is asked for

        g = modcut.weight_graph(g)
    if is_weight_graph(g):
        if bipartite or symmetrize:
            raise ValueError(f"bipartite and symmetrize apply to matrices only, got a {type(g).__name__}")
        if any(b.weight.is_sparse for b in g.blocks):
            return problem(sparse_rows(g))
        blocks = tuple(iter_blocks(g))
        dtype = _common_dtype([b.values.dtype for b in blocks])
        result = Problem(int(g.n), dtype, _as_dtype(blocks, dtype))
    else:
        matrix = as_matrix(g)
        if isinstance(matrix, Tensor):
            result = _dense_problem(matrix, bipartite, symmetrize)
        else:
            result = _sparse_problem(matrix, bipartite, symmetrize)
    _check_total(result)
    return result


def unread(g: Any, *, bipartite: bool = False) -> Problem | None:
    """Return ``g`` with its entries unchecked, for a call of the engine that checks them as it reads them; one reading.

    None where :func:`problem` has to look at the entries or the order of rows first. What the engine refuses is for
    :func:`problem` to name, or to mend where rows and columns differ by rounding.
    """
    if isinstance(g, torch.nn.Module):
        return None
    if is_weight_graph(g):
        if bipartite or any(b.weight.is_sparse for b in g.blocks):
            return None
        blocks = tuple(iter_blocks(g, read=False))
        dtype = _common_dtype([b.values.dtype for b in blocks])
        return Problem(int(g.n), dtype, _as_dtype(blocks, dtype))
    if sp.issparse(g):
        g = cast(Any, g)  # SciPy's type of "any sparse" has no attributes
        rows, cols = g.shape if g.ndim == 2 else (0, 1)
        plain = g.format == "csr" and rows == cols and not bipartite and g.dtype.kind in "if"
        if not plain or not all(x.flags.writeable for x in (g.indptr, g.indices, g.data)):
            return None
        data = g.data.astype(np.int64 if g.dtype.kind == "i" else np.float64, copy=False)
        rows_of = sp.csr_array((data, g.indices, g.indptr), shape=g.shape)
        return Problem(rows, torch.int64 if g.dtype.kind == "i" else torch.float64, (), rows_of)
    w = as_matrix(g)
    if not isinstance(w, Tensor) or w.ndim != 2:
        return None
    rows, cols = w.shape
    if bipartite:
        return Problem(rows + cols, w.dtype, (DenseBlock(_rows_contiguous(w), 0, rows, False),))
    if rows != cols:
        return None
    return Problem(rows, w.dtype, (DenseBlock(_rows_contiguous(w, symmetric=True), 0, 0, True),))


def is_weight_graph(g: Any) -> bool:
    """Whether ``g`` is a :class:`modcut.WeightGraph` (told by its shape: the class lies above this layer)."""
    return hasattr(g, "capacities") and hasattr(g, "spaces")


def sparse_rows(g: Any) -> sp.csr_array:
    """The rows of a weight graph that has sparse blocks: integers stay integers."""
    integer = all(not b.weight.is_floating_point() for b in g.blocks)
    rows: sp.csr_array = g.to_scipy()
    if not integer:
        return rows
    if rows.nnz and float(rows.data.max()) > 2**53:
        raise ValueError("integer weights of a sparse graph must be at most 2^53; pass the matrix itself")
    return rows.astype(np.int64)


def iter_blocks(g: Any, read: bool = True) -> Iterator[DenseBlock]:
    """Yield the checked blocks of a weight graph one at a time, so that a pass over a large model holds one block.

    ``read=False`` leaves the entries to the engine, except where two of them add up.
    """
    for block, capacity in g.capacities():
        where = f"the capacities of block {block.source!r} ({block.rows.name} x {block.cols.name})"
        c = host(capacity, where)
        shape = (block.rows.size, block.cols.size)
        if tuple(c.shape) != shape:
            raise ValueError(f"{where} must have shape {list(shape)}, got {list(c.shape)}")
        symmetric = bool(block.symmetric)
        own = block.rows.offset == block.cols.offset
        if read or (own and not symmetric):
            _check_entries(c, where)
        if symmetric:
            c = _check_symmetric(c, where, hint="") if read else c
        elif own:
            # A map of a space into itself: [i, j] and [j, i] are two weights of one pair, and they add up.
            c, symmetric = c + c.T, True
        yield DenseBlock(_rows_contiguous(c, symmetric), block.rows.offset, block.cols.offset, symmetric)


# --- checks ---------------------------------------------------------------------------------------------------------


def _dense_problem(w: Tensor, bipartite: bool, symmetrize: bool) -> Problem:
    if w.ndim != 2:
        raise ValueError(f"weights must be a matrix with 2 dimensions, got {w.ndim} (shape {list(w.shape)})")
    _check_entries(w, "weights")
    _check_shape(tuple(w.shape), bipartite, symmetrize)
    rows, cols = w.shape
    if bipartite:
        return Problem(rows + cols, w.dtype, (DenseBlock(_rows_contiguous(w), 0, rows, False),))
    if symmetrize:
        w = w.to(torch.float64) if w.dtype == torch.int64 else w
        w = w / 2 + w.T / 2
    else:
        w = _check_symmetric(w, "weights")
    return Problem(rows, w.dtype, (DenseBlock(_rows_contiguous(w, symmetric=True), 0, 0, True),))


def _sparse_problem(a: sp.csr_array, bipartite: bool, symmetrize: bool) -> Problem:
    _check_sparse_entries(a)
    _check_shape(a.shape, bipartite, symmetrize)
    if bipartite:
        a = sp.csr_array(sp.block_array([[None, a], [a.T, None]], format="csr"))
        if a.shape[0] == 0:
            a = sp.csr_array((0, 0), dtype=np.float64)
    elif symmetrize:
        a = sp.csr_array(a.astype(np.float64) / 2 + a.T.astype(np.float64) / 2)
    else:
        a = _check_sparse_symmetric(a)
    coo = a.tocoo()
    keep = (coo.coords[0] != coo.coords[1]) & (coo.data != 0)
    a = canonical(sp.coo_array((coo.data[keep], (coo.coords[0][keep], coo.coords[1][keep])), shape=a.shape))
    return Problem(a.shape[0], torch.int64 if a.dtype == np.int64 else torch.float64, (), a)


def _check_shape(shape: tuple[int, ...], bipartite: bool, symmetrize: bool) -> None:
    rows, cols = shape
    if bipartite and symmetrize:
        raise ValueError("symmetrize must be False with bipartite=True: rows and columns are different vertices")
    if not bipartite and rows != cols:
        raise ValueError(
            f"weights must be square, got shape [{rows}, {cols}]; for the graph between {rows} rows and {cols} columns "
            "pass bipartite=True"
        )


def _check_entries(w: Tensor, where: str) -> None:
    """Refuse NaN, infinite and negative entries; one pass over good input."""
    if w.numel() == 0:
        return
    low, high = (float(x) for x in torch.aminmax(w))  # NaN anywhere makes both NaN
    if low >= 0 and high < float("inf"):
        return
    for bad, what in ((torch.isnan(w), "NaN"), (torch.isinf(w), "infinite"), (w < 0, "negative")):
        if bool(bad.any()):
            at = torch.nonzero(bad)[0].tolist()
            raise ValueError(_entry_sentence(where, what, at, w[tuple(at)].item()))


def _entry_sentence(where: str, what: str, at: list[int], value: float) -> str:
    hint = "; pass their absolute values or squares" if what == "negative" else ""
    return f"{where} must be finite and non-negative{hint}: the entry at {at} is {what} ({value})"


def _check_symmetric(w: Tensor, where: str, hint: str = "; pass symmetrize=True for (W + W.T) / 2") -> Tensor:
    """Return ``w`` if it is symmetric, its average with its transpose if it is so up to rounding, else refuse."""
    tolerance, exact, n = ASYMMETRY[w.dtype], True, w.shape[0]
    for i in range(0, n, _TILE):
        for j in range(i, n, _TILE):
            a, b = w[i : i + _TILE, j : j + _TILE], w[j : j + _TILE, i : i + _TILE].T
            if torch.equal(a, b):
                continue
            exact = False
            bad = (a - b).abs() > tolerance * torch.maximum(a, b)
            if bool(bad.any()):
                p, q = torch.nonzero(bad)[0].tolist()
                raise ValueError(
                    _asymmetry_sentence(where, i + p, j + q, a[p, q].item(), b[p, q].item(), w.dtype, hint)
                )
    return w if exact else w / 2 + w.T / 2


def _asymmetry_sentence(where: str, i: int, j: int, a: float, b: float, dtype: torch.dtype, hint: str) -> str:
    rule = f"up to a relative difference of {ASYMMETRY[dtype]:g}" if ASYMMETRY[dtype] else "exactly"
    return f"{where} must be symmetric {rule}: [{i}, {j}] is {a} and [{j}, {i}] is {b}{hint}"


def _check_sparse_entries(a: sp.csr_array) -> None:
    x = a.data
    for bad, what in ((np.isnan(x), "NaN"), (np.isinf(x), "infinite"), (x < 0, "negative")):
        if bad.any():
            at = int(np.argmax(bad))
            row = int(np.searchsorted(a.indptr, at, side="right")) - 1
            raise ValueError(_entry_sentence("weights", what, [row, int(a.indices[at])], x[at].item()))


def _check_sparse_symmetric(a: sp.csr_array) -> sp.csr_array:
    t = sp.csr_array(a.T)
    gap = sp.csr_array(abs(a - t))
    gap.eliminate_zeros()
    if gap.nnz == 0:
        return a
    dtype = torch.int64 if a.dtype == np.int64 else torch.float64
    bad = sp.coo_array(gap - ASYMMETRY[dtype] * a.maximum(t))
    over = np.flatnonzero(bad.data > 0)
    if over.size:
        i, j = (int(c[over[0]]) for c in bad.coords)
        hint = "; pass symmetrize=True for (W + W.T) / 2"
        raise ValueError(_asymmetry_sentence("weights", i, j, a[i, j].item(), a[j, i].item(), dtype, hint))
    return sp.csr_array(a / 2 + t / 2)


def _check_total(p: Problem) -> None:
    """Refuse graphs whose strengths add up to more than their number type holds."""
    # A float32 sum would need 10^269 entries to overflow float64.
    total = sum(
        (1 if b.symmetric else 2) * float(b.values.sum(dtype=torch.float64))
        for b in p.blocks
        if b.values.dtype != torch.float32
    )
    with np.errstate(over="ignore"):
        total += float(p.csr.sum(dtype=np.float64)) if p.csr is not None else 0.0
    if p.integer and total >= INTEGER_TOTAL:
        raise ValueError(
            "integer capacities must add up to less than 2^60, each edge counted from both ends, to stay exact, "
            f"got {total:.4g}; pass floats instead"
        )
    if not np.isfinite(total):
        raise ValueError(
            "capacities must add up to less than 1.7e308, each edge counted from both ends (float64 overflows beyond); "
            "divide all by a constant"
        )


def _common_dtype(dtypes: list[torch.dtype]) -> torch.dtype:
    kinds = set(dtypes)
    if len(kinds) == 1:
        return kinds.pop()
    return torch.float64  # none at all, or several kinds


def _as_dtype(blocks: tuple[DenseBlock, ...], dtype: torch.dtype) -> tuple[DenseBlock, ...]:
    return tuple(b if b.values.dtype == dtype else replace(b, values=b.values.to(dtype)) for b in blocks)


def _rows_contiguous(w: Tensor, symmetric: bool = False) -> Tensor:
    if symmetric and w.stride(0) == 1 and w.stride(1) != 1:
        w = w.T  # column-major: the transpose is the same graph, and needs no copy
    contiguous = w.stride(1) == 1 and (w.stride(0) >= w.shape[1] or w.shape[0] <= 1)
    return w if contiguous else w.contiguous()


def merged(n: int, blocks: Iterable[DenseBlock], csr: sp.csr_array | None, z: Tensor, k: int) -> Tensor:
    """Z.T W Z for the indicator Z of labels z, in int64 where all blocks are integers, else float64, [k, k]."""
    exact = torch.zeros(k, k, dtype=torch.int64)
    total = torch.zeros(k, k, dtype=torch.float64)
    integer = True
    for b in blocks:
        rows, cols = b.values.shape
        r, c = z[b.row_offset : b.row_offset + rows], z[b.col_offset : b.col_offset + cols]
        integer = integer and b.values.dtype == torch.int64
        dtype = torch.int64 if b.values.dtype == torch.int64 else torch.float64
        q = torch.zeros(k, k, dtype=dtype)
        step = max(1, ENTRIES // max(cols, 1))
        for i in range(0, rows, step):
            part = b.values[i : i + step].to(dtype)
            q.index_add_(1, c, torch.zeros(k, cols, dtype=dtype).index_add_(0, r[i : i + step], part))
        if b.symmetric:
            q -= torch.diag(torch.zeros(k, dtype=dtype).index_add_(0, r, torch.diagonal(b.values).to(dtype)))
        else:
            q = q + q.T
        exact += q if dtype == torch.int64 else 0
        total += q
    if csr is not None:
        indicator = sp.csr_array((np.ones(n, dtype=np.int64), (np.arange(n), z.numpy())), shape=(n, k))
        return torch.from_numpy((indicator.T @ csr @ indicator).toarray())
    return exact if integer else total
