"""Weights between units as an operator: doubly normalised, its stratified eigenvectors, and labels that follow it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import scipy.sparse.linalg as sla
import torch
from numpy.typing import NDArray
from torch import Tensor

from modcut._transport import balanced_assignment
from modcut.graph.balance import balance
from modcut.graph.types import WeightGraph
from modcut.graph.units import Units, strength

Array = NDArray[np.float64]


def signed(x: Array) -> Array:
    """Fix the arbitrary signs of eigenvectors [m, d], so that equal inputs give equal labels on every machine.

    By the third moment: centred profiles and stratified eigenvectors have sums of 0, whose sign is rounding.
    """
    return np.asarray(x * np.where((x**3).sum(0) < 0, -1.0, 1.0), dtype=np.float64)


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


class Affinity:
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


def stratified(
    graph: WeightGraph, units: Units, dims: int, seed: int, mean_square: Mapping[str, Tensor] | None
) -> tuple[Array, Array]:
    """Leading eigenvectors of the degree-normalised affinity with the family indicators projected out.

    Returns float64 [units, dims] (rows scaled to unit root mean square inside each family) and the eigenvalues.
    """
    if not graph.matrices:
        raise ValueError("the graph must come from a model to be partitioned by its weights, got one without matrices")
    a = Affinity(graph, units, mean_square)
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
    x = inverse[:, None] * signed(vectors)
    # Families have volumes that differ by orders of magnitude; clusters must not be layers.
    power = np.stack([np.bincount(family, x[:, j] ** 2, minlength=len(mass)) for j in range(x.shape[1])], axis=1)
    rms = np.sqrt(power.sum(1) / np.bincount(family, minlength=len(mass)))
    x = x / np.where(rms > 0, rms, 1.0)[family][:, None]
    return np.asarray(x, dtype=np.float64), np.asarray(values, dtype=np.float64)


def balance_family(affinity: Tensor) -> NDArray[np.int64]:
    """Best balanced labels of one family's units for their affinities [units, k]."""
    return balanced_assignment(-affinity.double().numpy())


def one_hot(label: NDArray[np.int64], k: int) -> Tensor:
    out = torch.zeros(len(label), k)
    known = np.nonzero(label >= 0)[0]
    out[known, label[known]] = 1.0
    return out


def follow(
    graph: WeightGraph,
    units: Units,
    label: NDArray[np.int64],
    k: int,
    mean_square: Mapping[str, Tensor] | None,
) -> None:
    """Label the families that are not labelled yet by their weights to those that are (residual first). In place."""
    a = Affinity(graph, units, mean_square)
    order = sorted(range(len(units.families)), key=lambda f: units.kinds[f] in ("input", "output"))
    for f in order:
        ids = torch.nonzero(units.family == f).flatten()
        if (label[ids.numpy()] >= 0).all():
            continue
        affinity = a.apply(one_hot(label, k), f)[ids]
        label[ids.numpy()] = balance_family(affinity)


def refine(
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
    a = Affinity(graph, units, mean_square)
    for _ in range(sweeps):
        before = label.copy()
        for f in range(len(units.families)):
            ids = torch.nonzero(units.family == f).flatten()
            others = np.where(units.family.numpy() == f, -1, label)
            label[ids.numpy()] = balance_family(a.apply(one_hot(others, k), f)[ids])
        if np.array_equal(before, label):
            break
    return label
