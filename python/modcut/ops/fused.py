"""The one-pass kernels as torch operators: value and gradient together, and the proximal step of all matrices.

``share_pass`` reads every weight once and returns the gradient beside the value; ``share_proximal_`` changes weights in
place. Which kernel runs, :mod:`modcut.ops.dispatch` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from modcut._fused import FusedShare
from modcut.ops import dispatch, reference
from modcut.ops.share import _check, share_rows, share_rows_grad
from modcut.ops.sums import dtype_of
from modcut.ops.triton_share import TritonShare

torch.library.define(
    "modcut::share_pass",
    "(Tensor[] weights, Tensor scales, Tensor row_labels, Tensor col_labels, Tensor row_weights, int k) "
    "-> (Tensor, Tensor, Tensor, Tensor[])",
)
torch.library.define(
    "modcut::share_proximal_",
    "(Tensor(a!)[] weights, Tensor scales, Tensor row_labels, Tensor col_labels, Tensor row_steps, int k) -> ()",
)


def share_pass(
    weights: Sequence[Tensor],  # M x [R_m, C_m, *taps_m]
    scales: Tensor,  # [sum C_m]
    row_labels: Tensor,  # int64 [sum R_m]
    col_labels: Tensor,  # int64 [sum C_m]
    row_weights: Tensor,  # [sum R_m]
    k: int,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Return ``(sum of row_weights * leak [], leak [R], strength [R], gradient of the first for every weight)``.

    The first is differentiable in the weights, and its backward pass only scales the gradients that are there already.
    Arguments, dtypes and errors as :func:`modcut.ops.share_rows`, with power 1.
    """
    _check(weights, scales, row_labels, col_labels, k, 1)
    value, leak, strength, grads = torch.ops.modcut.share_pass(
        list(weights), scales, row_labels, col_labels, row_weights, k
    )
    return value, leak, strength, list(grads)


def share_proximal_(
    weights: Sequence[Tensor],
    scales: Tensor,
    row_labels: Tensor,
    col_labels: Tensor,
    row_steps: Tensor,  # [sum R_m]
    k: int,
) -> None:
    """Shrink every weight in place: W_ij <- sign(W_ij) max(|W_ij| - t_i s_j / r_i, 0) where c_i != c_j.

    ``row_steps`` t is at least 0; rows of step 0, rows without strength and labels -1 are left alone.
    """
    _check(weights, scales, row_labels, col_labels, k, 1)
    with torch.no_grad():
        torch.ops.modcut.share_proximal_(list(weights), scales, row_labels, col_labels, row_steps, k)


def kernel_for(
    weights: Sequence[Tensor], row_labels: Tensor, col_labels: Tensor, k: int
) -> FusedShare | TritonShare | None:
    """Return the one-pass kernel for these weights, or ``None`` where plain torch has to do."""
    choice = dispatch.choose(weights, k)
    if choice == "native":
        return FusedShare(weights, row_labels, col_labels, k)
    return TritonShare(weights, row_labels, col_labels, k) if choice == "triton" else None


def _share_pass(
    weights: Sequence[Tensor], scales: Tensor, row_labels: Tensor, col_labels: Tensor, row_weights: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    dtype = dtype_of(weights)
    s, a = scales.to(dtype).contiguous(), row_weights.to(dtype).contiguous()
    kernel = kernel_for(weights, row_labels, col_labels, k)
    if kernel is None:
        leak, strength = share_rows(weights, s, row_labels, col_labels, k)
        grads = share_rows_grad(a, leak, strength, weights, s, row_labels, col_labels, k)
        return (leak * a).sum(), leak, strength, grads
    grads = [torch.empty_like(w) for w in weights]
    _, leak, strength = kernel.run(weights, grads, s, a)
    return (leak * a).sum(), leak, strength, grads


def _share_proximal(
    weights: Sequence[Tensor], scales: Tensor, row_labels: Tensor, col_labels: Tensor, row_steps: Tensor, k: int
) -> None:
    dtype = dtype_of(weights)
    s, t = scales.to(dtype).contiguous(), row_steps.to(dtype).contiguous()
    kernel = kernel_for(weights, row_labels, col_labels, k)
    if kernel is not None:
        kernel.shrink_(weights, s, t)
        return
    row = col = 0
    for w in weights:
        i, j = slice(row, row + w.shape[0]), slice(col, col + w.shape[1])
        row, col = i.stop, j.stop
        w.copy_(reference.shrunk(w.to(dtype), s[j], row_labels[i], col_labels[j], t[i, None]))


def _pass_fake(
    weights: Sequence[Tensor], scales: Tensor, row_labels: Tensor, col_labels: Tensor, row_weights: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    dtype = dtype_of(weights)
    leak, strength = (torch.empty_like(row_labels, dtype=dtype) for _ in range(2))
    return scales.new_empty((), dtype=dtype), leak, strength, [torch.empty_like(w) for w in weights]


def _proximal_fake(*_: Any) -> None: ...


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    ctx.mark_non_differentiable(output[1], output[2], *output[3])
    ctx.save_for_backward(*output[3])


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    return [g * grad.to(g.dtype) for g in ctx.saved_tensors], None, None, None, None, None


torch.library.register_fake("modcut::share_pass", _pass_fake)
torch.library.register_fake("modcut::share_proximal_", _proximal_fake)
torch.library.register_kernel("modcut::share_pass", ["cpu", "cuda"], _share_pass)
torch.library.register_kernel("modcut::share_proximal_", ["cpu", "cuda"], _share_proximal)
torch.library.register_autograd("modcut::share_pass", _backward, setup_context=_setup)
