"""Replace the activations of chosen vertices while a model runs: the hook under every ablation in modcut.

A vertex is replaced where it is *read* (every input tap that carries it: what the weights see, after the non-linearity
or the normalisation). A vertex that no weight reads through a tap (query-key dimensions, logits) is replaced where it
is *written* (its output taps).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from modcut import _batches
from modcut.graph.types import Tap, WeightGraph

Mode = Literal["zero", "mean", "resample", "scale", "noise"]


def tap_key(tap: Tap) -> str:
    """Return the name under which values of a tap are stored: ``module:side``."""
    return f"{tap.module}:{tap.side}"


@dataclass(frozen=True)
class Site:
    """A tap and the positions of its feature dimension that are read or replaced there."""

    tap: Tap
    where: Tensor
    """bool [size of the tap's feature dimension]."""

    def along(self, values: Tensor, like: Tensor) -> Tensor:
        """Reshape values [size] so that they broadcast along the feature dimension of ``like``."""
        return values.to(like.device).reshape(-1, *[1] * (-self.tap.dim - 1))


def read_vertices(graph: WeightGraph) -> Tensor:
    """Return which vertices some weight reads through an input tap, bool [n]; others are only seen where written."""
    read = torch.zeros(graph.n + 1, dtype=torch.bool)
    for tap in graph.taps:
        if tap.side == "input":
            read[tap.vertex.cpu()] = True
    return read[: graph.n]


def sites(graph: WeightGraph, vertices: Tensor | None = None) -> tuple[Site, ...]:
    """Return where the activations of ``vertices`` (default: all) live: their input taps, else their output taps.

    Every vertex with a tap is covered; a vertex read in several places (a residual channel) is in several sites.
    O(total size of the taps).
    """
    chosen = torch.zeros(graph.n + 1, dtype=torch.bool)  # the last entry answers for "no vertex" (-1)
    if vertices is None:
        chosen[: graph.n] = True
    else:
        chosen[vertices.to("cpu", torch.int64)] = True
    read = torch.cat([read_vertices(graph), torch.zeros(1, dtype=torch.bool)])
    found = []
    for tap in graph.taps:
        where = chosen[tap.vertex.cpu()] & (tap.vertex.cpu() >= 0)
        if tap.side == "output":
            where = where & ~read[tap.vertex.cpu()]
        if bool(where.any()):
            found.append(Site(tap, where))
    return tuple(found)


def reachable(graph: WeightGraph, units: Tensor, *, outputs: bool = False) -> Tensor:
    """Return those of ``units`` (int64 [m]) that an ablation replaces: the ones a tap of the graph carries.

    The model's own outputs (logits) are left alone unless ``outputs``: replacing an answer says nothing about how it
    came about.
    """
    carried = torch.zeros(graph.n, dtype=torch.bool)
    internal = torch.zeros(graph.n, dtype=torch.bool)
    for s in graph.spaces:
        internal[s.vertices] = s.kind not in ("input", "output")
    for site in sites(graph, units):
        vertices = site.tap.vertex.cpu()[site.where]
        if site.tap.side == "output" and not outputs:
            # A vocabulary that is tied to the embedding is an input space whose output tap carries the logits.
            vertices = vertices[internal[vertices]]
        carried[vertices] = True
    return torch.masked_select(units, carried[units])


def as_vertices(graph: WeightGraph, vertices: Tensor | Sequence[int]) -> Tensor:
    """Return vertex ids as int64 [m], checked.

    Raises:
        ValueError: a boolean mask is not [n], or an id is outside ``[0, n)``.
    """
    v = torch.as_tensor(vertices)
    if v.dtype == torch.bool:
        if v.shape != (graph.n,):
            raise ValueError(f"a mask of vertices must have shape [{graph.n}], got {list(v.shape)}")
        return torch.nonzero(v.cpu()).flatten()
    v = v.to("cpu", torch.int64).flatten()
    if v.numel() and (int(v.min()) < 0 or int(v.max()) >= graph.n):
        raise ValueError(f"vertices must be in [0, {graph.n}), got {int(v.min())} to {int(v.max())}")
    return v


def first_tensor(value: Any) -> Tensor | None:
    """Return the tensor that a hook sees: the value itself, its ``.logits``, or the first tensor inside it."""
    if isinstance(value, Tensor):
        return value
    try:
        return _batches.logits_of(value)
    except TypeError:
        return None


def _with_first_tensor(value: Any, new: Tensor) -> Any:
    """Put ``new`` where :func:`first_tensor` found its tensor."""
    if isinstance(value, Tensor):
        return new
    old = first_tensor(value)
    if isinstance(value, Mapping):
        # Transformers' outputs are ordered dicts whose type and key order the caller relies on.
        for key in value:
            if value[key] is old:
                value[key] = new  # type: ignore[index]
                return value
    if isinstance(value, (tuple, list)):
        items = [new if item is old else item for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


class LocalHook:
    """A hook that belongs to one module of one model: in a deep copy, or pickled with the model, it does nothing."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call

    def __call__(self, *args: Any) -> Any:
        """Pass what torch hands a hook on to the function."""
        return self.call(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> LocalHook:
        return LocalHook(_nothing)

    def __reduce__(self) -> Any:
        return LocalHook, (_nothing,)


def _nothing(*_: Any) -> None:
    return None


def hook_tap(model: nn.Module, tap: Tap, visit: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """Call ``visit(activation)`` whenever the tap is passed; a returned tensor takes the activation's place.

    Raises:
        ValueError: the model has no submodule of the tap's name (the graph was traced from another model).
    """
    try:
        module = model.get_submodule(tap.module)
    except AttributeError as error:
        raise ValueError(
            f"graph must have been traced from this model: it has a tap at {tap.module!r}, "
            f"which {type(model).__name__} does not have"
        ) from error

    if tap.side == "input":

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args and isinstance(args[0], Tensor):
                new = visit(args[0])
                return None if new is None else ((new, *args[1:]), kwargs)
            for key, value in kwargs.items():  # some models pass hidden_states=...
                if isinstance(value, Tensor) and value.is_floating_point():
                    new = visit(value)
                    return None if new is None else (args, {**kwargs, key: new})
            return None

        return module.register_forward_pre_hook(LocalHook(before), with_kwargs=True)

    def after(_: nn.Module, args: Any, output: Any) -> Any:
        value = first_tensor(output)
        new = None if value is None else visit(value)
        return None if new is None else _with_first_tensor(output, new)

    return module.register_forward_hook(LocalHook(after))


@dataclass
class Reference:
    """Activations on reference data, per tap (keys: :func:`tap_key`): what replaced values are drawn from."""

    means: dict[str, Tensor] = field(default_factory=dict)
    """float32 [size of the feature dimension]."""
    stds: dict[str, Tensor] = field(default_factory=dict)
    """float32 [size of the feature dimension]."""
    samples: dict[str, Tensor] = field(default_factory=dict)
    """Rows of the tap's tensor [rows, ..., size], row for row from the same inputs at every tap."""


def collect_reference(
    model: nn.Module,
    graph: WeightGraph,
    data: _batches.Data,
    vertices: Tensor | Sequence[int] | None = None,
    *,
    max_rows: int = 256,
    keep_samples: bool = True,
) -> Reference:
    """Run the model on ``data`` (no gradients, evaluation mode) and keep what passes the taps of ``vertices``.

    Args:
        model: The model that ``graph`` was traced from.
        graph: Its graph.
        data: Batches; the slices of a dict take turns, so that ``max_rows`` does not leave out the later ones.
        vertices: Vertex ids or mask; all with a tap by default.
        max_rows: Stop after this many samples.
        keep_samples: Keep whole activations for ``mode="resample"``: memory max_rows x positions x features per tap.
    """
    chosen = None if vertices is None else as_vertices(graph, vertices)
    where = sites(graph, chosen)
    total: dict[str, Tensor] = {}
    square: dict[str, Tensor] = {}
    count: dict[str, int] = {}
    rows: dict[str, list[Tensor]] = {}

    def reader(site: Site) -> Callable[[Tensor], None]:
        key, dim = tap_key(site.tap), site.tap.dim

        def visit(x: Tensor) -> None:
            flat = x.detach().movedim(dim, -1).flatten(0, -2).double()
            total[key] = total.get(key, torch.zeros(flat.shape[1], dtype=torch.float64)) + flat.sum(0).cpu()
            square[key] = square.get(key, torch.zeros(flat.shape[1], dtype=torch.float64)) + flat.square().sum(0).cpu()
            count[key] = count.get(key, 0) + flat.shape[0]
            if keep_samples:
                rows.setdefault(key, []).append(x.detach().clone())

        return visit

    seen = 0
    with evaluation(model), torch.no_grad(), _hooked(model, [(s.tap, reader(s)) for s in where]):
        for batch in _in_turn(data):
            _batches.forward(model, _batches.to_device(batch, _batches.device_of(model)))
            seen += _batches.batch_size(batch)
            if seen >= max_rows:
                break
    out = Reference()
    for key, t in total.items():
        mean = t / count[key]
        out.means[key] = mean.float()
        out.stds[key] = (square[key] / count[key] - mean.square()).clamp_min(0).sqrt().float()
        if keep_samples:
            # Texts of different lengths: the shortest length that all rows share.
            parts = rows[key]
            if len({p.shape[1:] for p in parts}) > 1:
                short = [min(p.shape[d] for p in parts) for d in range(1, parts[0].ndim)]
                for d, size in enumerate(short, start=1):
                    parts = [p.narrow(d, 0, size) for p in parts]
            out.samples[key] = torch.cat(parts)
    return out


def _in_turn(data: _batches.Data) -> Iterator[_batches.Batch]:
    """Yield the batches of all slices, one of each in turn until all are spent."""
    if isinstance(data, Mapping) and not all(isinstance(v, Tensor) for v in data.values()):
        turns = [_batches.iterate(v) for v in data.values()]
    else:
        turns = [_batches.iterate(data)]
    while turns:
        for turn in list(turns):
            item = next(turn, None)
            if item is None:
                turns.remove(turn)
            else:
                yield item[1]


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode; every submodule gets its own training flag back, also after an exception."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def _hooked(model: nn.Module, visits: Iterable[tuple[Tap, Callable[[Tensor], Tensor | None]]]) -> Iterator[None]:
    handles: list[RemovableHandle] = []
    try:
        for tap, visit in visits:
            handles.append(hook_tap(model, tap, visit))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replace(
    model: nn.Module,
    graph: WeightGraph,
    vertices: Tensor | Sequence[int],
    mode: Mode = "zero",
    *,
    reference: Any = None,
    scale: float = 0.0,
    seed: int = 0,
    taps: Collection[str] | None = None,
    positions: slice | None = None,
) -> Iterator[None]:
    """Replace the activations of ``vertices`` in every forward pass inside the ``with`` block.

    Contexts nest (the inner one sees what the outer one left), weights are never written, and the hooks go away however
    the block ends. Gradients flow through the activations that are left.

    Args:
        model: The model that ``graph`` was traced from.
        graph: Its graph.
        vertices: Vertex ids [m] or a mask bool [n]; vertices without a tap are left alone.
        mode: ``zero``; ``mean`` (the mean activation on the reference); ``resample`` (the same positions of a reference
            row drawn anew at every forward pass, one row per sample for all vertices together); ``scale`` (multiply by
            ``scale``); ``noise`` (add Gaussian noise of ``scale`` times the activation's standard deviation, on the
            reference where one is given, else in the batch at hand).
        reference: For mean, resample and noise: a :class:`Reference`, anything with ``.means`` (for ``mean``), or data.
        scale: See ``scale`` and ``noise``.
        seed: Seed of the draws.
        taps: Keys (:func:`tap_key`) of the taps to act at; every tap that carries a vertex by default.
        positions: Of the time axis of activations [samples, time, size]; all by default.

    Raises:
        ValueError: unknown mode; activations without a time axis where ``positions`` are given; a vertex outside the
            graph; mean or resample without a reference; a graph of another
            model.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
    chosen = as_vertices(graph, vertices)
    if mode in ("mean", "resample") and reference is None:
        raise ValueError(f'mode="{mode}" needs reference= (data, or activations collected before), got None')
    if reference is not None and mode in ("mean", "resample", "noise") and not hasattr(reference, "means"):
        reference = collect_reference(model, graph, reference, chosen, keep_samples=mode == "resample")
    if mode == "resample" and not getattr(reference, "samples", None):
        raise ValueError('mode="resample" needs reference activations with samples, got only means')
    draws = torch.Generator().manual_seed(seed)
    picked: dict[int, Tensor] = {}  # one draw of reference rows per batch size, renewed at every forward pass

    def changed(site: Site, x: Tensor) -> Tensor:
        key = tap_key(site.tap)
        if mode == "zero":
            return torch.zeros_like(x)
        if mode == "scale":
            return x * scale
        if mode == "mean":
            means: Tensor = reference.means[key]
            return site.along(means, x).to(x.dtype).expand_as(x)
        if mode == "noise":
            stds = getattr(reference, "stds", {}).get(key)
            if stds is None:
                flat = x.detach().movedim(site.tap.dim, -1).flatten(0, -2).float()
                stds = flat.std(0, unbiased=False)
            noise = torch.randn(x.shape, generator=draws).to(x.device, x.dtype)
            return x + scale * site.along(stds, x).to(x.dtype) * noise
        stored: Tensor = reference.samples[key]
        if x.shape[0] not in picked:
            picked[x.shape[0]] = torch.randint(stored.shape[0], (x.shape[0],), generator=draws)
        values = stored[picked[x.shape[0]].to(stored.device) % stored.shape[0]].to(x.device, x.dtype)
        for d in range(1, x.ndim):  # shorter reference texts repeat, longer ones are cut
            if values.shape[d] != x.shape[d]:
                values = values.index_select(d, torch.arange(x.shape[d], device=x.device) % values.shape[d])
        return values

    def visitor(site: Site) -> Callable[[Tensor], Tensor]:
        return lambda x: torch.where(site.along(site.where, x) & span(x, site), changed(site, x), x)

    def span(x: Tensor, site: Site) -> Tensor:
        if positions is None:
            return torch.ones((), dtype=torch.bool, device=x.device)
        if x.ndim != 3 or site.tap.dim != -1:
            raise ValueError(
                f"positions need activations [samples, time, size], {tap_key(site.tap)!r} has {list(x.shape)}"
            )
        here = torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
        here[positions] = True
        return here[None, :, None]

    where = [site for site in sites(graph, chosen) if taps is None or tap_key(site.tap) in taps]
    forget = model.register_forward_pre_hook(LocalHook(lambda *_: picked.clear()))
    try:
        with _hooked(model, [(site.tap, visitor(site)) for site in where]):
            yield
    finally:
        forget.remove()
