"""The budget controller: lambda rises while the task loss stays inside what the user allows, and falls beyond."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from modcut.graph.interventions import evaluation
from modcut.loss import ModularityLoss

_AVERAGE = 0.5  # weight of the newest measurement in the running increase
_SPEED = 2.0  # an increase of twice the budget, or none, changes lambda by at most exp(rate) a measurement


class Budget:
    """Hold the task loss within ``nats`` of a baseline by changing the factor of a :class:`modcut.ModularityLoss`.

    ::

        budget = modcut.optim.Budget(crit, evaluate, nats=0.05, baseline=dense_loss)
        ...
        optimizer.step(); crit.step(); budget.step()

    Dual ascent for "lowest leak such that task loss <= baseline + nats", in logarithms: every ``every`` steps once the
    ramp has begun, ``lam <- lam * exp(rate * clip((nats - increase) / nats, -2, 1))`` with the running average of the
    measured increase. A constant factor does not transfer between seeds or models; a budget does.

    Args:
        crit: its ``lam`` is the starting point and is changed.
        evaluate: ``evaluate(model) -> float``, the task loss on held-out data, in nats; called in evaluation mode
            without gradients. The model's training flags and torch's random state are put back.
        nats: allowed increase, above 0.
        baseline: what the increase is counted from: a number (the task loss of a control), or ``f(step) -> float`` (its
            curve). Default: the loss at the end of the warm-up, which suits fine-tuning; from scratch, where the loss
            is still falling, that is a weak promise: pass the control's curve.
        every: steps between measurements.
        rate: how far lambda may move at a measurement, as a power of e.
        low, high: bounds of lambda, as multiples of where it started.

    Raises:
        TypeError, ValueError: an argument is of another type or out of range.
    """

    def __init__(
        self,
        crit: ModularityLoss,
        evaluate: Callable[[nn.Module], float],
        nats: float,
        *,
        baseline: float | Callable[[int], float] | None = None,
        every: int = 50,
        rate: float = 0.25,
        low: float = 1e-2,
        high: float = 30.0,
    ) -> None:
        if not isinstance(crit, ModularityLoss):
            raise TypeError(f"crit must be a modcut.ModularityLoss, got {type(crit).__name__}")
        if not callable(evaluate):
            raise TypeError(f"evaluate must be a function of the model that returns its task loss, got {evaluate!r}")
        if not (isinstance(nats, (int, float)) and 0 < nats < math.inf):
            raise ValueError(f"nats must be above 0 and finite, got {nats!r}")
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every must be an integer of at least 1, got {every!r}")
        if not 0 < rate < math.inf:
            raise ValueError(f"rate must be above 0 and finite, got {rate!r}")
        if not 0 < low <= 1 <= high < math.inf:
            raise ValueError(f"low and high must enclose 1, got {low!r} and {high!r}")
        if not crit.lam > 0:
            raise ValueError(f"crit.lam must be above 0 to start from, got {crit.lam}")
        self.crit, self.evaluate, self.nats = crit, evaluate, float(nats)
        self.baseline, self.every, self.rate = baseline, every, rate
        self.bounds = (low * crit.lam, high * crit.lam)
        self.history: list[tuple[int, float, float, float]] = []
        """(step, task loss, increase over the baseline, lambda from then on) of every measurement."""
        self._reference: float | None = None
        self._increase: float | None = None

    @property
    def increase(self) -> float | None:
        """The running average of the measured increase, in nats; ``None`` before the first measurement."""
        return self._increase

    def step(self) -> float | None:
        """Measure where it is time to; call it after ``crit.step()``. Return the task loss if it was measured.

        Raises:
            RuntimeError: ``evaluate`` raised or returned no finite number. Model, loss, lambda and this controller are
                as they were before the call.
        """
        crit = self.crit
        if crit.phase == "warm-up":
            if self.baseline is None and self._reference is None and crit.schedule.warmup - crit.steps <= 1:
                self._reference = self._measure()
            return None
        if crit.committed:
            return None  # the loss is off: lambda has nothing left to decide
        if self._reference is None and self.baseline is None:
            self._reference = self._measure()  # a partition that was given: the first step is the start
            return self._reference
        if crit.steps % self.every:
            return None
        value = self._measure()
        increase = value - self.reference
        mean = increase if self._increase is None else self._increase + _AVERAGE * (increase - self._increase)
        self._increase = mean
        move = self.rate * min(1.0, max(-_SPEED, (self.nats - mean) / self.nats))
        crit.lam = min(max(crit.lam * math.exp(move), self.bounds[0]), self.bounds[1])
        self.history.append((crit.steps, value, increase, crit.lam))
        return value

    @property
    def reference(self) -> float:
        """What the increase is counted from at this step.

        Raises:
            RuntimeError: there was no measurement yet.
        """
        if callable(self.baseline):
            return float(self.baseline(self.crit.steps))
        found = self._reference if self.baseline is None else self.baseline
        if found is None:
            raise RuntimeError("the budget has no baseline before the warm-up is over")
        return float(found)

    def _measure(self) -> float:
        model = self.crit.model
        state = torch.get_rng_state()
        try:
            with torch.no_grad(), evaluation(model):
                value = float(self.evaluate(model))
        except Exception as error:
            raise RuntimeError(
                f"evaluate must return the task loss of the model, it raised {type(error).__name__} at step "
                f"{self.crit.steps}: {error} (model, optimizer and lambda are unchanged)"
            ) from error
        finally:
            torch.set_rng_state(state)
        if not math.isfinite(value):
            raise RuntimeError(
                f"evaluate must return a finite task loss, got {value} at step {self.crit.steps} "
                "(model, optimizer and lambda are unchanged)"
            )
        return value

    def state_dict(self) -> dict[str, Any]:
        """Return everything that resuming needs; lambda itself is in the loss's own state."""
        return {
            "reference": self._reference,
            "increase": self._increase,
            "history": [list(h) for h in self.history],
            "bounds": list(self.bounds),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self._reference, self._increase = state["reference"], state["increase"]
        self.history = [(int(s), float(v), float(i), float(lam)) for s, v, i, lam in state["history"]]
        low, high = state["bounds"]
        self.bounds = (float(low), float(high))

    def __repr__(self) -> str:
        return f"Budget({self.nats:g} nats, increase={self._increase}, lam={self.crit.lam:.4g})"
