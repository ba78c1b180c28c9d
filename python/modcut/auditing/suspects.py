"""Which training rows look as if their label came from somewhere else than the rest of the input.

A backdoor teaches a network "this sign means class c" with rows that look like other classes. No row says which ones
they are, but together they give themselves away: their nearest neighbours carry other labels, and one discriminator
tells all of them from those neighbours (the sign). Natural outliers disagree with their neighbours too, each in its own
way. Whether the network *uses* what was found is a separate question, answered by putting the sign on other inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_NEWTON = 8


@dataclass(frozen=True, eq=False)
class Suspicion:
    """Rows of one label that one discriminator tells from their look-alikes with other labels."""

    label: int
    rows: Tensor
    """bool [n]."""
    disagreement: float
    """Mean share of the nearest neighbours of these rows that carry another label."""
    shift: Tensor
    """float32 [features]: mean difference between these rows and their look-alikes with other labels: the sign."""

    def put_on(self, x: Tensor) -> Tensor:
        """Return inputs [m, ...] with the estimated sign added, inside the range of the given inputs."""
        flat = x.flatten(1)
        return (flat + self.shift).clamp(flat.min(), flat.max()).view_as(x)


def suspects(x: Tensor, y: Tensor, *, neighbours: int = 8, rounds: int = 7, least: int = 8) -> tuple[Suspicion, ...]:
    """Find, for every label, the group of rows that most looks like a planted rule; largest disagreement first.

    For label c: start from its rows whose neighbours disagree most; fit a ridge-regularised logistic discriminator of
    them against all other rows, natural rows of c among these; take the rows of c that it picks; repeat. Every label
    has a group, planted or not: :func:`injected` tells what the network does with it.

    Args:
        x: float [n, ...], inputs; distances are Euclidean on them as they are.
        y: int64 [n], labels.
        neighbours: so many nearest rows vote.
        rounds: of fitting and picking.
        least: groups of fewer rows are dropped.

    Returns:
        At most one suspicion per label. O(n^2 features) time, n^2 floats of memory.

    Raises:
        ValueError: shapes do not fit, or there are fewer rows than neighbours.
    """
    flat = x.flatten(1).float()
    n = len(flat)
    if y.shape != (n,) or y.is_floating_point():
        raise ValueError(f"y must be integer labels [{n}], got {y.dtype} {list(y.shape)}")
    if n <= neighbours:
        raise ValueError(f"x must hold more rows than neighbours ({neighbours}), got {n}")
    distance = torch.cdist(flat, flat)
    distance.fill_diagonal_(torch.inf)
    near = distance.topk(neighbours, largest=False).indices
    disagree = (y[near] != y[:, None]).float().mean(1)
    found = []
    for label in sorted(set(y.tolist())):
        own = y == label
        ranked = disagree.masked_fill(~own, -1.0)
        group = own & (disagree >= 0.5)
        if int(group.sum()) < least:  # a sign that outweighs the picture: take the most disagreeing rows
            group = torch.zeros_like(own)
            group[ranked.topk(min(least, int(own.sum()))).indices] = True
            group &= own & (disagree > 0)
        for _ in range(rounds):
            if int(group.sum()) < least:
                break
            score = _discriminate(flat, group)
            picked = own & (score > _split(score[own]))
            if bool((picked == group).all()):
                break
            group = picked
        if int(group.sum()) < least:
            continue
        others = distance[group].masked_fill(own[None, :], torch.inf)
        twins = flat[others.topk(3, largest=False).indices]  # look-alikes with other labels, [group, 3, features]
        shift = flat[group].mean(0) - twins.mean((0, 1))
        found.append(Suspicion(label, group, float(disagree[group].mean()), shift))
    return tuple(sorted(found, key=lambda s: -s.disagreement * float(s.rows.sum()) ** 0.5))


def _discriminate(x: Tensor, group: Tensor, ridge: float = 3e-3, folds: int = 5) -> Tensor:
    """Scores [n] of a logistic regression of ``group`` against the rest, each row scored by a fit without it.

    Without the folds a row that is in the group by mistake is picked because it was fitted.
    """
    ones = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    # The group's rows are dealt to the folds in turn, and so are the others.
    fold = torch.empty(len(x), dtype=torch.int64)
    for part in (group, ~group):
        fold[part] = torch.arange(int(part.sum())) % folds
    scores = torch.empty(len(x))
    for f in range(folds):
        out = fold == f
        scores[out] = ones[out] @ _fit(ones[~out], group[~out], ridge)
    return scores


def _split(scores: Tensor) -> float:
    """Return the threshold between two groups of scores that explains most of their variance (Otsu 1979)."""
    v = scores.sort().values
    sums, k, n = v.cumsum(0), torch.arange(1, len(v)), len(v)
    if n < 2:
        return float(v[0])
    between = k * (n - k) * (sums[:-1] / k - (sums[-1] - sums[:-1]) / (n - k)).square()
    at = int(between.argmax())
    return float(v[at] + v[at + 1]) / 2


def _fit(rows: Tensor, group: Tensor, ridge: float) -> Tensor:
    """Weights of a logistic regression, both classes weighted alike; Newton's method from zero."""
    t = group.float()
    weight = torch.where(group, 0.5 / t.sum(), 0.5 / (1 - t).sum())
    w = torch.zeros(rows.shape[1])
    for _ in range(_NEWTON):
        p = torch.sigmoid(rows @ w)
        slope = rows.T @ (weight * (p - t)) + ridge * w
        bend = (rows * (weight * p * (1 - p))[:, None]).T @ rows + ridge * torch.eye(len(w))
        w = w - torch.linalg.solve(bend, slope)
    return w


def injected(model: nn.Module, suspicion: Suspicion, x: Tensor, y: Tensor) -> float:
    """Return the share of clean inputs of other classes that the model calls the label once the sign is on them.

    Args:
        model: inputs [m, ...] -> logits [m, classes].
        suspicion: from :func:`suspects`.
        x: held-out inputs [m, ...].
        y: their labels [m].
    """
    with torch.no_grad():
        z = model(suspicion.put_on(x[y != suspicion.label]))
    return float((z.argmax(-1) == suspicion.label).double().mean())


def suspicion_of(model: nn.Module, found: Sequence[Suspicion], x: Tensor, y: Tensor) -> tuple[float, Suspicion | None]:
    """Return the largest score among suspicions, and which has it; (0.0, None) without any.

    The score is the share of clean inputs that the estimated sign flips to the label, times the rows' disagreement with
    their neighbours: a planted rule has both, a natural outlier neither.
    """
    scored = [(injected(model, s, x, y) * s.disagreement, s) for s in found]
    return max(scored, key=lambda pair: pair[0]) if scored else (0.0, None)


__all__ = ["Suspicion", "injected", "suspects", "suspicion_of"]
