"""What an effect is worth beside the same effect of matched random modules.

A module of 40 units does something when it is removed; so do 40 units picked by chance. Every effect that modcut prints
stands beside the effects of random modules of the same make-up (:mod:`modcut.controls` draws them), measured alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from modcut.auditing._vertices import Which, vertices_of
from modcut.controls import matched_units
from modcut.partition import Partition

Alternative = Literal["greater", "less", "two-sided"]
# Resamples of the bootstrap: the percentiles of the interval are then good to about one percent of its width.
_RESAMPLES = 2000


def random_modules(P: Partition, module: Which, count: int, *, seed: int = 0) -> Tensor:
    """Draw random modules that match ``module``, int64 [count, size of the module]; every row ascending.

    Each is a draw of :func:`modcut.controls.matched_units`: as many units in every space, whole heads for whole heads,
    from all units, so that under the null hypothesis "the choice of units does not matter" the rank of the module among
    the draws is uniform. Draw ``j`` depends on ``seed`` and ``j`` only: asking for more leaves the first ones as they
    were. O(count * n).

    Args:
        P: the partition whose graph defines spaces, families and heads.
        module: what to match, as :func:`modcut.ablate` takes it: a module index, several, or vertex ids.
        count: how many draws, at least 1.
        seed: non-negative integer.

    Raises:
        ValueError: ``count < 1``, ``seed < 0``, or ``module`` names no vertex.
    """
    if count < 1:
        raise ValueError(f"controls must be at least 1 (no effect is given without its control), got {count}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    units = vertices_of(P, module)
    generators = (_generator(seed, j) for j in range(count))
    return torch.stack([matched_units(P.graph, units, generator) for generator in generators])


def _generator(seed: int, draw: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(np.random.SeedSequence([seed, draw]).generate_state(1, np.uint64)[0] >> 1))


@dataclass(frozen=True)
class Effect:
    """One measured number beside the same number for matched random modules."""

    value: float
    """What the module does."""
    control_mean: float
    """Mean over the random modules."""
    control_sd: float
    """Their standard deviation (n - 1); NaN with one control."""
    percentile: float
    """Percentage of the random modules below ``value`` (ties count half)."""
    p: float
    """Rank p-value ``(1 + controls at least as extreme) / (1 + controls)``; not corrected for the number of modules."""
    gain: float
    """``value - control_mean``."""
    low: float
    """Lower end of the 95 % bootstrap interval of ``gain`` over the random modules (not over models or data)."""
    high: float
    """Its upper end."""
    n: int
    """Number of random modules."""
    alternative: Alternative
    """What counts as extreme: ``greater`` or ``less`` values, or greater absolute values (``two-sided``)."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, with None where a number is not defined."""
        return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in asdict(self).items()}


def beside_controls(
    value: float, controls: Sequence[float] | np.ndarray, *, alternative: Alternative = "greater", seed: int = 0
) -> Effect:
    """Put ``value`` beside the same measurement of matched random modules.

    The p-value is the permutation rank ``(1 + #{c >= value}) / (1 + n)`` (Phipson & Smyth 2010): never zero, and
    valid when the module and the controls are exchangeable under the null hypothesis. ``two-sided`` compares absolute
    values.

    Raises:
        ValueError: there is no control, or a number is not finite.
    """
    c = np.asarray(controls, dtype=np.float64)
    if c.ndim != 1 or not c.size:
        raise ValueError("controls must hold at least one number: an effect is never given without its control")
    if not np.isfinite(value) or not np.isfinite(c).all():
        raise ValueError(f"the measured effects must be finite, got {value} beside controls {c.tolist()}")
    if alternative not in get_args(Alternative):
        raise ValueError(f"alternative must be one of {', '.join(get_args(Alternative))}, got {alternative!r}")
    keys = np.append(c, value)
    keys = {"greater": keys, "less": -keys, "two-sided": np.abs(keys)}[alternative]
    extreme = int((keys[:-1] >= keys[-1]).sum())
    mean = float(c.mean())
    rng = np.random.default_rng([seed, c.size])
    means = c[rng.integers(0, c.size, (_RESAMPLES, c.size))].mean(axis=1)
    low, high = (float(x) for x in value - np.quantile(means, [0.975, 0.025]))
    return Effect(
        value=float(value),
        control_mean=mean,
        control_sd=float(c.std(ddof=1)) if c.size > 1 else float("nan"),
        percentile=float(100.0 * ((c < value).mean() + 0.5 * (c == value).mean())),
        p=(1 + extreme) / (1 + c.size),
        gain=float(value) - mean,
        low=low,
        high=high,
        n=int(c.size),
        alternative=alternative,
    )
