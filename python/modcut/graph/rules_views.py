"""Operations that only move elements: the shadows move the same way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from modcut.graph.tracer import ALWAYS, Call, Traced, Tracer, compact, on_host, rule, tensors_in, varying

VIEWS = (
    "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "numpy_T", "slice", "select", "split",
    "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", "unsafe_chunk", "unbind", "expand",
    "squeeze", "unsqueeze", "alias", "detach", "diagonal", "unfold", "narrow", "movedim", "swapaxes", "view_as",
    "_reshape_alias", "lift_fresh", "expand_as", "tensor_split", "_reshape_copy", "positive", "real", "imag", "conj",
    "_conj", "resolve_conj", "as_strided", "resolve_neg",
)  # fmt: skip
COPIES = ("clone", "contiguous", "flip", "roll", "repeat", "rot90", "repeat_interleave", "channel_shuffle",
          "pixel_shuffle", "pixel_unshuffle", "native_channel_shuffle", "tile")  # fmt: skip
ALWAYS.update(VIEWS)


def _move(call: Call, shadow: Tensor, shape: torch.Size) -> list[Tensor]:
    full, args = shadow.expand(shape), call.args[1:]
    name, kwargs = call.name, dict(call.kwargs)
    if name in {"view", "_unsafe_view", "_reshape_alias", "_reshape_copy"}:
        out: Any = full.reshape(args[0])
    elif name in {
        "lift_fresh",
        "real",
        "conj",
        "_conj",
        "resolve_conj",
        "as_strided",
        "resolve_neg",
        "alias",
        "detach",
        "positive",
    } or name in {"clone", "contiguous"}:
        out = full
    elif name == "as_strided":
        x = call.args[0]
        same = torch.empty_strided(x.shape, x.stride(), dtype=torch.int64).copy_(full)
        offset = (call.arg(3, "storage_offset") or 0) - x.storage_offset()
        out = same.as_strided(args[0], args[1], offset) if offset >= 0 else torch.zeros(args[0], dtype=torch.int64)
    else:
        out = call.func(full, *args, **kwargs)
    return list(out) if isinstance(out, (tuple, list)) else [out]


@rule(*VIEWS, *COPIES)
def move(tr: Tracer, call: Call) -> None:
    """Apply the operation to every shadow."""
    x = tr.get(call.args[0])
    outs = list(tensors_in(call.out))
    if call.name == "view" and len(call.args) > 1 and isinstance(call.args[1], torch.dtype):
        for s in x.shadows:
            tr.ledger.fix(s, "its bits are read as another type at {where}")
        tr.put(call, outs[0], ())
        return
    moved = [_move(call, s, x.value.shape) for s in x.shadows]
    tag = None if x.tag is None else _move(call, x.tag, x.value.shape)
    for i, out in enumerate(outs):
        shadows = [m[i] for m in moved]
        t = tr.put(call, out, shadows, tainted=x.tainted)
        t.tag = None if tag is None else compact(tag[i])
        if call.name in VIEWS:
            t.parent = (x.value, call)
        _carry(x, t)


def _carry(x: Traced, t: Traced) -> None:
    """Keep "result of these maps" and the gain where the neurons still lie along the same dimension."""
    if not x.shadows or not t.shadows or len(x.shadows) != len(t.shadows):
        return
    if t.value.numel() == x.value.numel():
        t.made = x.made
    if (
        x.gain is not None
        and varying(x.shadows[0]) == {x.value.ndim - 1}
        and varying(t.shadows[0]) == {t.value.ndim - 1}
    ):
        a, b = x.shadows[0].reshape(-1), t.shadows[0].reshape(-1)
        if a.shape == b.shape and bool((a == b).all()):
            t.gain = x.gain


def _widen(shadow: Tensor, shape: torch.Size, dim: int, sizes: list[int]) -> Tensor:
    """Expand a shadow to its own full size along ``dim`` and to the given sizes elsewhere."""
    target = [shape[d] if d == dim else sizes[d] for d in range(len(shape))]
    return shadow.expand(target)


def _by_kind(part: Traced, dim: int) -> dict[tuple[frozenset[int], int], Tensor]:
    """Shadows of an operand by the dimensions they vary along, besides the joined one (axes of size 1 say nothing)."""
    some = any(varying(s) for s in part.shadows)
    out: dict[tuple[frozenset[int], int], Tensor] = {}
    for s in part.shadows:
        if varying(s) or not some:
            key = varying(s) - {dim}
            out[(key, sum(k[0] == key for k in out))] = s
    return out


@rule("cat", "concat", "stack")
def cat(tr: Tracer, call: Call) -> None:
    """Join shadows; an operand without one contributes "no id"."""
    tensors = [t for t in call.args[0] if not (t.ndim == 1 and t.numel() == 0 and call.name != "stack")]
    dim = call.arg(1, "dim", 0)
    parts = [tr.get(t) for t in tensors]
    ndim = call.out.ndim
    if call.name == "stack":
        dim %= ndim
        parts = [
            Traced(p.value.unsqueeze(dim), [s.unsqueeze(dim) for s in p.shadows], tainted=p.tainted) for p in parts
        ]
    dim %= ndim
    shadows = []
    by_kind = [_by_kind(p, dim) for p in parts]
    for kind in dict.fromkeys(k for kinds in by_kind for k in kinds):
        own = [kinds.get(kind, torch.zeros([1] * ndim, dtype=torch.int64)) for kinds in by_kind]
        sizes = [max(s.shape[d] for s in own) for d in range(ndim)]
        shadows.append(torch.cat([_widen(s, p.value.shape, dim, sizes) for s, p in zip(own, parts, strict=True)], dim))
    tags = [p.tag for p in parts]
    t = tr.put(call, call.out, shadows)
    if all(tag is not None for tag in tags) and tags:
        full = [tag.expand(p.value.shape) for tag, p in zip(tags, parts, strict=True) if tag is not None]
        t.tag = compact(torch.cat(full, dim))
    elif tags and tags[0] is not None and call.name == "cat" and tags[0].shape[dim] == 1:
        t.tag = tags[0]  # attention sinks appended to the scores


@rule("constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d")
def pad(tr: Tracer, call: Call) -> None:
    """Pad shadows with "no id" (or by the same reflection)."""
    x = tr.get(call.args[0])
    padding = list(call.args[1])
    shadows = []
    for s in x.shadows:
        if call.name != "constant_pad_nd":
            spatial = {x.value.ndim - 1 - i for i in range(len(padding) // 2)}
            shadows.append(
                s if not varying(s) & spatial else call.func(s.expand(x.value.shape).double(), padding).long()
            )
            continue
        keep: list[int] = []
        dims = set(varying(s))
        for i in range(len(padding) // 2):
            d = x.value.ndim - 1 - i
            keep += padding[2 * i : 2 * i + 2] if d in dims else [0, 0]
        shadows.append(torch.nn.functional.pad(s, keep, value=0))
    tr.put(call, call.out, shadows)


def _index_dims(x: Tensor, indices: Any) -> list[int]:
    return [d for d, i in enumerate(indices) if i is not None]


@rule("index_select", "gather", "index", "take_along_dim", "take", "masked_select", "_unsafe_index")
def pick(tr: Tracer, call: Call) -> None:
    """Pick elements by index. Picking labelled elements by data fixes them, except in a parameter: that is a lookup."""
    from modcut.graph.rules_contractions import lookup

    x = tr.get(call.args[0])
    indices = [tr.get(t) for t in tensors_in([call.args[1:], call.kwargs])]
    by_data = any(t.tainted for t in indices)
    if call.name in {"index_select", "gather", "take_along_dim"}:
        dims = {(call.arg(1, "dim", 0) or 0) % x.value.ndim}
        if call.name != "index_select":
            dims = set(range(x.value.ndim)) if by_data else dims
    elif call.name in {"index", "_unsafe_index"}:
        dims = set(_index_dims(x.value, call.args[1]))
    else:
        dims = set(range(x.value.ndim))
    if call.name in {"index", "index_select"} and not x.tainted and by_data and x.value.ndim == 2 and dims == {0}:
        lookup(tr, call, x, call.out)
        return
    shadows = []
    args, kwargs = on_host(call.args[1:]), on_host(call.kwargs)
    for s in x.shadows:
        if by_data and varying(s) & dims:
            tr.ledger.fix(s, "picked by computed indices at {where}")
        elif not x.tainted and varying(s) <= dims and call.name != "gather":
            continue  # a table read at given positions: the positions are no neurons
        shadows.append(call.func(s.expand(x.value.shape), *args, **kwargs))
    for t in indices:
        for s in t.shadows:
            tr.ledger.fix(s, "used as an index at {where}")
    t = tr.put(call, call.out, shadows)
    t.tag = None if x.tag is None else call.func(x.tag.expand(x.value.shape), *args, **kwargs)


@rule("slice_scatter", "select_scatter", "index_copy", "index_put", "_index_put_impl", "scatter", "masked_scatter")
def put_in(tr: Tracer, call: Call) -> None:
    """Write a tensor into another: so do its shadows."""
    base = tr.get(call.args[0])
    tensors = call.tensors()
    source = tr.get(
        tensors[-1] if call.name in {"index_put", "_index_put_impl", "index_copy", "scatter"} else tensors[1]
    )
    shadows = []
    functional = getattr(torch.ops.aten, call.name)
    for i in range(max(len(base.shadows), len(source.shadows))):
        b = base.shadows[i] if i < len(base.shadows) else torch.zeros([1] * base.value.ndim, dtype=torch.int64)
        s = source.shadows[i] if i < len(source.shadows) else torch.zeros([1] * source.value.ndim, dtype=torch.int64)
        full = s.expand(source.value.shape)
        args = [full if a is source.value else on_host(a) for a in call.args[1:]]
        kwargs = {k: full if v is source.value else on_host(v) for k, v in call.kwargs.items() if k != "accumulate"}
        shadows.append(
            functional(b.expand(base.value.shape).clone(), *args[: 3 if "put" in call.name else None], **kwargs)
        )
    tr.put(call, call.out, shadows)


@rule("tril", "triu")
def triangle(tr: Tracer, call: Call) -> None:
    """A mask over the last two dimensions: positions along them differ."""
    x = tr.get(call.args[0])
    last = {x.value.ndim - 1, x.value.ndim - 2}
    for s in x.shadows:
        if varying(s) & last:
            tr.ledger.told_apart(s, sorted(varying(s) & last), soft="masked by position at {where}")
    tr.put(call, call.out, x.shadows)


@rule("view_as_complex", "view_as_real")
def as_complex(tr: Tracer, call: Call) -> None:
    """Pairs of numbers as one complex number: the two are one neuron."""
    x = tr.get(call.args[0])
    if call.name == "view_as_complex":
        shadows = [tr.ledger.merge(s, [x.value.ndim - 1]).squeeze(-1) for s in x.shadows]
    else:
        shadows = [s.unsqueeze(-1) for s in x.shadows]
    tr.put(call, call.out, shadows)
