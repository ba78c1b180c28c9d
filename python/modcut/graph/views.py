"""Sub-matrices as live strided views."""

from __future__ import annotations

import torch
from torch import Tensor

Pattern = list[tuple[int, int]]


def pattern(index: Tensor) -> tuple[int, Pattern] | None:
    """Return (first position, [(size, step) of the rows, (size, step) of nested repeats...]) of index [n, repeats].

    Position ``index[i, r]`` must be ``first + i * step + sum_l digit_l(r) * step_l`` with the digits of r in a mixed
    radix; ``None`` where it is not.
    """
    first = int(index[0, 0])
    n = index.shape[0]
    step = int(index[1, 0]) - first if n > 1 else 1
    if step < 0 or bool((index[0] < first).any()):
        return None
    expected = index[0][None, :] + torch.arange(n)[:, None] * step
    if not torch.equal(expected, index):
        return None
    levels: Pattern = []
    offsets = (index[0] - first).tolist()
    while len(offsets) > 1:
        jump, run = offsets[1] - offsets[0], 1
        while run < len(offsets) and offsets[run] == offsets[0] + run * jump:
            run += 1
        if len(offsets) % run:
            return None
        if any(offsets[i] != offsets[i - i % run] + (i % run) * jump for i in range(len(offsets))):
            return None
        levels.insert(0, (run, jump))
        offsets = offsets[::run]
    return first, [(n, step), *levels]


def regular_pieces(index: Tensor) -> list[Tensor]:
    """Cut the repeats of index [n, repeats] into the fewest leading runs that are regular (often one)."""
    out = []
    while index.shape[1]:
        take = next((r for r in range(index.shape[1], 0, -1) if pattern(index[:, :r]) is not None), 0)
        if not take:  # even one position per neuron is irregular: neuron by neuron
            raise ValueError("neurons of one space lie in an irregular order on an axis")
        out.append(index[:, :take])
        index = index[:, take:]
    return out


def block_view(weight: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Return the view [rows, cols, *row repeats, *column repeats, *kernel] of ``weight`` [R, C, *kernel].

    ``rows`` [n, repeats] and ``cols`` [m, repeats] are positions in a regular pattern. The view shares memory.

    Raises:
        ValueError: the positions are not regular.
    """
    r, c = pattern(rows), pattern(cols)
    if r is None or c is None:
        raise ValueError("positions must be regular for a view to exist")
    rs, cs = weight.stride(0), weight.stride(1)
    (n, row_step), *row_levels = r[1]
    (m, col_step), *col_levels = c[1]
    levels = [(size, step * rs) for size, step in row_levels] + [(size, step * cs) for size, step in col_levels]
    shape = [n, m, *(size for size, _ in levels), *weight.shape[2:]]
    stride = [row_step * rs, col_step * cs, *(step for _, step in levels), *weight.stride()[2:]]
    return weight.as_strided(shape, stride, weight.storage_offset() + r[0] * rs + c[0] * cs)
