"""Find modules: labels for every vertex, from what units do on data (functional) or from the weights alone (spectral).

Both cluster *units* (neurons, channels, whole heads) and are balanced inside every family: an unbalanced cut wins by
putting whole layers into one module (depth cuts), which says nothing. Nothing here is ever n x n.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modcut._affinity import Affinity, balance_family, follow, one_hot, refine, signed, stratified
from modcut._kmeans import balanced_kmeans
from modcut.graph.edges import usage
from modcut.graph.types import WeightGraph
from modcut.graph.units import CLUSTERED, Units, units_of

Array = NDArray[np.float64]


def functional_labels(
    graph: WeightGraph,
    profile: Tensor,
    k: int,
    seed: int = 0,
    *,
    input_mean_square: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Partition by function: units that are used in the same windows belong together.

    Hidden neurons, conv channels and whole heads (the sum of their value vertices) are embedded by the leading left
    singular vectors of their standardised usage profiles and clustered by k-means whose assignment step is an exact
    transportation problem inside every family. Residual channels, inputs and outputs then follow the units by weight.

    Args:
        graph: The model's graph.
        profile: float [windows, n], as :class:`modcut.graph.statistics.Statistics` has it.
        k: Number of modules. Families with fewer units than k (a layer with 4 heads, k = 8) fill k bins as evenly as
            they can: at most one unit in each.
        seed: Seed of the restarts.
        input_mean_square: Makes the vertices that follow by weight follow by contribution instead of folded ``|W|``.

    Returns:
        int64 [n], values 0 .. k-1.

    Raises:
        ValueError: k out of range, no hidden units or heads, a profile of another shape or without usage.
    """
    units = units_of(graph)
    clustered = _clustered(units, k)
    z = unit_profiles(graph, profile)
    if not bool(z.any()):
        raise ValueError("profile must show usage that varies over windows, got none for any hidden unit or head")
    embedding = _principal(z, max(k - 1, 1))
    label = np.full(units.count, -1, dtype=np.int64)
    groups = [ids.numpy() for _, kind, ids in units.members() if kind in CLUSTERED]
    place = np.full(units.count, -1, dtype=np.int64)
    place[clustered.numpy()] = np.arange(clustered.numel())
    label[clustered.numpy()] = balanced_kmeans(embedding, [place[g] for g in groups], k, seed)
    follow(graph, units, label, k, input_mean_square)
    return torch.from_numpy(label)[units.unit]


def slice_labels(
    graph: WeightGraph,
    profile: Tensor,
    slices: Tensor,
    *,
    input_mean_square: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Partition by labelled slices of the data: module c holds the units used more in slice c than elsewhere.

    A unit's score for slice c is Welch's t of its normalised usage there against all other windows; the balanced labels
    of each family with the largest total score are an exact transportation problem. What follows by weight follows.

    Args:
        graph: The model's graph.
        profile: float [windows, n].
        slices: int64 [windows], values 0 .. k-1, each with at least two windows.
        input_mean_square: As in :func:`functional_labels`.

    Returns:
        int64 [n], values 0 .. k-1: label c for slice c.
    """
    k = int(slices.max()) + 1 if slices.numel() else 0
    counts = torch.bincount(slices, minlength=k)
    if k < 2 or int(counts.min()) < 2:
        raise ValueError(f"labelled slices must be at least 2 with at least 2 windows each, got {counts.tolist()}")
    units = units_of(graph)
    clustered = _clustered(units, k)
    score = preference(unit_profiles(graph, profile), slices, k)
    label = np.full(units.count, -1, dtype=np.int64)
    place = {int(u): i for i, u in enumerate(clustered)}
    for _, kind, ids in units.members():
        if kind in CLUSTERED:
            label[ids.numpy()] = balance_family(score[[place[int(u)] for u in ids]])
    follow(graph, units, label, k, input_mean_square)
    return torch.from_numpy(label)[units.unit]


def preference(z: Tensor, slices: Tensor, k: int) -> Tensor:
    """Welch's t of each unit's usage z [windows, units] in slice c against all other windows, float64 [units, k]."""
    x = z.double()
    score = torch.zeros(x.shape[1], k, dtype=torch.float64)
    for c in range(k):
        a, b = x[slices == c], x[slices != c]
        error = a.var(0) / len(a) + b.var(0) / len(b)
        score[:, c] = torch.where(error > 0, (a.mean(0) - b.mean(0)) / error.clamp_min(1e-300).sqrt(), 0.0)
    return score


def core_labels(
    graph: WeightGraph, profile: Tensor, slices: Tensor, labels: Tensor, k: int, *, share: float = 0.5
) -> Tensor:
    """Keep of every module the units that its slice uses most exclusively; label the rest k, "shared".

    A balanced partition has to put units somewhere that every slice uses; the core leaves them out.

    Args:
        graph: The model's graph.
        profile: float [windows, n].
        slices: int64 [windows], values 0 .. k-1.
        labels: int64 [n]: module c is what slice c uses most (:func:`slice_labels`).
        k: Number of modules.
        share: Of the units of every family and module, rounded.

    Returns:
        int64 [n], values 0 .. k; vertices that are neither neurons nor heads are k.
    """
    units = units_of(graph)
    score = torch.zeros(units.count, k, dtype=torch.float64)
    score[_clustered(units, 1)] = preference(unit_profiles(graph, profile), slices, k)
    mine = torch.zeros(units.count, dtype=torch.int64)
    mine[units.unit] = labels
    out = torch.full((units.count,), k, dtype=torch.int64)
    for _, kind, ids in units.members():
        for c in range(k if kind in CLUSTERED else 0):
            own = ids[mine[ids] == c]
            out[own[score[own, c].argsort(descending=True)[: round(share * len(own))]]] = c
    return out[units.unit]


def spectral_labels(
    graph: WeightGraph,
    k: int,
    seed: int = 0,
    *,
    input_mean_square: Mapping[str, Tensor] | None = None,
    sweeps: int = 2,
) -> Tensor:
    """Partition by weights alone: layer-stratified spectral embedding, balanced class by class.

    Every matrix is doubly normalised (so that no rescaling of neurons moves the result), the family
    indicators are projected out (plain spectral cuts are cuts by depth), and the leading eigenvectors are clustered
    like the functional embedding. ``sweeps`` rounds then give each family the best balanced labels given its
    neighbours', an exact transportation problem each.

    Returns:
        int64 [n], values 0 .. k-1; whole heads share one label.

    Raises:
        ValueError: k out of range, no hidden units or heads, NaN weights.
    """
    units = units_of(graph)
    _clustered(units, k)
    embedding, _ = stratified(graph, units, max(k - 1, 1), seed, input_mean_square)
    groups = [ids.numpy() for _, _, ids in units.members()]
    label = balanced_kmeans(embedding, groups, k, seed)
    label = refine(graph, units, label, k, input_mean_square, sweeps)
    return torch.from_numpy(label)[units.unit]


def attach_by_weight(graph: WeightGraph, labels: Tensor, k: int) -> Tensor:
    """Complete a labelling int64 [n] with -1 where unknown: whole heads agree, unknown units join their neighbours.

    A head takes the label of most of its vertices; a unit without label the module it has the largest (doubly
    normalised) weight to. Sizes are left as they come out.
    """
    units = units_of(graph)
    votes = torch.zeros(units.count, k)
    known = labels >= 0
    votes.index_put_((units.unit[known], labels[known]), torch.ones(int(known.sum())), accumulate=True)
    label = torch.where(votes.sum(1) > 0, votes.argmax(1), -1).numpy()
    affinity = Affinity(graph, units, None)
    for _ in range(units.count):
        missing = label < 0
        if not missing.any():
            break
        pull = affinity.apply(one_hot(label, k))
        reached = missing & (pull.sum(1) > 0).numpy()
        if not reached.any():
            label[missing] = 0  # no weight leads there at all
            break
        label[reached] = pull.argmax(1).numpy()[reached]
    return torch.from_numpy(label)[units.unit]


def refined_labels(
    graph: WeightGraph,
    labels: Tensor,
    k: int,
    *,
    input_mean_square: Mapping[str, Tensor] | None = None,
    sweeps: int = 2,
) -> Tensor:
    """Improve labels int64 [n] class by class: each family's best balanced labels with its neighbours' fixed.

    An exact transportation problem each; the weight inside modules never falls. Returns int64 [n].
    """
    units = units_of(graph)
    of_unit = np.zeros(units.count, dtype=np.int64)
    of_unit[units.unit.numpy()] = labels.cpu().numpy()
    return torch.from_numpy(refine(graph, units, of_unit, k, input_mean_square, sweeps))[units.unit]


def affinity_of(
    graph: WeightGraph, units: Units, input_mean_square: Mapping[str, Tensor] | None = None
) -> Callable[[Tensor, int | None], Tensor]:
    """Return the doubly normalised weights between units as ``f(x [units, d], family or None) -> [units, d]``."""
    return Affinity(graph, units, input_mean_square).apply


def choose_k(
    graph: WeightGraph,
    profile: Tensor | None = None,
    *,
    max_k: int = 8,
    seed: int = 0,
    input_mean_square: Mapping[str, Tensor] | None = None,
) -> tuple[int, list[float]]:
    """Choose the number of modules by the largest gap of the spectrum; returns it and the spectrum.

    k modules make k - 1 large eigenvalues once the common direction is removed, so k = 1 + argmax_j (l_j - l_j+1).
    The answer is always at least 2: whether there are modules at all is a question for a null, not for a gap.
    """
    units = units_of(graph)
    clustered = _clustered(units, 1)
    most = max(2, min(max_k, _largest_family(units)))
    if profile is not None:
        z = unit_profiles(graph, profile).double()
        spectrum = torch.linalg.eigvalsh(z @ z.T).flip(0)[:most] / max(clustered.numel(), 1)
        values = spectrum.tolist()
    else:
        values = stratified(graph, units, most, seed, input_mean_square)[1].tolist()
    if len(values) < 2:
        return 2, values
    gaps = [values[j] - values[j + 1] for j in range(len(values) - 1)]
    return 2 + int(np.argmax(gaps)), values


def unit_profiles(graph: WeightGraph, profile: Tensor) -> Tensor:
    """Return the standardised profiles of the clustered units, float32 [windows, clustered units] (unit columns)."""
    z, units = usage(graph, profile)
    return z[:, _clustered(units, 1)]


def _clustered(units: Units, k: int) -> Tensor:
    """Return the ids of the units that are clustered, after checking that there are any and that k fits."""
    found = [ids for _, kind, ids in units.members() if kind in CLUSTERED]
    if not found:
        raise ValueError("the graph must have hidden units or attention heads to be partitioned, got none")
    if not 1 <= k <= _largest_family(units):
        raise ValueError(
            f"k must be between 1 and the number of units of the largest layer ({_largest_family(units)}), got {k}"
        )
    return torch.cat(found)


def _largest_family(units: Units) -> int:
    return max(ids.numel() for _, kind, ids in units.members() if kind in CLUSTERED)


def _principal(z: Tensor, dims: int) -> Array:
    """Scores of the columns of z [windows, m] on its leading directions, float64 [m, dims]; via windows x windows."""
    z = z.double()
    take = torch.linalg.eigh(z @ z.T).eigenvectors[:, -dims:].flip(1)
    return signed(np.asarray((z.T @ take).numpy(), dtype=np.float64))
