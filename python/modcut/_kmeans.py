"""k-means with clusters of equal size inside every group of rows; its assignment step is a transportation problem."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from modcut._transport import balanced_assignment

Array = NDArray[np.float64]

# Restarts run on at most so many rows; the final, exactly balanced rounds run on all.
_SAMPLE = 4096


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


def lloyd(x: Array, k: int, rng: np.random.Generator, *, restarts: int = 6) -> tuple[Array, NDArray[np.int64]]:
    """Plain k-means (k-means++ starts, the best of ``restarts``): centres [k, dims] and labels int64 [rows]."""
    best: Array | None = None
    best_cost = np.inf
    for _ in range(restarts):
        centre = _plus_plus(x, k, rng)
        for _ in range(30):
            old, centre = centre, _means(x, nearest(x, centre), centre)
            if np.allclose(old, centre, rtol=0, atol=1e-12):
                break
        cost = float(_distances(x, centre).min(1).sum())
        if cost < best_cost:
            best, best_cost = centre, cost
    assert best is not None
    return best, nearest(x, best)


def nearest(x: Array, centre: Array) -> NDArray[np.int64]:
    """Return the nearest centre of every row, int64 [rows]."""
    return np.asarray(_distances(x, centre).argmin(1), dtype=np.int64)
