"""Exact cut trees of many small dense graphs in one call, on the device where they lie (``csrc/core/small_tree.hpp``).

One source runs on both kinds of device, so a tree is the same to the bit on each: a team of CPU threads or a CUDA block
per graph. The CUDA part is compiled in every build with nvcc; see ``docs/gpu.md`` for what has run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modcut._arrays import capsule, from_dlpack, from_numpy, native
from modcut._engine import TOLERANCE, threads_of
from modcut.tree import CutTree, TreeStats

MOST_VERTICES = 4096
_FAULTS = {1: "NaN", 2: "infinite", 3: "negative"}


@dataclass(frozen=True, eq=False)
class CutTrees:
    """b cut trees of n vertices each, on the device of the graphs; ``trees[i]`` is the i-th as a host ``CutTree``."""

    parent: Tensor
    """int64 [b, n]; -1 at each root."""
    weight: Tensor
    """float64 [b, n], what the edge to the parent cuts, re-summed from the given weights; inf at the root."""
    lower: Tensor
    """float64 [b, n], the value of a feasible flow: a proven lower bound on that minimum cut."""
    status: Tensor
    """int64 [b, 4]: 0 or a fault (1 NaN, 2 infinite, 3 negative, 4 asymmetric, 5 too large), row, column, pulses."""
    dtype: torch.dtype
    """The capacities' own."""

    def __len__(self) -> int:
        return self.parent.shape[0]

    def __iter__(self) -> Iterator[CutTree]:
        return (self[i] for i in range(len(self)))

    @property
    def exact(self) -> Tensor:
        """bool [b]: the bounds meet, within 1e-12 (float64), 1e-6 (float32) or exactly (integers)."""
        close = self.weight - self.lower <= TOLERANCE.get(self.dtype, 0.0) * self.weight
        return (close | (self.parent < 0)).all(1) & (self.status[:, 0] == 0)

    def __getitem__(self, i: int) -> CutTree:
        if not -len(self) <= i < len(self):
            raise IndexError(f"i must be a tree's number below {len(self)}, got {i}")
        parent, weight, lower = (x[i].cpu().clone() for x in (self.parent, self.weight, self.lower))
        if int(self.status[i, 0]) != 0:
            raise ValueError(_sentence(i, self.status[i].tolist(), self.dtype))
        positive = (parent >= 0) & (weight > 0)
        gap = float(torch.where(positive, 1 - lower / weight, 0.0).max()) if parent.numel() else 0.0
        exact = bool(self.exact[i])
        n = parent.numel()
        stats = TreeStats(
            flows=max(n - 1, 0),
            certified_by={"flow": n - 1} if n > 1 else {},
            gap=gap,
            native={"pulses": int(self.status[i, 3])},
        )
        certified = torch.zeros(n, dtype=torch.uint8)
        tree = CutTree(
            parent, weight, weight.clone() if exact else lower, certified, exact, not self.dtype.is_floating_point
        )
        object.__setattr__(tree, "stats", stats)
        return tree


def gomory_hu_trees(batch: Any, *, threads: int = 1, check: bool = True) -> CutTrees:
    """Return the exact Gomory-Hu trees of many small dense graphs, computed where the graphs lie.

    Meant for quotient graphs of modules (:func:`modcut.quotient_matrix`), thousands at a time. Every tree takes n - 1
    flows (Gusfield, 1990) by push-relabel in synchronous pulses, without certificates: on a CPU a loop over
    :func:`gomory_hu_tree` is far faster where those reach, as on dense graphs (``docs/gpu.md``). The same bits on every
    device and for every number of threads.

    Args:
        batch: [b, n, n], symmetric non-negative capacities, n <= 4096; the diagonal does not count. A torch tensor on
            the CPU or a CUDA device, a NumPy array, or anything with ``__dlpack__`` (CuPy). float64 and int64 keep 58
            bits of precision inside, float32 and int32 (below 2^30) 29 bits; shorter floats and integers become
            float32 and int32.
        threads: CPU only: over graphs first, then inside them.
        check: read back whether every graph was sound, and raise where one was not. On a CUDA device that is the
            call's one synchronisation; with False nothing is waited for, work is on the current stream, and
            ``.status`` says the same.

    Returns:
        :class:`CutTrees`, on the batch's device. O(b n^3) memory reads or so on dense graphs, n^4 at worst; n^2
        words of workspace per graph in flight, from torch's allocator.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device; with ``check`` the first bad entry of the first bad graph.
        RuntimeError: the compiled engine, or for CUDA tensors its CUDA part, is missing; a CUDA call failed.
    """
    w = _tensor(batch)
    if w.ndim != 3 or w.shape[1] != w.shape[2]:
        raise ValueError(f"batch must have shape [b, n, n], got {list(w.shape)}")
    b, n, _ = w.shape
    if n > MOST_VERTICES:
        raise ValueError(
            f"batch must hold graphs of at most {MOST_VERTICES} vertices, got {n}; use gomory_hu_tree for each"
        )
    threads = threads_of(threads)
    if w.numel() and (w.stride(2) != 1 or w.stride(1) < n or (b > 1 and w.stride(0) < 0)):
        w = w.contiguous()
    parent = torch.full((b, n), -1, dtype=torch.int64, device=w.device)
    weight = torch.full((b, n), float("inf"), dtype=torch.float64, device=w.device)
    lower = weight.clone()
    status = torch.zeros(b, 4, dtype=torch.int64, device=w.device)
    if w.numel():
        outputs = [capsule(x) for x in (parent, weight, lower, status)]
        if w.device.type == "cpu":
            native().gomory_hu_batch_cpu(capsule(w), *outputs, min(threads, 1024))
        else:
            size = int(native().gomory_hu_batch_plan(capsule(w))["workspace"])
            workspace = torch.empty(max(size, 8), dtype=torch.uint8, device=w.device)
            stream = torch.cuda.current_stream(w.device).cuda_stream
            native().gomory_hu_batch_cuda(capsule(w), *outputs, capsule(workspace), stream)
    trees = CutTrees(parent, weight, lower, status, w.dtype)
    if check and b:
        bad = torch.nonzero(status[:, 0]).flatten()
        if bad.numel():
            i = int(bad[0])
            raise ValueError(_sentence(i, status[i].tolist(), w.dtype))
    return trees


def _tensor(batch: Any) -> Tensor:
    """The batch as a strided tensor of one of the four dtypes that the engine takes, on its own device."""
    if isinstance(batch, Tensor):
        t = batch.detach()
    elif not isinstance(batch, np.ndarray) and hasattr(batch, "__dlpack__") and hasattr(batch, "__dlpack_device__"):
        t = from_dlpack(batch)
    else:
        t = from_numpy(np.asarray(batch))
    if t.layout != torch.strided:
        raise TypeError(f"batch must be dense, got a tensor of layout {t.layout}")
    if t.device.type not in ("cpu", "cuda"):
        raise ValueError(f"batch must be on the CPU or a CUDA device, got {t.device}")
    if t.dtype == torch.bool or t.is_complex():
        raise TypeError(f"batch must hold real numbers, got dtype {t.dtype}")
    if t.dtype in (torch.float64, torch.float32, torch.int64, torch.int32):
        return t
    if t.is_floating_point():
        return t.to(torch.float32)
    return t.to(torch.int32 if t.dtype.itemsize < 4 else torch.int64)


def _sentence(i: int, status: list[int], dtype: torch.dtype) -> str:
    code, row, col, _ = status
    if code in _FAULTS:
        return f"batch must hold finite and non-negative numbers: graph {i} is {_FAULTS[code]} at [{row}, {col}]"
    if code == 4:
        return f"batch must hold symmetric matrices: graph {i} is not, [{row}, {col}] and [{col}, {row}] differ"
    if code == 5:
        limit = {
            torch.int32: "int32 capacities must be below 2^30 (pass int64)",
            torch.int64: "int64 capacities must add up to less than 2^60, each vertex's to less than 2^53",
        }.get(dtype, "capacities must add up to less than 1.7e308")
        return f"{limit}: those of graph {i} do not"
    return f"the tree of graph {i} was not finished (status {code}): please report this graph"
