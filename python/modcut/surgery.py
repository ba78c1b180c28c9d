"""Remove the weights that cross modules: for one evaluation, or for good with healing."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from modcut import _batches, _held, provenance
from modcut.graph.interventions import LocalHook
from modcut.graph.statistics import Statistics, collect
from modcut.graph.types import Matrix, WeightGraph
from modcut.graph.units import strength
from modcut.partition import Partition, cross_masks

T = TypeVar("T")


def cut_and_run(
    model: nn.Module,
    P: Partition,
    evaluate: Callable[[nn.Module], T],
    mode: Literal["zero", "mean"] = "zero",
    *,
    data: _batches.Data | None = None,
) -> T:
    """Return ``evaluate(model)`` with every cross-module weight removed; the model is restored bit for bit.

    The headline test of modularity: weight shares can be rescaled at will, a deletion cannot be faked.

    Args:
        model: The model that ``P.graph`` was traced from.
        P: The partition.
        evaluate: Called with the cut model; whatever it returns is returned.
        mode: ``zero`` sets the weights to zero. ``mean`` also adds the removed weights' mean contribution to the output
            of each layer, so that only the variation that crossed modules is gone (convolutions: up to the padding).
        data: Batches for the mean inputs; default the statistics that ``P.graph`` carries.

    Raises:
        ValueError: unknown mode, ``mean`` without data or statistics, a partition of another model's graph.
    """
    if mode not in ("zero", "mean"):
        raise ValueError(f'mode must be "zero" or "mean", got {mode!r}')
    masks = _masks(model, P)
    means: dict[str, Tensor] | None = None
    if mode == "mean":
        means = _input_means(model, P.graph, data)
    with removed(model, P.graph, masks, means):
        return evaluate(model)


@contextmanager
def removed(
    model: nn.Module, graph: WeightGraph, masks: dict[str, Tensor], means: dict[str, Tensor] | None = None
) -> Iterator[None]:
    """Zero the masked weights inside the block (with ``means``: keep their mean contribution); then restore them."""
    touched = [(m, masks[m.name]) for m in graph.matrices if m.name in masks and bool(masks[m.name].any())]
    # All copies before any write: tied matrices share their storage.
    copies = [m.weight.detach().clone() for m, _ in touched]
    handles: list[RemovableHandle] = []
    try:
        if means is not None:
            handles = _fold(model, touched, means)
        for m, mask in touched:
            _held.zero_(m.weight, mask)
        yield
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for (m, _), copy in zip(touched, copies, strict=True):
                m.weight.detach().copy_(copy)


@dataclass(eq=False)
class Healed:
    """A model whose cross-module weights are held at zero, after healing; :meth:`release` lets them grow again."""

    model: nn.Module
    partition: Partition
    masks: dict[str, Tensor]
    """Per matrix: bool [rows, cols], True where the weight was removed and is held at zero."""
    keep: float
    interface_edges: int
    """Cross-module weights that were kept."""
    cross_edges: int
    """Cross-module weights before the cut."""
    steps: int
    losses: list[float] = field(default_factory=list)
    """What ``train_step`` returned, where it returned numbers."""
    _handles: list[RemovableHandle] = field(default_factory=list, repr=False)

    def __repr__(self) -> str:
        held = sum(int(mask.sum()) for mask in self.masks.values())
        return (
            f"Healed({held} cross-module weights held at zero, {self.interface_edges} of {self.cross_edges} kept, "
            f"{self.steps} steps, k={self.partition.k})"
        )

    def apply(self) -> None:
        """Set the removed weights to zero again (after a training step of your own)."""
        for m in self.partition.graph.matrices:
            if m.name in self.masks:
                _held.zero_(m.weight, self.masks[m.name])

    def release(self) -> None:
        """Stop masking gradients; the weights stay as they are. Safe to call twice."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return {
            "n": self.partition.n,
            "k": self.partition.k,
            "keep": self.keep,
            "interface_edges": self.interface_edges,
            "cross_edges": self.cross_edges,
            "steps": self.steps,
            "losses": [x if math.isfinite(x) else None for x in self.losses],
            "seed": self.partition.meta.get("seed"),
            "ablation": "cross-module weights set to zero and held there",
            "control": "none here: heal a matched random partition beside it (modcut.controls.matched_labels)",
            "model": provenance.digest(self.model),
            "stamp": provenance.stamp(),
        }


def cut_and_heal(
    model: nn.Module,
    P: Partition,
    train_step: Callable[..., Any],
    keep: float = 0.0,
    *,
    steps: int = 300,
) -> Healed:
    """Delete all cross-module weights but the strongest, hold them at zero, and fine-tune.

    What it costs to heal is a test, without labels, of whether a partition is real (beside a random partition's cost).
    Strength is the share of the target's incoming contribution (``|W| rms(input)``, folded ``|W|`` without statistics),
    so rescaling neurons does not change what is kept. Gradients of removed weights are masked, so they enter neither
    momentum nor gradient norms, and the weights are zeroed again after every step, whatever the optimizer remembers.

    Args:
        model: The model that ``P.graph`` was traced from.
        P: The partition.
        train_step: One optimization step: ``train_step()``, ``train_step(model)`` or ``train_step(model, step)``; a
            number or scalar tensor that it returns is recorded as loss.
        keep: Fraction of all cross-module weights to keep, in [0, 1].
        steps: Number of training steps.

    Returns:
        The result; gradients stay masked until ``.release()``.

    Raises:
        ValueError: keep or steps out of range, a partition of another model's graph. If ``train_step`` raises, hooks
            are removed, the removed weights stay zero and the error propagates.
    """
    if not callable(train_step):
        raise TypeError(f"train_step must be a function that takes one optimization step, got {train_step!r}")
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"steps must be an integer, got {steps!r}")
    model = _batches.unwrap(model)
    if not 0 <= keep <= 1:
        raise ValueError(f"keep must be in [0, 1], got {keep}")
    if steps < 0:
        raise ValueError(f"steps must not be negative, got {steps}")
    masks = _masks(model, P)
    before = _edges(P.graph, masks)
    masks = _spare(P.graph, masks, keep)
    gone = _edges(P.graph, masks)
    healed = Healed(model, P, masks, keep, before - gone, before, steps)
    call = _caller(train_step, model)
    try:
        healed._handles += _mask_gradients(model, P.graph, masks)
        healed.apply()
        for step in range(steps):
            value = call(step)
            healed.apply()
            if isinstance(value, Tensor) and value.numel() == 1:
                value = value.detach().item()
            if isinstance(value, (int, float)):
                healed.losses.append(float(value))
    except BaseException:
        healed.apply()
        healed.release()
        raise
    return healed


# -- weights ----------------------------------------------------------------------------------------------------------


def _masks(model: nn.Module, P: Partition) -> dict[str, Tensor]:
    """Cross-module masks, after checking that the graph's weights are this model's."""
    if not P.graph.matrices:
        raise ValueError(
            "P.graph must have been traced from a model: it has no weights "
            "(a loaded partition needs one: Partition.load(path, modcut.weight_graph(model)))"
        )
    mine = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    for m in P.graph.matrices:
        if m.weight.untyped_storage().data_ptr() not in mine:
            raise ValueError(
                f"P.graph must be the graph of this model: {m.name} is not one of its parameters "
                "(another model, or one that was copied or moved since: trace it again and use "
                "Partition(P.labels, graph, P.k))"
            )
    return cross_masks(P.graph, P.labels)


def _edges(graph: WeightGraph, masks: dict[str, Tensor]) -> int:
    """Number of masked entries that hold a weight."""
    total = 0
    for m in graph.matrices:
        w = m.weight.detach()
        w = w.flatten(2).abs().sum(2) if w.ndim > 2 else w
        total += int(((w != 0) & masks[m.name].to(w.device)).sum())
    return total


def _spare(graph: WeightGraph, masks: dict[str, Tensor], keep: float) -> dict[str, Tensor]:
    """Take the strongest ``keep`` of the masked entries out of the masks."""
    if keep == 0:
        return masks
    shares = []
    observed = getattr(graph.statistics, "input_mean_square", {})
    missing = set(getattr(graph.statistics, "not_observed", ()))
    for m in graph.matrices:
        shares.append(_held.shares(strength(m, None if m.name in missing else observed.get(m.name)).cpu()))
    own = [masks[m.name] for m in graph.matrices]
    count = round(keep * sum(int((s[mask] > 0).sum()) for s, mask in zip(shares, own, strict=True)))
    left = _held.spare_strongest(own, shares, count)
    return {m.name: mask for m, mask in zip(graph.matrices, left, strict=True)}


def _mask_gradients(model: nn.Module, graph: WeightGraph, masks: dict[str, Tensor]) -> list[RemovableHandle]:
    """Multiply the gradient of every touched parameter by what is kept of it."""
    parts: list[tuple[Tensor, _held.View, Tensor]] = []
    for m in graph.matrices:
        parameter = _parameter(model, m)
        if parameter is not None:
            parts.append((parameter, _viewer(parameter, m), masks[m.name]))
    return _held.mask_gradients(parts)


def _viewer(parameter: Tensor, m: Matrix) -> _held.View:
    # The matrix is a strided view of the parameter (transposed, a slice): the same view of what is laid out like it.
    offset = m.weight.storage_offset() - parameter.storage_offset()
    return lambda p: p.as_strided(m.weight.size(), m.weight.stride(), p.storage_offset() + offset)


def _parameter(model: nn.Module, matrix: Matrix) -> nn.Parameter | None:
    start = matrix.weight.untyped_storage().data_ptr()
    for p in model.parameters():
        first = p.storage_offset()
        if p.untyped_storage().data_ptr() == start and first <= matrix.weight.storage_offset() < first + p.numel():
            return p
    return None


def _caller(train_step: Callable[..., Any], model: nn.Module) -> Callable[[int], Any]:
    """Call ``train_step`` with as many of (model, step) as it takes."""
    try:
        parameters = inspect.signature(train_step).parameters.values()
    except (TypeError, ValueError):
        return lambda _: train_step()
    positional = [
        p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
    ]
    if len(positional) >= 2:
        return lambda step: train_step(model, step)
    if len(positional) == 1:
        return lambda _: train_step(model)
    return lambda _: train_step()


# -- mean fold --------------------------------------------------------------------------------------------------------


def _input_means(model: nn.Module, graph: WeightGraph, data: _batches.Data | None) -> dict[str, Tensor]:
    if data is not None:
        return collect(graph, model, data, gradients=False).input_mean
    if isinstance(graph.statistics, Statistics) and graph.statistics.input_mean:
        return graph.statistics.input_mean
    raise ValueError('mode="mean" needs the mean inputs: pass data=, or a partition whose graph carries statistics')


def _fold(model: nn.Module, touched: list[tuple[Matrix, Tensor]], means: dict[str, Tensor]) -> list[RemovableHandle]:
    """Hooks that add each layer's removed mean contribution to its output."""
    hooks: list[tuple[nn.Module, LocalHook]] = []
    unfolded = []
    for m, mask in touched:
        owner = m.name.rpartition(".")[0]
        try:
            module = model.get_submodule(owner)
        except AttributeError:
            module = None
        dim = None if module is None else _output_dim(module, m)
        if module is None or dim is None or m.name not in means:
            unfolded.append(m.name)
            continue
        w = m.weight.detach().double()
        w = w.flatten(2).sum(2) if w.ndim > 2 else w
        delta = (w * mask.to(w.device)) @ means[m.name].to(w.device, torch.float64)
        hooks.append((module, LocalHook(_adder(delta, dim))))
    if unfolded:
        warnings.warn(
            f"the mean contribution of {', '.join(unfolded)} cannot be folded (not a linear, convolution or embedding "
            "layer that a hook can reach): its removed weights count as zero",
            stacklevel=4,
        )
    return [module.register_forward_hook(hook) for module, hook in hooks]  # after the warning, which may be an error


def _output_dim(module: nn.Module, matrix: Matrix) -> int | None:
    rows, cols = matrix.weight.shape[:2]
    if isinstance(module, nn.Linear):
        return -1 if (module.out_features, module.in_features) == (rows, cols) else None
    if isinstance(module, nn.Embedding):
        return -1 if (module.embedding_dim, module.num_embeddings) == (rows, cols) else None
    for dims, kind in ((1, nn.Conv1d), (2, nn.Conv2d), (3, nn.Conv3d)):
        if isinstance(module, kind):
            return -dims - 1 if (module.out_channels, module.in_channels) == (rows, cols) else None
    weight = getattr(module, "weight", None)
    if type(module).__name__ == "Conv1D" and isinstance(weight, Tensor) and weight.shape == (cols, rows):
        return -1
    return None


def _adder(delta: Tensor, dim: int) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    shape = (-1, *[1] * (-dim - 1))
    return lambda _module, _args, output: output + delta.to(output.device, output.dtype).reshape(shape)
