"""What one traced run writes down about neurons: ids, which ids are one neuron, and what tells neurons apart.

Every axis of every parameter gets a contiguous range of *ids*; every element of an activation carries ids (a *shadow*,
see :mod:`modcut.graph.tracer`). While the model runs, rules note facts here. Two facts decide everything:

- ``union(a, b)``: positions ``a`` and ``b`` are the same neuron (element-wise operations, contractions).
- ``hard`` and ``soft``: in operation ``op`` an id took part as member of ``group``. Neurons that are told apart by a
  hard fact (contracted, normalised or reduced apart from each other) are in different spaces. A soft fact (met
  values that differ from position to position) leaves them in one space, whose order is then fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

Gain = Callable[[], Tensor]
NO_ID = 0


@dataclass(frozen=True)
class Part:
    """A parameter or buffer, or one of the pieces into which a stack of maps falls (groups, experts, heads)."""

    name: str
    source: str
    tensor: Tensor
    starts: tuple[int, ...]
    """First id of every axis."""
    parameter: bool = True


@dataclass(frozen=True)
class AxisRange:
    """One axis of one part: its ids are ``start .. start + size - 1``."""

    part: int
    axis: int
    start: int
    size: int


@dataclass
class MatrixUse:
    """A part that met activations in a contraction."""

    part: int
    row_axis: int
    col_axis: int
    module: str
    order: int
    gains: list[Gain | None] = field(default_factory=list)
    row_gains: list[Gain | None] = field(default_factory=list)
    lookup: bool = False
    """Its columns were chosen by indices (an embedding)."""


@dataclass(frozen=True)
class TapUse:
    """A module's input or output that carried the operand or the result of a parameter it owns."""

    module: str
    side: str
    shadows: tuple[Tensor, ...]
    dim: int | None
    """The dimension they lie along, where it is known."""


def _broadcast(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    shape = torch.broadcast_shapes(a.shape, b.shape)  # type: ignore[no-untyped-call]
    return a.expand(shape), b.expand(shape)


def _flat(t: Tensor) -> np.ndarray:
    return t.reshape(-1).numpy().astype(np.int64, copy=False)


class Ledger:
    """All facts of one run. Rules only add to it; :mod:`modcut.graph.assemble` reads it."""

    def __init__(self, model: nn.Module, splits: dict[str, tuple[int, int]]) -> None:
        self.parts: list[Part] = []
        self.axes: list[AxisRange] = []
        self.splits = splits
        self.next_id = 1
        self.op = 0
        self.where: dict[int, str] = {}
        self.reasons: dict[int, str] = {}
        self.pairs: list[tuple[np.ndarray, np.ndarray]] = []
        self.hard: list[tuple[np.ndarray, np.ndarray]] = []
        self.soft: list[tuple[np.ndarray, np.ndarray]] = []
        self.flags: dict[str, list[np.ndarray]] = {}
        self.uses: dict[tuple[int, frozenset[int]], MatrixUse] = {}
        self.taps: list[TapUse] = []
        self.tags: list[tuple[int, str]] = []
        self.tag_key: dict[tuple[int, int], int] = {}
        self.links: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"qk": [], "v": []}
        self.stacked: list[np.ndarray] = []
        self.grouped: dict[str, int] = {}
        self.uncovered: dict[str, str] = {}
        self.shadows: dict[int, tuple[Tensor, ...]] = {}
        self.known: list[Tensor] = []
        self.input_limit = 0
        self._place(model)
        self.param_limit = self.next_id
        self._starts = np.array([a.start for a in self.axes] or [0], dtype=np.int64)

    # ids ---------------------------------------------------------------------------------------------------------
    def _place(self, model: nn.Module) -> None:
        seen: dict[tuple[int, tuple[int, ...], tuple[int, ...]], tuple[Tensor, ...]] = {}
        named: list[tuple[str, Tensor, bool]] = [(n, p, True) for n, p in model.named_parameters()]
        persistent = set(model.state_dict(keep_vars=True))
        named += [(n, b, False) for n, b in model.named_buffers() if n in persistent and _is_statistic(n, b)]
        for name, tensor, is_parameter in named:
            # Two objects over one storage (weights tied by hand) are one parameter.
            key = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))
            if key not in seen or tensor.numel() == 0:
                seen[key] = self._add(name, tensor, is_parameter)
            self.known.append(tensor)
            self.shadows[id(tensor)] = seen[key]

    def _add(self, name: str, tensor: Tensor, is_parameter: bool) -> tuple[Tensor, ...]:
        live = tensor.detach()
        if name not in self.splits:
            return self._pieces(name, name, [live], is_parameter, live.shape, None)
        axis, groups = self.splits[name]
        if groups == live.shape[axis]:
            pieces = [live.select(axis, i) for i in range(groups)]
        else:
            pieces = list(torch.tensor_split(live, groups, dim=axis))
        return self._pieces(name, name, pieces, is_parameter, live.shape, axis)

    def _pieces(
        self, name: str, source: str, pieces: list[Tensor], parameter: bool, shape: torch.Size, split: int | None
    ) -> tuple[Tensor, ...]:
        ndim = len(shape)
        dropped = split is not None and pieces[0].ndim < ndim
        ids: list[list[Tensor]] = []
        for i, piece in enumerate(pieces):
            starts = []
            for axis, size in enumerate(piece.shape):
                starts.append(self.next_id)
                self.axes.append(AxisRange(len(self.parts), axis, self.next_id, size))
                self.next_id += size
            label = name if split is None else f"{name}[{i}]"
            self.parts.append(Part(label, source, piece, tuple(starts), parameter))
            ids.append([torch.arange(s, s + n) for s, n in zip(starts, piece.shape, strict=True)])
        shadows = []
        for axis in range(ndim):
            if split is None:
                shadows.append(_along(ids[0][axis], ndim, axis))
                continue
            if axis == split and dropped:
                continue
            own = axis - 1 if dropped and axis > split else axis
            if axis == split:
                shadows.append(_along(torch.cat([p[own] for p in ids]), ndim, axis))
                continue
            repeat = shape[split] // len(pieces)
            table = torch.stack([p[own] for p in ids]).repeat_interleave(repeat, 0)  # [split axis, axis]
            view = [1] * ndim
            view[split], view[axis] = shape[split], shape[axis]
            shadows.append((table if split < axis else table.T).reshape(view))
        return tuple(shadows)

    def fresh(self, count: int) -> int:
        """Reserve ``count`` ids (inputs) and return the first."""
        start, self.next_id = self.next_id, self.next_id + count
        return start

    def owner(self, ids: Tensor) -> np.ndarray:
        """Return the index into ``axes`` of every id that belongs to a parameter, unique and sorted."""
        flat = _flat(ids)
        flat = flat[(flat > NO_ID) & (flat < self.param_limit)]
        return np.unique(np.searchsorted(self._starts, flat, side="right") - 1)

    def is_input(self, shadow: Tensor) -> bool:
        """Return whether the ids of a shadow were given to the model's inputs."""
        return bool((shadow >= self.param_limit).any())

    def aligned(self, shadow: Tensor, dims: Iterable[int]) -> bool:
        """Return whether along ``dims`` neurons of different origin lie side by side, index by index.

        So it is after joining tokens of different tables (a class token before image patches): along the tokens there
        is one id per table. Not so where one axis was folded into two (heads and their channels).
        """
        if self.is_input(shadow):
            return True
        dims = set(dims)
        index = tuple(slice(None) if d in dims else 0 for d in range(shadow.ndim))
        ids = np.unique(_flat(shadow[index]))
        ids = ids[ids != NO_ID]
        return len(ids) == len(self.owner(torch.from_numpy(ids)))

    # facts -------------------------------------------------------------------------------------------------------
    def begin(self, name: str, module: str) -> None:
        """Start a new operation; facts noted from here on belong to it."""
        self.op += 1
        self.where[self.op] = f"{name} in {module}" if module else name

    def union(self, a: Tensor, b: Tensor) -> None:
        """Note that the elements of two shadows (broadcast) are the same neurons; element 0 is none."""
        a, b = _broadcast(a, b)
        x, y = _flat(a), _flat(b)
        keep = (x != NO_ID) & (y != NO_ID) & (x != y)
        if keep.any():
            pair = np.unique(np.stack([x[keep], y[keep]], 1), axis=0) if keep.sum() > 4096 else None
            self.pairs.append((x[keep], y[keep]) if pair is None else (pair[:, 0], pair[:, 1]))

    def merge(self, shadow: Tensor, dims: Iterable[int]) -> Tensor:
        """Union the ids along ``dims``; return the shadow reduced to size 1 there."""
        head = shadow
        for d in dims:
            if head.shape[d] > 1:
                self.union(head.narrow(d, 0, 1), head)
                head = head.narrow(d, 0, 1)
        return head

    def told_apart(self, shadow: Tensor, dims: Iterable[int], *, soft: str = "") -> None:
        """Note a hard fact, or a soft one with its reason: ids with different indices along ``dims`` differ."""
        group = torch.zeros([1] * shadow.ndim, dtype=torch.int64)
        for d in dims:
            group = group * shadow.shape[d] + _along(torch.arange(shadow.shape[d]), shadow.ndim, d)
        ids, groups = _broadcast(shadow, group)
        x, g = _flat(ids), _flat(groups)
        keep = x != NO_ID
        (self.soft if soft else self.hard).append((x[keep], (np.int64(self.op) << 32) | g[keep]))
        if soft:
            self.reasons.setdefault(self.op, soft.replace("{where}", self.where[self.op]))

    def fix(self, shadow: Tensor, reason: str) -> None:
        """Note that the order of all ids of a shadow is fixed."""
        x = np.unique(_flat(shadow))
        x = x[x != NO_ID]
        self.soft.append((x, (np.int64(self.op) << 32) | x))
        self.reasons.setdefault(self.op, reason.replace("{where}", self.where.get(self.op, "the model")))

    def flag(self, name: str, shadow: Tensor) -> None:
        """Mark ids: ``input``, ``tokens``, ``output``, ``sum``."""
        self.flags.setdefault(name, []).append(np.unique(_flat(shadow)))

    def flagged(self, name: str) -> np.ndarray:
        """Return all ids marked ``name``."""
        found = self.flags.get(name, [])
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def tag(self, shadow: Tensor, module: str) -> Tensor:
        """Return tags for the attention scores of the query-key ids [n, 1, K]: one per batch index, [n, 1, 1]."""
        out = torch.zeros([shadow.shape[0], 1, 1], dtype=torch.int64)
        for n in range(shadow.shape[0]):
            key = (self.op, int(shadow[n].reshape(-1)[0]))
            if key not in self.tag_key:
                self.tags.append((self.op, module))
                self.tag_key[key] = len(self.tags)
            out[n] = self.tag_key[key]
        self.link("qk", shadow, out)
        return out

    def link(self, role: str, shadow: Tensor, tags: Tensor) -> None:
        """Note that ids take part in the attention whose scores carry ``tags``."""
        ids, t = _broadcast(shadow, tags)
        pairs = np.unique(np.stack([_flat(ids), _flat(t)], 1), axis=0)
        pairs = pairs[(pairs != 0).all(1)]
        self.links[role].append((pairs[:, 0], pairs[:, 1]))

    def use(
        self, cols: Tensor, rows: Tensor, module: str, *, gain: Gain | None = None, lookup: bool = False
    ) -> list[MatrixUse]:
        """Note that the parameters that own both ``cols`` (contracted ids) and ``rows`` (kept ids) are linear maps."""
        out = []
        col_axes = {self.axes[i].part: self.axes[i] for i in self.owner(cols)}
        for i in self.owner(rows):
            row, col = self.axes[i], col_axes.get(self.axes[i].part)
            if col is None or col.axis == row.axis:
                continue
            key = (row.part, frozenset((row.axis, col.axis)))
            if key not in self.uses:
                self.uses[key] = MatrixUse(row.part, row.axis, col.axis, module, len(self.uses), lookup=lookup)
            self.uses[key].gains.append(gain)
            out.append(self.uses[key])
        return out

    def split_stack(self, *shadows: Tensor) -> None:
        """Ask for another run in which the parameters that own these ids fall into one piece per id."""
        for s in shadows:
            if not self.is_input(s):
                self.stacked.append(np.unique(_flat(s)))

    def split_groups(self, shadow: Tensor, groups: int) -> None:
        """Ask for another run in which the parameters that own these row ids fall into ``groups`` pieces."""
        for i in self.owner(shadow):
            part = self.parts[self.axes[i].part]
            if part.tensor.shape[self.axes[i].axis] % groups == 0:
                self.grouped[part.source] = groups


def _along(values: Tensor, ndim: int, axis: int) -> Tensor:
    shape = [1] * ndim
    shape[axis] = values.numel()
    return values.reshape(shape)


# Buffers that hold one number per neuron move with the neurons. Tables that the model's author computed (rotary
# frequencies, masks, position ids) do not: they are constants, and what they multiply is fixed by their values.
_STATISTICS = {"running_mean", "running_var", "weight", "bias", "scale", "mean", "var", "std", "gamma", "beta"}
# Power iteration vectors of spectral normalisation.
_STATISTICS |= {"_u", "_v", "weight_u", "weight_v"}


def _is_statistic(name: str, buffer: Tensor) -> bool:
    return buffer.ndim == 1 and buffer.is_floating_point() and name.rpartition(".")[2] in _STATISTICS
