"""What depends on which module: damage by ablation per slice of the data, beside random partitions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modcut import _batches, provenance
from modcut.controls import matched_labels
from modcut.graph import interventions
from modcut.graph.units import CLUSTERED
from modcut.partition import Partition


@dataclass(frozen=True)
class Specialisation:
    """How differently the slices of the data depend on the modules, beside random partitions of the same make-up."""

    tv: float
    """Half the L1 distance between two slices' damage shares (mean over pairs): 0 = same modules, 1 = disjoint."""
    random_tv: tuple[float, ...]
    """The same for random partitions: the control."""
    damage: dict[str, tuple[float, ...]]
    """Loss increase of each slice when each module is ablated."""
    base_loss: dict[str, float]
    ablation: str
    seed: int
    n: int
    k: int
    model: str = ""
    """Digest of the model."""
    own: float = math.nan
    """Mean share of a slice's damage that module i does to slice i, where modules and slices are paired in order."""
    random_own: tuple[float, ...] = ()
    """The same for the random partitions."""

    @property
    def random_mean(self) -> float:
        """Mean of the control, over the random partitions that have shares (nan where none has)."""
        known = [r for r in self.random_tv if not math.isnan(r)]
        return sum(known) / len(known) if known else math.nan

    @property
    def p(self) -> float:
        """One-sided rank p-value, (1 + random partitions at least as high) / (1 + random partitions)."""
        # A partition without shares (nan) never counts as worse.
        return (1 + sum(not r < self.tv for r in self.random_tv)) / (1 + len(self.random_tv))

    @property
    def p_own(self) -> float:
        """The same for the shares of paired modules: sharper than TV, which also rises where the wrong pairs stand."""
        return (1 + sum(not r < self.own for r in self.random_own)) / (1 + len(self.random_own))

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return {
            "tv": _number(self.tv),
            "random_tv": [_number(r) for r in self.random_tv],
            "random_mean": _number(self.random_mean),
            "p": self.p,
            "own": _number(self.own),
            "random_own": [_number(r) for r in self.random_own],
            "p_own": self.p_own,
            "damage": {name: list(d) for name, d in self.damage.items()},
            "base_loss": self.base_loss,
            "ablation": self.ablation,
            "seed": self.seed,
            "n": self.n,
            "k": self.k,
            "control": f"{len(self.random_tv)} random partitions of the same make-up",
            "model": self.model,
            "stamp": provenance.stamp(),
        }


def _number(x: float) -> float | None:
    """JSON has no nan."""
    return None if math.isnan(x) else x


def specialisation(
    model: nn.Module,
    P: Partition,
    slices: Mapping[str, Any],
    loss_fn: _batches.LossFn | None = None,
    *,
    random: int = 20,
    mode: interventions.Mode = "zero",
    reference: Any = None,
    max_loss: float | Mapping[str, float] | None = None,
    max_batches: int | None = None,
    modules: int | None = None,
    seed: int = 0,
) -> Specialisation:
    """Ablate each module's units and compare which modules each slice of the data needs.

    Units are hidden neurons, channels and attention heads (residual channels carry everything and are left alone).
    Costs (1 + random) x k + 1 evaluations of all slices.

    Args:
        model: The model that ``P.graph`` was traced from.
        P: The partition.
        slices: Two or more named iterables of batches.
        loss_fn: ``loss_fn(model, batch) -> scalar``.
        random: Number of random partitions (same number of units in every space and module).
        mode: How to ablate, see :func:`modcut.graph.interventions.replace`.
        reference: For mean and resample ablation.
        max_loss: Loss below which a slice counts as learned (one number, or one per slice).
        max_batches: Use at most so many batches of each slice.
        modules: Ablate only the first so many modules; the units of the others are left alone (default all).
        seed: Seed of the random partitions.

    Raises:
        ValueError: fewer than two slices, a random count below 1.
        RuntimeError: a slice is not learned (``max_loss``): what it uses would be noise.
    """
    model = _batches.unwrap(model)
    if len(slices) < 2:
        raise ValueError(f"slices must name at least 2 parts of the data, got {len(slices)}")
    if random < 1:
        raise ValueError(f"random must be at least 1 (no score without its control), got {random}")
    count = P.k if modules is None else modules
    if not 1 <= count <= P.k:
        raise ValueError(f"modules must be between 1 and the partition's {P.k}, got {count}")
    device = _batches.device_of(model)
    batches = {
        name: [_batches.to_device(b, device) for _, b in _batches.iterate(part, max_batches=max_batches)]
        for name, part in slices.items()
    }
    if mode in ("mean", "resample", "noise") and reference is not None and not hasattr(reference, "means"):
        reference = interventions.collect_reference(model, P.graph, reference, keep_samples=mode == "resample")
    causal = interventions.read_vertices(P.graph)
    for s in P.graph.spaces:
        if s.kind not in CLUSTERED:
            causal[s.vertices] = False

    def losses() -> dict[str, float]:
        with torch.no_grad(), interventions.evaluation(model):
            return {
                name: sum(float(_batches.loss_of(model, b, loss_fn)) * _batches.batch_size(b) for b in part)
                / sum(_batches.batch_size(b) for b in part)
                for name, part in batches.items()
            }

    base = losses()
    for name, loss in base.items():
        limit = max_loss.get(name) if isinstance(max_loss, Mapping) else max_loss
        if limit is not None and not loss <= limit:
            raise RuntimeError(
                f"slice {name!r} must be learned before its specialisation means anything: "
                f"loss {loss:.4g}, max_loss {limit:.4g}"
            )

    def damage(labels: Tensor) -> dict[str, list[float]]:
        out: dict[str, list[float]] = {name: [] for name in batches}
        for c in range(count):
            with interventions.replace(
                model, P.graph, causal & (labels == c), mode, reference=reference, scale=1.0 if mode == "noise" else 0.0
            ):
                for name, loss in losses().items():
                    out[name].append(loss - base[name])
        return out

    own = damage(P.labels)
    generator = torch.Generator().manual_seed(seed)
    drawn = [damage(matched_labels(P.graph, P.labels, generator)) for _ in range(random)]
    return Specialisation(
        _tv(own),
        tuple(_tv(d) for d in drawn),
        {name: tuple(d) for name, d in own.items()},
        base,
        mode,
        seed,
        P.graph.n,
        count,
        provenance.digest(model),
        _own(own),
        tuple(_own(d) for d in drawn),
    )


def _shares(damage: Mapping[str, Sequence[float]]) -> list[Tensor] | None:
    """Return each slice's damage as shares of the modules; None where no ablation hurts a slice."""
    shares = []
    for d in damage.values():
        hurt = torch.tensor(list(d), dtype=torch.float64).clamp_min(0)
        if float(hurt.sum()) <= 0:
            return None
        shares.append(hurt / hurt.sum())
    return shares


def _tv(damage: Mapping[str, Sequence[float]]) -> float:
    shares = _shares(damage)
    if shares is None:
        return math.nan
    pairs = [(a, b) for i, a in enumerate(shares) for b in shares[i + 1 :]]
    return float(torch.stack([(a - b).abs().sum() / 2 for a, b in pairs]).mean())


def _own(damage: Mapping[str, Sequence[float]]) -> float:
    shares = _shares(damage)
    if shares is None or len(shares) != len(shares[0]):
        return math.nan  # as many modules as slices, or they are not paired
    return float(torch.stack([share[i] for i, share in enumerate(shares)]).mean())
