"""The contribution-share leak as its formula reads: slow, dense, the ground truth for every other implementation.

Keeps a mask as large as the weight; differentiable by ordinary autograd; any floating dtype.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def strengths(weight: Tensor, scale: Tensor, power: int = 1) -> Tensor:
    """Return A_ij = sum over kernel taps of |W_ij|^power * s_j.

    Args:
        weight: [rows, cols, *kernel].
        scale: [cols].
        power: 1 or 2.
    """
    a = weight.abs() if power == 1 else weight.square()
    return a.flatten(2).sum(2) * scale if a.ndim > 2 else a * scale


def leak_of(
    weight: Tensor, scale: Tensor, row_label: Tensor, col_label: Tensor, power: int = 1
) -> tuple[Tensor, Tensor]:
    """Return ``(leak [rows], strength [rows])`` of one matrix.

    ``r_i = sum_j A_ij``, ``P_ij = A_ij / r_i``, ``leak_i = 1 - sum_{j: c_j = c_i} P_ij``. Columns labelled -1 are
    left out of every sum; rows labelled -1 and rows with ``r_i = 0`` have leak 0 and strength 0.
    """
    a = strengths(weight, scale, power) * (col_label >= 0)
    r = a.sum(1)
    live = (row_label >= 0) & ~(r <= 0)  # NaN stays alive: it must not pass as a silent 0
    p = a / torch.where(live, r, 1.0)[:, None]
    inside = (p * (row_label[:, None] == col_label[None, :])).sum(1)
    return torch.where(live, 1.0 - inside, 0.0), torch.where(live, r, 0.0)


def share_rows(
    weights: Sequence[Tensor], scales: Tensor, row_labels: Tensor, col_labels: Tensor, power: int = 1
) -> tuple[Tensor, Tensor]:
    """Return the leak and strength of every row of every matrix, one after the other, as the operator does."""
    leaks, rs, row, col = [], [], 0, 0
    for w in weights:
        i, j = slice(row, row + w.shape[0]), slice(col, col + w.shape[1])
        leak, r = leak_of(w, scales[j], row_labels[i], col_labels[j], power)
        leaks.append(leak)
        rs.append(r)
        row, col = i.stop, j.stop
    return torch.cat(leaks), torch.cat(rs)


def gradient_of(
    row_weight: Tensor, weight: Tensor, scale: Tensor, row_label: Tensor, col_label: Tensor, power: int = 1
) -> Tensor:
    """Return d(sum_i w_i leak_i)/dW in closed form: sign(W_ij) s_j w_i / r_i * (1[c_i != c_j] - leak_i)."""
    leak, r = leak_of(weight, scale, row_label, col_label, power)
    cross = (row_label[:, None] != col_label[None, :]).to(leak.dtype)
    per_row = torch.where(r != 0, row_weight / torch.where(r != 0, r, 1.0), 0.0)
    da = per_row[:, None] * (cross - leak[:, None]) * (scale * (col_label >= 0))
    da = da.reshape(*da.shape, *[1] * (weight.ndim - 2))
    return da * (weight.sign() if power == 1 else 2 * weight)


def shrunk(weight: Tensor, scale: Tensor, row_label: Tensor, col_label: Tensor, step: float | Tensor) -> Tensor:
    """Return the weight after W_ij <- sign(W_ij) max(|W_ij| - step * s_j / r_i, 0) where c_i and c_j differ.

    ``step``: one number, or one of every row, [rows, 1].
    """
    _, r = leak_of(weight, scale, row_label, col_label)
    cross = (row_label[:, None] != col_label[None, :]) & (col_label >= 0)[None, :] & (r > 0)[:, None]
    cut = torch.where(cross, step * scale[None, :] / torch.where(r > 0, r, 1.0)[:, None], 0.0)
    cut = cut.reshape(*cut.shape, *[1] * (weight.ndim - 2))
    return weight.sign() * (weight.abs() - cut).clamp(min=0)
