"""How strong the inputs of every matrix are: running mean squares from forward hooks; without data, from balance."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from modcut.graph.interventions import LocalHook, tap_key
from modcut.graph.statistics import embeddings_of, input_source
from modcut.graph.types import Matrix, Tap, WeightGraph

_DECAY = 0.99  # of the exponential average, per recorded forward pass: a memory of about 100 passes


@dataclass(frozen=True)
class Source:
    """Something whose features have running mean squares: the input of a module, or the token ids of an embedding."""

    module: str
    tap: Tap | None
    """``None``: token ids, whose one-hot vectors are counted."""
    start: int
    end: int


class InputNorms(nn.Module):
    """Running mean squares of the inputs of matrices, kept by forward pre-hooks in training passes.

    One flat vector holds the features of all sources; ``place`` says where each column of each matrix finds its own.

    Args:
        model: hooked, and held weakly.
        graph: its graph, whose taps say where inputs are seen.
        matrices: in the order in which columns are laid out; C columns in all.
        dtype: of the averages.
        device: of the averages.
    """

    mean_square: Tensor
    """[features of all sources], to be divided by ``mass`` (which starts at 0 and rises to 1: no start-up bias)."""
    mass: Tensor
    """[sources]"""

    def __init__(
        self,
        model: nn.Module,
        graph: WeightGraph,
        matrices: Sequence[Matrix],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        taps = {tap_key(t): t for t in graph.taps if t.side == "input"}
        embeddings = embeddings_of(graph, model)
        self.sources: list[Source] = []
        index: dict[str, int] = {}
        places, owners, size = [], [], 0
        for m in matrices:
            found = input_source(graph, model, m)
            if found is None:
                places.append(torch.zeros(m.col_vertex.numel(), dtype=torch.int64))
                owners.append(-1)
                continue
            key, position = found
            if key not in index:
                tap = taps.get(key)
                module = key.removesuffix(":ids") if tap is None else tap.module
                features = embeddings[module].numel() if tap is None else tap.vertex.numel()
                index[key] = len(self.sources)
                self.sources.append(Source(module, tap, size, size + features))
                size += features
            places.append(position + self.sources[index[key]].start)
            owners.append(index[key])
        self.place = torch.cat(places)
        """int64 [C]"""
        self.owner = torch.tensor(owners, dtype=torch.int64)
        """int64 [matrices]: the source of each, -1: none can be observed."""
        self.register_buffer("mean_square", torch.zeros(size, dtype=dtype, device=device))
        self.register_buffer("mass", torch.zeros(len(self.sources), dtype=dtype, device=device))
        self.recording = True
        self._handles: list[RemovableHandle] = []
        for i, source in enumerate(self.sources):
            owner = model.get_submodule(source.module)
            hook = InputHook(self, owner, i, source)
            self._handles.append(owner.register_forward_pre_hook(hook, with_kwargs=True))

    def close(self) -> None:
        """Remove the hooks; the averages stay."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @torch.no_grad()
    def record(self, index: int, mean_square: Tensor) -> None:
        """Take in the mean squares [features] of one source in one pass."""
        source = self.sources[index]
        new = mean_square.to(self.mean_square.device, self.mean_square.dtype)
        # A pass that overflowed (a skipped step of mixed precision) must not poison the average.
        share = ((1 - _DECAY) * torch.isfinite(new).all()).to(new.dtype)
        self.mean_square[source.start : source.end].lerp_(torch.nan_to_num(new, 0.0, 0.0, 0.0), share)
        self.mass[index].lerp_(torch.ones_like(self.mass[index]), share)

    def read(self, place: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean squares and whether they were measured, for columns of these places and owners."""
        if not self.sources:
            return torch.ones_like(place, dtype=self.mass.dtype), torch.zeros_like(place, dtype=torch.bool)
        mass = self.mass[owner.clamp(min=0)]
        seen = (owner >= 0) & (mass > 0)
        return torch.where(seen, self.mean_square[place] / torch.where(seen, mass, 1.0), 1.0), seen

    def missing(self) -> list[int]:
        """Return the matrices whose inputs were never measured."""
        mass = self.mass.tolist()
        return [i for i, source in enumerate(self.owner.tolist()) if source < 0 or not mass[source] > 0]


class InputHook(LocalHook):
    """Forward pre-hook that keeps one source's running mean square.

    Both ends are held weakly: the model does not keep the loss alive, nor the loss the model. Copied or pickled with
    the model it does nothing.
    """

    def __init__(self, norms: InputNorms, module: nn.Module, index: int, source: Source) -> None:
        self.norms: Callable[[], InputNorms | None] = weakref.ref(norms)
        self.module: Callable[[], nn.Module | None] = weakref.ref(module)
        self.index, self.tap = index, source.tap
        self.size = source.end - source.start

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        norms = self.norms()
        if norms is None or not (norms.recording and norms.training and module.training):
            return
        if module is not self.module():
            return
        x = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        if x is None or x.is_floating_point() == (self.tap is None) or not x.numel():
            return
        with torch.no_grad():
            if self.tap is None:
                new = torch.bincount(x.detach().flatten(), minlength=self.size).double() / x.numel()
            elif x.shape[self.tap.dim] != self.size:
                return
            else:
                wide = x.detach() if x.dtype == torch.float64 else x.detach().float()
                new = wide.movedim(self.tap.dim, -1).reshape(-1, self.size).square().mean(0)
            norms.record(self.index, new)
