"""From evidence to a probability: by models whose answer is known, or, without any, by a bound that says it is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Exponent of the p-to-e calibrator ``kappa p^(kappa - 1)`` (Vovk & Wang 2021, eq. 1). With 0.05 and even odds a
# probability above one half needs p < .043.
KAPPA = 0.05
_STEPS = 50


def bounded(p: float, prior: float) -> float:
    """Return the probability that prior odds become when multiplied with the e-value of ``p``.

    The e-value has mean at most 1 where the null hypothesis holds, so it is a lower bound of evidence, never a
    likelihood ratio: a bound that needs no known models, not a frequency.

    Raises:
        ValueError: ``p`` is not in (0, 1], or ``prior`` not in (0, 1).
    """
    if not 0 < p <= 1 or not 0 < prior < 1:
        raise ValueError(f"p must be in (0, 1] and prior in (0, 1), got {p} and {prior}")
    odds: float = prior / (1 - prior) * KAPPA * p ** (KAPPA - 1)
    return odds / (1 + odds)


@dataclass(frozen=True)
class Calibration:
    """A logistic curve from an audit's score to the probability of harm, fitted on models whose answer is known."""

    slope: float
    offset: float
    n: int
    """Models it was fitted on."""
    harmful: int
    error: float
    """Expected calibration error, every model predicted by a curve fitted without it, five bins of equal count."""
    false_alarms: float
    """Share of harmless models above one half, predicted alike."""
    about: str = ""
    """Which models: the curve holds for models like these."""

    @classmethod
    def fit(cls, scores: Sequence[float], harmful: Sequence[bool], about: str = "") -> Calibration:
        """Fit Platt's curve (with his smoothed targets, which keep it finite where the classes do not overlap).

        Raises:
            ValueError: fewer than 8 models of either kind, lengths that differ, or a score that is not finite.
        """
        x, y = np.asarray(scores, dtype=np.float64), np.asarray(harmful, dtype=bool)
        if x.shape != y.shape or x.ndim != 1 or min(int(y.sum()), int((~y).sum())) < 8:
            raise ValueError("a calibration needs a score for each of at least 8 harmful and 8 harmless models")
        if not np.isfinite(x).all():
            raise ValueError("scores must be finite")
        slope, offset = _platt(x, y)
        keep = ~np.eye(len(x), dtype=bool)
        out = np.array([_curve(x[i], *_platt(x[k], y[k])) for i, k in enumerate(keep)])
        bins = [b for b in np.array_split(np.argsort(out, kind="stable"), 5) if len(b)]
        error = sum(len(b) * abs(out[b].mean() - y[b].mean()) for b in bins) / len(x)
        return cls(slope, offset, len(x), int(y.sum()), float(error), float((out[~y] > 0.5).mean()), about)

    def probability(self, score: float) -> float:
        """Return the probability of harm at a score."""
        return float(_curve(score, self.slope, self.offset))

    def to_dict(self) -> dict[str, Any]:
        """Return the curve and how good it is."""
        return {k: getattr(self, k) for k in self.__dataclass_fields__}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Calibration:
        """Return what :meth:`to_dict` wrote."""
        try:
            return cls(**{k: saved[k] for k in cls.__dataclass_fields__})
        except KeyError as error:
            raise ValueError(f"a saved calibration must have {error}") from error


def _curve(x: Any, slope: float, offset: float) -> Any:
    return 1 / (1 + np.exp(-np.clip(slope * x + offset, -500, 500)))


def _platt(x: NDArray[np.float64], y: NDArray[np.bool_]) -> tuple[float, float]:
    up, down = int(y.sum()), int((~y).sum())
    target = np.where(y, (up + 1) / (up + 2), 1 / (down + 2))
    centre, spread = float(x.mean()), float(x.std()) or 1.0
    design = np.stack([(x - centre) / spread, np.ones_like(x)], axis=1)
    w = np.zeros(2)
    for _ in range(_STEPS):
        p = _curve(design @ w, 1.0, 0.0)
        bend = design.T @ (design * (p * (1 - p))[:, None]) + 1e-6 * np.eye(2)
        w = w - np.linalg.solve(bend, design.T @ (p - target))
    return float(w[0] / spread), float(w[1] - w[0] * centre / spread)


__all__ = ["KAPPA", "Calibration", "bounded"]
