"""Step through one decision by modules: what it becomes without each of them, and where in depth they act."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modcut import _batches, _notebook
from modcut.auditing._shared import bar, footer, record, table
from modcut.auditing.ablate import Mode, ablate, check_fits, reachable, reference_of
from modcut.auditing.controls import Effect, beside_controls, random_modules
from modcut.auditing.decision import Decision, decide, repeated, scores, single
from modcut.auditing.depth import Site, depths, in_order
from modcut.graph.interventions import evaluation, sites, tap_key
from modcut.partition import Partition

# Draws of a random ablation (resample) are averaged over so many reference samples.
_DRAWS = 8


@dataclass(frozen=True)
class ModuleEffect:
    """One decision without one module. Changes are ``ablated - intact``: negative where the module supports it."""

    module: int
    units: int
    """Number of units that were replaced."""
    logit: Effect
    """Change of the answer's score, beside the changes under the random modules (two-sided)."""
    probability: Effect
    log_probability: Effect
    without: Decision
    """The decision of the model without the module."""

    @property
    def beyond_controls(self) -> bool:
        """Whether its change of log-probability is larger than under every one of the random modules."""
        e = self.log_probability
        return e.p * (1 + e.n) < 1.5

    def to_dict(self) -> dict[str, Any]:
        """Return the effect as plain values."""
        return {
            "module": self.module,
            "units": self.units,
            "logit": self.logit.to_dict(),
            "probability": self.probability.to_dict(),
            "log_probability": self.log_probability.to_dict(),
            "beyond_controls": self.beyond_controls,
            "without": self.without.to_dict(),
        }


@dataclass(frozen=True)
class Step:
    """A stretch of the forward pass, and what ablating the followed modules only there changes."""

    depth: int
    site: Site
    effects: tuple[ModuleEffect, ...]
    """Ordered by the size of the change of log-probability; modules that no tap of the site carries are left out."""

    def to_dict(self) -> dict[str, Any]:
        """Return the step as plain values."""
        effects = [e.to_dict() for e in self.effects]
        return {"depth": self.depth, "site": self.site.name, "taps": list(self.site.taps), "effects": effects}


@dataclass(frozen=True)
class Trace:
    """One decision followed through the modules; see :func:`trace`. ``print(t)`` shows it."""

    decision: Decision
    """Of the intact model."""
    modules: tuple[ModuleEffect, ...]
    """Ordered by the size of the change of log-probability."""
    steps: tuple[Step, ...]
    """In the order of the forward pass."""
    skipped: dict[int, str]
    """Modules that were not measured, and why."""
    inputs: tuple[str, ...]
    """The tokens of the input as text; empty for other inputs."""
    record: dict[str, Any]
    """How it was made: n, seed, control, ablation, model digest, versions."""
    _lab: _Lab = field(repr=False, compare=False)

    def rerun(self, without: Sequence[int] = (), mode: Mode | None = None) -> Decision:
        """Return the decision with the modules in ``without`` ablated (all at once); ``mode`` as in the trace."""
        if not without:
            return self.decision
        units = torch.cat([self._lab.units(m) for m in without])
        return self._lab.run(units, mode=mode)

    def to_dict(self) -> dict[str, Any]:
        """Return the trace as plain values."""
        return {
            "kind": "trace",
            "decision": self.decision.to_dict(),
            "modules": [m.to_dict() for m in self.modules],
            "steps": [s.to_dict() for s in self.steps],
            "skipped": {str(k): v for k, v in self.skipped.items()},
            "inputs": list(self.inputs),
            "record": self.record,
        }

    def save(self, path: str | Path) -> None:
        """Write the trace to a JSON file."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")

    def _repr_html_(self) -> str:
        """Show the decision and every module's effect beside its controls in a notebook."""
        rows = [_row(f"module {e.module} ({e.units})", e, self.decision) for e in self.modules]
        text = "".join(self.inputs[-60:])
        return _notebook.table(_HEADER, rows, caption=f"{text} → {self.decision}", note=footer(self.record))

    def __str__(self) -> str:
        parts = []
        if self.inputs:
            parts.append("input: " + "".join(self.inputs[-60:]).replace("\n", "\\n"))
        parts.append(f"answer: {self.decision}")
        parts.append("\nmodules, by what the answer loses without them (change of log-probability)")
        parts.append(table(_HEADER, [_row(f"module {e.module} ({e.units})", e, self.decision) for e in self.modules]))
        if self.steps:
            beside = f"({self.record['step_controls']} random modules)"
            parts.append(f"\nthe same in order of depth, each ablated only there {beside}")
            rows = [
                _row(f"{s.depth}. {s.site.name}: module {e.module} ({e.units})", e, self.decision)
                for s in self.steps
                for e in s.effects
            ]
            parts.append(table(_HEADER, rows))
        parts += [f"module {m} was not measured: {why}" for m, why in self.skipped.items()]
        parts.append(f"* larger than under every random module\n{footer(self.record)}")
        return "\n".join(parts)


_HEADER = ("without", "change", "random modules", "p", "probability", "logit", "answer then")


def _row(name: str, e: ModuleEffect, intact: Decision) -> tuple[str, ...]:
    c = e.log_probability
    return (
        name,
        f"{c.value:+.3f}{'*' if e.beyond_controls else ' '}",
        f"{c.control_mean:+.3f} ± {c.control_sd:.3f}",
        f"{c.p:.3f}",
        f"{intact.probability:.3f} -> {e.without.probability:.3f}",
        f"{e.logit.value:+.3f}",
        repr(e.without.top[0][1]) if e.without.changed else "same",
    )


@dataclass
class _Lab:
    """A model with one input, ready to be run without some of its units."""

    model: nn.Module
    P: Partition
    batch: _batches.Batch
    position: int
    target: int | None
    mode: Mode
    reference: Any
    seed: int
    decode: Callable[[Sequence[int]], str]
    intact: int | None = None

    def units(self, module: int) -> Tensor:
        if not 0 <= module < self.P.k:
            raise ValueError(f"without must hold module indices in [0, {self.P.k}), got {module}")
        return reachable(self.P.graph, torch.nonzero(self.P.labels == module).flatten())

    def baseline(self) -> Decision:
        with evaluation(self.model):
            decision = decide(scores(self.model, self.batch, self.position), self.target, self.decode)
        self.target, self.intact = decision.target, decision.top[0][0]
        return decision

    def run(self, units: Tensor, taps: Sequence[str] | None = None, mode: Mode | None = None) -> Decision:
        mode = self.mode if mode is None else mode
        batch = repeated(self.batch, _DRAWS if mode == "resample" else 1)
        with (
            evaluation(self.model),
            ablate(self.model, self.P, units, mode, self.reference, seed=self.seed, taps=taps),
        ):
            z = scores(self.model, batch, self.position)
        return decide(z, self.target, self.decode, self.intact)

    def effect(
        self, module: int, units: Tensor, controls: Tensor, intact: Decision, taps: Sequence[str] | None = None
    ) -> ModuleEffect:
        without = self.run(units, taps)
        others = [self.run(c, taps) for c in controls]

        def beside(name: str) -> Effect:
            base = getattr(intact, name)
            changes = [getattr(d, name) - base for d in others]
            return beside_controls(getattr(without, name) - base, changes, alternative="two-sided", seed=self.seed)

        return ModuleEffect(
            module,
            int(units.numel()),
            logit=beside("logit"),
            probability=beside("probability"),
            log_probability=beside("log_probability"),
            without=without,
        )


def _by_size(effects: Sequence[ModuleEffect]) -> tuple[ModuleEffect, ...]:
    return tuple(sorted(effects, key=lambda e: (-abs(e.log_probability.value), e.module)))


def trace(
    model: nn.Module,
    inputs: Any,
    P: Partition,
    *,
    target: int | None = None,
    position: int = -1,
    mode: Mode | None = None,
    reference: Any = None,
    controls: int = 16,
    seed: int = 0,
    tokenizer: Any = None,
    steps: int = 12,
    follow: int | None = 4,
    step_controls: int = 8,
    progress: bool = False,
) -> Trace:
    """Follow one decision through the modules of a partition, by ablation.

    For every module: what the answer's logit, probability and log-probability become without it, beside the same for
    matched random modules. Then in order of depth: what ablating a module changes if it is ablated only there. Only
    these measured changes are called effects; nothing is inferred from attribution. A decision that several modules can
    carry alone shows no effect of any single one: ``t.rerun(without=[1, 3])`` ablates several at once.

    Cost: ``modules * (1 + controls) + steps * follow * (1 + step_controls)`` forward passes of one sample.

    Args:
        model: returns scores [1, answers] or [1, time, answers]; run in evaluation mode, without gradients.
        inputs: one sample: token ids ([time], [1, time] or a list of integers), a tensor [1, ...], or a dict.
        P: the partition.
        target: index of the answer to follow; the most probable one by default.
        position: which time step's answer, where the scores have time.
        mode: ``zero``, ``mean`` or ``resample`` (averaged over 8 draws). By default ``mean`` where there is a
            reference, else ``zero``; the result says which.
        reference: data for ``mean`` and ``resample`` (the first 256 samples are used, 32 for ``resample``), or a
            ``Reference`` or ``Statistics`` collected before.
        controls: random modules per module, at least 1.
        seed: of the random modules and of the draws.
        tokenizer: anything with ``decode(list of int)``, or a function, for words in place of numbers.
        steps: at most so many stretches of depth; 0 for none.
        follow: step through the so many strongest modules; None for all.
        step_controls: random modules for each of them at every step, at least 1.
        progress: show progress on standard error.

    Raises:
        ValueError: more than one sample; ``target`` or ``position`` outside; ``mean`` or ``resample`` without
            reference; fewer than one control; a partition of another architecture; no module that can be ablated.
    """
    from modcut.reading.evidence import decoder  # heavy: scipy.stats

    if mode is None:
        mode = "zero" if reference is None else "mean"
    if mode not in ("zero", "mean", "resample"):
        raise ValueError(f"mode must be one of zero, mean, resample, got {mode!r}")
    if mode != "zero" and reference is None:
        raise ValueError(f'mode "{mode}" needs reference data: pass reference=loader (batches as for the model)')
    if steps < 0 or (follow is not None and follow < 0):
        raise ValueError(f"steps and follow must be at least 0, got {steps} and {follow}")
    if controls < 1 or (steps and step_controls < 1):
        raise ValueError(
            f"controls and step_controls must be at least 1: no effect is given without its control, got {controls} "
            f"and {step_controls}"
        )
    model = _batches.unwrap(model)
    check_fits(model, P.graph)
    decode = decoder(tokenizer)
    batch = single(inputs, _batches.device_of(model))
    lab = _Lab(model, P, batch, position, target, mode, reference, seed, decode)
    intact = lab.baseline()
    if mode != "zero":
        lab.reference = reference_of(model, P.graph, reference, resample=mode == "resample")
    units = {m: lab.units(m) for m in range(P.k)}
    skipped = {m: "none of its units can be replaced (tokens and logits only)" for m, u in units.items() if not len(u)}
    units = {m: u for m, u in units.items() if len(u)}
    if not units:
        raise ValueError("no module of P has a unit that a tap carries")
    followed = len(units) if follow is None else min(follow, len(units))
    where = depths(in_order(model, P.graph, batch), steps) if steps and followed else ()

    with bar("trace", len(units) + followed * len(where), progress) as tick:
        effects = []
        draws = {m: random_modules(P, u, max(controls, step_controls), seed=seed) for m, u in units.items()}
        for m, u in units.items():
            effects.append(lab.effect(m, u, draws[m][:controls], intact))
            tick()
        modules = _by_size(effects)
        found = []
        carriers = {m: {tap_key(s.tap) for s in sites(P.graph, u)} for m, u in units.items()}
        for depth, site in enumerate(where):
            rows_here = []
            for e in modules[:followed]:
                if carriers[e.module] & set(site.taps):
                    some = draws[e.module][:step_controls]
                    rows_here.append(lab.effect(e.module, units[e.module], some, intact, site.taps))
                tick()
            if rows_here:
                found.append(Step(depth, site, _by_size(rows_here)))
    made = record(model, n=1, controls=controls, seed=seed, ablation=mode, position=position)
    made["step_controls"] = step_controls
    x = _batches.inputs_of(batch)
    words = () if x.is_floating_point() or x.ndim != 2 else tuple(decode([int(i)]) for i in x[0])
    return Trace(intact, modules, tuple(found), skipped, words, made, lab)


__all__ = ["ModuleEffect", "Step", "Trace", "trace"]
