"""Skills within skills: every kind of window is asked again whether it is several."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from modcut.clustering import unit_profiles
from modcut.graph.types import WeightGraph
from modcut.skills.kinds import window_kinds


@dataclass(frozen=True, eq=False)
class Skill:
    """A kind of window, and the kinds it consists of."""

    windows: Tensor
    """int64 [m]: which windows."""
    reason: str
    """Why it was divided, or was not."""
    parts: tuple[Skill, ...] = field(default=())

    @property
    def leaves(self) -> tuple[Skill, ...]:
        """The kinds that are not divided further."""
        return tuple(leaf for part in self.parts for leaf in part.leaves) if self.parts else (self,)

    def labels(self) -> Tensor:
        """Return the leaf of every window, int64 [windows]; only the root knows all windows."""
        out = torch.full((int(self.windows.max()) + 1 if self.windows.numel() else 0,), -1, dtype=torch.int64)
        for i, leaf in enumerate(self.leaves):
            out[leaf.windows] = i
        return out

    def to_dict(self) -> dict[str, Any]:
        """Return the tree as plain values."""
        return {"windows": self.windows.numel(), "reason": self.reason, "parts": [p.to_dict() for p in self.parts]}


def hierarchy(
    graph: WeightGraph, profile: Tensor, *, max_k: int = 8, depth: int = 4, seed: int = 0, strong: float | None = None
) -> Skill:
    """Divide windows into kinds, and every kind into its own, until none divides.

    Usage is standardised again inside every kind, so that differences which the large kinds drown come out; a kind of
    fewer than 16 windows is not asked. It divides windows, not units: what a part needs may be shared by all parts.

    Args:
        graph: The model's graph.
        profile: float [windows, n], as :class:`modcut.graph.statistics.Statistics` has it.
        max_k: Parts of one kind, at most.
        depth: Levels, at most.
        seed: Of the clustering.
        strong: Prediction strength that counts.
    """
    options: dict[str, Any] = {} if strong is None else {"strong": strong}

    def divide(windows: Tensor, left: int) -> Skill:
        if left < 1:
            return Skill(windows, "the depth asked for")
        kinds = window_kinds(unit_profiles(graph, profile[windows]), max_k=max_k, seed=seed, **options)
        if kinds.k == 1:
            return Skill(windows, kinds.reason)
        return Skill(windows, kinds.reason, tuple(divide(windows[kinds.label == c], left - 1) for c in range(kinds.k)))

    return divide(torch.arange(profile.shape[0]), depth)
