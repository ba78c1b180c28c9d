"""The compiled kernel of the share loss, where it fits: value, gradient and proximal step in one pass over the weights.

It computes what :mod:`modcut.ops.share` computes (that is the ground truth, and what runs everywhere else); the tests
hold the two together.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from modcut._arrays import capsule

_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_NONE = 255  # the label of rows and columns outside the graph
# Starting a thread takes about 20 us; a core reads this many weights in about a millisecond.
_PER_THREAD = 4_000_000


def fits(weights: Sequence[Tensor], k: int) -> bool:
    """Return whether the kernel can read these weights where they lie."""
    if not weights or k >= _NONE or not _kernel():
        return False
    dtype = weights[0].dtype
    return dtype in _DTYPES and all(w.dtype == dtype and _readable(w) for w in weights)


def _kernel() -> bool:
    try:
        return hasattr(importlib.import_module("modcut._native"), "share_pass")
    except ImportError:
        return False


def _readable(w: Tensor) -> bool:
    # Subclasses (DTensor, fake and quantised tensors) have no plain memory behind them.
    if type(w) not in (Tensor, nn.Parameter) or w.device.type != "cpu" or w.layout != torch.strided or not w.numel():
        return False
    if w.ndim > 2:
        return w.is_contiguous()
    rows, cols = w.stride()
    return (cols == 1 and rows >= w.shape[1]) or (rows == 1 and cols >= w.shape[0])


class FusedShare:
    """The kernel with the labels of one partition.

    Args:
        weights: [rows, cols, *taps] each, only for their shapes.
        row_labels: int64 [sum rows], -1 outside the graph.
        col_labels: int64 [sum cols].
        k: number of modules, below 255.
    """

    def __init__(self, weights: Sequence[Tensor], row_labels: Tensor, col_labels: Tensor, k: int) -> None:
        self.k = k
        self.taps = [w[0, 0].numel() if w.ndim > 2 else 1 for w in weights]
        self.row_labels, self.col_labels = (
            torch.where(x < 0, _NONE, x).to(torch.uint8).contiguous() for x in (row_labels, col_labels)
        )
        self.rows = int(self.row_labels.numel())
        size = sum(w.numel() for w in weights)
        self._seen: tuple[list[int], list[object]] = ([], [])
        self.threads = max(1, min(torch.get_num_threads(), size // _PER_THREAD))

    def run(
        self,
        weights: Sequence[Tensor],
        grads: Sequence[Tensor | None] | None,
        scales: Tensor,
        row_weights: Tensor,
        *,
        accumulate: bool = False,
    ) -> tuple[float, Tensor, Tensor]:
        """Return (sum of row_weights * leak, leak [rows], strength [rows]); write the gradients of the former.

        Args:
            weights: laid out as those of the constructor; not changed.
            grads: of the same shapes and strides, or None where no gradient is wanted.
            scales: [sum cols].
            row_weights: [sum rows].
            accumulate: add to what ``grads`` hold.
        """
        leak, strength = torch.empty_like(row_weights), torch.empty_like(row_weights)
        value: float = importlib.import_module("modcut._native").share_pass(
            self._capsules(weights),
            [] if grads is None else [None if g is None else _capsule(g) for g in grads],
            self.taps,
            capsule(scales),
            capsule(self.row_labels),
            capsule(self.col_labels),
            capsule(row_weights),
            capsule(leak),
            capsule(strength),
            self.k,
            accumulate,
            self.threads,
        )
        return value, leak, strength

    def shrink_(self, weights: Sequence[Tensor], scales: Tensor, row_steps: Tensor) -> None:
        """Shrink what crosses by ``row_step * s_j / r_i`` in place; rows of step 0 are left alone."""
        importlib.import_module("modcut._native").share_shrink(
            self._capsules(weights),
            self.taps,
            capsule(scales),
            capsule(self.row_labels),
            capsule(self.col_labels),
            capsule(row_steps),
            self.k,
            self.threads,
        )

    def _capsules(self, weights: Sequence[Tensor]) -> list[object]:
        """Capsules are read, never consumed: those of weights that have not moved serve again."""
        places = [w.data_ptr() for w in weights]
        if places != self._seen[0]:
            self._seen = (places, [_capsule(w) for w in weights])
        return self._seen[1]


def _capsule(w: Tensor) -> object:
    w = w.detach()
    return capsule(w if w.ndim == 2 else w.flatten(1))


class FusedLeak(torch.autograd.Function):
    """factor * leak of a :class:`modcut._leak.Leak`; its gradient is there when the value is."""

    @staticmethod
    def forward(ctx, leak, factor, *weights):  # type: ignore[no-untyped-def]
        value, grads = leak.fused(factor, ctx.needs_input_grad[2:])
        ctx.leak, ctx.factor, ctx.grads = leak, factor, grads
        ctx.save_for_backward(*weights)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        _ = ctx.saved_tensors  # says so where a weight was changed in between
        grads, ctx.grads = ctx.grads, None  # autograd takes them over without a copy
        if grads is None:  # a second backward pass through a graph that was retained
            grads = ctx.leak.fused(ctx.factor, ctx.needs_input_grad[2:])[1]
        if float(grad) != 1.0:
            grads = [None if g is None else g.mul_(grad.to(g.dtype)) for g in grads]
        return None, None, *grads


class DeviceLeak(torch.autograd.Function):
    """As :class:`FusedLeak` on a device, without waiting for it: the gradient is written when its factor is known."""

    @staticmethod
    def forward(ctx, leak, factor, *weights):  # type: ignore[no-untyped-def]
        value, ctx.row_weights = leak.device_value(factor)
        ctx.leak = leak
        ctx.save_for_backward(*weights)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        _ = ctx.saved_tensors
        row_weights = ctx.row_weights * grad
        return None, None, *ctx.leak.device_gradients(row_weights, ctx.needs_input_grad[2:])
