"""A checked graph with sets of its vertices drawn together into one vertex each; what is left out is never copied."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from modcut._arrays import canonical
from modcut._problem import ENTRIES, DenseBlock, Problem


def contracted(p: Problem, group: Tensor, k: int) -> tuple[Problem, Tensor]:
    """Return the graph in which every group is one vertex, and the vertices that stay themselves (int64 [m]).

    ``group`` (int64 [n]) is -1 where a vertex stays, else its group, below k. The new vertices are the m that stay, in
    their old order, then the groups m .. m + k - 1; parallel edges add up in the sum's dtype, edges inside a group are
    gone. O(entries of the blocks) with k > 1; with k = 1 only rows or columns of vertices that stay are read, so a
    small part of a large graph costs what its edges do. Blocks stay blocks and rows stay rows.
    """
    stays = group < 0
    kept = torch.nonzero(stays).flatten()
    m = kept.numel()
    number = torch.where(stays, torch.cumsum(stays, 0) - 1, m + group)
    blocks = []
    outer = torch.zeros(k, m, dtype=p.sum_dtype)  # between groups and vertices that stay
    inner = torch.zeros(k, k, dtype=p.sum_dtype)  # between groups
    for b in p.blocks:
        rows, cols = b.values.shape
        r = group[b.row_offset : b.row_offset + rows]
        c = group[b.col_offset : b.col_offset + cols]
        r_stay, r_go, c_stay, c_go = (torch.nonzero(x).flatten() for x in (r < 0, r >= 0, c < 0, c >= 0))
        first_row = int(number[b.row_offset + r_stay[0]]) if len(r_stay) else 0
        first_col = int(number[b.col_offset + c_stay[0]]) if len(c_stay) else 0
        if len(r_stay) and len(c_stay):
            part = _part(b.values, r_stay, c_stay)
            blocks.append(DenseBlock(part, first_row, first_col, b.symmetric))
        if len(r_stay) and len(c_go):
            _add_columns(outer[:, first_row : first_row + len(r_stay)], b.values, r_stay, c_go, c[c_go])
        if len(c_stay) and len(r_go) and not b.symmetric:
            _add_columns(outer[:, first_col : first_col + len(c_stay)], b.values.T, c_stay, r_go, r[r_go])
        if k > 1 and len(r_go) and len(c_go):
            q = torch.zeros(len(r_go), k, dtype=p.sum_dtype).T
            _add_columns(q, b.values, r_go, c_go, c[c_go])
            q = torch.zeros(k, k, dtype=p.sum_dtype).index_add_(0, r[r_go], q.T.contiguous())
            inner += q if b.symmetric else q + q.T
    if p.blocks:
        if m:
            blocks.append(DenseBlock(outer, m, 0, False))
        half = torch.triu(inner, 1)  # the two directions were summed in different orders
        blocks.append(DenseBlock(half + half.T, m, m, True))
    rows_left = None if p.csr is None else _rows(p.csr, kept.numpy(), number.numpy(), group.numpy(), m, k)
    return Problem(m + k, p.sum_dtype, tuple(blocks), rows_left), kept


def _part(values: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """The chosen rows and columns, rows contiguous; no copy where all are chosen."""
    for axis, chosen in sorted(((0, rows), (1, cols)), key=lambda x: len(x[1]) / max(values.shape[x[0]], 1)):
        if len(chosen) < values.shape[axis]:
            values = values.index_select(axis, chosen)
    return values if values.stride(1) == 1 or values.shape[1] == 1 else values.contiguous()


def _add_columns(out: Tensor, values: Tensor, rows: Tensor, cols: Tensor, home: Tensor) -> None:
    """Add entry (rows[i], cols[j]) to out[home[j], i], a few million entries at a time."""
    step = max(1, ENTRIES // max(len(cols), 1))
    for i in range(0, len(rows), step):
        part = _part(values, rows[i : i + step], cols).to(out.dtype)
        if len(out) == 1:
            out[0, i : i + step] += part.sum(1)
        else:
            out[:, i : i + step].index_add_(0, home, part.T)


def _rows(
    a: sp.csr_array,
    kept: np.ndarray[Any, Any],
    number: np.ndarray[Any, Any],
    group: np.ndarray[Any, Any],
    m: int,
    k: int,
) -> sp.csr_array:
    own = a[kept].tocoo()
    x, y, w = own.coords[0].astype(np.int64), number[own.coords[1]], own.data
    once = x < y  # each edge from one end, mirrored below: sums of parallel edges then agree to the last bit
    at, weights = [(x[once], y[once])], [w[once]]
    if k > 1:
        go = np.flatnonzero(group >= 0)
        rest = a[go].tocoo()
        i, j = number[go[rest.coords[0]]], number[rest.coords[1]]
        between = (i < j) & (j >= m)
        at.append((i[between], j[between]))
        weights.append(rest.data[between])
    i, j = (np.concatenate([e[axis] for e in at]) for axis in (0, 1))
    half = canonical(sp.coo_array((np.concatenate(weights), (i, j)), shape=(m + k, m + k)))
    return canonical(half + half.T)
