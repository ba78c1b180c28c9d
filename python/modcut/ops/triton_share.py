"""The share loss on a GPU: value, gradient and proximal step of all matrices of a model in one launch each (Triton).

It computes what :mod:`modcut.ops.share` computes, with the interface of :class:`modcut._fused.FusedShare`; sums are in
float32 whatever the weights are (float32, bfloat16, float16). Rows of up to 4096 entries that lie contiguous are read
once and written once; longer rows, and transposed weights, are read twice, the second time from cache where it holds
them (:mod:`modcut.ops.triton_kernels` has the paths).
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modcut._require import require

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NONE = 255  # the label of rows and columns outside the graph
WARPS = 8
VALUE, GRADIENT, ADD, SHRINK = range(4)
_LONGEST = 2**31 - 2**13  # entries of a row, rows of a matrix: counted in 32 bits


def kernels() -> Any:
    """Return the module of the kernels.

    Raises:
        MissingDependencyError: triton is not installed.
    """
    # Before triton reads it: products and sums stay apart, so that the sums are those of the other implementations.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "0")
    require("triton", extra="triton", why="the fused loss on a GPU")
    return importlib.import_module("modcut.ops.triton_kernels")


def interpreted() -> bool:
    """Whether Triton runs kernels on the CPU (``TRITON_INTERPRET=1``, set before its import)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def fits(weights: Sequence[Tensor], k: int) -> str | None:
    """Return ``None`` where the kernels can read these weights where they lie, else why not."""
    if not 1 <= k <= NONE:
        return f"k must be between 1 and {NONE} (labels are one byte, {NONE} means none), got {k}"
    for i, w in enumerate(weights):
        if type(w) not in (Tensor, nn.Parameter) or w.layout != torch.strided:
            return f"weights[{i}] must be a plain strided tensor, got {type(w).__name__}"
        if w.dtype != weights[0].dtype or w.dtype not in DTYPES:
            return f"weights must be all float32, all bfloat16 or all float16, weights[{i}] is {w.dtype}"
        if w.device != weights[0].device or not (w.is_cuda or (w.device.type == "cpu" and interpreted())):
            return f"weights must be on one CUDA device, weights[{i}] is on {w.device}"
        if w.numel() and _layout(w) is None:
            return f"weights[{i}] must have contiguous rows or contiguous columns, its strides are {w.stride()}"
        if max(w.shape[0], _entries(w)) > _LONGEST:
            return f"weights[{i}] must have fewer than 2^31 rows and entries a row, its shape is {list(w.shape)}"
    return None


def _entries(w: Tensor) -> int:
    """Entries of a row."""
    return int(w[0].numel()) if w.shape[0] else 0


def _layout(w: Tensor) -> tuple[bool, int] | None:
    """Return (transposed, stride) of a weight in entries."""
    if w.ndim > 2:
        return (False, _entries(w)) if w.is_contiguous() else None
    (rows, cols), (down, across) = w.shape, w.stride()
    if cols == 1 or across == 1:
        # A row that overlaps the next would be written twice.
        return (False, down) if rows == 1 or down >= cols else (True, across) if down == 1 else None
    return (True, across) if (rows == 1 or down == 1) and across >= rows else None


class TritonShare:
    """The kernels with the labels of one partition.

    Args:
        weights: [rows, cols, *taps] each, of one dtype and device; only for their shapes and places.
        row_labels: int64 [sum rows], -1 outside the graph.
        col_labels: int64 [sum cols].
        k: number of modules, at most 255.

    Raises:
        ValueError: the kernels cannot read these weights (the sentence of :func:`fits`).
        MissingDependencyError: triton is not installed.
    """

    def __init__(self, weights: Sequence[Tensor], row_labels: Tensor, col_labels: Tensor, k: int) -> None:
        if not weights:
            raise ValueError("weights must hold at least one matrix, got none")
        why = fits(weights, k)
        if why is not None:
            raise ValueError(why)
        self._kernels = kernels()
        self.k, self.device, self.dtype = k, weights[0].device, weights[0].dtype
        self.rows, self.cols = sum(w.shape[0] for w in weights), sum(w.shape[1] for w in weights)
        for name, labels, size in (("row_labels", row_labels, self.rows), ("col_labels", col_labels, self.cols)):
            if labels.shape != (size,):
                raise ValueError(f"{name} must have shape [{size}] to fit the weights, got {list(labels.shape)}")
        self.row_labels, self.col_labels = (
            torch.where(x < 0, NONE, x).to(self.device, torch.uint8).contiguous() for x in (row_labels, col_labels)
        )
        self._even = all(w.shape[1] % 16 == 0 for w in weights[:-1])
        self._tables: dict[tuple[int, ...], tuple[Tensor, Tensor, int]] = {}

    def run(
        self,
        weights: Sequence[Tensor],
        grads: Sequence[Tensor | None] | None,
        scales: Tensor,
        row_weights: Tensor,
        *,
        accumulate: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return (sum of row_weights * leak [], leak [rows], strength [rows]); write the gradients of the former.

        Nothing waits for the device. Args:
            weights: laid out as those of the constructor; not changed.
            grads: of the same shapes and strides, or None where no gradient is wanted.
            scales: float32 [sum cols].
            row_weights: float32 [sum rows].
            accumulate: add to what ``grads`` hold.
        """
        leak, strength = torch.empty_like(row_weights), torch.empty_like(row_weights)
        mode = VALUE if grads is None else ADD if accumulate else GRADIENT
        self._launch(weights, grads, scales, row_weights, leak, strength, mode)
        return (leak * row_weights).sum(), leak, strength

    def add_gradient_(
        self, weights: Sequence[Tensor], grads: Sequence[Tensor | None], scales: Tensor, row_weights: Tensor
    ) -> None:
        """Add the gradient of the sum of row_weights * leak; tiles of rows whose weights are all 0 are not read."""
        self._launch(weights, grads, scales, row_weights, None, None, ADD)

    def shrink_(self, weights: Sequence[Tensor], scales: Tensor, row_steps: Tensor) -> None:
        """Shrink what crosses by ``row_step * s_j / r_i`` in place; rows of step 0 are left alone."""
        self._launch(weights, weights, scales, row_steps, None, None, SHRINK)

    def _launch(
        self,
        weights: Sequence[Tensor],
        outputs: Sequence[Tensor | None] | None,
        scales: Tensor,
        row_weights: Tensor,
        leak: Tensor | None,
        strength: Tensor | None,
        mode: int,
    ) -> None:
        for name, t, size in (("scales", scales, self.cols), ("row_weights", row_weights, self.rows)):
            if t.shape != (size,) or t.dtype != torch.float32 or t.device != self.device or not t.is_contiguous():
                raise ValueError(
                    f"{name} must be contiguous float32 [{size}] on {self.device}, "
                    f"got {t.dtype} {list(t.shape)} on {t.device}"
                )
        matrices, programs, kinds = self._table(weights, outputs)
        if not programs.shape[0]:
            return
        stats = leak is not None
        language = importlib.import_module("triton.language")
        arguments = (matrices, programs, scales, self.row_labels, self.col_labels, row_weights)
        sums = (leak, strength) if stats else (row_weights, row_weights)  # not touched
        names = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
        with torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext():
            self._kernels.share[(programs.shape[0],)](
                *arguments,
                *sums,
                T=getattr(language, names[self.dtype]),
                VEC=16 // self.dtype.itemsize,
                MODE=mode,
                STATS=stats,
                KINDS=kinds,
                EVEN=self._even,
                num_warps=WARPS,
                enable_fp_fusion=False,
            )

    # -- tables --------------------------------------------------------------------------------------------------------

    def _table(self, weights: Sequence[Tensor], outputs: Sequence[Tensor | None] | None) -> tuple[Tensor, Tensor, int]:
        """Return matrices [M, 8], programs [P, 4] and which kinds of them occur, as bits.

        Those of weights and gradients that lie where they lay before serve again.
        """
        places = [w.data_ptr() for w in weights]
        if outputs is None:
            targets = [0] * len(places)
        else:
            targets = [0 if t is None else t.data_ptr() for t in outputs]
        key = (*places, *targets)
        if key in self._tables:
            return self._tables[key]
        matrices: list[tuple[int, ...]] = []
        programs: list[tuple[int, ...]] = []
        row = col = 0
        for i, w in enumerate(weights):
            target = None if outputs is None else outputs[i]
            if target is not None and (target.shape != w.shape or target.stride() != w.stride()):
                raise ValueError(
                    f"grads[{i}] must have the shape and strides of weights[{i}], {list(w.shape)} {w.stride()}, "
                    f"got {list(target.shape)} {target.stride()}"
                )
            if target is not None and target.dtype != w.dtype:
                raise TypeError(f"grads[{i}] must be {w.dtype} as weights[{i}], got {target.dtype}")
            transposed, stride = _layout(w) or (False, 0)
            entries = _entries(w)
            taps = entries // w.shape[1] if w.shape[1] else 1
            matrices.append((places[i], targets[i], w.shape[0], entries, stride, max(taps, 1), row, col))
            aligned = all(p % 16 == 0 for p in (places[i], targets[i]))
            kind, height = self._kind(w.shape[0], entries, stride, taps, transposed, aligned)
            programs.extend((i, tile, kind, 0) for tile in range(-(-w.shape[0] // height)))
            row, col = row + w.shape[0], col + w.shape[1]
        programs.sort(key=lambda p: -p[2])  # one path side by side, the long ones first
        kinds = sum({1 << p[2] for p in programs})
        made = (self._upload(matrices, torch.int64), self._upload(programs, torch.int32).reshape(-1, 4), kinds)
        if len(self._tables) >= 4:  # gradients move when they are set to None: not one table for every step
            self._tables.pop(next(iter(self._tables)))
        self._tables[key] = made
        return made

    def _kind(
        self, rows: int, entries: int, stride: int, taps: int, transposed: bool, aligned: bool
    ) -> tuple[int, int]:
        """Return the path and the rows a program works off."""
        vec = 16 // self.dtype.itemsize
        aligned = aligned and stride % vec == 0
        if transposed:
            return (5 if aligned and rows % vec == 0 else 6), 8 * vec
        if not aligned or entries % vec or taps > 1 or not entries:
            return 4, 4
        steps = int(self._kernels.STEPS.value)
        return (0, 16 * steps) if entries <= 256 else (1, 4 * steps) if entries <= 1024 else (
            (2, steps) if entries <= 4096 else (3, 1)
        )  # fmt: skip

    def _upload(self, rows: list[Any], dtype: torch.dtype) -> Tensor:
        # From pinned memory and without waiting: a plain copy would stop until the device has caught up.
        cuda = self.device.type == "cuda"
        return torch.tensor(rows, dtype=dtype, pin_memory=cuda).to(self.device, non_blocking=True)
