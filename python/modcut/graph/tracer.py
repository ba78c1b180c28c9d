"""Runs a model once on real tensors and follows every neuron through every operation.

A :class:`torch.utils._python_dispatch.TorchDispatchMode` sees the model as a sequence of aten operations, with fused
and composite functions already taken apart. Every tensor has *shadows*: integer tensors of as many dimensions
(size 1 where constant) that hold, for each element, the id of the neuron it belongs to. A handful of rules move shadows
through operations (:mod:`.rules_views`, :mod:`.rules_elementwise`, :mod:`.rules_contractions`,
:mod:`.rules_reductions`) and note in the :class:`~modcut.graph.ledger.Ledger` which ids are one neuron. An operation
without a rule fixes the neurons it touches and is reported: nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from modcut.graph.ledger import Gain, Ledger, MatrixUse, TapUse


class Traced:
    """What is known about one tensor of the run."""

    __slots__ = ("gain", "made", "parent", "recipe", "shadows", "tag", "tainted", "value")

    def __init__(self, value: Tensor, shadows: Sequence[Tensor] = (), *, tainted: bool = False) -> None:
        self.value = value
        self.shadows = tuple(shadows)
        self.tainted = tainted
        """Depends on the model's inputs."""
        self.tag: Tensor | None = None
        """Attention scores: which head each element belongs to."""
        self.gain: Gain | None = None
        """Strength of the normalisation that multiplied the last dimension (the channel dimension of images)."""
        self.made: tuple[MatrixUse, ...] = ()
        """The linear maps whose result (plus bias) this is."""
        self.parent: tuple[Tensor, Call] | None = None
        """For a view: what it is a view of."""
        self.recipe: Call | None = None
        """For a constant of the parameters: how to compute it again."""


class Call:
    """One operation: its function, arguments and result."""

    __slots__ = ("args", "func", "inplace", "kwargs", "name", "out", "tracer")

    def __init__(self, tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        self.tracer = tracer
        self.func = func
        self.args = args
        self.kwargs = kwargs
        self.out = out
        name = func._schema.name.split("::")[1]
        self.inplace = name.endswith("_") and not name.endswith("__")
        self.name = name[:-1] if self.inplace else name

    def arg(self, index: int, name: str, default: Any = None) -> Any:
        """Return an argument given by position or by name."""
        if index < len(self.args):
            return self.args[index]
        return self.kwargs.get(name, default)

    def tensors(self) -> list[Tensor]:
        """Return all tensors among the arguments, in order, lists flattened."""
        return list(tensors_in([self.args, self.kwargs]))


Rule = Callable[["Tracer", Call], None]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for aten operations (without the trailing underscore of in-place forms)."""

    def register(f: Rule) -> Rule:
        for name in names:
            RULES[name] = f
        return f

    return register


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists, dicts and dataclass-like outputs."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for v in value.values():
            yield from tensors_in(v)
    elif isinstance(value, (tuple, list)):
        for v in value:
            yield from tensors_in(v)
    elif hasattr(value, "__dict__") and not isinstance(value, (nn.Module, type)) and not callable(value):
        for v in vars(value).values():
            if isinstance(v, (Tensor, tuple, list, dict)):
                yield from tensors_in(v)


def on_host(value: Any) -> Any:
    """Return arguments with their tensors on the host, where shadows live whatever the model's device is."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {k: on_host(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(on_host(v) for v in value)
    return value


def compact(shadow: Tensor) -> Tensor:
    """Cut a shadow to size 1 along every dimension in which it is constant."""
    for d in range(shadow.ndim):
        if shadow.shape[d] > 1:
            first = shadow.narrow(d, 0, 1)
            if shadow.stride(d) == 0 or bool((shadow == first).all()):
                shadow = first
    return shadow


def varying(shadow: Tensor) -> frozenset[int]:
    """Return the dimensions along which a shadow is not constant."""
    return frozenset(d for d, n in enumerate(shadow.shape) if n > 1)


def differs(value: Tensor, dim: int) -> bool:
    """Return whether the values of a tensor change along a dimension."""
    if value.shape[dim] <= 1 or value.stride(dim) == 0:
        return False
    first = value.narrow(dim, 0, 1)
    same = value == first
    if value.is_floating_point():
        same = same | (value.isnan() & first.isnan())
    return not bool(same.all())


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows ids through one run of a model."""

    def __init__(self, ledger: Ledger, names: dict[nn.Module, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ledger = ledger
        self.names = names
        self.known: dict[int, Traced] = {}
        self.by_memory: dict[tuple[Any, ...], Traced] = {}
        self.stack: list[tuple[nn.Module, Traced | None, int]] = []
        for t in ledger.known:
            self._remember(Traced(t, ledger.shadows[id(t)]))

    # the table -----------------------------------------------------------------------------------------------------
    def _remember(self, t: Traced) -> Traced:
        self.known[id(t.value)] = t  # Traced holds the tensor, so its id is not given to another one
        if t.shadows or t.tainted:
            self.by_memory[_memory(t.value)] = t
        return t

    def get(self, value: Tensor) -> Traced:
        """Return what is known of a tensor; an unknown one is a constant, unless its memory is known."""
        found = self.known.get(id(value))
        if found is not None:
            return found
        other = self.by_memory.get(_memory(value)) if value.numel() else None
        t = Traced(value)
        if other is not None:  # tensor.data and friends bypass the dispatcher
            t.shadows, t.tainted, t.recipe, t.parent = other.shadows, other.tainted, other.recipe, other.parent
        return self._remember(t)

    def put(self, call: Call, out: Tensor, shadows: Sequence[Tensor], *, tainted: bool | None = None) -> Traced:
        """Set what is known of a result. In-place results also change what they are a view of."""
        if tainted is None:
            tainted = any(self.get(t).tainted for t in call.tensors())
        kept = tuple(s for s in (compact(s) for s in shadows) if bool((s != 0).any()))
        old = self.known.get(id(out))
        t = Traced(out, kept, tainted=tainted)
        if old is not None and call.inplace:
            t.parent = old.parent
        self._remember(t)
        if not tainted and not call.inplace:
            t.recipe = call
        if call.inplace and t.parent is not None:
            self._write_back(t)
        return t

    def _write_back(self, t: Traced) -> None:
        parent, call = t.parent or (t.value, None)
        p = self.get(parent)
        if call is None or not (t.shadows or p.shadows or t.tainted):
            return
        shadows = []
        for i in range(max(len(t.shadows), len(p.shadows))):
            base = p.shadows[i] if i < len(p.shadows) else torch.zeros([1] * parent.ndim, dtype=torch.int64)
            base = base.expand(parent.shape).clone()
            view = call.func(base, *on_host(call.args[1:]), **on_host(call.kwargs))
            views = list(view) if isinstance(view, (tuple, list)) else [view]
            outs = list(call.out) if isinstance(call.out, (tuple, list)) else [call.out]
            index = next(j for j, o in enumerate(outs) if o is t.value or _memory(o) == _memory(t.value))
            source = t.shadows[i] if i < len(t.shadows) else torch.zeros([1] * t.value.ndim, dtype=torch.int64)
            views[index].copy_(source.expand(t.value.shape))
            shadows.append(compact(base))
        p.shadows, p.tainted, p.recipe = tuple(shadows), p.tainted or t.tainted, None
        if p.parent is not None:
            self._write_back(p)

    @property
    def module(self) -> str:
        """Qualified name of the module that is running."""
        return self.names.get(self.stack[-1][0], "") if self.stack else ""

    # running -------------------------------------------------------------------------------------------------------
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self._record(Call(self, func, args, kwargs, out))
        return out

    def _record(self, call: Call) -> None:
        outs = list(tensors_in(call.out))
        if not outs:
            return
        self.ledger.begin(f"aten.{call.name}", self.module)
        found = RULES.get(call.name)
        if found is None and torch.Tag.pointwise in call.func.tags:
            found = RULES["add"]
        inputs = [self.get(t) for t in call.tensors()]
        plain = not any(t.shadows or t.tag is not None for t in inputs)
        if plain and (found is None or call.name not in ALWAYS):
            tainted = any(t.tainted for t in inputs) and not is_factory(call.name)
            for o in outs:
                self.put(call, o, (), tainted=tainted)
            return
        if is_factory(call.name):
            for o in outs:
                self.put(call, o, (), tainted=False)
            return
        if found is None:
            self._unknown(call, inputs, outs)
            return
        found(self, call)

    def _unknown(self, call: Call, inputs: list[Traced], outs: list[Tensor]) -> None:
        where = self.module
        for t in inputs:
            for s in t.shadows:
                self.ledger.fix(s, "passes through {where}, which the tracer has no rule for")
        self.ledger.uncovered.setdefault(where or "model", f"operation aten.{call.name} has no rule")
        for o in outs:
            self.put(call, o, ())

    # modules -------------------------------------------------------------------------------------------------------
    def enter(self, module: nn.Module, args: Any) -> None:
        """Called before a module runs."""
        first = args[0] if isinstance(args, tuple) and args and isinstance(args[0], Tensor) else None
        owns = first is not None and any(p is not None for p in module._parameters.values())
        before = self.get(first) if owns and first is not None else None
        # The rules replace Traced.shadows on in-place writes: keep the shadows seen now.
        if before is not None:
            seen = Traced(before.value, before.shadows, tainted=before.tainted)
            self.stack.append((module, seen, before.value._version))
        else:
            self.stack.append((module, None, 0))

    def leave(self, module: nn.Module, output: Any) -> None:
        """Called after a module ran."""
        while self.stack and self.stack[-1][0] is not module:
            self.stack.pop()
        if self.stack:
            self.stack.pop()
        if not isinstance(output, Tensor):
            return
        t = self.known.get(id(output))
        if t is None or not t.made:
            return
        own = {id(p) for p in module._parameters.values() if p is not None}
        if any(self._owns(own, u) for u in t.made) and module in self.names:
            self.ledger.taps.append(TapUse(self.names[module], "output", t.shadows, None))

    def _owns(self, own: set[int], use: MatrixUse) -> bool:
        ids = {i for a in (use.row_axis, use.col_axis) for i in (self.ledger.parts[use.part].starts[a],)}
        for t in self.ledger.known:
            if id(t) in own:
                for s in self.ledger.shadows[id(t)]:
                    if s.numel() and bool(torch.isin(s, torch.tensor(sorted(ids))).any()):
                        return True
        return False

    def read_by(self, operand: Tensor, ids: Tensor, uses: Sequence[MatrixUse], channel: int | None = None) -> None:
        """Note an input tap where a map's operand is what the running module got as its first argument.

        ``ids`` are those of the map's columns; they lie along the last dimension of ``operand`` [..., columns], or
        along ``channel`` of an image.
        """
        if not self.stack or not uses:
            return
        module, first, version = self.stack[-1]
        if first is None or module not in self.names or first.value._version != version:
            return
        value, size, flat = first.value, ids.numel(), ids.reshape(-1)
        if channel is not None:
            same = value.data_ptr() == operand.data_ptr() and value.shape == operand.shape
        else:  # by value: a transposed input was copied before it was flattened
            channel = value.ndim - 1
            same = value.shape[-1] == size and value.numel() == operand.numel() and operand.shape[-1] == size
            same = same and torch.equal(value.reshape(-1, size), operand.reshape(-1, size))
        own = {id(p) for p in module._parameters.values() if p is not None}
        if same and value.shape[channel] == size and any(self._owns(own, u) for u in uses):
            shape = [1] * value.ndim
            shape[channel] = size
            self.ledger.taps.append(TapUse(self.names[module], "input", (flat.reshape(shape),), channel - value.ndim))


def plan(tracer: Tracer, value: Any) -> Callable[[], Any]:
    """Return a function that computes a constant of the parameters again, from what the parameters hold then.

    It keeps only the parameters and the operations in between, not the tracer.
    """
    if isinstance(value, Tensor):
        t = tracer.known.get(id(value))
        if t is None or t.recipe is None:
            constant = value.detach()  # a parameter: live memory
            return lambda: constant
        call = t.recipe
        func, args, kwargs = call.func, plan(tracer, call.args), plan(tracer, call.kwargs)
        many = isinstance(call.out, (tuple, list))
        index = next(i for i, o in enumerate(call.out) if o is value) if many else 0

        def again() -> Any:
            out = func(*args(), **kwargs())
            return out[index] if many else out

        return again
    if isinstance(value, (tuple, list)):
        kind, items = type(value), [plan(tracer, v) for v in value]
        return lambda: kind(i() for i in items)
    if isinstance(value, dict):
        entries = {k: plan(tracer, v) for k, v in value.items()}
        return lambda: {k: v() for k, v in entries.items()}
    return lambda: value


def _memory(t: Tensor) -> tuple[Any, ...]:
    return (t.data_ptr(), tuple(t.shape), tuple(t.stride()), t.dtype)


# Results of these do not depend on the values of their tensor arguments.
_FACTORIES = {"zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "randint_like"}


def is_factory(name: str) -> bool:
    """Return whether an operation only takes shape, dtype or device from its arguments."""
    return name in _FACTORIES or name.startswith("new_") or name in {"arange", "sym_size", "scalar_tensor"}


# Rules that run even where no operand has a shadow (they record views, or make new facts).
ALWAYS: set[str] = set()
