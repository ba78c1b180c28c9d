"""Weights that are held at zero: which ones, kept at zero, and out of every gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

View = Callable[[Tensor], Tensor]
"""Takes a parameter, or something laid out like it, and returns the part [rows, cols, *kernel] of a matrix."""


def zero_(weight: Tensor, mask: Tensor) -> None:
    """Set the masked entries [rows, cols] of a weight [rows, cols, *kernel] to zero, in place."""
    mask = mask.to(weight.device).reshape(*mask.shape, *[1] * (weight.ndim - 2))
    with torch.no_grad():
        weight.detach().masked_fill_(mask, 0.0)


def shares(strength: Tensor) -> Tensor:
    """Return each entry's share of what its row receives, [rows, cols]: no rescaling of neurons moves it."""
    return strength / strength.sum(1, keepdim=True).clamp_min(torch.finfo(strength.dtype).tiny)


def spare_strongest(masks: Sequence[Tensor], values: Sequence[Tensor], count: int) -> list[Tensor]:
    """Return the masks without their ``count`` entries of largest value, over all matrices together.

    Args:
        masks: bool [rows, cols] each.
        values: [rows, cols] each; entries of value 0 are never spared.
        count: how many to spare.
    """
    flat = torch.cat([v[m] for v, m in zip(values, masks, strict=True)]) if masks else torch.zeros(0)
    count = min(count, int((flat > 0).sum()))
    chosen = torch.zeros(flat.numel(), dtype=torch.bool, device=flat.device)
    chosen[flat.topk(count).indices] = True
    out, start = [], 0
    for mask in masks:
        size = int(mask.sum())
        left = mask.clone()
        left[mask] = ~chosen[start : start + size]
        out.append(left)
        start += size
    return out


def mask_gradients(parts: Iterable[tuple[Tensor, View, Tensor]]) -> list[RemovableHandle]:
    """Multiply the gradient of every parameter by what its masks leave of it.

    Masked entries then enter neither momentum nor gradient norms; several parts may lie in one parameter.

    Args:
        parts: parameter, view of the matrix in it, and mask bool [rows, cols].
    """
    kept: dict[int, tuple[Tensor, Tensor]] = {}
    for parameter, view, mask in parts:
        if not parameter.requires_grad:
            continue
        if id(parameter) not in kept:
            whole = torch.empty_strided(parameter.size(), parameter.stride(), device=parameter.device, dtype=torch.bool)
            kept[id(parameter)] = (parameter, whole.fill_(True))
        zone = view(kept[id(parameter)][1])
        zone.masked_fill_(mask.to(zone.device).reshape(*mask.shape, *[1] * (zone.ndim - 2)), False)
    return [_hook(p, whole) for p, whole in kept.values()]


def _hook(parameter: Tensor, kept: Tensor) -> RemovableHandle:
    # Not a product: 0 times an overflowed gradient is NaN.
    handle: RemovableHandle = parameter.register_hook(lambda g: g.masked_fill(~kept.to(g.device), 0.0))  # type: ignore[no-untyped-call]
    return handle
