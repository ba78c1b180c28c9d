"""Block sums of rows: what every form of the modularity loss is a function of.

For a matrix W [rows = targets i, cols = sources j, *kernel taps] and a table T [cols, k]::

    A_ij = sum_taps |W_ij|^p      Q_ic = sum_j A_ij T_jc
    d(sum_ic G_ic Q_ic) / dW_ij = sign(W_ij) sum_c G_ic T_jc          (p = 1)

A table row is s_j S_jc: the scale of a source times its (hard or soft) labels; a row of zeros leaves a source out. Rows
are worked off in tiles, so temporaries stay in cache and nothing of the size of a weight is kept for the backward pass.
Cost: one read of W forward, one read and one write backward, 2 k multiply-adds an entry in each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

# Entries of a matrix worked on at a time: 1 MiB of float32, which the second-level cache of a CPU core holds.
TILE = 1 << 18
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

torch.library.define("modcut::block_sums", "(Tensor[] weights, Tensor tables, int power) -> Tensor")
torch.library.define(
    "modcut::block_sums_grad", "(Tensor slopes, Tensor[] weights, Tensor tables, int power) -> Tensor[]"
)


def block_sums(
    weights: Sequence[Tensor],  # M x [R_m, C_m, *taps_m]
    tables: Tensor,  # [sum C_m, k]
    *,
    power: int = 1,
) -> Tensor:  # [sum R_m, k]
    """Return Q_ic = sum_j |W_ij|^power T_jc of every row of every matrix; differentiable in the weights.

    Args:
        weights: float32, float64, bfloat16 or float16, any strides (a transposed view is read in place).
        tables: one row per column of the weights, one matrix after the other. Not differentiated.
        power: 1 for |W|, 2 for W^2.

    Returns:
        float64 where a weight is, else float32, whatever autocast says.

    Raises:
        TypeError: a dtype is not supported.
        ValueError: shapes do not fit, or tensors are on different devices.
    """
    check_weights(weights, power)
    cols = sum(w.shape[1] for w in weights)
    if tables.ndim != 2 or tables.shape[0] != cols or tables.device != weights[0].device:
        raise ValueError(
            f"tables must have shape [{cols}, k] on {weights[0].device} to fit the weights, "
            f"got {list(tables.shape)} on {tables.device}"
        )
    out: Tensor = torch.ops.modcut.block_sums(list(weights), tables.detach().to(dtype_of(weights)), power)
    return out


def check_weights(weights: Sequence[Tensor], power: int) -> tuple[int, int]:
    """Return the rows and columns of all matrices together; raise where one is none."""
    if not weights:
        raise ValueError("weights must hold at least one matrix, got none")
    if power not in (1, 2):
        raise ValueError(f"power must be 1 or 2, got {power}")
    rows = cols = 0
    for i, w in enumerate(weights):
        if w.dtype not in FLOATS:
            raise TypeError(f"weights[{i}] must be float32, float64, bfloat16 or float16, got {w.dtype}")
        if w.ndim < 2:
            raise ValueError(f"weights[{i}] must have shape [rows, cols, *kernel], got {list(w.shape)}")
        rows, cols = rows + w.shape[0], cols + w.shape[1]
    return rows, cols


def dtype_of(weights: Sequence[Tensor]) -> torch.dtype:
    """The dtype of sums over these weights."""
    return torch.float64 if any(w.dtype == torch.float64 for w in weights) else torch.float32


# ---- kernels: plain torch, for every device --------------------------------------------------------------------------
def tiles(weight: Tensor) -> Iterator[slice]:
    """Yield slices of rows of about ``TILE`` entries."""
    step = max(1, TILE // max(1, weight[0].numel() if weight.shape[0] else 1))
    for start in range(0, weight.shape[0], step):
        yield slice(start, min(start + step, weight.shape[0]))


def sums_of(weights: Sequence[Tensor], tables: Tensor, power: int) -> Tensor:
    """The forward kernel; ``tables`` in the dtype of the sums."""
    dtype = tables.dtype
    with torch.autocast(tables.device.type, enabled=False):
        parts = torch.split(tables, [w.shape[1] for w in weights])
        sums = torch.empty(sum(w.shape[0] for w in weights), tables.shape[1], dtype=dtype, device=tables.device)
        at = 0
        for w, table in zip(weights, parts, strict=True):
            for rows in tiles(w):
                a = w[rows].to(dtype)
                a = a.abs() if power == 1 else a.square()
                a = a.flatten(2).sum(2) if a.ndim > 2 else a
                torch.mm(a, table, out=sums[at + rows.start : at + rows.stop])
            at += w.shape[0]
        return sums


def grads_of(slopes: Tensor, weights: Sequence[Tensor], tables: Tensor, power: int) -> list[Tensor]:
    """The backward kernel: dL/dA_ij is slopes_i . table_j, one tensor a weight, in its dtype and strides."""
    dtype = tables.dtype
    with torch.autocast(tables.device.type, enabled=False):
        parts = torch.split(tables, [w.shape[1] for w in weights])
        grads, at = [], 0
        for w, table in zip(weights, parts, strict=True):
            grad = None
            for rows in tiles(w):
                da = slopes[at + rows.start : at + rows.stop] @ table.T
                part = w[rows].to(dtype)
                part = part.sign() if power == 1 else part * 2
                part.mul_(da.reshape(*da.shape, *[1] * (w.ndim - 2)))
                if rows.stop - rows.start == w.shape[0] and part.stride() == w.stride():
                    grad = part.to(w.dtype)  # a matrix of one tile is not copied again
                    break
                grad = torch.empty_like(w) if grad is None else grad
                grad[rows] = part
            grad = torch.empty_like(w) if grad is None else grad
            grads.append(grad)
            at += w.shape[0]
        return grads


def _sums_fake(weights: Sequence[Tensor], tables: Tensor, power: int) -> Tensor:
    return tables.new_empty(sum(w.shape[0] for w in weights), tables.shape[1])


def _grads_fake(slopes: Tensor, weights: Sequence[Tensor], tables: Tensor, power: int) -> list[Tensor]:
    return [torch.empty_like(w) for w in weights]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weights, tables, ctx.power = inputs
    ctx.save_for_backward(tables, *weights)


def _backward(ctx: Any, slopes: Tensor) -> tuple[Any, ...]:
    tables, *weights = ctx.saved_tensors
    grads = torch.ops.modcut.block_sums_grad(slopes.contiguous(), list(weights), tables, ctx.power)
    return list(grads), None, None


torch.library.register_fake("modcut::block_sums", _sums_fake)
torch.library.register_fake("modcut::block_sums_grad", _grads_fake)
torch.library.register_kernel("modcut::block_sums", ["cpu", "cuda"], sums_of)
torch.library.register_kernel("modcut::block_sums_grad", ["cpu", "cuda"], grads_of)
torch.library.register_autograd("modcut::block_sums", _backward, setup_context=_setup)
