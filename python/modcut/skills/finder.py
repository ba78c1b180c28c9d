"""Find skills without labels: kinds of window, the units each uses most, and the verdict on the pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from modcut import _batches
from modcut.clustering import functional_labels, slice_labels, unit_profiles
from modcut.graph.edges import shuffled
from modcut.graph.statistics import Statistics
from modcut.graph.types import WeightGraph
from modcut.graph.units import CLUSTERED, units_of
from modcut.partition import Partition
from modcut.skills.evidence import Evidence, Kept, held_out_windows, judge
from modcut.skills.kinds import FEWEST, STRONG, window_kinds


@dataclass(frozen=True, eq=False)
class Found:
    """Labels, and why."""

    labels: Tensor
    """int64 [n]; all 0 where k = 1."""
    k: int
    evidence: Evidence
    meta: dict[str, Any]


def find(
    graph: WeightGraph,
    statistics: Statistics,
    k: int | Literal["auto"],
    *,
    model: nn.Module | None = None,
    kept: Kept | None = None,
    loss_fn: _batches.LossFn | None = None,
    controls: int = 19,
    max_k: int = 8,
    seed: int = 0,
    input_mean_square: Mapping[str, Tensor] | None = None,
) -> Found:
    """Find pairs (module i, kind of window i); arguments as :func:`modcut.find_modules`.

    Kinds and modules come from all windows but those held out; pairs are then tested on the latter. With "auto", what
    fails the test is not returned: k = 1. With a number of kinds that the data do not support, modules are clusters of
    units by usage, and the evidence says that they are no skills.
    """
    profile = statistics.profile
    z = unit_profiles(graph, profile)
    windows = z.shape[0]
    held = torch.zeros(windows, dtype=torch.bool)
    if kept is not None and model is not None and k != 1 and windows >= 3 * FEWEST // 2:
        held = held_out_windows(windows, kept.count)
    largest = max(int((units_of(graph).family == f).sum()) for f in _clustered_families(graph))
    if k == "auto":
        kinds = window_kinds(z[~held], max_k=min(max_k, largest), seed=seed)
        chosen = "prediction strength"
    else:
        # Raises where k is out of range, before anything is computed in vain.
        labels = functional_labels(graph, profile, k, seed, input_mean_square=input_mean_square)
        kinds = window_kinds(z[~held], k=min(k, int((~held).sum())), seed=seed)
        chosen = "caller"
    mixed = shuffled(statistics, seed, graph).profile[~held]
    null = window_kinds(unit_profiles(graph, mixed), k=None, max_k=max(kinds.k, 2), seed=seed)
    meta: dict[str, Any] = {
        "k_chosen_by": chosen,
        "spectrum": kinds.spectrum,
        "null_spectrum": null.spectrum[: len(kinds.spectrum)],
        "control": "usage shuffled over windows (null); random partitions of the same make-up",
    }
    strong = kinds.k > 1 and (k == "auto" or kinds.strength.get(kinds.k, 0.0) >= STRONG)
    if strong and int(torch.bincount(kinds.label, minlength=kinds.k).min()) >= 2:
        labels = slice_labels(graph, profile[~held], kinds.label, input_mean_square=input_mean_square)
        P = Partition(labels, graph, kinds.k)
        every = kinds.of(z)
        tested = None
        if kept is not None and bool(held.any()):
            tested = {f"kind {c}": kept.select(held & (every == c)) for c in range(kinds.k)}
        evidence = judge(
            model, P, kinds, profile[~held], null=null, held=tested, loss_fn=loss_fn, controls=controls, seed=seed
        )
        meta |= {"finder": "kinds of window", "windows": every.tolist(), "typical": kinds.typical(z)}
    else:
        reason = kinds.reason
        if kinds.k > 1:
            strength = kinds.strength.get(kinds.k)
            told = "unknown (too few windows)" if strength is None else f"{strength:.2f}"
            reason = f"{kinds.k} kinds of window were asked for, their prediction strength is {told}"
        evidence = Evidence(False, (reason,), kinds.to_dict(), null.to_dict())
        meta["finder"] = "clusters of units by usage"
    if k == "auto" and not evidence.found:
        labels = torch.zeros(graph.n, dtype=torch.int64)
    meta |= {
        "evidence": evidence.to_dict(),
        "verdict": f"{kinds.k} skills found" if evidence.found else "no skills found: " + "; ".join(evidence.against),
    }
    return Found(labels, (kinds.k if evidence.found else 1) if k == "auto" else k, evidence, meta)


def _clustered_families(graph: WeightGraph) -> list[int]:
    found = [i for i, kind in enumerate(units_of(graph).kinds) if kind in CLUSTERED]
    if not found:
        raise ValueError("the graph must have hidden units or attention heads to be partitioned, got none")
    return found
