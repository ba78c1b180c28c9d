"""Ablations that live in the weights: the edges between two modules for a while, or units for good in a copy."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from modcut import _batches
from modcut.auditing._vertices import Which, vertices_of
from modcut.auditing.ablate import check_fits, reachable
from modcut.graph.interventions import sites, tap_key
from modcut.graph.observer import input_source
from modcut.graph.types import Matrix
from modcut.partition import Partition

# Per model and parameter: the weights as they were, and the masks in force. Blocks may end in any order.
_ACTIVE: WeakKeyDictionary[nn.Module, dict[str, tuple[Tensor, list[Tensor]]]] = WeakKeyDictionary()


@contextmanager
def ablate_interface(model: nn.Module, P: Partition, pairs: Sequence[tuple[int, int]]) -> Iterator[int]:
    """Remove only the edges from one module into another while the ``with`` block runs; yield how many.

    Every weight whose source (column) is in module ``i`` and whose target (row) is in module ``j`` is zero inside the
    block, in every pass, with and without a cache; then it is what it was, bit for bit, also after an exception. Blocks
    nest and may end in any order. Modules share the residual stream where a residual channel belongs to one of them:
    only edges that touch the channel count.

    Args:
        model: the model ``P`` was found on, or one of its architecture. Its weights must not be trained inside.
        P: the partition.
        pairs: ``(i, j)``: from module ``i`` into module ``j``; both directions are two pairs.

    Raises:
        ValueError: an index outside, no pair, a pair of a module with itself, no weight between them, or a partition of
            another architecture.
    """
    model = _batches.unwrap(model)
    check_fits(model, P.graph)
    if not pairs:
        raise ValueError("pairs must hold at least one (from, into), got none")
    for i, j in pairs:
        if not (0 <= i < P.k and 0 <= j < P.k) or i == j:
            raise ValueError(f"pairs must be two different modules in [0, {P.k}), got ({i}, {j})")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    labels = torch.cat([P.labels.cpu(), torch.tensor([-1])])  # the last answers for "no vertex"
    masks: dict[str, Tensor] = {}
    removed = 0
    for m in P.graph.matrices:
        rows, cols = labels[m.row_vertex.cpu()], labels[m.col_vertex.cpu()]
        hit = torch.zeros(len(rows), len(cols), dtype=torch.bool)
        for i, j in pairs:
            hit |= (rows == j)[:, None] & (cols == i)[None]
        if bool(hit.any()):
            name = m.source or m.name
            mask = masks.setdefault(name, torch.zeros_like(parameters[name], dtype=torch.bool))
            _at(m, mask).logical_or_(hit.reshape(*hit.shape, *[1] * (m.weight.ndim - 2)).to(mask.device))
            removed += int(hit.sum())
    if not masks:
        raise ValueError(f"no weight leads from one module into the other in {list(pairs)}")
    held = _ACTIVE.setdefault(model, {})
    try:
        for name, mask in masks.items():
            held.setdefault(name, (parameters[name].detach().clone(), []))[1].append(mask)
            _apply(parameters[name], held[name])
        yield removed
    finally:
        for name, mask in masks.items():
            if name in held and any(x is mask for x in held[name][1]):
                held[name][1][:] = [x for x in held[name][1] if x is not mask]
                _apply(parameters[name], held[name])
                if not held[name][1]:
                    del held[name]


def _at(m: Matrix, whole: Tensor) -> Tensor:
    """The map's [rows, cols, *kernel] view of a tensor shaped like its parameter."""
    return whole if m.view is None else m.view(whole)


def _apply(parameter: Tensor, state: tuple[Tensor, list[Tensor]]) -> None:
    original, masks = state
    with torch.no_grad():
        parameter.copy_(original)
        for mask in masks:
            parameter.masked_fill_(mask, 0.0)


def bake(
    model: nn.Module, P: Partition, modules: Which, mode: Literal["zero", "scale"] = "zero", scale: float = 0.0
) -> nn.Module:
    """Return a copy of the model that computes, without any hook, what the ablated model computes.

    The weights that read an ablated unit are multiplied by ``scale`` (0 for ``zero``); a unit that no weight reads
    (query-key dimensions) has its rows and biases multiplied where it is written. Tied parameters are untied in the
    copy: a residual channel that the head no longer reads is still written by the embedding.

    Args:
        model: the model ``P`` was found on, or one of its architecture; left as it is.
        P: the partition.
        modules: as :func:`modcut.ablate` takes them.
        mode: ``zero`` or ``scale``: the ablations that are a change of weights alone.
        scale: of ``scale``.

    Raises:
        ValueError: another mode (means and noise need activations), no unit that can be replaced, or a unit read by
            something that is no weight.
    """
    if mode not in ("zero", "scale"):
        raise ValueError(f"mode must be zero or scale (only they are a change of weights), got {mode!r}")
    factor = 0.0 if mode == "zero" else float(scale)
    model = _batches.unwrap(model)
    check_fits(model, P.graph)
    graph = P.graph
    units = reachable(graph, vertices_of(P, modules))
    if not units.numel():
        raise ValueError("none of the vertices named by modules can be replaced")
    edited = copy.deepcopy(model)
    _untie(edited)
    parameters = dict(edited.named_parameters(remove_duplicate=False))
    chosen = torch.zeros(graph.n + 1, dtype=torch.bool)
    chosen[units] = True
    where = sites(graph, units)
    reads = {tap_key(s.tap) for s in where if s.tap.side == "input"}
    done: set[str] = set()
    with torch.no_grad():
        for m in graph.matrices:
            source = input_source(graph, model, m)
            if source is not None and source[0] in reads:
                view = _at(m, parameters[m.source or m.name])
                view[:, chosen[m.col_vertex.cpu()].to(view.device)] *= factor
                done.add(source[0])
        for site in where:
            head = edited.get_submodule(site.tap.module)
            if tap_key(site.tap) in reads - done and isinstance(head, nn.Linear):  # tied: the graph names the embedding
                head.weight[:, site.where.to(head.weight.device)] *= factor
                done.add(tap_key(site.tap))
            if site.tap.side == "output":
                rows = torch.zeros(graph.n + 1, dtype=torch.bool)
                rows[site.tap.vertex.cpu()[site.where]] = True
                for m in graph.matrices:
                    name = m.source or m.name
                    if name.rpartition(".")[0] == site.tap.module:
                        view = _at(m, parameters[name])
                        view[rows[m.row_vertex.cpu()].to(view.device)] *= factor
                        done.add(tap_key(site.tap))
                bias = parameters.get(f"{site.tap.module}.bias")
                if bias is not None and bias.shape == site.where.shape:
                    bias[site.where.to(bias.device)] *= factor
    missed = sorted({tap_key(s.tap) for s in where} - done)
    if missed:
        raise ValueError(f"these units cannot be baked: what reads them at {missed[0]!r} is no weight of the graph")
    return edited


def _untie(model: nn.Module) -> None:
    """Give every name of a parameter a tensor of its own."""
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if id(parameter) in seen:
                module._parameters[name] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
            else:
                seen.add(id(parameter))
    config = getattr(model, "config", None)
    if getattr(config, "tie_word_embeddings", False):
        config.tie_word_embeddings = False  # type: ignore[union-attr]


__all__ = ["ablate_interface", "bake"]
