"""How much every module is used at every position of one batch, for the partition and its random controls at once.

Two measures. ``use``: |activation x gradient of the loss|, summed over the module's vertices: one forward and one
backward pass. ``activity``: |activation| over its root mean square, averaged over the places where a
vertex is read and summed over the module: one forward pass, which stops behind the last place read. (Not the distance
from the mean: a unit that is off half of the time is as far from its mean when it is off as when it is on.)
The model's own inputs and outputs are neither counted nor replaced: that an answer moves with its own score says
nothing about its causes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from modcut import _batches
from modcut.graph import interventions
from modcut.graph.types import Tap, WeightGraph

Measure = Literal["use", "activity"]
# A unit that never fired while its size was taken would count without bound when it does.
FURTHEST = 10.0
# The size of a unit is at least this part of the median size at its tap.
FLOOR = 0.05


class _Done(Exception):  # noqa: N818 - not an error
    """Everything that is read has been read: the rest of the forward pass is not needed."""


class Watch:
    """Measures batches; build it once for a stream.

    Args:
        model: the model, in evaluation mode.
        graph: its graph.
        labelings: int64 [draws, n]: the partition's labels and the controls'.
        k: number of modules.
        measure: ``use`` or ``activity``.
        objective: the scalar whose gradient measures use.
        calibration: batches that give the root mean squares for ``activity``.

    Raises:
        ValueError: an unknown measure, or no vertex inside the model that a hook reaches.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: WeightGraph,
        labelings: Tensor,
        k: int,
        *,
        measure: Measure,
        objective: _batches.LossFn,
        calibration: Sequence[Any],
    ) -> None:
        if measure not in get_args(Measure):
            raise ValueError(f"measure must be one of {', '.join(get_args(Measure))}, got {measure!r}")
        self.model, self.labelings, self.k, self.measure, self.objective = model, labelings, k, measure, objective
        self._members: dict[bytes, Tensor] = {}
        self.sites = list(interventions.sites(graph, interventions.reachable(graph, torch.arange(graph.n))))
        if not self.sites:
            raise ValueError("P.graph must have taps inside the model, and none is reached by a hook")
        self._weight: dict[int, Tensor] = {}
        self._last: int | None = None
        if measure == "activity":
            self._calibrate(graph, calibration)

    def __call__(self, batch: Any) -> Tensor:
        """Return use or activity of every module, float32 [samples, positions, draws, k].

        Inputs of integers [samples, positions] are tokens; anything else has one position.
        """
        inputs = _batches.inputs_of(batch)
        tokens = inputs.ndim == 2 and not inputs.is_floating_point()
        size, positions = inputs.shape[0], inputs.shape[1] if tokens else 1
        total = torch.zeros(size, positions, len(self.labelings) * self.k)

        def add(site: interventions.Site, value: Tensor) -> None:
            value = value.float().movedim(site.tap.dim, -1)
            if not (tokens and value.ndim == 3 and value.shape[:2] == inputs.shape):
                if tokens and value.ndim == 3 and value.shape[1] != 1:
                    return  # a tap whose second axis is not the text (never seen so far): no position to give it to
                value = value.reshape(value.shape[0], -1, value.shape[-1]).sum(1, keepdim=True)
            total.add_((value @ self._member(site).to(value.device)).cpu())

        (self._gradients if self.measure == "use" else self._activities)(batch, size, add)
        if not bool(torch.isfinite(total).all()):
            bad = int((~torch.isfinite(total).flatten(1).all(1)).sum())
            what = "activations and gradients" if self.measure == "use" else "activations"
            raise ValueError(
                f"the model's {what} on data must be finite, but are not for {bad} of {size} samples of a batch"
            )
        return total.reshape(size, positions, len(self.labelings), self.k)

    def _gradients(self, batch: Any, size: int, add: Callable[[interventions.Site, Tensor], None]) -> None:
        seen: list[tuple[interventions.Site, Tensor]] = []

        def visitor(site: interventions.Site) -> Callable[[Tensor], Tensor | None]:
            def visit(x: Tensor) -> Tensor | None:
                if not x.requires_grad:
                    return None
                # Its own view gives each reader its own gradient where several read one tensor (query, key, value).
                seen.append((site, own := x.view_as(x)))
                return own

            return visit

        gradients: Sequence[Tensor | None] = ()
        frozen = [p for p in self.model.parameters() if p.is_floating_point() and not p.requires_grad]
        handles = []
        try:
            for p in frozen:  # without a single trainable parameter no activation would have a gradient
                p.requires_grad_(True)
            for site in self.sites:
                handles.append(interventions.hook_tap(self.model, site.tap, visitor(site)))
            with torch.inference_mode(False), torch.enable_grad():
                loss = self.objective(self.model, batch) * size
                if seen:
                    gradients = torch.autograd.grad(loss, [x for _, x in seen], allow_unused=True)
        finally:
            for handle in handles:
                handle.remove()
            for p in frozen:
                p.requires_grad_(False)
        for (site, x), g in zip(seen, gradients, strict=True):
            if g is not None:
                add(site, (x.detach() * g).abs())

    def _activities(self, batch: Any, size: int, add: Callable[[interventions.Site, Tensor], None]) -> None:
        def visitor(n: int, site: interventions.Site) -> Callable[[Tensor], None]:
            weight = site.along(self._weight[n], torch.empty(0))

            def visit(x: Tensor) -> None:
                z = x.detach().float().abs() * weight.to(x.device)
                add(site, z.minimum(self._most(n, site, x.device)))
                if n == self._last:
                    raise _Done

            return visit

        handles = []
        try:
            for n in self._weight:
                handles.append(interventions.hook_tap(self.model, self.sites[n].tap, visitor(n, self.sites[n])))
            with torch.no_grad():
                _batches.forward(self.model, batch)
        except _Done:
            pass
        finally:
            for handle in handles:
                handle.remove()

    def _most(self, n: int, site: interventions.Site, device: torch.device) -> Tensor:
        return site.along(FURTHEST * self._times[n], torch.empty(0, device=device))

    def _calibrate(self, graph: WeightGraph, batches: Sequence[Any]) -> None:
        """Sizes, which taps see one and the same tensor, and behind which nothing more is read."""
        moments: dict[int, list[Tensor]] = {}
        order: list[int] = []
        same: dict[int, int] = {}
        alive: list[Tensor] = []

        def visitor(n: int, site: interventions.Site) -> Callable[[Tensor], None]:
            def visit(x: Tensor) -> None:
                order.append(n)
                if id(x) in same and torch.equal(self.sites[same[id(x)]].tap.vertex, site.tap.vertex):
                    return  # query, key and value read one tensor: it is looked at once
                same.setdefault(id(x), n)
                alive.append(x)  # an id is only unique among the living
                flat = x.detach().movedim(site.tap.dim, -1).flatten(0, -2).double()
                part = torch.stack([flat.square().sum(0), torch.full_like(flat[0], len(flat))]).cpu()
                moments.setdefault(n, []).append(part)

            return visit

        handles = []
        try:
            for n, site in enumerate(self.sites):
                handles.append(interventions.hook_tap(self.model, site.tap, visitor(n, site)))
            with torch.no_grad():
                for batch in batches:
                    same.clear()
                    alive.clear()
                    _batches.forward(self.model, batch)
        finally:
            for handle in handles:
                handle.remove()
        counts = torch.zeros(graph.n + 1)
        for n in moments:
            counts[self.sites[n].tap.vertex.cpu()[self.sites[n].where]] += 1
        self._times: dict[int, Tensor] = {}
        for n, parts in sorted(moments.items()):
            sums = torch.stack(parts).sum(0)
            size = (sums[0] / sums[1]).sqrt()
            positive = size[size > 0]
            floor = FLOOR * float(positive.median()) if positive.numel() else 1.0
            # A vertex read in several places (a residual channel) counts once: the mean over the places.
            times = 1.0 / counts[self.sites[n].tap.vertex.cpu()].clamp_min(1)
            self._times[n] = times
            self._weight[n] = (times / size.clamp_min(floor)).float()
        once = [n for n in self._weight if order.count(n) == len(batches)]
        if len(once) == len(self._weight):
            first = order[: len(order) // len(batches)]
            self._last = max(self._weight, key=first.index)

    def _member(self, site: interventions.Site) -> Tensor:
        key = site.tap.vertex.cpu().numpy().tobytes() + site.where.numpy().tobytes()
        if key not in self._members:
            self._members[key] = membership(site.tap, site.where, self.labelings, self.k)
        return self._members[key]


def membership(tap: Tap, where: Tensor, labelings: Tensor, k: int) -> Tensor:
    """Return float32 [size of the tap, draws * k]: 1 where the vertex at a position is in the module."""
    vertex = tap.vertex.cpu()
    member = torch.zeros(len(vertex), len(labelings), k)
    at = torch.nonzero(where).flatten()
    for r, labels in enumerate(labelings):
        member[at, r, labels[vertex[at]]] = 1.0
    return member.flatten(1)
