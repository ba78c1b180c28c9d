"""``modcut.weight_graph``: run a model once and return it as a weighted graph of neurons."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

import modcut.graph.rules_contractions
import modcut.graph.rules_elementwise
import modcut.graph.rules_reductions
import modcut.graph.rules_views  # noqa: F401  (the rules register themselves)
from modcut import _batches
from modcut._batches import unwrap
from modcut.graph.assemble import Options, assemble, stacks
from modcut.graph.examples import Inputs, as_call, extra_arguments, guesses
from modcut.graph.ledger import Ledger
from modcut.graph.tracer import Traced, Tracer, tensors_in
from modcut.graph.types import WeightGraph

Include = bool | Literal["all"]
EDGES = ("abs", "square", "contribution", "cousage")


def weight_graph(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    edge: str | Tensor | Callable[..., Tensor] = "abs",
    data: Any = None,
    loss_fn: Any = None,
    include_inputs: Include = True,
    include_outputs: Include = True,
    fold_norms: bool = True,
) -> WeightGraph:
    """Return the weight graph of any module: its neurons as vertices, its weights as edges.

    The model runs a few times on small example inputs, in evaluation mode and without gradients, and is left exactly as
    it was. Every operation is followed by a few rules (see :mod:`modcut.graph.tracer`), so that fused projections,
    reshapes into heads, residual additions, tied and transposed weights need no knowledge of the architecture. What
    cannot be followed is listed in ``graph.not_covered`` with its reason; spaces whose order cannot be permuted freely
    say why in ``space.fixed``.

    Args:
        model: any :class:`torch.nn.Module` that holds its parameters on a real device.
        example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments; small ones suffice
            (2 sequences of 8 tokens). ``None`` guesses from the configuration or the first layers.
        edge: ``"abs"`` |W|; ``"square"`` W^2; ``"contribution"`` |W| times the rms of its input over ``data``;
            ``"cousage"`` |W| gated by the correlation of usage over ``data``; a tensor [n, n] of strengths; or a
            function of a :class:`~modcut.graph.types.Block` that returns [rows.size, cols.size]. Trailing axes add up.
        data: batches for ``"contribution"`` and ``"cousage"`` (see :mod:`modcut._batches`).
        loss_fn: ``loss_fn(model, batch)`` for ``"cousage"`` where the model returns no loss.
        include_inputs: whether inputs are vertices. ``True`` leaves out token vocabularies of more than 1024 entries
            (listed in ``not_covered``); ``"all"`` keeps them; ``False`` leaves out every input.
        include_outputs: the same for outputs. A vocabulary tied to the input counts as input.
        fold_norms: multiply the gains of normalisations into the weights that read them when strengths are computed.

    Raises:
        TypeError: ``model`` is not a module, or ``example_inputs`` is of the wrong kind.
        ValueError: the model has no parameters, holds them on the meta device, is not initialised, or cannot run on the
            example inputs.

    Complexity: a forward pass on the example, plus memory for one integer per neuron (not per weight).
    """
    _check(model)
    model = unwrap(model)
    options = Options(
        include_inputs=_include(include_inputs, "include_inputs"),
        include_outputs=_include(include_outputs, "include_outputs"),
        fold_norms=bool(fold_norms),
    )
    if not (edge in EDGES if isinstance(edge, str) else isinstance(edge, Tensor) or callable(edge)):
        raise ValueError(f"edge must be one of {', '.join(EDGES)}, a tensor or a function, got {edge!r}")
    with torch.inference_mode(False), _untouched(model), torch.no_grad(), _plain_kernels():
        call = _example(model, example_inputs)
        splits: dict[str, tuple[int, int]] = {}
        for _ in range(5):
            ledger = _run(model, call, splits)
            more = {k: v for k, v in stacks(ledger).items() if k not in splits}
            if not more:
                break
            splits.update(more)
        graph = assemble(ledger, model, options)
    return _with_edge(graph, model, edge, data, loss_fn)


def _with_edge(graph: WeightGraph, model: nn.Module, edge: Any, data: Any, loss_fn: Any) -> WeightGraph:
    from modcut.graph.edges import with_edge

    if isinstance(edge, Tensor):
        if edge.shape != (graph.n, graph.n):
            raise ValueError(f"edge must have shape [{graph.n}, {graph.n}], got {list(edge.shape)}")
        if bool((edge < 0).any()) or not bool(torch.isfinite(edge).all()):
            raise ValueError("edge must hold finite, non-negative strengths")
        table = edge
        graph = with_edge(graph, lambda block: table[block.rows.vertices, block.cols.vertices])
        return replace(graph, edge="given")
    if edge in ("contribution", "cousage"):
        if data is None:
            raise ValueError(f'data must be given for edge="{edge}": strengths depend on how the vertices are used')
        from modcut.graph.statistics import collect

        return with_edge(graph, edge, collect(graph, model, data, loss_fn, gradients=edge == "cousage"))
    return with_edge(graph, edge)


def _include(value: Any, name: str) -> Include:
    if value is True or value is False or value == "all":
        return value  # type: ignore[no-any-return]
    raise ValueError(f'{name} must be True, False or "all", got {value!r}')


def _check(model: Any) -> None:
    from torch._subclasses.fake_tensor import FakeTensor
    from torch.nn.parameter import UninitializedParameter

    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    found = False
    for name, p in model.named_parameters():
        found = True
        if isinstance(p, UninitializedParameter):
            raise ValueError(f"parameter {name} is not initialised: run the model once before building its graph")
        if isinstance(p, FakeTensor) or isinstance(p.data, FakeTensor):
            raise ValueError(f"parameter {name} is a FakeTensor: load the weights before building the graph")
        if p.is_meta:
            raise ValueError(f"parameter {name} is on the meta device: load the weights before building the graph")
    if not found:
        raise ValueError("model must have at least one parameter, got none")


def _example(model: nn.Module, example_inputs: Any) -> Inputs:
    extra = extra_arguments(model)
    if example_inputs is not None:
        args, kwargs = as_call(_batches.ordinary(example_inputs))
        if any(t.is_meta for t in tensors_in([args, kwargs])):
            raise ValueError("example_inputs must hold real numbers, got a tensor on the meta device")
        try:
            model(*args, **{**extra, **kwargs})
        except Exception as error:
            raise ValueError(
                f"model raised {_sentence(error)} on example_inputs; give inputs that it can run on"
            ) from error
        return args, {**extra, **kwargs}
    last: Exception | None = None
    for args, kwargs in guesses(model):
        try:
            model(*args, **{**extra, **kwargs})
        except Exception as error:
            last = last or error
            continue
        return args, {**extra, **kwargs}
    tail = f" (the first guess raised {_sentence(last)})" if last is not None else ""
    raise ValueError(
        "example_inputs must be given: no guess of the inputs fits this model"
        f"{tail}. Pass a tensor, a tuple of positional arguments or a dict of keyword arguments"
    ) from last


def _sentence(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _run(model: nn.Module, call: Inputs, splits: dict[str, tuple[int, int]]) -> Ledger:
    ledger = Ledger(model, splits)
    names: dict[nn.Module, str] = {}
    for name, module in model.named_modules():
        names.setdefault(module, name)
    tracer = Tracer(ledger, names)
    _label_inputs(tracer, call)
    hooks = [
        nn_module.register_module_forward_pre_hook(lambda m, a: tracer.enter(m, a)),
        nn_module.register_module_forward_hook(lambda m, _a, out: tracer.leave(m, out)),
    ]
    try:
        with tracer:
            args, kwargs = call
            output = model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    ledger.begin("the output", "")
    for t in tensors_in(output):
        known = tracer.known.get(id(t))
        for s in known.shadows if known is not None else ():
            ledger.flag("output", s)
            ledger.fix(s, "its order is the model's output")
    return ledger


def _label_inputs(tracer: Tracer, call: Inputs) -> None:
    """Every element of a floating input, except along the batch, gets an id of its own."""
    ledger = tracer.ledger
    ledger.begin("the input", "")
    for t in tensors_in([call[0], call[1]]):
        if not t.is_floating_point() or t.ndim == 0:
            tracer._remember(Traced(t, (), tainted=True))
            continue
        shape = list(t.shape) if t.ndim == 1 else [1, *t.shape[1:]]
        count = 1
        for n in shape:
            count *= n
        start = ledger.fresh(count)
        shadow = torch.arange(start, start + count).reshape(shape)
        ledger.flag("input", shadow)
        ledger.fix(shadow, "its order is given by the data")
        tracer._remember(Traced(t, (shadow,), tainted=True))


@contextlib.contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards modes, buffers and random state are as before."""
    modes = [(m, m.training) for m in model.modules()]
    buffers = [
        (m, n, b, None if b is None else b.detach().clone()) for m in model.modules() for n, b in m._buffers.items()
    ]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        try:
            for m, _ in modes:
                m.training = False  # not m.eval(): subclasses attach side effects to it
            yield
        finally:
            for m, mode in modes:
                m.training = mode
            with torch.no_grad():
                for m, n, b, copy in buffers:
                    m._buffers[n] = b
                    if b is not None and copy is not None and not torch.equal(b, copy):
                        b.copy_(copy)


@contextlib.contextmanager
def _plain_kernels() -> Iterator[None]:
    """Keep composite operations from being fused, so that every step is visible."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    fast, onednn = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    # Not mkldnn.flags(): that also writes the TF32 setting, which warns on machines without an Intel GPU.
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        with (
            sdpa_kernel(SDPBackend.MATH),
            torch.backends.cudnn.flags(enabled=False),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.backends.mkldnn.enabled = onednn
