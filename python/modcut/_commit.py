"""The commit: the strongest cross-module weights stay as the interface, all others are held at exactly zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from modcut import _held
from modcut._terms import LiveWeight


@dataclass(eq=False)
class Commitment:
    """Which entries of which parameters are held at zero.

    Gradients of held entries are masked (they enter neither momentum nor gradient norms); what an optimizer still moves
    by momentum from before is set back by :meth:`apply` after its step. Weight decay keeps zeros at zero.
    """

    weights: Sequence[LiveWeight]
    masks: list[Tensor]
    """bool [rows, cols] of every term: True where the weight is held at zero."""
    cross: int
    """Entries between different modules."""
    kept: int
    """Those that stay: the interface, an exact number of edges that can be listed."""
    _handles: list[RemovableHandle] = field(default_factory=list, repr=False)
    _hooked: tuple[int, ...] = field(default=(), repr=False)

    @property
    def held(self) -> int:
        """Number of entries held at zero."""
        return sum(int(m.sum()) for m in self.masks)

    @torch.no_grad()
    def apply(self) -> None:
        """Set the held entries to zero; put gradient hooks on parameters that were replaced since."""
        parameters = [w.parameter() for w in self.weights]
        for w, p, mask in zip(self.weights, parameters, self.masks, strict=True):
            _held.zero_(w.view(p), mask)
        now = tuple(id(p) for p in parameters)
        if now != self._hooked:
            self.release()
            parts = zip(parameters, (w.view for w in self.weights), self.masks, strict=True)
            self._handles, self._hooked = _held.mask_gradients(parts), now

    def release(self) -> None:
        """Remove the gradient hooks; the weights stay as they are."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._hooked = [], ()

    def pack(self) -> Tensor:
        """Return the masks as bits, uint8 [entries / 8]."""
        bits = torch.cat([m.flatten().cpu() for m in self.masks]).to(torch.uint8)
        bits = torch.cat([bits, bits.new_zeros(-bits.numel() % 8)]).view(-1, 8)
        return (bits << torch.arange(8, dtype=torch.uint8)).sum(1).to(torch.uint8)

    @staticmethod
    def unpack(
        weights: Sequence[LiveWeight], packed: Tensor, shapes: list[tuple[int, int]], kept: int, cross: int
    ) -> Commitment:
        """Return what :meth:`pack` wrote, for matrices of these shapes."""
        bits = ((packed.cpu()[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1).flatten().bool()
        sizes = [r * c for r, c in shapes]
        if not sum(sizes) <= bits.numel() < sum(sizes) + 8:
            raise ValueError(
                f"the saved interface must fit the {sum(sizes)} weights of this loss, it was saved for "
                f"about {bits.numel()}: build the loss with the same inputs dial"
            )
        parts = torch.split(bits[: sum(sizes)], sizes)
        masks = [m.view(s) for m, s in zip(parts, shapes, strict=True)]
        return Commitment(weights, masks, cross, kept)


@torch.no_grad()
def choose(
    weights: Sequence[LiveWeight],
    strengths: Sequence[Tensor],  # A of every term, [rows, cols], 0 outside the term
    crossing: Sequence[Tensor],  # bool of every term, [rows, cols]
    budget: float,
) -> Commitment:
    """Keep the strongest ``budget`` of all cross edges, over the whole network together, by their target's share."""
    cross = sum(int(c.sum()) for c in crossing)
    values = [_held.shares(a) for a in strengths]
    masks = _held.spare_strongest(list(crossing), values, round(budget * cross))
    kept = cross - sum(int(m.sum()) for m in masks)
    return Commitment(weights, masks, cross, kept)
