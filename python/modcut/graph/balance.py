"""Doubly normalised weights: what is left of a matrix when no rescaling of neurons counts (Sinkhorn and Knopp)."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def balance(a: Tensor, rounds: int = 50) -> tuple[Tensor, Tensor]:
    """Return the factors (rows [R], cols [C]) that make every row of ``r_i a_ij c_j`` sum to 1, every column to R / C.

    Multiplying a row or a column of ``a`` by a number divides its factor by it, so the balanced matrix does not move.
    Rows and columns without weight get 0 and do not count in R and C. Stops at a relative change of 1e-7; where zeros
    leave no balanced matrix, after ``rounds`` (2 reads of ``a`` each).

    Args:
        a: non-negative and finite, float [R, C].
        rounds: at most.
    """
    cols = _inverse(a.sum(0))
    used = cols > 0
    rows = _inverse((a * cols).sum(1))  # not a matrix product: autocast would round it
    for _ in range(rounds):
        new = torch.where(used, _inverse((a * rows[:, None]).sum(0)), 0.0)
        change = (new / new.sum().clamp_min(1e-30) - cols / cols.sum().clamp_min(1e-30)).abs().sum()
        cols = new
        rows = _inverse((a * cols).sum(1))
        if float(change) < 1e-7:
            break
    return rows, cols


@torch.no_grad()
def balanced_scale(weight: Tensor, col_vertex: Tensor, *, power: int = 1, rounds: int = 50) -> Tensor:
    """Return the source scales that make |W| doubly normalised, [cols].

    With these, every source contributes the same in total, however its neuron is scaled: the data-free stand-in for the
    root mean square of the input. Columns without vertex or weight get 1; all do where a weight is not finite.
    """
    a = weight.detach()
    a = a if a.dtype == torch.float64 else a.float()
    a = a.abs() if power == 1 else a.square()
    a = a.flatten(2).sum(2) if a.ndim > 2 else a
    used = col_vertex.to(a.device) >= 0
    if not bool(used.any()) or not bool(torch.isfinite(a).all()):
        return a.new_ones(a.shape[1])
    cols = balance(a * used, rounds)[1]
    return torch.where(cols > 0, cols, 1.0)


def _inverse(x: Tensor) -> Tensor:
    return torch.where(x > 0, 1.0 / torch.where(x > 0, x, 1.0), 0.0)
