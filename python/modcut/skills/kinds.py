"""Kinds of window: clusters of data by what a network's units do on them, and how many there are (one included).

Two windows are of one kind where they use the same units. The number of kinds is the largest k whose *prediction
strength* is high: split the windows into two halves, learn directions and centres on each alone, and ask how many pairs
that one half's clustering puts together the other half's keeps together, in the worst cluster (Tibshirani & Walther
2005, J. Comp. Graph. Stat. 14:511; cluster validation by prediction strength). Where no k >= 2 holds, there is one
kind: unlike an eigengap, the rule can say "none". A long cloud without clusters can be halved reproducibly, so clusters
must also be tighter than those of a Gaussian cloud with the same variance along every direction (Liu et al. 2008,
J. Am. Stat. Assoc. 103:1281; SigClust).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modcut._kmeans import lloyd, nearest

Array = NDArray[np.float64]

STRONG = 0.87
"""Prediction strength from which k kinds count. The paper says .8 to .9; on ten networks of 1 to 6 known skills (seeds
0 and 1 of benchmarks/skills.py) every true k had at least .89, every larger k at most .85."""
TIGHT = 0.85
"""Share of the spread left inside kinds, relative to Gaussian clouds, that is tight enough: true k had .51 to .78
on the same networks, the network of one skill .99; a uniform line would have .69."""
_CLOUDS = 20
FEWEST = 16
"""Windows below which nothing is said: halves of fewer than 8 windows predict nothing."""


@dataclass(frozen=True, eq=False)
class Kinds:
    """Kinds of window."""

    k: int
    label: Tensor
    """int64 [windows]."""
    strength: dict[int, float]
    """Prediction strength of every k that was tried."""
    spectrum: list[float]
    """Leading eigenvalues of the windows' Gram matrix, as shares of its trace."""
    tightness: float
    """Spread inside kinds relative to that of Gaussian clouds with the same variances; 1 where k = 1."""
    reason: str
    """Why this k, in words."""
    direction: Tensor
    """float32 [units, 2 k]: orthonormal; usage times this is where a window lies. k - 1 directions would do for k
    clusters alone, but what else varies (which symbol, which length) often outranks the smallest skill."""
    centre: Tensor
    """float32 [k, 2 k]: the kinds' centres there."""

    def of(self, z: Tensor) -> Tensor:
        """Return the kind of other windows, int64 [windows], from their usage standardised in the same way."""
        if self.k == 1:
            return torch.zeros(z.shape[0], dtype=torch.int64)
        return torch.cdist(z.float() @ self.direction, self.centre).argmin(1)

    def typical(self, z: Tensor, count: int = 5) -> list[list[int]]:
        """Return, per kind, the windows nearest to its centre relative to the next centre, most typical first."""
        if self.k == 1:
            return [list(range(min(count, z.shape[0])))]
        distance = torch.cdist(z.float() @ self.direction, self.centre)
        out = []
        for c in range(self.k):
            others = distance[:, [i for i in range(self.k) if i != c]].min(1).values
            margin = torch.where(self.of(z) == c, others - distance[:, c], -torch.inf)
            out.append([i for i in margin.argsort(descending=True)[:count].tolist() if margin[i] > -torch.inf])
        return out

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return {
            "k": self.k,
            "windows": torch.bincount(self.label, minlength=self.k).tolist(),
            "prediction_strength": {str(k): v for k, v in self.strength.items()},
            "tightness": self.tightness,
            "spectrum": self.spectrum,
            "reason": self.reason,
        }


def window_kinds(
    z: Tensor, *, k: int | None = None, max_k: int = 8, seed: int = 0, splits: int = 6, strong: float = STRONG
) -> Kinds:
    """Cluster windows by usage and say how many kinds there are.

    Args:
        z: float [windows, units], standardised usage (:func:`modcut.clustering.unit_profiles`).
        k: Number of kinds; by default the largest of 2 .. max_k whose prediction strength reaches ``strong``, else 1.
        max_k: Largest k that is tried.
        seed: Of the halves and of the restarts.
        splits: Random halvings that a strength is the mean of.
        strong: See ``k``.

    Returns:
        The kinds. Cost: ``2 * splits`` eigendecompositions of half the windows, O(windows^3 + windows^2 * units).

    Raises:
        ValueError: z is not a finite matrix, or k is out of range.
    """
    if z.ndim != 2 or not bool(torch.isfinite(z).all()):
        raise ValueError(f"z must be a finite matrix [windows, units], got shape {list(z.shape)}")
    windows = z.shape[0]
    x = z.double().cpu().numpy()
    if k is not None and not 1 <= k <= max(windows, 1):
        raise ValueError(f"k must be between 1 and the number of windows ({windows}), got {k}")
    if not x.any():
        return _one(z, "the windows are all alike: no unit's usage varies")
    if k is None and windows < FEWEST:
        return _one(z, f"{windows} windows are too few to tell kinds apart (at least {FEWEST} are needed)")
    rng = np.random.default_rng(seed)
    values, vectors = leading(x, 2 * max(max_k, k or 0))
    spectrum = (values / max((x**2).sum(), 1e-300)).tolist()
    if k == 1:
        return _one(z, "asked for", {}, spectrum)
    highest = max_k if k is None else k
    highest = min(highest, windows // 4 if k is None else windows)
    strength = {} if windows < FEWEST else _strengths(x, highest, rng, splits)
    if k is None:
        good = [j for j, s in strength.items() if s >= strong]
        if not good:
            most = max(strength, key=lambda j: strength[j], default=None)
            told = "" if most is None else f": the best is {strength[most]:.2f} at k = {most}"
            return _one(z, f"no number of kinds has a prediction strength of {strong:g}{told}", strength, spectrum)
        tight = {j: _tightness(x @ vectors[:, : 2 * j], j, rng) for j in good}
        clear = [j for j in good if tight[j] <= TIGHT]
        if not clear:
            told = ", ".join(f"{t:.2f} at k = {j}" for j, t in tight.items())
            return _one(z, f"no clusters, one cloud: tightness {told}, needed {TIGHT:g}", strength, spectrum)
        k, reason = max(clear), f"largest k with a prediction strength of at least {strong:g} and clear clusters"
    else:
        reason = "asked for"
    direction = vectors[:, : 2 * k]
    centre, label = lloyd(x @ direction, k, rng, restarts=20)
    return Kinds(
        k,
        torch.from_numpy(label),
        strength,
        spectrum,
        _tightness(x @ direction, k, rng),
        reason,
        torch.from_numpy(direction).float(),
        torch.from_numpy(centre).float(),
    )


def _one(
    z: Tensor, reason: str, strength: dict[int, float] | None = None, spectrum: list[float] | None = None
) -> Kinds:
    label = torch.zeros(z.shape[0], dtype=torch.int64)
    return Kinds(1, label, strength or {}, spectrum or [], 1.0, reason, torch.zeros(z.shape[1], 0), torch.zeros(1, 0))


def leading(x: Array, count: int) -> tuple[Array, Array]:
    """Leading eigenvalues of x x^T and the unit directions they belong to, [count] and [units, count]."""
    x = x - x.mean(0)  # half of the windows has means of its own
    values, left = np.linalg.eigh(x @ x.T)
    values, left = values[::-1][:count], left[:, ::-1][:, :count]
    keep = values > 1e-9 * max(values[0], 1e-300)
    right = x.T @ left[:, keep]
    return values[keep], right / np.linalg.norm(right, axis=0)


def _strengths(x: Array, highest: int, rng: np.random.Generator, splits: int) -> dict[int, float]:
    total = dict.fromkeys(range(2, highest + 1), 0.0)
    for _ in range(splits):
        order = rng.permutation(len(x))
        a, b = x[order[: len(x) // 2]], x[order[len(x) // 2 :]]
        da, db = leading(a, 2 * highest)[1], leading(b, 2 * highest)[1]
        for k in total:
            if min(da.shape[1], db.shape[1]) < k - 1:
                continue
            centre, _ = lloyd(a @ da[:, : 2 * k], k, rng, restarts=20)
            _, own = lloyd(b @ db[:, : 2 * k], k, rng, restarts=20)
            total[k] += _kept_together(own, nearest(b @ da[:, : 2 * k], centre), k)
    return {k: s / splits for k, s in total.items()}


def _tightness(y: Array, k: int, rng: np.random.Generator) -> float:
    """Spread inside k clusters of y [windows, dims] relative to that of Gaussian clouds; 1 if one equals it."""

    def inside(points: Array) -> float:
        centre, label = lloyd(points, k, rng)
        return float(((points - centre[label]) ** 2).sum() / max(((points - points.mean(0)) ** 2).sum(), 1e-300))

    mine = inside(y)
    clouds = [inside(rng.normal(size=y.shape) * y.std(0)) for _ in range(_CLOUDS)]
    return 1.0 if mine >= min(clouds) else mine / (sum(clouds) / len(clouds))


def _kept_together(own: NDArray[np.int64], predicted: NDArray[np.int64], k: int) -> float:
    """Share of a cluster's pairs that the prediction keeps together, in the worst cluster; 0 where one is alone."""
    worst = 1.0
    for c in range(k):
        inside = predicted[own == c]
        n = len(inside)
        if n < 2:
            return 0.0
        count = np.bincount(inside, minlength=k)
        worst = min(worst, float((count * (count - 1)).sum() / (n * (n - 1))))
    return worst
