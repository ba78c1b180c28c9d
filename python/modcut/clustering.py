"""Find modules: labels for every vertex, from what units do on data (functional) or from the weights alone (spectral).

Both cluster *units* (neurons, channels, whole heads) and are balanced inside every family: an unbalanced cut wins by
putting whole layers into one module (depth cuts), which says nothing. Nothing here is ever n x n.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import scipy.sparse.linalg as sla
import torch
from numpy.typing import NDArray
from torch import Tensor

from modcut._transport import balanced_assignment
from modcut.graph.balance import balance
from modcut.graph.edges import usage
from modcut.graph.types import WeightGraph
from modcut.graph.units import CLUSTERED, Units, strength, units_of

Array = NDArray[np.float64]

# Restarts of k-means run on at most so many units; the final, exactly balanced rounds run on all.
_SAMPLE = 4096


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
    _follow(graph, units, label, k, input_mean_square)
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
    x = unit_profiles(graph, profile).double()
    score = torch.zeros(clustered.numel(), k, dtype=torch.float64)
    for c in range(k):
        a, b = x[slices == c], x[slices != c]
        error = a.var(0) / len(a) + b.var(0) / len(b)
        score[:, c] = torch.where(error > 0, (a.mean(0) - b.mean(0)) / error.clamp_min(1e-300).sqrt(), 0.0)
    label = np.full(units.count, -1, dtype=np.int64)
    place = {int(u): i for i, u in enumerate(clustered)}
    for _, kind, ids in units.members():
        if kind in CLUSTERED:
            label[ids.numpy()] = _balance_family(score[[place[int(u)] for u in ids]])
    _follow(graph, units, label, k, input_mean_square)
    return torch.from_numpy(label)[units.unit]


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
    embedding, _ = _stratified(graph, units, max(k - 1, 1), seed, input_mean_square)
    groups = [ids.numpy() for _, _, ids in units.members()]
    label = balanced_kmeans(embedding, groups, k, seed)
    label = _refine(graph, units, label, k, input_mean_square, sweeps)
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
    affinity = _Affinity(graph, units, None)
    for _ in range(units.count):
        missing = label < 0
        if not missing.any():
            break
        pull = affinity.apply(_one_hot(label, k))
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
    return torch.from_numpy(_refine(graph, units, of_unit, k, input_mean_square, sweeps))[units.unit]


def affinity_of(
    graph: WeightGraph, units: Units, input_mean_square: Mapping[str, Tensor] | None = None
) -> Callable[[Tensor, int | None], Tensor]:
    """Return the doubly normalised weights between units as ``f(x [units, d], family or None) -> [units, d]``."""
    return _Affinity(graph, units, input_mean_square).apply


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
        values = _stratified(graph, units, most, seed, input_mean_square)[1].tolist()
    if len(values) < 2:
        return 2, values
    gaps = [values[j] - values[j + 1] for j in range(len(values) - 1)]
    return 2 + int(np.argmax(gaps)), values


def unit_profiles(graph: WeightGraph, profile: Tensor) -> Tensor:
    """Return the standardised profiles of the clustered units, float32 [windows, clustered units] (unit columns)."""
    z, units = usage(graph, profile)
    return z[:, _clustered(units, 1)]


def balanced_kmeans(
    x: Array, groups: list[NDArray[np.int64]], k: int, seed: int, *, restarts: int = 8
) -> NDArray[np.int64]:
    """k-means whose clusters have equal sizes (to one) inside every group of rows; exact assignment steps.

    Args:
        x: float [rows, dims].
        groups: Row ids of each group; every row in one group.
        k: Number of clusters.
        seed: Seed of the restarts (k-means++).
        restarts: Rough restarts, on at most 4,096 rows; the best one is finished on all rows.

    Returns:
        int64 [rows].
    """
    if k == 1:
        return np.zeros(x.shape[0], dtype=np.int64)
    # Draws pick rows by position: in an order that the points themselves give, renumbering the units changes nothing.
    order = np.lexsort(x.T[::-1])
    place = np.argsort(order)
    label = _kmeans(x[order], [np.sort(place[g]) for g in groups], k, np.random.default_rng(seed), restarts)
    return label[place]


def _kmeans(
    x: Array, groups: list[NDArray[np.int64]], k: int, rng: np.random.Generator, restarts: int
) -> NDArray[np.int64]:
    sample = x if x.shape[0] <= _SAMPLE else x[np.sort(rng.choice(x.shape[0], _SAMPLE, replace=False))]
    best: Array | None = None
    best_cost = np.inf
    for _ in range(restarts):
        centre = _plus_plus(sample, k, rng)
        previous: NDArray[np.int64] | None = None
        for _ in range(20):
            label = balanced_assignment(_distances(sample, centre))
            if previous is not None and np.array_equal(label, previous):
                break
            previous, centre = label, _means(sample, label, centre)
        cost = float(_distances(sample, centre)[np.arange(len(label)), label].sum())
        if cost < best_cost:
            best, best_cost = centre, cost
    assert best is not None
    label = np.zeros(x.shape[0], dtype=np.int64)
    for _ in range(12):
        old, cost_matrix = label.copy(), _distances(x, best)
        for group in groups:
            label[group] = balanced_assignment(cost_matrix[group])
        if np.array_equal(old, label):
            break
        best = _means(x, label, best)
    return label


def _plus_plus(x: Array, k: int, rng: np.random.Generator) -> Array:
    centre = [x[rng.integers(len(x))]]
    for _ in range(k - 1):
        d = np.min(_distances(x, np.stack(centre)), axis=1).clip(0)
        total = d.sum()
        centre.append(x[rng.choice(len(x), p=d / total if total > 0 else None)])
    return np.stack(centre)


def _distances(x: Array, centre: Array) -> Array:
    d: Array = (x**2).sum(1)[:, None] - 2 * x @ centre.T + (centre**2).sum(1)[None]
    return d


def _means(x: Array, label: NDArray[np.int64], old: Array) -> Array:
    centre = old.copy()
    for c in range(len(old)):
        if (label == c).any():
            centre[c] = x[label == c].mean(0)
    return centre


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
    return _signed(np.asarray((z.T @ take).numpy(), dtype=np.float64))


def _signed(x: Array) -> Array:
    """Fix the arbitrary signs of eigenvectors [m, d], so that equal inputs give equal labels on every machine.

    By the third moment: centred profiles and stratified eigenvectors have sums of 0, whose sign is rounding.
    """
    return np.asarray(x * np.where((x**3).sum(0) < 0, -1.0, 1.0), dtype=np.float64)


# -- weights between units --------------------------------------------------------------------------------------------


def _normalised(graph: WeightGraph, input_mean_square: Mapping[str, Tensor] | None) -> list[tuple[Array, Array]]:
    """Row and column factors of every matrix that give it norm 1 and that no rescaling of neurons can move.

    Where inputs were measured: N = P C^-1/2, with the shares P = A / r of the contributions A. Without data: |W| doubly
    normalised. (R^-1/2 |W| C^-1/2, the usual choice, changes with the scale of every neuron.)
    """
    scales = []
    for m in graph.matrices:
        square = None if input_mean_square is None else input_mean_square.get(m.name)
        a = strength(m, square).cpu()
        a = a[m.row_vertex.cpu() >= 0][:, m.col_vertex.cpu() >= 0]
        if square is None:
            rows, cols = balance(a)
            live = int((rows > 0).sum()), int((cols > 0).sum())
            rows, cols = rows.double(), cols.double() * np.sqrt(max(live[1], 1) / max(live[0], 1))
            scales.append((rows.numpy(), cols.numpy()))
        else:
            r = a.sum(1, dtype=torch.float64)
            rows = torch.where(r > 0, 1 / torch.where(r > 0, r, 1.0), 0.0)
            scales.append((rows.numpy(), _inverse_root((rows.float() @ a).double().numpy())))
    return scales


def _inverse_root(x: Array) -> Array:
    return np.asarray(np.where(x > 0, 1 / np.sqrt(np.where(x > 0, x, 1.0)), 0.0), dtype=np.float64)


class _Affinity:
    """Sum of the doubly normalised matrices as an operator between units; matrices are read when needed, never stored.

    Every matrix has norm 1, whatever its scale, so that layers count alike (see :func:`_normalised`).
    """

    def __init__(self, graph: WeightGraph, units: Units, mean_square: Mapping[str, Tensor] | None) -> None:
        self.graph, self.units, self.mean_square = graph, units, mean_square
        self.scales = _normalised(graph, mean_square)
        self.ends: list[tuple[Tensor, Tensor]] = []
        for m in graph.matrices:
            r, c = m.row_vertex.cpu(), m.col_vertex.cpu()
            self.ends.append((units.unit[r[r >= 0]], units.unit[c[c >= 0]]))
        # Small networks: keep the matrices, large ones are re-read from the live weights (240 MB as the border).
        self.keep = sum(m.weight.numel() for m in graph.matrices) <= 60_000_000
        self.cache: dict[int, Tensor] = {}

    def matrix(self, i: int) -> Tensor:
        if i in self.cache:
            return self.cache[i]
        m = self.graph.matrices[i]
        a = strength(m, None if self.mean_square is None else self.mean_square.get(m.name)).cpu()
        r, c = m.row_vertex.cpu() >= 0, m.col_vertex.cpu() >= 0
        a = a if bool(r.all()) and bool(c.all()) else a[r][:, c]
        a = a * torch.from_numpy(self.scales[i][0])[:, None].float() * torch.from_numpy(self.scales[i][1]).float()
        if self.keep:
            self.cache[i] = a
        return a

    def apply(self, x: Tensor, family: int | None = None) -> Tensor:
        """Return A @ x, float32 [units, d]; with ``family``, only the rows of its units are complete."""
        out = torch.zeros_like(x)
        for i, (rows, cols) in enumerate(self.ends):
            if family is not None:
                fr, fc = self.units.family[rows], self.units.family[cols]
                if not bool((fr == family).any()) and not bool((fc == family).any()):
                    continue
            a = self.matrix(i)
            out.index_add_(0, rows, a @ x[cols])
            out.index_add_(0, cols, a.T @ x[rows])
        return out


def _stratified(
    graph: WeightGraph, units: Units, dims: int, seed: int, mean_square: Mapping[str, Tensor] | None
) -> tuple[Array, Array]:
    """Leading eigenvectors of the degree-normalised affinity with the family indicators projected out.

    Returns float64 [units, dims] (rows scaled to unit root mean square inside each family) and the eigenvalues.
    """
    if not graph.matrices:
        raise ValueError("the graph must come from a model to be partitioned by its weights, got one without matrices")
    a = _Affinity(graph, units, mean_square)
    ones = torch.ones(units.count, 1)
    degree = a.apply(ones).flatten().double().numpy()
    inverse = _inverse_root(degree)
    root = np.sqrt(degree)
    family = units.family.numpy()
    mass = np.maximum(np.bincount(family, degree, minlength=len(units.families)), 1e-300)

    def project(x: Array) -> Array:
        # Disjoint supports: the indicators root * 1[family] are orthogonal, one pass projects them all out.
        level = np.bincount(family, root * x, minlength=len(mass)) / mass
        return np.asarray(x - root * level[family])

    def apply(x: Array) -> Array:
        x = project(x.reshape(-1))
        y = a.apply(torch.from_numpy(inverse * x).float()[:, None]).flatten().double().numpy()
        return project(inverse * y)

    m = units.count
    if m <= max(3 * dims, 32):
        dense = np.stack([apply(e) for e in np.eye(m)], axis=1)
        values, vectors = np.linalg.eigh((dense + dense.T) / 2)
    else:
        operator = sla.LinearOperator((m, m), matvec=apply, dtype=np.float64)
        start = np.random.default_rng(seed).normal(size=m)
        values, vectors = sla.eigsh(operator, k=dims, which="LA", v0=start, tol=1e-4, maxiter=max(60 * dims, 300))
    order = np.argsort(-values)[:dims]
    values, vectors = values[order], vectors[:, order]
    x = inverse[:, None] * _signed(vectors)
    # Families have volumes that differ by orders of magnitude; clusters must not be layers.
    power = np.stack([np.bincount(family, x[:, j] ** 2, minlength=len(mass)) for j in range(x.shape[1])], axis=1)
    rms = np.sqrt(power.sum(1) / np.bincount(family, minlength=len(mass)))
    x = x / np.where(rms > 0, rms, 1.0)[family][:, None]
    return np.asarray(x, dtype=np.float64), np.asarray(values, dtype=np.float64)


def _balance_family(affinity: Tensor) -> NDArray[np.int64]:
    """Best balanced labels of one family's units for their affinities [units, k]."""
    return balanced_assignment(-affinity.double().numpy())


def _one_hot(label: NDArray[np.int64], k: int) -> Tensor:
    out = torch.zeros(len(label), k)
    known = np.nonzero(label >= 0)[0]
    out[known, label[known]] = 1.0
    return out


def _follow(
    graph: WeightGraph,
    units: Units,
    label: NDArray[np.int64],
    k: int,
    mean_square: Mapping[str, Tensor] | None,
) -> None:
    """Label the families that are not labelled yet by their weights to those that are (residual first). In place."""
    a = _Affinity(graph, units, mean_square)
    order = sorted(range(len(units.families)), key=lambda f: units.kinds[f] in ("input", "output"))
    for f in order:
        ids = torch.nonzero(units.family == f).flatten()
        if (label[ids.numpy()] >= 0).all():
            continue
        affinity = a.apply(_one_hot(label, k), f)[ids]
        label[ids.numpy()] = _balance_family(affinity)


def _refine(
    graph: WeightGraph,
    units: Units,
    label: NDArray[np.int64],
    k: int,
    mean_square: Mapping[str, Tensor] | None,
    sweeps: int,
) -> NDArray[np.int64]:
    """Give each family its best balanced labels with its neighbours' fixed; the weight inside modules never falls."""
    if k == 1 or sweeps < 1:
        return label
    a = _Affinity(graph, units, mean_square)
    for _ in range(sweeps):
        before = label.copy()
        for f in range(len(units.families)):
            ids = torch.nonzero(units.family == f).flatten()
            others = np.where(units.family.numpy() == f, -1, label)
            label[ids.numpy()] = _balance_family(a.apply(_one_hot(others, k), f)[ids])
        if np.array_equal(before, label):
            break
    return label
