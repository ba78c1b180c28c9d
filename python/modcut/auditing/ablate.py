"""Switch modules off while a model runs: the context manager over :mod:`modcut.graph.interventions`."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from contextlib import ExitStack
from types import TracebackType
from typing import Any, get_args

import torch
from torch import Tensor, nn

from modcut import _batches
from modcut.auditing._vertices import Which, vertices_of
from modcut.graph.interventions import Mode, Reference, collect_reference, reachable, replace, tap_key
from modcut.graph.types import WeightGraph
from modcut.partition import Partition

# Reference samples that are kept for ``resample`` where many modules are ablated: whole activations at every tap,
# about 80 MB a sample of 128 tokens for a model of 135 million parameters.
KEPT = 32


def reference_of(model: nn.Module, graph: WeightGraph, reference: Any, *, resample: bool) -> Any:
    """Return reference activations for ablating any vertex: collected from data once, or as they were given."""
    if reference is None or hasattr(reference, "means"):
        return reference
    return collect_reference(model, graph, reference, max_rows=KEPT if resample else 256, keep_samples=resample)


class Ablation:
    """An ablation that can be switched on with ``with``, as often as wanted; see :func:`ablate`."""

    def __init__(
        self,
        model: nn.Module,
        P: Partition,
        modules: Which,
        mode: Mode,
        reference: Any,
        scale: float,
        seed: int,
        outputs: bool,
        taps: Collection[str] | None,
        positions: slice | None = None,
    ) -> None:
        self.model, self.graph, self.mode, self.scale, self.seed = model, P.graph, mode, scale, seed
        self.taps = None if taps is None else frozenset(taps)
        self.positions = positions
        self.units = vertices_of(P, modules)
        """int64 [m]: the vertices that were asked for."""
        self.reached = reachable(P.graph, self.units, outputs=outputs)
        """int64: those of them that are replaced."""
        self.not_reached = self.units[~torch.isin(self.units, self.reached)]
        """int64: the rest: vertices that no tap carries (tokens), and logits unless ``outputs=True``."""
        self.reference = reference
        self._active: list[ExitStack] = []

    @property
    def by_space(self) -> dict[str, Tensor]:
        """The replaced units of every space that has some, as indices inside the space."""
        found = {s.name: self._inside(self.reached, s.vertices) for s in self.graph.spaces}
        return {name: units for name, units in found.items() if units.numel()}

    @staticmethod
    def _inside(units: Tensor, span: slice) -> Tensor:
        inside: Tensor = units[(units >= span.start) & (units < span.stop)] - span.start
        return inside

    def __enter__(self) -> Ablation:
        with ExitStack() as stack:
            if (
                self.reference is not None
                and self.mode in ("mean", "resample", "noise")
                and not hasattr(self.reference, "means")
            ):
                self.reference = collect_reference(
                    self.model, self.graph, self.reference, self.reached, keep_samples=self.mode == "resample"
                )
            stack.enter_context(
                replace(
                    self.model,
                    self.graph,
                    self.reached,
                    self.mode,
                    reference=self.reference,
                    scale=self.scale,
                    seed=self.seed,
                    taps=self.taps,
                    positions=self.positions,
                )
            )
            self._active.append(stack.pop_all())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._active:
            raise RuntimeError("this ablation is not active: leave it as often as it was entered")
        self._active.pop().close()

    def to_dict(self) -> dict[str, Any]:
        """Return what was ablated, and how, as plain values."""
        return {
            "mode": self.mode,
            "scale": self.scale,
            "seed": self.seed,
            "units": self.units.tolist(),
            "not_reached": self.not_reached.tolist(),
            "by_space": {name: units.tolist() for name, units in self.by_space.items()},
            "taps": None if self.taps is None else sorted(self.taps),
            "tokens": None if self.positions is None else [self.positions.start, self.positions.stop],
        }

    def __str__(self) -> str:
        spaces = ", ".join(f"{name}: {units.numel()}" for name, units in self.by_space.items())
        missed = f"; {self.not_reached.numel()} not reached" if self.not_reached.numel() else ""
        return f"ablation ({self.mode}) of {self.reached.numel()} units ({spaces}){missed}"


def ablate(
    model: nn.Module,
    P: Partition,
    modules: Which,
    mode: Mode = "zero",
    reference: Any = None,
    scale: float | None = None,
    *,
    seed: int = 0,
    outputs: bool = False,
    taps: Collection[str] | None = None,
    layers: range | None = None,
    tokens: slice | None = None,
) -> Ablation:
    """Replace the activations of modules in every forward pass inside a ``with`` block.

    ::

        with modcut.ablate(model, P, modules=[3], mode="mean", reference=loader) as a:
            model(x)
        a.not_reached  # vertices of the module that could not be replaced

    A unit is replaced wherever a weight reads it, so ``zero`` computes what the model would compute with the columns
    that read the unit set to zero (biases and the rest stay). Forward hooks only: no weight is written, the hooks go
    away however the block ends, and blocks nest in any order. Gradients flow through what is left. The model's training
    mode is left as it is.

    Args:
        model: the model ``P`` was found on, or one of the same architecture (other weights are allowed: the same
            modules can be ablated in a fine-tuned copy).
        P: the partition.
        modules: a module index, a sequence of them, a ``Module``, or vertices: a slice of ids, an int64 tensor of ids,
            a bool mask [n].
        mode: ``zero``; ``mean`` (over samples and positions of the reference); ``resample`` (the same positions of a
            random reference sample, one sample for all units together, so that they stay consistent); ``scale``
            (multiply by ``scale``; 1.0 changes nothing, bit for bit); ``noise`` (add Gaussian noise of ``scale``
            standard deviations of the unit, over the reference where there is one, else over the batch).
        reference: data (batches as everywhere), or a ``Reference`` collected before; needed by ``mean`` and
            ``resample``. It is run when the block is first entered, in evaluation mode, with whatever other ablations
            are active then, and kept.
        scale: see ``scale`` (default 0.0, as ``zero``) and ``noise`` (default 1.0).
        seed: of the draws of ``resample`` and ``noise``; every entry into a block starts them again. The draws of
            ``resample`` run through the samples in order, however they are batched.
        outputs: also replace the model's outputs (logits), which are left alone by default.
        taps: keys (``module:side``) of the taps to act at; all by default.
        layers: act only in the layers of these numbers (the first number in a submodule's name: ``h.3.mlp`` is in 3).
        tokens: act only at these positions, a slice of the time axis of every forward pass. With a cache a generated
            token is a pass of its own with one position.

    Returns:
        An :class:`Ablation` with ``units``, ``reached``, ``not_reached``, ``by_space``.

    Raises:
        TypeError: ``modules`` is none of the above.
        ValueError: an index out of range; no unit named, or none that any tap carries; an unknown mode; ``mean`` or
            ``resample`` without reference; a ``P`` of another architecture.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
    if scale is None:
        scale = 1.0 if mode == "noise" else 0.0
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale}")
    if mode == "noise" and scale <= 0:
        raise ValueError(f'scale must be positive in mode "noise" (standard deviations), got {scale}')
    if mode in ("mean", "resample") and reference is None:
        raise ValueError(f'mode "{mode}" needs reference data: pass reference=loader (batches as for the model)')
    if hasattr(model, "_orig_mod"):
        raise ValueError(
            "model must not be compiled: compiled code may not see hooks; ablate and run the module inside it "
            "(model._orig_mod)"
        )
    if tokens is not None and not isinstance(tokens, slice):
        raise TypeError(f"tokens must be a slice of positions, got {type(tokens).__name__}")
    model = _batches.unwrap(model)
    check_fits(model, P.graph)
    if layers is not None:
        inside = {tap_key(t) for t in P.graph.taps if (n := _layer(t.module)) is not None and n in layers}
        if not inside:
            raise ValueError(f"layers must name layers of the model, {layers} holds none")
        taps = inside if taps is None else inside & set(taps)
    ablation = Ablation(model, P, modules, mode, reference, scale, seed, outputs, taps, tokens)
    if not ablation.reached.numel():
        raise ValueError(
            f"none of the {ablation.units.numel()} vertices named by modules can be replaced: no tap carries them, or "
            "they are the model's outputs (outputs=True would replace those)"
        )
    return ablation


def _layer(module: str) -> int | None:
    found = re.search(r"(?:^|\.)(\d+)(?:\.|$)", module)
    return None if found is None else int(found[1])


def check_fits(model: nn.Module, graph: WeightGraph) -> None:
    """Check that ``graph`` describes a model of this architecture.

    Raises:
        ValueError: the graph has no taps, or a module, a parameter or one of its sizes differs; the message says which.
    """
    if not graph.taps:
        raise ValueError(
            "P.graph has no taps, so activations cannot be replaced: use a graph from modcut.weight_graph(model), "
            "not one made from a matrix"
        )
    known = {name for name, _ in model.named_modules(remove_duplicate=False)}
    for tap in graph.taps:
        if tap.module not in known:
            raise ValueError(
                f"P must belong to this model: its graph reads activations at {tap.module!r}, "
                f"which {type(model).__name__} does not have"
            )
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors.update(model.named_buffers(remove_duplicate=False))
    for name, axis, size in [(a.name, a.axis, a.vertex.numel()) for a in graph.axes]:
        _check_size(tensors, name, axis, size)
    if not graph.axes:  # a graph written by hand: its matrices may be transposed views
        for m in graph.matrices:
            shape = tuple(tensors[m.name].shape[:2]) if m.name in tensors else ()
            rows, cols = m.weight.shape[:2]
            if shape not in ((rows, cols), (cols, rows)):
                _check_size(tensors, m.name, 0, rows)
                _check_size(tensors, m.name, 1, cols)


def _check_size(tensors: dict[str, Tensor], name: str, axis: int, size: int) -> None:
    if name not in tensors and name.partition("[")[0] in tensors:
        return  # a slice of a stacked parameter ("experts.up[3]", a group of a convolution): its whole has other axes
    if name not in tensors:
        raise ValueError(f"P must belong to this model: its graph has a parameter {name!r}, the model has not")
    shape = tensors[name].shape
    if axis >= len(shape) or shape[axis] != size:
        raise ValueError(
            f"P must belong to this model: its graph has {name!r} of size {size} along axis {axis}, "
            f"the model has shape {list(shape)}"
        )


__all__ = ["Ablation", "Mode", "Reference", "ablate", "check_fits", "reachable", "reference_of"]
