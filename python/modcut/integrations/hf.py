"""The modularity loss in the Hugging Face Trainer, as a callback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from modcut._require import require
from modcut.integrations.steps import Steps, check_form
from modcut.loss import ModularityLoss

_trainer = require("transformers.trainer_callback", extra="hf", why="the Hugging Face callback")
_FILE = "modcut.safetensors"


class ModularityCallback(_trainer.TrainerCallback):  # type: ignore[misc, name-defined]
    """Train any model of a ``transformers.Trainer`` with the modularity loss.

    ::

        Trainer(model, args, train_dataset=data, callbacks=[ModularityCallback(k=8, lam=2.0)])

    The gradient is added before each optimizer step, after clipping; under accumulation once per step. The loss's state
    lies in each checkpoint folder (``modcut.safetensors``) and is read back by ``resume_from_checkpoint``. ``leak`` and
    ``interface`` appear in the logs. Loss scaling of float16 is not supported (bfloat16 is).

    Args:
        form: ``"gradient"``, or ``"proximal"``: soft thresholding after the step.
        kwargs: of :class:`modcut.ModularityLoss`; ``total_steps`` defaults to the trainer's.
    """

    def __init__(self, *, form: str = "gradient", **kwargs: Any) -> None:
        check_form(form)
        self.form, self.kwargs = form, kwargs
        self.steps: Steps | None = None

    @property
    def crit(self) -> ModularityLoss:
        """The loss.

        Raises:
            RuntimeError: training has not begun.
        """
        if self.steps is None:
            raise RuntimeError("the callback has no loss before training has begun")
        return self.steps.crit

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Build the loss, or go on with that of the checkpoint that is resumed."""
        if getattr(args, "fp16", False):
            raise ValueError(
                "fp16 must be off with ModularityCallback (its gradient is not scaled), got True: use bf16"
            )
        settings = {"total_steps": state.max_steps, **self.kwargs}
        if self.steps is not None:
            self.steps.crit.close()
        self.steps = Steps(model, form=self.form, **settings)
        saved = Path(args.output_dir) / f"checkpoint-{state.global_step}" / _FILE
        resumed = getattr(args, "resume_from_checkpoint", None)
        if isinstance(resumed, str) and (Path(resumed) / _FILE).is_file():
            saved = Path(resumed) / _FILE
        if state.global_step and saved.is_file():
            self.crit.load_state_dict(load_file(str(saved)))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the gradient."""
        if self.steps is not None:
            self.steps.before()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Shrink, hold, advance the schedule."""
        if self.steps is not None:
            self.steps.after(optimizer)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Put the leak into the logs."""
        if logs is not None and self.steps is not None and self.crit.partition is not None:
            found = {"leak": self.crit.leak().item()}
            if self.crit.interface_edges is not None:
                found["interface"] = self.crit.interface_edges / max(1, self.crit.cross_edges)
            logs.update(found)
            if state.log_history:  # the trainer filed its copy before it called
                state.log_history[-1].update(found)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the loss's state into the checkpoint."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self.steps is not None and state.is_world_process_zero and folder.is_dir():
            save_file(self.crit.state_dict(), str(folder / _FILE))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove the hooks."""
        if self.steps is not None:
            self.crit.close()
