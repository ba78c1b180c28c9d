"""Contribution shares: how much of what a neuron receives comes from outside its own module.

For a matrix W [rows = targets i, cols = sources j, *kernel taps], source scales s and hard labels c::

    A_ij = sum_taps |W_ij|^p s_j     r_i = sum_j A_ij     P_ij = A_ij / r_i     leak_i = 1 - sum_{j: c_j = c_i} P_ij

    d(sum_i g_i leak_i) / dW_ij = sign(W_ij) s_j g_i / r_i (1[c_i != c_j] - leak_i)          (p = 1)

Scaling a row of W, or a column of W against s, leaves P unchanged: no rescaling of the network can fake the leak.

All matrices of a model go through one call: weights as a list, everything else flat, one matrix after the other. Labels
are enough, no mask of the weight's size is kept: |W| times a [cols, k] table gives the k block sums of every row, and a
[rows, k] table times its transpose gives the gradient. Rows are worked off in tiles, so temporaries stay in cache.
Cost: one read of W forward, one read and one write backward, 2 k multiply-adds an entry in each.

The labels -1 mean "not part of the graph": such columns count neither as inside nor as cross (they are left out of r_i
too) and get gradient 0; such rows, and rows with r_i = 0, report leak 0 and strength 0 ("not live").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from modcut.ops import dispatch, reference
from modcut.ops.sums import check_weights, dtype_of, grads_of, sums_of, tiles
from modcut.ops.triton_share import TritonShare

torch.library.define(
    "modcut::share_rows",
    "(Tensor[] weights, Tensor scales, Tensor row_labels, Tensor col_labels, int k, int power) -> (Tensor, Tensor)",
)
torch.library.define(
    "modcut::share_rows_grad",
    "(Tensor row_weights, Tensor leak, Tensor strength, Tensor[] weights, Tensor scales, Tensor row_labels, "
    "Tensor col_labels, int k, int power) -> Tensor[]",
)


# ---- public ----------------------------------------------------------------------------------------------------------
def share_rows(
    weights: Sequence[Tensor],  # M x [R_m, C_m, *taps_m]
    scales: Tensor,  # [sum C_m]
    row_labels: Tensor,  # int64 [sum R_m]
    col_labels: Tensor,  # int64 [sum C_m]
    k: int,
    *,
    power: int = 1,
) -> tuple[Tensor, Tensor]:  # [sum R_m], [sum R_m]
    """Return ``(leak, strength)`` of every target neuron of every matrix; the leak is differentiable in the weights.

    Args:
        weights: float32, float64, bfloat16 or float16, any strides (a transposed view is read in place).
        scales: what multiplies each source: root mean square of its activation; 1 for bare weights. Not differentiated.
        row_labels: module of every row, -1 for rows outside the graph.
        col_labels: module of every column, -1 for columns outside the graph.
        k: number of modules.
        power: 1 for |W|, 2 for W^2.

    Returns:
        ``leak`` in [0, 1] and ``strength`` r_i; float64 where a weight is, else float32, whatever autocast says.

    Raises:
        TypeError: a dtype is not supported.
        ValueError: shapes do not fit, or tensors are on different devices.
    """
    _check(weights, scales, row_labels, col_labels, k, power)
    leak, strength = torch.ops.modcut.share_rows(list(weights), scales, row_labels, col_labels, k, power)
    return leak, strength


def share_rows_grad(
    row_weights: Tensor,  # [sum R_m]
    leak: Tensor,  # [sum R_m]
    strength: Tensor,  # [sum R_m]
    weights: Sequence[Tensor],
    scales: Tensor,
    row_labels: Tensor,
    col_labels: Tensor,
    k: int,
    *,
    power: int = 1,
) -> list[Tensor]:  # M x [R_m, C_m, *taps_m]
    """Return the gradient of ``(row_weights * leak).sum()``, one tensor a weight, in the weight's dtype and strides.

    ``leak`` and ``strength`` are what :func:`share_rows` returned for the same arguments.
    """
    _check(weights, scales, row_labels, col_labels, k, power)
    return _gradients(row_weights, leak, strength, list(weights), scales, row_labels, col_labels, k, power)


@torch.no_grad()
def share_shrink_(
    weight: Tensor,  # [R, C, *taps], changed in place
    scale: Tensor,  # [C]
    row_label: Tensor,  # int64 [R]
    col_label: Tensor,  # int64 [C]
    strength: Tensor,  # [R]
    step: float,
) -> None:
    """Shrink cross-module weights towards zero: W_ij <- sign(W_ij) max(|W_ij| - step s_j / r_i, 0) where c_i != c_j.

    Rows that are not live (strength 0) and labels -1 are left alone. In place, also through a strided view.
    """
    live = strength > 0
    per_row = torch.where(live, step / torch.where(live, strength, 1.0), 0.0)
    reach = torch.where(col_label >= 0, scale, 0.0).to(per_row.dtype)
    for rows in tiles(weight):
        cut = torch.outer(per_row[rows], reach) * (row_label[rows, None] != col_label)
        w = weight[rows]
        magnitude = (w.abs().to(cut.dtype) - cut.reshape(*cut.shape, *[1] * (w.ndim - 2))).clamp_(min=0)
        w.copy_(magnitude.to(w.dtype).mul_(w.sign()))


# ---- checks, fakes, autograd -----------------------------------------------------------------------------------------
def _check(
    weights: Sequence[Tensor], scales: Tensor, row_labels: Tensor, col_labels: Tensor, k: int, power: int
) -> None:
    rows, cols = check_weights(weights, power)
    for name, t, size in (("scales", scales, cols), ("row_labels", row_labels, rows), ("col_labels", col_labels, cols)):
        if t.ndim != 1 or t.shape[0] != size:
            raise ValueError(f"{name} must have shape [{size}] to fit the weights, got {list(t.shape)}")
        if t.device != weights[0].device:
            raise ValueError(f"{name} must be on the device of the weights ({weights[0].device}), got {t.device}")
    if row_labels.dtype != torch.int64 or col_labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64, got {row_labels.dtype} for rows and {col_labels.dtype} for columns")
    if not scales.dtype.is_floating_point:
        raise TypeError(f"scales must be floating point, got {scales.dtype}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")


def _share_rows_fake(
    weights: Sequence[Tensor], scales: Tensor, row_labels: Tensor, col_labels: Tensor, k: int, power: int
) -> tuple[Tensor, Tensor]:
    _check(weights, scales, row_labels, col_labels, k, power)
    dtype = dtype_of(weights)
    return torch.empty_like(row_labels, dtype=dtype), torch.empty_like(row_labels, dtype=dtype)


def _share_rows_grad_fake(
    row_weights: Tensor, leak: Tensor, strength: Tensor, weights: Sequence[Tensor], *_: Any
) -> list[Tensor]:
    return [torch.empty_like(w) for w in weights]


def _gradients(*args: Any) -> list[Tensor]:
    return list(torch.ops.modcut.share_rows_grad(*args))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    weights, scales, row_labels, col_labels, ctx.k, ctx.power = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*output, scales, row_labels, col_labels, *weights)


def _backward(ctx: Any, grad_leak: Tensor, _grad_strength: Tensor) -> tuple[Any, ...]:
    leak, strength, scales, row_labels, col_labels, *weights = ctx.saved_tensors
    grads = _gradients(grad_leak, leak, strength, weights, scales, row_labels, col_labels, ctx.k, ctx.power)
    return grads, None, None, None, None, None


# ---- kernels: plain torch, for every device --------------------------------------------------------------------------
def _tables(scales: Tensor, col_labels: Tensor, k: int, dtype: torch.dtype) -> Tensor:
    """Return s_j 1[c_j = c], [sum C_m, k]: what turns |W| into block sums."""
    modules = torch.arange(k, device=col_labels.device)
    return torch.where(col_labels[:, None] == modules, scales.to(dtype)[:, None], 0.0)


def _on_triton(weights: Sequence[Tensor], k: int, power: int) -> bool:
    """On a GPU these operators run the kernels too; on the CPU they stay what the kernels are held to."""
    if not weights[0].is_cuda and dispatch.forced() != "triton":
        return False
    return dispatch.choose(weights, k, power) == "triton"


def _share_rows(
    weights: Sequence[Tensor], scales: Tensor, row_labels: Tensor, col_labels: Tensor, k: int, power: int
) -> tuple[Tensor, Tensor]:
    dtype = dtype_of(weights)
    with torch.autocast(scales.device.type, enabled=False):
        if dispatch.forced() == "reference":
            return reference.share_rows([w.to(dtype) for w in weights], scales.to(dtype), row_labels, col_labels, power)
        if _on_triton(weights, k, power):
            kernel = TritonShare(weights, row_labels, col_labels, k)
            none = torch.zeros(row_labels.shape, device=scales.device)
            return kernel.run(weights, None, scales.to(dtype).contiguous(), none)[1:]
        sums = sums_of(weights, _tables(scales, col_labels, k, dtype), power)  # block sums of every row
        strength = sums.sum(1)
        inside = sums.gather(1, row_labels.clamp(min=0)[:, None])[:, 0]
        live = (row_labels >= 0) & ~(strength <= 0)  # NaN stays alive: it must not pass as a silent 0
        # The cross sum, not 1 - inside / r: exact zeros where nothing crosses, no cancellation where little does.
        leak = torch.where(live, (strength - inside).clamp_(min=0) / torch.where(live, strength, 1.0), 0.0)
        return leak, torch.where(live, strength, 0.0)


def _share_rows_grad(
    row_weights: Tensor,
    leak: Tensor,
    strength: Tensor,
    weights: Sequence[Tensor],
    scales: Tensor,
    row_labels: Tensor,
    col_labels: Tensor,
    k: int,
    power: int,
) -> list[Tensor]:
    dtype = leak.dtype
    with torch.autocast(scales.device.type, enabled=False):
        if _on_triton(weights, k, power):
            kernel = TritonShare(weights, row_labels, col_labels, k)
            grads = [torch.empty_like(w) for w in weights]
            kernel.run(weights, grads, scales.to(dtype).contiguous(), row_weights.to(dtype).contiguous())
            return grads
        live = strength != 0
        per_row = torch.where(live, row_weights.to(dtype) / torch.where(live, strength, 1.0), 0.0)
        cross = row_labels[:, None] != torch.arange(k, device=row_labels.device)
        slopes = per_row[:, None] * (cross.to(dtype) - leak[:, None])  # [sum R_m, k]: d/dA_ij depends on (i, c_j) only
        return grads_of(slopes, weights, _tables(scales, col_labels, k, dtype), power)


torch.library.register_fake("modcut::share_rows", _share_rows_fake)
torch.library.register_fake("modcut::share_rows_grad", _share_rows_grad_fake)
torch.library.register_kernel("modcut::share_rows", ["cpu", "cuda"], _share_rows)
torch.library.register_kernel("modcut::share_rows_grad", ["cpu", "cuda"], _share_rows_grad)
torch.library.register_autograd("modcut::share_rows", _backward, setup_context=_setup)
