"""Which modules carry a concept, and which of them the model uses for it: two questions that are never mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modcut import _batches
from modcut._files import write_json
from modcut.auditing._shared import bar, footer, record, table
from modcut.auditing.ablate import check_fits, reachable
from modcut.auditing.controls import Effect, beside_controls, random_modules
from modcut.auditing.examples import Concept, check_sides
from modcut.auditing.probe import decode
from modcut.auditing.swap import Score, SwapLab
from modcut.graph.interventions import sites
from modcut.partition import Partition

Finding = Literal["used", "used no more than random units", "decodable but not used", "neither"]
_RESAMPLES = 2000


@dataclass(frozen=True)
class ConceptScore:
    """One module and one concept: what a probe reads, and what an intervention changes; no attribution."""

    module: int
    units: int
    """Number of units that an ablation reaches."""
    decodable: Effect
    """AUROC of a linear probe on its activations, held out, beside the same with shuffled labels."""
    activity: Effect
    """The same AUROC beside that of the random modules."""
    use: Effect
    """What the concept in the module is worth to the output, beside the same of the random modules."""
    low: float
    """Lower end of the 95 % bootstrap interval of the use over examples."""
    high: float

    @property
    def beyond_controls(self) -> bool:
        """Whether the use exceeds that of every one of the random modules."""
        return self.use.p * (1 + self.use.n) < 1.5

    @property
    def finding(self) -> Finding:
        """``used``: beyond the random modules and above zero over examples; else what remains to be said."""
        if self.low > 0:
            return "used" if self.beyond_controls else "used no more than random units"
        return "decodable but not used" if self.decodable.p <= 0.05 else "neither"

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values."""
        effects = {k: getattr(self, k).to_dict() for k in ("use", "decodable", "activity")}
        return {
            "module": self.module, "units": self.units, "finding": self.finding, **effects, "low": self.low,
            "high": self.high, "beyond_controls": self.beyond_controls,
        }  # fmt: skip


@dataclass(frozen=True)
class ConceptHits:
    """One concept in all modules, largest use first; see :func:`find_concept`. ``print(hits)`` shows it."""

    name: str
    modules: tuple[ConceptScore, ...]
    skipped: dict[int, str]
    """Modules that were not measured, and why."""
    record: dict[str, Any]
    """How it was made: n (examples), seed, control, ablation, digests, versions."""

    @property
    def used(self) -> tuple[int, ...]:
        """Modules the model uses for the concept, beyond random modules of the same make-up."""
        return tuple(s.module for s in self.modules if s.finding == "used")

    @property
    def decodable_only(self) -> tuple[int, ...]:
        """Modules the concept can be read from, without evidence that the model does."""
        return tuple(s.module for s in self.modules if s.finding == "decodable but not used")

    def __getitem__(self, module: int) -> ConceptScore:
        for s in self.modules:
            if s.module == module:
                return s
        raise KeyError(f"module {module} was not measured")

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return {
            "kind": "concept", "name": self.name, "modules": [s.to_dict() for s in self.modules],
            "used": list(self.used), "decodable_only": list(self.decodable_only),
            "skipped": {str(k): v for k, v in self.skipped.items()}, "record": self.record,
        }  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write the result to a JSON file."""
        write_json(path, self.to_dict())

    def __str__(self) -> str:
        rows = [
            (
                f"module {s.module} ({s.units})",
                f"{s.use.value:+.4f} [{s.low:+.4f}, {s.high:+.4f}]",
                f"{s.use.control_mean:+.4f} ± {s.use.control_sd:.4f}",
                f"{s.use.p:.3f}",
                f"{s.decodable.value:.2f} ({s.decodable.control_mean:.2f}; p {s.decodable.p:.3f})",
                f"{s.activity.control_mean:.2f}",
                s.finding,
            )
            for s in self.modules
        ]
        header = ("", "use [95 %]", "random modules", "p", "decodable (shuffled)", "random decode", "finding")
        parts = [f"concept {self.name!r}: {self.record['n']} examples", table(header, rows)]
        parts += [f"module {m} was not measured: {why}" for m, why in self.skipped.items()]
        parts.append(
            "use: how much farther the output moves when the module is given the mean of the other side than of its own"
        )
        return "\n".join([*parts, footer(self.record)])


def find_concept(
    model: nn.Module,
    P: Partition,
    positives: Any,
    negatives: Any,
    name: str = "concept",
    *,
    tokenizer: Any = None,
    score: Score | None = None,
    controls: int = 32,
    shuffles: int = 200,
    seed: int = 0,
    modules: Sequence[int] | None = None,
    progress: bool = False,
) -> ConceptHits:
    """Find the modules that carry a concept, and say of each whether the model uses it there.

    *Decodable*: a linear probe on the module's activations (mean over positions) tells positives from negatives it was
    not fitted on, better than with shuffled labels. *Used*: the module is held at its mean over positives, then at its
    mean over negatives (means over examples that are not tested); the difference in what follows is due to the concept
    alone. Both stand beside random modules of the same make-up. A concept that can be read from a module but is not
    used there is labelled ``decodable but not used``; one carried by several modules, each of them enough, may show no
    use in any single one.

    Cost: ``modules * (1 + controls)`` times two forward passes of every example.

    Args:
        model: returns [samples, answers] or [samples, time, answers]; run in evaluation mode.
        P: its partition.
        positives: examples with the concept: texts (with ``tokenizer``), lists of token ids, or a tensor [n, ...]. At
            least 4, as for ``negatives``. Pairs that differ in the concept alone are best.
        negatives: examples without it.
        name: of the concept.
        tokenizer: anything with ``encode(text)``.
        score: outputs of a batch -> one number per sample [n]: the behaviour the concept should drive. By default the
            whole output counts (divergence in nats).
        controls: random modules per module, at least 1.
        shuffles: of the labels, for the probe.
        seed: of controls, shuffles and bootstrap.
        modules: module indices; all by default.
        progress: show progress on standard error.

    Raises:
        ValueError: one-sided or shared examples, texts without tokenizer, activations or outputs that are not finite,
            a partition of another architecture, no control.
        TypeError: an example of another kind.
    """
    concept = Concept(name, positives, negatives)
    return find_in(
        model, P, concept, tokenizer=tokenizer, score=score, controls=controls, shuffles=shuffles, seed=seed,
        modules=modules, progress=progress,
    )  # fmt: skip


def find_in(
    model: nn.Module,
    P: Partition,
    concept: Concept,
    *,
    tokenizer: Any = None,
    score: Score | None = None,
    controls: int = 32,
    shuffles: int = 200,
    seed: int = 0,
    modules: Sequence[int] | None = None,
    progress: bool = False,
) -> ConceptHits:
    """:func:`find_concept` for a :class:`Concept`."""
    check_sides(concept)
    if controls < 1 or shuffles < 19:
        raise ValueError(f"controls must be at least 1 and shuffles at least 19, got {controls} and {shuffles}")
    model = _batches.unwrap(model)
    check_fits(model, P.graph)
    units, skipped = _sets(P, modules)
    lab = SwapLab.build(model, P, concept, encoder(tokenizer), score)
    found = []
    with bar(f"concept {concept.name}", len(units) * (1 + controls), progress) as tick:
        for m, own in units.items():
            candidates = [own, *random_modules(P, own, controls, seed=seed)]
            uses = []
            for each in candidates:
                uses.append(lab.use(each))
                tick()
            found.append(_score(lab, m, candidates, uses, shuffles, seed))
    made = record(
        model, n=len(lab.samples), controls=controls, seed=seed,
        ablation="mean of the other side (interchange), from the other fold", concept=concept.digest,
        positives=int(lab.samples.positive.sum()), shuffles=shuffles,
    )  # fmt: skip
    ordered = sorted(found, key=lambda s: (-s.use.value, s.module))
    return ConceptHits(concept.name, tuple(ordered), skipped, made)


def _sets(P: Partition, modules: Sequence[int] | None) -> tuple[dict[int, Tensor], dict[int, str]]:
    """Return the reachable units of every module, and why the others are skipped."""
    sets: dict[int, Tensor] = {}
    skipped: dict[int, str] = {}
    for m in range(P.k) if modules is None else modules:
        if not 0 <= m < P.k:
            raise ValueError(f"modules must be indices in [0, {P.k}), got {m}")
        own = reachable(P.graph, torch.nonzero(P.labels == m).flatten())
        if own.numel() and sites(P.graph, own):
            sets[m] = own
        else:
            skipped[m] = "none of its units can be replaced (tokens and logits only)"
    if not sets:
        raise ValueError("no module of P has a unit that a tap carries")
    return sets, skipped


def balanced(values: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Return the mean over both sides of the mean over their examples."""
    return float((values[positive].mean() + values[~positive].mean()) / 2)


def interval(values: NDArray[np.float64], positive: NDArray[np.bool_], seed: int) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of :func:`balanced` over examples, drawn within each side."""
    rng = np.random.default_rng([seed, len(values)])
    sides = [values[positive], values[~positive]]
    means = sum(v[rng.integers(0, len(v), (_RESAMPLES, len(v)))].mean(1) for v in sides) / 2
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _score(
    lab: SwapLab,
    module: int,
    candidates: Sequence[Tensor],
    uses: Sequence[NDArray[np.float64]],
    shuffles: int,
    seed: int,
) -> ConceptScore:
    positive = lab.samples.positive
    side = positive.numpy()
    own, null = decode(lab.features(candidates[0]), positive, shuffles, seed)
    others = [decode(lab.features(c), positive)[0] for c in candidates[1:]]
    values = [balanced(u, side) for u in uses]
    low, high = interval(uses[0], side, seed)
    return ConceptScore(
        module,
        int(candidates[0].numel()),
        decodable=beside_controls(own, null, seed=seed),
        activity=beside_controls(own, others, seed=seed),
        use=beside_controls(values[0], values[1:], seed=seed),
        low=low,
        high=high,
    )


def encoder(tokenizer: Any) -> Any:
    """Return a function from text to token ids, or None without a tokenizer.

    Raises:
        TypeError: the tokenizer has no ``encode`` and cannot be called.
    """
    if tokenizer is None:
        return None
    encode = getattr(tokenizer, "encode", None)
    if callable(encode):
        return encode
    if callable(tokenizer):
        return tokenizer
    raise TypeError(f"tokenizer must have encode(text) or be callable, got {type(tokenizer).__name__}")


__all__ = ["ConceptHits", "ConceptScore", "Finding", "balanced", "encoder", "find_concept", "find_in", "interval"]
