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
from torch.utils.hooks import RemovableHandle

from modcut import _batches
from modcut.graph.interventions import LocalHook, Site, evaluation, hook_tap, sites, tap_key
from modcut.graph.types import Matrix, Tap, WeightGraph

# Logits of larger vocabularies get no usage profile: one batch of them costs more memory than all other taps.
MAX_OUTPUT = 4096


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


class _Moments:
    """Running mean and mean square of a vector: exact average, or exponential where ``decay`` is given."""

    def __init__(self, decay: float | None) -> None:
        self.decay, self.count = decay, 0.0
        self.mean: Tensor | None = None
        self.square: Tensor | None = None

    def add(self, mean: Tensor, square: Tensor, weight: int) -> None:
        mean, square = mean.double(), square.double()
        self.count += weight
        if self.mean is None or self.square is None:
            self.mean, self.square = mean, square
            return
        share = weight / self.count if self.decay is None else 1 - self.decay
        self.mean = self.mean + share * (mean - self.mean)
        self.square = self.square + share * (square - self.square)

    def read(self) -> tuple[Tensor, Tensor]:
        assert self.mean is not None and self.square is not None
        return self.mean.float().cpu(), self.square.float().cpu()


@dataclass
class _Window:
    """Usage of one forward pass: a row per sample."""

    rows: Tensor
    name: str
    used: bool = False

    def add(self, x: Tensor, gradient: Tensor, dim: int, vertex: Tensor, where: Tensor) -> None:
        usage = (x.detach() * gradient.detach()).abs_().movedim(dim, -1)
        size, batch = usage.shape[-1], self.rows.shape[0]
        if usage.numel() % (batch * size):
            return  # positions are not grouped by sample here (routed tokens): they belong to no window
        usage = usage.reshape(batch, -1, size).sum(1, dtype=torch.float32)
        self.rows.index_add_(1, vertex[where], usage[:, where].to(self.rows.device))
        self.used = True


class _Observer:
    """The hooks that Recorder and collect share."""

    def __init__(self, graph: WeightGraph, model: nn.Module, decay: float | None, *, defer: bool) -> None:
        self.graph, self.model, self.decay, self.defer = graph, model, decay, defer
        self.moments: dict[str, _Moments] = {}
        self.window: _Window | None = None
        self.captured: list[tuple[Tensor, Tap, Tensor]] = []
        self.embedded: list[tuple[Tensor, Tensor, Tensor]] = []
        self.finish: Callable[[_Window], None] = lambda _: None
        self.slice = ""
        self.gradients = True
        self._seen: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._handles: list[RemovableHandle] = []
        self._embeddings = embeddings_of(graph, model)
        big = torch.zeros(graph.n, dtype=torch.bool)
        for s in graph.spaces:
            if s.kind == "output" and s.size > MAX_OUTPUT:
                big[s.vertices] = True
        self._skip = big

    # -- life ---------------------------------------------------------------------------------------------------------

    def attach(self) -> None:
        if self._handles:
            return
        try:
            self._handles.append(self.model.register_forward_pre_hook(LocalHook(self._begin), with_kwargs=True))
            profiled = {tap_key(s.tap): s for s in sites(self.graph)}
            for tap in self.graph.taps:
                self._handles.append(hook_tap(self.model, tap, self._visitor(tap, profiled.get(tap_key(tap)))))
            for name, vertex in self._embeddings.items():
                module = self.model.get_submodule(name)
                self._handles.append(module.register_forward_hook(LocalHook(self._embedding(name, vertex))))
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.clear()

    def clear(self) -> None:
        """Let go of the last forward pass."""
        if self.window is not None and self.window.used:
            self.finish(self.window)
        self.window = None
        self._seen.clear()
        self.captured.clear()
        self.embedded.clear()

    # -- hooks --------------------------------------------------------------------------------------------------------

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.clear()
        first = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.ndim > 0), None)
        if first is not None and torch.is_grad_enabled() and self.gradients:
            rows = torch.zeros(first.shape[0], self.graph.n, dtype=torch.float32, device=first.device)
            self.window = _Window(rows, self.slice)

    def _visitor(self, tap: Tap, site: Site | None) -> Callable[[Tensor], Tensor | None]:
        key = tap_key(tap)
        where = torch.zeros(tap.vertex.numel(), dtype=torch.bool) if site is None else site.where
        where = where & ~self._skip[tap.vertex.cpu().clamp_min(0)]
        profiled = bool(where.any())

        def visit(x: Tensor) -> Tensor | None:
            if not x.is_floating_point() or x.shape[tap.dim] != tap.vertex.numel():
                return None
            flat = x.detach().movedim(tap.dim, -1).flatten(0, -2)
            if flat.shape[0]:
                flat = flat.float()
                self._moments(key).add(flat.mean(0), flat.square().mean(0), flat.shape[0])
            window = self.window
            if not profiled or window is None or not torch.is_grad_enabled():
                return None
            # q, k and v read one tensor: its gradient holds all three, so it counts once.
            if id(x) in self._seen:
                return self._seen[id(x)][1]
            leaf = None
            if not x.requires_grad:  # raw inputs and frozen models: ask for the gradient here
                x, original = x.detach().requires_grad_(), x
                leaf = x
                self._seen[id(original)] = (original, leaf)
            self._seen[id(x)] = (x, leaf)
            vertex = tap.vertex.to(window.rows.device)
            mask = where.to(window.rows.device)
            if self.defer:
                self.captured.append((x, tap, mask))
            else:
                value = x.detach()
                _on_gradient(x, lambda g: window.add(value, g, tap.dim, vertex, mask))
            return leaf

        return visit

    def _embedding(self, name: str, vertex: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        def after(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
            if not args or not isinstance(args[0], Tensor):
                return None
            ids = args[0].detach()
            share = torch.bincount(ids.flatten(), minlength=vertex.numel()).double() / max(ids.numel(), 1)
            self._moments(f"{name}:ids").add(share, share, ids.numel())  # a one-hot input is its own square
            window = self.window
            if window is None or not torch.is_grad_enabled() or ids.shape[0] != window.rows.shape[0]:
                return None
            ids = vertex.to(ids.device)[ids].reshape(ids.shape[0], -1)
            if bool((ids < 0).any()):
                return None
            frozen = not output.requires_grad
            if frozen:
                output = output.detach().requires_grad_()
            if self.defer:
                self.embedded.append((output, ids, output.detach()))
            else:
                value = output.detach()
                _on_gradient(output, lambda g: _embed(window, value, g, ids))
            return output if frozen else None

        return after

    def _moments(self, key: str) -> _Moments:
        if key not in self.moments:
            self.moments[key] = _Moments(self.decay)
        return self.moments[key]

    # -- results ------------------------------------------------------------------------------------------------------

    def columns(self) -> tuple[dict[str, Tensor], dict[str, Tensor], tuple[str, ...]]:
        """Return mean square and mean of every matrix's inputs, and the matrices that were not observed."""
        square, mean, missing = {}, {}, []
        for m in self.graph.matrices:
            cols = m.col_vertex.numel()
            source = input_source(self.graph, self.model, m)
            moments = None if source is None else self.moments.get(source[0])
            if source is None or moments is None or moments.mean is None:
                square[m.name], mean[m.name] = torch.ones(cols), torch.zeros(cols)
                missing.append(m.name)
                continue
            a, b = moments.read()
            mean[m.name], square[m.name] = a[source[1]], b[source[1]]
        return square, mean, tuple(missing)

    def taps(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return mean and standard deviation of the activation at every tap."""
        means, stds = {}, {}
        for key, moments in self.moments.items():
            if not key.endswith(":ids") and moments.mean is not None:
                a, b = moments.read()
                means[key], stds[key] = a, (b - a.square()).clamp_min(0).sqrt()
        return means, stds


def _on_gradient(x: Any, visit: Callable[[Tensor], None]) -> None:
    x.register_hook(visit)


def _embed(window: _Window, value: Tensor, gradient: Tensor, ids: Tensor) -> None:
    usage = (value * gradient.detach()).sum(-1).abs().reshape(ids.shape).float()
    window.rows.scatter_add_(1, ids.to(window.rows.device), usage.to(window.rows.device))
    window.used = True


def embeddings_of(graph: WeightGraph, model: nn.Module) -> dict[str, Tensor]:
    """Return the vertex of every token of each embedding that the graph covers."""
    found: dict[str, Tensor] = {}
    for m in graph.matrices:
        name = m.name.rpartition(".")[0]
        try:
            module = model.get_submodule(name)
        except AttributeError:
            continue
        if isinstance(module, nn.Embedding):
            for vertex in (m.col_vertex, m.row_vertex):
                if vertex.numel() == module.num_embeddings and name not in found:
                    found[name] = vertex
    return found


def input_source(graph: WeightGraph, model: nn.Module, matrix: Matrix) -> tuple[str, Tensor] | None:
    """Return where a matrix's inputs are observed: the key of the moments and the position of every column there."""
    cols = matrix.col_vertex.cpu()
    taps = [t for t in graph.taps if t.side == "input" and _owns(t.module, matrix.name)]
    for tap in sorted(taps, key=lambda t: -len(t.module)):
        vertex = tap.vertex.cpu()
        if vertex.numel() == cols.numel():
            return tap_key(tap), torch.arange(cols.numel())
        place = torch.full((graph.n + 1,), -1, dtype=torch.int64)
        place[vertex] = torch.arange(vertex.numel())
        where = place[cols]
        if bool((where >= 0).all()) and bool((cols >= 0).all()):  # a part of a fused or grouped map
            return tap_key(tap), where
    name = matrix.name.rpartition(".")[0]
    if name in embeddings_of(graph, model) and model.get_submodule(name).num_embeddings == cols.numel():
        return f"{name}:ids", torch.arange(cols.numel())
    return None


def _owns(module: str, matrix: str) -> bool:
    return not module or matrix.startswith(f"{module}.")


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
        self._observer = _Observer(graph, model, decay, defer=False)
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

    def _keep(self, window: _Window) -> None:
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
                moments = self._observer._moments(key)
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
    observer = _Observer(graph, model, None, defer=True)
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
                    _backward(observer, window, loss)
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


def _backward(observer: _Observer, window: _Window, loss: Tensor) -> None:
    if not bool(torch.isfinite(loss.detach()).all()):
        raise ValueError(f"the loss must be finite, got {float(loss.detach().sum())}")
    inputs = [x for x, _, _ in observer.captured] + [y for y, _, _ in observer.embedded]
    if not loss.requires_grad or not inputs:
        raise RuntimeError(
            "the loss must depend on the activations at the graph's taps: it has no gradient "
            "(was it computed under torch.no_grad, or by another model?)"
        )
    gradients = torch.autograd.grad(loss.sum(), inputs, allow_unused=True)
    for (x, tap, mask), g in zip(observer.captured, gradients, strict=False):
        if g is not None:
            window.add(x, g, tap.dim, tap.vertex.to(mask.device), mask)
    for (_, ids, value), g in zip(observer.embedded, gradients[len(observer.captured) :], strict=True):
        if g is not None:
            _embed(window, value, g, ids)


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
