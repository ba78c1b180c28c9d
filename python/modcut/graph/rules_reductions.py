"""Reductions and normalisations over neurons: symmetric in them, so they stay exchangeable among themselves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from modcut.graph.rules_elementwise import combine
from modcut.graph.tracer import Call, Traced, Tracer, plan, rule, tensors_in, varying


def _dims(value: Any, ndim: int) -> list[int]:
    if value is None or (isinstance(value, (list, tuple)) and not value):
        return list(range(ndim))
    return [int(d) % ndim for d in (value if isinstance(value, (list, tuple)) else [value])] if ndim else []


def reduce(tr: Tracer, x: Traced, dims: Iterable[int], keepdim: bool) -> list[Tensor]:
    """Shadows of a symmetric reduction: ids along ``dims`` end here, together."""
    dims, out = set(dims), []
    for s in x.shadows:
        inside = varying(s) & dims
        rest = varying(s) - dims
        if inside and rest and tr.ledger.aligned(s, inside):
            s = tr.ledger.merge(s, sorted(inside))
        elif inside:
            tr.ledger.told_apart(s, sorted(rest))
            continue
        for d in sorted(dims, reverse=True):
            s = s.narrow(d, 0, 1)
            s = s if keepdim else s.squeeze(d)
        out.append(s)
    return out


@rule("sum", "mean", "amax", "amin", "prod", "logsumexp", "std", "var", "norm", "linalg_vector_norm", "all", "any",
      "count_nonzero", "nansum", "var_mean", "std_mean", "aminmax", "max", "min", "median", "_safe_norm")  # fmt: skip
def reduction(tr: Tracer, call: Call) -> None:
    """Sum, mean, maximum and their kind."""
    if call.name in {"max", "min"} and len(call.args) > 1 and isinstance(call.args[1], Tensor):
        from modcut.graph.rules_elementwise import elementwise

        elementwise(tr, call)
        return
    x = tr.get(call.args[0])
    at = 2 if call.name in {"norm", "linalg_vector_norm"} else 1
    dim = call.arg(at, "dim")
    dim = None if isinstance(dim, (bool, torch.dtype)) else dim
    dims = _dims(dim, x.value.ndim)
    outs = list(tensors_in(call.out))
    keepdim = outs[0].ndim == x.value.ndim and x.value.ndim > 0
    shadows = reduce(tr, x, dims, keepdim)
    for o in outs:
        tr.put(call, o, shadows if o is outs[0] or call.name not in {"max", "min", "median"} else ())


@rule("argmax", "argmin", "sort", "topk", "cumsum", "cumprod", "kthvalue", "argsort", "cummax", "cummin",
      "logcumsumexp", "mode", "searchsorted", "bucketize", "_fft_r2c", "_fft_c2c", "_fft_c2r")  # fmt: skip
def ordered(tr: Tracer, call: Call) -> None:
    """Operations whose result depends on the order along a dimension."""
    x = tr.get(call.args[0])
    at = 2 if call.name in {"topk", "kthvalue"} else 1
    dim = call.arg(at, "dim", -1)
    dim = -1 if dim is None or isinstance(dim, bool) else dim
    dims = set(_dims(dim, x.value.ndim))
    kept = []
    for s in x.shadows:
        if varying(s) & dims:
            tr.ledger.told_apart(s, sorted(varying(s) & dims), soft="taken in its order at {where}")
        else:
            kept.append(s)
    for o in tensors_in(call.out):
        tr.put(call, o, kept if o.ndim == x.value.ndim else ())


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax")
def softmax(tr: Tracer, call: Call) -> None:
    """Normalised over one dimension: exchangeable along it, told apart along the others."""
    x = tr.get(call.args[0])
    dim = call.arg(1, "dim", -1) % x.value.ndim
    for s in x.shadows:
        if dim in varying(s):
            tr.ledger.told_apart(s, sorted(varying(s) - {dim}))
    t = tr.put(call, call.out, x.shadows)
    t.tag = x.tag


def _affine(
    tr: Tracer, x: Traced, shadows: Sequence[Tensor], value: Tensor, constants: Sequence[Traced | None]
) -> tuple[Tensor, ...]:
    operands = [Traced(value, shadows, tainted=x.tainted), *[c for c in constants if c is not None]]
    return combine(tr, operands, value.ndim)


def _optional(tr: Tracer, value: Any) -> Traced | None:
    return tr.get(value) if isinstance(value, Tensor) else None


@rule("native_layer_norm", "layer_norm", "rms_norm", "_fused_rms_norm")
def layer_norm(tr: Tracer, call: Call) -> None:
    """Normalised over the last dimensions, then scaled and shifted element by element."""
    x = tr.get(call.args[0])
    count = len(call.args[1])
    dims = set(range(x.value.ndim - count, x.value.ndim))
    for s in x.shadows:
        if varying(s) & dims:
            tr.ledger.told_apart(s, sorted(varying(s) - dims))
    weight = _optional(tr, call.arg(2, "weight"))
    bias = _optional(tr, call.arg(3, "bias")) if "layer" in call.name else None
    outs = list(tensors_in(call.out))
    shadows = _affine(tr, x, x.shadows, outs[0], [weight, bias])
    t = tr.put(call, outs[0], shadows)
    if weight is not None and count == 1:
        value = plan(tr, weight.value)
        t.gain = lambda: value().reshape(-1)
    for o in outs[1:]:
        tr.put(call, o, ())


@rule("native_group_norm")
def group_norm(tr: Tracer, call: Call) -> None:
    """Normalised over groups of channels: each group stays together."""
    x, groups = tr.get(call.args[0]), call.args[6]
    channels = x.value.shape[1]
    for s in x.shadows:
        if 1 in varying(s):
            by_group = s.reshape([s.shape[0], groups, channels // groups, *s.shape[2:]])
            rest = [0, *range(3, by_group.ndim)] if not tr.ledger.is_input(s) else []
            tr.ledger.told_apart(by_group, [d for d in sorted({1, *rest}) if by_group.shape[d] > 1])
    constants = []
    for i in (1, 2):
        c = _optional(tr, call.args[i])
        if c is not None:
            shape = [-1] + [1] * (x.value.ndim - 2)
            c = Traced(c.value.reshape(shape), [s.reshape(shape) for s in c.shadows], tainted=c.tainted)
        constants.append(c)
    tr.put(call, call.out[0], _affine(tr, x, x.shadows, call.out[0], constants))
    for o in call.out[1:]:
        tr.put(call, o, ())


@rule("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "cudnn_batch_norm",
      "batch_norm", "_batch_norm_no_update", "_batch_norm_with_update", "miopen_batch_norm")  # fmt: skip
def batch_norm(tr: Tracer, call: Call) -> None:
    """One scale, shift, mean and variance per channel, element by element."""
    x = tr.get(call.args[0])
    shape = [-1] + [1] * (x.value.ndim - 2)
    constants, raw = [], []
    for i in range(1, 5):
        c = _optional(tr, call.args[i]) if i < len(call.args) else None
        raw.append(c)
        if c is not None:
            c = Traced(c.value.reshape(shape), [s.reshape(shape) for s in c.shadows], tainted=c.tainted)
        constants.append(c)
    outs = list(tensors_in(call.out))
    shadows = _affine(tr, x, x.shadows, outs[0], constants)
    weight, variance = raw[0], raw[3]
    numbers = [a for a in call.args[5:] if isinstance(a, float)]
    eps = numbers[-1] if numbers else 1e-5
    if x.made and variance is not None:
        w, v = None if weight is None else plan(tr, weight.value), plan(tr, variance.value)
        for use in x.made:
            use.row_gains.append(lambda: (1.0 if w is None else w()) * (v() + eps).rsqrt())
    tr.put(call, outs[0], shadows)
    for o in outs[1:]:
        tr.put(call, o, ())


@rule("max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d",
      "_adaptive_avg_pool3d", "avg_pool1d", "max_pool1d", "adaptive_max_pool2d", "max_pool2d", "adaptive_avg_pool1d",
      "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_nearest1d", "upsample_linear1d",
      "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "im2col", "upsample_nearest3d", "adaptive_avg_pool2d",
      "_upsample_nearest_exact2d", "grid_sampler_2d")  # fmt: skip
def over_space(tr: Tracer, call: Call) -> None:
    """Pooling and resampling act on space only: channels pass through."""
    x = tr.get(call.args[0])
    count = {"1": 1, "2": 2, "3": 3}[next(c for c in call.name if c in "123")] if call.name != "im2col" else 2
    spatial = set(range(x.value.ndim - count, x.value.ndim))
    outs = list(tensors_in(call.out))
    shadows = []
    for s in x.shadows:
        if varying(s) & spatial:
            if not tr.ledger.is_input(s):
                tr.ledger.told_apart(s, sorted(varying(s) & spatial), soft="pooled along it at {where}")
                continue
            s = tr.ledger.merge(s, sorted(varying(s) & spatial))
        if call.name == "im2col":  # [N, C, H, W] -> [N, C * kernel, L]
            kernel = outs[0].shape[-2] // x.value.shape[-3]
            s = s.expand(*s.shape[:-3], x.value.shape[-3], 1, 1)
            s = s.flatten(-3).repeat_interleave(kernel, -1).unsqueeze(-1)
        shadows.append(s)
    for o in outs:
        tr.put(call, o, shadows)


@rule("_cdist_forward", "_euclidean_dist")
def distance(tr: Tracer, call: Call) -> None:
    """Distances between rows: symmetric in the features, like a contraction."""
    from modcut.graph.rules_contractions import product

    a, b = tr.get(call.args[0]), tr.get(call.args[1])
    turned = Traced(b.value.transpose(-1, -2), [s.transpose(-1, -2) for s in b.shadows], tainted=b.tainted)
    shadows, _, uses = product(tr, a, turned, "mm" if a.value.ndim == 2 else "bmm")
    t = tr.put(call, call.out, shadows)
    t.made = uses
