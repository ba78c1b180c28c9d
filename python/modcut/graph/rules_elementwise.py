"""Element-wise operations: elements that meet are one neuron; values that differ along a space fix its order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modcut.graph.ledger import Gain, MatrixUse
from modcut.graph.tracer import Call, Traced, Tracer, compact, differs, plan, rule, tensors_in, varying


@dataclass
class _Item:
    operand: int
    shadow: Tensor


def _align(shadow: Tensor, ndim: int) -> Tensor:
    return shadow.reshape([1] * (ndim - shadow.ndim) + list(shadow.shape))


def combine(tr: Tracer, operands: Sequence[Traced], ndim: int) -> tuple[Tensor, ...]:
    """Note what an element-wise operation on ``operands`` says about their neurons; return the result's shadows.

    - Shadows that vary along the same dimensions meet element by element: union.
    - Shadows that share some dimensions but not all (one value per head times one per channel) break each other.
    - Shadows on disjoint dimensions both stay (tokens and channels of a mixer).
    - An operand without ids along a labelled dimension breaks the order there if its values differ along it.
    """
    ledger = tr.ledger
    items = [_Item(i, _align(s, ndim)) for i, t in enumerate(operands) for s in t.shadows]
    _break_by_values(tr, operands, items, ndim)
    kept: list[_Item] = []
    for item in items:
        met = False
        for other in kept:
            if other.operand == item.operand:
                continue
            a, b = varying(other.shadow), varying(item.shadow)
            if a == b and (a or len(items) == 2):
                ledger.union(other.shadow, item.shadow)
                if a and bool((other.shadow == 0).any()):
                    other.shadow = torch.where(other.shadow == 0, item.shadow, other.shadow)
                met = True
            elif a & b:
                wide, narrow = (other, item) if len(a) >= len(b) else (item, other)
                extra = sorted(varying(wide.shadow) - varying(narrow.shadow))
                if varying(narrow.shadow) < varying(wide.shadow) and ledger.aligned(wide.shadow, extra):
                    ledger.union(ledger.merge(wide.shadow, extra), narrow.shadow)
                    other.shadow = narrow.shadow
                else:
                    why = "meets a different arrangement of neurons at {where}"
                    ledger.told_apart(item.shadow, sorted(a & b), soft=why)
                    ledger.told_apart(other.shadow, sorted(a & b), soft=why)
                    other.shadow = wide.shadow
                met = True
            elif not a or not b:
                # One neuron's value spread over others: whoever it is, it is not like its fellows.
                single, rest = (other, item) if not a else (item, other)
                ledger.told_apart(single.shadow, [])
                other.shadow, other.operand = rest.shadow, rest.operand
                met = True
        if not met:
            kept.append(item)
    return tuple(k.shadow for k in kept)


def _break_by_values(tr: Tracer, operands: Sequence[Traced], items: list[_Item], ndim: int) -> None:
    for i, t in enumerate(operands):
        shift = ndim - t.value.ndim
        own = {d + shift for s in t.shadows for d in varying(s)}
        cache: dict[int, bool] = {}
        for item in list(items):
            if item.operand == i:
                continue
            free = [d for d in sorted(varying(item.shadow) - own) if d >= shift]
            broken = [d for d in free if cache.setdefault(d, differs(t.value, d - shift))]
            if not broken:
                continue
            what = "values of the data" if t.tainted else "constants (as of a rotary embedding)"
            tr.ledger.told_apart(item.shadow, broken, soft=f"combined at {{where}} with {what} that differ along it")
            if not operands[item.operand].tainted and set(broken) == varying(item.shadow):
                items.remove(item)  # a table of the author's order (positions): nothing to follow


@rule("add", "_to_copy", "fill", "native_dropout", "dropout", "alias_copy", "_prelu_kernel", "hardswish", "zero")
def elementwise(tr: Tracer, call: Call) -> None:
    """Any operation whose result's elements depend on the operands' elements at the same place."""
    out = next(tensors_in(call.out))
    tensors = [t for t in call.tensors()]
    operands = [tr.get(t) for t in tensors]
    if call.name in {"_to_copy", "native_dropout", "dropout"}:
        operands = operands[:1]
    if call.name in {"fill", "zero"}:
        tr.put(call, out, (), tainted=False)
        return
    made, gain, tag = _carried(tr, call, operands)
    shadows = combine(tr, operands, out.ndim)
    if call.name == "add" or call.name == "sub":
        _note_sum(tr, operands, out.ndim)
    for o in tensors_in(call.out):
        t = tr.put(call, o, shadows)
        t.made, t.gain, t.tag = made, gain, tag


def _note_sum(tr: Tracer, operands: Sequence[Traced], ndim: int) -> None:
    live = [t for t in operands if t.tainted and t.shadows]
    if len(live) == 2 and live[0].value is not live[1].value:
        shapes = [{varying(_align(s, ndim)) for s in t.shadows} for t in live]
        sources = [_align(s, ndim) for s in live[1].shadows]
        for s in live[0].shadows:
            mine = _align(s, ndim)
            # x + x**3 (a written-out GELU) adds a stream to itself: no second writer.
            own = any(o.shape == mine.shape and bool((o == mine).all()) for o in sources)
            if varying(mine) in shapes[1] and not own:
                tr.ledger.flag("sum", s)


def _carried(
    tr: Tracer, call: Call, operands: Sequence[Traced]
) -> tuple[tuple[MatrixUse, ...], Gain | None, Tensor | None]:
    """Return what outlives an operation: "result of these maps", the gain, the attention tag."""
    tag = next((t.tag for t in operands if t.tag is not None), None)
    live = [t for t in operands if t.tainted]
    if len(live) != 1 or call.name not in {"add", "sub", "mul", "div", "_to_copy", "dropout", "native_dropout"}:
        return (), None, tag
    x = live[0]
    constants = [t for t in operands if t is not x]
    made = x.made if call.name in {"add", "sub"} or all(c.value.numel() == 1 for c in constants) else ()
    gain = x.gain
    if call.name == "mul" and len(constants) == 1 and constants[0].shadows:
        g = constants[0]
        if g.value.ndim >= 1 and g.value.numel() == g.value.shape[-1] == x.value.shape[-1]:
            value = plan(tr, g.value)
            earlier = gain
            gain = _product(value, earlier)
    return made, gain, tag


def _product(value: Gain, earlier: Gain | None) -> Gain:
    if earlier is None:
        return lambda: value().reshape(-1)
    return lambda: value().reshape(-1) * earlier()


@rule("copy")
def copy(tr: Tracer, call: Call) -> None:
    """``target.copy_(source)``: the target becomes the source."""
    source = tr.get(call.args[1])
    out = next(tensors_in(call.out))
    shadows = [_align(s, out.ndim) for s in source.shadows]
    t = tr.put(call, out, shadows, tainted=source.tainted)
    t.tag = source.tag


@rule("where", "masked_fill")
def where(tr: Tracer, call: Call) -> None:
    """Selection by a mask is element-wise in all its operands."""
    elementwise(tr, call)


@rule("log_sigmoid_forward")
def first_result(tr: Tracer, call: Call) -> None:
    """Element-wise operations with a second result that is only a buffer."""
    out = call.out[0]
    tr.put(call, out, combine(tr, [tr.get(t) for t in call.tensors()], out.ndim))
    for o in call.out[1:]:
        tr.put(call, o, ())


@rule("glu")
def glu(tr: Tracer, call: Call) -> None:
    """First half times the sigmoid of the second."""
    x = tr.get(call.args[0])
    dim = call.arg(1, "dim", -1) % x.value.ndim
    halves = []
    for half in range(2):
        n = x.value.shape[dim] // 2
        value = x.value.narrow(dim, half * n, n)
        halves.append(
            Traced(value, [compact(s.expand(x.value.shape).narrow(dim, half * n, n)) for s in x.shadows], tainted=True)
        )
    tr.put(call, call.out, combine(tr, halves, call.out.ndim))
