"""Compare two models of one architecture module by module: weights, usage, and what breaks without the module."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modcut import _batches
from modcut.auditing._shared import bar, footer, record, table
from modcut.auditing.ablate import Mode, ablate, check_fits, reachable, reference_of
from modcut.auditing.controls import Alternative, Effect, beside_controls, random_modules
from modcut.auditing.effects import Measure, measured
from modcut.auditing.weights import check_same_architecture, weight_change
from modcut.graph.interventions import evaluation
from modcut.graph.statistics import collect
from modcut.graph.types import WeightGraph
from modcut.partition import Partition
from modcut.provenance import digest

Flag = Literal["appeared", "vanished", "changed"]


def beyond(effect: Effect) -> bool:
    """Whether an effect is more extreme than that of every random module, and two of their deviations off the mean."""
    return effect.p * (1 + effect.n) < 1.5 and abs(effect.gain) > 2 * effect.control_sd


@dataclass(frozen=True)
class Function:
    """What ablating a module changes in one measure, in both models (``ablated - intact``, two-sided controls)."""

    measure: str
    harmless: Effect
    harmful: Effect
    difference: Effect
    """``harmful - harmless``, beside the same difference for the same random modules."""

    @property
    def flag(self) -> Flag | None:
        """What happened to the module's use, None where the difference is within the spread of the controls.

        ``appeared``: beyond the controls in the harmful model only; ``vanished``: in the harmless one only;
        ``changed``: in both or neither, by a difference that is beyond the controls.
        """
        if not beyond(self.difference):
            return None
        here, there = beyond(self.harmful), beyond(self.harmless)
        return "changed" if here == there else "appeared" if here else "vanished"

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values."""
        effects = {k: getattr(self, k).to_dict() for k in ("harmless", "harmful", "difference")}
        return {"measure": self.measure, **effects, "flag": self.flag}


@dataclass(frozen=True)
class ModuleChange:
    """One module in both models; every figure stands beside the same figure for matched random modules."""

    module: int
    units: int
    inside: Effect
    """Relative change of the weights between two units of the module, 0 to 2."""
    border: Effect
    """The same of the weights with one end in it (its interfaces)."""
    usage: Effect | None
    """Change of its share of all |activation x gradient| over the data (harmful - harmless); None without data."""
    activation: Effect | None
    """Mean over its units of log(rms activation in the harmful model / in the harmless one); None without data."""
    functions: tuple[Function, ...]

    @property
    def flags(self) -> tuple[str, ...]:
        """What is beyond the spread of the controls: ``weights``, ``usage``, ``appeared: loss``, ..."""
        found = ["weights"] if beyond(self.inside) and self.inside.gain > 0 else []
        found += ["border"] if beyond(self.border) and self.border.gain > 0 else []
        found += ["usage"] if self.usage is not None and beyond(self.usage) else []
        found += ["activation"] if self.activation is not None and beyond(self.activation) else []
        found += [f"{f.flag}: {f.measure}" for f in self.functions if f.flag]
        return tuple(found)

    @property
    def tests(self) -> int:
        """How many figures could have raised a flag."""
        return 2 + (self.usage is not None) + (self.activation is not None) + len(self.functions)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values."""
        effects = {k: getattr(self, k) for k in ("inside", "border", "usage", "activation")}
        return {
            "module": self.module,
            "units": self.units,
            **{k: None if e is None else e.to_dict() for k, e in effects.items()},
            "functions": [f.to_dict() for f in self.functions],
            "flags": list(self.flags),
        }


@dataclass(frozen=True)
class Comparison:
    """Two models by modules; see :func:`compare`. ``print(d)`` shows it."""

    modules: tuple[ModuleChange, ...]
    partition: Partition
    intact: dict[str, tuple[float, float]]
    """Every measure of the intact models: (harmless, harmful)."""
    total: float
    """Relative change of all weights that the graph covers."""
    record: dict[str, Any]
    """How it was made: n (windows of data), seed, control, ablation, both digests, versions."""

    @property
    def false_flags(self) -> float:
        """At most so many flags are expected by chance: the number of figures over one more than that of controls."""
        return sum(m.tests for m in self.modules) / (1 + self.modules[0].inside.n)

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain values."""
        return {
            "kind": "comparison",
            "modules": [m.to_dict() for m in self.modules],
            "intact": {k: {"harmless": a, "harmful": b} for k, (a, b) in self.intact.items()},
            "total": self.total,
            "expected_false_flags": self.false_flags,
            "record": self.record,
        }

    def save(self, path: str | Path) -> None:
        """Write the comparison to a JSON file."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")

    def __str__(self) -> str:
        parts = [f"intact models, {name}: harmless {a:.4f}, harmful {b:.4f}" for name, (a, b) in self.intact.items()]
        parts.append(f"relative change of all weights: {self.total:.4f}\n")
        if "partition" in self.record:
            parts.append(f"{self.record['partition']}\n")
        header = ("module", "inside", "border", "usage share", "flags")
        rows = [
            (
                f"{m.module} ({m.units})",
                *(_cell(e) for e in (m.inside, m.border, m.usage)),
                ", ".join(m.flags) or "none",
            )
            for m in self.modules
        ]
        parts.append(table(header, rows))
        if any(m.functions for m in self.modules):
            parts.append("\nwhat ablating a module changes, in each model (random modules in brackets)")
            lines = [
                (
                    f"{m.module}: {f.measure}",
                    *(_cell(e) for e in (f.harmless, f.harmful, f.difference)),
                    f"{f.difference.p:.3f}",
                    f.flag or "",
                )
                for m in self.modules
                for f in m.functions
            ]
            parts.append(table(("module: measure", "harmless", "harmful", "difference", "p", ""), lines))
        count = sum(len(m.flags) for m in self.modules)
        parts.append(f"{count} flags; up to {self.false_flags:.1f} are expected by chance\n{footer(self.record)}")
        return "\n".join(parts)


def _cell(e: Effect | None) -> str:
    return "" if e is None else f"{e.value:+.4f} ({e.control_mean:+.4f} ± {e.control_sd:.4f})"


def compare(
    harmless: nn.Module,
    harmful: nn.Module,
    P: Partition | None = None,
    data: _batches.Data | None = None,
    *,
    behaviours: Mapping[str, Measure] | None = None,
    loss_fn: _batches.LossFn | None = None,
    mode: Mode | None = None,
    controls: int = 32,
    seed: int = 0,
    max_batches: int = 8,
    progress: bool = False,
) -> Comparison:
    """Compare two models of one architecture module by module, each figure beside matched random modules.

    Per module: how far its weights moved, inside and at its border; its share of the usage (|activation x gradient|)
    over ``data``; what ablating it changes in the loss over ``data`` and in the behaviours, in either model. A flag is
    raised only where a figure is more extreme than that of every random module and two of their standard deviations
    off their mean; how many flags chance would raise is printed with them. Units are matched by position: the models
    must be relatives (one fine-tuned from the other, or both from a common base), or their units mean different things.

    Cost: every measure ``2 * modules * (1 + controls)`` times; the loss runs ``max_batches`` batches of every slice.

    Args:
        harmless: the model to compare with.
        harmful: the model in question.
        P: a partition of either; by default ``find_modules(harmful, data=data, seed=seed)``, with two modules where
            that finds no skills; ``record["partition"]`` then says so.
        data: batches, or labelled slices of them (the loss is then measured per slice). Without it only weights and
            behaviours are compared.
        behaviours: name -> function of the model that returns a number.
        loss_fn: ``loss_fn(model, batch)`` where the model returns no loss.
        mode: ablation: ``zero``, ``mean`` or ``resample``; by default ``mean`` with data (each model's own means over
            it), else ``zero``.
        controls: random modules per module.
        seed: of the random modules, of resample, and of the partition where none is given.
        max_batches: so many batches of every slice are used.
        progress: show progress on standard error.

    Raises:
        ValueError: another architecture (the first parameter that differs is named); a ``P`` of neither model; fewer
            than one control; ``mean`` or ``resample`` without data; a measure that is not finite.
    """
    harmless, harmful = _batches.unwrap(harmless), _batches.unwrap(harmful)
    check_same_architecture(harmless, harmful)
    if controls < 1:
        raise ValueError(f"controls must be at least 1: no figure is given without its control, got {controls}")
    if mode is None:
        mode = "zero" if data is None else "mean"
    if mode not in ("zero", "mean", "resample"):
        raise ValueError(f"mode must be one of zero, mean, resample, got {mode!r}")
    if mode != "zero" and data is None:
        raise ValueError(f'mode "{mode}" needs reference activations: pass data=')
    kept = None if data is None else _keep(data, max_batches)
    unfound = ""
    if P is None:
        from modcut.modules import find_modules  # heavy: scipy.sparse.linalg

        P = find_modules(harmful, data=kept, seed=seed, loss_fn=loss_fn)
        if P.k == 1:  # no skills found: one module would localise nothing
            unfound = str(P.meta.get("verdict", "no skills found"))
            P = find_modules(harmful, 2, data=kept, seed=seed, loss_fn=loss_fn, controls=0)
    check_fits(harmless, P.graph)
    check_fits(harmful, P.graph)

    units = {m: u for m in range(P.k) if len(u := torch.nonzero(P.labels == m).flatten())}
    drawn = {m: torch.cat([u[None], random_modules(P, u, controls, seed=seed)]) for m, u in units.items()}
    sets = torch.zeros(len(units) * (1 + controls), P.graph.n, dtype=torch.bool)
    sets.scatter_(1, _padded([row for rows in drawn.values() for row in rows]), True)
    inside, border = (x.reshape(len(units), -1).numpy() for x in weight_change(P.graph, harmless, harmful, sets))
    whole = float(weight_change(P.graph, harmless, harmful, torch.ones(1, P.graph.n, dtype=torch.bool))[0])

    used: tuple[NDArray[np.float64] | None, NDArray[np.float64] | None] = (None, None)
    windows = 0
    if kept is not None:
        used, windows = _usage(P.graph, harmless, harmful, kept, loss_fn, sets, max_batches)
    measures = {**_losses(kept, loss_fn), **(behaviours or {})}
    changes, intact = _functions((harmless, harmful), P, drawn, measures, kept, mode, seed, progress)

    def effect(values: NDArray[np.float64] | None, i: int, side: Alternative) -> Effect | None:
        if values is None:
            return None
        row = values.reshape(len(units), -1)[i]
        return beside_controls(row[0], row[1:], alternative=side, seed=seed)

    modules = []
    for i, (m, u) in enumerate(units.items()):
        functions = []
        for j, name in enumerate(measures if m in changes else ()):
            a, b = changes[m][0, :, j], changes[m][1, :, j]
            effects = (beside_controls(x[0], x[1:], alternative="two-sided", seed=seed) for x in (a, b, b - a))
            functions.append(Function(name, *effects))
        one, two = effect(inside, i, "greater"), effect(border, i, "greater")
        assert one is not None and two is not None
        usage, activation = (effect(x, i, "two-sided") for x in used)
        modules.append(ModuleChange(m, len(u), one, two, usage, activation, tuple(functions)))
    made = record(harmful, n=windows, controls=controls, seed=seed, ablation=mode, harmless=digest(harmless))
    if unfound:
        made["partition"] = f"two modules by request, places rather than skills: {unfound}"
    return Comparison(tuple(modules), P, intact, whole, made)


def _keep(data: _batches.Data, most: int) -> dict[str, list[_batches.Batch]]:
    """The first batches of every slice, in memory: they are read many times."""
    kept: dict[str, list[_batches.Batch]] = {}
    for name, batch in _batches.iterate(data, max_batches=most):
        kept.setdefault(name, []).append(batch)
    return kept


def _padded(rows: Iterable[Tensor]) -> Tensor:
    """Vertex sets of different sizes as one int64 [m, most], the last vertex repeated."""
    rows = list(rows)
    most = max(map(len, rows))
    return torch.stack([torch.cat([r, r[-1:].expand(most - len(r))]) for r in rows])


def _losses(kept: dict[str, list[_batches.Batch]] | None, loss_fn: _batches.LossFn | None) -> dict[str, Measure]:
    def loss(batches: list[_batches.Batch]) -> Measure:
        def measure(model: nn.Module) -> float:
            device = _batches.device_of(model)
            with torch.no_grad():
                values = [float(_batches.loss_of(model, _batches.to_device(b, device), loss_fn)) for b in batches]
            sizes = [_batches.batch_size(b) for b in batches]
            return float(np.average(values, weights=sizes))

        return measure

    return {f"loss {name}".strip(): loss(batches) for name, batches in (kept or {}).items()}


def _usage(
    graph: WeightGraph,
    harmless: nn.Module,
    harmful: nn.Module,
    kept: dict[str, list[_batches.Batch]],
    loss_fn: _batches.LossFn | None,
    sets: Tensor,
    most: int,
) -> tuple[tuple[NDArray[np.float64], NDArray[np.float64]], int]:
    """Change of the share of usage, and of the mean log rms activation, of every set, float64 [m] each; windows."""
    found, windows = [], 0
    for model in (harmless, harmful):
        s = collect(graph, model, kept, loss_fn, max_batches=most)
        usage = s.profile.double().mean(0)
        rms, count = torch.zeros(graph.n, dtype=torch.float64), torch.zeros(graph.n, dtype=torch.float64)
        for tap in graph.taps:
            key = f"{tap.module}:{tap.side}"
            if key in s.means:
                here = tap.vertex.cpu() >= 0
                at = tap.vertex.cpu()[here]
                rms.index_add_(0, at, (s.means[key].double().square() + s.stds[key].double().square()).cpu()[here])
                count.index_add_(0, at, torch.ones(len(at), dtype=torch.float64))
        found.append((usage / usage.sum().clamp_min(1e-300), (rms / count.clamp_min(1)).sqrt()))
        windows = s.windows
    (share, rms), (share_, rms_) = found
    member = sets.double()
    # Units that are silent in both models have no ratio; one that falls silent counts as a millionth of the mean.
    floor = 1e-6 * torch.cat([rms, rms_]).mean()
    alive = (torch.maximum(rms, rms_) > floor).double()
    ratio = torch.log(torch.maximum(rms_, floor) / torch.maximum(rms, floor)) * alive
    change = (member @ ratio) / (member @ alive).clamp_min(1)
    return ((member @ (share_ - share)).numpy(), change.numpy()), windows


def _functions(
    models: tuple[nn.Module, nn.Module],
    P: Partition,
    drawn: dict[int, Tensor],
    measures: Mapping[str, Measure],
    kept: dict[str, list[_batches.Batch]] | None,
    mode: Mode,
    seed: int,
    progress: bool,
) -> tuple[dict[int, NDArray[np.float64]], dict[str, tuple[float, float]]]:
    """``ablated - intact`` per module, float64 [model, module or control, measure]; and the intact measures."""
    if not measures:
        return {}, {}
    drawn = {m: rows for m, rows in drawn.items() if len(reachable(P.graph, rows[0]))}
    shape = (2, next(iter(drawn.values())).shape[0] if drawn else 0, len(measures))
    changes = {m: np.empty(shape) for m in drawn}
    intact = np.empty((2, len(measures)))
    names = ("harmless", "harmful")
    with bar("compare", 2 * len(drawn) * shape[1], progress) as tick:
        for i, model in enumerate(models):
            reference = None if mode == "zero" else reference_of(model, P.graph, kept, resample=mode == "resample")
            with evaluation(model):
                intact[i] = measured(model, measures, f"the intact {names[i]} model")
                for m, rows in drawn.items():
                    for j, units in enumerate(rows):
                        who = f"the {names[i]} model without {'a control of ' if j else ''}module {m}"
                        with ablate(model, P, units, mode, reference, seed=seed):
                            changes[m][i, j] = measured(model, measures, who) - intact[i]
                        tick()
    return changes, {name: (float(intact[0, j]), float(intact[1, j])) for j, name in enumerate(measures)}


__all__ = ["Comparison", "Function", "ModuleChange", "beyond", "compare"]
