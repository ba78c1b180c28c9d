"""What every loop does around its optimizer step; the callbacks are thin covers of this."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from modcut.loss import ModularityLoss
from modcut.optim import Proximal

FORMS = ("gradient", "proximal")


class Steps:
    """A loss taken through a training loop that is not yours to change.

    ``before(accumulated)`` just before the optimizer steps, ``after(optimizer)`` just after. The gradient is added
    once per optimizer step, in closed form: gradient accumulation does not multiply it, and no autograd graph of the
    loop has to hold it.

    Args:
        model: as the loop trains it; wrappers are looked through.
        form: ``"gradient"`` or ``"proximal"``.
        kwargs: of :class:`modcut.ModularityLoss`.

    Raises:
        ValueError: an unknown form; as :class:`modcut.ModularityLoss`.
    """

    def __init__(self, model: nn.Module, *, form: str = "gradient", **kwargs: Any) -> None:
        check_form(form)
        self.crit = ModularityLoss(model, **kwargs)
        self.form = form

    def before(self) -> float:
        """Add the gradient of the loss to the parameters' gradients; return its value."""
        if self.form == "gradient":
            from modcut.integrations import distributed

            return distributed.backward_(self.crit)
        return 0.0

    def after(self, optimizer: Any) -> None:
        """Do the proximal step, hold what is held at zero, advance the schedule."""
        inner: Any = getattr(optimizer, "optimizer", optimizer)  # accelerate's and Lightning's wrappers
        if self.form == "proximal" and not isinstance(inner, Proximal):
            rate: dict[int, Tensor | float] = {
                id(p): group["lr"] for group in inner.param_groups for p in group["params"] if p.requires_grad
            }
            self.crit.shrink_(rate)
        from modcut.integrations import distributed

        distributed.step(self.crit)


def check_form(form: str) -> None:
    """Raise ValueError for an unknown form."""
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(map(repr, FORMS))}, got {form!r}")


def is_optimizer(value: Any) -> bool:
    """Whether a value can be stepped."""
    return isinstance(value, Optimizer) or hasattr(value, "param_groups")
