"""What behaviours lose when a module is off, beside matched random modules: selectivity and gain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modcut import _batches
from modcut.auditing._shared import bar, footer, record, table
from modcut.auditing.ablate import Mode, ablate, check_fits, reachable, reference_of
from modcut.auditing.controls import Effect, beside_controls, random_modules
from modcut.graph.interventions import evaluation
from modcut.partition import Partition

Measure = Callable[[nn.Module], float]
_PLAIN = ("module", "units", "behaviour", "mode", "baseline", "ablated", "removed")
_HEADER = [
    "module",
    "behaviour",
    "mode",
    "intact",
    "without",
    "drop",
    "random drop",
    "selectivity",
    "gain [95 %]",
    "p",
    "removed",
]


@dataclass(frozen=True)
class EffectRow:
    """One behaviour without one module."""

    module: int
    units: int
    """Number of units that were replaced."""
    behaviour: str
    mode: str
    baseline: float
    """The measure of the intact model."""
    ablated: float
    """The measure without the module."""
    drop: Effect
    """``baseline - ablated``, beside the drops of the random modules."""
    selectivity: Effect
    """The drop minus the mean drop of the other behaviours; its ``gain`` is the **gain** over random modules."""
    removed: bool | None
    """Removal success: the behaviour fell below 10 % of its rate and no other behaviour lost 0.02; None with one."""

    @property
    def gain(self) -> float:
        """Selectivity minus its mean over the random modules."""
        return self.selectivity.gain


@dataclass(frozen=True)
class EffectTable:
    """Rows per module, behaviour and ablation mode; see :func:`effect_table`."""

    rows: tuple[EffectRow, ...]
    skipped: dict[int, str]
    """Modules that were not measured, and why."""
    record: dict[str, Any]
    """How it was made: n (random modules per module), seed, control, ablation, model digest, versions."""

    def row(self, module: int, behaviour: str, mode: str | None = None) -> EffectRow:
        """Return the row of a module and a behaviour: in ``mode``, or in the mode with the smallest gain."""
        found = [
            r for r in self.rows if r.module == module and r.behaviour == behaviour and (mode is None or r.mode == mode)
        ]
        if not found:
            raise KeyError(f"no row for module {module}, behaviour {behaviour!r}, mode {mode!r}")
        return min(found, key=lambda r: r.gain)

    @property
    def worst(self) -> tuple[EffectRow, ...]:
        """Per module and behaviour the row of the mode with the smallest gain: the figure to quote."""
        keys = dict.fromkeys((r.module, r.behaviour) for r in self.rows)
        return tuple(self.row(*key) for key in keys)

    def best(self, behaviour: str) -> EffectRow:
        """Return, for one behaviour, the module with the largest gain under its worst mode.

        It is the best of all modules, so its p-value has to be corrected for their number.
        """
        found = [r for r in self.worst if r.behaviour == behaviour]
        if not found:
            raise KeyError(f"no row for behaviour {behaviour!r}")
        return max(found, key=lambda r: r.gain)

    def to_dict(self) -> dict[str, Any]:
        """Return the table as plain values."""
        rows = [
            {
                **{
                    k: getattr(r, k) for k in ("module", "units", "behaviour", "mode", "baseline", "ablated", "removed")
                },
                "drop": r.drop.to_dict(),
                "selectivity": r.selectivity.to_dict(),
                "gain": r.gain,
            }
            for r in self.rows
        ]
        skipped = {str(k): v for k, v in self.skipped.items()}
        return {"kind": "effect_table", "rows": rows, "skipped": skipped, "record": self.record}

    def __str__(self) -> str:
        rows = [
            (
                f"{r.module} ({r.units})",
                r.behaviour,
                r.mode,
                f"{r.baseline:.3f}",
                f"{r.ablated:.3f}",
                f"{r.drop.value:+.3f}",
                f"{r.drop.control_mean:+.3f} ± {r.drop.control_sd:.3f}",
                f"{r.selectivity.value:+.3f}",
                f"{r.gain:+.3f} [{r.selectivity.low:+.3f}, {r.selectivity.high:+.3f}]",
                f"{r.selectivity.p:.3f}",
                {True: "yes", False: "no", None: ""}[r.removed],
            )
            for r in self.rows
        ]
        notes = "".join(f"module {m} was not measured: {why}\n" for m, why in self.skipped.items())
        return f"{table(_HEADER, rows)}\n{notes}{footer(self.record)}"


def effect_table(
    model: nn.Module,
    P: Partition,
    measures: Mapping[str, Measure],
    mode: Mode | Sequence[Mode] = "zero",
    reference: Any = None,
    controls: int = 200,
    seed: int = 0,
    *,
    modules: Sequence[int] | None = None,
    progress: bool = False,
) -> EffectTable:
    """Measure behaviours with each module off, and with matched random modules off.

    With the drop ``d_b = intact - ablated`` of behaviour ``b``, the selectivity of a module for ``b`` is ``d_b`` minus
    the mean of the other drops, and its gain is that minus the mean selectivity of the random modules. The measures are
    rates (higher = more of the behaviour, 0 to 1), because drops in different units do not subtract: give a capability
    as an accuracy, not as a loss. Cost: modules x modes x (1 + controls) calls of every measure.

    Args:
        model: the model; in evaluation mode while it is measured.
        P: its partition.
        measures: name -> function of the model that returns a rate; it may run any number of batches.
        mode: an ablation mode, or several: results swing with the choice, so quote ``.worst``.
        reference: data for ``mean`` and ``resample``, as in :func:`modcut.ablate` (the first 256 samples are used, 32
            where ``resample`` is among the modes).
        controls: random modules per module.
        seed: of the random modules and of the draws of ``resample``.
        modules: module indices; all by default.
        progress: show progress on standard error.

    Raises:
        ValueError: no measure, a measure that is not finite, no control, or what :func:`modcut.ablate` refuses.
    """
    if not measures:
        raise ValueError("measures must hold at least one function of the model, got none")
    modes: tuple[Any, ...] = (mode,) if isinstance(mode, str) else tuple(mode)
    if not modes:
        raise ValueError("mode must name at least one ablation mode, got none")
    wanted = range(P.k) if modules is None else modules
    model = _batches.unwrap(model)
    check_fits(model, P.graph)
    sets: dict[int, list[Tensor]] = {}
    skipped: dict[int, str] = {}
    for m in wanted:
        units = reachable(P.graph, torch.nonzero(P.labels == m).flatten())
        if units.numel():
            sets[m] = [units, *random_modules(P, units, controls, seed=seed)]
        else:
            skipped[m] = "none of its units can be replaced (tokens and logits only)"
    for each in modes:  # refuse before the long loop
        for units in [s[0] for s in sets.values()][:1]:
            ablate(model, P, units, each, reference)
    if set(modes) & {"mean", "resample", "noise"}:
        reference = reference_of(model, P.graph, reference, resample="resample" in modes)
    rows: list[EffectRow] = []
    total = 1 + len(modes) * sum(map(len, sets.values()))
    with evaluation(model), bar("effects", total, progress) as tick:
        baseline = measured(model, measures, "the intact model")
        tick()
        for m, candidates in sets.items():
            for each in modes:
                drops = np.empty((len(candidates), len(measures)))
                for j, units in enumerate(candidates):
                    with ablate(model, P, units, each, reference, seed=seed):
                        who = (
                            f"the model without module {m}" if j == 0 else f"the model without a control of module {m}"
                        )
                        drops[j] = baseline - measured(model, measures, who)
                    tick()
                rows += _rows(m, candidates[0].numel(), each, list(measures), baseline, drops, seed)
    made = record(model, n=controls, controls=controls, seed=seed, ablation=", ".join(modes))
    return EffectTable(tuple(rows), skipped, made)


def measured(model: nn.Module, measures: Mapping[str, Measure], who: str) -> NDArray[np.float64]:
    """Return every measure of a model, float64 [measures]; ValueError, naming it, where one is not finite."""
    values = {name: float(measure(model)) for name, measure in measures.items()}
    for name, value in values.items():
        if not np.isfinite(value):
            raise ValueError(f"measures must be finite, but {name!r} of {who} is {value}")
    return np.array(list(values.values()))


def selectivity(drops: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the drop of each behaviour minus the mean drop of the others, [..., behaviours] -> the same shape."""
    b = drops.shape[-1]
    others = (drops.sum(-1, keepdims=True) - drops) / (b - 1) if b > 1 else np.zeros_like(drops)
    return drops - others


def _rows(
    module: int,
    units: int,
    mode: str,
    names: list[str],
    baseline: NDArray[np.float64],
    drops: NDArray[np.float64],
    seed: int,
) -> list[EffectRow]:
    chosen = selectivity(drops)
    rows = []
    for i, name in enumerate(names):
        ablated = float(baseline[i] - drops[0, i])
        removed = None
        if len(names) > 1:
            lost = float(np.delete(drops[0], i).max())
            removed = bool(baseline[i] > 0 and ablated < 0.1 * baseline[i] and lost < 0.02)
        rows.append(
            EffectRow(
                module=module,
                units=units,
                behaviour=name,
                mode=mode,
                baseline=float(baseline[i]),
                ablated=ablated,
                drop=beside_controls(drops[0, i], drops[1:, i], seed=seed),
                selectivity=beside_controls(chosen[0, i], chosen[1:, i], seed=seed),
                removed=removed,
            )
        )
    return rows


__all__ = ["EffectRow", "EffectTable", "Measure", "effect_table", "measured", "selectivity"]
