"""The forms of the modularity loss, as functions of block sums Q [R, k] (:mod:`modcut.ops.sums`) or of capacities.

Row i is a target neuron; S_i are its labels (one-hot, or soft with sum 1), r_i = sum_c Q_ic what it receives, w_i how
much it counts. Capacities are ``w_i A_ij / r_i`` where edges are contributions (no rescaling of sources or targets
moves any of them) and ``A_ij`` as it is for bare weights, which reproduces the published forms and what fools them.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Dense adjacency and all its eigenvalues: 128 MiB and some seconds at this many vertices.
SPECTRAL_LIMIT = 4096


def per_row(received: Tensor, row_weight: Tensor) -> Tensor:
    """Return w_i / r_i, 0 for rows that are not live, [R]; differentiable in ``received``."""
    live = (row_weight > 0) & (received != 0)
    return torch.where(live, row_weight / torch.where(live, received, 1.0), 0.0)


def share(sums: Tensor, row_table: Tensor, row_weight: Tensor) -> Tensor:
    """Return the leak sum_i w_i (1 - sum_c S_ic Q_ic / r_i); what crosses is summed, so that nothing cancels."""
    received = sums.sum(1)
    crossing = ((1 - row_table) * sums).sum(1)
    return (crossing * per_row(received, row_weight)).sum()


def mixing(sums: Tensor, row_table: Tensor, row_weight: Tensor | None) -> Tensor:
    """Return the strength between modules [k, k], symmetric, both directions added; no weights: bare edges."""
    if row_weight is not None:
        sums = sums * per_row(sums.sum(1), row_weight)[:, None]
    table = row_table.T @ sums
    return table + table.T


def ncut(table: Tensor) -> Tensor:
    """Return sum_c cut_c / volume_c of a mixing table [k, k], in [0, k]; a module without volume counts 1.

    For A symmetric with a_c = S_c' A S_c and volumes v_c, per undirected edge:
    dL/dA_ij = -sum_c [2 S_ic S_jc / v_c - a_c (S_ic + S_jc) / v_c^2].
    """
    volume = table.sum(1)
    some = volume > 0
    crossing = volume - table.diagonal()
    return torch.where(some, crossing / torch.where(some, volume, 1.0), 1.0).sum()


def conductances(table: Tensor, sides: Tensor) -> Tensor:
    """Return cut / smaller volume of each side [cuts, K] of a mixing table [K, K]; 1 where a volume is 0.

    The sides are minimisers held fixed: by Danskin's theorem the gradient of a minimum is that of its minimiser.
    """
    side = sides.to(table.dtype)
    volume = table.sum(1)
    inner = side @ volume
    least = torch.minimum(inner, volume.sum() - inner)
    crossing = ((side @ table) * (1 - side)).sum(1)
    return torch.where(least > 0, crossing / torch.where(least > 0, least, 1.0), 1.0)


def adjacency(
    parts: list[tuple[Tensor, Tensor, Tensor]], row_weight: list[Tensor] | None, vertices: int
) -> tuple[Tensor, Tensor]:
    """Return the dense capacity matrix of the vertices that have edges, and which vertices those are.

    Args:
        parts: strengths A [rows, cols], vertex of each row, vertex of each column (-1: none).
        row_weight: w of each row; None: bare edges.
        vertices: n of the graph.
    """
    used = torch.zeros(vertices + 1, dtype=torch.bool, device=parts[0][0].device)
    for _, row, col in parts:
        used[row] = used[col] = True
    used[vertices] = False  # -1 counts from the end
    where = torch.nonzero(used[:vertices]).flatten()
    if where.numel() > SPECTRAL_LIMIT:
        raise ValueError(
            f'method "spectral" holds a dense matrix of all neurons: at most {SPECTRAL_LIMIT}, got {where.numel()}'
        )
    place = torch.full((vertices + 1,), where.numel(), dtype=torch.int64, device=where.device)
    place[where] = torch.arange(where.numel(), device=where.device)
    size = where.numel() + 1  # one more row and column for what has no vertex
    total = parts[0][0].new_zeros(size * size)
    for i, (a, row, col) in enumerate(parts):
        a = a * (col >= 0)
        if row_weight is not None:
            a = a * per_row(a.sum(1), row_weight[i])[:, None]
        total = total.index_add(0, (place[row][:, None] * size + place[col]).flatten(), a.flatten())
    w = total.view(size, size)[:-1, :-1]
    w = w + w.T
    return w - torch.diag(w.diagonal()), where


def eigenvalues(w: Tensor, k: int) -> Tensor:
    """Return the mean of the 2nd to k-th smallest eigenvalues of the normalised Laplacian of w [n, n].

    Filan et al., "Clusterability in Neural Networks" (2021), as a regulariser: k well separated modules have k
    eigenvalues near 0. Differentiable: d(eigenvalue) / dL = u u'. Vertices without edges are left out (each would add
    an eigenvalue of its own).
    """
    live = w.detach().sum(1) > 0
    w = w[live][:, live]
    if w.shape[0] <= k:
        raise ValueError(f"k must be below the number of neurons with edges ({w.shape[0]}), got {k}")
    root = w.sum(1).rsqrt()
    laplacian = torch.eye(w.shape[0], dtype=w.dtype, device=w.device) - root[:, None] * w * root
    values: Tensor = torch.linalg.eigvalsh(laplacian)
    return values[1:k].mean() if k > 1 else values[:0].sum()
