"""What the data does with a network's vertices: input strengths, mean activations, usage profiles per window.

A *window* is one sample of a batch: a document, a prompt, an image. The usage of vertex v in window w is
``profile[w, v] = sum over positions of |activation * gradient of the loss|`` (guide of this package: per-token
statistics pick up position, activations alone miss what the loss does not need). All of it is gathered by hooks on the
graph's taps: during ordinary training steps by :class:`Recorder`, over a data set by :func:`collect`.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from modcut import _batches
from modcut.graph.interventions import evaluation
from modcut.graph.observer import Observer, Window, backward
from modcut.graph.observer import embeddings_of as embeddings_of
from modcut.graph.observer import input_source as input_source
from modcut.graph.types import WeightGraph


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of a model over data; vertices are those of the graph they were gathered on."""

    profile: Tensor
    """float32 [windows, n]: usage; 0 where a vertex has no tap."""
    slice: Tensor
    """int64 [windows]: which slice of the data a window came from."""
    slice_names: tuple[str, ...]
    input_mean_square: dict[str, Tensor]
    """Per matrix: float32 [cols], mean square of each column's input (1 where it could not be observed)."""
    input_mean: dict[str, Tensor] = field(default_factory=dict)
    """Per matrix: float32 [cols], mean of each column's input (0 where it could not be observed)."""
    means: dict[str, Tensor] = field(default_factory=dict)
    """Per tap ("module:side"): float32 [features], mean activation."""
    stds: dict[str, Tensor] = field(default_factory=dict)
    """Per tap: float32 [features], standard deviation of the activation."""
    not_observed: tuple[str, ...] = ()
    """Matrices whose inputs no hook could see."""

    @property
    def windows(self) -> int:
        """Number of windows."""
        return int(self.profile.shape[0])

    def to_dict(self) -> dict[str, Any]:
        """Return a summary (sizes and names, not the tensors)."""
        counts = torch.bincount(self.slice, minlength=len(self.slice_names)).tolist()
        return {
            "windows": self.windows,
            "n": int(self.profile.shape[1]),
            "slices": dict(zip(self.slice_names, counts, strict=True)),
            "vertices_with_usage": int((self.profile > 0).any(0).sum()) if self.windows else 0,
            "not_observed": list(self.not_observed),
        }


class Recorder:
    """Gather statistics during ordinary training steps: ``with Recorder(graph, model) as r: train(...)``.

    Hooks read each activation on its way forward and its gradient on the way back; parameters, gradients and random
    state are left as they are, and nothing remains after :meth:`detach`. Gradients of accumulated micro-batches and
    scaled losses only scale a window, which the profiles' normalisation removes.

    Args:
        graph: The model's graph.
        model: The model.
        max_windows: Keep the latest so many windows: max_windows x n x 4 bytes.
        decay: Of the exponential averages of input mean squares and means, per forward pass.
    """

    def __init__(self, graph: WeightGraph, model: nn.Module, *, max_windows: int = 1024, decay: float = 0.99) -> None:
        if max_windows < 1:
            raise ValueError(f"max_windows must be at least 1, got {max_windows}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.graph, self.model, self.max_windows = graph, model, max_windows
        self._rows: deque[tuple[str, Tensor]] = deque(maxlen=max_windows)
        self._observer = Observer(graph, model, decay, defer=False)
        self._observer.finish = self._keep

    def attach(self) -> Recorder:
        """Put the hooks in place (again: nothing happens)."""
        self._observer.attach()
        return self

    def detach(self) -> None:
        """Remove every hook; what was gathered stays."""
        self._observer.detach()

    def __enter__(self) -> Recorder:
        return self.attach()

    def __exit__(self, *_: object) -> None:
        self.detach()

    @contextmanager
    def slice(self, name: str) -> Iterator[None]:
        """Label the windows of the forward passes inside the block."""
        self._observer.clear()
        old, self._observer.slice = self._observer.slice, name
        try:
            yield
        finally:
            self._observer.clear()
            self._observer.slice = old

    def _keep(self, window: Window) -> None:
        window.used = False
        self._rows.extend((window.name, row) for row in window.rows.cpu())

    def _flush(self) -> None:
        window = self._observer.window
        if window is not None and window.used:
            self._keep(window)

    @property
    def rows(self) -> Tensor:
        """Usage profiles of the latest windows whose backward pass has run, float32 [windows, n]."""
        self._flush()
        return torch.stack([r for _, r in self._rows]) if self._rows else torch.zeros(0, self.graph.n)

    @property
    def input_mean_square(self) -> dict[str, Tensor]:
        """Exponential average of each matrix's input mean squares, float32 [cols] per matrix name."""
        return self._observer.columns()[0]

    def statistics(self) -> Statistics:
        """Return what was gathered so far."""
        rows = self.rows
        names = tuple(dict.fromkeys(name for name, _ in self._rows)) or ("",)
        label = torch.tensor([names.index(name) for name, _ in self._rows], dtype=torch.int64)
        square, mean, missing = self._observer.columns()
        means, stds = self._observer.taps()
        return Statistics(rows, label, names, square, mean, means, stds, missing)

    def state(self) -> dict[str, Tensor]:
        """Return what was gathered as tensors, so that an interrupted run goes on exactly: see :meth:`restore`."""
        rows = self.rows
        names = json.dumps([name for name, _ in self._rows]).encode()
        out = {"rows": rows, "names": torch.frombuffer(bytearray(names), dtype=torch.uint8)}
        for key, m in self._observer.moments.items():
            if m.mean is not None and m.square is not None:
                out |= {f"mean.{key}": m.mean, f"square.{key}": m.square}
                out[f"count.{key}"] = torch.tensor(m.count, dtype=torch.float64)
        return out

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`state` returned; nothing where it is empty."""
        if not state:
            return
        names = json.loads(bytes(state["names"].cpu().tolist()))
        self._rows.clear()
        self._rows.extend(zip(names, state["rows"], strict=True))
        device = _batches.device_of(self.model)
        for name, mean in state.items():
            if name.startswith("mean."):
                key = name.removeprefix("mean.")
                moments = self._observer.moments_of(key)
                moments.mean, moments.square = mean.to(device), state[f"square.{key}"].to(device)
                moments.count = float(state[f"count.{key}"])

    def clear(self) -> None:
        """Forget the windows gathered so far (averages stay)."""
        self._observer.clear()
        self._rows.clear()


def collect(
    graph: WeightGraph,
    model: nn.Module,
    data: _batches.Data,
    loss_fn: _batches.LossFn | None = None,
    *,
    max_batches: int | None = None,
    progress: bool = False,
    gradients: bool = True,
) -> Statistics:
    """Run ``data`` through the model in evaluation mode and return its statistics.

    One forward and one backward pass through the activations per batch; no parameter gradient is computed, ``.grad``
    and training flags stay as they were.

    Args:
        graph: The model's graph.
        model: The model.
        data: Batches, or a dict of them (labelled slices).
        loss_fn: ``loss_fn(model, batch) -> scalar``; default :func:`modcut._batches.loss_of`.
        max_batches: At most so many batches of each slice.
        progress: Show a progress bar.
        gradients: ``False`` gathers only means and mean squares (forward passes, no loss needed).

    Raises:
        ValueError: no batch; the loss is not finite.
        RuntimeError: the loss does not depend on any observed activation.
    """
    model = _batches.unwrap(model)  # hooks are not seen by compiled code
    observer = Observer(graph, model, None, defer=True)
    observer.gradients = gradients
    device = _batches.device_of(model)
    rows: list[Tensor] = []
    labels: list[int] = []
    names: dict[str, int] = {name: i for i, name in enumerate(_slice_names(data))}
    with torch.inference_mode(False), evaluation(model), _progress("statistics", progress) as tick:
        observer.attach()
        try:
            for name, batch in _batches.iterate(data, max_batches=max_batches):
                batch = _batches.ordinary(_batches.to_device(batch, device))
                with torch.set_grad_enabled(gradients):
                    if gradients:
                        loss = _batches.loss_of(model, batch, loss_fn)
                    else:
                        _batches.forward(model, batch)
                window = observer.window
                if gradients and window is not None:
                    backward(observer, window, loss)
                    rows.append(window.rows.cpu())
                    labels += [names.setdefault(name, len(names))] * window.rows.shape[0]
                    window.used = False
                observer.clear()
                tick()
        finally:
            observer.detach()
    square, mean, missing = observer.columns()
    means, stds = observer.taps()
    profile = torch.cat(rows) if rows else torch.zeros(0, graph.n)
    label = torch.tensor(labels, dtype=torch.int64)
    return Statistics(profile, label, tuple(names) or ("",), square, mean, means, stds, missing)


def _slice_names(data: _batches.Data) -> list[str]:
    if isinstance(data, Mapping) and not all(isinstance(v, Tensor) for v in data.values()):
        return [str(k) for k in data]
    return []


@contextmanager
def _progress(title: str, show: bool) -> Iterator[Callable[[], None]]:
    if not show:
        yield lambda: None
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description} {task.completed} batches"), TimeElapsedColumn())
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda: bar.advance(task)
