"""The leak of a whole model under given labels: value, gradient, proximal step. No schedule (that is the loss)."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modcut._fused import DeviceLeak, FusedLeak, FusedShare
from modcut._norms import InputNorms
from modcut._terms import LiveWeight, Terms, terms_of
from modcut.graph.balance import balanced_scale
from modcut.graph.types import WeightGraph
from modcut.ops import dispatch, reference, share_rows, share_rows_grad, share_shrink_
from modcut.ops.triton_share import TritonShare


class Leak(nn.Module):
    """The contribution-share leak of a model's graph.

    Args:
        model: held weakly; its parameters are looked up at every call.
        graph: its graph.
        k: number of modules.
        edge: ``"contribution"``, ``"abs"`` or ``"square"``.
        inputs: dial of weights at inputs, see :func:`modcut._terms.terms_of`; ``None``: 0, or 1 where nothing else is.
        outputs: dial of weights at outputs; ``None``: that of inputs.
    """

    labels: Tensor

    def __init__(
        self,
        model: nn.Module,
        graph: WeightGraph,
        k: int,
        edge: str,
        inputs: float | None,
        outputs: float | None = None,
    ) -> None:
        super().__init__()
        self.graph, self.k, self.edge = graph, k, edge
        self._model = weakref.ref(model)
        self._terms, self.inputs, self.outputs = _layout(model, graph, inputs, outputs)
        double = any(w.parameter().dtype == torch.float64 for w in self._terms.weights)
        dtype = torch.float64 if double else torch.float32
        device = self._terms.weights[0].parameter().device
        self.register_buffer("labels", torch.full((graph.n,), -1, dtype=torch.int64, device=device))
        readers = (*self._terms.matrices, *self._terms.witnesses)
        self.norms = InputNorms(model, graph, readers, dtype=dtype, device=device)
        """Running mean squares of the inputs of all matrices."""
        if edge != "contribution":
            self.norms.close()
        self.labelled = False
        """Whether there are labels yet."""
        self._index: dict[str, Tensor] = {}
        self._balanced: dict[int, tuple[Tensor, Tensor]] = {}
        self._fallback: Tensor | None = None
        self._kernel: FusedShare | TritonShare | None = None
        self._known: tuple[Any, ...] | None = None  # scales and row weights, and what they were made from
        self._checked: tuple[list[int], str, tuple[Any, ...] | None] = ([], "torch", None)
        self._nonzero: Tensor | None = None  # rows that received anything at the last call
        self._ready = False  # nothing left to look up before a call: the call can be compiled as one graph
        self._age = 0  # training steps so far: how old a balanced scale may be

    def set_labels(self, labels: Tensor) -> None:
        """Use these labels, int64 [n], from now on."""
        self.labels = labels.detach().to(self.labels.device, torch.int64, copy=True)
        self.labelled = True
        self._forget()

    @property
    def model(self) -> nn.Module:
        """The model, as long as it exists elsewhere."""
        model = self._model()
        if model is None:
            raise RuntimeError("the model of this loss no longer exists")
        return model

    def leak(self) -> Tensor:
        """Return the leak itself, in [0, 1], without schedule and factor; differentiable.

        Raises:
            RuntimeError: there is no partition yet.
        """
        return self.scaled_leak(1.0)

    def scaled_leak(self, factor: float | Tensor) -> Tensor:
        """Return ``factor * leak()``: the compiled kernel multiplies on its way, autograd has nothing left to do."""
        if not self.labelled:
            raise RuntimeError("the leak needs a partition, there is none before the warm-up is over")
        weights = [w.get() for w in self._terms.weights]
        if not torch.compiler.is_compiling() and self._fusible(weights):
            function = DeviceLeak if self._choice == "triton" else FusedLeak
            if torch.is_grad_enabled() and any(w.requires_grad for w in weights):
                out: Tensor = function.apply(self, float(factor), *weights)  # type: ignore[no-untyped-call]
                return out
            if function is DeviceLeak:
                return self.device_value(float(factor))[0]
            return self.fused(float(factor), [False] * len(weights))[0]
        leak, strength = share_rows(weights, *self._arguments(weights), power=self._power)
        row_weight, dead = self._row_parts(strength)
        value = ((leak * row_weight).sum() + dead) * factor
        if not torch.compiler.is_compiling() and value.device.type == "cpu" and not bool(torch.isfinite(value)):
            self._check_weights()
        return value

    @torch.no_grad()
    def add_gradient_(self, scale: float) -> float:
        """Add ``scale`` times the gradient of the leak to every ``.grad`` in closed form; return the leak."""
        weights = [w.get() for w in self._terms.weights]
        if self._fusible(weights):
            return self._fused_add(weights, scale)
        arguments = self._arguments(weights)
        leak, strength = share_rows(weights, *arguments, power=self._power)
        omega, dead = self._row_parts(strength)
        value = float((leak * omega).sum() + dead)
        if not math.isfinite(value):
            self._check_weights()
        if scale:
            grads = share_rows_grad(omega * scale, leak, strength, weights, *arguments, power=self._power)
            for live, grad in zip(self._terms.weights, grads, strict=True):
                p = live.parameter()
                if not p.requires_grad:
                    continue
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
                if p.grad.stride() == p.stride():
                    live.view(p.grad).add_(grad)
                else:
                    whole = torch.zeros_like(p)
                    live.view(whole).copy_(grad)
                    p.grad.add_(whole)
        return value

    @torch.no_grad()
    def shrink_cross_(self, step: Mapping[int, float]) -> None:
        """Shrink cross-module weights in place by ``step * s_j / r_i``; ``step`` by ``id`` of the parameter."""
        weights = [w.get() for w in self._terms.weights]
        scales, row_labels, col_labels, k = self._arguments(weights)
        if self._fusible(weights) and not self._tied():
            self._fused_shrink(weights, step)
            return
        _, strength = share_rows(weights, scales, row_labels, col_labels, k, power=self._power)
        heights, widths = list(self._terms.heights), list(self._terms.widths)
        parts = zip(
            self._terms.weights,
            torch.split(strength, heights),
            torch.split(row_labels, heights),
            torch.split(scales, widths),
            torch.split(col_labels, widths),
            torch.split(self._dials(), heights),
            strict=True,
        )
        for live, r, row_label, scale, col_label, dial in parts:
            p = live.parameter()
            size = step.get(id(p), 0.0)
            if size and p.requires_grad:
                # A boundary class on a dial below 1 is shrunk that much less: as if its rows were stronger.
                share_shrink_(live.view(p), scale, row_label, col_label, torch.where(dial > 0, r / dial, 0.0), size)

    @torch.no_grad()
    def cross_parts(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return of every term the strengths A [rows, cols] and which entries join different modules, bool."""
        weights = [w.get() for w in self._terms.weights]
        scales, row_labels, col_labels, _ = self._arguments(weights)
        heights, widths = list(self._terms.heights), list(self._terms.widths)
        strengths, crossing = [], []
        parts = zip(
            weights,
            torch.split(scales, widths),
            torch.split(row_labels, heights),
            torch.split(col_labels, widths),
            strict=True,
        )
        for w, scale, row, col in parts:
            strengths.append(reference.strengths(w.to(scale.dtype), scale, self._power) * (col >= 0))
            crossing.append((row[:, None] != col) & (row >= 0)[:, None] & (col >= 0))
        return strengths, crossing

    def scales(self) -> dict[str, Tensor]:
        """Return the scale s_j of every column by matrix name (the latest term of each), [cols]."""
        scales = self._arguments([w.get() for w in self._terms.weights])[0]
        parts = torch.split(scales, list(self._terms.widths))
        return {m.name: part for m, part in zip(self._terms.matrices, parts, strict=True)}

    # -- compiled kernel -----------------------------------------------------------------------------------------------

    def _fusible(self, weights: list[Tensor]) -> bool:
        """Whether a one-pass kernel takes these weights; which, ``_choice`` says."""
        # What was readable stays so while it does not move: 16 small checks cost as much as 100,000 weights.
        plain = self._power == 1 and all(type(w) in (Tensor, nn.Parameter) for w in weights)
        places = [w.data_ptr() for w in weights] if plain else []
        now = (weights[0].dtype, self.labels.device, dispatch.forced())
        if not plain or places != self._checked[0] or now != self._checked[2]:
            choice = dispatch.choose(weights, self.k, self._power) if plain else "torch"
            if choice != self._choice:
                self._kernel = self._known = None
            self._checked = (places, choice, now)
        return self._choice in ("native", "triton")

    @property
    def _choice(self) -> str:
        return self._checked[1]

    def _tied(self) -> bool:
        """Whether two matrices lie in one parameter: shrinking the first would change what the second receives."""
        first: dict[int, LiveWeight] = {}
        return any(first.setdefault(id(w.parameter()), w) is not w for w in self._terms.weights)

    def _prepared(self, weights: list[Tensor]) -> tuple[Any, Tensor, Tensor, Tensor]:
        """The kernel, scales [C], row weights [R] and what dead modules count: kept while nothing moved."""
        norms = self.norms
        key = (norms.mean_square._version, norms.mass._version, weights[0].dtype)
        if self._known is not None and self._known[0] == key and self._kernel is not None:
            return self._kernel, *self._known[1:]
        scales, row_label, col_label, k = self._arguments(weights)
        dtype = torch.float64 if weights[0].dtype == torch.float64 else torch.float32
        if self._kernel is None:
            kind = TritonShare if self._choice == "triton" else FusedShare
            self._kernel = kind([w.detach() for w in weights], row_label, col_label, k)
        if self._nonzero is None or self._nonzero.shape != row_label.shape:
            self._nonzero = torch.ones(row_label.shape, dtype=torch.bool, device=row_label.device)
        row_weights, dead = self._row_parts(self._nonzero.to(dtype))
        known = (key, scales.to(dtype).contiguous(), row_weights, dead)
        # Stand-ins for norms that were not measured, and gains, follow the weights: not kept.
        self._known = known if self._ready and self.edge == "contribution" else None
        return self._kernel, *known[1:]

    def _run(
        self, weights: list[Tensor], grads: list[Tensor | None] | None, factor: float, *, accumulate: bool = False
    ) -> Tensor:
        """Run the kernel; return factor * leak. Rows that receive nothing any more, or again, show only afterwards."""
        kernel, scales, row_weights, dead = self._prepared(weights)
        value: float
        value, _, strength = kernel.run(weights, grads, scales, row_weights * factor, accumulate=accumulate)
        nonzero = strength != 0
        nonzero |= kernel.row_labels == 255
        if not torch.equal(nonzero, self._nonzero):  # type: ignore[arg-type]
            if accumulate:  # take back what was added
                kernel.run(weights, grads, scales, row_weights * -factor, accumulate=True)
            self._nonzero, self._known = nonzero, None
            return self._run(weights, grads, factor, accumulate=accumulate)
        if not math.isfinite(value):
            self._check_weights()
        return dead * factor + value

    # On a device nothing here waits for it: which rows receive nothing is never brought to the host.

    @torch.no_grad()
    def device_value(self, factor: float) -> tuple[Tensor, Tensor]:
        """Return factor * leak, and by how much each row's leak counts in it, [R]."""
        weights = [w.get().detach() for w in self._terms.weights]
        kernel, scales, row_weights, _ = self._prepared(weights)
        leak: Tensor
        _, leak, strength = kernel.run(weights, None, scales, row_weights)
        row_weights, dead = self._row_parts(strength)
        return ((leak * row_weights).sum() + dead) * factor, row_weights * factor

    @torch.no_grad()
    def device_gradients(self, row_weights: Tensor, needed: Sequence[bool]) -> list[Tensor | None]:
        """Return the gradient of the sum of row_weights * leak for each of the weights that need one."""
        weights = [w.get().detach() for w in self._terms.weights]
        grads: list[Tensor | None] = [
            torch.empty_strided(w.shape, w.stride(), dtype=w.dtype, device=w.device) if need else None
            for w, need in zip(weights, needed, strict=True)
        ]
        kernel, scales, _, _ = self._prepared(weights)
        kernel.run(weights, grads, scales, row_weights)
        return grads

    def _device_add(self, weights: list[Tensor], grads: list[Tensor | None] | None, scale: float) -> Tensor:
        """Add scale times the gradient; return the leak."""
        kernel, scales, row_weights, _ = self._prepared(weights)
        _, leak, strength = kernel.run(weights, grads, scales, row_weights * scale, accumulate=True)
        fresh, dead = self._row_parts(strength)
        if grads is not None:
            # Rows that receive nothing any more, or again, change what the others of their class count. Where none
            # did, which is nearly always, the difference is 0 everywhere and no weight is read.
            kernel.add_gradient_(weights, grads, scales, (fresh - row_weights) * scale)
        if self._known is not None:
            self._known = (*self._known[:2], fresh, dead)
        total: Tensor = (leak * fresh).sum() + dead
        return total

    @torch.no_grad()
    def fused(self, factor: float, needed: Sequence[bool]) -> tuple[Tensor, list[Tensor | None]]:
        """Return factor * leak and its gradient for each of the weights that need one."""
        weights = [w.get().detach() for w in self._terms.weights]
        grads: list[Tensor | None] = [
            torch.empty_strided(w.shape, w.stride(), dtype=w.dtype) if need else None
            for w, need in zip(weights, needed, strict=True)
        ]
        return self._run(weights, grads if any(needed) else None, factor), grads

    def _fused_add(self, weights: list[Tensor], scale: float) -> float:
        device = self._choice == "triton"
        if not scale:
            return float(self.device_value(1.0)[0] if device else self._run(weights, None, 1.0))
        grads: list[Tensor | None] = []
        for live in self._terms.weights:
            p = live.parameter()
            if not p.requires_grad:
                grads.append(None)
                continue
            grad = p.grad
            if grad is None:
                grad = p.grad = torch.zeros_like(p)
            elif grad.stride() != p.stride():
                grad = p.grad = torch.zeros_like(p).copy_(grad)
            grads.append(live.view(grad))
        if device:
            return float(self._device_add(weights, grads, scale))
        return float(self._run(weights, grads, scale, accumulate=True)) / scale

    def _fused_shrink(self, weights: list[Tensor], step: Mapping[int, float]) -> None:
        kernel, scales, row_weights, _ = self._prepared(weights)
        sizes = [step.get(id(p), 0.0) if p.requires_grad else 0.0 for p in (w.parameter() for w in self._terms.weights)]
        dials = torch.split(self._dials().to(row_weights.dtype), list(self._terms.heights))
        kernel.shrink_(weights, scales, torch.cat([d * size for d, size in zip(dials, sizes, strict=True)]))

    # -- numbers -------------------------------------------------------------------------------------------------------

    @property
    def _power(self) -> int:
        return 2 if self.edge == "square" else 1

    def _arguments(self, weights: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, int]:
        """Scales and labels as the operator wants them, on the device of the weights."""
        device = weights[0].device
        if any(w.device != device for w in weights):
            raise RuntimeError(
                f"all weights must be on one device, got {sorted({str(w.device) for w in weights})}: "
                "models spread over devices are not supported yet"
            )
        if not self._ready or self.labels.device != device:
            self._prepare()
        return self._scales(weights), self._index["row_label"], self._index["col_label"], self.k

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.inference_mode(False)
    def _prepare(self) -> None:
        """Lay out the flat vectors, and stand-ins for norms that were never measured."""
        weights = [w.get().detach() for w in self._terms.weights]
        if self.labels.device != weights[0].device:
            self.to(weights[0].device)
        if not self._index:
            t = self._terms
            extended = torch.cat([self.labels.cpu(), torch.tensor([-1])])  # vertex -1 finds label -1
            readers = (*t.matrices, *t.witnesses)
            widths = torch.tensor([m.col_vertex.numel() for m in readers])
            index = {
                "row_label": extended[t.row_vertex],
                "col_label": extended[t.col_vertex],
                "row_group": t.row_group,
                "row_vertex": t.row_vertex,
                "col_vertex": t.col_vertex,
                "group_weight": t.group_weight.to(self.norms.mass.dtype),
                "place": self.norms.place,
                "owner": self.norms.owner.repeat_interleave(widths),
                "read_vertex": torch.cat([m.col_vertex.cpu() for m in readers]),
            }
            self._index = {name: x.to(weights[0].device) for name, x in index.items()}
        self._fallback = self._balanced_scales(weights) if self.edge == "contribution" else None
        self._ready = self._fallback is None

    def _forget(self) -> None:
        self._index, self._balanced, self._fallback, self._ready = {}, {}, None, False
        self._kernel = self._known = self._nonzero = None
        self._checked = ([], "torch", None)

    @torch.no_grad()
    def _scales(self, weights: list[Tensor]) -> Tensor:
        """Return s_j of every column of every term, [C]."""
        if self.edge != "contribution":
            parts = []
            for m, w in zip(self._terms.matrices, weights, strict=True):
                gain = torch.ones(w.shape[1], device=w.device) if m.gain is None else m.gain().detach().abs()
                parts.append((gain if self.edge == "abs" else gain.square()).to(w.device, self.norms.mass.dtype))
            return torch.cat(parts)
        index = self._index
        columns = index["col_label"].numel()
        square, seen = self.norms.read(index["place"][:columns], index["owner"][:columns])
        return square.sqrt() if self._fallback is None else torch.where(seen, square.sqrt(), self._fallback)

    def _balanced_scales(self, weights: list[Tensor]) -> Tensor | None:
        """Return balanced scales for the terms whose inputs were never measured, [C]; None where all were."""
        missing = [i for i in self.norms.missing() if i < len(weights)]
        if not missing:
            return None
        parts = [torch.ones(n, dtype=self.norms.mass.dtype, device=weights[0].device) for n in self._terms.widths]
        cols = torch.split(self._terms.col_vertex, list(self._terms.widths))
        for i in missing:
            w = weights[i]
            # In training, weights move at every step and their balance slowly: it is not iterated anew each time.
            # Else by the row and column sums: writes through .data leave no trace in version counters.
            key = torch.tensor([self._age // 16]) if self._age else _sums(w)
            known = self._balanced.get(i)
            if known is None or not torch.equal(known[0], key):
                self._balanced[i] = known = (key, balanced_scale(w, cols[i]))
            parts[i] = known[1].to(parts[i])
        return torch.cat(parts)

    @torch.no_grad()
    def _row_parts(self, strength: Tensor) -> tuple[Tensor, Tensor]:
        """Return how much each row counts in the mean, [R], and how much dead modules do; together they add up to 1.

        Rows that are not live count 0. But where *all* rows that a module has in a class are dead, nothing of it is
        left to leak, and a network would look the more modular the more modules have died: those rows count as leak 1.
        """
        index = self._index
        group, label = index["row_group"], index["row_label"]
        labelled = label >= 0
        live = self._live(index) & (strength != 0)
        groups = index["group_weight"].to(strength.dtype)
        cell = group * self.k + label.clamp(min=0)
        alive = torch.zeros(groups.numel() * self.k, dtype=groups.dtype, device=cell.device)
        alive.index_add_(0, cell, live.to(groups.dtype))
        dead = labelled & (alive[cell] == 0)
        count = torch.zeros_like(groups).index_add_(0, group, (live | dead).to(groups.dtype))
        # A class without any live row (a layer that is off, or was pruned away) is no evidence of anything.
        some = torch.zeros_like(groups).index_add_(0, group, live.to(groups.dtype)) > 0
        groups = torch.where(some, groups, 0.0)
        share = groups / (count.clamp(min=1) * groups.sum().clamp(min=torch.finfo(groups.dtype).tiny))
        return torch.where(live, share[group], 0.0), torch.where(dead, share[group], 0.0).sum()

    def _row_weights(self, strength: Tensor) -> Tensor:
        return self._row_parts(strength)[0]

    def _dials(self) -> Tensor:
        """Return the dial of every row's class, [R]."""
        return self._index["group_weight"][self._index["row_group"]]

    def _live(self, index: dict[str, Tensor]) -> Tensor:
        """Return which rows' neurons are alive, bool [R]: not those whose output was observed and always 0."""
        live = index["row_label"] >= 0
        if self.edge != "contribution":
            return live
        square, seen = self.norms.read(index["place"], index["owner"])
        seen &= index["read_vertex"] >= 0
        at = torch.where(seen, index["read_vertex"], self.graph.n)  # one more place for what does not count
        read, active = torch.zeros(2, self.graph.n + 1, dtype=torch.int64, device=at.device)
        read.index_add_(0, at, seen.long())
        active.index_add_(0, at, (seen & (square > 0)).long())
        dead = (read > 0) & (active == 0)
        alive: Tensor = live & ~dead[torch.where(live, index["row_vertex"], self.graph.n)]
        return alive

    def _check_weights(self) -> None:
        for w in self._terms.weights:
            if not bool(torch.isfinite(w.parameter().detach()).all()):
                raise ValueError(f"parameter {w.name} must be finite, it holds NaN or infinity")

    def _apply(self, fn: Any, recurse: bool = True) -> Leak:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._forget()
        return self


def _sums(weight: Tensor) -> Tensor:
    """Return the sums of |W| over rows and over columns: what tells whether a weight was rescaled, [rows + cols]."""
    a = weight.detach().abs()
    return torch.cat([a.sum(tuple(range(1, a.ndim))), a.transpose(0, 1).flatten(1).sum(1)])


def _layout(
    model: nn.Module, graph: WeightGraph, inputs: float | None, outputs: float | None
) -> tuple[Terms, float, float]:
    first = 0.0 if inputs is None else float(inputs)
    last = first if outputs is None else float(outputs)
    terms = terms_of(model, graph, first, last)
    if not terms.weights and inputs is None and outputs is None:
        first = last = 1.0
        terms = terms_of(model, graph, first, last)
    if not terms.weights:
        if graph.matrices and not (first or last):
            raise ValueError(
                "inputs must be above 0 for this model: each of its weight matrices touches its inputs or outputs"
            )
        raise ValueError(
            f"model must have a weight matrix between neurons, the graph of {type(model).__name__} has none"
            + (f" (not covered: {graph.not_covered[0][0]}: {graph.not_covered[0][1]})" if graph.not_covered else "")
        )
    return terms, first, last
