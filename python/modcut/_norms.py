"""How strong the inputs of every matrix are: running mean squares from forward hooks; without data, from balance."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from modcut.graph.interventions import tap_key
from modcut.graph.statistics import _embeddings, _source
from modcut.graph.types import Tap, WeightGraph

DECAY = 0.99
"""Of the exponential average, per recorded forward pass: a memory of about 100 passes."""


class Layout:
    """Where each source (a tap, or the tokens of an embedding) keeps its running mean square in one flat vector."""

    def __init__(self, graph: WeightGraph, model: nn.Module, matrices: tuple[Any, ...]) -> None:
        taps = {tap_key(t): t for t in graph.taps if t.side == "input"}
        embeddings = _embeddings(graph, model)
        self.sources: list[tuple[str, Tap | None, int, int]] = []  # module, tap (None: token ids), start, end
        index: dict[str, int] = {}
        places, owners, end = [], [], 0
        for m in matrices:
            found = _source(graph, model, m)
            if found is None:
                places.append(torch.full((m.col_vertex.numel(),), -1))
                owners.append(-1)
                continue
            key, position = found
            if key not in index:
                tap = taps.get(key)
                module = key.removesuffix(":ids") if tap is None else tap.module
                size = embeddings[module].numel() if tap is None else tap.vertex.numel()
                index[key] = len(self.sources)
                self.sources.append((module, tap, end, end + size))
                end += size
            places.append(position + self.sources[index[key]][2])
            owners.append(index[key])
        self.size = end
        self.place = torch.cat(places) if places else torch.zeros(0, dtype=torch.int64)
        """int64 [C]: where the mean square of every column of every term stands, -1: it cannot be observed."""
        self.owner = torch.tensor(owners, dtype=torch.int64)
        """int64 [terms]: the source of every term, -1: none."""


class InputHook:
    """Forward pre-hook that keeps one source's running mean square.

    Both ends are held weakly: the model does not keep the loss alive, nor the loss the model. A deep copy of the model
    copies the hook, which then sees a module that is not its own and does nothing; pickled with the model, it is inert.
    """

    def __init__(self, keeper: Any, module: nn.Module, index: int, tap: Tap | None) -> None:
        self.keeper: Callable[[], Any] = weakref.ref(keeper)
        self.module: Callable[[], nn.Module | None] = weakref.ref(module)
        self.index, self.tap = index, tap

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keeper = self.keeper()
        if keeper is None or not keeper.recording or not module.training or module is not self.module():
            return
        x = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        if x is None or x.is_floating_point() == (self.tap is None) or not x.numel():
            return
        with torch.no_grad():
            size = keeper.sizes[self.index]
            if self.tap is None:
                new = torch.bincount(x.detach().flatten(), minlength=size).double() / x.numel()
            elif x.shape[self.tap.dim] != size:
                return
            else:
                wide = x.detach() if x.dtype == torch.float64 else x.detach().float()
                new = wide.movedim(self.tap.dim, -1).reshape(-1, size).square().mean(0)
            keeper.record(self.index, new)

    def __getstate__(self) -> dict[str, Any]:
        return {"index": self.index}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.index, self.tap = state["index"], None
        self.keeper = self.module = _nothing

    def __deepcopy__(self, memo: dict[int, Any]) -> InputHook:
        return self


def _nothing() -> None:
    return None


def attach(layout: Layout, model: nn.Module, keeper: Any) -> list[RemovableHandle]:
    """Put a hook on every source; ``keeper`` has ``recording``, ``sizes`` and ``record(index, mean_square)``."""
    handles = []
    for i, (name, tap, _, _) in enumerate(layout.sources):
        module = model.get_submodule(name)
        handles.append(module.register_forward_pre_hook(InputHook(keeper, module, i, tap), with_kwargs=True))
    return handles


@torch.no_grad()
def balanced_scale(weight: Tensor, col_vertex: Tensor, *, power: int = 1, rounds: int = 50) -> Tensor:
    """Return the source scales that make |W| doubly normalised (Sinkhorn), [cols].

    With these, every source contributes the same in total, however its neuron is scaled: the data-free stand-in for the
    root mean square of the input. Stops at a relative change of 1e-7. Columns without vertex or weight get 1.
    """
    a = weight.detach()
    a = a if a.dtype == torch.float64 else a.float()
    a = a.abs() if power == 1 else a.square()
    a = a.flatten(2).sum(2) if a.ndim > 2 else a
    used = (col_vertex.to(a.device) >= 0) & (a.sum(0) > 0)
    if not bool(used.any()) or not bool(torch.isfinite(a).all()):
        return torch.ones_like(a[0]) if a.shape[0] else a.new_ones(a.shape[1])
    scale = torch.where(used, 1.0 / torch.where(used, a.sum(0), 1.0), 0.0)
    for _ in range(rounds):
        r = a @ scale
        r = torch.where(r > 0, 1.0 / torch.where(r > 0, r, 1.0), 0.0)
        c = a.T @ r
        new = torch.where(used, 1.0 / torch.where(c > 0, c, 1.0), 0.0)
        change = (new / new.sum() - scale / scale.sum()).abs().sum()
        scale = new
        if float(change) < 1e-7:
            break
    return torch.where(used, scale, 1.0)
