"""How well a concept can be read off activations: a ridge probe, every example scored by a fit without it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Ridge of the probe, in units of the mean squared norm of an example: examples are few and features many.
_RIDGE = 0.3


def ranks_above(scores: Tensor, positive: Tensor) -> Tensor:
    """Return the chance that a positive example scores above a negative one, ties half.

    Args:
        scores: float [n, m].
        positive: bool [n, m].

    Returns:
        float64 [m]. O(m n^2).
    """
    above = (scores[:, None] > scores[None]).double() + 0.5 * (scores[:, None] == scores[None]).double()
    pairs = (positive[:, None] & ~positive[None]).double()
    return (above * pairs).sum((0, 1)) / pairs.sum((0, 1))


def decode(features: Tensor, positive: Tensor, shuffles: int = 0, seed: int = 0) -> tuple[float, NDArray[np.float64]]:
    """Return the AUROC of a linear probe on examples it was not fitted on, and the same for shuffled labels.

    Kernel ridge regression on standardised features. Where there are as many positives as negatives, the i-th of either
    are a pair: they are held out together, and shuffling trades their labels. Pairs that differ in the concept alone
    are near twins, and a twin left in the fit with the other label would push the AUROC far below one half. Otherwise
    examples are left out one by one. The centre is that of the examples in the fit: with a common centre the example
    left out lies opposite to the rest, which lifts the AUROC of pure noise to .59.

    Args:
        features: float [n, d].
        positive: bool [n]; both classes present.
        shuffles: how many times the labels are dealt out anew.
        seed: of the shuffles.

    Returns:
        AUROC in [0, 1], and float64 [shuffles]. O(n^2 d + n^4 + shuffles n^3) time, O(n^3 + shuffles n^2) memory.
    """
    n = len(features)
    x = features.double()
    spread = x.std(0, unbiased=False)
    x = torch.where(spread > 1e-12, (x - x.mean(0)) / spread.clamp_min(1e-12), 0.0)
    kernel = x @ x.T
    size = float(kernel.diagonal().mean())
    if size <= 0.0:  # nothing varies: nothing can be read
        return 0.5, np.full(shuffles, 0.5)
    rng = np.random.default_rng([seed, n])
    truth = positive.cpu()
    group = _groups(truth)
    labels = torch.stack([truth, *(_shuffled(truth, group, rng) for _ in range(shuffles))], dim=1)
    y = labels.double() * 2 - 1
    # One centred kernel per group left out, its rows and columns masked.
    kept = (group[None] != torch.arange(int(group.max()) + 1)[:, None]).double()  # [g, n]
    weight = kept / kept.sum(1, keepdim=True)
    rows = weight @ kernel  # [g, b]: mean over the fit of K(., b)
    centred = kernel - rows[:, None] - rows[:, :, None] + (rows * weight).sum(1)[:, None, None]
    inner = centred * kept[:, :, None] * kept[:, None, :] + _RIDGE * size * torch.eye(n, dtype=torch.float64)
    alpha = torch.linalg.solve(inner, y[None] * kept[:, :, None])
    own = torch.arange(n)
    scores = torch.einsum("ij,ijm->im", centred[group, own] * kept[group], alpha[group])
    found = ranks_above(scores, labels).numpy()
    return float(found[0]), found[1:]


def _groups(positive: Tensor) -> Tensor:
    """Which examples are held out together, int64 [n]."""
    if 2 * int(positive.sum()) != len(positive):
        return torch.arange(len(positive))
    group = torch.empty(len(positive), dtype=torch.int64)
    for side in (positive, ~positive):
        group[side] = torch.arange(len(positive) // 2)
    return group


def _shuffled(positive: Tensor, group: Tensor, rng: np.random.Generator) -> Tensor:
    if int(group.max()) + 1 == len(positive):
        return positive[torch.from_numpy(rng.permutation(len(positive)))]
    return positive ^ torch.from_numpy(rng.random(len(positive) // 2) < 0.5)[group]


__all__ = ["decode", "ranks_above"]
