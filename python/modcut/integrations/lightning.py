"""The modularity loss in Lightning, as a callback."""

from __future__ import annotations

import importlib.util
from typing import Any

from modcut._require import require
from modcut.integrations.steps import Steps, check_form
from modcut.loss import ModularityLoss

_name = "lightning.pytorch" if importlib.util.find_spec("lightning") else "pytorch_lightning"
_lightning = require(_name, extra="lightning", why="the Lightning callback")


class ModularityCallback(_lightning.Callback):  # type: ignore[misc, name-defined]
    """Train a LightningModule with the modularity loss: ``Trainer(callbacks=[ModularityCallback(k=8)])``.

    The gradient is added before each optimizer step, before clipping; under accumulation once per step. The state is
    part of Lightning's checkpoints. Automatic optimization with one optimizer.

    Args:
        module: name of the submodule to train with the loss; default the whole LightningModule.
        form: ``"gradient"`` or ``"proximal"``.
        kwargs: of :class:`modcut.ModularityLoss`; ``total_steps`` defaults to the trainer's estimate.
    """

    def __init__(self, *, module: str = "", form: str = "gradient", **kwargs: Any) -> None:
        check_form(form)
        self.module, self.form, self.kwargs = module, form, kwargs
        self.steps: Steps | None = None
        self._state: dict[str, Any] | None = None
        self._seen = 0

    @property
    def crit(self) -> ModularityLoss:
        """The loss.

        Raises:
            RuntimeError: training has not begun.
        """
        if self.steps is None:
            raise RuntimeError("the callback has no loss before training has begun")
        return self.steps.crit

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Build the loss, or go on with that of the checkpoint."""
        settings = dict(self.kwargs)
        if "total_steps" not in settings and 0 < trainer.estimated_stepping_batches < float("inf"):
            settings["total_steps"] = int(trainer.estimated_stepping_batches)
        self.steps = Steps(pl_module.get_submodule(self.module), form=self.form, **settings)
        if self._state is not None:
            self.crit.load_state_dict(self._state)
        self._seen = trainer.global_step

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Add the gradient."""
        if self.steps is not None:
            self.steps.before()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """After an optimizer step: shrink, hold, advance the schedule."""
        if self.steps is not None and trainer.global_step != self._seen:
            self._seen = trainer.global_step
            self.steps.after(trainer.optimizers[0])

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Remove the hooks."""
        if self.steps is not None:
            self.crit.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the loss's state, for Lightning's checkpoint."""
        return {} if self.steps is None else dict(self.crit.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the model is there."""
        self._state = state_dict or None
