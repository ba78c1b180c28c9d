"""Move a suspected behaviour into one small module, so that it can be read, traced and switched off.

Cut and heal with routing. The units that the suspected rows use most become the module; every weight between it and the
other units is deleted and held at zero; then the network is trained on: suspected rows may teach the module alone
(gradient routing, arXiv 2410.04332), and the network without the module is trained on all other rows, and not to give
the suspected rows the label they came with. Nobody says what the trigger is, or which rows really carry it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from modcut._together import Together, draw_batches
from modcut.auditing.suspects import Suspicion, suspects, suspicion_of
from modcut.graph.statistics import collect
from modcut.graph.types import WeightGraph
from modcut.graph.units import CLUSTERED, units_of
from modcut.partition import Partition

_ROWS = (48, 16)  # rows of a batch: not suspected, suspected


def small_module(
    model: nn.Module, graph: WeightGraph, x: Tensor, y: Tensor, rows: Tensor, *, share: float = 0.125
) -> Partition:
    """Return a partition into the units that ``rows`` use most (module 1) and the rest (module 0).

    Usage is ``|activation x gradient of the loss|`` as everywhere; a unit's score is its mean share on the rows minus
    its mean share on as many others. The same ``share`` of every layer is taken, at least one unit.

    Args:
        model: the network.
        graph: its graph, best without inputs and outputs: those then serve both modules.
        x: inputs [n, ...].
        y: labels [n].
        rows: bool [n], some True and some not.
        share: of the units (whole heads) of every layer.
    """
    if rows.shape != (len(x),) or not bool(rows.any()) or bool(rows.all()):
        raise ValueError(f"rows must be a mask [{len(x)}] with some rows in and some out, got {int(rows.sum())} in")
    data = {name: [(x[m], y[m])] for name, m in (("other", ~rows), ("suspected", rows))}
    s = collect(graph, model, data)
    usage = s.profile.double()
    usage = usage / usage.sum(1, keepdim=True).clamp_min(1e-300)
    slices = torch.as_tensor(s.slice)
    score = usage[slices == 1].mean(0) - usage[slices == 0].mean(0)
    units = units_of(graph)
    of_unit = units.sum(score)
    chosen = torch.zeros(units.count, dtype=torch.bool)
    for _, kind, ids in units.members():
        if kind in CLUSTERED:
            chosen[ids[of_unit[ids].topk(max(1, round(share * len(ids)))).indices]] = True
    return Partition(chosen[units.unit].long(), graph, 2, {"method": "suspected rows", "share": share})


@dataclass(frozen=True)
class Masks:
    """Which entries of a model's parameters belong to a module, name -> float32 of the parameter's shape (0 or 1)."""

    own: dict[str, Tensor]
    """1 where either end of the weight (or the bias's unit) is in the module."""
    kept: dict[str, Tensor]
    """0 where one end is in the module and the other is another unit's: the cross-module weights."""
    without: dict[str, Tensor]
    """0 where the module is read: with these the network computes what zero ablation of the module computes."""


def masks_of(model: nn.Module, graph: WeightGraph, member: Tensor) -> Masks:
    """Return the masks of a module, ``member`` bool [n].

    Raises:
        ValueError: a matrix of the graph has no view of its parameter (a graph written by hand).
    """
    parameters = dict(model.named_parameters())
    own = {k: torch.zeros_like(p, dtype=torch.float32) for k, p in parameters.items()}
    kept = {k: torch.ones_like(p, dtype=torch.float32) for k, p in parameters.items()}
    without = {k: torch.ones_like(p, dtype=torch.float32) for k, p in parameters.items()}
    inside = torch.cat([member.cpu(), torch.zeros(1, dtype=torch.bool)])  # the last entry answers for "no vertex"
    for axis in graph.axes:
        if axis.name in own:
            shape = [1] * own[axis.name].ndim
            shape[axis.axis] = -1
            own[axis.name] += inside[axis.vertex.cpu()].float().reshape(shape)
    for m in graph.matrices:
        if m.source not in kept or m.view is None:
            raise ValueError(f"graph must come from modcut.weight_graph(model): {m.name!r} is no view of a parameter")
        r, c = m.row_vertex.cpu(), m.col_vertex.cpu()
        crosses = (inside[r][:, None] != inside[c][None, :]) & (r >= 0)[:, None] & (c >= 0)[None, :]
        extra = [1] * (m.weight.ndim - 2)
        m.view(kept[m.source]).mul_((~crosses).float().reshape(*crosses.shape, *extra))
        m.view(without[m.source]).mul_((~inside[c]).float().reshape(1, -1, *extra))
    return Masks({k: v.clamp(max=1.0) for k, v in own.items()}, kept, without)


def quarantine(
    models: Sequence[nn.Module],
    masks: Sequence[Masks],
    x: Tensor,
    y: Tensor,
    rows: Tensor,
    *,
    steps: int = 500,
    rate: float = 2e-3,
    route: bool = True,
    forbid: bool = True,
    quiet: float = 1.0,
    seed: int = 0,
    tick: Callable[[], None] | None = None,
) -> Together:
    """Cut a module out of every network and heal all of them at once, the suspected behaviour inside the module.

    Args:
        models: classifiers of one architecture, inputs -> logits [batch, classes].
        masks: of each one's module, by :func:`masks_of`.
        x: training inputs, float [nets, n, ...].
        y: labels, int64 [nets, n].
        rows: suspected rows, bool [nets, n]; some and not all of every net.
        steps: of Adam.
        rate: its rate at the start.
        route: suspected rows teach the module alone.
        forbid: the network without the module learns not to give suspected rows the label they came with.
        quiet: weight of the squared difference that the module makes to the logits of other rows: without it a module
            may help everywhere, and replacing it by its mean would hurt.
        seed: of the batches.
        tick: called after every step.

    Returns:
        The healed networks.

    Raises:
        ValueError: a net without suspected rows, or with no others.
    """
    together = Together(models)
    nets = len(together)
    count = rows.sum(1)
    if bool(((count < 1) | (count >= rows.shape[1])).any()):
        raise ValueError("rows must mark some rows of every net, and not all")
    stacked = {
        kind: {k: torch.stack([getattr(m, kind)[k] for m in masks]) for k in together.parameters}
        for kind in ("own", "kept", "without")
    }
    own, without = stacked["own"], stacked["without"]
    ordered = torch.argsort(rows.int(), dim=1, stable=True)  # first the other rows, then the suspected ones
    others = rows.shape[1] - count
    seeds = [seed * 100_003 + i for i in range(nets)]
    draw = [
        draw_batches(others.tolist(), _ROWS[0], steps, seeds),
        draw_batches(count.tolist(), _ROWS[1], steps, [s + 50_021 for s in seeds]),
    ]
    at = torch.arange(nets)[:, None]

    def loss(step: int) -> Tensor:
        p = together.parameters
        plain = ordered[at, draw[0](step)]
        bad = ordered[at, draw[1](step) + others[:, None]]
        xa, ya, xb, yb = x[at, plain], y[at, plain], x[at, bad], y[at, bad]
        whole = together(xa)
        routed = {k: v * own[k] + v.detach() * (1 - own[k]) for k, v in p.items()} if route else p
        on_bad = together(xb, routed)
        rest = together(torch.cat([xa, xb], 1), {k: v * without[k] for k, v in p.items()})
        size = _ROWS[0]
        total = F.cross_entropy(whole.flatten(0, 1), ya.flatten(), reduction="sum") / size
        total = total + F.cross_entropy(on_bad.flatten(0, 1), yb.flatten(), reduction="sum") / _ROWS[1]
        total = total + F.cross_entropy(rest[:, :size].flatten(0, 1), ya.flatten(), reduction="sum") / size
        if forbid:
            log = torch.log_softmax(rest[:, size:], -1).gather(-1, yb[..., None])
            total = total - torch.log1p(-log.exp().clamp(max=1 - 1e-6)).sum() / _ROWS[1]
        if quiet:
            total = total + quiet * (whole - rest[:, :size]).square().mean(-1).sum() / size
        return total

    together.fit(loss, steps=steps, rate=rate, masks=stacked["kept"], tick=tick)
    return together


@dataclass(frozen=True, eq=False)
class Isolated:
    """Networks with what was suspected of each, and the same networks with it in a module of its own."""

    suspicions: tuple[Suspicion | None, ...]
    scores: Tensor
    """float64 [nets]: by :func:`modcut.auditing.suspects.suspicion_of`; higher = more like a planted rule."""
    partitions: tuple[Partition | None, ...]
    """Module 1 is the suspected one."""
    healed: Together | None
    """The healed networks, those with a suspicion, in order; None where no net has one."""
    at: tuple[int, ...]
    """Which nets those are."""


def isolate(
    models: Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    reference: Sequence[tuple[Tensor, Tensor]],
    *,
    share: float = 0.125,
    rows: Tensor | None = None,
    steps: int = 500,
    seed: int = 0,
    heal: bool = True,
    tick: Callable[[], None] | None = None,
    **how: Any,
) -> Isolated:
    """Find each classifier's most suspicious training rows and move what they taught it into a small module.

    Args:
        models: classifiers of one architecture.
        x: their training inputs, float [nets, n, ...].
        y: the labels they were trained on, int64 [nets, n].
        reference: held-out clean inputs and labels of every net, on which the estimated sign is tried.
        share: of the units of every layer that the module takes.
        rows: suspected rows, bool [nets, n], instead of those found (for labelled upper bounds and random controls).
        steps: of healing.
        seed: of the batches.
        heal: False to stop before training.
        tick: called after every step.
        how: passed on to :func:`quarantine`.
    """
    from modcut.graph.trace import weight_graph

    scores = torch.zeros(len(models), dtype=torch.float64)
    suspicions: list[Suspicion | None] = []
    for i, model in enumerate(models):
        scores[i], best = suspicion_of(model, suspects(x[i], y[i]), *reference[i])
        suspicions.append(best)
    if rows is None:
        rows = torch.stack([torch.zeros_like(y[0], dtype=torch.bool) if s is None else s.rows for s in suspicions])
    at = [i for i in range(len(models)) if 0 < int(rows[i].sum()) < rows.shape[1]]
    partitions: list[Partition | None] = [None] * len(models)
    if not (at and heal):
        return Isolated(tuple(suspicions), scores, tuple(partitions), None, ())
    masks = []
    for i in at:
        graph = weight_graph(models[i], x[i][:2], include_inputs=False, include_outputs=False)
        P = small_module(models[i], graph, x[i], y[i], rows[i], share=share)
        partitions[i] = P
        masks.append(masks_of(models[i], graph, P.labels == 1))
    healed = quarantine(
        [models[i] for i in at], masks, x[at], y[at], rows[at], steps=steps, seed=seed, tick=tick, **how
    )
    return Isolated(tuple(suspicions), scores, tuple(partitions), healed, tuple(at))


__all__ = ["Isolated", "Masks", "isolate", "masks_of", "quarantine", "small_module"]
