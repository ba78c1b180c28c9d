"""Watch a partitioned model on data: how much each module is used where, and what happens without it.

Everything is recorded for the partition and, in the same pass, for random partitions of the same make-up: the controls.
The stream is read once (:mod:`modcut.reading.stream`); effects are then measured on a fixed sample of its inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from modcut import _batches
from modcut.controls import matched_labels
from modcut.graph import interventions
from modcut.partition import Partition
from modcut.reading import shards
from modcut.reading.effects import Effect, measure_effects
from modcut.reading.sketch import Sketch, Window
from modcut.reading.stream import Sample, batches_of, calibration, read_stream
from modcut.reading.watch import Measure, Watch

Step = Callable[[str], None]


@dataclass
class Observation:
    """Everything that cards are made from."""

    windows: list[Window]
    """A fixed sample of the stream's windows (all of them where they are few), in the order of the data."""
    effects: list[Effect]
    control_labels: Tensor
    """int64 [controls, n]."""
    reachable: Tensor
    """bool [n]: inner vertices, whose activations are read and replaced; inputs and outputs of the model are not."""
    objective: str
    """In words: the scalar whose gradient measures use."""
    sketch: Sketch
    """Sums over the whole stream."""
    samples: list[Sample]
    """Inputs kept to run the model on again: effects and signals are measured on them."""
    measure: Measure
    scored_windows: int = 0
    """Held-out windows of the whole stream."""
    slices: tuple[str, ...] = ()
    data: str = ""
    """Digest of the data."""

    @property
    def tokens(self) -> bool:
        """Whether the inputs are tokens."""
        return self.windows[0].tokens is not None

    @property
    def measured(self) -> str:
        """The measure in words."""
        if self.measure == "use":
            return f"|activation x gradient of {self.objective}|"
        return "|activation| over its root mean square (forward passes only)"


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
            if _batches.targets_of(batch) is not None or logits.ndim not in (2, 3) or logits.shape[-1] < 2:
                raise  # targets that do not fit are a mistake, not data without targets

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
    ablation_controls: int | None = None,
    mode: interventions.Mode = "mean",
    measure: Measure = "use",
    windows: int = 256,
    samples: int = 256,
    decode: Callable[[Any], str] | None = None,
    folder: Path | None = None,
    settings: str = "",
    shard: bool = True,
    step: Step | None = None,
) -> Observation:
    """Record use and effects of every module of ``P`` and of ``controls`` random partitions of the same make-up.

    Of every two neighbouring samples of a slice one (drawn by hash) selects evidence and gives the reference
    activations of the ablation; the other is held out for scores and effects. Parameters, their ``.grad`` and training
    flags are left as they were. Cost: one pass over the data (forward and backward for ``measure="use"``, forward for
    ``"activity"``), and (1 + ablation_controls) * k + 1 forward passes over ``samples`` held-out samples. Memory:
    2 * windows x positions x (1 + controls) x k float32, and the table of distinct tokens; nothing else grows.

    Raises:
        ValueError: no data; a single sample; labels of another graph.
    """
    graph, device = P.graph, _batches.device_of(model)
    if P.labels.shape != (graph.n,):
        raise ValueError(f"P.labels must have shape [{graph.n}], got {list(P.labels.shape)}")
    if controls < 1:
        raise ValueError(f"controls must be at least 1 (no effect is given without one), got {controls}")
    ablated = min(controls, 3) if ablation_controls is None else ablation_controls
    if not 1 <= ablated <= controls:
        raise ValueError(f"ablation_controls must be between 1 and controls ({controls}), got {ablated}")
    say = step or (lambda _: None)
    generator = torch.Generator().manual_seed(seed)
    labels = P.labels.cpu()
    random = torch.stack([matched_labels(graph, labels, generator) for _ in range(controls)])
    first, data = calibration(data, max_batches)
    first = [_batches.to_device(b, device) for b in first]
    with interventions.evaluation(model):
        objective, words = objective_of(model, first[0], loss_fn)
        watch = Watch(
            model,
            graph,
            torch.cat([labels[None], random]),
            P.k,
            measure=measure,
            objective=objective,
            calibration=first,
        )
        stream = read_stream(
            watch,
            data,
            seed=seed,
            keep=windows,
            samples=min(samples, windows),
            max_batches=max_batches,
            device=device,
            folder=folder,
            settings=settings,
            shard=shard,
            say=say,
        )
        sketch = stream.sketch
        if not 0 < sketch.held < sketch.windows:
            raise ValueError(
                f"data must hold at least two samples (one to choose evidence, one held out), got {sketch.windows}"
            )
        chosen, held = (
            [
                (n, _batches.to_device(b, device))
                for n, b in batches_of(s for s in stream.samples if s.selection == half)
            ]
            for half in (True, False)
        )
        effects = measure_effects(
            model,
            P,
            random[:ablated],
            chosen,
            held,
            objective,
            mode,
            own_loss=loss_fn is None,
            decode=decode,
            seed=seed,
            shard=shard and shards.place()[1] > 1,
            say=say,
        )
    reachable = torch.zeros(graph.n, dtype=torch.bool)
    reachable[interventions.reachable(graph, torch.arange(graph.n))] = True
    names = list(dict.fromkeys(w.slice for w in sketch.sample))
    return Observation(
        windows=sketch.sample,
        effects=effects,
        control_labels=random,
        reachable=reachable,
        objective=words,
        sketch=sketch,
        samples=stream.samples,
        measure=measure,
        scored_windows=sketch.held,
        slices=tuple(names),
        data=stream.data,
    )
