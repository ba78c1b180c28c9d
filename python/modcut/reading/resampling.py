"""Intervals and p-values by drawing again: nothing is assumed of how scores are spread."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

RESAMPLES = 200
PERMUTATIONS = 999
# Up to this many pairs all sign flips are counted, 2^n of them; beyond it they are drawn.
EXACT = 12

Floats = NDArray[np.float64]


def correlation(x: Any, y: Any) -> float:
    """Return Pearson's correlation; NaN where either is constant."""
    a, b = (np.asarray(v, dtype=np.float64) for v in (x, y))
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else float("nan")


def rank_correlation(x: Any, y: Any) -> float:
    """Return Spearman's correlation (mean ranks for ties); NaN where either is constant."""
    return correlation(rankdata(x), rankdata(y))


def permutation_p(x: Any, y: Any, seed: int) -> float:
    """Return the chance that ``x`` in random order goes with ``y`` at least as closely, one-sided.

    ``(1 + c) / (1 + PERMUTATIONS)``, never 0 (Phipson & Smyth 2010). Pass ranks for Spearman or the AUROC. 1 where
    either is constant: then nothing was predicted.
    """
    a, b = (np.asarray(v, dtype=np.float64) for v in (x, y))
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 1.0
    rng = np.random.default_rng(seed)
    drawn = rng.permuted(np.broadcast_to(a, (PERMUTATIONS, len(a))), axis=1) @ (b - b.mean())
    own = float(a @ (b - b.mean()))
    return float(1 + (drawn >= own - 1e-9 * (abs(own) + 1)).sum()) / (1 + PERMUTATIONS)


def bootstrap(count: int, statistic: Callable[[NDArray[np.int64]], float], seed: int) -> tuple[float, float]:
    """Return the 95 % percentile interval of a statistic over ``count`` items drawn with replacement, or NaN.

    Draws for which the statistic is not defined (a sample of one class) are left out.
    """
    rng = np.random.default_rng(seed)
    values = [statistic(rng.integers(0, count, count)) for _ in range(RESAMPLES if count > 1 else 0)]
    known = [v for v in values if np.isfinite(v)]
    if not known:
        return float("nan"), float("nan")
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)


def sign_flip_p(differences: Sequence[float], seed: int = 0) -> float:
    """Return the chance of a mean difference at least this high if each could as well have had the other sign.

    The test for "own text above shuffled text", one difference per module: exact over all 2^n flips up to n = 12, else
    9,999 drawn ones. With n differences no p is below 2^-n: few modules cannot give a small one. 1 for none.
    """
    d = np.asarray([x for x in differences if np.isfinite(x)], dtype=np.float64)
    if len(d) == 0:
        return 1.0
    own = d.sum() - 1e-12 * (np.abs(d).sum() + 1)
    if len(d) <= EXACT:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(d))))
        return float((signs @ d >= own).mean())
    signs = np.random.default_rng(seed).choice((1.0, -1.0), size=(9999, len(d)))
    return float(1 + (signs @ d >= own).sum()) / 10000
