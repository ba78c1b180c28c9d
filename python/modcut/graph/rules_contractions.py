"""Contractions: the contracted positions of both operands are the same neurons; the others pass on to the result."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from modcut.graph.ledger import Gain, MatrixUse
from modcut.graph.rules_elementwise import combine
from modcut.graph.tracer import ALWAYS, Call, Traced, Tracer, compact, differs, rule, varying

ALWAYS.update({"convolution", "embedding"})


class _Side:
    """One operand of a batched product, its shadows brought to [batch, kept, contracted]."""

    def __init__(self, tr: Tracer, traced: Traced, value: Tensor, shadows: Sequence[Tensor]) -> None:
        self.traced, self.value = traced, value
        if traced.tainted:  # tokens of several tables side by side: summing over tokens makes their channels one
            shadows = [
                tr.ledger.merge(s, [2])
                if s.shape[1] > 1 and s.shape[2] > 1 and not tr.ledger.is_input(s) and tr.ledger.aligned(s, [2])
                else s
                for s in shadows
            ]
        size_one = value.shape[2] == 1
        self.met = [s for s in shadows if s.shape[2] > 1 or (size_one and s.numel() == 1)]
        if len(self.met) > 1 and size_one and len(self.met) == len(shadows) and traced.value.numel() == 1:
            self.met = self.met[-1:]  # a 1 x 1 map: both axes look alike; inputs come last in a Linear
        pure = [s for s in self.met if s.shape[1] == 1]
        mixed = [s for s in self.met if s.shape[1] > 1]
        rest = [s for s in shadows if not any(s is m for m in self.met)]
        if pure and mixed:  # result channels of one map per head: their sum over heads makes them one
            self.met = pure
            rest += mixed
        self.kept = rest
        """Shadows of the result; those that also vary along the contracted dimension are merged along it."""

    def result(self, tr: Tracer) -> list[Tensor]:
        """Return the shadows that pass on, [n, kept, 1]."""
        return [tr.ledger.merge(s, [2]) for s in self.kept]


def product(tr: Tracer, a: Traced, b: Traced, dims: str) -> tuple[list[Tensor], Tensor | None, tuple[MatrixUse, ...]]:
    """Contract ``a`` [n, m, k] with ``b`` [n, k, p] (``dims`` "bmm"), or without n ("mm").

    Returns the result's shadows [n, m, p], its attention tags, and the linear maps that were applied.
    """

    def lift(t: Tensor) -> Tensor:
        return t.unsqueeze(0) if dims == "mm" else t

    left = _Side(tr, a, lift(a.value), [lift(s) for s in a.shadows])
    right = _Side(tr, b, lift(b.value).transpose(1, 2), [lift(s).transpose(1, 2) for s in b.shadows])
    uses = _meet(tr, left, right)
    tag = _tags(tr, left, right, None if a.tag is None else lift(a.tag), None if b.tag is None else lift(b.tag))
    kept = [*left.result(tr), *(s.transpose(1, 2) for s in right.result(tr))]
    for s in kept:
        if s.shape[0] > 1:  # every batch index multiplies by another matrix
            tr.ledger.told_apart(s, [0])
    if dims == "mm":
        kept = [s.squeeze(0) for s in kept]
        tag = None if tag is None else tag.squeeze(0)
    return kept, tag, uses


def _meet(tr: Tracer, left: _Side, right: _Side) -> tuple[MatrixUse, ...]:
    ledger = tr.ledger
    for side in (left, right):
        if len(side.met) > 1:  # one parameter whose axes (heads, channels) were merged: follow it head by head
            ledger.split_stack(*side.met[:1])
        for s in side.kept + side.met:
            if s.shape[0] > 1 and not side.traced.tainted:
                _split_batch(tr, s)
    a, b = ([ledger.merge(m, [1]) for m in side.met] for side in (left, right))  # [n, 1, k]
    for first in a[:1]:
        for same in b + a[1:]:
            ledger.union(first, same)
    for mine, theirs, opposite in ((a, b, right), (b, a, left)):
        for s in mine:
            ledger.told_apart(s, [0] if s.shape[0] > 1 else [])
            if not theirs and s.shape[2] > 1 and differs(opposite.value, 2):
                ledger.told_apart(s, [2], soft="contracted at {where} with values in the order of the data")
                if opposite.traced.tainted:
                    ledger.flag("data", s)
    uses: list[MatrixUse] = []
    pairs = [(left, right), (right, left)]
    if not left.traced.tainted and not right.traced.tainted:
        pairs = [(x, w) for x, w in pairs if _is_parameter(tr, w)]
    for x, w in pairs:
        if w.traced.tainted or not w.met:
            continue
        for rows in w.kept:
            new = ledger.use(w.met[0], rows, tr.module, gain=_gain(x, w))
            if w.met[0].shape[0] == 1:
                tr.read_by(x.value, w.met[0].narrow(1, 0, 1), new)
            uses += new
    return tuple(uses)


def _is_parameter(tr: Tracer, side: _Side) -> bool:
    """Of two constants, the linear map is the one that the running module owns."""
    if not tr.stack:
        return True
    memory = {p.untyped_storage().data_ptr() for p in tr.stack[-1][0]._parameters.values() if p is not None}
    return side.value.untyped_storage().data_ptr() in memory


def _split_batch(tr: Tracer, s: Tensor) -> None:
    owners = tr.ledger.owner(s)
    if len({tr.ledger.axes[i].part for i in owners}) == 1 and varying(s) == {0}:
        tr.ledger.split_stack(s)


def _gain(x: _Side, w: _Side) -> Gain | None:
    return x.traced.gain if x.traced.gain is not None and x.value.shape[2] == w.met[0].shape[2] else None


def _tags(tr: Tracer, left: _Side, right: _Side, a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Attention: a product of two activations over neurons gives scores; scores times activations mix their neurons."""
    if not (left.traced.tainted and right.traced.tainted):
        return None
    for tag, other in ((a, right), (b, left)):
        if tag is not None:
            per_batch = tag[:, :1, :1]
            for s in other.kept:
                tr.ledger.link("v", s, per_batch)
            return None
    if left.met and right.met:
        return tr.ledger.tag(tr.ledger.merge(left.met[0], []).narrow(1, 0, 1), tr.module)
    return None


Result = tuple[list[Tensor], Tensor | None, tuple[MatrixUse, ...]]


def _finish(tr: Tracer, call: Call, bias: Traced | None, result: Result, tainted: bool) -> None:
    shadows, tag, uses = result
    out = call.out
    shadows = [compact(s) for s in shadows]
    if bias is not None:
        shadows = list(combine(tr, [Traced(out, shadows, tainted=tainted), bias], out.ndim))
    t = tr.put(call, out, shadows)
    t.tag, t.made = tag, uses


@rule("mm", "bmm", "addmm", "baddbmm", "_addmm_activation", "mv", "addmv", "dot", "vdot", "matmul", "addbmm", "linear")
def multiply(tr: Tracer, call: Call) -> None:
    """Matrix products, plain and batched, with or without a bias."""
    biased = call.name.startswith(("add", "badd", "_addmm"))
    operands = [tr.get(t) for t in call.args[:3] if isinstance(t, Tensor)]
    bias = operands.pop(0) if biased else None
    a, b = operands[:2]
    if call.name == "linear":
        bias = tr.get(call.args[2]) if len(call.args) > 2 and call.args[2] is not None else None
        k = a.value.shape[-1]
        flat = Traced(
            a.value.reshape(-1, k), [s.expand(a.value.shape).reshape(-1, k) for s in a.shadows], tainted=a.tainted
        )
        flat.shadows, flat.gain = tuple(compact(s) for s in flat.shadows), a.gain
        wt = Traced(b.value.t(), [s.t() for s in b.shadows], tainted=b.tainted)
        s, _, uses = product(tr, flat, wt, "mm")
        shape = call.out.shape
        s = [x.expand(flat.value.shape[0], shape[-1]).reshape(shape) for x in s]
        _finish(tr, call, bias, (s, None, uses), a.tainted or b.tainted)
        return
    if call.name in {"mv", "addmv", "dot", "vdot"}:
        a = _as_matrix(a, 0) if a.value.ndim == 1 else a
        s, _, uses = product(tr, a, _as_matrix(b, 1), "mm")
        s = [x.squeeze(1) for x in s]
        s = [x.squeeze(0) for x in s] if call.out.ndim == 0 else s
        _finish(tr, call, bias, (s, None, uses), a.tainted or b.tainted)
        return
    dims = "mm" if a.value.ndim == 2 else "bmm"
    result = product(tr, a, b, dims)
    if call.name == "addbmm":
        result = ([tr.ledger.merge(s, [0]).squeeze(0) for s in result[0]], None, result[2])
    _finish(tr, call, bias, result, a.tainted or b.tainted)


def _as_matrix(t: Traced, dim: int) -> Traced:
    return Traced(t.value.unsqueeze(dim), [s.unsqueeze(dim) for s in t.shadows], tainted=t.tainted)


@rule("embedding")
def embedding(tr: Tracer, call: Call) -> None:
    """A lookup of rows: contraction with one-hot vectors."""
    lookup(tr, call, tr.get(call.args[0]), call.out, tr.get(call.args[1]))


def lookup(tr: Tracer, call: Call, table: Traced, out: Tensor, index: Traced | None = None) -> None:
    """Rows of ``table`` [entries, features] chosen by indices: from the inputs (tokens), or given (positions)."""
    by_data = True if index is None else index.tainted
    shadows, uses = [], []
    entries = [s for s in table.shadows if 0 in varying(s)]
    features = [s for s in table.shadows if 0 not in varying(s)]
    if table.value.shape[0] == 1:
        entries, features = [], [s for s in table.shadows if 1 in varying(s)]
    for s in entries:
        tr.ledger.fix(s, "its order is given by the data" if by_data else "its order is given by the position")
        if by_data:
            tr.ledger.flag("tokens", s)
            for f in features:
                uses += tr.ledger.use(s, f, tr.module, lookup=True)
    for f in features:
        shadows.append(f.reshape([1] * (out.ndim - 1) + [f.shape[-1]]))
    if index is not None:
        for s in index.shadows:
            tr.ledger.fix(s, "used as an index at {where}")
    t = tr.put(call, out, shadows, tainted=by_data or table.tainted)
    t.made = tuple(uses)


@rule("convolution", "_convolution", "mkldnn_convolution")
def convolution(tr: Tracer, call: Call) -> None:
    """Channels are contracted; a group is a map of its own; one channel per group is element-wise."""
    x, w = tr.get(call.args[0]), tr.get(call.args[1])
    bias = None if call.args[2] is None else tr.get(call.args[2])
    transposed, groups = call.args[6], call.args[8]
    ledger, channel = tr.ledger, x.value.ndim - (w.value.ndim - 1)
    channels = x.value.shape[channel]
    spatial = list(range(channel + 1, x.value.ndim))
    source = _channels(tr, x, channel, spatial)
    row_dim, col_dim = (1, 0) if transposed else (0, 1)
    outs_total = call.out.shape[channel]
    per_out, per_in = outs_total // groups, channels // groups
    rows = [s for s in w.shadows if row_dim in varying(s) and col_dim not in varying(s)]
    cols = [s for s in w.shadows if col_dim in varying(s)]
    if len(w.shadows) == w.value.ndim:  # the parameter itself: shadow i belongs to axis i, also where its size is 1
        rows, cols = [w.shadows[row_dim]], [w.shadows[col_dim]]
    uses: list[MatrixUse] = []
    read: list[Tensor] = []
    result: Tensor | None = None
    if groups == 1:
        col = cols[0].narrow(row_dim, 0, 1).reshape(-1) if cols and cols[0].ndim == w.value.ndim else None
        if col is not None:
            col = col[:1] if col.numel() != channels else col
            _contract(tr, x, source, col)
            read.append(col)
            if rows:
                uses = ledger.use(cols[0], rows[0], tr.module)
        result = rows[0].reshape(-1) if rows else None
    elif per_in == 1 and not transposed and rows:
        repeated = rows[0].reshape(-1)
        if source is not None:
            ledger.union(source.repeat_interleave(per_out), repeated)
        elif channels > 1 and differs(x.value, channel):
            ledger.told_apart(repeated, [0], soft="multiplied at {where} by values in the order of the data")
        result = repeated if source is None else source.repeat_interleave(per_out)
        ledger.uncovered.setdefault(
            _source(tr, repeated), "one kernel per channel (depthwise): no weight joins two neurons"
        )
    elif rows and cols:
        full = rows[0].expand([w.value.shape[d] if d == row_dim else 1 for d in range(w.value.ndim)]).reshape(-1)
        table = cols[0].expand([w.value.shape[d] if d < 2 else 1 for d in range(w.value.ndim)]).flatten(1)
        table = table if not transposed else table.T
        if not transposed and bool((table == table[:1]).all()):
            ledger.split_groups(rows[0], groups)
        if transposed:
            for s in w.shadows:
                ledger.fix(s, "a grouped transposed convolution at {where}, which the tracer does not follow")
            if source is not None:
                ledger.fix(source, "a grouped transposed convolution at {where}, which the tracer does not follow")
            ledger.uncovered.setdefault(_source(tr, full), "grouped transposed convolution")
        else:
            for g in range(groups):
                r = table[g * per_out : (g + 1) * per_out]
                part = None if source is None else source[g * per_in : (g + 1) * per_in]
                first = r[0]
                ledger.union(r, first)
                _contract(tr, x, part, first, group=g)
                read.append(first)
                uses += ledger.use(first, full[g * per_out : (g + 1) * per_out], tr.module)
        result = full if not transposed else None
    if read:
        tr.read_by(x.value, torch.cat(read), uses, channel)
    shape = [1] * call.out.ndim
    shape[channel] = -1
    shadows = [] if result is None else [result.reshape(shape)]
    out = Traced(call.out, shadows, tainted=x.tainted or w.tainted)
    if bias is not None and shadows:
        b = Traced(bias.value.reshape(shape), [s.reshape(shape) for s in bias.shadows], tainted=bias.tainted)
        shadows = list(combine(tr, [out, b], call.out.ndim))
    t = tr.put(call, call.out, shadows)
    t.made = tuple(uses)


def _source(tr: Tracer, ids: Tensor) -> str:
    owners = tr.ledger.owner(ids)
    return tr.ledger.parts[tr.ledger.axes[int(owners[0])].part].source if len(owners) else tr.module


def _channels(tr: Tracer, x: Traced, channel: int, spatial: list[int]) -> Tensor | None:
    """Return the ids of the channels [channels]; ids that also differ over space become one per channel."""
    found = None
    for s in x.shadows:
        v = varying(s)
        if channel in v or (x.value.shape[channel] == 1 and (not v or tr.ledger.is_input(s))):
            if v & set(spatial) and not tr.ledger.is_input(s):
                tr.ledger.told_apart(s, sorted(v & set(spatial)), soft="convolved along it at {where}")
            s = tr.ledger.merge(s, [d for d in range(s.ndim) if d != channel])
            flat = s.reshape(-1)
            if found is None:
                found = flat
            else:
                tr.ledger.union(found, flat)
        elif v & set(spatial):
            tr.ledger.told_apart(s, sorted(v & set(spatial)), soft="convolved along it at {where}")
    return found


def _contract(tr: Tracer, x: Traced, source: Tensor | None, cols: Tensor, group: int = 0) -> None:
    tr.ledger.begin("aten.convolution" if group == 0 else f"aten.convolution (group {group})", tr.module)
    tr.ledger.told_apart(cols, [])
    if source is None:
        if cols.numel() > 1:
            tr.ledger.told_apart(cols, [0], soft="contracted at {where} with values in the order of the data")
            tr.ledger.flag("data", cols)
        return
    tr.ledger.union(source, cols)


@rule("_weight_norm_interface")
def weight_norm(tr: Tracer, call: Call) -> None:
    """``v * g / norm(v)``: element-wise in v and g."""
    v, g = tr.get(call.args[0]), tr.get(call.args[1])
    tr.put(call, call.out[0], combine(tr, [v, g], v.value.ndim))
    tr.put(call, call.out[1], g.shadows)
