"""Make found skills separable: train each kind of window while the other kinds' cores are switched off.

Structure follows function: once kinds and cores are found, the one thing that makes a core unnecessary to other kinds
is that they are trained without it now and then (module drop; like dropout, but whole modules, chosen by the window's
kind). What all kinds share stays outside the cores and is always there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from modcut.clustering import core_labels
from modcut.graph import interventions
from modcut.graph.units import CLUSTERED
from modcut.partition import Partition


def cores(P: Partition, profile: Tensor, kinds: Tensor, *, share: float = 0.5) -> Partition:
    """Return the cores of a partition's modules: label c for the core of module c, ``P.k`` for what is shared.

    Args:
        P: Module c is what kind c uses most.
        profile: float [windows, n]: usage (``P.graph.statistics.profile``).
        kinds: int64 [windows]: the kind of every window.
        share: Of the units of every layer and module that its kind uses most exclusively, in (0, 1].

    Raises:
        ValueError: share out of range, or kinds that are not those of the profile's windows.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    if kinds.shape != profile.shape[:1]:
        raise ValueError(
            f"kinds must have one entry per window: {profile.shape[0]} windows, got shape {list(kinds.shape)}"
        )
    return Partition(core_labels(P.graph, profile, kinds, P.labels, P.k, share=share), P.graph, P.k + 1)


@contextmanager
def without_others(model: nn.Module, P: Partition, kind: int, modules: int | None = None) -> Iterator[None]:
    """Switch the neurons and heads of all modules but one off (zero) in every forward pass inside the block.

    A training step on a batch of one kind of window, to be added to the ordinary loss::

        with modcut.skills.without_others(model, core, kind):
            loss = loss + task_loss(model, windows_of_that_kind)

    Gradients flow through what is left; weights are not written; the hooks go away however the block ends.

    Args:
        model: The model that ``P.graph`` was traced from.
        P: Modules, or cores with ``modules`` of them (:func:`cores` has one label more, which is left on).
        kind: The module that stays on.
        modules: Labels from here on are never switched off (default: all ``P.k`` are modules).

    Raises:
        ValueError: kind or modules out of range.
    """
    count = P.k if modules is None else modules
    if not 1 <= count <= P.k:
        raise ValueError(f"modules must be between 1 and the partition's {P.k}, got {count}")
    if not 0 <= kind < count:
        raise ValueError(f"kind must be between 0 and {count - 1}, got {kind}")
    off = (P.labels < count) & (P.labels != kind) & interventions.read_vertices(P.graph)
    for s in P.graph.spaces:
        if s.kind not in CLUSTERED:
            off[s.vertices] = False
    with interventions.replace(model, P.graph, torch.nonzero(off).flatten(), "zero"):
        yield
