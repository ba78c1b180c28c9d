"""How well evidence chosen on one half of the data tells where a module is used on the other half."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from modcut.reading.observe import Window

# A position counts as "used" where the module's share is in the highest tenth: what a reader of a card expects to see.
QUANTILE = 0.9
# A token seen once says little: its share is pulled towards the module's mean with the weight of this many positions.
PRIOR = 3.0
LISTED = 24
CONTEXT = 8
RESAMPLES = 100


def auroc(scores: NDArray[Any], positive: NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve: the chance that a positive outranks a negative, ties counted half.

    Args:
        scores: [n] finite numbers.
        positive: bool [n].

    Returns:
        A number in [0, 1]; NaN where there is no positive or no negative. O(n log n).
    """
    positive = np.asarray(positive, dtype=bool)
    p, n = int(positive.sum()), int((~positive).sum())
    if p == 0 or n == 0:
        return float("nan")
    ranks = rankdata(np.asarray(scores, dtype=np.float64))
    return float((ranks[positive].sum() - p * (p + 1) / 2) / (p * n))


def share(use: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return each module's part of the whole network's use, [positions, k]; NaN where nothing is used."""
    total = use.sum(-1, keepdims=True, dtype=np.float64)
    result: NDArray[np.float64] = np.divide(use, total, out=np.full(use.shape, np.nan), where=total > 0)
    return result


@dataclass
class Signature:
    """What the inputs look like where a module is used most: chosen evidence, and a predictor of use."""

    tokens: dict[int, float] = field(default_factory=dict)
    """Token -> its share relative to the module's mean share (1 = as everywhere); the most and least telling ones."""
    counts: dict[int, int] = field(default_factory=dict)
    features: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """Input features that differ most between high use and the rest (inputs that are not tokens)."""
    weights: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    """Their difference in standard deviations."""
    mean: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    std: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    def predict(self, window: Window) -> NDArray[np.float64]:
        """Return the predicted relative use at every position of a window, from its inputs alone."""
        if window.tokens is None:
            x = (np.asarray(window.vector, dtype=np.float64)[self.features] - self.mean) / self.std
            return np.array([float(x @ self.weights)], dtype=np.float64)
        lift = np.array([self.tokens.get(int(t), 1.0) for t in window.tokens])
        # A module's use is decided by the token and by what stands before it: both count the same.
        total = np.concatenate([[0.0], np.cumsum(lift)])
        at = np.arange(len(lift))
        start = np.maximum(0, at - CONTEXT)
        before = np.divide(total[at] - total[start], at - start, out=np.ones(len(lift)), where=at > start)
        result: NDArray[np.float64] = lift + before
        return result


def signature(windows: Sequence[Window], draw: int, module: int) -> Signature:
    """Choose the evidence of one module from the selection windows (``draw`` 0: the partition, r: control r)."""
    chosen = [w for w in windows if w.selection]
    shares = [share(w.use[:, draw])[:, module] for w in chosen]
    y = np.concatenate(shares)
    known = np.isfinite(y)
    if not known.any() or y[known].mean() == 0:
        return Signature()
    base = float(y[known].mean())
    if chosen[0].tokens is not None:
        t = np.concatenate([w.tokens for w in chosen if w.tokens is not None])[known]
        ids, where, counts = np.unique(t, return_inverse=True, return_counts=True)
        sums = np.bincount(where, weights=y[known], minlength=len(ids))
        lift = (sums / base + PRIOR) / (counts + PRIOR)
        order = np.argsort(-lift, kind="stable")
        picked = [i for i in order[:LISTED] if lift[i] > 1] + [i for i in order[::-1][:LISTED] if lift[i] < 1]
        return Signature({int(ids[i]): float(lift[i]) for i in picked}, {int(ids[i]): int(counts[i]) for i in picked})
    x = np.stack([w.vector for w in chosen if w.vector is not None]).astype(np.float64)[known]
    y = y[known]
    mean, std = x.mean(0), x.std(0)
    std[std == 0] = 1.0
    z = (x - mean) / std
    # Covariance of every input feature with the share: "more of this feature, more of this module".
    slope = (z * (y - base)[:, None]).mean(0) / (y.std() or 1.0)
    top = np.sort(np.argsort(-np.abs(slope), kind="stable")[:LISTED])
    return Signature(features=top, weights=slope[top], mean=mean[top], std=std[top])


def detection(windows: Sequence[Window], draw: int, module: int, evidence: Signature) -> list[tuple[Any, Any]]:
    """Return ``(predicted, used)`` per held-out window: the data of :func:`auroc` for one piece of evidence."""
    held = [w for w in windows if not w.selection]
    shares = [share(w.use[:, draw])[:, module] for w in held]
    y = np.concatenate(shares)
    if not np.isfinite(y).any():
        return []
    bar = float(np.nanquantile(y, QUANTILE))
    # Shares tie at the top in a clean module (all of them count as high) and at zero in a sparse one (none does).
    tied_below = bar <= float(np.nanmin(y))
    out = []
    for w, s in zip(held, shares, strict=True):
        known = np.isfinite(s)
        out.append((evidence.predict(w)[known], s[known] > bar if tied_below else s[known] >= bar))
    return out


def pooled(pairs: Sequence[tuple[Any, Any]]) -> float:
    """Return the AUROC over all windows together; NaN where it is not defined."""
    if not pairs:
        return float("nan")
    return auroc(np.concatenate([p for p, _ in pairs]), np.concatenate([u for _, u in pairs]))


def interval(pairs: Sequence[tuple[Any, Any]], seed: int) -> tuple[float, float]:
    """95 % bootstrap interval of :func:`pooled` over windows (positions of one window are not independent)."""
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(RESAMPLES if len(pairs) > 1 else 0):
        value = pooled([pairs[i] for i in rng.integers(0, len(pairs), len(pairs))])
        if np.isfinite(value):
            draws.append(value)
    if not draws:
        return float("nan"), float("nan")
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def score_all(
    windows: Sequence[Window], k: int, controls: int, seed: int
) -> tuple[list[Signature], list[dict[str, Any]]]:
    """Return each module's signature and its held-out detection score beside the controls.

    Controls: the evidence of the other modules on this module (``shuffled``: is the evidence about *this* module?) and
    random modules of the same make-up with evidence of their own (``random``: is a module of the cut easier to tell
    than any set of units of its size?).
    """
    signatures = [signature(windows, 0, i) for i in range(k)]
    scores = []
    for i in range(k):
        own = detection(windows, 0, i, signatures[i])
        low, high = interval(own, seed)
        shuffled = [pooled(detection(windows, 0, i, signatures[j])) for j in range(k) if j != i]
        random = [pooled(detection(windows, r, i, signature(windows, r, i))) for r in range(1, controls + 1)]
        scores.append(
            {
                "detection": {
                    "measure": "AUROC: held-out positions in the highest tenth of the module's share of use",
                    "value": _number(pooled(own)),
                    "low": _number(low),
                    "high": _number(high),
                    "shuffled": [_number(x) for x in shuffled],
                    "shuffled_mean": _mean(shuffled),
                    "random": [_number(x) for x in random],
                    "random_mean": _mean(random),
                    "n": sum(len(u) for _, u in own),
                    "windows": len(own),
                }
            }
        )
    return signatures, scores


def _number(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None


def _mean(values: Sequence[float]) -> float | None:
    finite = [x for x in values if np.isfinite(x)]
    return float(np.mean(finite)) if finite else None
