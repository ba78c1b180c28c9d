"""Watch a partitioned model on data: how much each module is used where, and what happens without it.

Use of a vertex at a position is |activation x gradient of the loss|; use of a module is the sum over its inner vertices
(the model's own inputs and outputs are neither counted nor replaced).
Everything is recorded for the partition and, in the same pass, for random partitions of the same make-up: the controls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from modcut import _batches
from modcut.controls import matched_labels
from modcut.graph import interventions
from modcut.graph.types import Tap, WeightGraph
from modcut.partition import Partition

Step = Callable[[str], None]


@dataclass
class Window:
    """One sample of the data and how much every module was used on it."""

    index: int
    """Number of the sample in the order of the data."""
    slice: str
    selection: bool
    """True: evidence is chosen here. False: held out, scores and effects are measured here."""
    tokens: NDArray[np.int64] | None
    """[positions], or None where the inputs are not tokens."""
    vector: NDArray[np.float32] | None
    """The flattened input, or None where the inputs are tokens."""
    use: NDArray[np.float32]
    """[positions, 1 + controls, k]; one position where the inputs are not tokens. Index 0 is the partition itself."""


@dataclass
class Effect:
    """What ablating one module does, beside matched random modules."""

    mode: str
    slices: list[dict[str, Any]] = field(default_factory=list)
    changes: NDArray[np.float64] | None = None
    """Mean change of probability of every output, [outputs], or None where the outputs are not probabilities."""
    control_changes: NDArray[np.float64] | None = None
    """The same for each control, [controls, outputs]."""


@dataclass
class Observation:
    """Everything that cards are made from."""

    windows: list[Window]
    effects: list[Effect]
    control_labels: Tensor
    """int64 [controls, n]."""
    reachable: Tensor
    """bool [n]: inner vertices, whose activations are read and replaced; inputs and outputs of the model are not."""
    objective: str
    """In words: the scalar whose gradient measures use."""
    scored_windows: int = 0
    slices: tuple[str, ...] = ()

    @property
    def tokens(self) -> bool:
        """Whether the inputs are tokens."""
        return self.windows[0].tokens is not None


def take(batch: Any, rows: Tensor) -> Any:
    """Return the chosen samples of a batch; tensors whose first axis is not the batch are passed on whole."""
    size = _batches.batch_size(batch)

    def pick(value: Any) -> Any:
        same = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == size
        return value[rows.to(value.device)] if same else value

    if isinstance(batch, Tensor):
        return batch[rows.to(batch.device)]
    if isinstance(batch, Mapping):
        return {k: pick(v) for k, v in batch.items()}
    return tuple(pick(v) for v in batch)


def objective_of(model: nn.Module, batch: Any, loss_fn: _batches.LossFn | None) -> tuple[_batches.LossFn, str]:
    """Choose the scalar to differentiate: the loss, or the cross-entropy of the model's own prediction without targets.

    Raises:
        ValueError: there is no loss and the outputs are not class or token scores either.
    """
    if loss_fn is not None:
        return loss_fn, "the given loss"
    with torch.no_grad():
        try:
            _batches.loss_of(model, batch)
            return _batches.loss_of, "the loss"
        except ValueError:
            logits = _batches.logits_of(_batches.forward(model, batch))
            if logits.ndim not in (2, 3) or logits.shape[-1] < 2:
                raise

    def own(m: nn.Module, b: Any) -> Tensor:
        scores = _batches.logits_of(_batches.forward(m, b)).flatten(0, -2)
        return F.cross_entropy(scores, scores.detach().argmax(-1))

    return own, "the cross-entropy of the model's own prediction (the data has no targets)"


def observe(
    model: nn.Module,
    P: Partition,
    data: _batches.Data,
    *,
    loss_fn: _batches.LossFn | None = None,
    seed: int = 0,
    max_batches: int | None = 8,
    controls: int = 3,
    mode: interventions.Mode = "mean",
    step: Step | None = None,
) -> Observation:
    """Record use and effects of every module of ``P`` and of ``controls`` random partitions of the same make-up.

    Half of every batch's samples (drawn with ``seed``) select evidence and give the reference activations of the
    ablation; the other half is held out for scores and effects. Parameters, their ``.grad`` and training flags are left
    as they were. Cost: one forward and backward pass over the data, and (1 + controls) * k + 1 forward passes over the
    held-out half. Memory: windows x positions x (1 + controls) x k float32.

    Raises:
        ValueError: no data; a single sample; labels of another graph.
    """
    graph, device = P.graph, _batches.device_of(model)
    if P.labels.shape != (graph.n,):
        raise ValueError(f"P.labels must have shape [{graph.n}], got {list(P.labels.shape)}")
    if controls < 1:
        raise ValueError(f"controls must be at least 1 (no effect is given without one), got {controls}")
    say = step or (lambda _: None)
    generator = torch.Generator().manual_seed(seed)
    labels = P.labels.cpu()
    random = torch.stack([matched_labels(graph, labels, generator) for _ in range(controls)])
    batches = [(name, _batches.to_device(b, device)) for name, b in _batches.iterate(data, max_batches=max_batches)]
    windows: list[Window] = []
    chosen: list[tuple[str, Any]] = []
    held: list[tuple[str, Any]] = []
    spare = 0  # alternates which half gets the odd sample, so that batches of one sample fill both halves
    with interventions.evaluation(model):
        objective, words = objective_of(model, batches[0][1], loss_fn)
        for done, (name, batch) in enumerate(batches, start=1):
            say(f"use of modules: batch {done} of {len(batches)}")
            size = _batches.batch_size(batch)
            order = torch.randperm(size, generator=generator)
            half = (size + (spare := 1 - spare)) // 2
            picked = torch.zeros(size, dtype=torch.bool)
            picked[order[:half]] = True
            for flag, bucket in ((True, chosen), (False, held)):
                rows = torch.nonzero(picked == flag).flatten()
                if rows.numel():
                    bucket.append((name, take(batch, rows)))
            windows += _use(
                model, graph, torch.cat([labels[None], random]), P.k, name, batch, picked, objective, len(windows)
            )
        if not held or not chosen:
            raise ValueError(
                f"data must hold at least two samples (one to choose evidence, one held out), got {len(windows)}"
            )
        effects = _effects(model, P, random, chosen, held, objective, mode, say)
    reachable = torch.zeros(graph.n, dtype=torch.bool)
    reachable[interventions.reachable(graph, torch.arange(graph.n))] = True
    return Observation(
        windows=windows,
        effects=effects,
        control_labels=random,
        reachable=reachable,
        objective=words,
        scored_windows=sum(not w.selection for w in windows),
        slices=tuple(dict.fromkeys(name for name, _ in batches)),
    )


def _use(
    model: nn.Module,
    graph: WeightGraph,
    labelings: Tensor,
    k: int,
    name: str,
    batch: Any,
    picked: Tensor,
    objective: _batches.LossFn,
    first: int,
) -> list[Window]:
    """Use of every module of every labeling on one batch: |activation x gradient| summed over the module's vertices."""
    inputs = _batches.inputs_of(batch)
    tokens = inputs.ndim == 2 and not inputs.is_floating_point()
    # Inner vertices only, as in ablations: that an answer moves with its own score says nothing about its causes.
    inner = interventions.reachable(graph, torch.arange(graph.n))
    seen: list[tuple[interventions.Site, Tensor]] = []

    def visitor(site: interventions.Site) -> Callable[[Tensor], Tensor | None]:
        def visit(x: Tensor) -> Tensor | None:
            if not x.requires_grad:
                return None
            # A view of its own gives each reader its own gradient where several read one tensor (query, key, value).
            seen.append((site, own := x.view_as(x)))
            return own

        return visit

    gradients: Sequence[Tensor | None] = ()
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    handles = []
    try:
        for p in frozen:  # without a single trainable parameter no activation would have a gradient
            p.requires_grad_(True)
        for site in interventions.sites(graph, inner):
            handles.append(interventions.hook_tap(model, site.tap, visitor(site)))
        with torch.enable_grad():
            loss = objective(model, batch) * len(picked)
            if seen:
                gradients = torch.autograd.grad(loss, [x for _, x in seen], allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
        for p in frozen:
            p.requires_grad_(False)
    positions = inputs.shape[1] if tokens else 1
    groups = len(labelings) * k
    total = torch.zeros(len(picked), positions, groups)
    for (site, x), g in zip(seen, gradients, strict=True):
        if g is None:
            continue
        use = (x.detach() * g).abs().float().movedim(site.tap.dim, -1)
        if tokens and use.ndim == 3 and use.shape[:2] == inputs.shape:
            pass
        elif tokens and use.ndim == 3 and use.shape[1] != 1:
            continue  # a tap whose second axis is not the text (never seen so far): no position to give it to
        else:
            use = use.reshape(use.shape[0], -1, use.shape[-1]).sum(1, keepdim=True)
        total += (use @ _membership(site.tap, site.where, labelings, k).to(use.device)).cpu()
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    out = []
    for row in range(len(picked)):
        keep: Any = slice(None)
        if tokens and isinstance(mask, Tensor) and mask.shape == inputs.shape:
            keep = mask[row].bool().cpu().numpy()
        out.append(
            Window(
                index=first + row,
                slice=name,
                selection=bool(picked[row]),
                tokens=inputs[row].cpu().numpy().astype(np.int64)[keep] if tokens else None,
                vector=None if tokens else inputs[row].detach().float().flatten().cpu().numpy(),
                use=total[row].reshape(positions, len(labelings), k).numpy()[keep],
            )
        )
    return out


def _membership(tap: Tap, where: Tensor, labelings: Tensor, k: int) -> Tensor:
    """float32 [size of the tap, labelings * k]: 1 where the vertex at a position is in the module."""
    vertex = tap.vertex.cpu()
    member = torch.zeros(len(vertex), len(labelings), k)
    at = torch.nonzero(where).flatten()
    for r, labels in enumerate(labelings):
        member[at, r, labels[vertex[at]]] = 1.0
    return member.flatten(1)


def _effects(
    model: nn.Module,
    P: Partition,
    random: Tensor,
    chosen: Sequence[tuple[str, Any]],
    held: Sequence[tuple[str, Any]],
    objective: _batches.LossFn,
    mode: interventions.Mode,
    say: Step,
) -> list[Effect]:
    reference = None
    if mode in ("mean", "resample", "noise"):
        rows = sum(_batches.batch_size(b) for _, b in chosen)
        samples = mode == "resample"
        reference = interventions.collect_reference(
            model, P.graph, [b for _, b in chosen], max_rows=rows, keep_samples=samples
        )
    base_loss, base_p = _measure(model, held, objective)
    labels, effects = P.labels.cpu(), []
    for i in range(P.k):
        runs = []
        for r, labeling in enumerate([labels, *random]):
            say(f"effect of module {i} of {P.k}" + (f", random control {r}" if r else ""))
            units = interventions.reachable(P.graph, torch.nonzero(labeling == i).flatten())
            with interventions.replace(model, P.graph, units, mode, reference=reference, seed=r):
                runs.append(_measure(model, held, objective))
        effect = Effect(mode)
        for name, (loss, n) in base_loss.items():
            rises = [run[name][0] - loss for run, _ in runs]
            effect.slices.append({"slice": name, "loss": loss, "rise": rises[0], "controls": rises[1:], "windows": n})
        if base_p is not None:
            changes = [p - base_p for _, p in runs if p is not None]
            effect.changes, effect.control_changes = changes[0], np.stack(changes[1:])
        effects.append(effect)
    return effects


def _measure(
    model: nn.Module, batches: Sequence[tuple[str, Any]], objective: _batches.LossFn
) -> tuple[dict[str, tuple[float, int]], NDArray[np.float64] | None]:
    """Mean loss and number of samples of every slice, and the mean probability of every output over all positions."""
    losses: dict[str, tuple[float, int]] = {}
    p_sum: Tensor | None = None
    count = 0
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        kept.append(_batches.logits_of(output))

    # The loss calls the model once: its logits are caught there instead of paying for a second forward pass.
    handle = model.register_forward_hook(keep)
    try:
        with torch.no_grad():
            for name, batch in batches:
                kept.clear()
                loss = float(objective(model, batch))
                size = _batches.batch_size(batch)
                before, n = losses.get(name, (0.0, 0))
                losses[name] = ((before * n + loss * size) / (n + size), n + size)
                logits = kept[-1] if kept else _batches.logits_of(_batches.forward(model, batch))
                targets = _batches.targets_of(batch)
                regression = targets is not None and targets.is_floating_point()
                if logits.ndim in (2, 3) and logits.shape[-1] > 1 and not regression:
                    p = logits.float().softmax(-1).flatten(0, -2)
                    p_sum = p.sum(0).double().cpu() + (0.0 if p_sum is None else p_sum)
                    count += p.shape[0]
    finally:
        handle.remove()
    return losses, None if p_sum is None else (p_sum / count).numpy()
