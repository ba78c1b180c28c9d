"""Around the optimizer: the modularity loss as a proximal step, and the budget that sets its factor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from modcut._budget import Budget
from modcut.loss import ModularityLoss

__all__ = ["Budget", "Proximal"]


class Proximal(Optimizer):
    """Wrap an optimizer so that each step is followed by soft thresholding of the cross-module weights.

    ::

        W_ij <- sign(W_ij) max(|W_ij| - lr * lam * weight * s_j / r_i, 0)        where c_i != c_j

    Decoupled like the weight decay of AdamW: the optimizer's scaling does not distort it, weights reach exactly 0 and
    no autograd graph is needed. Use it instead of adding ``crit()`` to the loss (both together count twice). After the
    commit of ``crit``, each step sets what is held at zero to zero, whatever momentum is left. ``lr`` is
    that of the parameter's group at the time; ``lam`` and ``weight`` (the schedule) are those of ``crit``;
    ``crit.step()`` stays yours to call. Parameters that the optimizer does not hold, or that got no gradient in this
    step, are left alone.

    Args:
        optimizer: any :class:`torch.optim.Optimizer`. Its groups, state and state dict are passed through, so learning
            rate schedulers and checkpoints see no difference.
        crit: the loss whose partition and norms say what crosses and how far to shrink.

    Raises:
        TypeError: an argument is of another type.
        ValueError: ``crit`` is of another form, or uses edge "square", whose proximal step is another one.
    """

    def __init__(self, optimizer: Optimizer, crit: ModularityLoss) -> None:
        # The base constructor would register the parameters a second time; everything it sets up is passed through.
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if not isinstance(crit, ModularityLoss):
            raise TypeError(f"crit must be a modcut.ModularityLoss, got {type(crit).__name__}")
        if crit.method != "share" or crit.assignment != "hard":
            raise ValueError(
                f'crit must use method "share" with hard labels, got {crit.method!r} with {crit.assignment} ones'
            )
        if crit.edge == "square":
            raise ValueError('crit must use edge "contribution" or "abs", got "square"')
        self.optimizer, self.crit = optimizer, crit

    def __getattr__(self, name: str) -> Any:
        if name in ("optimizer", "crit"):  # not set yet (unpickling): no recursion
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The groups of the wrapped optimizer."""
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The state of the wrapped optimizer."""
        return self.optimizer.state

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Step the optimizer, then shrink the cross-module weights; return what the optimizer returned."""
        result = self.optimizer.step(closure) if closure is not None else self.optimizer.step()
        self.shrink()
        return result

    @torch.no_grad()
    def shrink(self) -> None:
        """Do the proximal step alone."""
        rate: dict[int, Tensor | float] = {
            id(p): group["lr"] for group in self.param_groups for p in group["params"] if p.grad is not None
        }
        self.crit.shrink_(rate)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the wrapped optimizer."""
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the wrapped optimizer; the loss has its own ``state_dict``."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of the wrapped optimizer."""
        self.optimizer.load_state_dict(state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimizer."""
        self.optimizer.add_param_group(param_group)

    def __repr__(self) -> str:
        return f"Proximal({self.optimizer!r}, lam={self.crit.lam})"
