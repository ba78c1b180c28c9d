"""From the facts of a run to spaces, matrices, blocks, axes and taps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from modcut.graph.ledger import Gain, Ledger, MatrixUse, TapUse
from modcut.graph.naming import Group, name_groups
from modcut.graph.tracer import compact, varying
from modcut.graph.types import Axis, Block, Matrix, Space, Tap, WeightGraph
from modcut.graph.views import block_view, regular_pieces

VOCABULARY_LIMIT = 1024


@dataclass(frozen=True)
class Options:
    """What :func:`modcut.weight_graph` was asked for."""

    include_inputs: bool | Literal["all"]
    include_outputs: bool | Literal["all"]
    fold_norms: bool


def classes(ledger: Ledger) -> np.ndarray:
    """Return the neuron (class) of every id, int64 [ids]."""
    n = ledger.next_id
    if not ledger.pairs:
        return np.arange(n)
    i = np.concatenate([p[0] for p in ledger.pairs])
    j = np.concatenate([p[1] for p in ledger.pairs])
    graph = sp.coo_array((np.ones(len(i), np.int8), (i, j)), shape=(n, n))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def stacks(ledger: Ledger) -> dict[str, tuple[int, int]]:
    """Return the parameters that must fall into pieces before they can be followed: name -> (axis, pieces)."""
    out: dict[str, tuple[int, int]] = {name: (0, groups) for name, groups in ledger.grouped.items()}
    if ledger.stacked:
        label = classes(ledger)
        marked = np.unique(label[np.concatenate(ledger.stacked)])
        maps = {(u.part, a) for u in ledger.uses.values() for a in (u.row_axis, u.col_axis)}
        for a in ledger.axes:
            part = ledger.parts[a.part]
            ids = np.arange(a.start, a.start + a.size)
            if part.tensor.ndim >= 2 and part.parameter and a.size > 1 and np.isin(label[ids], marked).all():
                if part.tensor.ndim == 2 and (a.part, a.axis) in maps:
                    continue
                out.setdefault(part.source, (a.axis, a.size))
    return out


def _hash(x: np.ndarray) -> np.ndarray:
    """SplitMix64: sums of these identify sets."""
    with np.errstate(over="ignore"):
        z = x.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def _unique_pairs(label: np.ndarray, facts: list[tuple[np.ndarray, np.ndarray]], keep: np.ndarray) -> np.ndarray:
    """Return the distinct (class, key) pairs of the kept classes, int64 [pairs, 2]."""
    if not facts:
        return np.zeros((0, 2), np.int64)
    ids = np.concatenate([f[0] for f in facts])
    keys = np.concatenate([f[1] for f in facts])
    c = label[ids]
    inside = keep[c]
    return np.unique(np.stack([c[inside], keys[inside]], 1), axis=0)


def _signature(pairs: np.ndarray, n: int) -> np.ndarray:
    out = np.zeros(n, np.uint64)
    if len(pairs):
        with np.errstate(over="ignore"):
            np.add.at(out, pairs[:, 0], _hash(pairs[:, 1]))
    return out


def assemble(ledger: Ledger, model: nn.Module, options: Options) -> WeightGraph:
    """Return the weight graph; its strengths are |W| with gains folded (:func:`modcut.graph.edges.with_edge`)."""
    label = classes(ledger)
    count = int(label.max()) + 1 if len(label) else 0
    wanted = np.zeros(count, bool)  # classes that end a weight
    for use in ledger.uses.values():
        for axis in (use.row_axis, use.col_axis):
            wanted[label[_range(ledger, use.part, axis)]] = True
    groups = _groups(ledger, label, wanted, count)
    groups, left_out = _choose(groups, options)
    spaces, vertex_of_class = _number(groups, count)
    vertex = vertex_of_class[label]
    vertex[0] = -1

    matrices = _matrices(ledger, vertex, options.fold_norms)
    uncovered: dict[str, str] = dict(left_out)
    blocks = _blocks(matrices, spaces, uncovered)
    axes = []
    for a in ledger.axes:
        part = ledger.parts[a.part]
        v = vertex[a.start : a.start + a.size]
        if (v >= 0).any():
            axes.append(Axis(part.name, part.tensor, a.axis, torch.from_numpy(v.copy())))
    uncovered.update(ledger.uncovered)
    _list_rest(ledger, label, uncovered)
    return WeightGraph(
        spaces=spaces,
        blocks=blocks,
        matrices=matrices,
        taps=_taps(ledger, vertex),
        axes=tuple(axes),
        not_covered=tuple(sorted(uncovered.items())),
    )


def _range(ledger: Ledger, part: int, axis: int) -> np.ndarray:
    p = ledger.parts[part]
    return np.arange(p.starts[axis], p.starts[axis] + p.tensor.shape[axis])


# spaces --------------------------------------------------------------------------------------------------------------
def _groups(ledger: Ledger, label: np.ndarray, wanted: np.ndarray, count: int) -> list[Group]:
    """Classes with the same hard facts and the same number of places on the same axes form one group."""
    hard = _signature(_unique_pairs(label, ledger.hard, wanted), count)
    ids, keys = [], []
    for i, a in enumerate(ledger.axes):
        ids.append(np.arange(a.start, a.start + a.size))
        keys.append(np.full(a.size, i))
    c = label[np.concatenate(ids)]
    places, times = np.unique(np.stack([c, np.concatenate(keys)], 1), axis=0, return_counts=True)
    inside = wanted[places[:, 0]]
    places, times = places[inside], times[inside]
    signature = hard + _signature(np.stack([places[:, 0], (times << 32) + places[:, 1] + (1 << 62)], 1), count)

    first = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(first, label, np.arange(len(label)))
    chosen = np.nonzero(wanted)[0]
    chosen = chosen[first[chosen] > 0]
    chosen = chosen[np.argsort(first[chosen], kind="stable")]
    members: dict[int, list[int]] = defaultdict(list)
    for c_ in chosen:
        members[int(signature[c_])].append(int(c_))
    soft = _unique_pairs(label, ledger.soft, wanted)
    order = np.argsort(soft[:, 0], kind="stable") if len(soft) else np.zeros(0, np.int64)
    soft = soft[order]
    out = []
    flags = {f: np.zeros(count, bool) for f in ("input", "tokens", "output", "sum", "data")}
    for f, mark in flags.items():
        mark[label[ledger.flagged(f)]] = True
    for found in members.values():
        m = np.array(found)
        out.append(
            Group(
                classes=m,
                first=int(first[m[0]]),
                flags=frozenset(f for f, mark in flags.items() if mark[m].any()),
                fixed=_reason(ledger, soft, m),
            )
        )
    name_groups(ledger, label, out)
    return out


def _reason(ledger: Ledger, soft: np.ndarray, members: np.ndarray) -> str:
    """Return why the classes of one group differ, or "" where no soft fact tells them apart."""
    starts = np.searchsorted(soft[:, 0], members, side="left")
    ends = np.searchsorted(soft[:, 0], members, side="right")
    sets = [soft[s:e, 1] for s, e in zip(starts, ends, strict=True)]
    keys = np.concatenate([np.zeros(0, np.int64), *sets])
    who = np.repeat(np.arange(len(members)), [len(s) for s in sets])
    ops = keys >> 32
    reasons: dict[str, None] = {}
    for op in np.unique(ops):  # per operation, every class must have the same set of groups
        here = ops == op
        sums = np.zeros(len(members), np.uint64)
        with np.errstate(over="ignore"):
            np.add.at(sums, who[here], _hash(keys[here]))
        reason = ledger.reasons.get(int(op), "told apart")
        # A single neuron has no order to lose, but inputs and outputs say what they are all the same.
        if bool((sums != sums[0]).any()) or (len(members) == 1 and reason.startswith("its order is")):
            reasons[reason] = None
    given = [r for r in reasons if r.startswith("its order is")]
    return "; ".join(given or list(reasons)[:3])


def _choose(groups: list[Group], options: Options) -> tuple[list[Group], dict[str, str]]:
    keep, left = [], {}
    for g in groups:
        size = len(g.classes)
        for kind, include in (("input", options.include_inputs), ("output", options.include_outputs)):
            if g.kind != kind:
                continue
            if include is False:
                left[g.name] = f"{kind}s were left out (include_{kind}s=False)"
            elif include is True and size > VOCABULARY_LIMIT and ("tokens" in g.flags or kind == "output"):
                left[g.name] = (
                    f"a vocabulary of {size} entries, more than {VOCABULARY_LIMIT}: left out "
                    f'(include_{kind}s="all" keeps it)'
                )
        if g.name not in left:
            keep.append(g)
    return keep, left


def _number(groups: list[Group], count: int) -> tuple[tuple[Space, ...], np.ndarray]:
    vertex = np.full(count, -1, np.int64)
    spaces, offset = [], 0
    for g in groups:
        spaces.append(Space(g.name, len(g.classes), g.kind, offset, g.family, g.head, g.fixed))
        vertex[g.classes] = np.arange(offset, offset + len(g.classes))
        offset += len(g.classes)
    return tuple(spaces), vertex


# maps ----------------------------------------------------------------------------------------------------------------
def _matrices(ledger: Ledger, vertex: np.ndarray, fold: bool) -> tuple[Matrix, ...]:
    out = []
    per_part: dict[int, int] = defaultdict(int)
    for use in sorted(ledger.uses.values(), key=lambda u: u.order):
        part = ledger.parts[use.part]
        rest = [d for d in range(part.tensor.ndim) if d not in (use.row_axis, use.col_axis)]
        order = (use.row_axis, use.col_axis, *rest)
        rows = torch.from_numpy(vertex[_range(ledger, use.part, use.row_axis)])
        cols = torch.from_numpy(vertex[_range(ledger, use.part, use.col_axis)])
        if not bool((rows >= 0).any() or (cols >= 0).any()):
            continue
        per_part[use.part] += 1
        suffix = "" if per_part[use.part] == 1 else f"#{per_part[use.part]}"
        gain = row_gain = None
        if fold:
            gain = _same(use, use.gains, len(cols))
            row_gain = _same(use, use.row_gains, len(rows))
        out.append(
            Matrix(
                part.name + suffix, part.tensor.permute(order), rows, cols, gain, row_gain,
                source=part.source, view=_opener(ledger, use.part, order),
            )
        )  # fmt: skip
    return tuple(out)


def _opener(ledger: Ledger, index: int, order: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    part = ledger.parts[index]
    split = ledger.splits.get(part.source)
    if split is None:
        return lambda parameter: parameter.permute(order)
    axis, groups = split
    number = sum(1 for p in ledger.parts[:index] if p.source == part.source)

    def open_piece(parameter: Tensor) -> Tensor:
        if groups == parameter.shape[axis]:
            return parameter.select(axis, number).permute(order)
        size = parameter.shape[axis] // groups
        return parameter.narrow(axis, number * size, size).permute(order)

    return open_piece


def _same(use: MatrixUse, gains: list[Gain | None], size: int) -> Gain | None:
    """Return the gain if there is one and it is the same wherever the map is used."""
    if not gains or any(g is None for g in gains):
        return None
    values = [g().reshape(-1) for g in gains if g is not None]
    if any(v.numel() != size for v in values) or any(not torch.equal(v, values[0]) for v in values[1:]):
        return None
    return gains[0]


def _blocks(matrices: tuple[Matrix, ...], spaces: tuple[Space, ...], uncovered: dict[str, str]) -> tuple[Block, ...]:
    out = []
    offsets = np.array([s.offset for s in spaces] or [0])
    for m in matrices:
        rows, cols = _per_space(m.row_vertex, spaces, offsets), _per_space(m.col_vertex, spaces, offsets)
        for r, row_index in rows:
            for c, col_index in cols:
                if row_index is None or col_index is None:
                    uncovered[f"{m.name} ({r.name} x {c.name})"] = "its neurons have different numbers of positions"
                    continue
                try:
                    row_pieces, col_pieces = regular_pieces(row_index), regular_pieces(col_index)
                except ValueError as error:  # no strided view exists
                    uncovered[f"{m.name} ({r.name} x {c.name})"] = str(error)
                    continue
                for i in row_pieces:
                    for j in col_pieces:
                        out.append(Block(r, c, block_view(m.weight, i, j), m.name, i, j, magnitude))
    return tuple(out)


class _Magnitude:
    """|W|, trailing axes summed; the tracer's graph replaces it by the folded strength."""

    def __call__(self, block: Block) -> Tensor:
        w = block.weight.detach().abs()
        if w.is_sparse:
            return w.coalesce()
        return w.flatten(2).sum(2) if w.ndim > 2 else w

    def signed(self, block: Block) -> Tensor | None:
        return block.weight if block.weight.ndim == 2 else None


magnitude = _Magnitude()


def _per_space(vertex: Tensor, spaces: tuple[Space, ...], offsets: np.ndarray) -> list[tuple[Space, Tensor | None]]:
    v = vertex.numpy()
    here = np.nonzero(v >= 0)[0]
    if not len(here):
        return []
    which = np.searchsorted(offsets, v[here], side="right") - 1
    out: list[tuple[Space, Tensor | None]] = []
    for i in np.unique(which):
        s, at = spaces[int(i)], here[which == i]
        at = at[np.lexsort((at, v[at]))]
        if len(at) % s.size or (np.bincount(v[at] - s.offset, minlength=s.size) != len(at) // s.size).any():
            out.append((s, None))
        else:
            out.append((s, torch.from_numpy(at.reshape(s.size, -1))))
    return out


# the rest ------------------------------------------------------------------------------------------------------------
def _taps(ledger: Ledger, vertex: np.ndarray) -> tuple[Tap, ...]:
    found: dict[tuple[str, str], list[Tap | None]] = defaultdict(list)
    for t in ledger.taps:
        found[(t.module, t.side)].append(_tap(t, vertex))
    out = []
    for taps in found.values():
        first = taps[0]
        if first is not None and all(
            t is not None and t.dim == first.dim and torch.equal(t.vertex, first.vertex) for t in taps
        ):
            out.append(first)
    return tuple(out)


def _tap(use: TapUse, vertex: np.ndarray) -> Tap | None:
    seen = [compact(torch.from_numpy(vertex[s.numpy()])) for s in use.shadows]
    seen = [s for s in seen if bool((s >= 0).any())]
    if len(seen) > 1:  # tokens and channels are both neurons (mixers): a linear layer writes the last dimension
        seen = [s for s in seen if varying(s) == {s.ndim - 1}]
    if len(seen) != 1 or len(varying(seen[0])) > 1:
        return None
    s = seen[0]
    dim = next(iter(varying(s)), None)
    if dim is None:  # one neuron
        dim = s.ndim - 1 if s.ndim < 4 else 1
    last = dim - s.ndim if use.dim is None else use.dim
    size = use.shadows[0].numel() if use.dim is not None else s.numel()
    return Tap(use.module, "input" if use.side == "input" else "output", last, s.reshape(-1).expand(size).clone())


def _list_rest(ledger: Ledger, label: np.ndarray, uncovered: dict[str, str]) -> None:
    """List parameters with more than one axis that are no linear map, and parameters that were never used."""
    maps = {ledger.parts[u.part].source for u in ledger.uses.values()}
    sizes = np.bincount(label)
    marked = np.zeros(len(sizes), bool)
    for facts in (ledger.hard, ledger.soft):
        for ids, _ in facts:
            marked[label[ids]] = True
    for part in ledger.parts:
        if not part.parameter or part.source in maps or part.source in uncovered:
            continue
        sides = [np.arange(s, s + n) for s, n in zip(part.starts, part.tensor.shape, strict=True)]
        ids = np.concatenate([np.zeros(0, np.int64), *sides])
        alone = len(ids) == 0 or ((sizes[label[ids]] == 1).all() and not marked[label[ids]].any())
        if part.tensor.ndim == 0:
            uncovered[part.source] = "one number: it belongs to no neuron"
        elif alone:
            uncovered[part.source] = "not used on the example inputs"
        elif part.tensor.ndim > 1:
            uncovered[part.source] = "added or multiplied element by element: it joins no two neurons"
