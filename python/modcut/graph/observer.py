"""Hooks that read activations on their way forward and gradients on their way back, for Recorder and collect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from modcut.graph.interventions import LocalHook, Site, hook_tap, sites, tap_key
from modcut.graph.types import Matrix, Tap, WeightGraph

# Logits of larger vocabularies get no usage profile: one batch of them costs more memory than all other taps.
MAX_OUTPUT = 4096


class Moments:
    """Running mean and mean square of a vector: exact average, or exponential where ``decay`` is given."""

    def __init__(self, decay: float | None) -> None:
        self.decay, self.count = decay, 0.0
        self.mean: Tensor | None = None
        self.square: Tensor | None = None

    def add(self, mean: Tensor, square: Tensor, weight: int) -> None:
        """Take in the mean and mean square of ``weight`` rows."""
        mean, square = mean.double(), square.double()
        self.count += weight
        if self.mean is None or self.square is None:
            self.mean, self.square = mean, square
            return
        share = weight / self.count if self.decay is None else 1 - self.decay
        self.mean = self.mean + share * (mean - self.mean)
        self.square = self.square + share * (square - self.square)

    def read(self) -> tuple[Tensor, Tensor]:
        """Return mean and mean square, float32 on the CPU."""
        assert self.mean is not None and self.square is not None
        return self.mean.float().cpu(), self.square.float().cpu()


@dataclass
class Window:
    """Usage of one forward pass: a row per sample."""

    rows: Tensor
    name: str
    used: bool = False

    def add(self, x: Tensor, gradient: Tensor, dim: int, vertex: Tensor, where: Tensor) -> None:
        """Add the usage of one tap: |activation x gradient|, summed over the positions of every sample."""
        usage = (x.detach() * gradient.detach()).abs_().movedim(dim, -1)
        size, batch = usage.shape[-1], self.rows.shape[0]
        if usage.numel() % (batch * size):
            return  # positions are not grouped by sample here (routed tokens): they belong to no window
        usage = usage.reshape(batch, -1, size).sum(1, dtype=torch.float32)
        self.rows.index_add_(1, vertex[where], usage[:, where].to(self.rows.device))
        self.used = True


class Observer:
    """The hooks that Recorder and collect share."""

    def __init__(self, graph: WeightGraph, model: nn.Module, decay: float | None, *, defer: bool) -> None:
        self.graph, self.model, self.decay, self.defer = graph, model, decay, defer
        self.moments: dict[str, Moments] = {}
        self.window: Window | None = None
        self.captured: list[tuple[Tensor, Tap, Tensor]] = []
        self.embedded: list[tuple[Tensor, Tensor, Tensor]] = []
        self.finish: Callable[[Window], None] = lambda _: None
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
        """Put the hooks in place (again: nothing happens)."""
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
        """Remove every hook and forget the last forward pass."""
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
            self.window = Window(rows, self.slice)

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
                self.moments_of(key).add(flat.mean(0), flat.square().mean(0), flat.shape[0])
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
            self.moments_of(f"{name}:ids").add(share, share, ids.numel())  # a one-hot input is its own square
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

    def moments_of(self, key: str) -> Moments:
        """Return the running moments under a key, new where there are none."""
        if key not in self.moments:
            self.moments[key] = Moments(self.decay)
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


def _embed(window: Window, value: Tensor, gradient: Tensor, ids: Tensor) -> None:
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


def backward(observer: Observer, window: Window, loss: Tensor) -> None:
    """Run the backward pass to the taps alone and add it to the window; no parameter gets a gradient."""
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
