"""How well evidence chosen on one half of the data tells where a module is used on the other half."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from modcut.reading.effects import rank_p
from modcut.reading.sketch import Sketch, Window, of_windows
from modcut.reading.sketch import shares as shares

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


share = shares


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


def signature(source: Sketch | Sequence[Window], draw: int, module: int) -> Signature:
    """Choose the evidence of one module from the selection half (``draw`` 0: the partition, r: control r)."""
    s = source if isinstance(source, Sketch) else of_windows(source)
    n, base = int(s.known[draw]), float(s.base[draw, module])
    if n == 0 or base == 0:
        return Signature()
    if len(s.table.row):
        ids, counts, sums = s.table.sorted()
        lift = (sums[:, draw, module] / base + PRIOR) / (counts + PRIOR)
        order = np.argsort(-lift, kind="stable")
        picked = [i for i in order[:LISTED] if lift[i] > 1] + [i for i in order[::-1][:LISTED] if lift[i] < 1]
        return Signature({int(ids[i]): float(lift[i]) for i in picked}, {int(ids[i]): int(counts[i]) for i in picked})
    if s.x is None or s.xy is None:
        return Signature()
    mean = s.x[0] / n
    std = np.sqrt(np.maximum(s.x[1] / n - mean**2, 0.0))
    std[std <= 1e-12 * np.maximum(np.abs(mean), 1.0)] = 1.0
    spread = float(np.sqrt(max(s.square[draw, module] / n - base**2, 0.0)))
    # Covariance of every input feature with the share: "more of this feature, more of this module".
    slope = (s.xy[:, draw, module] / n - mean * base) / std / (spread or 1.0)
    top = np.sort(np.argsort(-np.abs(slope), kind="stable")[:LISTED])
    return Signature(features=top, weights=slope[top], mean=mean[top], std=std[top])


def split(values: NDArray[np.float64]) -> float:
    """Return the value that splits numbers into two groups of the smallest variance inside them (Otsu 1979).

    Args:
        values: [n], at least one.

    Returns:
        A number; values above it are the upper group. Where all are equal, that value. O(n log n).
    """
    y = np.sort(values)
    n, total = len(y), np.cumsum(y)
    low = np.arange(1, n)
    if n < 2 or y[0] == y[-1]:
        return float(y[-1])
    means = total[:-1] / low - (total[-1] - total[:-1]) / (n - low)
    between = np.where(y[1:] > y[:-1], low * (n - low) * means**2, -1.0)  # only between different values
    at = int(np.argmax(between))
    return float((y[at] + y[at + 1]) / 2)


def detection(windows: Sequence[Window], draw: int, module: int, evidence: Signature) -> list[tuple[Any, Any]]:
    """Return ``(predicted, active)`` per held-out window: the data of :func:`auroc` for one piece of evidence.

    A position is active where the module's share lies above the :func:`split` of its shares on the selection windows.
    (A fixed part, such as the highest tenth, would cut a module that is on half of the time in the middle of its on.)
    """
    chosen = [share(w.use[:, draw])[:, module] for w in windows if w.selection]
    known_shares = np.concatenate(chosen) if chosen else np.empty(0)
    known_shares = known_shares[np.isfinite(known_shares)]
    if not len(known_shares):
        return []
    bar = split(known_shares)
    out = []
    for w in windows:
        if not w.selection:
            s = share(w.use[:, draw])[:, module]
            known = np.isfinite(s)
            out.append((evidence.predict(w)[known], s[known] > bar))
    return out


def pooled(pairs: Sequence[tuple[Any, Any]]) -> float:
    """Return the AUROC over all windows together; NaN where it is not defined."""
    if not pairs:
        return float("nan")
    return auroc(np.concatenate([p for p, _ in pairs]), np.concatenate([u for _, u in pairs]))


def interval(
    pairs: Sequence[tuple[Any, Any]], seed: int, value_of: Callable[[Sequence[tuple[Any, Any]]], float] = pooled
) -> tuple[float, float]:
    """95 % bootstrap interval over windows (positions of one window are not independent)."""
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(RESAMPLES if len(pairs) > 1 else 0):
        value = value_of([pairs[i] for i in rng.integers(0, len(pairs), len(pairs))])
        if np.isfinite(value):
            draws.append(value)
    if not draws:
        return float("nan"), float("nan")
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def simulation(windows: Sequence[Window], draw: int, module: int, evidence: Signature) -> list[tuple[Any, Any]]:
    """Return ``(predicted, share)`` per held-out window: the data of :func:`correlation`."""
    out = []
    for w in windows:
        if not w.selection:
            s = share(w.use[:, draw])[:, module]
            known = np.isfinite(s)
            out.append((evidence.predict(w)[known], s[known]))
    return out


def correlation(pairs: Sequence[tuple[Any, Any]]) -> float:
    """Return Pearson's correlation over all windows together; NaN where either side is constant."""
    if not pairs:
        return float("nan")
    a, b = (np.concatenate([p[side] for p in pairs]).astype(np.float64) for side in (0, 1))
    if len(a) < 2 or a.std() <= 1e-12 * np.abs(a).max() or b.std() <= 1e-9 * np.abs(b).max():
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def score_all(
    source: Sketch | Sequence[Window], k: int, controls: int, seed: int
) -> tuple[list[Signature], list[dict[str, Any]]]:
    """Return each module's signature and its held-out scores (detection, simulation) beside the controls.

    Controls: the evidence of the other modules on this module (``shuffled``: is the evidence about *this* module?) and
    random modules of the same make-up with evidence of their own (``random``: is a module of the cut easier to tell
    than any set of units of its size?). ``p``: rank among the random ones.
    """
    sketch = source if isinstance(source, Sketch) else of_windows(source)
    windows = sketch.sample
    signatures = [signature(sketch, 0, i) for i in range(k)]
    scores: list[dict[str, Any]] = []
    for i in range(k):
        others = [signature(sketch, r, i) for r in range(1, controls + 1)]
        found = {}
        for name, pairs_of, value_of, words in _KINDS:
            own = pairs_of(windows, 0, i, signatures[i])
            shuffled = [value_of(pairs_of(windows, 0, i, signatures[j])) for j in range(k) if j != i]
            random = [value_of(pairs_of(windows, r, i, s)) for r, s in enumerate(others, start=1)]
            found[name] = row(words, own, value_of, shuffled, random, seed)
        scores.append(found)
    return signatures, scores


def row(
    words: str,
    own: Sequence[tuple[Any, Any]],
    value_of: Callable[[Sequence[tuple[Any, Any]]], float],
    shuffled: Sequence[float],
    random: Sequence[float],
    seed: int,
) -> dict[str, Any]:
    """Return one score as plain values: its interval over windows, its controls, and its rank among them."""
    low, high = interval(own, seed, value_of)
    value = value_of(own)
    return {
        "measure": words,
        "value": _number(value),
        "low": _number(low),
        "high": _number(high),
        "p": rank_p(value, random),
        "shuffled": [_number(x) for x in shuffled],
        "shuffled_mean": _mean(shuffled),
        "random": [_number(x) for x in random],
        "random_mean": _mean(random),
        "n": sum(len(u) for _, u in own),
        "windows": len(own),
    }


_KINDS = (
    (
        "detection",
        detection,
        pooled,
        "AUROC: held-out positions where the module's share lies in the upper of two groups",
    ),
    ("simulation", simulation, correlation, "correlation of the share predicted from the evidence with the real share"),
)


def _number(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None


def _mean(values: Sequence[float]) -> float | None:
    finite = [x for x in values if np.isfinite(x)]
    return float(np.mean(finite)) if finite else None
