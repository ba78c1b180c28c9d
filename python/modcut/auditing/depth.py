"""Where in a model's forward pass its taps lie: the steps through which one decision is followed."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from modcut import _batches
from modcut.graph.interventions import evaluation, hook_tap, tap_key
from modcut.graph.types import WeightGraph


@dataclass(frozen=True)
class Site:
    """A stretch of the forward pass."""

    name: str
    """``layers.3.mlp``, or ``first ... last`` where neighbours were merged."""
    taps: tuple[str, ...]
    """Keys of the taps in it, in the order in which the model passes them."""


def in_order(model: nn.Module, graph: WeightGraph, batch: _batches.Batch) -> tuple[str, ...]:
    """Return the keys of the graph's taps in the order in which one forward pass first reaches them.

    Taps the pass does not reach are left out. Evaluation mode, no gradients.
    """
    seen: dict[str, None] = {}

    def visit(key: str) -> Callable[[Tensor], None]:
        return lambda _: seen.setdefault(key, None)

    with evaluation(model), torch.no_grad(), ExitStack() as stack:
        for tap in graph.taps:
            stack.callback(hook_tap(model, tap, visit(tap_key(tap))).remove)
        _batches.forward(model, batch)
    return tuple(seen)


def site_name(tap: str) -> str:
    """Return the part of a model that a tap belongs to: its name up to the first number and one component more.

    ``transformer.h.3.attn.c_attn:input`` -> ``transformer.h.3.attn``; names without a number stay whole.
    """
    module = tap.rpartition(":")[0]
    found = re.match(r"(?:.*?\.)??\d+(?:\.[^.]+)?(?=\.|$)", module)
    return found.group() if found else module


def depths(taps: tuple[str, ...], most: int) -> tuple[Site, ...]:
    """Group taps, given in the model's order, into at most ``most`` consecutive sites."""
    named: dict[str, list[str]] = {}
    for tap in taps:
        named.setdefault(site_name(tap), []).append(tap)
    names = list(named)
    if len(names) <= most:
        return tuple(Site(name, tuple(named[name])) for name in names)
    merged = []
    for part in np.array_split(np.arange(len(names)), most):
        inside = [names[i] for i in part]
        title = inside[0] if len(inside) == 1 else f"{inside[0]} ... {inside[-1]}"
        merged.append(Site(title, tuple(t for name in inside for t in named[name])))
    return tuple(merged)


__all__ = ["Site", "depths", "in_order", "site_name"]
